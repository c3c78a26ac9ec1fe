package recordbatch

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// The bits of the attributes field. All above bit 6 are not known here.
const (
	codecMask         int16 = 0x07
	logAppendTimeBit  int16 = 0x08
	transactionalBit  int16 = 0x10
	controlBit        int16 = 0x20
	deleteHorizonBit  int16 = 0x40
	knownAttributes         = codecMask | logAppendTimeBit | transactionalBit | controlBit | deleteHorizonBit
	maxBatchLength          = math.MaxInt32 - lengthOverhead
	minBatchLength          = HeaderSize - lengthOverhead
	maxAssignedOffset       = math.MaxInt64 - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header is the header of a batch, but for the magic, which is 2.
type Header struct {
	// BaseOffset is the offset that the first record has or had; from 0. The
	// leader sets it.
	BaseOffset int64
	// BatchLength is the size of the batch in bytes without the 12 that precede
	// this field's end; at least 49.
	BatchLength int32
	// LeaderEpoch is the epoch of the leader that appended the batch; -1 before.
	LeaderEpoch int32
	// CRC is the CRC-32C of everything after it.
	CRC uint32
	// Attributes are the bits that Codec, LogAppendTime, Transactional, Control
	// and DeleteHorizon read.
	Attributes int16
	// LastOffsetDelta is the distance from the base offset to the last offset;
	// from 0. Compaction leaves it alone.
	LastOffsetDelta int32
	// BaseTimestamp is what the timestamps of the records are relative to, in
	// milliseconds since the Unix epoch; [NoTimestamp] when there is none. In a
	// batch with a delete horizon it is that, and later than the records.
	BaseTimestamp int64
	// MaxTimestamp is the greatest timestamp of the records, or the time of the
	// append, in the unit of BaseTimestamp.
	MaxTimestamp int64
	// ProducerID is the identity of an idempotent producer, from 0; -1 without
	// one.
	ProducerID int64
	// ProducerEpoch fences earlier instances of the producer; -1 without one.
	ProducerEpoch int16
	// BaseSequence numbers the first record among those of the producer; -1
	// without one.
	BaseSequence int32
	// RecordCount is the number of records in the batch: from 0 to
	// LastOffsetDelta+1, and exactly that in batches from producers. Compaction
	// removes records, and may leave none.
	RecordCount int32
}

// Codec returns how the records are compressed.
func (h Header) Codec() Codec { return Codec(h.Attributes & codecMask) }

// Size returns the size of the whole batch in bytes.
func (h Header) Size() int { return lengthOverhead + int(h.BatchLength) }

// LastOffset returns the offset that the last record has or had.
func (h Header) LastOffset() int64 { return h.BaseOffset + int64(h.LastOffsetDelta) }

// LastSequence returns the sequence number of the last record, or -1 without
// one. Sequence numbers wrap from 2^31-1 to 0.
func (h Header) LastSequence() int32 {
	if h.BaseSequence < 0 {
		return -1
	}
	return int32((uint32(h.BaseSequence) + uint32(h.LastOffsetDelta)) & math.MaxInt32)
}

// LogAppendTime tells that MaxTimestamp is the timestamp of every record.
func (h Header) LogAppendTime() bool { return h.Attributes&logAppendTimeBit != 0 }

// Transactional tells that the batch is part of a transaction.
func (h Header) Transactional() bool { return h.Attributes&transactionalBit != 0 }

// Control tells that the records are the log's own, such as the end of a
// transaction, and not for applications.
func (h Header) Control() bool { return h.Attributes&controlBit != 0 }

// DeleteHorizon returns the time, in milliseconds since the Unix epoch, from
// which on compaction may remove the batch's tombstones, records without a value
// (KIP-534). It is false for a batch that no compaction has found a tombstone in.
func (h Header) DeleteHorizon() (ms int64, ok bool) {
	return h.BaseTimestamp, h.Attributes&deleteHorizonBit != 0
}

// Idempotent tells that the batch has a producer identity.
func (h Header) Idempotent() bool { return h.ProducerID >= 0 }

// ParseHeader reads the header of the batch that b begins with. It checks
// what the header alone can tell: magic, attributes, ranges, and that counts
// and offsets agree. It reads neither the checksum nor the records, and b may
// end before the batch does, or after.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, corrupt("size", fmt.Sprintf("%d bytes", len(b)), "at least %d", HeaderSize)
	}
	b = b[:HeaderSize]
	if b[magicAt] != magic {
		return Header{}, newError(ErrUnsupported, "magic", b[magicAt], "%d", magic)
	}
	h := Header{
		BaseOffset:      int64(binary.BigEndian.Uint64(b[baseOffsetAt:])),
		BatchLength:     int32(binary.BigEndian.Uint32(b[batchLengthAt:])),
		LeaderEpoch:     int32(binary.BigEndian.Uint32(b[leaderEpochAt:])),
		CRC:             binary.BigEndian.Uint32(b[crcAt:]),
		Attributes:      int16(binary.BigEndian.Uint16(b[attributesAt:])),
		LastOffsetDelta: int32(binary.BigEndian.Uint32(b[lastOffsetDeltaAt:])),
		BaseTimestamp:   int64(binary.BigEndian.Uint64(b[baseTimestampAt:])),
		MaxTimestamp:    int64(binary.BigEndian.Uint64(b[maxTimestampAt:])),
		ProducerID:      int64(binary.BigEndian.Uint64(b[producerIDAt:])),
		ProducerEpoch:   int16(binary.BigEndian.Uint16(b[producerEpochAt:])),
		BaseSequence:    int32(binary.BigEndian.Uint32(b[baseSequenceAt:])),
		RecordCount:     int32(binary.BigEndian.Uint32(b[recordCountAt:])),
	}
	if err := h.check(); err != nil {
		return Header{}, err
	}
	return h, nil
}

func (h *Header) check() error {
	switch {
	case h.BatchLength < minBatchLength || h.BatchLength > maxBatchLength:
		return corrupt("batchLength", h.BatchLength, "%d to %d", minBatchLength, maxBatchLength)
	case h.LeaderEpoch < -1:
		return corrupt("partitionLeaderEpoch", h.LeaderEpoch, "-1 or more")
	case h.Attributes&^knownAttributes != 0:
		return newError(ErrUnsupported, "attributes", fmt.Sprintf("%#04x", uint16(h.Attributes)), "within %#04x", knownAttributes)
	case !h.Codec().known():
		return newError(ErrUnsupported, "attributes", fmt.Sprintf("codec %d", h.Codec()), "codec 0 to %d", Zstd)
	case h.LastOffsetDelta < 0:
		return corrupt("lastOffsetDelta", h.LastOffsetDelta, "0 or more")
	case h.BaseOffset < 0 || h.BaseOffset > maxAssignedOffset-int64(h.LastOffsetDelta):
		return corrupt("baseOffset", h.BaseOffset, "0 to %d less lastOffsetDelta", int64(maxAssignedOffset))
	case h.BaseTimestamp < NoTimestamp:
		return corrupt("baseTimestamp", h.BaseTimestamp, "-1 or more")
	case h.MaxTimestamp < NoTimestamp:
		return corrupt("maxTimestamp", h.MaxTimestamp, "-1 or more")
	case h.ProducerID < -1:
		return corrupt("producerId", h.ProducerID, "-1 or more")
	case h.ProducerEpoch < -1:
		return corrupt("producerEpoch", h.ProducerEpoch, "-1 or more")
	case h.BaseSequence < -1:
		return corrupt("baseSequence", h.BaseSequence, "-1 or more")
	case h.RecordCount < 0 || int64(h.RecordCount) > int64(h.LastOffsetDelta)+1:
		return corrupt("recordCount", h.RecordCount, "0 to lastOffsetDelta+1 (%d)", int64(h.LastOffsetDelta)+1)
	case h.Codec() == None && h.RecordCount > (h.BatchLength-minBatchLength)/minRecordSize:
		return corrupt("recordCount", h.RecordCount, "at most %d: the batch has %d bytes of records",
			(h.BatchLength-minBatchLength)/minRecordSize, h.BatchLength-minBatchLength)
	}
	return nil
}

// Verify reads the header of b, which must be exactly one batch, and checks
// it as [ParseHeader] does, the length and the checksum. It does not open the
// records.
//
// The checksum does not cover the base offset and the leader epoch: whoever
// knows what they must be compares them too.
func Verify(b []byte) (Header, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return Header{}, err
	}
	if h.Size() != len(b) {
		return Header{}, corrupt("batchLength", h.BatchLength, "%d: there are %d bytes", len(b)-lengthOverhead, len(b))
	}
	if sum := crc32.Checksum(b[attributesAt:], castagnoli); sum != h.CRC {
		return Header{}, corrupt("crc", fmt.Sprintf("%#08x", h.CRC), "%#08x", sum)
	}
	return h, nil
}

// VerifyProduced is [Verify] for a batch that comes from a producer: there must
// be records, offsets must have no gaps, timestamps must be the producer's, and
// id, epoch and sequence of the producer must be all there or all missing.
//
// Whether control batches and transactions are welcome is for the caller to
// decide.
func VerifyProduced(b []byte) (Header, error) {
	h, err := Verify(b)
	if err != nil {
		return Header{}, err
	}
	switch {
	case int64(h.RecordCount) != int64(h.LastOffsetDelta)+1:
		return Header{}, corrupt("recordCount", h.RecordCount, "lastOffsetDelta+1 (%d)", int64(h.LastOffsetDelta)+1)
	case h.LogAppendTime():
		return Header{}, corrupt("attributes", "timestamp type LogAppendTime", "CreateTime: the server sets the other")
	case h.Attributes&deleteHorizonBit != 0:
		return Header{}, corrupt("attributes", "with a delete horizon", "without one: compaction sets it")
	}
	if err := checkProducer(ErrCorrupt, h.ProducerID, h.ProducerEpoch, h.BaseSequence); err != nil {
		return Header{}, err
	}
	return h, nil
}

func checkProducer(kind error, id int64, epoch int16, sequence int32) error {
	switch {
	case id < -1:
		return newError(kind, "producerId", id, "-1 or more")
	case id == -1 && epoch != -1:
		return newError(kind, "producerEpoch", epoch, "-1 without a producerId")
	case id == -1 && sequence != -1:
		return newError(kind, "baseSequence", sequence, "-1 without a producerId")
	case id >= 0 && epoch < 0:
		return newError(kind, "producerEpoch", epoch, "0 or more with producerId %d", id)
	case id >= 0 && sequence < 0:
		return newError(kind, "baseSequence", sequence, "0 or more with producerId %d", id)
	}
	return nil
}

// Assign writes what the leader decides into a batch that [ParseHeader]
// accepts: the offset of its first record and the leader's epoch. The checksum
// covers neither.
func Assign(b []byte, baseOffset int64, leaderEpoch int32) {
	binary.BigEndian.PutUint64(b[baseOffsetAt:], uint64(baseOffset))
	binary.BigEndian.PutUint32(b[leaderEpochAt:], uint32(leaderEpoch))
}

// SetAppendTime makes ms, in milliseconds since the Unix epoch, the timestamp
// of all records of b, which must be exactly one batch that [Verify] accepts.
// It reads all of b for the new checksum.
func SetAppendTime(b []byte, ms int64) {
	attributes := binary.BigEndian.Uint16(b[attributesAt:]) | uint16(logAppendTimeBit)
	binary.BigEndian.PutUint16(b[attributesAt:], attributes)
	binary.BigEndian.PutUint64(b[maxTimestampAt:], uint64(ms))
	putCRC(b)
}

func putCRC(b []byte) {
	binary.BigEndian.PutUint32(b[crcAt:], crc32.Checksum(b[attributesAt:], castagnoli))
}
