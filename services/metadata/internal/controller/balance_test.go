package controller

import (
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
)

// stateOf returns a topic with partitions on nodes 1 and 2 that node 2 leads.
func stateOf(partitions int) (*catalog.State, []catalog.Partition) {
	topic := cluster.TopicID{1}
	s := &catalog.State{
		Nodes: make(map[cluster.NodeID]catalog.Node),
		Topics: map[cluster.TopicID]catalog.Topic{topic: {ID: topic, Record: &catalogv1.TopicRecord{
			PartitionCount: int32(partitions), State: catalogv1.TopicState_TOPIC_STATE_READY,
		}}},
	}
	for id := cluster.NodeID(1); id <= 2; id++ {
		s.Nodes[id] = catalog.Node{ID: id, Record: &catalogv1.NodeRecord{}, Epoch: cluster.NodeEpoch(id), Status: &catalogv1.NodeStatusRecord{}, Lease: clientv3.LeaseID(id)}
	}
	all := make([]catalog.Partition, partitions)
	for i := range all {
		all[i] = catalog.Partition{Revision: 7, PartitionState: rules.PartitionState{
			Partition: cluster.Partition{
				Index: int32(i), Leader: 2, LastLeader: cluster.NoNode, LeaderEpoch: 4,
				Replicas: []cluster.NodeID{1, 2}, ISR: []cluster.NodeID{1, 2},
			},
			Epochs: []cluster.NodeEpoch{1, 2},
		}}
	}
	s.Partitions = map[cluster.TopicID][]catalog.Partition{topic: all}
	return s, all
}

// TestBalancer lets the time pass by hand: nothing moves before a partition has
// looked the same for an interval, and then so many at a time.
func TestBalancer(t *testing.T) {
	t.Parallel()
	const interval = 30 * time.Second
	start := time.Now()
	begin := func(moves int) *balancer {
		b := &balancer{interval: interval, moves: moves}
		b.reset(start)
		if wait := b.wait(start); wait != interval {
			t.Errorf("the first look is after %v", wait)
		}
		if wait := b.wait(start.Add(interval - time.Second)); wait != time.Second {
			t.Errorf("a second before the first look it is after %v", wait)
		}
		if wait := b.wait(start.Add(2 * interval)); wait != 0 {
			t.Errorf("a look that is late is after %v", wait)
		}
		return b
	}
	looks := func(t *testing.T, b *balancer, s *catalog.State, n int, want ...int32) {
		t.Helper()
		now := start.Add(time.Duration(n) * interval)
		var got []int32
		for _, change := range b.look(s, now) {
			if change.Leader != 1 || change.LeaderEpoch != 5 || change.Revision == 0 {
				t.Errorf("look %d: %+v", n, change)
			}
			got = append(got, change.Index)
		}
		if !slices.Equal(got, want) {
			t.Errorf("look %d: %v are due, want %v", n, got, want)
		}
		if wait := b.wait(now); wait != interval {
			t.Errorf("look %d: the next is after %v", n, wait)
		}
	}
	// moved makes node 1 lead partitions, as the controller would.
	moved := func(all []catalog.Partition, indexes ...int) {
		for _, i := range indexes {
			all[i].Leader, all[i].Revision = 1, all[i].Revision+1
		}
	}
	t.Run("so many at a time", func(t *testing.T) {
		t.Parallel()
		s, all := stateOf(5)
		b := begin(2)
		looks(t, b, s, 1)
		looks(t, b, s, 2, 0, 1)
		moved(all, 0, 1)
		looks(t, b, s, 3, 2, 3)
		moved(all, 2, 3)
		looks(t, b, s, 4, 4)
		moved(all, 4)
		looks(t, b, s, 5)
	})
	t.Run("what changes between two looks waits", func(t *testing.T) {
		t.Parallel()
		s, all := stateOf(3)
		b := begin(100)
		looks(t, b, s, 1)
		all[1].Revision++
		looks(t, b, s, 2, 0, 2)
		looks(t, b, s, 3, 0, 1, 2)
	})
	t.Run("a replica that comes and goes is left alone", func(t *testing.T) {
		t.Parallel()
		s, all := stateOf(1)
		b := begin(100)
		for n := 1; n < 8; n++ {
			all[0].ISR = []cluster.NodeID{1, 2}
			if n%2 == 0 {
				all[0].ISR = []cluster.NodeID{2}
			}
			all[0].Revision++
			looks(t, b, s, n)
		}
		all[0].ISR = []cluster.NodeID{1, 2}
		looks(t, b, s, 8, 0)
	})
	for name, change := range map[string]func(*catalog.Node){
		"not to a node that has lost its lease": func(n *catalog.Node) { n.Lease = 0 },
		"not to a fenced node":                  func(n *catalog.Node) { n.Status.Fenced = true },
		"not to a node that is about to stop":   func(n *catalog.Node) { n.Status.Leaving = true },
		"not to a process that nobody judged":   func(n *catalog.Node) { n.Epoch++ },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := stateOf(2)
			b := begin(100)
			looks(t, b, s, 1)
			n := s.Nodes[1]
			change(&n)
			s.Nodes[1] = n
			looks(t, b, s, 2)
			looks(t, b, s, 3)
		})
	}
	t.Run("what was found before a pause does not count", func(t *testing.T) {
		t.Parallel()
		s, _ := stateOf(1)
		b := begin(100)
		looks(t, b, s, 1)
		b.reset(start.Add(2 * interval))
		looks(t, b, s, 3)
		looks(t, b, s, 4, 0)
	})
	if wait := (&balancer{}).wait(start); wait != never {
		t.Errorf("where leaderships stay the next look is after %v", wait)
	}
}
