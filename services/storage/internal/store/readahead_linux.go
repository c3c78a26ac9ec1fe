package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// readFirstPages brings the first page of each value log file of a volume into
// memory, and no more. Badger looks at it through a mapping when it opens the
// volume; where the page is not there, the kernel reads all that its readahead
// allows, which was 8 MiB for each of 168 files.
func readFirstPages(dir string) error {
	files, _ := filepath.Glob(filepath.Join(dir, "*.vlog"))
	var header [valueLogHeader]byte
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			return damage(dir, filepath.Base(path), err)
		}
		// It is advice only.
		_ = unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_RANDOM)
		_, err = file.ReadAt(header[:], 0)
		_ = file.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			return damage(dir, filepath.Base(path), err)
		}
	}
	return nil
}

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

// adviseReadahead says whether the kernel is to read ahead where a file is mapped that
// somebody else has opened. It is advice only: where the mappings of the process are
// not to be seen, things stay as they are.
func adviseReadahead(file *os.File, wanted bool) {
	advice := uintptr(unix.MADV_RANDOM)
	if wanted {
		advice = unix.MADV_NORMAL
	}
	var s unix.Stat_t
	if unix.Fstat(int(file.Fd()), &s) != nil {
		return
	}
	for _, m := range mappingsOf(map[inode]struct{}{inodeOf(&s): {}}) {
		_ = advise(m.address, m.bytes, advice)
	}
}

// releaseMapped takes files out of memory that somebody else has mapped, the page cache
// included. It is advice, too: what was not written to the disk yet stays, what
// something else uses by now loses nothing, and a kernel older than 5.4 does nothing.
func releaseMapped(paths []string) {
	files := make(map[inode]struct{}, len(paths))
	for _, path := range paths {
		var s unix.Stat_t
		if unix.Stat(path, &s) == nil {
			files[inodeOf(&s)] = struct{}{}
		}
	}
	if len(files) == 0 {
		return
	}
	for _, m := range mappingsOf(files) {
		_ = advise(m.address, m.bytes, unix.MADV_PAGEOUT)
	}
}

// inode names a file.
type inode struct {
	major, minor uint32
	number       uint64
}

func inodeOf(s *unix.Stat_t) inode {
	return inode{major: unix.Major(s.Dev), minor: unix.Minor(s.Dev), number: s.Ino}
}

// mapping is a part of the address space.
type mapping struct {
	address uintptr
	bytes   int
}

// mappingsOf returns where the process has mapped any of some files; see
// proc_pid_maps(5).
func mappingsOf(files map[inode]struct{}) []mapping {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil
	}
	defer maps.Close()
	var found []mapping
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uintptr
		var access, offset string
		var file inode
		n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s %s %x:%x %d", &from, &to, &access, &offset, &file.major, &file.minor, &file.number)
		if _, wanted := files[file]; n == 7 && wanted && from < to {
			found = append(found, mapping{address: from, bytes: int(to - from)})
		}
	}
	return found
}
