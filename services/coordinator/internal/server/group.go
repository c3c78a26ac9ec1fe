package server

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// Heartbeat implements coordinatorv1connect.GroupServiceHandler.
func (s *Server) Heartbeat(ctx context.Context, req *coordinatorv1.HeartbeatRequest) (*coordinatorv1.HeartbeatResponse, error) {
	if err := checkMember(req.GetMemberId()); err != nil {
		return nil, err
	}
	answer, err := ask[rules.HeartbeatAnswer](ctx, s, req.GetGroup(), &rules.Heartbeat{
		Group: rules.GroupID(req.GetGroup()), Member: rules.MemberID(req.GetMemberId()), Epoch: rules.Epoch(req.GetMemberEpoch()),
	})
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.HeartbeatResponse{MemberEpoch: int64(answer.Epoch), HeartbeatIntervalMs: int32(answer.Interval.Milliseconds())}, nil
}

// Leave implements coordinatorv1connect.GroupServiceHandler.
func (s *Server) Leave(ctx context.Context, req *coordinatorv1.LeaveRequest) (*coordinatorv1.LeaveResponse, error) {
	if err := checkMember(req.GetMemberId()); err != nil {
		return nil, err
	}
	_, err := ask[any](ctx, s, req.GetGroup(), &rules.Leave{
		Group: rules.GroupID(req.GetGroup()), Member: rules.MemberID(req.GetMemberId()), Keep: req.GetKeepAssignment(),
	})
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.LeaveResponse{}, nil
}

func checkMember(member string) error {
	if member == "" {
		return invalid("member_id is empty; name the member, as the response of Join does")
	}
	return checkName("member_id", member)
}

// ListGroups implements coordinatorv1connect.GroupServiceHandler.
func (s *Server) ListGroups(ctx context.Context, req *coordinatorv1.ListGroupsRequest) (*coordinatorv1.ListGroupsResponse, error) {
	for _, state := range req.GetStates() {
		if _, known := coordinatorv1.GroupState_name[int32(state)]; !known || state == coordinatorv1.GroupState_GROUP_STATE_UNSPECIFIED {
			return nil, invalid("states has %v; name states that a group can have, or none for all", state)
		}
	}
	serving, loading := s.host.Serving()
	res := &coordinatorv1.ListGroupsResponse{LoadingPartitions: int32(loading)}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, index := range serving {
		// All at once, so that one request asks each leader whether the fences hold.
		asking.Go(func() {
			value, err := s.host.Do(ctx, index, &rules.List{})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if r, ok := errors.AsType[*rules.Refusal](err); !ok || r.Reason != errorsv1.Reason_REASON_NOT_COORDINATOR {
					res.LoadingPartitions++
				}
				return
			}
			summaries, _ := value.([]rules.Summary)
			for _, g := range summaries {
				if state := groupState(g.State); len(req.GetStates()) == 0 || slices.Contains(req.GetStates(), state) {
					res.Groups = append(res.Groups, &coordinatorv1.GroupSummary{
						Group: string(g.Group), State: state, MemberCount: int32(g.Members), CoordinatorId: int32(s.self()),
					})
				}
			}
		})
	}
	asking.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	slices.SortFunc(res.Groups, func(a, b *coordinatorv1.GroupSummary) int { return strings.Compare(a.GetGroup(), b.GetGroup()) })
	return res, nil
}

func groupState(s rules.State) coordinatorv1.GroupState {
	switch s {
	case rules.Empty:
		return coordinatorv1.GroupState_GROUP_STATE_EMPTY
	case rules.Reconciling:
		return coordinatorv1.GroupState_GROUP_STATE_RECONCILING
	default:
		return coordinatorv1.GroupState_GROUP_STATE_STABLE
	}
}

// DeleteGroup implements coordinatorv1connect.GroupServiceHandler.
func (s *Server) DeleteGroup(ctx context.Context, req *coordinatorv1.DeleteGroupRequest) (*coordinatorv1.DeleteGroupResponse, error) {
	if _, err := ask[any](ctx, s, req.GetGroup(), &rules.DeleteGroup{Group: rules.GroupID(req.GetGroup())}); err != nil {
		return nil, err
	}
	return &coordinatorv1.DeleteGroupResponse{}, nil
}

// DescribeGroup implements coordinatorv1connect.GroupServiceHandler.
func (s *Server) DescribeGroup(ctx context.Context, req *coordinatorv1.DescribeGroupRequest) (*coordinatorv1.DescribeGroupResponse, error) {
	d, err := ask[*rules.Description](ctx, s, req.GetGroup(), &rules.Describe{Group: rules.GroupID(req.GetGroup())})
	if err != nil {
		return nil, err
	}
	res := &coordinatorv1.DescribeGroupResponse{
		Group: string(d.Group), State: groupState(d.State), GroupEpoch: int64(d.Epoch), CoordinatorId: int32(s.self()),
	}
	if len(d.Members) > 0 {
		res.Assignor = string(d.Assignor)
	}
	image := s.view.Image()
	if node, ok := image.Node(s.self()); ok {
		res.CoordinatorAddress = node.Address
	}
	for i := range d.Members {
		res.Members = append(res.Members, s.member(&d.Members[i]))
	}
	slices.SortFunc(res.Members, func(a, b *coordinatorv1.GroupMember) int {
		return strings.Compare(a.GetMemberId(), b.GetMemberId())
	})
	res.Partitions = groupPartitions(image, d)
	if !req.GetExcludeLag() {
		s.addLag(ctx, res.Partitions)
	}
	return res, ctx.Err()
}

func (s *Server) member(m *rules.DescribedMember) *coordinatorv1.GroupMember {
	return &coordinatorv1.GroupMember{
		MemberId:     string(m.Member),
		InstanceId:   m.Instance,
		ClientId:     m.ClientID,
		ClientHost:   m.ClientHost,
		MemberEpoch:  int64(m.Epoch),
		Subscription: &coordinatorv1.Subscription{Topics: m.Subscription.Topics, TopicPattern: m.Subscription.Pattern},
		Partitions:   s.topicPartitions(partitionsOf(m.Assigned)),
		Revoking:     s.topicPartitions(partitionsOf(m.Revoking)),
		Awaited:      s.topicPartitions(m.Awaited),
		Assignor:     string(m.Assignor),
		IdleMs:       max(m.Idle.Milliseconds(), 0),
		Fenced:       m.Fenced,
	}
}

// groupPartitions returns what a group has, is to have or has an offset of.
func groupPartitions(image *cluster.Image, d *rules.Description) []*coordinatorv1.GroupPartition {
	found := make(map[rules.Partition]*coordinatorv1.GroupPartition)
	add := func(p rules.Partition, name string) *coordinatorv1.GroupPartition {
		if found[p] == nil {
			if topic, ok := image.TopicByID(p.Topic); ok {
				name = topic.Name
			}
			found[p] = &coordinatorv1.GroupPartition{Topic: name, Partition: p.Index}
		}
		return found[p]
	}
	for _, m := range d.Members {
		for _, owned := range [][]rules.Owned{m.Assigned, m.Revoking} {
			for _, o := range owned {
				// What it was told to give up is its own until it has.
				add(o.Partition, "").MemberId = string(m.Member)
			}
		}
		for _, p := range m.Awaited {
			add(p, "")
		}
	}
	for _, o := range d.Offsets {
		p := add(o.Partition, o.TopicName)
		if p.GetTopic() == "" {
			p.Topic = o.TopicName
		}
		p.CommittedOffset = proto.Int64(o.Offset)
		p.Metadata = o.Metadata
		p.CommittedAt = timestamppb.New(o.Committed)
	}
	out := make([]*coordinatorv1.GroupPartition, 0, len(found))
	for _, p := range found {
		// Of a topic that was deleted, without an offset, nothing is left to say.
		if p.GetTopic() != "" {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *coordinatorv1.GroupPartition) int {
		return cmp.Or(strings.Compare(a.GetTopic(), b.GetTopic()), cmp.Compare(a.GetPartition(), b.GetPartition()))
	})
	return out
}

// addLag asks the leaders where partitions begin and end.
func (s *Server) addLag(ctx context.Context, partitions []*coordinatorv1.GroupPartition) {
	ends := s.leaders.Ends(ctx, len(partitions), func(i int) (string, int32) {
		return partitions[i].GetTopic(), partitions[i].GetPartition()
	})
	for i, p := range partitions {
		if err := ends[i].Err; err != nil {
			p.Failure = rpcerr.AsFailure(err)
			continue
		}
		p.LogEndOffset = proto.Int64(ends[i].End)
		if p.CommittedOffset != nil {
			p.Lag = proto.Int64(ends[i].Lag(p.GetCommittedOffset()))
		}
	}
}
