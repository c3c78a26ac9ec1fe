//go:build unix

package store

import (
	"io/fs"
	"syscall"
)

// diskBytes returns what a file occupies: less than its size where it has holes.
func diskBytes(info fs.FileInfo) int64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		// Whatever the file system's block size is, this counts in 512 bytes.
		return int64(stat.Blocks) * 512
	}
	return info.Size()
}
