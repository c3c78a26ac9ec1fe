package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const memExtension = ".mem"

// memFiles sees to it that the logs of the keys which Badger holds in memory have
// space on the disk before Badger writes them. It belongs to the commit
// goroutine.
//
// Badger creates the next of these files in the middle of a commit and writes it
// in the same breath. But it takes a file of that name without a byte for its
// own, and makes it larger, which keeps space that was reserved behind the end.
// So the next file is put there in time. It is taken away again before the
// directory is opened, as a read-only open stumbles over it.
type memFiles struct {
	dir string
	// limit is the size at which Badger begins the next file, space what each gets:
	// a transaction may begin just below the limit.
	limit, space int64
	// used is at least how far the present file is written.
	used int64
	// latest is the number of the present file.
	latest uint64
	// next is the file to come; nil if there is none yet.
	next *os.File
	// unreservable says that the file system cannot reserve.
	unreservable bool
}

func newMemFiles(dir string, limit int64) *memFiles {
	return &memFiles{dir: dir, limit: limit, space: memSpace(limit)}
}

// memSpace is what one file gets. Transactions take at most 15 % of the limit,
// and what the log has besides keys and values.
func memSpace(limit int64) int64 { return limit + limit/4 }

// memEntry is what an entry takes of a file, or of Badger's memory, besides its
// key and value: the greater of the two.
const memEntry = 96

// rotates says whether a transaction of so many bytes may make Badger begin the
// next file, and write what was in memory to a table.
func (f *memFiles) rotates(bytes int64) bool { return f.used+bytes >= f.limit }

// flushing says whether Badger has files before the present one.
func (f *memFiles) flushing() bool {
	names, err := filepath.Glob(filepath.Join(f.dir, "*"+memExtension))
	for _, name := range names {
		if n, ok := memNumber(name); ok && n < f.latest {
			return true
		}
	}
	return err != nil
}

// prepare reserves space for a transaction.
func (f *memFiles) prepare(bytes int64) error {
	if f.unreservable || f.next != nil || f.used+bytes < f.limit/2 {
		return nil
	}
	err := f.precede()
	if outOfSpace(err) && !f.rotates(bytes) {
		return nil
	}
	return err
}

// precede puts the next file there.
func (f *memFiles) precede() error {
	file, err := os.OpenFile(f.path(f.latest+1), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, fs.ErrExist) {
		// Badger was faster; look notices it.
		return nil
	}
	if err != nil {
		return fmt.Errorf("prepare the next memory log: %w", err)
	}
	if err := reserveSpace(file, 0, f.space); err != nil {
		f.next = file
		f.remove()
		if !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("prepare the next memory log: %w", err)
		}
		f.unreservable = true
		return nil
	}
	f.next = file
	return nil
}

// committed follows up a transaction of so many bytes.
func (f *memFiles) committed(bytes int64) error {
	f.used += bytes
	if f.next == nil {
		return nil
	}
	info, err := f.next.Stat()
	if err != nil {
		return err
	}
	if info.Size() > 0 {
		// Badger has taken it.
		_ = f.next.Close()
		f.next = nil
		f.latest++
		f.used = bytes
	}
	return nil
}

// look notices a file that Badger had to create itself, and reserves its space.
func (f *memFiles) look(entries []string) error {
	latest := f.latest
	for _, name := range entries {
		n, ok := memNumber(name)
		if ok && n > latest && (f.next == nil || n != f.latest+1) {
			latest = n
		}
	}
	if latest == f.latest {
		return nil
	}
	f.latest = latest
	f.used = 0
	if f.unreservable {
		return nil
	}
	file, err := os.OpenFile(f.path(latest), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	err = reserveSpace(file, 0, f.space)
	if errors.Is(err, errors.ErrUnsupported) {
		f.unreservable = true
	} else if err != nil && !outOfSpace(err) {
		return fmt.Errorf("reserve space for the memory log: %w", err)
	}
	return nil
}

func (f *memFiles) path(n uint64) string {
	return filepath.Join(f.dir, fmt.Sprintf("%05d%s", n, memExtension))
}

func memNumber(name string) (uint64, bool) {
	base, ok := strings.CutSuffix(filepath.Base(name), memExtension)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(base, 10, 32)
	return n, err == nil
}

// remove takes the next file away, unless Badger has it.
func (f *memFiles) remove() {
	if f.next == nil {
		return
	}
	if info, err := f.next.Stat(); err == nil && info.Size() == 0 {
		// Where this fails the volume's next writable open does it.
		_ = os.Remove(f.next.Name())
	}
	_ = f.next.Close()
	f.next = nil
}
