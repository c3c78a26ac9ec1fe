package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// reserveSpace gives a part of a file room on the disk; neither its contents nor
// its size change.
func reserveSpace(file *os.File, offset, bytes int64) error {
	return unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, offset, bytes)
}

// startWriteback begins to write a part of a file that is dirty, and does not
// wait for it.
func startWriteback(fd uintptr, offset, bytes int64) {
	_ = unix.SyncFileRange(int(fd), offset, bytes, unix.SYNC_FILE_RANGE_WRITE)
}
