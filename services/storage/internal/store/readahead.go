package store

import (
	"sync"
	"unsafe"
)

const (
	// readaheadWindow is how far ahead of a reader the disk is asked to read. It
	// covers the time in which the reader sends what it has.
	readaheadWindow = 8 << 20
	// readaheadStep is how much is asked for at a time.
	readaheadStep = 2 << 20
	// readaheadAfter is how much a reader reads in order before anything is read
	// ahead for it.
	readaheadAfter = 1 << 20
	// readaheadShare is the least share of what lies in the reader's way, as one in
	// that many bytes, that has to be its own: where other partitions have written
	// more, what is read ahead would be theirs.
	readaheadShare = 6
	// readaheadGap is how much of others may lie between two batches. Beyond it the
	// reader is taken to have come to another file.
	readaheadGap = 4 << 20
	// readaheadReaders bounds the readers that are remembered.
	readaheadReaders = 128
	// populateBytes is the size from which on a value is mapped in one system call
	// before it is copied.
	populateBytes = 32 << 10
)

// readahead asks the disk for what readers of old batches come to next. Badger
// reads through mappings, for which the kernel fetches 128 KiB at a time, and
// while a goroutine waits for a page its processor is idle: two readers of cold
// data could hold up everything else in the process.
//
// A reader is known by where its next batch begins, so it is found again on the
// next call, and one that jumps begins anew. How far it has come within a file is
// known by the addresses of what it read: they are only ever passed back to the
// kernel as advice, which is harmless where nothing, or something else, is mapped
// there by now.
type readahead struct {
	mu      sync.Mutex
	readers [readaheadReaders]sequentialReader
	// oldest is the place that is used next.
	oldest int
}

// sequentialReader is where a reader stands.
type sequentialReader struct {
	id PartitionID
	// next is the offset of the next batch; 0 for a free place.
	next int64
	// end is the address after the last value, and ahead the one up to which the
	// disk was asked.
	end, ahead uintptr
	// own counts the bytes of values, passed those from the first to the last of
	// them, both halved as they grow, so that what lies far back counts little.
	own, passed int64
}

// resume returns the reader whose next batch begins at an offset.
func (r *readahead) resume(id PartitionID, offset int64) sequentialReader {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.readers {
		if s := &r.readers[i]; s.next == offset && s.next != 0 && s.id == id {
			found := *s
			*s = sequentialReader{}
			return found
		}
	}
	return sequentialReader{id: id}
}

// keep remembers a reader whose next batch begins at an offset.
func (r *readahead) keep(s sequentialReader, next int64) {
	s.next = next
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readers[r.oldest] = s
	r.oldest = (r.oldest + 1) % readaheadReaders
}

// fetch gets a value into memory that the reader is about to copy. The value must
// stay mapped meanwhile. The error says that it cannot be read.
func (s *sequentialReader) fetch(value []byte) error {
	if len(value) < populateBytes {
		return nil
	}
	address := addressOf(value)
	if end := address + uintptr(len(value)); end > s.ahead || address < s.end {
		adviseWillNeed(address, len(value))
	}
	return populate(address, len(value))
}

// advance says what the reader has read, and returns how many bytes the disk
// shall be asked for at which address; 0 for none.
func (s *sequentialReader) advance(address uintptr, bytes int) (from uintptr, ask int) {
	end := address + uintptr(bytes)
	switch {
	case s.end != 0 && address >= s.end && address-s.end <= readaheadGap:
		s.passed += int64(end - s.end)
	default:
		// Another file: what was read before says how dense it will be.
		s.passed += int64(bytes)
		s.ahead = 0
	}
	s.own += int64(bytes)
	s.end = end
	s.ahead = max(s.ahead, end)
	if s.passed > 2*readaheadWindow {
		s.own, s.passed = s.own/2, s.passed/2
	}
	if s.own < readaheadAfter || s.own*readaheadShare < s.passed {
		return 0, 0
	}
	want := end + readaheadWindow
	if want < s.ahead+readaheadStep {
		return 0, 0
	}
	from, s.ahead = s.ahead, want
	return from, int(want - from)
}

// addressOf returns where a slice lies, for arithmetic only.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
