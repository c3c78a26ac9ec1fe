package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	floorFile  = "floor"
	floorBytes = 48
)

var floorMagic = [4]byte{'R', 'N', 'L', 'F'}

// floor is the least that a volume which is written must hold after a crash.
// Without it a log that has lost its end looks like one that was being written.
type floor struct {
	// boot is the kernel's under which it was written: it is not synced, so that
	// under another one it may be old, and the log be shorter in a set that does
	// not sync either.
	boot [16]byte
	// table is the number of the memory table that takes the transactions.
	table uint64
	// version is that of the last transaction, and base that of the last before the
	// volume was opened.
	version, base uint64
}

// bootSum shortens the name of a boot.
func bootSum(id string) (sum [16]byte) {
	full := sha256.Sum256([]byte(id))
	copy(sum[:], full[:])
	return sum
}

func (f *floor) encode(buf *[floorBytes]byte) {
	copy(buf[:], floorMagic[:])
	copy(buf[4:], f.boot[:])
	binary.BigEndian.PutUint64(buf[20:], f.table)
	binary.BigEndian.PutUint64(buf[28:], f.version)
	binary.BigEndian.PutUint64(buf[36:], f.base)
	binary.BigEndian.PutUint32(buf[44:], crc32.Checksum(buf[:44], castagnoli))
}

// parseFloor reads a floor; false if it is none, or damaged.
func parseFloor(raw []byte) (floor, bool) {
	if len(raw) != floorBytes || [4]byte(raw) != floorMagic || binary.BigEndian.Uint32(raw[44:]) != crc32.Checksum(raw[:44], castagnoli) {
		return floor{}, false
	}
	return floor{
		boot:    [16]byte(raw[4:]),
		table:   binary.BigEndian.Uint64(raw[20:]),
		version: binary.BigEndian.Uint64(raw[28:]),
		base:    binary.BigEndian.Uint64(raw[36:]),
	}, true
}

// readFloor returns the floor of a volume; false where there is none, or one that is
// damaged or cannot be read: what would follow from it can then not be checked.
func readFloor(dir string) (floor, bool, error) {
	raw, err := os.ReadFile(filepath.Join(dir, floorFile))
	if transient(err) {
		return floor{}, false, err
	}
	if err != nil {
		return floor{}, false, nil
	}
	f, ok := parseFloor(raw)
	return f, ok, nil
}

// floorWriter raises the floor of the volume that is written. It belongs to the
// commit goroutine.
type floorWriter struct {
	file *os.File
	at   floor
	buf  [floorBytes]byte
}

func newFloor(dir, bootID string, table, version uint64) (*floorWriter, error) {
	file, err := os.OpenFile(filepath.Join(dir, floorFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	w := &floorWriter{file: file, at: floor{boot: bootSum(bootID), table: table, base: version}}
	return w, w.raise(table, version)
}

// raise says what a transaction that was committed has made certain. It is not
// synced: it outlives the process, and that is what it is for.
func (w *floorWriter) raise(table, version uint64) error {
	w.at.table, w.at.version = table, version
	w.at.encode(&w.buf)
	_, err := w.file.WriteAt(w.buf[:], 0)
	return err
}

func (w *floorWriter) close() {
	// What was written is in the page cache.
	_ = w.file.Close()
}

// removeFloor removes the floor of a volume before its memory tables are flushed:
// from then on it would claim too much.
func removeFloor(dir string) error {
	if err := os.Remove(filepath.Join(dir, floorFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
