package controller

import (
	"context"
	"time"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
)

const (
	// spreadInterval is how long apart coordinated partitions are moved for the sake
	// of evenness, and spreadMoves how many at a time: the groups of each wait until
	// their new coordinator has loaded it.
	spreadInterval = time.Second
	spreadMoves    = 10
)

// assignments adds to changes which partitions of the offsets topic get another
// coordinator with these nodes, at most moves of them only for the sake of evenness.
func assignments(s *catalog.State, nodes rules.Nodes, moves int, changes []partitionChange) []partitionChange {
	id, partitions, ready := offsetsTopic(s)
	if !ready {
		return changes
	}
	next := make([]rules.PartitionState, len(partitions))
	for i := range partitions {
		next[i] = partitions[i].PartitionState
	}
	changed := make(map[int32]int)
	for i, change := range changes {
		if change.topic == id {
			next[change.Index], changed[change.Index] = change.PartitionState, i
		}
	}
	coordinators := make(rules.Nodes)
	for node, state := range nodes {
		if s.Nodes[node].Record.GetRole() == metadatav1.NodeRole_NODE_ROLE_COORDINATOR {
			coordinators[node] = state
		}
	}
	for _, p := range rules.AssignCoordinators(next, coordinators, moves) {
		change := partitionChange{topic: id, Partition: catalog.Partition{PartitionState: p, Revision: partitions[p.Index].Revision}, moved: true}
		if i, both := changed[p.Index]; both {
			changes[i] = change
		} else {
			changes = append(changes, change)
		}
	}
	return changes
}

// offsetsTopic returns the topic in which coordinators keep groups, if it can be used.
func offsetsTopic(s *catalog.State) (cluster.TopicID, []catalog.Partition, bool) {
	id, named := s.Names[cluster.OffsetsTopic]
	if !named {
		return id, nil, false
	}
	partitions, ready := s.Ready(id)
	return id, partitions, ready
}

// uncoordinated counts the partitions of the offsets topic without a coordinator, if
// this node is controller.
func (c *Controller) uncoordinated() (count int) {
	if !c.Leading() {
		return 0
	}
	c.o.Catalog.Read(func(s *catalog.State) {
		_, partitions, _ := offsetsTopic(s)
		for i := range partitions {
			if partitions[i].Coordinator == cluster.NoNode {
				count++
			}
		}
	})
	return count
}

// spread gives coordinators that have joined their share, some partitions at a time. It
// returns after how long to look again.
func (c *Controller) spread(ctx context.Context, now time.Time) (time.Duration, error) {
	if wait := c.spreads.Sub(now); wait > 0 {
		return wait, nil
	}
	if now.Before(c.pause) {
		// Who is live is not known for sure.
		return c.pause.Sub(now), nil
	}
	var changes []partitionChange
	c.o.Catalog.Read(func(s *catalog.State) { changes = assignments(s, ruleNodes(s), spreadMoves, nil) })
	if len(changes) == 0 {
		return never, nil
	}
	sortChanges(changes)
	if err := c.write(ctx, changes, nil, nil); err != nil {
		return 0, err
	}
	c.o.Logger.Info("partitions of the offsets topic were given to other coordinators, so that all have their share", "partitions", len(changes))
	c.spreads = now.Add(spreadInterval)
	return spreadInterval, nil
}
