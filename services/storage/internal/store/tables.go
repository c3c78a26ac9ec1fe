package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
)

// contents is what the tables and the logs of memory tables of a volume hold.
type contents struct {
	// version is the highest of any transaction.
	version uint64
	// values says, by number, how far the value logs must reach.
	values map[uint32]int64
}

func (c *contents) refer(meta byte, value []byte) error {
	if meta&entryIsPointer == 0 {
		return nil
	}
	p, ok := parsePointer(value)
	if !ok {
		return fmt.Errorf("a pointer into the value log has %d bytes instead of %d", len(value), pointerBytes)
	}
	c.values[p.file] = max(c.values[p.file], p.end)
	return nil
}

// readTables verifies the list of a volume's tables and the tables themselves:
// Badger leaves out one with a damaged index without an error, and panics over
// others.
func (c *contents) readTables(dir string) error {
	return eachTable(dir, func(name string, id uint64) error { return c.readTable(dir, name, id) })
}

// verifyTables verifies the list of a volume's tables, and the tables by the checksums
// that Badger gave them when it wrote them.
func verifyTables(dir string, wait pace) error {
	return eachTable(dir, func(name string, id uint64) error {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return damage(dir, name, err)
		}
		err = guarded(dir, func() error {
			t, err := openTable(raw, id)
			if err == nil {
				err = t.VerifyChecksum()
			}
			return err
		})
		if err != nil {
			return damage(dir, name, err)
		}
		if wait == nil {
			return nil
		}
		return wait(len(raw))
	})
}

// eachTable calls do for each table that the list of a volume names. A volume without a
// list has no tables.
func eachTable(dir string, do func(name string, id uint64) error) error {
	file, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		// Badger would begin anew, and remove the tables.
		for _, pattern := range []string{"*.sst", "*.mem", "*.vlog"} {
			if found, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(found) > 0 {
				return damage(dir, badger.ManifestFilename, errors.Join(errors.New("the list of tables is missing"), err))
			}
		}
		return nil
	}
	if err != nil {
		return damage(dir, badger.ManifestFilename, err)
	}
	defer file.Close()
	// A last change that is torn, and was therefore never acted on, is left out
	// without an error; what is cut off beyond that shows in the versions.
	manifest, _, err := badger.ReplayManifestFile(file, 0, badger.DefaultOptions(dir))
	if err != nil {
		return damage(dir, badger.ManifestFilename, err)
	}
	for id := range manifest.Tables {
		if err := do(table.IDToFilename(id), id); err != nil {
			return err
		}
	}
	return nil
}

// readTable verifies all of a table.
func (c *contents) readTable(dir, name string, id uint64) error {
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return damage(dir, name, errors.New("the table is missing"))
	}
	if err != nil {
		return damage(dir, name, err)
	}
	// Badger does not expect damage here.
	err = guard(func() error { return c.readEntries(dir, name, raw, id) })
	if broken, ok := err.(*errUnreadable); ok {
		return damage(dir, name, broken)
	}
	return err
}

func (c *contents) readEntries(dir, name string, raw []byte, id uint64) error {
	t, err := openTable(raw, id)
	if err != nil {
		return damage(dir, name, err)
	}
	if err := t.VerifyChecksum(); err != nil {
		return damage(dir, name, err)
	}
	c.version = max(c.version, t.MaxVersion())
	it := t.NewIterator(0)
	defer it.Close()
	entries := 0
	for it.Rewind(); it.Valid(); it.Next() {
		entries++
		c.version = max(c.version, y.ParseTs(it.Key()))
		v := it.Value()
		if err := c.refer(v.Meta, v.Value); err != nil {
			return damage(dir, name, err)
		}
	}
	if want := int(t.KeyCount()); entries != want {
		return damage(dir, name, fmt.Errorf("%d entries can be read of %d", entries, want))
	}
	return nil
}

// openTable verifies the index of a table; its blocks are when they are read.
func openTable(raw []byte, id uint64) (*table.Table, error) {
	return table.OpenInMemoryTable(raw, id, &table.Options{ChkMode: options.OnBlockRead, Compression: options.None})
}
