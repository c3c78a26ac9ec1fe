package cli

import (
	"bytes"
	"fmt"
	"io"
)

// lineBlockBytes is how much is read at once: enough for the cost of a read to
// vanish, and little enough that a slow producer's last lines hold hardly any
// memory.
const lineBlockBytes = 128 << 10

// lineTooLongError is a line that exceeds the reader's limit.
type lineTooLongError struct {
	bytes int64
	limit int
}

func (e *lineTooLongError) Error() string {
	return fmt.Sprintf("the line has %d bytes, but a record may have %d (max.message.bytes of the topic); %s", e.bytes, e.limit, largerRecords)
}

// lineReader cuts a stream into lines at line feeds and nowhere else. The last
// line may lack its line feed. It is not for concurrent use.
//
// Lines are parts of blocks that are never written again, so that they may be
// kept as long as a producer needs them and are not copied.
type lineReader struct {
	source io.Reader
	limit  int

	block []byte
	// block[start:end] was read and not yet handed out; it has no line feed
	// before scanned.
	start, scanned, end int
	number              int64
	err                 error
}

// newLineReader returns a reader of lines of at most limit bytes.
func newLineReader(source io.Reader, limit int) *lineReader {
	return &lineReader{source: source, limit: limit}
}

// next returns the next line without its line feed, and its number from 1. It
// skips a line above the limit and returns a *lineTooLongError for it, after
// which it can be called again. At the end it returns io.EOF. What stands
// before another error of the source is not a whole line and is dropped.
func (r *lineReader) next() (line []byte, number int64, err error) {
	for {
		if line, ok := r.cut(); ok {
			if len(line) > r.limit {
				return nil, r.number, &lineTooLongError{int64(len(line)), r.limit}
			}
			return line, r.number, nil
		}
		if r.err != nil {
			return nil, 0, r.err
		}
		if r.end-r.start > r.limit {
			err := r.skip()
			return nil, r.number, err
		}
		r.fill()
	}
}

// ready reports whether next returns without reading from the source.
func (r *lineReader) ready() bool {
	return r.err != nil || bytes.IndexByte(r.block[r.scanned:r.end], '\n') >= 0
}

// cut takes the first whole line off the block.
func (r *lineReader) cut() ([]byte, bool) {
	length := bytes.IndexByte(r.block[r.scanned:r.end], '\n')
	if length < 0 {
		r.scanned = r.end
		if r.err != io.EOF || r.start == r.end { //nolint:errorlint // io.Reader returns it bare.
			return nil, false
		}
		return r.take(r.end, r.end), true
	}
	stop := r.scanned + length
	return r.take(stop, stop+1), true
}

// take returns block[start:stop] and goes on at next.
func (r *lineReader) take(stop, next int) []byte {
	line := r.block[r.start:stop:stop]
	r.start, r.scanned = next, next
	r.number++
	return line
}

// skip drops a line that is too long, without holding it in memory.
func (r *lineReader) skip() error {
	dropped := int64(0)
	for {
		rest := r.block[r.start:r.end]
		if length := bytes.IndexByte(rest, '\n'); length >= 0 {
			dropped += int64(length)
			r.take(r.start+length, r.start+length+1)
			return &lineTooLongError{dropped, r.limit}
		}
		dropped += int64(len(rest))
		r.start, r.scanned = r.end, r.end
		switch {
		case r.err == io.EOF: //nolint:errorlint // io.Reader returns it bare.
			r.number++
			return &lineTooLongError{dropped, r.limit}
		case r.err != nil:
			return r.err
		}
		r.fill()
	}
}

// fill reads once from the source, into a fresh block if this one is full.
func (r *lineReader) fill() {
	if r.end == len(r.block) {
		rest := r.block[r.start:r.end]
		r.block = make([]byte, max(lineBlockBytes, 2*len(rest)))
		r.start, r.end = 0, copy(r.block, rest)
		r.scanned = r.end
	}
	const patience = 100
	for range patience {
		n, err := r.source.Read(r.block[r.end:])
		r.end += n
		r.err = err
		if n > 0 || err != nil {
			return
		}
	}
	r.err = io.ErrNoProgress
}
