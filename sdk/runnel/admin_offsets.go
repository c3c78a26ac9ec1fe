package runnel

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// GroupOffset is how far a group has come in a partition.
type GroupOffset struct {
	TopicPartition
	// Position of the next record to read.
	Position
	// Metadata was given with the commit: at most 4,096 bytes.
	Metadata string
	// CommittedAt is when, by the coordinator's clock. It is not for commits.
	CommittedAt time.Time

	// tenure is that under which a member has read up to there; nil means the present.
	tenure *tenure
}

// CommitOutcome says whether the offset of a partition was committed.
type CommitOutcome struct {
	TopicPartition
	// Err says why not; nil if it was.
	Err error
}

// ListCommitted returns the offsets that a group has committed last, in the order of
// topics' names and partitions: those of the named partitions, or all if none is named.
// Partitions without one are left out.
func (a *Admin) ListCommitted(ctx context.Context, group string, partitions ...TopicPartition) ([]GroupOffset, error) {
	byTopic := make(map[string][]int32)
	for _, p := range partitions {
		byTopic[p.Topic] = append(byTopic[p.Topic], p.Partition)
	}
	request := &coordinatorv1.FetchOffsetsRequest{Group: group, Partitions: partitionSets(byTopic)}
	var offsets []GroupOffset
	err := a.atCoordinator(ctx, group, notFatal, func(ctx context.Context, address string) error {
		response, err := call(ctx, address, a.client.offsets(address).FetchOffsets, request)
		if err != nil {
			return err
		}
		offsets = groupOffsets(response.GetOffsets())
		return nil
	})
	return offsets, err
}

// CommitOffsets records offsets of a group that has no members, such as those of a
// program that assigns partitions itself; members commit with their consumer. Each
// partition succeeds or fails by itself; the outcomes are in the order of the offsets.
func (a *Admin) CommitOffsets(ctx context.Context, group string, offsets ...GroupOffset) ([]CommitOutcome, error) {
	request := &coordinatorv1.CommitOffsetsRequest{Group: group}
	for _, o := range offsets {
		commit := &coordinatorv1.OffsetCommit{Topic: o.Topic, Partition: o.Partition, Offset: o.Offset, Metadata: o.Metadata}
		if o.LeaderEpoch >= 0 {
			commit.LeaderEpoch = &o.LeaderEpoch
		}
		request.Offsets = append(request.Offsets, commit)
	}
	var outcomes []CommitOutcome
	err := a.atCoordinator(ctx, group, IsRetriable, func(ctx context.Context, address string) error {
		response, err := call(ctx, address, a.client.offsets(address).CommitOffsets, request)
		if err != nil {
			return err
		}
		outcomes = nil
		for _, r := range response.GetResults() {
			o := CommitOutcome{TopicPartition: TopicPartition{Topic: r.GetTopic(), Partition: r.GetPartition()}}
			if failure := r.GetFailure(); failure != nil {
				o.Err = failureError(failure)
			}
			outcomes = append(outcomes, o)
		}
		if len(outcomes) != len(offsets) {
			return newError(errorsv1.Reason_REASON_INTERNAL, "%s answers %d of %d commits", address, len(outcomes), len(offsets))
		}
		return nil
	})
	return outcomes, err
}

// OffsetTarget says where to move an offset. The zero value is [MoveTo] of [Latest].
type OffsetTarget struct {
	kind  targetKind
	start Start
	shift int64
	age   time.Duration
}

type targetKind int8

const (
	targetStart targetKind = iota
	targetShift
	targetAge
)

// MoveTo moves to a position of the log.
func MoveTo(start Start) OffsetTarget { return OffsetTarget{kind: targetStart, start: start} }

// MoveBy moves by so many records from the committed offset: forward if above 0,
// backward if below.
func MoveBy(records int64) OffsetTarget { return OffsetTarget{kind: targetShift, shift: records} }

// MoveToAge moves to the first record that is younger than age.
func MoveToAge(age time.Duration) OffsetTarget { return OffsetTarget{kind: targetAge, age: age} }

// OffsetReset says where to move which partitions of a topic.
type OffsetReset struct {
	Topic string
	// Partitions to move; none stands for all.
	Partitions []int32
	Target     OffsetTarget
}

// GroupReset moves offsets of a group.
type GroupReset struct {
	Group string
	// Resets name each partition at most once, and at most 10,000 in all.
	Resets []OffsetReset
	// Execute does it; otherwise nothing changes, and the plan is what would happen.
	Execute bool
	// Create has the group begin to exist if it does not, such as ahead of its first
	// start.
	Create bool
}

// ResetPlan is what a reset does, or would do.
type ResetPlan struct {
	// Offsets in the order of topics' names and partitions.
	Offsets []PlannedOffset
	// Executed says that the new offsets are committed. Nothing is if one of the
	// partitions cannot be moved.
	Executed bool
}

// PlannedOffset is the move of one partition.
type PlannedOffset struct {
	TopicPartition
	// Old is the committed offset before, -1 where there was none; New is that after, -1
	// if Err is set.
	Old, New int64
	// Clamped says that the target lies outside of the log, at what would be the offset
	// Target, possibly below 0; New is the end of the log that is nearest to it.
	Clamped bool
	Target  int64
	// Start is the first offset of the partition, End its high watermark.
	Start, End int64
	// Lag is how many records are left to read after the move.
	Lag int64
	// Err says why the partition cannot be moved.
	Err error
}

// ResetOffsets moves the offsets of a group without members, or says what that would
// do. Both are refused with REASON_GROUP_NOT_EMPTY while the group has members, whom the
// error names, and with REASON_GROUP_NOT_FOUND if it does not exist and is not to be
// created.
func (a *Admin) ResetOffsets(ctx context.Context, reset GroupReset) (ResetPlan, error) {
	request := &coordinatorv1.ResetOffsetsRequest{Group: reset.Group, Execute: reset.Execute, Create: reset.Create}
	for _, r := range reset.Resets {
		request.Resets = append(request.Resets, r.proto())
	}
	repeatable := IsRetriable
	if !reset.Execute {
		repeatable = notFatal
	}
	var plan ResetPlan
	err := a.atCoordinator(ctx, reset.Group, repeatable, func(ctx context.Context, address string) error {
		response, err := within(ctx, changeTimeout, address, a.client.offsets(address).ResetOffsets, request)
		if err != nil {
			return err
		}
		plan = newResetPlan(response)
		return nil
	})
	return plan, err
}

func (r *OffsetReset) proto() *coordinatorv1.OffsetReset {
	out := &coordinatorv1.OffsetReset{Partitions: &coordinatorv1.TopicPartitionSet{Topic: r.Topic, Partitions: r.Partitions}}
	switch r.Target.kind {
	case targetShift:
		out.Target = &coordinatorv1.OffsetReset_ShiftBy{ShiftBy: r.Target.shift}
	case targetAge:
		out.Target = &coordinatorv1.OffsetReset_ByDuration{ByDuration: durationpb.New(r.Target.age)}
	default:
		out.Target = &coordinatorv1.OffsetReset_Position{Position: r.Target.start.proto()}
	}
	return out
}

func newResetPlan(r *coordinatorv1.ResetOffsetsResponse) ResetPlan {
	plan := ResetPlan{Executed: r.GetExecuted()}
	for _, o := range r.GetOffsets() {
		p := PlannedOffset{
			TopicPartition: TopicPartition{Topic: o.GetTopic(), Partition: o.GetPartition()},
			Old:            valueOr(o.OldOffset, -1), New: o.GetNewOffset(),
			Clamped: o.ClampedFrom != nil, Target: valueOr(o.ClampedFrom, o.GetNewOffset()),
			Start: o.GetLogStartOffset(), End: o.GetLogEndOffset(), Lag: o.GetLag(),
		}
		if failure := o.GetFailure(); failure != nil {
			p.New, p.Err = -1, failureError(failure)
		}
		plan.Offsets = append(plan.Offsets, p)
	}
	return plan
}

// DeleteOffsets makes the cluster forget offsets of a group, of topics that no member
// is subscribed to: topics maps each topic to its partitions, none for all. It returns
// what was forgotten, in the order of topics' names and partitions.
func (a *Admin) DeleteOffsets(ctx context.Context, group string, topics map[string][]int32) ([]GroupOffset, error) {
	request := &coordinatorv1.DeleteOffsetsRequest{Group: group, Partitions: partitionSets(topics)}
	var deleted []GroupOffset
	err := a.atCoordinator(ctx, group, IsRetriable, func(ctx context.Context, address string) error {
		response, err := call(ctx, address, a.client.offsets(address).DeleteOffsets, request)
		if err != nil {
			return err
		}
		deleted = groupOffsets(response.GetDeleted())
		return nil
	})
	return deleted, err
}

// partitionSets returns the partitions of topics in the order of the topics' names.
func partitionSets(topics map[string][]int32) []*coordinatorv1.TopicPartitionSet {
	var sets []*coordinatorv1.TopicPartitionSet
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		sets = append(sets, &coordinatorv1.TopicPartitionSet{Topic: topic, Partitions: topics[topic]})
	}
	return sets
}

func groupOffsets(committed []*coordinatorv1.CommittedOffset) []GroupOffset {
	offsets := make([]GroupOffset, len(committed))
	for i, o := range committed {
		offsets[i] = GroupOffset{
			TopicPartition: TopicPartition{Topic: o.GetTopic(), Partition: o.GetPartition()},
			Position:       Position{Offset: o.GetOffset(), LeaderEpoch: valueOr(o.LeaderEpoch, -1)},
			Metadata:       o.GetMetadata(),
		}
		if o.GetCommittedAt() != nil {
			offsets[i].CommittedAt = o.GetCommittedAt().AsTime()
		}
	}
	return offsets
}
