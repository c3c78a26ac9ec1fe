package rules

import "slices"

// Prefer returns the state in which the preferred leader, the first replica, leads
// the partition, and whether that differs from p. It leads only as a member of the
// ISR, which holds all that was acknowledged, under the very process that was
// judged so, and neither without a lease nor while it is leaving. A partition
// without a leader is for [Elect].
//
// ISR and ELR stay as they are; the move is a new leadership with a leader epoch of
// its own. [Elect] does not undo it.
func Prefer(p PartitionState, nodes Nodes) (PartitionState, bool) {
	if len(p.Replicas) == 0 || !slices.Contains(p.Replicas, p.Leader) || p.Leader == p.Replicas[0] {
		return p, false
	}
	preferred := p.Replicas[0]
	node := nodes[preferred]
	if !slices.Contains(p.ISR, preferred) || !node.Live || node.Leaving || p.Epochs[0] != node.Epoch {
		return p, false
	}
	p.Leader = preferred
	p.LeaderEpoch++
	p.PartitionEpoch++
	return p, true
}
