package runnel

import (
	"testing"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// TestDescribeCoordinators counts what each node coordinates of the offsets topic.
func TestDescribeCoordinators(t *testing.T) {
	snapshot := &metadatav1.ClusterSnapshot{
		ClusterId: make([]byte, 16),
		Nodes:     []*metadatav1.Node{{NodeId: 1}, {NodeId: 5, Role: metadatav1.NodeRole_NODE_ROLE_COORDINATOR}},
	}
	if d, err := describeCluster(snapshot); err != nil || d.OffsetsPartitions != 0 || d.Nodes[1].Coordinated != 0 {
		t.Errorf("before the first group: %+v, %v", d, err)
	}
	topic := &metadatav1.Topic{TopicId: make([]byte, 16), Name: cluster.OffsetsTopic, PartitionCount: 3}
	for i, id := range []int32{5, 0, 5} {
		topic.Partitions = append(topic.Partitions, &metadatav1.Partition{Partition: int32(i), CoordinatorId: id})
	}
	snapshot.Topics = append(snapshot.Topics, topic)
	d, err := describeCluster(snapshot)
	if err != nil || d.OffsetsPartitions != 3 || d.Nodes[0].Coordinated != 0 || d.Nodes[1].Coordinated != 2 || d.Nodes[1].Role != "coordinator" {
		t.Errorf("described as %+v, %v", d, err)
	}
}
