package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// reserveStep is how far ahead of the writer disk space is reserved. The sync
	// that follows a reservation waits for the file system's journal: with 16 MiB
	// those made the p99 of 10 MB/s of small synced appends, with 64 MiB they do
	// not.
	reserveStep = 64 << 20
	// reserveFirst is what a file of a set without syncs gets while appends wait, where
	// there is plenty of space: a goroutine reserves the step.
	reserveFirst = 2 << 20
	// flushStep is how much is sent to the disk at a time: at most about twice as
	// much is left for the sync at the end of a value log file.
	flushStep = 1 << 20
	// valueLogHeader is where the first entry of a value log file begins.
	valueLogHeader = 20
	// rotationSpace is what must be free for Badger to begin a value log file, whose
	// first page it writes at once, after it has synced the one before.
	rotationSpace = 8 << 20
	// flushTick is how often somebody looks who waits for Badger to write a table.
	flushTick = 2 * time.Millisecond
	// clockTick is the coarsest step of a directory's modification time.
	clockTick = 20 * time.Millisecond
)

// logFiles looks after what Badger leaves open about the files of a volume that
// is written. It belongs to the commit goroutine.
//
//   - A log file that Badger has created is durable only with its name, which
//     Badger does not sync: in a synced set that happens before appends are
//     acknowledged.
//   - Badger writes through a mapping of a sparse file. Where the disk is full
//     that kills the process; space reserved ahead makes it an error instead,
//     and page faults cheaper.
//   - Without syncs a whole value log file can become dirty, which Badger syncs,
//     with all appends waiting, when it begins the next one: a pause of 100 ms at
//     1.3 GB/s. So what is written is sent to the disk a little at a time. That
//     costs a writer at full rate nothing, as it waits for the disk all the same.
//   - The first touch of a page that the page cache does not have fetches as many as
//     the block device reads ahead, of zeros. Where that is 8 MiB, one commit in 8 MiB
//     took 25 to 50 ms. So nothing is read ahead in the file that is written.
type logFiles struct {
	dir *os.File
	// synced says that names must be durable.
	synced bool
	// limit is the size at which Badger begins the next value log file.
	limit int64
	disk  *disk
	mem   *memFiles
	floor *floorWriter
	// changed is the directory's modification time at the last look.
	changed time.Time

	// log is the value log file that is written; it has name.
	log  *os.File
	name string
	// used is at least how far it is written, including what is being committed.
	used int64
	// reserved and flushed are how far space is reserved, and how far it was sent to the
	// disk.
	reserved, flushed int64
	// reserving is the reservation under way; nil for none. short says that the last
	// one found no space.
	reserving *reservation
	short     bool
	// unreservable says that the file system cannot reserve.
	unreservable bool
}

// watchLogFiles looks after a volume that was opened for writing, with its last
// transaction so far.
func watchLogFiles(path string, synced bool, cfg *Config, disk *disk, version uint64) (*logFiles, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	f := &logFiles{dir: dir, synced: synced, limit: cfg.valueLogBytes, disk: disk, mem: newMemFiles(path, cfg.memTableBytes)}
	if _, err := f.committed(0, 0); err != nil {
		f.close()
		return nil, err
	}
	if f.floor, err = newFloor(path, cfg.BootID, f.mem.latest, version); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *logFiles) close() {
	f.mem.remove()
	// What comes of it does not matter any more.
	_ = f.settle(true)
	// Both were only looked at; nothing is lost by an error.
	_ = f.dir.Close()
	if f.log != nil {
		adviseReadahead(f.log, true)
		_ = f.log.Close()
	}
	if f.floor != nil {
		f.floor.close()
	}
}

// prepare sees to it that a transaction finds space which adds that many bytes
// of values and of keys. An error about space comes with what has to be free; it
// may be called again then.
func (f *logFiles) prepare(values, keys int64) (need int64, err error) {
	if f.unreservable {
		return 0, nil
	}
	if f.mem.rotates(keys) {
		f.awaitTables()
		// The table that Badger writes from memory has its keys.
		need += f.mem.limit + tableSpace
	}
	if f.used+values > f.limit {
		need += rotationSpace
	}
	if need > 0 {
		if err := f.disk.has(need); err != nil {
			return need, err
		}
	}
	if err := f.mem.prepare(keys); err != nil {
		return need + f.mem.space, err
	}
	f.unreservable = f.mem.unreservable
	if f.log == nil || values == 0 {
		return 0, nil
	}
	end := f.used + values
	if err := f.settle(end > f.reserved); err != nil {
		return 0, err
	}
	// What became of the reservation, and of the disk meanwhile, decides.
	if end > f.reserved || f.disk.tight() || f.short {
		if need, err := f.reserve(end); err != nil || f.unreservable || f.disk.tight() || f.short {
			return need, err
		}
	}
	f.reserveNext(end)
	return 0, nil
}

// reserveNext begins the next step while there is half of one left.
func (f *logFiles) reserveNext(end int64) {
	step := f.disk.ahead(reserveStep)
	if f.reserving == nil && f.reserved < f.limit && end+step/2 > f.reserved {
		f.reserveSoon(min(max(end, f.reserved)+step, f.limit))
	}
}

// reserve reserves space up to an offset, and further if there is plenty.
func (f *logFiles) reserve(end int64) (need int64, err error) {
	if err := f.settle(true); err != nil || f.unreservable || end <= f.reserved {
		return 0, err
	}
	least := end
	step := int64(reserveStep)
	if !f.synced {
		step = reserveFirst
	}
	end = max(least, min(f.reserved+f.disk.ahead(step), f.limit))
	err = reserveSpace(f.log, f.reserved, end-f.reserved)
	if outOfSpace(err) {
		end = least
		err = reserveSpace(f.log, f.reserved, end-f.reserved)
	}
	return f.took(end, err)
}

// took follows up a reservation.
func (f *logFiles) took(end int64, err error) (need int64, _ error) {
	f.short = outOfSpace(err)
	switch {
	case f.short:
		return end - f.reserved + 1<<20, err
	case errors.Is(err, errors.ErrUnsupported):
		f.unreservable = true
	case err != nil:
		return 0, fmt.Errorf("reserve space for values: %w", err)
	default:
		f.reserved = end
		f.disk.spent()
	}
	return 0, nil
}

// reservation is one in a goroutine of its own, where there is plenty of space: the
// call waits for the file system's journal, which has held up appends for 280 ms.
// Meanwhile what is reserved already is written.
type reservation struct {
	end  int64
	done chan struct{}
	// err is set when done is closed.
	err error
}

func (f *logFiles) reserveSoon(end int64) {
	r := &reservation{end: end, done: make(chan struct{})}
	f.reserving = r
	file, from := f.log, f.reserved
	go func() {
		defer close(r.done)
		r.err = reserveSpace(file, from, end-from)
	}()
}

// settle takes note of the reservation under way if it has ended, or waits for it.
// Where it found no space, whoever needs it asks again.
func (f *logFiles) settle(wait bool) error {
	r := f.reserving
	if r == nil {
		return nil
	}
	if !wait {
		select {
		case <-r.done:
		default:
			return nil
		}
	}
	<-r.done
	f.reserving = nil
	if _, err := f.took(r.end, r.err); err != nil && !f.short {
		return err
	}
	return nil
}

// awaitTables waits until Badger has written what it had in memory before, if
// space is tight: then it has to write tables one at a time, as what is free now
// says little about a table that is written much later.
func (f *logFiles) awaitTables() {
	for f.disk.tight() && f.mem.flushing() {
		select {
		case <-time.After(flushTick):
		case <-f.disk.failed:
			return
		}
	}
}

// committed follows up a transaction that added that many bytes of values and of
// keys. It returns what to send to the disk.
func (f *logFiles) committed(values, keys int64) (writeback, error) {
	f.used += values
	if err := f.mem.committed(keys); err != nil {
		return writeback{}, err
	}
	if err := f.look(); err != nil {
		return writeback{}, err
	}
	if f.synced || f.log == nil || f.used-f.flushed < flushStep {
		return writeback{}, nil
	}
	w := writeback{file: f.log, offset: f.flushed, bytes: f.used - f.flushed}
	f.flushed = f.used
	return w, nil
}

// look notices files that have come or gone.
func (f *logFiles) look() error {
	info, err := f.dir.Stat()
	if err != nil {
		return err
	}
	// A time that is only just past may stand for another change too.
	if changed := info.ModTime(); changed != f.changed || time.Since(changed) < clockTick {
		f.changed = changed
	} else {
		return nil
	}
	if f.synced {
		if err := f.dir.Sync(); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(f.dir.Name())
	if err != nil {
		return err
	}
	latest := ""
	var memory []string
	for _, e := range entries {
		switch name := e.Name(); {
		case strings.HasSuffix(name, ".vlog"):
			// They are sorted, and have leading zeros.
			latest = filepath.Join(f.dir.Name(), name)
		case strings.HasSuffix(name, memExtension):
			memory = append(memory, name)
		}
	}
	if err := f.mem.look(memory); err != nil {
		return err
	}
	if latest == "" || latest == f.name {
		return nil
	}
	file, err := os.OpenFile(latest, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := f.settle(true); err != nil {
		return errors.Join(err, file.Close())
	}
	if f.log != nil {
		// From now on it is read as any other.
		adviseReadahead(f.log, true)
		_ = f.log.Close()
	}
	adviseReadahead(file, false)
	f.log, f.name = file, latest
	f.used, f.reserved, f.flushed = valueLogHeader, 0, valueLogHeader
	if !f.unreservable && !f.short && !f.disk.tight() {
		f.reserveNext(f.used)
	}
	return nil
}

// writeback is a part of a file to send to the disk without waiting for it. The
// file may be closed meanwhile.
type writeback struct {
	file          *os.File
	offset, bytes int64
}

// with adds what was written next, unless it is in another file: what is left of
// the one before has been synced.
func (w writeback) with(next writeback) writeback {
	if w.bytes > 0 && w.file == next.file && w.offset+w.bytes == next.offset {
		next.offset, next.bytes = w.offset, w.bytes+next.bytes
	}
	return next
}

func (w writeback) start() {
	if w.bytes == 0 {
		return
	}
	connection, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	// This only spares a later sync some work; that one reports errors.
	_ = connection.Control(func(fd uintptr) { startWriteback(fd, w.offset, w.bytes) })
}
