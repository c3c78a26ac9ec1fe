package store

import (
	"errors"
	"os"
	"path/filepath"
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
