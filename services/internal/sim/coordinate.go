package sim

import (
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// coordinators adds to changes of partitions that offsets partitions get another
// coordinator.
func (c *controller) coordinators(nodes rules.Nodes, changes []partitionChange) []partitionChange {
	g := c.w.crowd
	if g == nil {
		return changes
	}
	var partitions []rules.PartitionState
	for _, index := range g.offsets {
		p := c.catalog.partitions[index]
		if p.mod == 0 {
			return changes
		}
		if i := slices.IndexFunc(changes, func(x partitionChange) bool { return x.index == index }); i >= 0 {
			p.PartitionState = changes[i].state
		}
		partitions = append(partitions, p.PartitionState)
	}
	able := make(rules.Nodes)
	for i := range g.coordinators {
		id := cluster.NodeID(len(c.w.nodes) + 1 + i)
		if n, ok := nodes[id]; ok {
			able[id] = n
		}
	}
	for _, next := range rules.AssignCoordinators(partitions, able, 1) {
		// The partitions of a run are numbered through.
		index := int(next.Index)
		if i := slices.IndexFunc(changes, func(x partitionChange) bool { return x.index == index }); i >= 0 {
			changes[i].state = next
		} else {
			changes = append(changes, partitionChange{index, next, c.catalog.partitions[index].mod})
		}
	}
	return changes
}
