package runnel

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
)

// Position is where a consumer stands in a partition.
type Position struct {
	// Offset of the record to read next, from 0.
	Offset int64
	// LeaderEpoch is that of the record before, -1 when not known. With it the
	// cluster can tell that the log was cut off and written anew below the position
	// (KIP-320); keep it with the offset.
	LeaderEpoch int32
}

// Start says where in a partition to begin. The zero value is [Latest].
type Start struct {
	kind     startKind
	position Position
	time     time.Time
	// byPolicy says that nobody has asked for it: it is what the reset policy has.
	byPolicy bool
}

type startKind int8

const (
	startLatest startKind = iota
	startEarliest
	startOffset
	startTime
)

// Earliest begins with the first record that the partition still holds.
func Earliest() Start { return Start{kind: startEarliest} }

// Latest begins with the first record that becomes readable from now on.
func Latest() Start { return Start{kind: startLatest} }

// Offset begins at an offset, from 0. If the partition does not hold it the
// consumer's reset policy decides.
func Offset(offset int64) Start {
	return Start{kind: startOffset, position: Position{Offset: offset, LeaderEpoch: -1}}
}

// Time begins with the first record whose timestamp is at or after t, or like
// [Latest] if there is none.
func Time(t time.Time) Start { return Start{kind: startTime, time: t} }

// From goes on where a consumer stood; see [Consumer.Position].
func From(p Position) Start { return Start{kind: startOffset, position: p} }

// String describes the start.
func (s Start) String() string {
	switch s.kind {
	case startEarliest:
		return "earliest"
	case startOffset:
		return fmt.Sprintf("offset %d", s.position.Offset)
	case startTime:
		return s.time.UTC().Format(time.RFC3339Nano)
	}
	return "latest"
}

func (s Start) proto() *logv1.StartPosition {
	switch s.kind {
	case startEarliest:
		return &logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}}
	case startOffset:
		return &logv1.StartPosition{Position: &logv1.StartPosition_Offset{Offset: s.position.Offset}}
	case startTime:
		return &logv1.StartPosition{Position: &logv1.StartPosition_Time{Time: timestamppb.New(s.time)}}
	}
	return &logv1.StartPosition{Position: &logv1.StartPosition_Latest{Latest: &logv1.Latest{}}}
}

// Assignment is a partition, or all of a topic, with where to begin and perhaps
// where to stop.
type Assignment struct {
	topic string
	// partition is allPartitions for all of them.
	partition int32
	start     Start
	// until is the bound, or one of the two below 0.
	until int64
}

const (
	allPartitions int32 = -1

	// noBound follows the partition for good.
	noBound int64 = -1
	// boundAtEnd is the high watermark at the time of the assignment.
	boundAtEnd int64 = -2
)

// At names a partition, from 0, and where to begin.
func At(topic string, partition int32, start Start) Assignment {
	return Assignment{topic: topic, partition: partition, start: start, until: noBound}
}

// AtAll names all partitions that a topic has at this time.
func AtAll(topic string, start Start) Assignment {
	return Assignment{topic: topic, partition: allPartitions, start: start, until: noBound}
}

// Until stops before an offset: that of the first record not to read.
func (a Assignment) Until(offset int64) Assignment {
	a.until = max(offset, 0)
	return a
}

// UntilEnd stops at what is the end of the partition (the high watermark) at the
// time of the assignment.
func (a Assignment) UntilEnd() Assignment {
	a.until = boundAtEnd
	return a
}
