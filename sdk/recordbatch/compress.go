package recordbatch

import (
	"bytes"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// zstdWindow bounds the memory of a zstd encoder, and what readers that decode
// as a stream must set aside. Batches seldom open to more.
const zstdWindow = 1 << 20

// compress returns src compressed, after HeaderSize bytes of room, in memory of
// its own; or nil when that is not below limit bytes.
func compress(codec Codec, src []byte, limit int) ([]byte, error) {
	s := scratchPool.Get().(*scratch)
	defer s.release()
	if cap(s.buf) < HeaderSize {
		s.buf = make([]byte, 0, firstBuffer)
	}
	s.buf = s.buf[:HeaderSize]
	var err error
	switch codec {
	case Gzip:
		e := gzipEncoders.Get().(*gzip.Writer)
		e.Reset(s)
		if err = writeAll(e, src); err == nil {
			gzipEncoders.Put(e)
		}
	case Snappy:
		s.buf = appendXerial(s.buf, src)
	case LZ4:
		e := lz4Encoders.Get().(*lz4.Writer)
		e.Reset(s)
		if err = writeAll(e, src); err == nil {
			lz4Encoders.Put(e)
		}
	case Zstd:
		s.buf = zstdEncoder().EncodeAll(src, s.buf)
	}
	if err != nil {
		return nil, &Error{Kind: ErrInvalid, Field: "records", Got: "not compressible", Want: codec.String(), Cause: err}
	}
	if len(s.buf) >= limit {
		return nil, nil
	}
	return bytes.Clone(s.buf), nil
}

type writeCloser interface {
	Write([]byte) (int, error)
	Close() error
}

func writeAll(w writeCloser, src []byte) error {
	if _, err := w.Write(src); err != nil {
		return err
	}
	return w.Close()
}

var (
	gzipEncoders = sync.Pool{New: func() any { return gzip.NewWriter(nil) }}

	// Java's clients read frames of independent blocks only, keep one block in
	// memory, and write blocks of 64 KiB. The batch has a checksum already.
	lz4Encoders = sync.Pool{New: func() any {
		w := lz4.NewWriter(nil)
		if err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false), lz4.ConcurrencyOption(1)); err != nil {
			panic(err) // constant options
		}
		return w
	}}

	// One encoder serves all: it holds at most GOMAXPROCS states, whatever the
	// number of callers, and starts no goroutine for EncodeAll. On logs in
	// batches of 64 KiB the fastest level compresses no worse than the default
	// one, with tables of a fraction of the size.
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(0), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithWindowSize(zstdWindow), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // constant options
		}
		return e
	})
)

// maxPooledScratch bounds what a scratch keeps for its next user.
const maxPooledScratch = 4 << 20

// scratch is a buffer for output of unknown size, and a writer that appends to
// it.
type scratch struct{ buf []byte }

var scratchPool = sync.Pool{New: func() any { return new(scratch) }}

func (s *scratch) Write(p []byte) (int, error) {
	s.buf = append(s.buf, p...)
	return len(p), nil
}

func (s *scratch) release() {
	if cap(s.buf) > maxPooledScratch {
		return
	}
	s.buf = s.buf[:0]
	scratchPool.Put(s)
}
