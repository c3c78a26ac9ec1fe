package main

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect/v2"

	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// bed is how a scenario reaches the cluster.
type bed struct {
	bootstrap []string
	// pools have one connection to each address, as a client has; members share them
	// in turn. There is at least one.
	pools []*transport.Pool
}

func newBed(s settings) *bed {
	b := &bed{bootstrap: s.bootstrap}
	for range s.connections {
		b.pools = append(b.pools, transport.NewPool(transport.Options{}))
	}
	return b
}

func (b *bed) close() {
	for _, p := range b.pools {
		p.Close()
	}
}

// transport returns the connection of the i-th member to an address.
func (b *bed) transport(i int, address string) connect.Transport {
	return b.pools[i%len(b.pools)].Transport(address, transport.Control)
}

func (b *bed) groups(i int, address string) coordinatorv1connect.GroupServiceClient {
	return coordinatorv1connect.NewGroupServiceClient(connect.NewClient(b.transport(i, address)))
}

func (b *bed) offsets(i int, address string) coordinatorv1connect.OffsetServiceClient {
	return coordinatorv1connect.NewOffsetServiceClient(connect.NewClient(b.transport(i, address)))
}

func (b *bed) cluster(address string) metadatav1connect.ClusterServiceClient {
	return metadatav1connect.NewClusterServiceClient(connect.NewClient(b.transport(0, address)))
}

// image asks for the cluster.
func (b *bed) image(ctx context.Context) (*cluster.Image, error) {
	var failures []error
	for _, address := range b.bootstrap {
		response, err := b.cluster(address).GetCluster(ctx, &metadatav1.GetClusterRequest{})
		if err == nil {
			return cluster.FromSnapshot(response.GetCluster())
		}
		failures = append(failures, fmt.Errorf("asking %s for the cluster: %w", address, err))
	}
	return nil, errors.Join(failures...)
}

// coordinator returns the address of a group's coordinator.
func coordinator(image *cluster.Image, group string) (string, error) {
	_, partition, ok := image.GroupPartition(group)
	if !ok {
		return "", fmt.Errorf("topic %s is not there yet; use a group once before the measurement", cluster.OffsetsTopic)
	}
	node, ok := image.Node(partition.Coordinator)
	if !ok {
		return "", fmt.Errorf("group %q has no coordinator", group)
	}
	return node.Address, nil
}

// partitions returns how many partitions a topic has.
func partitions(image *cluster.Image, name string) (int, error) {
	topic, ok := image.Topic(name)
	if !ok {
		return 0, fmt.Errorf("there is no topic %q", name)
	}
	return len(topic.Partitions), nil
}
