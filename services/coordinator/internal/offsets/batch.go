// Package offsets is the log of consumer groups: what the records of
// __consumer_offsets look like, how they are appended, and how they are read back. What
// they mean is for [groups] to say.
package offsets

import (
	"errors"
	"fmt"
	"time"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// MaxBatchBytes bounds a batch: the most that max.message.bytes of a topic may be.
const MaxBatchBytes = 16 << 20

// Encode returns records as one batch without compression, of at most [MaxBatchBytes].
// Times are kept in whole milliseconds; now is for people, and for the age of
// tombstones.
func Encode(records []groups.Record, now time.Time) ([]byte, error) {
	var builder recordbatch.Builder
	for _, r := range records {
		key, value, err := encodeRecord(r)
		if err != nil {
			return nil, err
		}
		if size := builder.EncodedSize() + recordbatch.MaxRecordSize(key, value, nil); size > MaxBatchBytes {
			return nil, fmt.Errorf("a batch of %d records would have %d bytes, at most %d are possible", len(records), size, MaxBatchBytes)
		}
		if err := builder.Append(key, value, nil, now.UnixMilli()); err != nil {
			return nil, err
		}
	}
	return builder.Build(recordbatch.WithoutProducer(recordbatch.None))
}

// Decode returns the records of a batch from offset from up to offset end, in their
// order, and how many it passed over because this version does not know their kind.
// They keep nothing of the batch, which is one that [recordbatch.Verify] accepts.
func Decode(batch []byte, from, end int64) (records []groups.Record, unknown int, err error) {
	for r, err := range recordbatch.Records(batch, recordbatch.Limits{}) {
		if err != nil {
			return nil, 0, err
		}
		if r.Offset < from || r.Offset >= end {
			continue
		}
		record, err := DecodeRecord(r.Key, r.Value)
		switch {
		case errors.Is(err, ErrUnknownKind):
			unknown++
		case err != nil:
			return nil, 0, fmt.Errorf("record at offset %d: %w", r.Offset, err)
		default:
			records = append(records, record)
		}
	}
	return records, unknown, nil
}
