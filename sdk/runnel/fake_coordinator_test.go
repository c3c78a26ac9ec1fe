package runnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// fakeGroups is what coordinators know of groups, which is in the log and so survives
// each of them. It keeps the rules of the public API: a partition goes on to another
// member once the one that had it has confirmed an assignment without it, or its session
// is over; a commit counts if its member has the partition under its epoch, and the log
// reaches that far. Guarded by
// the cluster's mu, but for the scripts.
type fakeGroups struct {
	cluster *fakeCluster
	groups  map[string]*fakeGroup
	// limit is how many members a group may have; 0 for any number.
	limit    int
	interval time.Duration

	// The scripts may make a call fail, before it is carried out or, with appended,
	// after. Set them before use; nil lets all pass.
	onJoin      func(*coordinatorv1.JoinRequest) fault
	onHeartbeat func(*coordinatorv1.HeartbeatRequest) fault
	onCommit    func(*coordinatorv1.CommitOffsetsRequest) fault
	// refuse makes commits of single partitions fail; nil lets all pass. Guarded by the
	// cluster's mu.
	refuse func(TopicPartition) *errorsv1.Failure

	// added are partitions that came into being while groups were subscribed. Guarded by
	// the cluster's mu.
	added map[TopicPartition]bool

	// streamless are coordinators of a version without streams of commits. Guarded by the
	// cluster's mu.
	streamless bool

	// events tells what was carried out, members by what their programs call themselves.
	events []string
	// joins counts the streams.
	joins int
	// streams counts the streams of commits of each node that began, streaming those that
	// have not ended, and refused those that it does not know. streamed counts the commits
	// that came over them.
	streams, streaming, refused map[int32]int
	streamed                    int
}

type fakeGroup struct {
	epoch   int64
	members []*fakeMember
	offsets map[TopicPartition]*coordinatorv1.CommittedOffset
	// replaced has the members whose instance ids others have taken up.
	replaced map[string]bool
}

// gone is why a member is none any more.
func (g *fakeGroup) gone(id string) error {
	if g.replaced[id] {
		return statusError(failureOf(errorsv1.Reason_REASON_INSTANCE_FENCED))
	}
	return statusError(failureOf(errorsv1.Reason_REASON_UNKNOWN_MEMBER))
}

type fakeMember struct {
	id, name, instance string
	topics             []string
	timeout            time.Duration
	// epoch is that of the newest assignment, confirmed the newest that is followed.
	epoch, confirmed int64
	// assigned has the epoch under which each partition was given, revoking that under
	// which it was taken away.
	assigned, revoking map[TopicPartition]int64
	heard              time.Time
	// stream counts the streams of the member: only the newest gets assignments.
	stream int
}

// addCoordinators adds the offsets topic and so many coordinators, "coordinator-N:1",
// the first of which has all groups.
func (c *fakeCluster) addCoordinators(n int) *fakeGroups {
	g := &fakeGroups{
		cluster: c, groups: make(map[string]*fakeGroup), interval: 5 * time.Second,
		streams: make(map[int32]int), streaming: make(map[int32]int), refused: make(map[int32]int),
	}
	c.createTopic(cluster.OffsetsTopic, 1)
	var first int32
	c.change(func() {
		for range n {
			id := int32(len(c.nodes) + 1)
			node := &fakeNode{
				cluster: c, id: id, role: metadatav1.NodeRole_NODE_ROLE_COORDINATOR, address: fmt.Sprintf("coordinator-%d:1", id),
				server: connect.NewServer(), calls: make(map[*fakeStream]struct{}),
			}
			service := fakeCoordinator{node: node, groups: g}
			metadatav1connect.RegisterClusterServiceHandler(node.server, fakeClusterService{node})
			coordinatorv1connect.RegisterGroupServiceHandler(node.server, service)
			coordinatorv1connect.RegisterOffsetServiceHandler(node.server, service)
			c.nodes = append(c.nodes, node)
			first = cmp.Or(first, id)
		}
	})
	c.coordinate(true, first)
	return g
}

// member returns a consumer of a group, whose program calls itself name.
func (c *fakeCluster) member(t testing.TB, name string, options ...ConsumerOption) *Consumer {
	t.Helper()
	client, err := Config{Bootstrap: []string{"meta:1"}, Transports: c, ClientID: name}.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("closing %s: %v", name, err)
		}
	})
	consumer, err := client.NewConsumer(append([]ConsumerOption{WithGroup("g"), WithReset(ResetEarliest)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	return consumer
}

// committed returns the group's offset of a partition, -1 without one.
func (g *fakeGroups) committed(tp TopicPartition) int64 {
	g.cluster.mu.Lock()
	defer g.cluster.mu.Unlock()
	if o := g.group("g").offsets[tp]; o != nil {
		return o.GetOffset()
	}
	return -1
}

// refusing makes commits of single partitions fail from now on.
func (g *fakeGroups) refusing(refuse func(TopicPartition) *errorsv1.Failure) {
	g.cluster.mu.Lock()
	defer g.cluster.mu.Unlock()
	g.refuse = refuse
}

// history returns the events so far.
func (g *fakeGroups) history() []string {
	g.cluster.mu.Lock()
	defer g.cluster.mu.Unlock()
	return slices.Clone(g.events)
}

func (g *fakeGroups) group(name string) *fakeGroup {
	group := g.groups[name]
	if group == nil {
		group = &fakeGroup{offsets: make(map[TopicPartition]*coordinatorv1.CommittedOffset), replaced: make(map[string]bool)}
		g.groups[name] = group
	}
	return group
}

func (g *fakeGroup) member(id string) *fakeMember {
	for _, m := range g.members {
		if m.id == id {
			return m
		}
	}
	return nil
}

func (g *fakeGroups) remove(group *fakeGroup, m *fakeMember) {
	group.members = slices.DeleteFunc(group.members, func(other *fakeMember) bool { return other == m })
	g.rebalance(group)
}

// expire removes the members that were not heard.
func (g *fakeGroups) expire(group *fakeGroup) {
	for _, m := range slices.Clone(group.members) {
		if time.Since(m.heard) >= m.timeout {
			g.events = append(g.events, "expire "+m.name)
			g.remove(group, m)
		}
	}
}

// rebalance gives each member its share, as far as partitions are free.
func (g *fakeGroups) rebalance(group *fakeGroup) {
	c := g.cluster
	free := make(map[TopicPartition]bool)
	for name, topic := range c.topics {
		for _, m := range group.members {
			if slices.Contains(m.topics, name) {
				for i := range topic.partitions {
					free[TopicPartition{Topic: name, Partition: int32(i)}] = true
				}
			}
		}
	}
	total := len(free)
	changed := make(map[*fakeMember]bool)
	share := func(i int) int {
		if i < total%len(group.members) {
			return total/len(group.members) + 1
		}
		return total / len(group.members)
	}
	for i, m := range group.members {
		for _, tp := range sorted(m.assigned) {
			if !free[tp] || len(m.assigned) > share(i) {
				delete(m.assigned, tp)
				m.revoking[tp] = 0
				changed[m] = true
			}
			delete(free, tp)
		}
		for tp := range m.revoking {
			delete(free, tp)
		}
	}
	for i, m := range group.members {
		for _, tp := range sorted(free) {
			if len(m.assigned) < share(i) {
				m.assigned[tp] = 0
				delete(free, tp)
				changed[m] = true
			}
		}
	}
	for _, m := range group.members {
		if !changed[m] && m.epoch > 0 {
			continue
		}
		group.epoch++
		m.epoch = group.epoch
		for _, set := range []map[TopicPartition]int64{m.assigned, m.revoking} {
			for tp, epoch := range set {
				if epoch == 0 {
					set[tp] = m.epoch
				}
			}
		}
	}
	c.appendedLocked()
}

func sorted[V any](set map[TopicPartition]V) []TopicPartition {
	return slices.SortedFunc(maps.Keys(set), func(a, b TopicPartition) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
}

type fakeCoordinator struct {
	coordinatorv1connect.UnimplementedGroupServiceHandler
	coordinatorv1connect.UnimplementedOffsetServiceHandler
	node   *fakeNode
	groups *fakeGroups
}

// play does what a script says, and returns the error to answer; the node's connections
// are gone if cut.
func (s fakeCoordinator) play(ctx context.Context, f fault) error {
	if f.delay > 0 {
		_ = sleep(ctx, f.delay)
	}
	if f.wait != nil {
		select {
		case <-f.wait:
		case <-ctx.Done():
		}
	}
	if f.cut {
		go s.node.cut()
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if f.failure != nil {
		return statusError(f.failure)
	}
	return nil
}

// refuseLocked refuses what another coordinator has to answer.
func (s fakeCoordinator) refuseLocked() error {
	p := s.node.cluster.topics[cluster.OffsetsTopic].partitions[0]
	if p.coordinator == s.node.id {
		return nil
	}
	failure := failureOf(errorsv1.Reason_REASON_NOT_COORDINATOR)
	detail := &errorsv1.NotCoordinator{CoordinatorId: p.coordinator}
	if p.coordinator > 0 {
		detail.CoordinatorAddress = s.node.cluster.node(p.coordinator).address
	}
	failure.Detail = &errorsv1.Failure_NotCoordinator{NotCoordinator: detail}
	return statusError(failure)
}

func (s fakeCoordinator) Join(ctx context.Context, request *coordinatorv1.JoinRequest, stream coordinatorv1connect.GroupServiceJoinServerStream) error {
	g, c := s.groups, s.node.cluster
	if g.onJoin != nil {
		if err := s.play(ctx, g.onJoin(request)); err != nil {
			return err
		}
	}
	c.mu.Lock()
	if err := s.refuseLocked(); err != nil {
		c.mu.Unlock()
		return err
	}
	group := g.group(request.GetGroup())
	g.expire(group)
	m := group.member(request.GetMemberId())
	refusal := errorsv1.Reason_REASON_UNSPECIFIED
	switch {
	case request.GetMemberEpoch() > 0 && m == nil:
		refusal = errorsv1.Reason_REASON_UNKNOWN_MEMBER
	case m == nil && g.limit > 0 && len(group.members) >= g.limit:
		refusal = errorsv1.Reason_REASON_GROUP_FULL
	case m == nil || request.GetMemberEpoch() == 0:
		for _, other := range slices.Clone(group.members) {
			if other == m || request.GetInstanceId() != "" && other.instance == request.GetInstanceId() {
				group.replaced[other.id] = other != m
				g.remove(group, other)
			}
		}
		m = &fakeMember{
			id: request.GetMemberId(), name: request.GetClientId(), instance: request.GetInstanceId(),
			timeout:  time.Duration(request.GetSessionTimeoutMs()) * time.Millisecond,
			assigned: make(map[TopicPartition]int64), revoking: make(map[TopicPartition]int64),
		}
		group.members = append(group.members, m)
		g.events = append(g.events, "join "+m.name)
		m.heard = time.Now()
	}
	if refusal != errorsv1.Reason_REASON_UNSPECIFIED {
		c.mu.Unlock()
		return statusError(failureOf(refusal))
	}
	m.topics = request.GetSubscription().GetTopics()
	m.stream++
	g.joins++
	number := m.stream
	g.rebalance(group)
	c.mu.Unlock()

	var sent int64
	for {
		c.mu.Lock()
		changed := c.changed
		var response *coordinatorv1.JoinResponse
		err := s.refuseLocked()
		switch {
		case err != nil:
		case group.member(m.id) != m:
			err = group.gone(m.id)
		case m.stream != number:
			err = statusError(failureOf(errorsv1.Reason_REASON_DRAINING))
		case m.epoch > sent:
			sent = m.epoch
			response = g.assignment(group, m)
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if response != nil {
			if err := stream.Send(response); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *fakeGroups) assignment(group *fakeGroup, m *fakeMember) *coordinatorv1.JoinResponse {
	response := &coordinatorv1.JoinResponse{
		MemberId: m.id, MemberEpoch: m.epoch, Assignor: "sticky", MemberCount: int32(len(group.members)),
		HeartbeatIntervalMs: int32(min(g.interval, m.timeout/3).Milliseconds()), SessionTimeoutMs: int32(m.timeout.Milliseconds()),
	}
	for _, name := range m.topics {
		topic := g.cluster.topics[name]
		if topic == nil {
			response.MissingTopics = append(response.MissingTopics, name)
			continue
		}
		response.PartitionCount += int32(len(topic.partitions))
		set := &coordinatorv1.TopicPartitions{Topic: name, TopicId: slices.Clone(topic.id[:])}
		for _, tp := range sorted(m.assigned) {
			if tp.Topic == name {
				set.Partitions = append(set.Partitions, tp.Partition)
			}
		}
		response.Partitions = append(response.Partitions, set)
	}
	for _, tp := range sorted(g.added) {
		if _, assigned := m.assigned[tp]; assigned {
			response.AddedPartitions = append(response.AddedPartitions, &coordinatorv1.TopicPartitions{Topic: tp.Topic, Partitions: []int32{tp.Partition}})
		}
	}
	return response
}

func (s fakeCoordinator) Heartbeat(ctx context.Context, request *coordinatorv1.HeartbeatRequest) (*coordinatorv1.HeartbeatResponse, error) {
	g, c := s.groups, s.node.cluster
	if g.onHeartbeat != nil {
		if err := s.play(ctx, g.onHeartbeat(request)); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.refuseLocked(); err != nil {
		return nil, err
	}
	group := g.group(request.GetGroup())
	g.expire(group)
	m := group.member(request.GetMemberId())
	if m == nil {
		return nil, group.gone(request.GetMemberId())
	}
	if request.GetMemberEpoch() > m.epoch || request.GetMemberEpoch() == 0 {
		return nil, statusError(failureOf(errorsv1.Reason_REASON_MEMBER_FENCED))
	}
	m.heard = time.Now()
	if request.GetMemberEpoch() > m.confirmed {
		m.confirmed = request.GetMemberEpoch()
		g.events = append(g.events, "confirm "+m.name)
		for tp, epoch := range m.revoking {
			if epoch <= m.confirmed {
				delete(m.revoking, tp)
			}
		}
		g.rebalance(group)
	}
	return &coordinatorv1.HeartbeatResponse{MemberEpoch: m.epoch, HeartbeatIntervalMs: int32(min(g.interval, m.timeout/3).Milliseconds())}, nil
}

func (s fakeCoordinator) Leave(_ context.Context, request *coordinatorv1.LeaveRequest) (*coordinatorv1.LeaveResponse, error) {
	g, c := s.groups, s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.refuseLocked(); err != nil {
		return nil, err
	}
	group := g.group(request.GetGroup())
	if m := group.member(request.GetMemberId()); m != nil {
		event := "leave " + m.name
		if request.GetKeepAssignment() {
			event += " for a while"
		}
		g.events = append(g.events, event)
		g.remove(group, m)
	}
	return &coordinatorv1.LeaveResponse{}, nil
}

func (s fakeCoordinator) CommitOffsets(ctx context.Context, request *coordinatorv1.CommitOffsetsRequest) (*coordinatorv1.CommitOffsetsResponse, error) {
	g, c := s.groups, s.node.cluster
	var f fault
	if g.onCommit != nil {
		f = g.onCommit(request)
	}
	if !f.appended {
		if err := s.play(ctx, f); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	if err := s.refuseLocked(); err != nil {
		c.mu.Unlock()
		return nil, err
	}
	group := g.group(request.GetGroup())
	g.expire(group)
	m := group.member(request.GetMemberId())
	if m == nil && (request.GetMemberId() != "" || len(group.members) > 0) {
		c.mu.Unlock()
		return nil, statusError(failureOf(errorsv1.Reason_REASON_UNKNOWN_MEMBER))
	}
	response := &coordinatorv1.CommitOffsetsResponse{}
	for _, o := range request.GetOffsets() {
		tp := TopicPartition{Topic: o.GetTopic(), Partition: o.GetPartition()}
		result := &coordinatorv1.OffsetCommitResult{Topic: tp.Topic, Partition: tp.Partition}
		response.Results = append(response.Results, result)
		name := "nobody"
		if m != nil {
			name = m.name
			since, assigned := m.assigned[tp]
			_, revoking := m.revoking[tp]
			if !assigned && !revoking {
				result.Failure = failureOf(errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED)
				continue
			}
			if assigned && (request.GetMemberEpoch() < since || request.GetMemberEpoch() > m.epoch) {
				result.Failure = failureOf(errorsv1.Reason_REASON_STALE_MEMBER_EPOCH)
				continue
			}
		}
		if g.refuse != nil {
			if result.Failure = g.refuse(tp); result.Failure != nil {
				continue
			}
		}
		topic := c.topics[tp.Topic]
		if o.GetOffset() > topic.partitions[tp.Partition].end {
			result.Failure = failureOf(errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE)
			continue
		}
		group.offsets[tp] = &coordinatorv1.CommittedOffset{
			Topic: tp.Topic, TopicId: slices.Clone(topic.id[:]), Partition: tp.Partition, Offset: o.GetOffset(), LeaderEpoch: o.LeaderEpoch, Metadata: o.GetMetadata(),
		}
		g.events = append(g.events, fmt.Sprintf("commit %s %s=%d", name, tp, o.GetOffset()))
	}
	c.mu.Unlock()
	if f.appended {
		if err := s.play(ctx, f); err != nil {
			return nil, err
		}
	}
	return response, nil
}

// CommitOffsetsStream carries commits out one after the other, while it takes in others.
func (s fakeCoordinator) CommitOffsetsStream(ctx context.Context, stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamServerStream) error {
	g, c := s.groups, s.node.cluster
	c.mu.Lock()
	if g.streamless {
		g.refused[s.node.id]++
		c.mu.Unlock()
		return s.UnimplementedOffsetServiceHandler.CommitOffsetsStream(ctx, stream)
	}
	g.streams[s.node.id]++
	g.streaming[s.node.id]++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		g.streaming[s.node.id]--
	}()
	requests := make(chan *coordinatorv1.CommitOffsetsStreamRequest, 256)
	go func() {
		defer close(requests)
		for {
			request, err := stream.Receive()
			if err != nil {
				return
			}
			requests <- request
		}
	}()
	for request := range requests {
		c.mu.Lock()
		g.streamed++
		c.mu.Unlock()
		response := &coordinatorv1.CommitOffsetsStreamResponse{RequestId: request.GetRequestId()}
		var err error
		response.Result, err = s.CommitOffsets(ctx, request.GetCommit())
		if err != nil {
			refusal, ok := errors.AsType[*Error](callError(ctx, s.node.address, err))
			if !ok || refusal.failure == nil {
				return err
			}
			response.Failure = refusal.failure
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s fakeCoordinator) FetchOffsets(_ context.Context, request *coordinatorv1.FetchOffsetsRequest) (*coordinatorv1.FetchOffsetsResponse, error) {
	g, c := s.groups, s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.refuseLocked(); err != nil {
		return nil, err
	}
	offsets := g.group(request.GetGroup()).offsets
	response := &coordinatorv1.FetchOffsetsResponse{}
	for _, tp := range sorted(offsets) {
		asked := len(request.GetPartitions()) == 0
		for _, set := range request.GetPartitions() {
			asked = asked || set.GetTopic() == tp.Topic && (len(set.GetPartitions()) == 0 || slices.Contains(set.GetPartitions(), tp.Partition))
		}
		if asked {
			response.Offsets = append(response.Offsets, offsets[tp])
		}
	}
	return response, nil
}
