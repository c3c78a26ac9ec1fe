package store

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// PartitionID names a partition for good.
type PartitionID struct {
	Topic cluster.TopicID
	// Index is the partition's number, from 0.
	Index int32
}

// String returns the topic's id and the index.
func (id PartitionID) String() string { return fmt.Sprintf("%v/%d", id.Topic, id.Index) }

// LogValue makes log lines have the same as [PartitionID.String]. A [slog.Handler]
// of the caller may know more of the partition.
func (id PartitionID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// kind is the first byte of a key. What is read when a store opens comes first,
// so that opening never walks over batches.
type kind byte

const (
	kindState kind = 1 + iota
	kindProgress
	kindProducer
	kindTime
	kindBatch
	// kindMark has one key, which makes the version of a transaction last that
	// deletes only: of one that compaction has left nothing of, nobody could tell
	// that it is not missing.
	kindMark
)

// maxOffset is above all offsets.
const maxOffset = math.MaxInt64

const (
	partitionKeyBytes = 1 + 16 + 4
	offsetKeyBytes    = partitionKeyBytes + 8
)

// appendPartitionKey appends the key of a partition's record of that kind,
// which is also the prefix of the kinds that have several.
func appendPartitionKey(key []byte, k kind, id PartitionID) []byte {
	key = append(key, byte(k))
	key = append(key, id.Topic[:]...)
	return binary.BigEndian.AppendUint32(key, uint32(id.Index))
}

// appendOffsetKey appends the key of a batch, named by its last offset so that
// the first key at or after an offset is that of the batch which holds it; or
// of an entry of the time index; or, with an id for offset, of a producer.
func appendOffsetKey(key []byte, k kind, id PartitionID, offset int64) []byte {
	return binary.BigEndian.AppendUint64(appendPartitionKey(key, k, id), uint64(offset))
}

// parseKey reads a key of any kind; offset is 0 for kinds without.
func parseKey(key []byte) (k kind, id PartitionID, offset int64, err error) {
	if len(key) < partitionKeyBytes {
		return 0, id, 0, fmt.Errorf("key has %d bytes instead of %d or %d", len(key), partitionKeyBytes, offsetKeyBytes)
	}
	k = kind(key[0])
	copy(id.Topic[:], key[1:])
	id.Index = int32(binary.BigEndian.Uint32(key[17:]))
	want := offsetKeyBytes
	switch k {
	case kindState, kindProgress, kindMark:
		want = partitionKeyBytes
	case kindProducer, kindTime, kindBatch:
	default:
		return 0, id, 0, fmt.Errorf("key has the unknown kind %d", k)
	}
	if len(key) != want {
		return 0, id, 0, fmt.Errorf("key of kind %d has %d bytes instead of %d", k, len(key), want)
	}
	if want == offsetKeyBytes {
		raw := binary.BigEndian.Uint64(key[partitionKeyBytes:])
		if raw > math.MaxInt64 {
			return 0, id, 0, fmt.Errorf("key of kind %d has the offset %d", k, raw)
		}
		offset = int64(raw)
	}
	return k, id, offset, nil
}
