package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// OpenReadOnly keeps writers away from a directory until [Dir.Close] and changes
// nothing in it; several readers may have it open. It refuses with [ErrLocked] if
// a process works there, and with [fs.ErrNotExist] if there is no such directory.
func OpenReadOnly(path string) (*Dir, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, Unusable(path, err)
	}
	lock, err := os.Open(filepath.Join(absolute, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		// Nobody has ever worked here, or the file was lost: then nobody does now,
		// who would hold it open.
		if lock, err = os.Open(absolute); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no data directory %s; check the path: %w", absolute, err)
		}
	}
	if err != nil {
		return nil, Unusable(absolute, err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		err = locked(absolute, holder(lock))
	case err != nil:
		err = Unusable(absolute, fmt.Errorf("lock %s: %w", lockFile, err))
	default:
		return &Dir{path: absolute, lock: lock}, nil
	}
	lock.Close()
	return nil, err
}

// ReadIdentity reads the identity of a directory that must have one, and creates
// none. Its errors are those of [Dir.Identity] and [fs.ErrNotExist].
func (d *Dir) ReadIdentity() (Identity, error) {
	file := d.Path(IdentityFile)
	raw, err := os.ReadFile(file)
	if err != nil {
		return Identity{}, fmt.Errorf("read the identity of data directory %s: %w", d.path, err)
	}
	return parseIdentity(file, raw)
}
