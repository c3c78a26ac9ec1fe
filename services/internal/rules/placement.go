package rules

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// MaxReplicationFactor is the highest replication factor that topics may be created
// with unless the metadata service is told otherwise: as many replicas as the
// simulation has.
const MaxReplicationFactor = 5

// NodeLoad is a storage node that may be given replicas, and what it holds
// already.
type NodeLoad struct {
	ID cluster.NodeID
	// Leaders is the number of partitions of which it is the preferred leader.
	Leaders int
	// Replicas is the number of replicas on it, those it leads included.
	Replicas int
}

// DefaultReplicationFactor is the replication factor of a topic whose creator
// named none: 3, or as many as there are live storage nodes.
func DefaultReplicationFactor(liveNodes int) int {
	return max(1, min(3, liveNodes))
}

// Place spreads the replicas of a new topic over nodes and returns them for each
// partition, the preferred leader first. Each partition goes to the nodes that
// hold least, so that leaders and replicas stay even over all topics; equal
// nodes take turns. The same arguments give the same result, whatever the order
// of nodes.
func Place(partitions, replicationFactor int, nodes []NodeLoad) ([][]cluster.NodeID, error) {
	if partitions < 1 {
		return nil, fmt.Errorf("place %d partitions: at least 1 is needed", partitions)
	}
	if replicationFactor < 1 || replicationFactor > len(nodes) {
		return nil, fmt.Errorf("place %d replicas on %d nodes: each replica needs a node of its own", replicationFactor, len(nodes))
	}
	loads := slices.SortedFunc(slices.Values(nodes), func(a, b NodeLoad) int { return cmp.Compare(a.ID, b.ID) })
	placed := make([][]cluster.NodeID, partitions)
	for p := range placed {
		replicas := make([]cluster.NodeID, 0, replicationFactor)
		for r := range replicationFactor {
			best := -1
			for turn := range loads {
				// Starting one further with each partition lets equal nodes take turns, so
				// that the followers of one leader are not always the same.
				i := (p + r + turn) % len(loads)
				if slices.Contains(replicas, loads[i].ID) {
					continue
				}
				if best < 0 || lighter(loads[i], loads[best], r == 0) {
					best = i
				}
			}
			if r == 0 {
				loads[best].Leaders++
			}
			loads[best].Replicas++
			replicas = append(replicas, loads[best].ID)
		}
		placed[p] = replicas
	}
	return placed, nil
}

func lighter(a, b NodeLoad, leader bool) bool {
	if leader && a.Leaders != b.Leaders {
		return a.Leaders < b.Leaders
	}
	return a.Replicas < b.Replicas
}
