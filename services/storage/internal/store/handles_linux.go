package store

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// handles counts the files that the process has open. It holds open what it reads, so
// that it needs no other file for that. nil knows nothing.
type handles struct {
	mu sync.Mutex
	// process lists those of the process, machine has the numbers of the machine; the
	// latter is nil where they cannot be read.
	process, machine *os.File
}

func openHandles() *handles {
	process, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil
	}
	h := &handles{process: process}
	if machine, err := os.Open("/proc/sys/fs/file-nr"); err == nil {
		h.machine = machine
	}
	return h
}

// left returns how many files the process can still open, up to most; false where that
// cannot be told. So it is where the machine has few left: who may take the last ones
// depends.
func (h *handles) left(most int) (int, bool) {
	if h == nil {
		return 0, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var limit unix.Rlimit
	open, err := h.count()
	if err != nil || unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || h.machineLacks(most) {
		return 0, false
	}
	if limit.Cur > uint64(open)+uint64(most) {
		return most, true
	}
	return max(int(limit.Cur)-open, 0), true
}

// count returns how many files are open. Linux 6.2 tells it by the size of the list.
func (h *handles) count() (int, error) {
	info, err := h.process.Stat()
	if err != nil || info.Size() > 0 {
		return int(info.Size()), err
	}
	if _, err := h.process.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	names, err := h.process.Readdirnames(-1)
	return len(names), err
}

// machineLacks says that the machine allows fewer than n more.
func (h *handles) machineLacks(n int) bool {
	if h.machine == nil {
		return false
	}
	var raw [128]byte
	size, err := h.machine.ReadAt(raw[:], 0)
	if err != nil && err != io.EOF {
		return false
	}
	var open, unused, most uint64
	if _, err := fmt.Sscan(string(raw[:size]), &open, &unused, &most); err != nil {
		return false
	}
	return most < open+uint64(n)
}

func (h *handles) close() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.process.Close()
	if h.machine != nil {
		_ = h.machine.Close()
	}
}
