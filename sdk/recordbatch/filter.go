package recordbatch

import (
	"encoding/binary"
	"math"
)

// Filtered is what [Filter] leaves of a batch.
type Filtered struct {
	// Batch is the batch as given, not a copy, where nothing of it changes.
	Batch []byte
	// Header is that of Batch.
	Header Header
	// Removed is the number of records that are gone.
	Removed int
}

// Filter returns b, one batch that [Verify] accepts, without the records that
// keep rejects. It is what compaction does to a batch: base offset, last offset,
// leader epoch, producer identity, timestamp type and codec stay, and each record
// that stays keeps its offset and its timestamp. A batch of which no record stays
// consists of its header, with the maximum timestamp that it had and without a
// codec.
//
// Where horizon is not [NoTimestamp], a batch that keeps a tombstone and has no
// delete horizon is given this one; see [Header.DeleteHorizon].
//
// Records given to keep alias memory as those of [Records] do. b is not changed.
// The errors are those of Records, but for a batch that compresses worse than
// before to more than the format can express, which is ErrTooLarge.
func Filter(b []byte, l Limits, horizon int64, keep func(Record) bool) (Filtered, error) {
	var r reader
	if err := r.open(b, l); err != nil {
		return Filtered{}, err
	}
	opened := r.rest
	// What stays is opened until the first record that goes, and copied from then
	// on.
	var copied []byte
	header, removed := r.header, 0
	tombstones, newest := false, int64(NoTimestamp)
	for range r.header.RecordCount {
		at := len(opened) - len(r.rest)
		record, err := r.next()
		if err != nil {
			return Filtered{}, err
		}
		if !keep(record) {
			if removed == 0 {
				copied = append(make([]byte, HeaderSize, HeaderSize+len(opened)), opened[:at]...)
			}
			removed++
			continue
		}
		tombstones = tombstones || record.Value == nil
		newest = max(newest, record.Timestamp)
		if removed > 0 {
			copied = append(copied, opened[at:len(opened)-len(r.rest)]...)
		}
	}
	if err := r.end(); err != nil {
		return Filtered{}, err
	}
	if _, has := header.DeleteHorizon(); has || !tombstones {
		horizon = NoTimestamp
	}
	switch {
	case removed == 0 && horizon == NoTimestamp:
		return Filtered{Batch: b, Header: header}, nil
	case removed == 0:
		copied = append(make([]byte, HeaderSize, HeaderSize+len(opened)), opened...)
	}
	header.RecordCount -= int32(removed)
	if header.RecordCount == 0 {
		header.Attributes &^= codecMask | deleteHorizonBit
		header.BaseTimestamp = NoTimestamp
	} else {
		header.MaxTimestamp = newest
	}
	if horizon != NoTimestamp {
		copied = rebase(copied, header.BaseTimestamp, horizon)
		header.Attributes |= deleteHorizonBit
		header.BaseTimestamp = horizon
	}
	if codec := header.Codec(); codec != None {
		compressed, err := compress(codec, copied[HeaderSize:], math.MaxInt)
		if err != nil {
			return Filtered{}, err
		}
		copied = compressed
	}
	if len(copied) > maxBatchLength {
		return Filtered{}, newError(ErrTooLarge, "batchLength", len(copied)-lengthOverhead, "at most %d", maxBatchLength)
	}
	header.BatchLength = int32(len(copied) - lengthOverhead)
	copy(copied, b[:HeaderSize])
	binary.BigEndian.PutUint32(copied[batchLengthAt:], uint32(header.BatchLength))
	binary.BigEndian.PutUint16(copied[attributesAt:], uint16(header.Attributes))
	binary.BigEndian.PutUint64(copied[baseTimestampAt:], uint64(header.BaseTimestamp))
	binary.BigEndian.PutUint64(copied[maxTimestampAt:], uint64(header.MaxTimestamp))
	binary.BigEndian.PutUint32(copied[recordCountAt:], uint32(header.RecordCount))
	putCRC(copied)
	header.CRC = binary.BigEndian.Uint32(copied[crcAt:])
	return Filtered{Batch: copied, Header: header, Removed: removed}, nil
}

// rebase makes the timestamps of well-formed records, after HeaderSize bytes of
// room, relative to another base.
func rebase(records []byte, from, to int64) []byte {
	rest := records[HeaderSize:]
	out := make([]byte, HeaderSize, len(records)+len(records)/4)
	for len(rest) > 0 {
		length, n := varint(rest)
		body := rest[n : n+int(length)]
		rest = rest[n+int(length):]
		delta, n := varlong(body[1:])
		tail := body[1+n:]
		delta += from - to
		out = binary.AppendUvarint(out, zigzag(int64(1+varintSize(delta)+len(tail))))
		out = append(out, body[0])
		out = binary.AppendUvarint(out, zigzag(delta))
		out = append(out, tail...)
	}
	return out
}
