package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"strconv"
)

// Marks in the meta byte of an entry of Badger's log files.
const (
	entryDeleted     = 1 << 0
	entryIsPointer   = 1 << 1
	entryOfTxn       = 1 << 6
	entryEndsTxn     = 1 << 7
	maxEntryHeader   = 22
	maxEntryKey      = 1 << 16
	entryVersion     = 8
	pointerBytes     = 12
	searchedPerBytes = 4
)

// logEntry is an entry of a memory table's log or of a value log. Its slices hold
// during the call only that gets it.
type logEntry struct {
	// key is without the version.
	key, value []byte
	version    uint64
	meta       byte
	// end is the offset after it.
	end int64
}

// logScan is what a log file holds as Badger would find it.
type logScan struct {
	size int64
	// end is where the last whole transaction, or in a value log the last whole
	// entry, ends.
	end int64
	// first and last are the versions of the first and the last transaction; 0
	// where there is none.
	first, last uint64
	// beyond is the highest version of an entry that is whole, though Badger does
	// not get to it because of what comes before; 0 where there is none.
	beyond uint64
	// rest says that there is something other than zeros behind end.
	rest bool
}

// scanLogFile scans a memory table's log, whose entries come in transactions, or a
// value log. Its error says that the file cannot be read, or wraps
// [errLogHeader].
func scanLogFile(path string, transactions bool, each func(logEntry)) (logScan, error) {
	file, err := os.Open(path)
	if err != nil {
		return logScan{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return logScan{}, err
	}
	return scanLog(file, info.Size(), transactions, each)
}

// errLogHeader says that a log file does not begin like one.
var errLogHeader = errors.New("the log's header is damaged")

// scanLog reads a log file of that size as Badger does when it opens one, but
// does not change it, and looks at what Badger would cut off.
func scanLog(file io.ReaderAt, size int64, transactions bool, each func(logEntry)) (logScan, error) {
	s := logScan{size: size, end: valueLogHeader}
	if size < valueLogHeader {
		return s, fmt.Errorf("%w: it has %d bytes", errLogHeader, size)
	}
	var header [valueLogHeader]byte
	if _, err := file.ReadAt(header[:], 0); err != nil {
		return s, err
	}
	// The number of the key that encrypts the file.
	if binary.BigEndian.Uint64(header[:]) != 0 {
		return s, fmt.Errorf("%w: it says that the log is encrypted", errLogHeader)
	}
	r := logReader{in: bufio.NewReaderSize(io.NewSectionReader(file, valueLogHeader, size-valueLogHeader), 1<<18), at: valueLogHeader, size: size}
	// Entries of a transaction count once its end is there.
	var version uint64
	var held []logEntry
	for {
		e, ok, err := r.next()
		if err != nil {
			return s, err
		}
		if !ok {
			break
		}
		switch {
		case !transactions:
			if s.first == 0 {
				s.first = e.version
			}
			s.end, s.last = e.end, max(s.last, e.version)
			if each != nil {
				each(e)
			}
			continue
		case e.meta&entryOfTxn != 0:
			if version == 0 {
				version = e.version
			}
			if version != e.version {
				break
			}
			if each != nil {
				e.key, e.value = bytes.Clone(e.key), bytes.Clone(e.value)
				held = append(held, e)
			}
			continue
		case e.meta&entryEndsTxn != 0:
			if n, err := strconv.ParseUint(string(e.value), 10, 64); err != nil || n != version {
				break
			}
			if s.first == 0 {
				s.first = version
			}
			s.end, s.last = e.end, version
			for _, h := range held {
				each(h)
			}
			version, held = 0, held[:0]
			continue
		}
		// Not what Badger writes.
		break
	}
	return s, s.searchRest(file)
}

// logReader reads the entries of a log file one after another.
type logReader struct {
	in   *bufio.Reader
	at   int64
	size int64
	buf  []byte
}

// next returns the next entry, or false where there is none that is whole. The
// error is that of reading the file.
func (r *logReader) next() (logEntry, bool, error) {
	head, err := r.in.Peek(int(min(maxEntryHeader, r.size-r.at)))
	if err != nil {
		return logEntry{}, false, err
	}
	h, ok := parseEntryHeader(head)
	if !ok || r.at+h.total() > r.size {
		return logEntry{}, false, nil
	}
	if total := int(h.total()); cap(r.buf) < total {
		r.buf = make([]byte, total, total+total/4)
	}
	raw := r.buf[:h.total()]
	if _, err := io.ReadFull(r.in, raw); err != nil {
		return logEntry{}, false, err
	}
	r.at += int64(len(raw))
	e, ok := h.entry(raw)
	e.end = r.at
	return e, ok, nil
}

// entryHeader says how long the parts of an entry are.
type entryHeader struct {
	meta         byte
	header       int
	key, value   int64
	expiresNever bool
}

func (h entryHeader) total() int64 { return int64(h.header) + h.key + h.value + crc32.Size }

// parseEntryHeader reads what comes before the key of an entry. It refuses what
// cannot be one, zeros among it.
func parseEntryHeader(raw []byte) (entryHeader, bool) {
	if len(raw) < 5 {
		return entryHeader{}, false
	}
	h := entryHeader{meta: raw[0], header: 2}
	for _, into := range []*int64{&h.key, &h.value} {
		v, n := binary.Uvarint(raw[h.header:])
		if n <= 0 || v > math.MaxUint32 {
			return entryHeader{}, false
		}
		*into = int64(v)
		h.header += n
	}
	expires, n := binary.Uvarint(raw[h.header:])
	if n <= 0 || h.key <= entryVersion || h.key > maxEntryKey {
		return entryHeader{}, false
	}
	h.header += n
	h.expiresNever = expires == 0
	return h, true
}

// entry verifies an entry's bytes, which are as many as the header says.
func (h entryHeader) entry(raw []byte) (logEntry, bool) {
	body := len(raw) - crc32.Size
	if crc32.Checksum(raw[:body], castagnoli) != binary.BigEndian.Uint32(raw[body:]) {
		return logEntry{}, false
	}
	key := raw[h.header : int64(h.header)+h.key]
	return logEntry{
		key:     key[:len(key)-entryVersion],
		value:   raw[int64(h.header)+h.key : body],
		version: math.MaxUint64 - binary.BigEndian.Uint64(key[len(key)-entryVersion:]),
		meta:    h.meta,
	}, true
}

// searchRest looks for whole entries behind the end: a crash leaves none but of
// the transaction that it interrupted.
func (s *logScan) searchRest(file io.ReaderAt) error {
	const window = 1 << 20
	// What was allocated and never written is read as zeros, a window at a time.
	buf := make([]byte, window)
	from := s.end
	for ; from < s.size; from += window {
		part := buf[:min(window, s.size-from)]
		if _, err := file.ReadAt(part, from); err != nil {
			return err
		}
		if nonZero(part) {
			s.rest = true
			break
		}
	}
	if !s.rest {
		return nil
	}
	rest := make([]byte, s.size-from)
	if _, err := file.ReadAt(rest, from); err != nil {
		return err
	}
	rest = bytes.TrimRight(rest, "\x00")
	// Bytes that look like entries without being any cost a checksum each; there
	// is an end to that.
	budget := int64(searchedPerBytes * len(rest))
	for p := 0; p+5 <= len(rest) && budget > 0; p++ {
		// Badger's user meta byte is never set, and keys are short.
		if rest[p+1] != 0 || rest[p+2] <= entryVersion || rest[p+2] > offsetKeyBytes+entryVersion {
			continue
		}
		h, ok := parseEntryHeader(rest[p:min(p+maxEntryHeader, len(rest))])
		if !ok || !h.expiresNever || h.total() > int64(len(rest)-p) {
			continue
		}
		budget -= h.total()
		if e, ok := h.entry(rest[p : int64(p)+h.total()]); ok {
			s.beyond = max(s.beyond, e.version)
			p += int(h.total()) - 1
		}
	}
	return nil
}

func nonZero(raw []byte) bool {
	for len(raw) >= 8 {
		if binary.LittleEndian.Uint64(raw) != 0 {
			return true
		}
		raw = raw[8:]
	}
	for _, b := range raw {
		if b != 0 {
			return true
		}
	}
	return false
}

// valuePointer says where in the value logs a value lies.
type valuePointer struct {
	file uint32
	// start and end are those of the entry.
	start, end int64
}

// parsePointer reads the value of an entry that has entryIsPointer set.
func parsePointer(raw []byte) (valuePointer, bool) {
	if len(raw) != pointerBytes {
		return valuePointer{}, false
	}
	// Badger writes the fields as they lie in memory; this and all platforms that
	// are built for are little-endian.
	length, offset := binary.LittleEndian.Uint32(raw[4:]), binary.LittleEndian.Uint32(raw[8:])
	return valuePointer{file: binary.LittleEndian.Uint32(raw), start: int64(offset), end: int64(length) + int64(offset)}, true
}
