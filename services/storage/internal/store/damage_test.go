package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// damageVictim is the variable that makes the test binary fill the store in that
// directory and stop in the way that damageStop says.
const (
	damageVictim = "RUNNEL_STORE_TEST_VICTIM"
	damageStop   = "RUNNEL_STORE_TEST_VICTIM_STOP"
)

// The partitions of a damaged store: two share the volumes of the synced set, the
// other lies in another set, where nothing is damaged.
var (
	damagedPartitions = []PartitionID{partition(1), partition(2)}
	soundPartition    = partition(3)
)

func damageConfig(dir string) Config {
	cfg := DefaultConfig()
	cfg.Dir = dir
	cfg.BootID = "boot"
	cfg.VolumeBytes = 400 << 10
	cfg.valueLogBytes = 1 << 20
	cfg.memTableBytes = 1 << 20
	cfg.ScrubBytes = 0
	return cfg
}

func damageBatch(id PartitionID, offset int64) Batch {
	size := 3000
	if offset%3 == 0 {
		size = 200
	}
	return makeBatch(offset, 1, size, 0, 1000+offset, uint64(id.Topic[2]))
}

// fillVictim writes until there is a sealed volume, an active one with two value
// logs and a table, and prints the log ends.
func fillVictim(dir, stop string) {
	s, err := Open(damageConfig(dir))
	if err != nil {
		fmt.Println("fail", err)
		os.Exit(1)
	}
	appendOne := func(id PartitionID, set Set, offset int64) {
		outcome := make(chan error, 1)
		b := damageBatch(id, offset)
		s.Log(id).Append(Append{Set: set, Batches: []Batch{b}, State: State{LogEnd: offset + 1, HighWatermark: offset + 1, Epochs: epochZero}}, func(err error) { outcome <- err })
		if err := <-outcome; err != nil {
			fmt.Println("fail", err)
			os.Exit(1)
		}
	}
	end := int64(0)
	fill := func(n int64) {
		for range n {
			for _, id := range damagedPartitions {
				appendOne(id, SetSynced, end)
			}
			appendOne(soundPartition, SetReplicated, end)
			end++
		}
	}
	fill(60)
	if err := s.sets[SetSynced].roll(context.Background()); err != nil {
		fmt.Println("fail", err)
		os.Exit(1)
	}
	for s.volumes.sealed(1) == nil {
		runtime.Gosched()
	}
	// Opened anew, the active volume has a table and a second value log.
	fill(30)
	if err := s.Close(1); err != nil {
		fmt.Println("fail", err)
		os.Exit(1)
	}
	if s, err = Open(damageConfig(dir)); err != nil {
		fmt.Println("fail", err)
		os.Exit(1)
	}
	fill(30)
	if stop == "clean" {
		if err := s.Close(1); err != nil {
			fmt.Println("fail", err)
			os.Exit(1)
		}
	}
	fmt.Println("end", end)
	os.Exit(0)
}

// victim returns a directory that a process has left in a way, and where all
// logs end.
func victim(t *testing.T, stop string) (string, int64) {
	t.Helper()
	dir := memoryDir(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), damageVictim+"="+dir, damageStop+"="+stop)
	out, err := cmd.Output()
	var end int64
	if n, _ := fmt.Sscanf(string(out), "end %d", &end); err != nil || n != 1 {
		t.Fatalf("the victim says %q, %v", out, err)
	}
	return dir, end
}

// memoryDir returns a directory in memory where there is such a file system: many
// stores are opened, and none has to survive the machine.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "runnel-damage-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// damages are what happens to a file.
func damages(size int64) map[string]func(path string) error {
	out := map[string]func(string) error{
		"removed":   os.Remove,
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"half":      func(path string) error { return os.Truncate(path, size/2) },
		"minus one": func(path string) error { return os.Truncate(path, size-1) },
	}
	for _, at := range []int64{0, 20, size / 2, size - 5, size - 1} {
		if at < 0 || at >= size {
			continue
		}
		out[fmt.Sprintf("flip at %d", at)] = func(path string) error { return flipByte(path, at) }
	}
	return out
}

func flipByte(path string, at int64) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	var b [1]byte
	if _, err := file.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = file.WriteAt(b[:], at)
	return err
}

// contentEnd returns the end of what a file holds: log files have zeros behind.
func contentEnd(t *testing.T, path string) int64 {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, ".mem") || strings.HasSuffix(path, ".vlog") {
		raw = []byte(strings.TrimRight(string(raw), "\x00"))
	}
	return int64(len(raw))
}

// verifyVictim opens a damaged store and says what is wrong: a log that is shorter
// than what was acknowledged though nobody says that it has failed, a wrong byte,
// or a partition that suffers though nothing of it was damaged.
func verifyVictim(dir string, end int64, logs ...PartitionID) error {
	s, err := Open(damageConfig(dir))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer s.Close(1)
	return readVictim(s, end, logs...)
}

// readVictim is verifyVictim of a store that is open.
func readVictim(s *Store, end int64, logs ...PartitionID) error {
	lost := s.Unsettled()
	for _, id := range logs {
		l := s.Log(id)
		state, _ := l.Loaded()
		failed := l.Failed() != nil || lost && !slices.Contains(s.Partitions(), id)
		if !failed && state.LogEnd != end {
			return fmt.Errorf("%v ends at %d instead of %d and has not failed", id, state.LogEnd, end)
		}
		if id == soundPartition && failed {
			return fmt.Errorf("%v has failed: %v", id, l.Failed())
		}
		for offset := state.LogStart; offset < state.LogEnd; {
			batches, err := l.Read(context.Background(), offset, state.LogEnd, 1<<20)
			var corrupt *ErrCorrupt
			switch {
			case errors.As(err, &corrupt):
				// It is reported; what follows can be read.
				offset = max(offset+1, corrupt.Next)
				if id == soundPartition {
					return err
				}
			case err != nil || len(batches) == 0:
				return fmt.Errorf("%v at %d: %d batches, %w", id, offset, len(batches), err)
			}
			for _, b := range batches {
				if err := sameBatches([]Batch{b}, []Batch{damageBatch(id, b.BaseOffset)}); err != nil {
					return fmt.Errorf("%v at %d: %w", id, b.BaseOffset, err)
				}
				offset = b.LastOffset + 1
			}
		}
	}
	return nil
}

// TestDamage damages every file that a store leaves, in every way, and starts
// twice on what is left.
func TestDamage(t *testing.T) {
	logs := append(slices.Clone(damagedPartitions), soundPartition)
	for _, stop := range []string{"clean", "kill"} {
		t.Run(stop, func(t *testing.T) {
			dir, end := victim(t, stop)
			if err := func() error {
				sound := filepath.Join(memoryDir(t), "sound")
				if err := os.CopyFS(sound, os.DirFS(dir)); err != nil {
					return err
				}
				return verifyVictim(sound, end, logs...)
			}(); err != nil {
				t.Fatalf("without damage: %v", err)
			}
			files := []string{cleanFile, lockName}
			volumes := []string{"synced-000003"}
			if stop == "clean" {
				// A sealed volume looks the same after either.
				volumes = append(volumes, "synced-000001")
			}
			for _, volume := range volumes {
				entries, err := os.ReadDir(filepath.Join(dir, volumesFolder, volume))
				if err != nil {
					all, _ := os.ReadDir(filepath.Join(dir, volumesFolder))
					t.Fatal(err, all)
				}
				for _, e := range entries {
					files = append(files, filepath.Join(volumesFolder, volume, e.Name()))
				}
			}
			for _, file := range files {
				if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
					continue
				}
				for name, damage := range damages(contentEnd(t, filepath.Join(dir, file))) {
					copied := filepath.Join(memoryDir(t), "store")
					if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
						t.Fatal(err)
					}
					if err := damage(filepath.Join(copied, file)); err != nil {
						t.Fatal(err)
					}
					for start := range 2 {
						if err := verifyVictim(copied, end, logs...); err != nil {
							t.Errorf("%s: %s: start %d: %v", file, name, start+1, err)
							break
						}
					}
					os.RemoveAll(copied)
				}
			}
		})
	}
}

const lockName = "LOCK"

// TestDamagedIdentity shows that nothing goes on without knowing whose the data
// is, and that the message names the remedy.
func TestDamagedIdentity(t *testing.T) {
	dir, end := victim(t, "clean")
	path := filepath.Join(dir, datadir.IdentityFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range damages(int64(len(raw))) {
		if err := damage(path); err != nil {
			t.Fatal(err)
		}
		if err := verifyVictim(dir, end, soundPartition); err != nil && !strings.Contains(err.Error(), datadir.IdentityFile) {
			t.Errorf("%s: %v", name, err)
		}
		write(t, path, string(raw))
	}
}

// TestDamageIsMetLive flips a byte in a sealed volume of an open store.
func TestDamageIsMetLive(t *testing.T) {
	for _, by := range []string{"read", "scrub"} {
		t.Run(by, func(t *testing.T) {
			dir, end := victim(t, "clean")
			cfg := damageConfig(dir)
			var log lockedBuffer
			cfg.Logger = log.logger()
			registry := prometheus.NewRegistry()
			cfg.Registerer = registry
			if by == "scrub" {
				cfg.ScrubBytes, cfg.ScrubEvery = 1<<30, 100*time.Millisecond
			}
			s := open(t, cfg)
			path := filepath.Join(dir, volumesFolder, "synced-000001", "000001.vlog")
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := flipByte(path, info.Size()/2); err != nil {
				t.Fatal(err)
			}
			l := s.Log(damagedPartitions[0])
			if by == "read" {
				for _, id := range damagedPartitions {
					for offset := range end {
						// One of them meets it.
						_, _ = s.Log(id).Read(context.Background(), offset, offset+1, 1)
					}
				}
			}
			eventually(t, "the volume is set aside", func() bool {
				_, err := os.Stat(filepath.Join(dir, volumesFolder, "synced-000001"+condemnedSuffix))
				return err == nil && l.Failed() != nil
			})
			if got := gathered(t, registry, "runnel_storage_volumes_condemned"); got != 1 {
				t.Errorf("%v volumes are condemned", got)
			}
			eventually(t, "both partitions have failed", func() bool { return gathered(t, registry, "runnel_storage_partitions_failed") == 2 })
			if !strings.Contains(log.String(), "synced-000001") || !strings.Contains(log.String(), "000001.vlog") {
				t.Errorf("the log says %s", log.String())
			}
			// What is left is served, records are refused, all else goes on.
			if _, err := l.Read(context.Background(), end-1, end, 1); err != nil {
				t.Error(err)
			}
			var corrupt *ErrCorrupt
			if _, err := l.Read(context.Background(), 0, end, 1); !errors.As(err, &corrupt) || corrupt.Next < 30 {
				t.Errorf("reading what is lost: %v", err)
			}
			var failed *ErrFailed
			b := damageBatch(l.ID(), end)
			add := Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: end + 1, HighWatermark: end, Epochs: epochZero}}
			if err := appendSync(t, l, add); !errors.As(err, &failed) || failed.LogEndUnknown {
				t.Fatalf("append: %v", err)
			}
			one(t, s.Log(soundPartition), SetReplicated, end, 1, 100)
			eventually(t, "the losses are recorded", func() bool { return !s.Unsettled() })
			closeStore(t, s)

			// It stays so, until the log start is moved past the damage.
			cfg.Registerer = nil
			s = open(t, cfg)
			l = s.Log(damagedPartitions[0])
			if err := l.Failed(); !errors.As(err, &failed) {
				t.Fatalf("after a restart: %v", err)
			}
			mustAppend(t, l, Append{Set: SetSynced, State: State{LogStart: failed.LostTo, LogEnd: end, HighWatermark: end, Epochs: epochZero}})
			if err := l.Failed(); err != nil {
				t.Fatalf("after deleting what is lost: %v", err)
			}
			add.State.LogStart = failed.LostTo
			mustAppend(t, l, add)
			closeStore(t, s)
			s = open(t, cfg)
			if err := s.Log(l.ID()).Failed(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDamagedBatchOfAWrittenVolume flips a byte of a batch in the value log that is being
// written. Once that is met the volume is sealed, so that the next start, which would have
// to set it aside as a whole otherwise, finds all but that batch.
func TestDamagedBatchOfAWrittenVolume(t *testing.T) {
	dir, end := victim(t, "clean")
	s := open(t, damageConfig(dir))
	hit, other := s.Log(damagedPartitions[0]), s.Log(damagedPartitions[1])
	for offset := end; offset < end+6; offset++ {
		for _, l := range []*Log{hit, other} {
			mustAppend(t, l, Append{Set: SetSynced, Batches: []Batch{damageBatch(l.id, offset)}, State: State{LogEnd: offset + 1, HighWatermark: offset + 1, Epochs: epochZero}})
		}
	}
	lost := end + 2 - end%3
	files, err := filepath.Glob(filepath.Join(dir, volumesFolder, "synced-000003", "*.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// The bytes that tell it from the others are at its end.
		payload := damageBatch(hit.id, lost).Bytes
		if at := bytes.Index(raw, payload[len(payload)-100:]); at >= 0 {
			found = true
			if err := flipByte(path, int64(at)+50); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !found {
		t.Fatal("the batch is in no value log")
	}
	if _, err := hit.Read(t.Context(), lost, lost+1, 1); err == nil {
		t.Fatal("the damaged batch is read")
	}
	eventually(t, "the volume is sealed", func() bool { return s.volumes.sealed(3) != nil })
	if hit.Failed() == nil || other.Failed() != nil {
		t.Errorf("failed: %v, %v", hit.Failed(), other.Failed())
	}
	mustAppend(t, other, Append{Set: SetSynced, Batches: []Batch{damageBatch(other.id, end+6)}, State: State{LogEnd: end + 7, HighWatermark: end + 7, Epochs: epochZero}})
	closeStore(t, s)

	s = open(t, damageConfig(dir))
	if set := s.volumes.condemnedVolumes(); len(set) > 0 {
		t.Errorf("%d volumes are set aside, one for %s", len(set), set[0].reason)
	}
	hit, other = s.Log(damagedPartitions[0]), s.Log(damagedPartitions[1])
	if state, _ := other.Loaded(); other.Failed() != nil || state.LogEnd != end+7 {
		t.Errorf("the other log ends at %d of %d, %v", state.LogEnd, end+7, other.Failed())
	}
	var failed *ErrFailed
	if err := hit.Failed(); !errors.As(err, &failed) || failed.LogEndUnknown || failed.LogEnd != end+6 || failed.LostTo != lost+1 {
		t.Errorf("failed: %+v", err)
	}
	for offset := range end + 6 {
		if batches, err := hit.Read(t.Context(), offset, end+6, 1); (err == nil && len(batches) > 0) != (offset != lost) {
			t.Errorf("at %d: %d batches, %v", offset, len(batches), err)
		}
	}
}

// lockedBuffer takes the lines of a logger from many goroutines.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(line)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *lockedBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// gathered returns the value of a gauge.
func gathered(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func init() {
	children[damageVictim] = func(dir string) { fillVictim(dir, os.Getenv(damageStop)) }
}

// A volume that another process still repairs is not looked at before that one is done.
func TestCheckWaitsForAnother(t *testing.T) {
	t.Parallel()
	dir, _ := victim(t, "clean")
	volume := filepath.Join(dir, volumesFolder, "synced-000003")
	other, err := lockCheck(t.Context(), volume)
	if err != nil {
		t.Fatal(err)
	}
	options := CheckOptions{BootID: "boot", valueLogBytes: 1 << 20, memTableBytes: 1 << 20}
	ctx, cancel := context.WithTimeout(t.Context(), 3*awaitEvery)
	defer cancel()
	if err := CheckVolume(ctx, volume, options); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beside another: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := CheckVolume(t.Context(), volume, options); err != nil {
		t.Error(err)
	}
}
