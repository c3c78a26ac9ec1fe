package store

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPopulateSaysWhatCannotBeRead(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 1 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mapping, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(mapping); err != nil {
			t.Error(err)
		}
	}()
	value := mapping[100 : size-100]
	var s sequentialReader
	if err := s.fetch(value); err != nil {
		t.Fatal(err)
	}
	if noPopulate.Load() {
		t.Skip("the kernel is older than 5.14")
	}
	// Touching the mapping now would be a SIGBUS.
	if err := f.Truncate(size / 2); err != nil {
		t.Fatal(err)
	}
	if err := s.fetch(value); !errors.Is(err, unix.EFAULT) {
		t.Fatalf("got %v, want %v", err, unix.EFAULT)
	}
	// Advice about what is not there harms nobody.
	adviseWillNeed(addressOf(value), 64<<20)
}

// TestReadaheadIsOffWhereTheWriterIs: the kernel reads nothing ahead in the value log
// file that is written, and in those before it as it does in any other.
func TestReadaheadIsOffWhereTheWriterIs(t *testing.T) {
	if _, err := os.Stat("/proc/self/smaps"); err != nil {
		t.Skip("the flags of mappings are not to be seen here")
	}
	for _, set := range []Set{SetSynced, SetReplicated} {
		s := open(t, testConfig(t))
		l := s.Log(partition(1))
		random := make(map[string]bool)
		for offset := int64(0); len(random) < 3; offset += 4 {
			if offset > 400 {
				t.Fatalf("value log files after %d records of 64 KiB: %v", offset, random)
			}
			one(t, l, set, offset, 4, 256<<10)
			random = randomMappings(t, s.directory.Path(""))
		}
		names := make([]string, 0, len(random))
		for name := range random {
			names = append(names, name)
		}
		slices.Sort(names)
		for i, name := range names {
			if last := i == len(names)-1; random[name] != last {
				t.Errorf("set %v: of %v without readahead: %t", set, name, random[name])
			}
		}
	}
}

// randomMappings says of each mapped value log file below a directory whether the
// kernel was told that it is read at random.
func randomMappings(t *testing.T, dir string) map[string]bool {
	t.Helper()
	file, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	found, name := make(map[string]bool), ""
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 6 && strings.HasPrefix(fields[5], dir) && strings.HasSuffix(fields[5], ".vlog") {
			name = fields[5]
		}
		if fields[0] == "VmFlags:" && name != "" {
			found[name], name = slices.Contains(fields, "rr"), ""
		}
	}
	return found
}
