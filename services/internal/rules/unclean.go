package rules

import (
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// ElectUnclean returns the state in which a live replica leads a partition that
// has no leader, although it may lack acknowledged records, and whether there is
// one. It is an operator's explicit act and never happens by itself; the caller
// sees to it that [Elect] has nobody.
//
// The replica with the best claim leads: one that ISR or ELR name, which went away
// with all acknowledged records and may have lost the latest of them since; else
// the one that led last; else the first. One whose directory was found damaged since
// its claim arose comes after all others, and after that one who may hold nothing at
// all: it has another directory since, or withdrew to begin anew, or never was in sync.
// Of equal claims the first replica that is not leaving wins.
//
// It is the whole ISR then, and nobody is eligible beside it: what others hold
// above its log is given up, and they truncate to it by its leader epoch.
func ElectUnclean(p PartitionState, nodes Nodes) (PartitionState, bool) {
	if p.Leader != cluster.NoNode {
		return p, false
	}
	best, claim := -1, 0
	for i, id := range p.Replicas {
		if !nodes[id].Live {
			continue
		}
		if c := uncleanClaim(p, i, nodes[id]); best < 0 || c > claim {
			best, claim = i, c
		}
	}
	if best < 0 {
		return p, false
	}
	id := p.Replicas[best]
	p.Epochs = slices.Clone(p.Epochs)
	p.Epochs[best] = nodes[id].Epoch
	p.Leader, p.LastLeader = id, cluster.NoNode
	p.ISR, p.ELR = []cluster.NodeID{id}, nil
	p.LeaderEpoch++
	p.PartitionEpoch++
	return p, true
}

// uncleanClaim ranks a live replica for [ElectUnclean].
func uncleanClaim(p PartitionState, i int, node NodeState) int {
	claim := 0
	switch id := p.Replicas[i]; {
	case p.Epochs[i] == 0 || p.Epochs[i] < node.History.DirectorySince:
		claim = -4
	case p.Epochs[i] < node.History.IntactSince:
		claim = -2
	case slices.Contains(p.ISR, id) || slices.Contains(p.ELR, id):
		claim = 4
	case p.LastLeader == id:
		claim = 2
	}
	if !node.Leaving {
		claim++
	}
	return claim
}
