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

// allocateSpace makes a file that large, with room on the disk.
func allocateSpace(file *os.File, bytes int64) error {
	return unix.Fallocate(int(file.Fd()), 0, 0, bytes)
}

// measureDisk asks the file system of a directory for its space.
func measureDisk(dir string) (usage, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return usage{}, err
	}
	block := int64(s.Bsize)
	return usage{
		free: int64(s.Bavail) * block, total: int64(s.Blocks) * block,
		files: int64(s.Ffree), totalFiles: int64(s.Files),
		readOnly: s.Flags&unix.ST_RDONLY != 0,
	}, nil
}

// startWriteback begins to write a part of a file that is dirty, and does not
// wait for it.
func startWriteback(fd uintptr, offset, bytes int64) {
	_ = unix.SyncFileRange(int(fd), offset, bytes, unix.SYNC_FILE_RANGE_WRITE)
}
