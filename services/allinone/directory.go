package allinone

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

const (
	// layoutVersion is that of the data directory as a whole: which folders it has
	// and who owns them. Each service has a version of its own for its folder.
	layoutVersion = 1
	layoutFile    = "layout.json"
	lockFile      = "LOCK"
)

// layout is the file at the top of a data directory.
type layout struct {
	FormatVersion int `json:"formatVersion"`
}

// directory is a data directory that is locked by this process. Its folders have
// locks of their own, but etcd waits for its one instead of failing.
type directory struct{ lock *fileutil.LockedFile }

// openDirectory creates and locks a data directory and checks its layout. Errors
// are sentences that say what to do.
func openDirectory(path string) (_ *directory, err error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %s cannot be created; choose another one with --data-dir: %w", path, err)
	}
	lockPath := filepath.Join(path, lockFile)
	lock, err := fileutil.TryLockFile(lockPath, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, fmt.Errorf("data directory %s is in use by %s; stop that one, or choose another directory with --data-dir", path, owner(lockPath))
	}
	if err != nil {
		return nil, fmt.Errorf("data directory %s cannot be written; change its permissions, or choose another one with --data-dir: %w", path, err)
	}
	d := &directory{lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	// Who holds the lock, for the message of whoever comes second.
	if err := errors.Join(lock.Truncate(0), writeAt(lock.File, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, fmt.Errorf("data directory %s cannot be written: %w", path, err)
	}
	return d, checkLayout(path)
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func owner(lockPath string) string {
	raw, err := os.ReadFile(lockPath)
	if pid, parseErr := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil && parseErr == nil {
		return fmt.Sprintf("process %d", pid)
	}
	return "another process"
}

// checkLayout writes the layout file of a new directory and reads that of an old
// one. A field that a newer release added is no reason to refuse it, a newer
// version is.
func checkLayout(path string) error {
	file := filepath.Join(path, layoutFile)
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return writeLayout(path, file)
	}
	if err != nil {
		return fmt.Errorf("data directory %s cannot be read: %w", path, err)
	}
	var l layout
	if err := json.Unmarshal(raw, &l); err != nil || l.FormatVersion < 1 {
		return fmt.Errorf("%s is damaged; restore it from a backup, or choose another data directory with --data-dir", file)
	}
	if l.FormatVersion > layoutVersion {
		return fmt.Errorf("data directory %s has format %d, this release knows %d; use the release that wrote it or a newer one, or choose another directory with --data-dir", path, l.FormatVersion, layoutVersion)
	}
	return nil
}

// writeLayout leaves the whole file or none after a crash.
func writeLayout(path, file string) error {
	raw, err := json.Marshal(layout{FormatVersion: layoutVersion})
	if err != nil {
		return fmt.Errorf("describe data directory: %w", err)
	}
	if err := replaceFile(path, file, append(raw, '\n')); err != nil {
		return fmt.Errorf("data directory %s cannot be written: %w", path, err)
	}
	return nil
}

func replaceFile(dir, file string, content []byte) error {
	next := file + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, file); err != nil {
		return err
	}
	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

func (d *directory) close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("unlock data directory: %w", err)
	}
	return nil
}
