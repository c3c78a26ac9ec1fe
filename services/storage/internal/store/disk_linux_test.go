package store

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// runAsChild is what the process does instead of tests, where a test has asked
// for it.
func runAsChild() bool {
	if dir := os.Getenv(powerDirectory); dir != "" {
		powerChild(dir)
		return true
	}
	if dir := os.Getenv(fillDirectory); dir != "" {
		fillChild(dir)
		return true
	}
	return false
}

// allocated returns how much of the disk a file has.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s.Blocks * 512
}
