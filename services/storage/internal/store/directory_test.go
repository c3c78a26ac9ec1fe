package store

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// refused opens a store that must refuse, and returns the error.
func refused(t *testing.T, cfg Config, want error) string {
	t.Helper()
	s, err := Open(cfg)
	if err == nil {
		_ = s.Close(0)
		t.Fatal("the store was opened")
	}
	if want != nil {
		wantError(t, err, want)
	}
	if !strings.Contains(err.Error(), cfg.Dir) {
		t.Errorf("%q does not name the directory", err)
	}
	return err.Error()
}

func TestOpenRefusesLockedDirectory(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	message := refused(t, cfg, ErrLocked)
	if !strings.Contains(message, "process "+strconv.Itoa(os.Getpid())) || !strings.Contains(message, "choose another") {
		t.Errorf("%q names neither the process nor the remedy", message)
	}
	closeStore(t, s)
	closeStore(t, open(t, cfg))
}

func TestOpenRefusesReadOnlyDirectory(t *testing.T) {
	cfg := testConfig(t)
	if err := os.MkdirAll(filepath.Join(cfg.Dir, volumesFolder), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(cfg.Dir, 0o555); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Chmod(cfg.Dir, 0o755) }()
	if os.Geteuid() == 0 {
		asNobody(t, cfg.Dir)
	}
	message := refused(t, cfg, ErrReadOnly)
	if !strings.Contains(message, "right to write") {
		t.Errorf("%q does not name the remedy", message)
	}
}

// asNobody takes from this goroutine root's right to write everywhere.
func asNobody(t *testing.T, dir string) {
	// The directory must be reachable, though not writable.
	for d := dir; d != filepath.Dir(d) && strings.HasPrefix(d, os.TempDir()) && d != os.TempDir(); d = filepath.Dir(d) {
		if d != dir {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	if err := setFilesystemUser(65534); err != nil {
		t.Skipf("cannot give up root's rights: %v", err)
	}
	t.Cleanup(func() {
		if err := setFilesystemUser(0); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOpenRefusesNewerFormat(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		cfg := testConfig(t)
		closeStore(t, open(t, cfg))
		raise(t, filepath.Join(cfg.Dir, datadir.IdentityFile))
		refused(t, cfg, ErrNewerFormat)
	})
	t.Run("volume", func(t *testing.T) {
		cfg := testConfig(t)
		s := open(t, cfg)
		one(t, s.Log(partition(1)), SetSynced, 0, 1, 100)
		closeStore(t, s)
		raise(t, filepath.Join(cfg.Dir, volumesFolder, "synced-000001", volumeFile))
		refused(t, cfg, ErrNewerFormat)
	})
}

// A volume that an older release has left active becomes one of the present
// version before it is written to.
func TestOpenTakesVersion1(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	id := partition(1)
	want := []Batch{one(t, s.Log(id), SetSynced, 0, 3, 100)}
	closeStore(t, s)
	path := filepath.Join(cfg.Dir, volumesFolder, "synced-000001", volumeFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(string(raw), `"formatVersion": 2`, `"formatVersion": 1`, 1)
	write(t, path, old)

	s = open(t, cfg)
	if err := sameBatches(readAll(t, s.Log(id), 0, 3, 1<<20), want); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != old {
		t.Errorf("the description has changed before anything was written: %s, %v", raw, err)
	}
	one(t, s.Log(id), SetSynced, 3, 1, 100)
	if now, err := os.ReadFile(path); err != nil || !strings.Contains(string(now), `"formatVersion": 2`) {
		t.Errorf("the description is %s: %v", now, err)
	}
}

// raise gives a file a format version that nobody knows yet.
func raise(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`"formatVersion": [12]`).ReplaceAllString(string(raw), `"formatVersion": 3, "unknown": true`)
	if text == string(raw) {
		t.Fatalf("%s has no format version: %s", path, raw)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesDamagedDescriptions(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"no identity": func(t *testing.T, dir string) { remove(t, filepath.Join(dir, datadir.IdentityFile)) },
		"empty identity": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, datadir.IdentityFile), "{}")
		},
		"torn identity": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, datadir.IdentityFile), `{"formatVersion": 1, "dire`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			one(t, s.Log(partition(1)), SetSynced, 0, 1, 100)
			closeStore(t, s)
			damage(t, cfg.Dir)
			// The copy stands in for it, once.
			s = open(t, cfg)
			readAll(t, s.Log(partition(1)), 0, 1, 1)
			closeStore(t, s)
			damage(t, cfg.Dir)
			remove(t, filepath.Join(cfg.Dir, datadir.IdentityCopy))
			refused(t, cfg, nil)
		})
	}
}

func TestOpenRemovesUnfinishedVolume(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	one(t, s.Log(partition(1)), SetSynced, 0, 1, 100)
	closeUnclean(t, s)
	unfinished := filepath.Join(cfg.Dir, volumesFolder, "synced-000002")
	if err := os.Mkdir(unfinished, 0o750); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(unfinished, volumeFile+datadir.TemporarySuffix), "{")
	s = open(t, cfg)
	if _, err := os.Stat(unfinished); !os.IsNotExist(err) {
		t.Errorf("the unfinished volume is still there: %v", err)
	}
	readAll(t, s.Log(partition(1)), 0, 1, 1)
}

func TestIdentity(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	first := s.Identity()
	if first.DirectoryID == ([16]byte{}) || first.ClusterID != ([16]byte{}) || first.NodeID != 0 {
		t.Fatalf("a new directory has %+v", first)
	}
	cluster := [16]byte{1, 2, 3}
	if err := s.SetIdentity([16]byte{}, 3); err == nil {
		t.Error("recorded no cluster")
	}
	if err := s.SetIdentity(cluster, 3); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	wantError(t, s.SetIdentity(cluster, 3), ErrClosed)
	s = open(t, cfg)
	if got, want := s.Identity(), (Identity{ClusterID: cluster, NodeID: 3, DirectoryID: first.DirectoryID}); got != want {
		t.Fatalf("identity is %+v, want %+v", got, want)
	}
	if err := s.SetIdentity(cluster, 3); err != nil {
		t.Fatal(err)
	}
	wantError(t, s.SetIdentity([16]byte{9}, 3), ErrOtherNode)
	wantError(t, s.SetIdentity(cluster, 4), ErrOtherNode)
}

func TestClean(t *testing.T) {
	cfg := testConfig(t)
	marker := filepath.Join(cfg.Dir, cleanFile)
	expect := func(s *Store, clean, marked bool) {
		t.Helper()
		if s.Clean() != clean {
			t.Errorf("clean is %v", s.Clean())
		}
		if _, err := os.Stat(marker); (err == nil) != marked {
			t.Errorf("the marker: %v", err)
		}
	}
	s := open(t, cfg)
	expect(s, false, false)
	one(t, s.Log(partition(1)), SetSynced, 0, 1, 100)
	closeStore(t, s)

	s = open(t, cfg)
	expect(s, true, true)
	readAll(t, s.Log(partition(1)), 0, 1, 1)
	expect(s, true, true)
	one(t, s.Log(partition(1)), SetSynced, 1, 1, 100)
	expect(s, true, false)
	one(t, s.Log(partition(1)), SetReplicated, 2, 1, 100)
	closeUnclean(t, s)

	s = open(t, cfg)
	expect(s, false, false)
	closeStore(t, s)
	whole, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}

	for _, replace := range [][2]string{{`"1",`, ``}, {`"directoryId": "`, `"directoryId": "0`}} {
		text := strings.Replace(string(whole), replace[0], replace[1], 1)
		if text == string(whole) {
			t.Fatalf("the marker has no %s: %s", replace[0], whole)
		}
		write(t, marker, text)
		s = open(t, cfg)
		expect(s, false, false)
		closeStore(t, s)
	}
	closeStore(t, s)
}

func TestMetricsAreRegisteredOncePerStore(t *testing.T) {
	cfg := testConfig(t)
	registry := prometheus.NewRegistry()
	cfg.Registerer = registry
	for range 2 {
		s := open(t, cfg)
		one(t, s.Log(partition(1)), SetSynced, s.Log(partition(1)).durable.LogEnd, 1, 100)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		if len(families) < 5 {
			t.Errorf("%d metrics", len(families))
		}
		closeStore(t, s)
	}
	if families, err := registry.Gather(); err != nil || len(families) > 0 {
		t.Errorf("%d metrics of a closed store, %v", len(families), err)
	}
}

func TestConfigValidate(t *testing.T) {
	err := Config{}.Validate()
	if err == nil {
		t.Fatal("an empty configuration is valid")
	}
	for _, key := range []string{"Dir", "VolumeBytes", "VolumeAge", "MaxOpenSealed", "GroupBytes"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("%q does not name %s", err, key)
		}
	}
	cfg := DefaultConfig()
	cfg.Dir = "x"
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
