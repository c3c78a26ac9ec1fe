package server

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/coordinator/internal/offsets"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// move is a partition that is to be moved.
type move struct {
	id    rules.Partition
	reset *coordinatorv1.OffsetReset
	// at is the position that a leader has to turn into an offset; nil for none.
	at   *logv1.StartPosition
	plan *coordinatorv1.PlannedOffset
}

// ResetOffsets implements coordinatorv1connect.OffsetServiceHandler.
func (s *Server) ResetOffsets(ctx context.Context, req *coordinatorv1.ResetOffsetsRequest) (*coordinatorv1.ResetOffsetsResponse, error) {
	index, err := s.find(ctx, req.GetGroup())
	if err != nil {
		return nil, err
	}
	moves, err := readMoves(s.view.Image(), req.GetResets(), time.Now())
	if err != nil {
		return nil, err
	}
	group := rules.GroupID(req.GetGroup())
	value, err := s.host.Do(ctx, index, &rules.CheckReset{Group: group, Create: req.GetCreate()})
	if err != nil {
		return nil, s.translate(req.GetGroup(), err)
	}
	committed := make(map[rules.Partition]int64)
	records, _ := value.([]*rules.OffsetRecord)
	for _, o := range records {
		committed[o.Partition] = o.Offset
	}
	s.plan(ctx, moves, committed)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	res := &coordinatorv1.ResetOffsetsResponse{}
	whole := true
	for _, m := range moves {
		res.Offsets = append(res.Offsets, m.plan)
		whole = whole && m.plan.GetFailure() == nil
	}
	if !req.GetExecute() || !whole {
		return res, nil
	}
	commit := &rules.Commit{Group: group}
	for _, m := range moves {
		commit.Offsets = append(commit.Offsets, rules.CommitOffset{
			Partition: m.id, TopicName: m.plan.GetTopic(), Offset: m.plan.GetNewOffset(), LeaderEpoch: -1,
		})
	}
	// The shard refuses it if members have come meanwhile.
	if value, err = s.host.Do(ctx, index, commit); err != nil {
		return nil, s.translate(req.GetGroup(), err)
	}
	res.Executed = true
	answer, _ := value.(rules.CommitAnswer)
	for i, refusal := range answer.Refusals {
		if refusal != nil && i < len(moves) {
			res.Executed = false
			fail(moves[i].plan, refused(refusal))
		}
	}
	return res, nil
}

// readMoves reads what is to be moved, in the order of topics' names and partitions.
func readMoves(image *cluster.Image, resets []*coordinatorv1.OffsetReset, now time.Time) ([]*move, error) {
	if len(resets) == 0 {
		return nil, invalid("resets is empty; name at least one topic whose offsets are to be moved")
	}
	var moves []*move
	seen := make(map[rules.Partition]bool)
	for _, reset := range resets {
		at, err := checkTarget(reset, now)
		if err != nil {
			return nil, err
		}
		topic, err := topicNamed(image, reset.GetPartitions().GetTopic())
		if err != nil {
			return nil, err
		}
		indexes := reset.GetPartitions().GetPartitions()
		if len(indexes) == 0 {
			for i := range topic.Partitions {
				indexes = append(indexes, int32(i))
			}
		}
		if len(moves)+len(indexes) > maxResets {
			return nil, invalid("resets names more than %d partitions; move them in several calls", maxResets)
		}
		for _, index := range indexes {
			id := rules.Partition{Topic: topic.ID, Index: index}
			if seen[id] {
				return nil, invalid("resets names partition %d of topic %q twice; name each once", index, topic.Name)
			}
			seen[id] = true
			m := &move{id: id, reset: reset, at: at, plan: &coordinatorv1.PlannedOffset{Topic: topic.Name, Partition: index}}
			if err := checkPartition(topic, index); err != nil {
				fail(m.plan, err)
			}
			moves = append(moves, m)
		}
	}
	slices.SortFunc(moves, func(a, b *move) int {
		return cmp.Or(strings.Compare(a.plan.GetTopic(), b.plan.GetTopic()), cmp.Compare(a.id.Index, b.id.Index))
	})
	return moves, nil
}

// checkTarget returns the position of a target that a leader has to find; nil where
// none has to.
func checkTarget(reset *coordinatorv1.OffsetReset, now time.Time) (*logv1.StartPosition, error) {
	topic := reset.GetPartitions().GetTopic()
	switch target := reset.GetTarget().(type) {
	case *coordinatorv1.OffsetReset_ShiftBy:
		return nil, nil
	case *coordinatorv1.OffsetReset_ByDuration:
		if err := target.ByDuration.CheckValid(); err != nil || target.ByDuration.AsDuration() < 0 {
			return nil, invalid("by_duration of topic %q is no duration of 0 or more", topic)
		}
		return atTime(now.Add(-target.ByDuration.AsDuration())), nil
	case *coordinatorv1.OffsetReset_Position:
		switch position := target.Position.GetPosition().(type) {
		case *logv1.StartPosition_Offset:
			if position.Offset < 0 {
				return nil, invalid("the offset for topic %q is %d, must be 0 or more; earliest and latest are positions of their own", topic, position.Offset)
			}
		case *logv1.StartPosition_Time:
			if err := position.Time.CheckValid(); err != nil {
				return nil, invalid("the time for topic %q is not a valid timestamp; give one between the years 1 and 9999", topic)
			}
			return target.Position, nil
		}
		return nil, nil
	default:
		return nil, invalid("the reset of topic %q has no target; set position, shift_by or by_duration", topic)
	}
}

func atTime(t time.Time) *logv1.StartPosition {
	return &logv1.StartPosition{Position: &logv1.StartPosition_Time{Time: timestamppb.New(t)}}
}

// plan asks the leaders and works the moves out.
func (s *Server) plan(ctx context.Context, moves []*move, committed map[rules.Partition]int64) {
	var positions []offsets.Position
	for _, m := range moves {
		topic, index := m.plan.GetTopic(), m.id.Index
		positions = append(positions, offsets.Position{Topic: topic, Index: index, At: offsets.Earliest}, offsets.Position{Topic: topic, Index: index, At: offsets.Latest})
		if m.at != nil {
			positions = append(positions, offsets.Position{Topic: topic, Index: index, At: m.at})
		}
	}
	resolved := s.leaders.Resolve(ctx, positions)
	for _, m := range moves {
		n := 2
		if m.at != nil {
			n = 3
		}
		old, ok := committed[m.id]
		m.work(resolved[:n], old, ok)
		resolved = resolved[n:]
	}
}

// work works a move out, given the ends of the log and the position that it asked for.
func (m *move) work(resolved []offsets.Resolved, old int64, committed bool) {
	if committed {
		m.plan.OldOffset = proto.Int64(old)
	}
	if m.plan.GetFailure() != nil {
		return
	}
	for _, r := range resolved {
		if r.Err != nil {
			fail(m.plan, r.Err)
			return
		}
	}
	start, end := resolved[0].Offset, resolved[1].Offset
	var target int64
	switch t := m.reset.GetTarget().(type) {
	case *coordinatorv1.OffsetReset_ShiftBy:
		if !committed {
			fail(m.plan, invalid("partition %d of topic %q has no committed offset to shift; move it to the earliest, the latest or a given offset", m.id.Index, m.plan.GetTopic()))
			return
		}
		target = shifted(old, t.ShiftBy)
	case *coordinatorv1.OffsetReset_ByDuration:
		target = resolved[2].Offset
	case *coordinatorv1.OffsetReset_Position:
		switch position := t.Position.GetPosition().(type) {
		case *logv1.StartPosition_Earliest:
			target = start
		case *logv1.StartPosition_Offset:
			target = position.Offset
		case *logv1.StartPosition_Time:
			target = resolved[2].Offset
		default:
			target = end
		}
	}
	m.plan.LogStartOffset, m.plan.LogEndOffset = start, end
	m.plan.NewOffset = min(max(target, start), end)
	if m.plan.GetNewOffset() != target {
		m.plan.ClampedFrom = proto.Int64(target)
	}
	m.plan.Lag = end - m.plan.GetNewOffset()
}

// shifted adds without running over.
func shifted(offset, by int64) int64 {
	if by > 0 && offset > math.MaxInt64-by {
		return math.MaxInt64
	}
	return offset + by
}

func fail(p *coordinatorv1.PlannedOffset, err error) {
	p.NewOffset, p.Failure = -1, rpcerr.AsFailure(err)
	p.ClampedFrom, p.Lag = nil, 0
}
