package runnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// GroupState is where a consumer group stands.
type GroupState int8

const (
	// GroupEmpty is a group without members; it may have offsets.
	GroupEmpty GroupState = iota + 1
	// GroupReconciling is a group whose members have yet to give up or to receive
	// partitions.
	GroupReconciling
	// GroupStable is a group whose members have what they are to have.
	GroupStable
)

// String returns the state in one word.
func (s GroupState) String() string {
	switch s {
	case GroupEmpty:
		return "empty"
	case GroupReconciling:
		return "reconciling"
	case GroupStable:
		return "stable"
	}
	return "unknown"
}

// Group is a consumer group in a list.
type Group struct {
	ID    string
	State GroupState
	// Members is how many it has.
	Members int
	// Coordinator is the node that looks after it.
	Coordinator int32
}

// GroupDescription is all about a consumer group.
type GroupDescription struct {
	ID    string
	State GroupState
	// Epoch grows with each change of members, subscriptions or assignments.
	Epoch int64
	// Assignor is how the group shares partitions out; empty without members.
	Assignor string
	// Coordinator is the node that looks after the group, CoordinatorAddress where
	// clients reach it.
	Coordinator        int32
	CoordinatorAddress string
	// Members in ascending order of their ids.
	Members []GroupMember
	// Partitions that the group has, is to have or has an offset of, in the order of
	// topics' names and partitions.
	Partitions []GroupPartition
}

// GroupMember is a member of a consumer group.
type GroupMember struct {
	ID string
	// InstanceID is the name of a static member; empty for others.
	InstanceID string
	// ClientID is what the program calls itself, Host the address from which it
	// joined.
	ClientID, Host string
	// Epoch is that of its newest assignment.
	Epoch int64
	// Topics and TopicPattern are what it is subscribed to.
	Topics       []string
	TopicPattern string
	// Assigned is what it reads, Revoking what it was told to give up and has not
	// confirmed to have, Awaited what is meant for it and not yet free.
	Assigned, Revoking, Awaited []TopicPartition
	// Assignor is how it wants partitions to be shared out.
	Assignor string
	// Idle is the time since its last heartbeat.
	Idle time.Duration
	// Fenced says that its heartbeats are refused, since it did not give partitions up
	// in time.
	Fenced bool
}

// GroupPartition is how far a group has come in a partition.
type GroupPartition struct {
	TopicPartition
	// Committed is the offset of the next record to read, -1 where the group has none.
	Committed int64
	// End is the high watermark, -1 where it is not known; Err says why.
	End int64
	// Lag is how many records are left to read, -1 where Committed or End is. Where the
	// committed offset is no longer in the partition it counts from its first.
	Lag int64
	// Member has the partition; empty where none does.
	Member string
	// Metadata is what was said with the commit, CommittedAt when it was made, zero where
	// there is none.
	Metadata    string
	CommittedAt time.Time
	Err         error
}

// atCoordinator makes a call to the coordinator of a group, and again while it fails
// with an error of which again says so.
func (a *Admin) atCoordinator(ctx context.Context, group string, again func(error) bool, do func(ctx context.Context, address string) error) error {
	return newCoordinator(a.client, group).call(ctx, patiently(ctx, again), do)
}

// patiently limits again until ctx ends, or, for want of a deadline, until callTimeout
// is over. That nobody can be reached is told at once.
func patiently(ctx context.Context, again func(error) bool) func(error) bool {
	_, bounded := ctx.Deadline()
	begun := time.Now()
	return func(err error) bool {
		_, nobody := errors.AsType[*BootstrapError](err)
		return !nobody && again(err) && (bounded || time.Since(begun) < callTimeout)
	}
}

// ListGroups returns the groups of all coordinators in ascending order of their ids:
// those in one of the states, or all if no state is named. Where some cannot be listed
// the others are returned together with an error.
func (a *Admin) ListGroups(ctx context.Context, states ...GroupState) ([]Group, error) {
	request := &coordinatorv1.ListGroupsRequest{}
	for _, s := range states {
		request.States = append(request.States, coordinatorv1.GroupState(s))
	}
	image, err := a.client.view.fresh(ctx)
	if err != nil {
		return nil, err
	}
	again := patiently(ctx, notFatal)
	var pause backoff
	for {
		groups, failure := a.listGroups(ctx, image, request)
		if ctx.Err() != nil {
			return groups, context.Cause(ctx)
		}
		listed := image
		if err := a.client.view.refresh(ctx, image); err != nil {
			return groups, cmp.Or(failure, err)
		}
		image = a.client.view.image()
		// Of a group that has moved meanwhile nobody may have told.
		if failure == nil && !slices.EqualFunc(offsetsPartitions(listed), offsetsPartitions(image), sameCoordinator) {
			failure = newError(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE, "groups have moved to other coordinators while they were listed; list them again")
		}
		if failure == nil || !again(failure) {
			return groups, failure
		}
		if err := sleep(ctx, pause.next()); err != nil {
			return groups, fmt.Errorf("%w: %w", err, failure)
		}
	}
}

// offsetsPartitions returns the partitions of the offsets topic; none while there is no
// such topic.
func offsetsPartitions(image *cluster.Image) []cluster.Partition {
	topic, ok := image.Topic(cluster.OffsetsTopic)
	if !ok {
		return nil
	}
	return topic.Partitions
}

func sameCoordinator(a, b cluster.Partition) bool {
	return a.Coordinator == b.Coordinator && a.CoordinatorEpoch == b.CoordinatorEpoch
}

// listGroups asks all coordinators at once. The first error is that of the lowest node
// id, so that repetitions look alike.
func (a *Admin) listGroups(ctx context.Context, image *cluster.Image, request *coordinatorv1.ListGroupsRequest) ([]Group, error) {
	nobodys := 0
	var nodes []cluster.NodeID
	for _, p := range offsetsPartitions(image) {
		switch {
		case p.Coordinator == cluster.NoNode:
			nobodys++
		case !slices.Contains(nodes, p.Coordinator):
			nodes = append(nodes, p.Coordinator)
		}
	}
	slices.Sort(nodes)
	lists, errs := make([][]Group, len(nodes)), make([]error, len(nodes)+1)
	var wait sync.WaitGroup
	for i, id := range nodes {
		wait.Go(func() { lists[i], errs[i] = a.listGroupsOf(ctx, image, id, request) })
	}
	wait.Wait()
	if nobodys > 0 {
		errs[len(nodes)] = newError(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE,
			"%d partitions of %s have no coordinator, and their groups are not listed; start one (`runnel coordinator`)", nobodys, cluster.OffsetsTopic)
	}
	groups := slices.Concat(lists...)
	slices.SortFunc(groups, func(a, b Group) int { return cmp.Compare(a.ID, b.ID) })
	return groups, errors.Join(errs...)
}

// listGroupsOf asks one coordinator.
func (a *Admin) listGroupsOf(ctx context.Context, image *cluster.Image, id cluster.NodeID, request *coordinatorv1.ListGroupsRequest) ([]Group, error) {
	node, ok := image.Node(id)
	if !ok || node.Address == "" {
		return nil, newError(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE, "coordinator %d has no address, and its groups are not listed", id)
	}
	response, err := call(ctx, node.Address, a.client.groups(node.Address).ListGroups, request)
	if err != nil {
		return nil, err
	}
	var groups []Group
	for _, g := range response.GetGroups() {
		groups = append(groups, Group{ID: g.GetGroup(), State: GroupState(g.GetState()), Members: int(g.GetMemberCount()), Coordinator: g.GetCoordinatorId()})
	}
	if n := response.GetLoadingPartitions(); n > 0 {
		err = newError(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE,
			"coordinator %d has yet to load %d partitions of %s, and their groups are not listed; try again", id, n, cluster.OffsetsTopic)
	}
	return groups, err
}

// DescribeGroup returns all about a group, with the lag in each of its partitions.
func (a *Admin) DescribeGroup(ctx context.Context, group string) (GroupDescription, error) {
	var d GroupDescription
	err := a.atCoordinator(ctx, group, notFatal, func(ctx context.Context, address string) error {
		response, err := call(ctx, address, a.client.groups(address).DescribeGroup, &coordinatorv1.DescribeGroupRequest{Group: group})
		if err != nil {
			return err
		}
		d = newGroupDescription(response)
		return nil
	})
	return d, err
}

// DeleteGroup makes the cluster forget a group without members, and all its offsets.
func (a *Admin) DeleteGroup(ctx context.Context, group string) error {
	return a.atCoordinator(ctx, group, IsRetriable, func(ctx context.Context, address string) error {
		_, err := call(ctx, address, a.client.groups(address).DeleteGroup, &coordinatorv1.DeleteGroupRequest{Group: group})
		return err
	})
}

func newGroupDescription(r *coordinatorv1.DescribeGroupResponse) GroupDescription {
	d := GroupDescription{
		ID: r.GetGroup(), State: GroupState(r.GetState()), Epoch: r.GetGroupEpoch(), Assignor: r.GetAssignor(),
		Coordinator: r.GetCoordinatorId(), CoordinatorAddress: r.GetCoordinatorAddress(),
	}
	for _, m := range r.GetMembers() {
		d.Members = append(d.Members, GroupMember{
			ID: m.GetMemberId(), InstanceID: m.GetInstanceId(), ClientID: m.GetClientId(), Host: m.GetClientHost(), Epoch: m.GetMemberEpoch(),
			Topics: m.GetSubscription().GetTopics(), TopicPattern: m.GetSubscription().GetTopicPattern(),
			Assigned: flatten(m.GetPartitions()), Revoking: flatten(m.GetRevoking()), Awaited: flatten(m.GetAwaited()),
			Assignor: m.GetAssignor(), Idle: time.Duration(m.GetIdleMs()) * time.Millisecond, Fenced: m.GetFenced(),
		})
	}
	for _, p := range r.GetPartitions() {
		g := GroupPartition{
			TopicPartition: TopicPartition{Topic: p.GetTopic(), Partition: p.GetPartition()},
			Committed:      valueOr(p.CommittedOffset, -1), End: valueOr(p.LogEndOffset, -1), Lag: valueOr(p.Lag, -1),
			Member: p.GetMemberId(), Metadata: p.GetMetadata(),
		}
		if p.GetCommittedAt() != nil {
			g.CommittedAt = p.GetCommittedAt().AsTime()
		}
		if failure := p.GetFailure(); failure != nil {
			g.Err = failureError(failure)
		}
		d.Partitions = append(d.Partitions, g)
	}
	return d
}

// flatten lists partitions one by one.
func flatten(sets []*coordinatorv1.TopicPartitions) []TopicPartition {
	var all []TopicPartition
	for _, s := range sets {
		for _, p := range s.GetPartitions() {
			all = append(all, TopicPartition{Topic: s.GetTopic(), Partition: p})
		}
	}
	return all
}

// valueOr returns what an optional field has, or else absent.
func valueOr[T any](field *T, absent T) T {
	if field == nil {
		return absent
	}
	return *field
}
