package store

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// noPopulate is set where the kernel is older than 5.14.
var noPopulate atomic.Bool

// adviseWillNeed begins to read what is mapped at an address. It does not wait
// for the disk.
func adviseWillNeed(address uintptr, bytes int) { _ = advise(address, bytes, unix.MADV_WILLNEED) }

// populate waits until what is mapped at an address is in memory: in a system
// call, during which other goroutines have the processor. Its error says that the
// disk cannot be read, for which touching the memory would kill the process.
func populate(address uintptr, bytes int) error {
	if noPopulate.Load() {
		return nil
	}
	switch errno := advise(address, bytes, unix.MADV_POPULATE_READ); errno {
	case unix.EFAULT, unix.EHWPOISON:
		return errno
	case unix.EINVAL:
		noPopulate.Store(true)
	}
	return nil
}

func advise(address uintptr, bytes int, advice uintptr) unix.Errno {
	page := uintptr(os.Getpagesize() - 1)
	from := address &^ page
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, from, address+uintptr(bytes)-from, advice)
	return errno
}
