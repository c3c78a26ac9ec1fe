package recordbatch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// DefaultMaxBytes is what Limits.MaxBytes is when it is not set.
const DefaultMaxBytes = 64 << 20

// ratioFloor is the size up to which a ratio says nothing: a small batch of
// equal records shrinks to next to nothing.
const ratioFloor = 64 << 10

// Limits bound what a compressed batch may open to. An uncompressed batch is in
// memory already, and they do not apply.
//
// Beside the opened bytes, decoding takes a [Record] per record and a
// [RecordHeader] per header; a batch made up of nothing but tiny records or
// headers can make that 20 times its opened size.
type Limits struct {
	// MaxBytes is the most that the records may take uncompressed;
	// [DefaultMaxBytes] when 0 or less.
	MaxBytes int
	// MaxRatio is the most that they may take as a multiple of their compressed
	// size; 64 KiB are always allowed. There is no such limit when 0 or less:
	// batches of equal records reach ratios of many thousands in good faith.
	MaxRatio int
}

// limit returns the most that size compressed bytes may open to.
func (l Limits) limit(size int) int {
	limit := l.MaxBytes
	if limit <= 0 {
		limit = DefaultMaxBytes
	}
	limit = min(limit, math.MaxInt32)
	if l.MaxRatio > 0 {
		if byRatio := int64(size) * int64(min(l.MaxRatio, math.MaxInt32)); byRatio < int64(limit) {
			limit = min(limit, max(int(byRatio), ratioFloor))
		}
	}
	return limit
}

// decompress returns src opened, in memory of its own that it fits.
func decompress(codec Codec, src []byte, l Limits) ([]byte, error) {
	limit := l.limit(len(src))
	if size, ok := openedSize(codec, src); ok && size <= limit {
		return appendOpened(make([]byte, 0, size+codecSlack), codec, src, limit)
	}
	s := scratchPool.Get().(*scratch)
	defer s.release()
	buf, err := appendOpened(s.buf, codec, src, limit)
	if err != nil {
		return nil, err
	}
	s.buf = buf
	return bytes.Clone(buf), nil
}

// codecSlack is room beyond the output that lets the decoders use their fast
// copies, and see the end without growing the buffer.
const codecSlack = 32

// openedSize returns what src says it opens to, where it says so and can be
// believed: the caller may allocate that much.
func openedSize(codec Codec, src []byte) (int, bool) {
	switch codec {
	case Snappy:
		size, err := snappySize(src)
		return size, err == nil
	case LZ4:
		f, err := parseLZ4Frame(src)
		return f.contentSize, err == nil && f.contentSize >= 0
	case Zstd:
		size, ok, err := zstdSize(src)
		return size, ok && err == nil
	default:
		return 0, false
	}
}

// appendOpened appends src opened to dst, whose contents it may move. It fails
// with ErrTooLarge rather than append more than limit bytes.
func appendOpened(dst []byte, codec Codec, src []byte, limit int) ([]byte, error) {
	switch codec {
	case Gzip:
		d := gzipDecoders.Get().(*gzipDecoder)
		d.src.Reset(src)
		err := d.Reset(&d.src)
		if err == nil {
			dst, err = appendAll(dst, d, gzipEstimate(src), limit)
		}
		if err != nil {
			return nil, codecError(Gzip, err)
		}
		d.src.Reset(nil)
		gzipDecoders.Put(d)
		return dst, nil
	case Snappy:
		size, err := snappySize(src)
		if err != nil {
			return nil, err
		}
		if size > limit {
			return nil, tooLarge(limit)
		}
		return appendSnappy(slices.Grow(dst, size), src)
	case LZ4:
		return appendLZ4(dst, src, limit)
	case Zstd:
		return appendZstd(dst, src, limit)
	default:
		return nil, newError(ErrUnsupported, "codec", codec, "gzip, snappy, lz4 or zstd")
	}
}

// gzipEstimate returns the size in the trailer of src, which is true of a
// single member below 4 GiB, as far as src can hold so much.
func gzipEstimate(src []byte) int {
	const maxRatio = 1032
	if len(src) < 4 {
		return 0
	}
	return int(min(uint64(binary.LittleEndian.Uint32(src[len(src)-4:])), uint64(len(src))*maxRatio))
}

// appendAll appends what r gives until io.EOF to dst. The estimate is where it
// begins to grow dst from.
func appendAll(dst []byte, r io.Reader, estimate, limit int) ([]byte, error) {
	// The byte beyond shows that the end, or the limit, is reached.
	start := len(dst)
	dst = slices.Grow(dst, min(estimate, limit)+1)
	for {
		if len(dst) == cap(dst) {
			dst = slices.Grow(dst, min(len(dst)-start+firstBuffer, limit+1))
		}
		n, err := r.Read(dst[len(dst):min(cap(dst), start+limit+1)])
		dst = dst[:len(dst)+n]
		switch {
		case len(dst)-start > limit:
			return nil, tooLarge(limit)
		case errors.Is(err, io.EOF):
			return dst, nil
		case err != nil:
			return nil, err
		}
	}
}

// zstdBlock is the most that a block of zstd opens to.
const zstdBlock = 128 << 10

// zstdMost returns the most that size bytes of zstd can open to: a block takes
// at least 4.
func zstdMost(size int) int { return (size/4 + 1) * zstdBlock }

// zstdSize returns the size that src says it opens to, if it does.
func zstdSize(src []byte) (size int, ok bool, err error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return 0, false, codecError(Zstd, err)
	}
	if !h.HasFCS || h.Skippable {
		return 0, false, nil
	}
	if most := zstdMost(len(src)); h.FrameContentSize > uint64(most) {
		return 0, false, corrupt("records", fmt.Sprintf("%d bytes of zstd that claim to hold %d", len(src), h.FrameContentSize),
			"at most %d", most)
	}
	return int(h.FrameContentSize), true, nil
}

// appendZstd decodes in one go into memory that is there, so that no frame can
// ask for a window of its choice. Where src does not say what it opens to it
// guesses, and does it again with four times as much.
func appendZstd(dst, src []byte, limit int) ([]byte, error) {
	size, known, err := zstdSize(src)
	if err != nil {
		return nil, err
	}
	if known && size > limit {
		return nil, tooLarge(limit)
	}
	if !known {
		size = 8 * len(src)
	}
	start := len(dst)
	most := min(limit, zstdMost(len(src)))
	for size = min(size, most); ; size = min(max(4*size, firstBuffer), most) {
		// The decoder fails without saying so when a block does not fit; with
		// room for another block that cannot have been the cause.
		room := size + codecSlack
		if !known {
			room += zstdBlock
		}
		dst = slices.Grow(dst, room)
		out, err := zstdDecoder().DecodeAll(src, dst[:start:start+room])
		switch {
		case err == nil && len(out)-start <= limit:
			return out, nil
		case err == nil:
			return nil, tooLarge(limit)
		case !errors.Is(err, zstd.ErrDecoderSizeExceeded) && start+room-len(out) >= zstdBlock:
			return nil, codecError(Zstd, err)
		case known:
			// There are more frames than the one that told its size, or it
			// told a wrong one.
			known = false
		case size < most:
		case most < limit:
			return nil, codecError(Zstd, err)
		default:
			return nil, tooLarge(limit)
		}
	}
}

func tooLarge(limit int) error {
	return newError(ErrTooLarge, "records", "more than the limit when uncompressed", "at most %d bytes", limit)
}

// codecError reports what a codec said, unless it is an error of ours.
func codecError(codec Codec, err error) error {
	if ours := (*Error)(nil); errors.As(err, &ours) {
		return ours
	}
	return &Error{Kind: ErrCorrupt, Field: "records", Got: "undecodable", Want: codec.String() + " data", Cause: err}
}

type gzipDecoder struct {
	gzip.Reader
	src bytes.Reader
}

var (
	gzipDecoders = sync.Pool{New: func() any { return new(gzipDecoder) }}

	// One decoder serves all: it holds at most GOMAXPROCS states, whatever the
	// number of callers, and DecodeAll stays on the caller's goroutine.
	zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
			zstd.WithDecoderMaxMemory(math.MaxInt32))
		if err != nil {
			panic(err) // constant options
		}
		return d
	})
)
