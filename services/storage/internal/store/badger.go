package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// badgerOptions are those of every volume. What is switched off costs memory or
// time and gives a log nothing: values are verified by their own checksums, and
// one goroutine writes.
func badgerOptions(dir string, cfg *Config) badger.Options {
	o := badger.DefaultOptions(dir)
	o.ValueThreshold = valueThreshold
	o.ValueLogFileSize = cfg.valueLogBytes
	o.MemTableSize = cfg.memTableBytes
	o.NumMemtables = 3
	o.NumLevelZeroTables = 4
	o.NumLevelZeroTablesStall = 12
	o.NumCompactors = 2
	o.NumVersionsToKeep = 1
	o.BloomFalsePositive = 0
	o.Compression = options.None
	o.BlockCacheSize = 0
	o.IndexCacheSize = 0
	o.DetectConflicts = false
	o.MetricsEnabled = false
	// Everything has a checksum of ours, but the lengths around it are Badger's. Over
	// damaged ones it panics, with a lock held that a volume needs which is written. Of
	// others it must not read a whole value before [sequentialReader.fetch] does.
	o.VerifyValueChecksum = true
	o.ChecksumVerificationMode = options.OnBlockRead
	return o
}

// openWritable opens or creates the Badger directory of a volume for reading and
// writing, and repairs what a crash has left.
func openWritable(dir string, synced bool, cfg *Config, logger badger.Logger) (*badger.DB, error) {
	if err := removeEmptyLogs(dir); err != nil {
		return nil, err
	}
	// Badger turns the logs of memory tables, which it names, into tables.
	if err := removeFloor(dir); err != nil {
		return nil, err
	}
	if err := probe(dir); err != nil {
		return nil, err
	}
	o := badgerOptions(dir, cfg)
	o.SyncWrites = synced && !cfg.withoutSync
	db, err := openInTime(o, logger)
	if err != nil {
		return nil, err
	}
	// Without it managed mode keeps all versions for ever.
	db.SetDiscardTs(math.MaxUint64)
	return db, nil
}

// openInTime opens a directory for writing. Where Badger cannot write a table of
// what it finds, for lack of open files, say, it tries again for ever, and waits
// for that before it returns an error: what it has opened is left behind then, as
// after any other error the process has to stop or go on without the directory.
func openInTime(o badger.Options, logger badger.Logger) (*badger.DB, error) {
	watched := &openLog{Logger: logger, failed: make(chan error, 1)}
	o.Logger = watched
	type outcome struct {
		db  *badger.DB
		err error
	}
	opened := make(chan outcome, 1)
	go func() {
		db, err := openMapped(o)
		opened <- outcome{db, err}
	}()
	select {
	case got := <-opened:
		return got.db, got.err
	case err := <-watched.failed:
		return nil, err
	}
}

// openLog passes Badger's lines on, and tells of the first fatal one.
type openLog struct {
	badger.Logger
	failed chan error
}

func (l *openLog) Errorf(format string, args ...any) {
	if l.Logger != nil {
		l.Logger.Errorf(format, args...)
	}
	if isFatal(format) {
		select {
		case l.failed <- fmt.Errorf("badger: %s", strings.TrimSpace(fmt.Sprintf(format, args...))):
		default:
		}
	}
}

func (l *openLog) Warningf(format string, args ...any) {
	if l.Logger != nil {
		l.Logger.Warningf(format, args...)
	}
}

func (l *openLog) Infof(format string, args ...any) {
	if l.Logger != nil {
		l.Logger.Infof(format, args...)
	}
}

func (l *openLog) Debugf(format string, args ...any) {
	if l.Logger != nil {
		l.Logger.Debugf(format, args...)
	}
}

// openMapped opens a directory in which Badger begins log files. Their first
// pages nobody can reserve; where the disk has none, that is an error here and
// not the end of the process. What Badger has opened by then stays open.
func openMapped(o badger.Options) (db *badger.DB, err error) {
	err = guard(func() (err error) {
		db, err = badger.OpenManaged(o)
		return err
	})
	if broken, ok := err.(*errUnreadable); ok && broken.fault {
		// What was there before could be read a moment ago.
		err = fmt.Errorf("%w: a log file in %s could not be begun; make room on the disk", ErrDiskFull, o.Dir)
	}
	return db, err
}

// openReadOnly opens the Badger directory of a volume that was closed in good
// order.
func openReadOnly(dir string, cfg *Config, logger badger.Logger) (*badger.DB, error) {
	o := badgerOptions(dir, cfg)
	o.ReadOnly = true
	o.VerifyValueChecksum = false
	o.Logger = logger
	if err := probe(dir); err != nil {
		return nil, err
	}
	var db *badger.DB
	err := guard(func() (err error) {
		db, err = badger.OpenManaged(o)
		return err
	})
	return db, err
}

// probe reads what Badger looks at through mappings when it opens the files of a
// volume, for tables in goroutines that nobody guards: the first pages of value
// logs, and the index and the last block of each table. The files were verified
// when the volume was first opened, but that may be long ago.
func probe(dir string) error {
	if err := readFirstPages(dir); err != nil {
		return err
	}
	list, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return damage(dir, badger.ManifestFilename, err)
	}
	defer list.Close()
	return guarded(dir, func() error {
		o := &offline{dir: dir}
		defer o.close()
		return o.openTables(list)
	})
}

// removeEmptyLogs removes log files without a byte. Badger leaves one when the
// process is killed after it created a log file and before it sized it, or after
// it emptied one that it is about to remove; it then refuses to open the
// directory ("Create a new file"). Nothing refers to such a file yet, or any
// more.
func removeEmptyLogs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if extension := filepath.Ext(e.Name()); extension != ".mem" && extension != ".vlog" {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Size() > 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// fatalFormats begin the formats of the lines in which Badger reports an error
// of the disk that it does not return: it has acknowledged, or is about to wait
// for ever. A test compares them with Badger's source.
var fatalFormats = []string{
	"Error while curlf sync:",
	"error flushing memtable to disk:",
}

// badgerLog passes Badger's lines on and turns those above into a fatal error of
// the store, before the commit that they are about returns.
type badgerLog struct {
	logger *slog.Logger
	fail   func(error)
	// beforeTable is called before Badger writes a merged table, from a goroutine of
	// Badger that may wait; it may be nil.
	beforeTable func()
}

func (l *badgerLog) Errorf(format string, args ...any) {
	line := strings.TrimSpace(fmt.Sprintf(format, args...))
	l.logger.Error("badger: " + line)
	if isFatal(format) {
		l.fail(fmt.Errorf("badger: %s", line))
	}
}

func isFatal(format string) bool {
	return slices.ContainsFunc(fatalFormats, func(f string) bool { return strings.HasPrefix(format, f) })
}

func (l *badgerLog) Warningf(format string, args ...any) {
	l.logger.Warn("badger: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// Infof drops the line: Badger tells each table that it opens.
func (l *badgerLog) Infof(string, ...any) {}

// tableFormat begins the format of the line before Badger writes a table that it
// has merged from others. A test compares it with Badger's source.
const tableFormat = "[%d] LOG Compact. Added"

// Debugf drops the line, but lets Badger go on only once there is room for what
// it announces.
func (l *badgerLog) Debugf(format string, _ ...any) {
	if l.beforeTable != nil && strings.HasPrefix(format, tableFormat) {
		l.beforeTable()
	}
}

// transactionLimits are what Badger accepts in one transaction.
type transactionLimits struct {
	entries int64
	// size counts keys, and values that do not lie in the value log.
	size int64
	// values counts those that do. Badger has no limit here, but one that is
	// reached while it writes makes it move the file's mapping under readers.
	values int64
}

// cost is what entries take of a transaction. It is at least what Badger counts.
type cost struct{ entries, size, values int64 }

func (c *cost) add(o cost) {
	c.entries += o.entries
	c.size += o.size
	c.values += o.values
}

func (c *cost) addEntry(keyBytes, valueBytes int) {
	const (
		// version is the version that Badger appends to a key.
		version = 10
		// pointer is what an entry takes whose value lies in the value log.
		pointer = 14
		// framing is what a value log entry has besides the value, but for the key.
		framing = 22 + 8 + 4
	)
	c.entries++
	if valueBytes < valueThreshold {
		c.size += int64(keyBytes + version + valueBytes + 2)
		return
	}
	c.size += int64(keyBytes + version + pointer)
	c.values += int64(framing + keyBytes + valueBytes)
}

func (l transactionLimits) admit(c cost) bool {
	return c.entries <= l.entries && c.size <= l.size && c.values <= l.values
}

// maxDeletes bounds the keys that are deleted in one transaction.
const maxDeletes = 8192

// deletes returns how many keys a transaction may delete beside a state record.
func (l transactionLimits) deletes() int {
	var one, state cost
	one.addEntry(offsetKeyBytes, 0)
	state.addEntry(partitionKeyBytes, valueThreshold-1)
	return int(min(maxDeletes, l.entries-state.entries, (l.size-state.size)/one.size))
}

func limitsOf(db *badger.DB, cfg *Config) transactionLimits {
	// Badger refuses what reaches its limits, and adds an entry of its own.
	return transactionLimits{
		entries: db.MaxBatchCount() - 2,
		size:    db.MaxBatchSize() - 64,
		values:  cfg.valueLogBytes * 3 / 4,
	}
}

// valueBytes returns the exact size of an item's value without reading it.
// Badger's own ValueSize takes the header of a value log entry for 6 bytes; its
// length field makes it 7 from 16 KiB on and 8 from 2 MiB on.
func valueBytes(item *badger.Item) int {
	n := item.ValueSize()
	switch {
	case n < 1<<14:
		return int(n)
	case n-1 < 1<<21:
		return int(n - 1)
	default:
		return int(n - 2)
	}
}
