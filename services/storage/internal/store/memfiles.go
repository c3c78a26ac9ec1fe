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
	// next is the file to come; nil if there is none yet. While making is not nil, a
	// goroutine makes it: the file system's journal may keep it waiting.
	next   *os.File
	making chan madeFile
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

// madeFile is what came of making the next file; neither is set if Badger was faster,
// which look notices.
type madeFile struct {
	file *os.File
	err  error
}

// prepare reserves space for a transaction.
func (f *memFiles) prepare(bytes int64) error {
	if f.unreservable || f.next != nil || f.used+bytes < f.limit/2 {
		return nil
	}
	if f.making == nil {
		making := make(chan madeFile, 1)
		f.making = making
		path, space := f.path(f.latest+1), f.space
		go func() { making <- makeFile(path, space) }()
	}
	err := f.settle(f.rotates(bytes))
	if outOfSpace(err) && !f.rotates(bytes) {
		return nil
	}
	return err
}

// settle takes over the file that is being made if it is there, or waits for it.
func (f *memFiles) settle(wait bool) error {
	if f.making == nil {
		return nil
	}
	var made madeFile
	if wait {
		made = <-f.making
	} else {
		select {
		case made = <-f.making:
		default:
			return nil
		}
	}
	f.making = nil
	f.next = made.file
	if errors.Is(made.err, errors.ErrUnsupported) {
		f.unreservable = true
		return nil
	}
	return made.err
}

// makeFile makes an empty file with space behind its end.
func makeFile(path string, space int64) madeFile {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, fs.ErrExist) {
		return madeFile{}
	}
	if err == nil {
		if err = reserveSpace(file, 0, space); err != nil {
			removeUntaken(file)
		}
	}
	if err != nil {
		return madeFile{err: fmt.Errorf("prepare the next memory log: %w", err)}
	}
	return madeFile{file: file}
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
		ours := f.next != nil || f.making != nil
		if ok && n > latest && (!ours || n != f.latest+1) {
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
	// Without the file there is nothing to remove.
	_ = f.settle(true)
	if f.next != nil {
		removeUntaken(f.next)
		f.next = nil
	}
}

// removeUntaken closes a file, and removes it if Badger has not taken it.
func removeUntaken(file *os.File) {
	if info, err := file.Stat(); err == nil && info.Size() == 0 {
		// Where this fails the volume's next writable open does it.
		_ = os.Remove(file.Name())
	}
	_ = file.Close()
}
