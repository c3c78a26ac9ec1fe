package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/skl"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
)

// offline are the entries of a volume that no process has open, as Badger would
// find them. Badger itself writes to a volume that was not closed in good order
// when it opens it. The files must have been verified before, but for value logs.
type offline struct {
	dir    string
	tables []*table.Table
	memory []*skl.Skiplist
	// mapped are the tables' files.
	mapped [][]byte
	logs   map[uint32]*os.File
	// buf is for a value that lies in a value log.
	buf []byte
}

// openOffline finds the tables and the memory tables of the volume in a folder.
func openOffline(dir string) (*offline, error) {
	o := &offline{dir: dir, logs: make(map[uint32]*os.File)}
	opened := false
	defer func() {
		// It may also be a panic.
		if !opened {
			o.close()
		}
	}()
	file, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		opened = true
		return o, nil
	}
	if err != nil {
		return nil, damage(dir, badger.ManifestFilename, err)
	}
	defer file.Close()
	// It is empty; but Badger refuses the volume where it is not what it should be.
	keys, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: dir, ReadOnly: true})
	if err != nil {
		return nil, damage(dir, badger.KeyRegistryFileName, err)
	}
	if err := keys.Close(); err != nil {
		return nil, err
	}
	if err := o.openTables(file); err != nil {
		return nil, err
	}
	logs, err := numberedFiles(dir, memExtension)
	if err != nil {
		return nil, err
	}
	for _, l := range logs {
		if err := o.readMemory(l.path); err != nil {
			return nil, err
		}
	}
	opened = true
	return o, nil
}

// openTables maps the tables that a list names.
func (o *offline) openTables(list *os.File) error {
	manifest, _, err := badger.ReplayManifestFile(list, 0, badger.DefaultOptions(o.dir))
	if err != nil {
		return damage(o.dir, badger.ManifestFilename, err)
	}
	for id := range manifest.Tables {
		if err := o.openTable(id); err != nil {
			return err
		}
	}
	return nil
}

// openTable maps a table. Badger must not have the file itself: it removes that
// of a table which is let go.
func (o *offline) openTable(id uint64) error {
	name := table.IDToFilename(id)
	file, err := os.Open(filepath.Join(o.dir, name))
	if err != nil {
		return damage(o.dir, name, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	mapped, err := syscall.Mmap(int(file.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return damage(o.dir, name, err)
	}
	o.mapped = append(o.mapped, mapped)
	t, err := table.OpenInMemoryTable(mapped, id, &table.Options{ChkMode: options.OnBlockRead, Compression: options.None})
	if err != nil {
		return damage(o.dir, name, err)
	}
	o.tables = append(o.tables, t)
	return nil
}

// readMemory reads the whole transactions in the log of a memory table.
func (o *offline) readMemory(path string) error {
	var list []logEntry
	size := int64(1 << 10)
	scan, err := scanLogFile(path, true, func(e logEntry) {
		e.key = y.KeyWithTs(e.key, e.version)
		list = append(list, e)
		size += int64(len(e.key) + len(e.value) + skl.MaxNodeSize + 64)
	})
	if errors.Is(err, errLogHeader) {
		// Where that is damage, it was found before.
		return nil
	}
	if err != nil {
		return damage(o.dir, filepath.Base(path), err)
	}
	if scan.first == 0 {
		return nil
	}
	s := skl.NewSkiplist(size)
	for _, e := range list {
		s.Put(e.key, y.ValueStruct{Meta: e.meta, Value: e.value})
	}
	o.memory = append(o.memory, s)
	return nil
}

func (o *offline) close() {
	// They were only read: an error loses nothing.
	for _, m := range o.mapped {
		_ = syscall.Munmap(m)
	}
	for _, f := range o.logs {
		_ = f.Close()
	}
}

// each implements [entries].
func (o *offline) each(prefix, from []byte, f func(entry) bool) error {
	var sources []y.Iterator
	for _, m := range slices.Backward(o.memory) {
		sources = append(sources, m.NewUniIterator(false))
	}
	for _, t := range o.tables {
		sources = append(sources, t.NewIterator(0))
	}
	if len(sources) == 0 {
		return nil
	}
	it := table.NewMergeIterator(sources, false)
	defer it.Close()
	if from == nil {
		from = prefix
	}
	e := &offlineEntry{in: o}
	for it.Seek(y.KeyWithTs(from, math.MaxUint64)); it.Valid(); it.Next() {
		key := y.ParseKey(it.Key())
		if !bytes.HasPrefix(key, prefix) {
			break
		}
		// The newest comes first.
		if bytes.Equal(key, e.key) {
			continue
		}
		v := it.Value()
		e.key, e.meta, e.value = append(e.key[:0], key...), v.Meta, v.Value
		if v.Meta&entryDeleted == 0 && !f(e) {
			break
		}
	}
	return nil
}

// offlineEntry is an [entry]; its value may be a pointer into a value log.
type offlineEntry struct {
	in         *offline
	key, value []byte
	meta       byte
}

func (e *offlineEntry) Key() []byte { return e.key }

func (e *offlineEntry) Value(f func([]byte) error) error {
	if e.meta&entryIsPointer == 0 {
		return f(e.value)
	}
	p, ok := parsePointer(e.value)
	if !ok {
		return damage(e.in.dir, "", fmt.Errorf("a pointer into the value log has %d bytes instead of %d", len(e.value), pointerBytes))
	}
	value, err := e.in.readValue(e.key, p)
	if err != nil {
		return damage(e.in.dir, logName(p.file), fmt.Errorf("at byte %d: %w", p.start, err))
	}
	return f(value)
}

func logName(number uint32) string { return fmt.Sprintf("%06d.vlog", number) }

// readValue reads a value from a value log and verifies the entry.
func (o *offline) readValue(key []byte, p valuePointer) ([]byte, error) {
	file := o.logs[p.file]
	if file == nil {
		var err error
		if file, err = os.Open(filepath.Join(o.dir, logName(p.file))); err != nil {
			return nil, err
		}
		o.logs[p.file] = file
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if p.end > info.Size() {
		return nil, fmt.Errorf("the entry ends at byte %d, the file at %d", p.end, info.Size())
	}
	o.buf = slices.Grow(o.buf[:0], int(p.end-p.start))[:p.end-p.start]
	if _, err := file.ReadAt(o.buf, p.start); err != nil {
		return nil, err
	}
	h, ok := parseEntryHeader(o.buf[:min(len(o.buf), maxEntryHeader)])
	if !ok || h.total() != int64(len(o.buf)) {
		return nil, errors.New("the entry's header is damaged")
	}
	found, ok := h.entry(o.buf)
	if !ok {
		return nil, errors.New("the entry's checksum is wrong")
	}
	if !bytes.Equal(found.key, key) {
		return nil, errors.New("the entry is that of another key")
	}
	return found.value, nil
}
