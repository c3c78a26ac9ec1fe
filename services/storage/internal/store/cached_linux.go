package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// dropCached takes a part of a file that was read out of the page cache. Pages
// that somebody has mapped stay.
func dropCached(file *os.File, offset, bytes int64) {
	_ = unix.Fadvise(int(file.Fd()), offset, bytes, unix.FADV_DONTNEED)
}
