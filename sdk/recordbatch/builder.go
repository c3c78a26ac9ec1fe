package recordbatch

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"unicode/utf8"
)

const (
	// firstBuffer is what a Builder begins with when it knows nothing better.
	firstBuffer = 1 << 10
	// maxFirstBuffer bounds what it begins with after larger batches.
	maxFirstBuffer = 1 << 20
)

// Builder makes batches: [Builder.Append] per record, then [Builder.Build]. The
// zero value is ready, and a Builder makes any number of batches one after
// another.
//
// Records are encoded once, into the buffer that an uncompressed batch is then
// handed out in.
type Builder struct {
	// buf has room for the header, then the records; empty before the first.
	buf           []byte
	count         int32
	baseTimestamp int64
	maxTimestamp  int64
	// sizeHint is what the next batch is likely to need, judging by the latest
	// that took its buffer along.
	sizeHint int
}

// Append adds a record at the end of the batch. Key, value and the contents of
// headers are copied. A nil key or value is null, which differs from empty. The
// timestamp is in milliseconds since the Unix epoch, or [NoTimestamp].
//
// The errors are ErrTooLarge when the batch would exceed the 2 GiB that the
// format can express, and ErrInvalid for a timestamp below -1 or a header key
// that is not UTF-8. The batch is then as it was.
func (b *Builder) Append(key, value []byte, headers []RecordHeader, timestamp int64) error {
	if timestamp < NoTimestamp {
		return newError(ErrInvalid, "timestamp", timestamp, "-1 or more")
	}
	base := b.baseTimestamp
	if b.count == 0 {
		base = timestamp
	}
	timestampDelta := timestamp - base

	body := 1 + varintSize(timestampDelta) + varintSize(int64(b.count)) +
		bytesSize(key) + bytesSize(value) + varintSize(int64(len(headers)))
	for i := range headers {
		h := &headers[i]
		if !utf8.ValidString(h.Key) {
			return newError(ErrInvalid, fmt.Sprintf("headers[%d].key", i), fmt.Sprintf("%q", h.Key), "UTF-8")
		}
		body += varintSize(int64(len(h.Key))) + len(h.Key) + bytesSize(h.Value)
	}
	size := varintSize(int64(body)) + body
	if len(b.buf)+size > math.MaxInt32-HeaderSize {
		return newError(ErrTooLarge, "batchLength", fmt.Sprintf("over %d", maxBatchLength), "at most that: build the batch first")
	}

	buf := b.reserve(size)
	at := len(buf)
	buf = buf[:at+size]
	at = putVarint(buf, at, int64(body))
	buf[at] = 0 // attributes
	at = putVarint(buf, at+1, timestampDelta)
	at = putVarint(buf, at, int64(b.count))
	at = putBytes(buf, at, key)
	at = putBytes(buf, at, value)
	at = putVarint(buf, at, int64(len(headers)))
	for i := range headers {
		h := &headers[i]
		at = putVarint(buf, at, int64(len(h.Key)))
		at += copy(buf[at:], h.Key)
		at = putBytes(buf, at, h.Value)
	}

	b.buf = buf
	if b.count == 0 {
		b.baseTimestamp, b.maxTimestamp = timestamp, timestamp
	} else {
		b.maxTimestamp = max(b.maxTimestamp, timestamp)
	}
	b.count++
	return nil
}

// reserve returns the buffer with room for size bytes more.
func (b *Builder) reserve(size int) []byte {
	if cap(b.buf)-len(b.buf) >= size && len(b.buf) > 0 {
		return b.buf
	}
	buf := b.buf
	if len(buf) == 0 {
		if need := HeaderSize + size; cap(buf) < need {
			buf = make([]byte, 0, max(need, min(b.sizeHint, maxFirstBuffer), firstBuffer))
		}
		buf = buf[:HeaderSize]
	}
	return slices.Grow(buf, size)
}

// NumRecords returns the number of records in the batch.
func (b *Builder) NumRecords() int { return int(b.count) }

// EncodedSize returns the size in bytes of the batch as it would be without
// compression, header included. Build never returns more.
func (b *Builder) EncodedSize() int { return max(len(b.buf), HeaderSize) }

// MaxRecordSize returns the most that a record adds to the EncodedSize of any
// batch, in bytes.
func MaxRecordSize(key, value []byte, headers []RecordHeader) int {
	const attributes, timestampDelta = 1, binary.MaxVarintLen64
	size := binary.MaxVarintLen32 + attributes + timestampDelta + binary.MaxVarintLen32 +
		bytesSize(key) + bytesSize(value) + varintSize(int64(len(headers)))
	for i := range headers {
		h := &headers[i]
		size += varintSize(int64(len(h.Key))) + len(h.Key) + bytesSize(h.Value)
	}
	return size
}

// Options are what a batch has besides its records.
type Options struct {
	// Codec to compress the records with. A batch that it would not make smaller
	// is left uncompressed.
	Codec Codec
	// ProducerID, ProducerEpoch and BaseSequence identify the records of an
	// idempotent producer, each from 0; all are -1 for a producer without
	// identity. Mind that zero is an identity: see [WithoutProducer].
	ProducerID    int64
	ProducerEpoch int16
	BaseSequence  int32
}

// WithoutProducer returns the options of a batch without producer identity.
func WithoutProducer(codec Codec) Options {
	return Options{Codec: codec, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1}
}

// Build returns the batch and leaves the Builder empty. Its base offset is 0
// and its leader epoch -1: the leader assigns both.
//
// The bytes belong to the caller, and the Builder keeps nothing of them. It
// allocates a buffer for the next batch unless it still has its own, because
// the batch was compressed, or gets one by [Builder.ResetTo].
//
// The errors are ErrInvalid for a batch without records and for a producer
// identity that is not whole, and ErrUnsupported for an unknown codec. The batch
// is then as it was.
func (b *Builder) Build(o Options) ([]byte, error) {
	if b.count == 0 {
		return nil, newError(ErrInvalid, "recordCount", 0, "at least 1")
	}
	if !o.Codec.known() {
		return nil, newError(ErrUnsupported, "codec", o.Codec, "none, gzip, snappy, lz4 or zstd")
	}
	if err := checkProducer(ErrInvalid, o.ProducerID, o.ProducerEpoch, o.BaseSequence); err != nil {
		return nil, err
	}

	codec := o.Codec
	var batch []byte
	if codec != None {
		compressed, err := compress(codec, b.buf[HeaderSize:], len(b.buf))
		if err != nil {
			return nil, err
		}
		batch = compressed
	}
	if batch == nil {
		codec, batch = None, b.buf
		b.sizeHint = len(b.buf) + len(b.buf)/8
		b.buf = nil
	}

	binary.BigEndian.PutUint64(batch[baseOffsetAt:], 0)
	binary.BigEndian.PutUint32(batch[batchLengthAt:], uint32(len(batch)-lengthOverhead))
	binary.BigEndian.PutUint32(batch[leaderEpochAt:], math.MaxUint32)
	batch[magicAt] = magic
	binary.BigEndian.PutUint16(batch[attributesAt:], uint16(codec))
	binary.BigEndian.PutUint32(batch[lastOffsetDeltaAt:], uint32(b.count-1))
	binary.BigEndian.PutUint64(batch[baseTimestampAt:], uint64(b.baseTimestamp))
	binary.BigEndian.PutUint64(batch[maxTimestampAt:], uint64(b.maxTimestamp))
	binary.BigEndian.PutUint64(batch[producerIDAt:], uint64(o.ProducerID))
	binary.BigEndian.PutUint16(batch[producerEpochAt:], uint16(o.ProducerEpoch))
	binary.BigEndian.PutUint32(batch[baseSequenceAt:], uint32(o.BaseSequence))
	binary.BigEndian.PutUint32(batch[recordCountAt:], uint32(b.count))
	putCRC(batch)

	b.Reset()
	return batch, nil
}

// Reset drops the records and keeps the buffer.
func (b *Builder) Reset() {
	b.buf = b.buf[:0]
	b.count = 0
	b.baseTimestamp, b.maxTimestamp = 0, 0
}

// ResetTo drops the records and goes on in the memory of buf, typically a batch
// that is done with. The Builder owns it from then on, all of its capacity.
func (b *Builder) ResetTo(buf []byte) {
	b.buf = buf
	b.Reset()
}

// zigzag maps numbers of small magnitude to small unsigned ones. The 32-bit
// fields of the format have the same encoding as the 64-bit ones.
func zigzag(v int64) uint64 { return uint64(v<<1) ^ uint64(v>>63) }

func varintSize(v int64) int {
	// Seven bits to the byte: 9/64 is close enough to 1/7 over 64 bits.
	return (bits.Len64(zigzag(v))*9 + 64) / 64
}

func bytesSize(b []byte) int {
	// Null is a length of -1, which takes as many bytes as a length of 0.
	return varintSize(int64(len(b))) + len(b)
}

// putVarint writes v to b[at:], which has room, and returns where it ends.
func putVarint(b []byte, at int, v int64) int {
	u := zigzag(v)
	for u >= 0x80 {
		b[at] = byte(u) | 0x80
		u >>= 7
		at++
	}
	b[at] = byte(u)
	return at + 1
}

func putBytes(b []byte, at int, p []byte) int {
	if p == nil {
		return putVarint(b, at, -1)
	}
	at = putVarint(b, at, int64(len(p)))
	return at + copy(b[at:], p)
}
