package rules

import (
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// AssignCoordinators returns those partitions of the offsets topic that get another
// coordinator, each with the next partition epoch. Partitions are in the order of
// their numbers; coordinators holds the registered coordinator nodes.
//
//   - A partition stays with its coordinator as long as that very process is live, also
//     if it is suspect. Another process of the same node is another coordinator: it has
//     to load the log anew.
//   - What a leaving process has goes to others, if there are any that may get
//     something: live ones that are neither suspect nor leaving.
//   - What nobody coordinates goes to the node that has least. Where nobody may get it,
//     it has no coordinator.
//   - Then at most moves partitions go from nodes with more to nodes with less, until
//     no two differ by more than one; no more move than that needs.
//
// Each process that gets a partition gets it with a coordinator epoch of its own, by
// which the partition's leader tells it from all before (see [cluster.CoordinatorEpoch]).
func AssignCoordinators(partitions []PartitionState, coordinators Nodes, moves int) []PartitionState {
	var able []cluster.NodeID
	for id, n := range coordinators {
		if n.Live && !n.Suspect && !n.Leaving {
			able = append(able, id)
		}
	}
	slices.Sort(able)
	held := make(map[cluster.NodeID][]int, len(able))
	var vacant []int
	for i := range partitions {
		p := &partitions[i]
		node, known := coordinators[p.Coordinator]
		switch {
		case !known || !node.Live || node.Epoch != p.CoordinatorNodeEpoch, node.Leaving && len(able) > 0:
			vacant = append(vacant, i)
		case slices.Contains(able, p.Coordinator):
			held[p.Coordinator] = append(held[p.Coordinator], i)
		}
	}
	if len(able) == 0 {
		return abandon(partitions, vacant)
	}
	given := make(map[int]cluster.NodeID)
	give := func(i int, to cluster.NodeID) {
		given[i] = to
		held[to] = append(held[to], i)
	}
	fewer := func(a, b cluster.NodeID) int { return len(held[a]) - len(held[b]) }
	for _, i := range vacant {
		give(i, slices.MinFunc(able, fewer))
	}
	for range moves {
		most, least := slices.MaxFunc(able, fewer), slices.MinFunc(able, fewer)
		last := len(held[most]) - 1
		if last <= len(held[least]) {
			break
		}
		i := held[most][last]
		held[most] = held[most][:last]
		give(i, least)
	}
	var changed []PartitionState
	for i := range partitions {
		if to, ok := given[i]; ok {
			next := partitions[i]
			next.Coordinator, next.CoordinatorNodeEpoch = to, coordinators[to].Epoch
			next.CoordinatorEpoch++
			next.PartitionEpoch++
			changed = append(changed, next)
		}
	}
	return changed
}

// abandon returns those of the vacant partitions that name a coordinator, without it.
func abandon(partitions []PartitionState, vacant []int) []PartitionState {
	var changed []PartitionState
	for _, i := range vacant {
		if partitions[i].Coordinator != cluster.NoNode {
			next := partitions[i]
			next.Coordinator, next.CoordinatorNodeEpoch = cluster.NoNode, 0
			next.PartitionEpoch++
			changed = append(changed, next)
		}
	}
	return changed
}
