package server

import (
	"context"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/coordinator/internal/groups"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// Join implements coordinatorv1connect.GroupServiceHandler.
func (s *Server) Join(ctx context.Context, req *coordinatorv1.JoinRequest, stream coordinatorv1connect.GroupServiceJoinServerStream) error {
	if err := s.streams.Enter(); err != nil {
		return err
	}
	defer s.streams.Leave()
	s.joined.Inc()
	defer s.joined.Dec()
	group := req.GetGroup()
	assignments, err := s.join(ctx, req, stream)
	if err != nil {
		return err
	}
	defer assignments.Close()
	for {
		// Members without news are parked here, thousands of them: what is on the stack or
		// reached from it, which the request is not any more, counts.
		select {
		case <-assignments.C():
		case <-s.drain.C():
			// Who has been given to another coordinator is told so.
			if _, err := assignments.Take(); err != nil {
				return s.translate(group, err)
			}
			return s.drain.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
		assignment, err := assignments.Take()
		if err != nil {
			return s.translate(group, err)
		}
		if assignment == nil {
			continue
		}
		if err := stream.Send(s.joinResponse(assignment)); err != nil {
			return err
		}
	}
}

// join makes a member of who asks, and returns what it is to be told.
func (s *Server) join(ctx context.Context, req *coordinatorv1.JoinRequest, stream coordinatorv1connect.GroupServiceJoinServerStream) (*groups.Stream, error) {
	join, err := s.checkJoin(req)
	if err != nil {
		return nil, err
	}
	join.ClientHost = clientHost(ctx)
	index, err := s.find(ctx, req.GetGroup())
	if err != nil {
		return nil, err
	}
	// The headers tell the client that it is being served, even if the group is still
	// being loaded.
	if err := stream.SendHeaders(); err != nil {
		return nil, err
	}
	assignments, err := s.host.Join(ctx, index, join)
	if err != nil {
		return nil, s.translate(req.GetGroup(), err)
	}
	return assignments, nil
}

// checkJoin reads a request, with defaults in place of what it leaves open.
func (s *Server) checkJoin(req *coordinatorv1.JoinRequest) (*rules.Join, error) {
	if err := checkGroup(req.GetGroup()); err != nil {
		return nil, err
	}
	for _, name := range []struct{ field, value string }{
		{"member_id", req.GetMemberId()}, {"instance_id", req.GetInstanceId()}, {"client_id", req.GetClientId()},
	} {
		if err := checkName(name.field, name.value); err != nil {
			return nil, err
		}
	}
	if req.GetMemberEpoch() < 0 {
		return nil, invalid("member_epoch is %d, must be 0 to become a member, or the epoch of the member's assignment", req.GetMemberEpoch())
	}
	member := req.GetMemberId()
	if member == "" {
		if req.GetMemberEpoch() > 0 {
			return nil, invalid("member_epoch is %d but member_id is empty: name the member whose stream is to be taken up, or send no epoch", req.GetMemberEpoch())
		}
		member = uuid.NewString()
	}
	subscription, err := checkSubscription(req.GetSubscription())
	if err != nil {
		return nil, err
	}
	assignor := rules.Assignor(req.GetAssignor())
	switch assignor {
	case "":
		assignor = rules.Sticky
	case rules.Range, rules.RoundRobin, rules.Sticky:
	default:
		return nil, invalid("assignor is %q, must be %q, %q or %q, or empty for %[4]q", assignor, rules.Range, rules.RoundRobin, rules.Sticky)
	}
	least, most := s.config.MinSessionTimeout, s.config.MaxSessionTimeout
	session, err := duration("session_timeout_ms", req.GetSessionTimeoutMs(), min(max(defaultSession, least), most), least, most)
	if err != nil {
		return nil, err
	}
	rebalance, err := duration("rebalance_timeout_ms", req.GetRebalanceTimeoutMs(), defaultRebalance, leastRebalance, mostRebalance)
	if err != nil {
		return nil, err
	}
	return &rules.Join{
		Group: rules.GroupID(req.GetGroup()), Member: rules.MemberID(member), Epoch: rules.Epoch(req.GetMemberEpoch()),
		Instance: req.GetInstanceId(), ClientID: req.GetClientId(),
		Subscription: subscription, Assignor: assignor, SessionTimeout: session, RebalanceTimeout: rebalance,
	}, nil
}

func checkName(field, value string) error {
	if len(value) > maxNameBytes {
		return invalid("%s has %d bytes, must have at most %d", field, len(value), maxNameBytes)
	}
	if !isText(value) {
		return invalid("%s %q is not UTF-8 or has control characters", field, value)
	}
	return nil
}

// duration reads milliseconds; 0 stands for fallback.
func duration(field string, ms int32, fallback, least, most time.Duration) (time.Duration, error) {
	if ms == 0 {
		return fallback, nil
	}
	d := time.Duration(ms) * time.Millisecond
	if d < least || d > most {
		return 0, invalid("%s is %d, must be %d to %d on this coordinator, or 0 for %d", field, ms, least.Milliseconds(), most.Milliseconds(), fallback.Milliseconds())
	}
	return d, nil
}

// checkSubscription reads what a member wants to read.
func checkSubscription(in *coordinatorv1.Subscription) (out rules.Subscription, _ error) {
	bad := func(format string, args ...any) error {
		return rpcerr.New(errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, format, args...)
	}
	pattern := in.GetTopicPattern()
	switch n := len(in.GetTopics()); {
	case n == 0 && pattern == "":
		return out, bad("the subscription is empty; name topics, or give a regular expression for their names")
	case n > maxTopics:
		return out, bad("the subscription names %d topics, must name at most %d; use a regular expression", n, maxTopics)
	case len(pattern) > maxPatternBytes:
		return out, bad("topic_pattern has %d bytes, must have at most %d", len(pattern), maxPatternBytes)
	}
	for _, topic := range in.GetTopics() {
		if topic == "" || len(topic) > 249 || strings.ContainsFunc(topic, notInTopicName) {
			return out, bad("the subscription names %q, and no topic can be called so: names are 1 to 249 of letters, digits, '.', '_' and '-'", topic)
		}
	}
	if _, err := regexp.Compile(pattern); err != nil {
		return out, bad("topic_pattern is no regular expression in RE2 syntax: %v", err)
	}
	out.Topics = slices.Compact(slices.Sorted(slices.Values(in.GetTopics())))
	out.Pattern = pattern
	return out, nil
}

func notInTopicName(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
}

// clientHost returns from where a call came, without its port; empty in the process.
func clientHost(ctx context.Context) string {
	info, ok := connect.CallInfoForServerContext(ctx)
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(info.PeerAddr)
	if err != nil {
		return info.PeerAddr
	}
	return host
}

func (s *Server) joinResponse(a *rules.Assignment) *coordinatorv1.JoinResponse {
	return &coordinatorv1.JoinResponse{
		MemberId:            string(a.Member),
		MemberEpoch:         int64(a.Epoch),
		Partitions:          s.topicPartitions(partitionsOf(a.Partitions)),
		HeartbeatIntervalMs: int32(a.HeartbeatInterval.Milliseconds()),
		SessionTimeoutMs:    int32(a.SessionTimeout.Milliseconds()),
		Assignor:            string(a.Assignor),
		AwaitedCount:        int32(a.Awaited),
		MissingTopics:       a.Missing,
		MemberCount:         int32(a.Members),
		PartitionCount:      int32(a.GroupPartitions),
		AddedPartitions:     s.topicPartitions(a.Added),
	}
}

func partitionsOf(owned []rules.Owned) []rules.Partition {
	out := make([]rules.Partition, len(owned))
	for i, o := range owned {
		out[i] = o.Partition
	}
	return out
}

// topicPartitions gathers partitions by topic, in the order of names. What belongs to
// a topic that was deleted meanwhile is left out: there is nothing of it to read.
func (s *Server) topicPartitions(partitions []rules.Partition) []*coordinatorv1.TopicPartitions {
	image := s.view.Image()
	var out []*coordinatorv1.TopicPartitions
	sets := make(map[cluster.TopicID]*coordinatorv1.TopicPartitions)
	for _, p := range partitions {
		set := sets[p.Topic]
		if set == nil {
			topic, ok := image.TopicByID(p.Topic)
			if !ok {
				continue
			}
			set = &coordinatorv1.TopicPartitions{Topic: topic.Name, TopicId: topic.ID[:]}
			sets[p.Topic], out = set, append(out, set)
		}
		set.Partitions = append(set.Partitions, p.Index)
	}
	for _, set := range out {
		slices.Sort(set.Partitions)
	}
	slices.SortFunc(out, func(a, b *coordinatorv1.TopicPartitions) int { return strings.Compare(a.GetTopic(), b.GetTopic()) })
	return out
}
