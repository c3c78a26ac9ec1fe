package store

import (
	"testing"

	"golang.org/x/sys/unix"
)

// allocated returns how much of the disk a file has.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s.Blocks * 512
}
