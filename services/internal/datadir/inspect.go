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
// none. Its errors are those of [Dir.Identity] and [fs.ErrNotExist]. Where the copy
// will stand in for the file, the identity comes with an error.
func (d *Dir) ReadIdentity() (Identity, error) {
	identity, err := d.readIdentity(IdentityFile)
	if err == nil {
		return identity, nil
	}
	if copied, copyErr := d.readIdentity(IdentityCopy); copyErr == nil && replaceable(err) {
		return copied, &refusal{reason: ErrDamaged, cause: err, text: fmt.Sprintf(
			"%s is lost or damaged; the next start makes it anew from %s", d.Path(IdentityFile), IdentityCopy)}
	}
	return Identity{}, fmt.Errorf("read the identity of data directory %s: %w", d.path, err)
}
