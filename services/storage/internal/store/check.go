package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// CheckOptions are what [CheckVolume] has to know of the store.
type CheckOptions struct {
	// BootID names the kernel's boot.
	BootID string
	// Logger takes Badger's warnings; it may be nil.
	Logger badger.Logger

	valueLogBytes, memTableBytes int64
}

// CheckVolume verifies a volume that was not closed in good order, opens it as
// Badger would repair it, and closes it again. It is run in a process of its own
// where there is one, since Badger can panic over damage that nobody foresaw. An
// [*ErrDamagedVolume] says that the volume must be set aside; any other error is
// about the process or the machine.
func CheckVolume(ctx context.Context, dir string, options CheckOptions) error {
	return guarded(dir, func() error { return checkVolume(ctx, dir, options) })
}

func checkVolume(ctx context.Context, dir string, options CheckOptions) error {
	v, err := readVolume(dir)
	if err != nil {
		return damage(dir, volumeFile, err)
	}
	if v == nil {
		return nil
	}
	lock, err := lockCheck(ctx, dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := checkLogs(dir, v.set, options.BootID); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	cfg := (&Config{BootID: options.BootID, valueLogBytes: options.valueLogBytes, memTableBytes: options.memTableBytes}).withDefaults()
	var db *badger.DB
	if v.sealed {
		db, err = openReadOnly(dir, &cfg, options.Logger)
	} else {
		// DISCARD is a cache for a collection of garbage that is never run.
		if err := os.Remove(filepath.Join(dir, discardFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		db, err = openWritable(dir, v.set.synced() || v.copies, &cfg, options.Logger)
	}
	if err != nil {
		return damage(dir, "", err)
	}
	err = checkRecords(ctx, dir, db)
	if closed := db.Close(); closed != nil && err == nil {
		err = damage(dir, "", closed)
	}
	return err
}

// lockCheck waits until no other process checks the volume, such as one that
// outlives the process that has started it: while that one repairs the volume, it
// looks damaged. The lock ends with the file.
func lockCheck(ctx context.Context, dir string) (*os.File, error) {
	file, err := os.Open(filepath.Join(dir, volumeFile))
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(awaitEvery)
	defer ticker.Stop()
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock volume %s to check it: %w", dir, err), file.Close())
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), file.Close())
		}
	}
}

// discardFile is Badger's: how much of each value log is garbage.
const discardFile = "DISCARD"

// checkRecords verifies all keys, and the values that have checksums and lie
// beside them.
func checkRecords(ctx context.Context, dir string, db *badger.DB) error {
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{})
	defer it.Close()
	for n := 0; ; n++ {
		if n == 0 {
			it.Rewind()
		}
		if !it.Valid() {
			return nil
		}
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if _, _, _, err := parseKey(it.Item().Key()); err != nil {
			return damage(dir, "", err)
		}
		it.Next()
	}
}

// checkLogs verifies the files of a volume as far as Badger would lose something
// without an error. It reads only.
func checkLogs(dir string, set Set, bootID string) error {
	c := contents{values: make(map[uint32]int64)}
	if err := c.readTables(dir); err != nil {
		return err
	}
	f, known, err := readFloor(dir)
	if err != nil {
		return err
	}
	// Without syncs and after a crash of the machine any of the last transactions
	// may be missing: that is no damage, and what is there has checksums.
	sameBoot := known && f.boot == bootSum(bootID)
	lossy := !set.synced() && !sameBoot
	if err := c.readMemTables(dir, lossy, f, known && (sameBoot || set.synced()), sameBoot); err != nil {
		return err
	}
	return c.checkValueLogs(dir, lossy)
}

// readMemTables verifies the logs of the memory tables: that each ends as a crash
// leaves it, that no transaction is missing before the last one, and that this
// one is not below the floor.
func (c *contents) readMemTables(dir string, lossy bool, f floor, known, exact bool) error {
	tables, err := numberedFiles(dir, ".mem")
	if err != nil {
		return err
	}
	found := false
	for _, t := range tables {
		var bad error
		s, err := scanLogFile(t.path, true, func(e logEntry) {
			if bad == nil {
				bad = c.refer(e.meta, e.value)
			}
		})
		name := filepath.Base(t.path)
		switch {
		case errors.Is(err, errLogHeader) && s.size == 0:
			// A crash came between its creation and its first byte; or it lost them.
			continue
		case err != nil && !(lossy && errors.Is(err, errLogHeader)):
			return damage(dir, name, err)
		case bad != nil:
			return damage(dir, name, bad)
		case lossy:
		case s.first > c.version+1 && (c.version > 0 || s.first > 1):
			return damage(dir, name, fmt.Errorf("it begins with transaction %d, but what comes before ends with %d", s.first, c.version))
		case s.beyond > max(s.last, c.version)+1:
			return damage(dir, name, fmt.Errorf("it is damaged at byte %d, and transactions up to %d follow", s.end, s.beyond))
		}
		c.version = max(c.version, s.last)
		found = found || t.number == f.table
	}
	switch {
	case !known || lossy:
		return nil
	case c.version < f.base:
		return damage(dir, "", fmt.Errorf("transactions after %d are missing; there were %d when it was opened", c.version, f.base))
	case exact && f.version > f.base && !found:
		return damage(dir, fmt.Sprintf("%05d.mem", f.table), errors.New("the log of the memory table is missing"))
	case c.version < f.version:
		return damage(dir, fmt.Sprintf("%05d.mem", f.table), fmt.Errorf("it ends with transaction %d, but %d was written", c.version, f.version))
	}
	return nil
}

// checkValueLogs verifies that the value logs reach as far as tables and memory
// tables say, and that Badger will not cut off the last one before.
func (c *contents) checkValueLogs(dir string, lossy bool) error {
	logs, err := numberedFiles(dir, ".vlog")
	if err != nil {
		return err
	}
	// Badger is rid of those without a byte before it opens the others.
	sizes := make(map[uint32]int64)
	logs = slices.DeleteFunc(logs, func(l numberedFile) bool {
		info, err := os.Stat(l.path)
		return err == nil && info.Size() == 0
	})
	for i, l := range logs {
		info, err := os.Stat(l.path)
		if err != nil {
			return err
		}
		size := info.Size()
		needed := c.values[uint32(l.number)]
		if i == len(logs)-1 {
			s, err := scanLogFile(l.path, false, nil)
			if err != nil && !(lossy && errors.Is(err, errLogHeader)) {
				return damage(dir, filepath.Base(l.path), err)
			}
			if size = s.end; needed > size && !lossy {
				return damage(dir, filepath.Base(l.path), fmt.Errorf("it is damaged at byte %d, but values reach to %d", size, needed))
			}
		}
		sizes[uint32(l.number)] = size
	}
	for number, needed := range c.values {
		if size := sizes[number]; size < needed && !lossy {
			return damage(dir, fmt.Sprintf("%06d.vlog", number), fmt.Errorf("it has %d bytes, but values reach to %d", size, needed))
		}
	}
	return nil
}

// numberedFile is one of Badger's.
type numberedFile struct {
	path   string
	number uint64
}

// numberedFiles returns the files with an extension in the order of their
// numbers.
func numberedFiles(dir, extension string) ([]numberedFile, error) {
	// Not with a pattern: that takes a folder which cannot be read for an empty one.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []numberedFile
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), extension)
		if !ok {
			continue
		}
		number, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return nil, damage(dir, e.Name(), err)
		}
		out = append(out, numberedFile{path: filepath.Join(dir, e.Name()), number: number})
	}
	slices.SortFunc(out, func(a, b numberedFile) int { return int(int64(a.number) - int64(b.number)) })
	return out, nil
}

// verifyValueLogs verifies the entries of all value logs of a volume that nobody
// writes. What a crash leaves at the end of the last one is not for this to judge.
func verifyValueLogs(dir string, unfinished bool) error {
	logs, err := numberedFiles(dir, ".vlog")
	if err != nil {
		return err
	}
	for i, l := range logs {
		s, err := scanLogFile(l.path, false, nil)
		if unfinished && (i == len(logs)-1 || s.size == 0) {
			continue
		}
		if err != nil {
			return damage(dir, filepath.Base(l.path), err)
		}
		if s.end != s.size && s.rest {
			return damage(dir, filepath.Base(l.path), fmt.Errorf("it is damaged at byte %d", s.end))
		}
	}
	return nil
}

// verifyLastValueLog verifies the entries of the last value log of a volume that was
// closed in good order: Badger cuts off all that is behind the first damaged one when
// it opens the volume for writing. Zeros may follow the last entry: space that was
// reserved, where the next value log was there already.
func verifyLastValueLog(dir string) error {
	logs, err := numberedFiles(dir, ".vlog")
	if err != nil {
		return err
	}
	for _, l := range slices.Backward(logs) {
		s, err := scanLogFile(l.path, false, nil)
		if errors.Is(err, errLogHeader) && s.size == 0 {
			// It was made for what comes next.
			continue
		}
		if err == nil && s.rest {
			err = fmt.Errorf("it is damaged at byte %d", s.end)
		}
		if err != nil {
			return damage(dir, filepath.Base(l.path), err)
		}
		break
	}
	return nil
}
