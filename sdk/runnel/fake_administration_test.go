package runnel

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// fakeAdministration is the part of a coordinator that administers groups: it routes by
// the cluster's state, and answers from its script.
type fakeAdministration struct {
	coordinatorv1connect.UnimplementedGroupServiceHandler
	coordinatorv1connect.UnimplementedOffsetServiceHandler
	node *fakeNode

	// All that follows is guarded by the cluster's mu.

	// groups are those of the coordinator, whoever coordinates what.
	groups []*coordinatorv1.GroupSummary
	// loading is how many calls of ListGroups find a partition that is not loaded.
	loading int
	// onList is called before each answer to ListGroups; nil for nothing.
	onList func()
	// failures are answered first, in their order.
	failures []*errorsv1.Failure
	// requests are what was answered, in its order.
	requests []proto.Message

	describe *coordinatorv1.DescribeGroupResponse
	commit   *coordinatorv1.CommitOffsetsResponse
	fetch    *coordinatorv1.FetchOffsetsResponse
	reset    *coordinatorv1.ResetOffsetsResponse
	forget   *coordinatorv1.DeleteOffsetsResponse
}

// addAdministrations adds so many coordinators, "coordinator-N:1", after the nodes that
// there are.
func (c *fakeCluster) addAdministrations(n int) []*fakeAdministration {
	var all []*fakeAdministration
	c.change(func() {
		for range n {
			id := int32(len(c.nodes) + 1)
			node := &fakeNode{
				cluster: c, id: id, role: metadatav1.NodeRole_NODE_ROLE_COORDINATOR, address: fmt.Sprintf("coordinator-%d:1", id),
				server: connect.NewServer(), calls: make(map[*fakeStream]struct{}),
			}
			a := &fakeAdministration{node: node}
			metadatav1connect.RegisterClusterServiceHandler(node.server, fakeClusterService{node})
			coordinatorv1connect.RegisterGroupServiceHandler(node.server, a)
			coordinatorv1connect.RegisterOffsetServiceHandler(node.server, a)
			c.nodes = append(c.nodes, node)
			all = append(all, a)
		}
	})
	return all
}

// coordinate gives the partitions of the offsets topic to coordinators, and tells
// watchers if announce is set.
func (c *fakeCluster) coordinate(announce bool, coordinators ...int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, id := range coordinators {
		p := c.topics[cluster.OffsetsTopic].partitions[i]
		p.coordinator = id
		p.coordinatorEpoch++
	}
	if announce {
		c.changedLocked()
	}
}

// answer notes a request about a group, and returns why it is refused.
func (a *fakeAdministration) answer(group string, request proto.Message) error {
	c := a.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(a.failures) > 0 {
		failure := a.failures[0]
		a.failures = a.failures[1:]
		return statusError(failure)
	}
	if topic := c.topics[cluster.OffsetsTopic]; group != "" && topic != nil {
		p := topic.partitions[cluster.PartitionForKey([]byte(group), len(topic.partitions))]
		if p.coordinator != a.node.id {
			failure := failureOf(errorsv1.Reason_REASON_NOT_COORDINATOR)
			detail := &errorsv1.NotCoordinator{Group: group, CoordinatorId: p.coordinator}
			if p.coordinator > 0 {
				detail.CoordinatorAddress = c.node(p.coordinator).address
			}
			failure.Detail = &errorsv1.Failure_NotCoordinator{NotCoordinator: detail}
			return statusError(failure)
		}
	}
	a.requests = append(a.requests, request)
	return nil
}

// last returns the request that was answered last, and how many were.
func (a *fakeAdministration) last() (proto.Message, int) {
	a.node.cluster.mu.Lock()
	defer a.node.cluster.mu.Unlock()
	if len(a.requests) == 0 {
		return nil, 0
	}
	return a.requests[len(a.requests)-1], len(a.requests)
}

func (a *fakeAdministration) ListGroups(_ context.Context, request *coordinatorv1.ListGroupsRequest) (*coordinatorv1.ListGroupsResponse, error) {
	if err := a.answer("", request); err != nil {
		return nil, err
	}
	c := a.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	response := &coordinatorv1.ListGroupsResponse{}
	if a.onList != nil {
		a.onList()
	}
	if a.loading > 0 {
		a.loading--
		response.LoadingPartitions = 1
	}
	for _, g := range a.groups {
		if len(request.GetStates()) == 0 || slices.Contains(request.GetStates(), g.GetState()) {
			response.Groups = append(response.Groups, g)
		}
	}
	return response, nil
}

func (a *fakeAdministration) DescribeGroup(_ context.Context, request *coordinatorv1.DescribeGroupRequest) (*coordinatorv1.DescribeGroupResponse, error) {
	return a.describe, a.answer(request.GetGroup(), request)
}

func (a *fakeAdministration) DeleteGroup(_ context.Context, request *coordinatorv1.DeleteGroupRequest) (*coordinatorv1.DeleteGroupResponse, error) {
	return &coordinatorv1.DeleteGroupResponse{}, a.answer(request.GetGroup(), request)
}

func (a *fakeAdministration) CommitOffsets(_ context.Context, request *coordinatorv1.CommitOffsetsRequest) (*coordinatorv1.CommitOffsetsResponse, error) {
	return a.commit, a.answer(request.GetGroup(), request)
}

func (a *fakeAdministration) FetchOffsets(_ context.Context, request *coordinatorv1.FetchOffsetsRequest) (*coordinatorv1.FetchOffsetsResponse, error) {
	return a.fetch, a.answer(request.GetGroup(), request)
}

func (a *fakeAdministration) ResetOffsets(_ context.Context, request *coordinatorv1.ResetOffsetsRequest) (*coordinatorv1.ResetOffsetsResponse, error) {
	return a.reset, a.answer(request.GetGroup(), request)
}

func (a *fakeAdministration) DeleteOffsets(_ context.Context, request *coordinatorv1.DeleteOffsetsRequest) (*coordinatorv1.DeleteOffsetsResponse, error) {
	return a.forget, a.answer(request.GetGroup(), request)
}
