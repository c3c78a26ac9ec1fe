package runnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

const (
	// changeTimeout is what a metadata node gets to change something: creating a
	// topic with thousands of partitions takes a while.
	changeTimeout = time.Minute
	// maxPositions is how many positions one call of ListOffsets may ask for,
	// maxDeletions the same for DeleteRecords.
	maxPositions = 10_000
	maxDeletions = 1_000
	topicsPage   = 1_000
)

// Admin looks at a cluster and changes its topics. It is safe for concurrent
// use, and needs no closing.
//
// Calls that failed without effect are repeated on other nodes until ctx ends,
// or, for want of a deadline, for 10 s. A change whose outcome is unknown is not
// made again: [Error.OutcomeUnknown] tells.
type Admin struct{ client *Client }

// Admin returns the client's administration.
func (c *Client) Admin() *Admin { return &Admin{client: c} }

// ClusterDescription is what a cluster looks like.
type ClusterDescription struct {
	// ID is a UUID given when the cluster was first started.
	ID string
	// Version of this state: greater with each change.
	Version int64
	// Controller is the metadata node that is controller, -1 while there is none.
	Controller int32
	// Nodes holds all registered nodes by their ids in ascending order.
	Nodes []Node
	// OffsetsPartitions is how many partitions the topic of consumer groups has, which
	// the coordinators share; 0 before the first group is used.
	OffsetsPartitions int
}

// Node is a registered service process.
type Node struct {
	ID int32
	// Role is metadata, storage or coordinator.
	Role    string
	Address string
	// Epoch grows with each start of the node.
	Epoch int64
	// Fenced says that the node has lost its lease, and leads nothing.
	Fenced bool
	// Since is when it became live or fenced.
	Since time.Time
	// Leaving says that its process is about to stop: others lead what it led, where
	// they can.
	Leaving bool
	// Coordinated is how many partitions of the topic of consumer groups it
	// coordinates; 0 for nodes of other roles.
	Coordinated int
}

// DescribeCluster returns the nodes and the controller as the first node that
// answers knows them.
func (a *Admin) DescribeCluster(ctx context.Context) (ClusterDescription, error) {
	failure := &BootstrapError{}
	for _, address := range a.client.view.addresses() {
		response, err := call(ctx, address, a.client.view.client(address).GetCluster, &metadatav1.GetClusterRequest{Topics: []string{cluster.OffsetsTopic}})
		if err == nil {
			return describeCluster(response.GetCluster())
		}
		if ctx.Err() != nil {
			return ClusterDescription{}, err
		}
		failure.Attempts = append(failure.Attempts, BootstrapAttempt{Address: address, Err: err})
	}
	return ClusterDescription{}, failure
}

func describeCluster(snapshot *metadatav1.ClusterSnapshot) (ClusterDescription, error) {
	image, err := cluster.FromSnapshot(snapshot)
	if err != nil {
		return ClusterDescription{}, newError(errorsv1.Reason_REASON_INTERNAL, "the description of the cluster makes no sense: %v", err)
	}
	d := ClusterDescription{
		ID:         cluster.TopicID(image.ClusterID).String(),
		Version:    image.Version,
		Controller: int32(image.Controller),
	}
	coordinated := make(map[cluster.NodeID]int)
	if topic, ok := image.Topic(cluster.OffsetsTopic); ok {
		d.OffsetsPartitions = len(topic.Partitions)
		for i := range topic.Partitions {
			coordinated[topic.Partitions[i].Coordinator]++
		}
	}
	for _, n := range image.Nodes() {
		d.Nodes = append(d.Nodes, Node{
			ID: int32(n.ID), Role: role(n.Role), Address: n.Address, Epoch: int64(n.Epoch), Fenced: n.Fenced, Since: n.Since, Leaving: n.Leaving,
			Coordinated: coordinated[n.ID],
		})
	}
	return d, nil
}

func role(r metadatav1.NodeRole) string {
	switch r {
	case metadatav1.NodeRole_NODE_ROLE_METADATA:
		return "metadata"
	case metadatav1.NodeRole_NODE_ROLE_STORAGE:
		return "storage"
	case metadatav1.NodeRole_NODE_ROLE_COORDINATOR:
		return "coordinator"
	}
	return "unknown"
}

// notFatal reports whether a call that only reads is worth repeating.
func notFatal(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.outcome != fatal
}

// metadata makes a call to a metadata node, and to others while it fails with an
// error that is repeatable.
func (a *Admin) metadata(ctx context.Context, repeatable func(error) bool, do func(context.Context, string, metadatav1connect.TopicServiceClient) error) error {
	patience, cancel := ctx, context.CancelFunc(func() {})
	if _, ok := ctx.Deadline(); !ok {
		patience, cancel = context.WithTimeout(ctx, callTimeout)
	}
	defer cancel()
	var pause backoff
	image, err := a.client.view.fresh(ctx)
	for {
		if err != nil {
			return err
		}
		var failures []BootstrapAttempt
		for _, address := range a.metadataAddresses(image) {
			failure := do(ctx, address, a.client.topics(address))
			if failure == nil || !repeatable(failure) || ReasonOf(failure) == errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
				return failure
			}
			failures = append(failures, BootstrapAttempt{Address: address, Err: failure})
		}
		err = metadataFailure(image, failures)
		if sleep(patience, pause.next()) != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return err
		}
		if err = a.client.view.refresh(ctx, image); err == nil {
			image = a.client.view.image()
		}
	}
}

// metadataAddresses returns where metadata nodes may be: first those that are
// live, last the bootstrap addresses, should the nodes have addresses that mean
// nothing here.
func (a *Admin) metadataAddresses(image *cluster.Image) []string {
	var live, fenced []string
	for _, n := range image.Nodes() {
		switch {
		case n.Role != metadatav1.NodeRole_NODE_ROLE_METADATA || n.Address == "":
		case n.Fenced:
			fenced = append(fenced, n.Address)
		default:
			live = append(live, n.Address)
		}
	}
	addresses := slices.Concat(live, fenced)
	for _, address := range a.client.config.Bootstrap {
		if !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	return addresses
}
