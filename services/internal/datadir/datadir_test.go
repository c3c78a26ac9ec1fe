package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
)

// remedy ends the errors, so that a command line can name its flag after it.
const remedy = "choose another data directory"

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// refuses checks an error: its reason, that it names the path and what else it
// must, and that it ends with the remedy.
func refuses(t *testing.T, err, reason error, names ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("it was not refused")
	}
	if reason != nil && !errors.Is(err, reason) {
		t.Errorf("%q is no %q", err, reason)
	}
	for _, other := range []error{ErrLocked, ErrReadOnly, ErrNewerFormat, ErrDamaged} {
		if !errors.Is(other, reason) && errors.Is(err, other) {
			t.Errorf("%q is a %q", err, other)
		}
	}
	for _, name := range names {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%q does not name %q", err, name)
		}
	}
	if !strings.HasSuffix(err.Error(), remedy) {
		t.Errorf("%q does not end with the remedy", err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// A child has all files of its parent until it executes, and must not keep the lock.
func TestLockEndsWithClose(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	child, err := syscall.Dup(int(d.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(child)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "some", "where")
	d := open(t, path)
	if d.Path() != path || d.Path("a", "b") != filepath.Join(path, "a", "b") {
		t.Errorf("paths are %s and %s", d.Path(), d.Path("a", "b"))
	}
	holder := fmt.Sprintf("in use by process %d;", os.Getpid())
	for range 2 {
		_, err := Open(path)
		refuses(t, err, ErrLocked, path, holder)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// What the last process left in the file is longer than what this one writes.
	write(t, filepath.Join(path, lockFile), "1234567890123\n")
	d = open(t, path)
	if got := read(t, d.Path(lockFile)); got != fmt.Sprintln(os.Getpid()) {
		t.Errorf("the lock file holds %q", got)
	}
	for _, content := range []string{"", "\n", "-1\n", "rm -rf", strings.Repeat("1", 100)} {
		write(t, d.Path(lockFile), content)
		_, err := Open(path)
		refuses(t, err, ErrLocked, path, "in use by another process;")
	}
}

func TestRelativePathIsNamedInFull(t *testing.T) {
	t.Chdir(t.TempDir())
	working, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if d := open(t, "data"); d.Path() != filepath.Join(working, "data") {
		t.Errorf("the path is %s", d.Path())
	}
}

func TestOthersMayNotRead(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "data"))
	if _, err := d.Identity(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{d.Path(), d.Path(lockFile), d.Path(IdentityFile), d.Path(IdentityCopy)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	_, err := Open(file)
	refuses(t, err, nil, file)
	blocked := t.TempDir()
	if err := os.Mkdir(filepath.Join(blocked, lockFile), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = Open(blocked)
	refuses(t, err, nil, blocked)
}

func TestUnusable(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EACCES, syscall.EPERM, syscall.EROFS} {
		err := Unusable("/data", &fs.PathError{Op: "open", Path: "/data/LOCK", Err: errno})
		refuses(t, err, ErrReadOnly, "/data ", "right to write", errno.Error())
		if !errors.Is(err, errno) {
			t.Errorf("%q has lost its cause", err)
		}
	}
	err := Unusable("/data", syscall.EIO)
	refuses(t, err, syscall.EIO, "/data ", syscall.EIO.Error())
}

func TestIdentity(t *testing.T) {
	d := open(t, t.TempDir())
	first, err := d.Identity("volumes")
	if err != nil {
		t.Fatal(err)
	}
	if first.DirectoryID == [16]byte{} || first.Known() || first.NodeID != 0 {
		t.Fatalf("a new directory has %+v", first)
	}
	if again, err := d.Identity("volumes"); err != nil || again != first {
		t.Errorf("read again: %+v, %v; want %+v", again, err, first)
	}
	want := first
	want.ClusterID, want.NodeID = [16]byte{0xc1}, 3
	if err := d.SetIdentity(want); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{
  "formatVersion": 1,
  "clusterId": "c1000000-0000-0000-0000-000000000000",
  "nodeId": 3,
  "directoryId": "%s",
  "crc32c": %d
}
`, uuid.UUID(first.DirectoryID), checksum(&diskv1.NodeIdentity{FormatVersion: 1}, want))
	if got := read(t, d.Path(IdentityFile)); got != text {
		t.Errorf("the file holds %s", got)
	}
	if got, err := d.Identity(); err != nil || got != want || !got.Known() {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
	// Other spaces, and a field of a later release.
	write(t, d.Path(IdentityFile), strings.Replace(strings.ReplaceAll(text, " ", ""), "{", `{"later":[1],`, 1))
	if got, err := d.Identity(); err != nil || got != want {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
}

// The copy stands in for what is lost, and is there again after the next start.
func TestIdentityFromItsCopy(t *testing.T) {
	for name, damage := range map[string]func(file string) error{
		"lost":  os.Remove,
		"empty": func(file string) error { return os.Truncate(file, 0) },
		"torn":  func(file string) error { return os.Truncate(file, 40) },
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, t.TempDir())
			if err := os.MkdirAll(d.Path("volumes", "synced-000001"), 0o700); err != nil {
				t.Fatal(err)
			}
			want := Identity{ClusterID: [16]byte{0xc1}, NodeID: 3, DirectoryID: [16]byte{0xd1}}
			if err := d.SetIdentity(want); err != nil {
				t.Fatal(err)
			}
			intact := read(t, d.Path(IdentityFile))
			for _, file := range []string{IdentityFile, IdentityCopy} {
				if err := damage(d.Path(file)); err != nil {
					t.Fatal(err)
				}
				if file == IdentityFile {
					got, err := d.ReadIdentity()
					if got != want || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), IdentityCopy) {
						t.Errorf("a look finds %+v, %v", got, err)
					}
				}
				if got, err := d.Identity("volumes"); err != nil || got != want {
					t.Fatalf("without %s: %+v, %v", file, got, err)
				}
				for _, file := range []string{IdentityFile, IdentityCopy} {
					if got := read(t, d.Path(file)); got != intact {
						t.Errorf("%s holds %s", file, got)
					}
				}
			}
			// One that is older than the file never counts.
			write(t, d.Path(IdentityCopy), strings.Replace(intact, "d1000000", "d2000000", 1))
			if got, err := d.Identity("volumes"); err != nil || got != want || read(t, d.Path(IdentityCopy)) != intact {
				t.Errorf("with another copy: %+v, %v", got, err)
			}
			for _, file := range []string{IdentityFile, IdentityCopy} {
				if err := damage(d.Path(file)); err != nil {
					t.Fatal(err)
				}
			}
			_, err := d.Identity("volumes")
			refuses(t, err, ErrDamaged, d.Path(IdentityFile), "backup")
		})
	}
}

func TestLostIdentity(t *testing.T) {
	d := open(t, t.TempDir())
	if err := os.MkdirAll(d.Path("volumes", "synced-000001"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := d.Identity("empty", "volumes")
	refuses(t, err, ErrDamaged, d.Path(IdentityFile), "volumes", "backup")
	if _, err := os.Stat(d.Path(IdentityFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an identity was made up: %v", err)
	}
	if _, err := d.Identity("empty"); err != nil {
		t.Errorf("a folder that does not count: %v", err)
	}
}

func TestIdentityThatCannotBeUsed(t *testing.T) {
	const id = `"directoryId": "7d444840-9dc0-11d1-b245-5ffdce74fad2"`
	for name, test := range map[string]struct {
		content string
		reason  error
		says    string
	}{
		"newer format":  {`{"formatVersion": 9, "more": true, ` + id + `}`, ErrNewerFormat, "has format 9, this release knows 1"},
		"empty":         {``, ErrDamaged, "cannot be read"},
		"torn":          {`{"formatVersion": 1, "dire`, ErrDamaged, "cannot be read"},
		"nothing":       {`{}`, ErrDamaged, "format 0"},
		"no format":     {`{` + id + `}`, ErrDamaged, "format 0"},
		"no directory":  {`{"formatVersion": 1}`, ErrDamaged, "directory id"},
		"bad cluster":   {`{"formatVersion": 1, "clusterId": "x", ` + id + `}`, ErrDamaged, "cluster id"},
		"checksum":      {`{"formatVersion": 1, "crc32c": 7, ` + id + `}`, ErrDamaged, "its checksum does not hold; put a backup of it in its place, however old"},
		"negative node": {`{"formatVersion": 1, "nodeId": -1, ` + id + `}`, ErrDamaged, "node id -1"},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, t.TempDir())
			write(t, d.Path(IdentityFile), test.content)
			_, err := d.Identity()
			refuses(t, err, test.reason, d.Path(IdentityFile), test.says)
			if got := read(t, d.Path(IdentityFile)); got != test.content {
				t.Errorf("the file was changed to %s", got)
			}
		})
	}
}

// A damaged byte is found, wherever it is, or changes nothing that the file says.
func TestDamagedIdentity(t *testing.T) {
	d := open(t, t.TempDir())
	want := Identity{ClusterID: [16]byte{0xc1}, NodeID: 3, DirectoryID: [16]byte{0xd1}}
	if err := d.SetIdentity(want); err != nil {
		t.Fatal(err)
	}
	intact := []byte(read(t, d.Path(IdentityFile)))
	for at := range intact {
		for bit := range 8 {
			damaged := bytes.Clone(intact)
			damaged[at] ^= 1 << bit
			got, err := parseIdentity("x", damaged)
			if err == nil && got != want || err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Errorf("with bit %d of byte %d flipped it is %+v, %v:\n%s", bit, at, got, err, damaged)
			}
		}
	}
	// An earlier release wrote none.
	without := regexp.MustCompile(`,\s*"crc32c": \d+`).ReplaceAll(intact, nil)
	if got, err := parseIdentity("x", without); err != nil || got != want || bytes.Equal(without, intact) {
		t.Errorf("without a checksum it is %+v, %v:\n%s", got, err, without)
	}
}

// What systems leave in any folder belongs to no node.
func TestIdentityAmongWhatSystemsLeave(t *testing.T) {
	d := open(t, t.TempDir())
	if err := os.MkdirAll(d.Path("volumes", "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, d.Path("volumes", ".DS_Store"), "x")
	if _, err := d.Identity("volumes"); err != nil {
		t.Error(err)
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"formatVersion": 1, "nodeId": 3, "directoryId": "7d444840-9dc0-11d1-b245-5ffdce74fad2"}`))
	f.Add([]byte(`{"formatVersion": 2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		identity, err := parseIdentity("x", raw)
		if err != nil {
			if identity != (Identity{}) || !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Errorf("%q is %+v, %v", raw, identity, err)
			}
			return
		}
		if identity.NodeID < 0 {
			t.Errorf("%q is node %d", raw, identity.NodeID)
		}
	})
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	// Left by a process that died, and longer than what comes.
	write(t, path+TemporarySuffix, strings.Repeat("x", 1000))
	for _, content := range []string{"first", "", "second"} {
		if err := Replace(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != content {
			t.Errorf("the file holds %q, want %q", got, content)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
	// A reader of the old file goes on with the old content: it is not written over.
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := Replace(path, []byte("third!")); err != nil {
		t.Fatal(err)
	}
	var buffer bytes.Buffer
	if _, err := buffer.ReadFrom(old); err != nil || buffer.String() != "second" {
		t.Errorf("the old file holds %q, %v", buffer.String(), err)
	}
}

func TestReplaceThatFailsLeavesTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write(t, path, "old")
	if err := os.Mkdir(path+TemporarySuffix, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("new")); err == nil {
		t.Error("replaced a file without a temporary one")
	}
	if got := read(t, path); got != "old" {
		t.Errorf("the file holds %q", got)
	}
	if err := Replace(filepath.Join(dir, "missing", "file"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in no directory: %v", err)
	}
	if err := Sync(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("synced no directory: %v", err)
	}
}

func TestMessage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clean.json")
	var m diskv1.CleanMarker
	if err := ReadMessage(path, &m); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := WriteMessage(path, &diskv1.CleanMarker{NodeEpoch: 12, Volumes: []uint64{1}}); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, path), "{\n  \"nodeEpoch\": \"12\",\n  \"volumes\": [\n    \"1\"\n  ]\n}\n"; got != want {
		t.Errorf("the file holds %q, want %q", got, want)
	}
	if err := ReadMessage(path, &m); err != nil || m.GetNodeEpoch() != 12 || len(m.GetVolumes()) != 1 {
		t.Errorf("read %v, %v", &m, err)
	}
	write(t, path, `{"nodeEpoch": "12`)
	refuses(t, ReadMessage(path, &m), ErrDamaged, path, "cannot be read", "backup")
}
