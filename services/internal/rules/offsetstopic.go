package rules

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// OffsetsTopicFactor is how many replicas the partitions of the offsets topic have as
// soon as there are as many storage nodes.
const OffsetsTopicFactor = 3

// OffsetsTopicConfig returns the settings of the offsets topic, each partition of
// which has at least inSync replicas in its ISR.
//
// What min.insync.replicas stands for is bounded by the number of replicas. So a
// partition with one, which gets a second that has to catch up first, would serve
// nobody until it has. That is why the setting is 1 to begin with where there is one
// replica, and goes back to the default, for good, once everywhere as many are in sync
// as that takes. To raise it is safe at any time: it adds nobody to an ELR, and
// leaders hear of it together with every ISR that was judged by it (KIP-966).
//
// What each member of a group is to have stands in one record, which cannot be split:
// max.message.bytes is as high as can be.
func OffsetsTopicConfig(inSync int) map[string]string {
	config := map[string]string{
		CleanupPolicy:   CleanupCompact,
		Durability:      DurabilitySynced,
		MaxMessageBytes: strconv.Itoa(maxMaxMessageBytes),
	}
	if inSync < defaultMinInsyncReplicas {
		config[MinInsyncReplicas] = strconv.Itoa(max(1, inSync))
	}
	return config
}

// GrowReplicas returns those partitions that get one more replica each, with the next
// partition epoch, so that all come to have factor of them. Partitions are in the
// order of their numbers; nodes are the storage nodes that may get replicas.
//
// The new replica is in neither ISR nor ELR: it counts for nothing until its leader has
// seen it catch up. It is the preferred leader where the present one is that of at
// least two partitions more: leaderships follow once it is in sync. No node has more
// than catchingUp replicas out of sync by this; one on which they never catch up holds
// nobody else up.
func GrowReplicas(partitions []PartitionState, factor int, nodes []NodeLoad, catchingUp int) []PartitionState {
	loads := slices.SortedFunc(slices.Values(nodes), func(a, b NodeLoad) int { return cmp.Compare(a.ID, b.ID) })
	behind := make(map[cluster.NodeID]int)
	for i := range partitions {
		for _, id := range partitions[i].Replicas {
			if !slices.Contains(partitions[i].ISR, id) {
				behind[id]++
			}
		}
	}
	load := func(id cluster.NodeID) *NodeLoad {
		if i := slices.IndexFunc(loads, func(l NodeLoad) bool { return l.ID == id }); i >= 0 {
			return &loads[i]
		}
		return nil
	}
	var changed []PartitionState
	for _, p := range partitions {
		if len(p.Replicas) >= factor || p.Leader == cluster.NoNode {
			continue
		}
		var best *NodeLoad
		for i := range loads {
			l := &loads[i]
			if behind[l.ID] < catchingUp && !slices.Contains(p.Replicas, l.ID) && (best == nil || lighter(*l, *best, false)) {
				best = l
			}
		}
		if best == nil {
			continue
		}
		at := len(p.Replicas)
		if preferred := load(p.Replicas[0]); preferred != nil && preferred.Leaders >= best.Leaders+2 {
			preferred.Leaders--
			best.Leaders++
			at = 0
		}
		best.Replicas++
		behind[best.ID]++
		p.Replicas = slices.Insert(slices.Clone(p.Replicas), at, best.ID)
		// No process of it was ever known to have anything.
		p.Epochs = slices.Insert(slices.Clone(p.Epochs), at, 0)
		p.PartitionEpoch++
		changed = append(changed, p)
	}
	return changed
}
