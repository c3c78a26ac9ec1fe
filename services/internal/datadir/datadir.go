// Package datadir is the directory in which a process keeps what must survive it:
// locked by one process at a time, known by an identity, and with files that are
// replaced as a whole or not at all.
//
// Four files are the package's own: LOCK, node.json with node.copy.json, and, while a
// file is being replaced, that file's name with [TemporarySuffix]. All others belong to whoever
// opened the directory. Errors of [Open], [Dir.Identity] and [Dir.SetIdentity]
// name the directory and end with the remedy.
package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	lockFile = "LOCK"
	// maxPID bounds what is read of a lock file, in bytes.
	maxPID = 32

	// Nobody but the user of the process reads what is in a directory.
	directoryMode = 0o700
	fileMode      = 0o600
)

// Dir is a directory that this process has locked. Its methods may be called
// concurrently, except that only one call of [Dir.Identity] or [Dir.SetIdentity]
// may run at a time.
type Dir struct {
	path string
	// lock is open for as long as the lock is held, so that the lock ends with the
	// process however that dies.
	lock *os.File
}

// Open locks a directory until [Dir.Close] and creates it where it is missing. It
// refuses with [ErrLocked] at once if a process, this one included, has it open,
// and with [ErrReadOnly] if it may not write there.
func Open(path string) (*Dir, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, Unusable(path, err)
	}
	if err := os.MkdirAll(absolute, directoryMode); err != nil {
		return nil, Unusable(absolute, err)
	}
	lock, err := os.OpenFile(filepath.Join(absolute, lockFile), os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, Unusable(absolute, err)
	}
	if err := acquire(lock, absolute); err != nil {
		lock.Close()
		return nil, err
	}
	return &Dir{path: absolute, lock: lock}, nil
}

// acquire takes the lock and leaves the process's number in it, for whoever is
// refused.
func acquire(lock *os.File, path string) error {
	err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return locked(path, holder(lock))
	}
	if err != nil {
		return Unusable(path, fmt.Errorf("lock %s: %w", lockFile, err))
	}
	if err := lock.Truncate(0); err != nil {
		return Unusable(path, err)
	}
	if _, err := lock.WriteAt(fmt.Appendln(nil, os.Getpid()), 0); err != nil {
		return Unusable(path, err)
	}
	return nil
}

// holder names the process that has the lock. That one may not have written its
// number yet.
func holder(lock io.Reader) string {
	raw, err := io.ReadAll(io.LimitReader(lock, maxPID))
	if pid, parseErr := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil && parseErr == nil && pid > 0 {
		return fmt.Sprintf("process %d", pid)
	}
	return "another process"
}

// Path returns the absolute path of the directory, or of what has that name in it.
func (d *Dir) Path(name ...string) string {
	return filepath.Join(append([]string{d.path}, name...)...)
}

// Close gives up the lock. It is called once.
func (d *Dir) Close() error {
	// A child that the process is just starting has all its files until it executes, this
	// one and those on which others who worked in the directory had locks.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := errors.Join(syscall.Flock(int(d.lock.Fd()), syscall.LOCK_UN), d.lock.Close()); err != nil {
		return fmt.Errorf("unlock data directory %s: %w", d.path, err)
	}
	return nil
}
