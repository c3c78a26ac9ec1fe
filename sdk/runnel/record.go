package runnel

import (
	"fmt"
	"time"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// Header is an application-defined annotation of a record: a key, which is
// UTF-8, and a value, where nil (null) differs from empty. Headers keep their
// order, and a key may occur more than once.
type Header = recordbatch.RecordHeader

// Record is what a producer sends.
type Record struct {
	Topic string
	// Partition is [AnyPartition], which leaves the choice to the producer's
	// [Partitioner], or a partition chosen with [OnPartition].
	Partition PartitionChoice
	// Key and Value tell null (nil) from empty. A null value in a compacted
	// topic deletes its key.
	Key, Value []byte
	Headers    []Header
	// Timestamp has millisecond resolution; zero means the time of Send.
	Timestamp time.Time
}

// PartitionChoice says to which partition a record shall go.
type PartitionChoice int32

// AnyPartition leaves the choice of the partition to the producer.
const AnyPartition PartitionChoice = 0

// OnPartition chooses a partition, from 0.
func OnPartition(partition int32) PartitionChoice { return PartitionChoice(partition + 1) }

// partition returns the chosen partition; below 0 none is chosen.
func (c PartitionChoice) partition() int32 { return int32(c) - 1 }

// Ack is where a record went.
type Ack struct {
	Topic     string
	Partition int32
	// Offset is -1 when it is not known: the record failed, or was sent with
	// [AcksNone].
	Offset int64
	// Timestamp is the record's own, or the time of its append where the topic
	// keeps that one.
	Timestamp time.Time
}

// TopicPartition names a partition.
type TopicPartition struct {
	Topic string
	// Partition counts from 0.
	Partition int32
}

// String returns "topic-partition".
func (tp TopicPartition) String() string { return fmt.Sprintf("%s-%d", tp.Topic, tp.Partition) }

// ConsumedRecord is what a consumer reads. Its key, value and header values
// alias the memory in which the whole batch was received: they stay valid as
// long as they are referenced, and a program that keeps a few bytes for long
// copies them, so as not to keep the batch.
type ConsumedRecord struct {
	Topic     string
	Partition int32
	Offset    int64
	// LeaderEpoch is the epoch of the leader that appended the record.
	LeaderEpoch int32
	// Timestamp has millisecond resolution; zero when the record has none.
	Timestamp time.Time
	// Key and Value tell null (nil) from empty.
	Key, Value []byte
	Headers    []Header

	// tenure is that under which a member of a group has read the record.
	tenure *tenure
}

func timestamp(ms int64) time.Time {
	if ms == recordbatch.NoTimestamp {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
