package rules

import (
	"errors"
	"fmt"
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// History tells how far back the processes of a node handed on what they held.
// Each field is the epoch of the oldest process from which on every restart
// kept something; 0 stands for the latest process, whose epoch is not known
// while it registers. CleanSince >= CachedSince >= DirectorySince once
// [History.Resolve] has replaced the zeros.
//
// A history instead of facts about the last restart alone is what lets a
// partition be judged late: its member may have restarted twice, cleanly only
// the second time.
type History struct {
	// CleanSince: every process stopped in good order.
	CleanSince cluster.NodeEpoch
	// CachedSince: every process stopped in good order or the kernel, and with it
	// the page cache, outlived it.
	CachedSince cluster.NodeEpoch
	// DirectorySince: every process ran on the same data directory.
	DirectorySince cluster.NodeEpoch
	// IntactSince: every process ran on the same data directory, and found all in it
	// that an earlier one had written.
	IntactSince cluster.NodeEpoch
}

// Restart is how a process came to follow an earlier one of the same node.
type Restart struct {
	// Clean says that the earlier process stopped in good order.
	Clean bool
	// SameBoot says that both ran under the same boot of the kernel.
	SameBoot bool
	// SameDirectory says that both ran on the same data directory.
	SameDirectory bool
	// Damaged says that the later one may lack what the earlier one had written: it
	// has found something in its directory damaged.
	Damaged bool
}

// After returns the history of a process that follows the process with epoch
// previous and history h.
func (h History) After(previous cluster.NodeEpoch, r Restart) History {
	var next History
	if !r.SameDirectory {
		return next
	}
	resolved := h.Resolve(previous)
	next.DirectorySince = resolved.DirectorySince
	if r.Clean || r.SameBoot {
		next.CachedSince = resolved.CachedSince
	}
	if r.Damaged {
		return next
	}
	next.IntactSince = resolved.IntactSince
	if r.Clean {
		next.CleanSince = resolved.CleanSince
	}
	return next
}

// Resolve replaces zeros by the epoch of the process that the history is of.
func (h History) Resolve(latest cluster.NodeEpoch) History {
	for _, since := range []*cluster.NodeEpoch{&h.CleanSince, &h.CachedSince, &h.DirectorySince, &h.IntactSince} {
		if *since == 0 {
			*since = latest
		}
	}
	return h
}

// NodeState is what elections depend on in a registered node.
type NodeState struct {
	// Epoch is that of its latest process.
	Epoch cluster.NodeEpoch
	// Live says that the process holds its lease.
	Live bool
	// Suspect says that the process has lost its lease, though it counts as live for
	// now. What it leads it keeps.
	Suspect bool
	// Leaving says that the process is about to stop in good order and gives away
	// what it leads.
	Leaving bool
	// History is resolved.
	History History
}

// Nodes holds all registered nodes. A replica on a node that is not in it counts
// as dead but intact.
type Nodes map[cluster.NodeID]NodeState

// TopicTraits are the settings of a topic that elections depend on.
type TopicTraits struct {
	// Synced says that acknowledged records are on disk (durability=synced), so
	// that a crash of the machine does not lose them.
	Synced bool
	// MinInsyncReplicas is the topic's min.insync.replicas.
	MinInsyncReplicas int
}

// PartitionState is a partition as the controller keeps it.
type PartitionState struct {
	cluster.Partition
	// Epochs holds for each of Replicas the node epoch of its last process that was
	// known to hold every acknowledged record: as leader or in the ISR. 0 stands for
	// none.
	Epochs []cluster.NodeEpoch
	// CoordinatorNodeEpoch is that of the process of Coordinator that the coordinator
	// epoch was given to.
	CoordinatorNodeEpoch cluster.NodeEpoch
}

// NewPartition returns the first state of a partition whose replicas lie on live
// nodes, the preferred leader first. Both its epochs are 0.
func NewPartition(index int32, replicas []cluster.NodeID, nodes Nodes) PartitionState {
	p := PartitionState{
		Partition: cluster.Partition{
			Index:      index,
			Leader:     replicas[0],
			LastLeader: cluster.NoNode,
			Replicas:   slices.Clone(replicas),
			ISR:        slices.Clone(replicas),

			Coordinator: cluster.NoNode,
		},
		Epochs: make([]cluster.NodeEpoch, len(replicas)),
	}
	for i, id := range replicas {
		p.Epochs[i] = nodes[id].Epoch
	}
	return p
}

// Elect returns the state that a partition takes with these nodes, and whether
// it differs from p. It is level-triggered: applying it again changes nothing,
// and what happened while nobody looked is made good.
//
//   - A member of ISR or ELR whose node restarted without a clean stop, with another
//     directory or with damage in it, may lack records and leaves both (KIP-966). One
//     that restarted cleanly stays.
//   - A member without a lease leaves the ISR (KIP-841), into the ELR as long as
//     the ISR is below min ISR: it still holds every acknowledged record, since
//     the high watermark stands still meanwhile (KIP-966).
//   - The leader stays while its very process is in the ISR, unless that process is
//     leaving and another member of the ISR is neither that nor suspect. A new
//     process of the same node is a new leadership, with a leader epoch of its own
//     (KIP-101).
//   - Otherwise the first replica that is in the ISR, or else in the ELR, and live
//     leads; one that is leaving only if there is no other, and one that is suspect
//     only if all are: it may be dead. If both are empty the last leader does, given
//     that it is live on the directory that it led with and that no acknowledged
//     record can be lost with its page cache: the topic is synced, or the page cache
//     survived all restarts since; and that it has found nothing damaged since, unless
//     there is no other replica that was ever in sync, and could have more.
//   - Otherwise the partition is offline and remembers its last leader.
//
// A change of ISR alone leaves the leader epoch as it is (KAFKA-15021).
func Elect(p PartitionState, nodes Nodes, topic TopicTraits) (PartitionState, bool) {
	next := p
	next.Epochs = slices.Clone(p.Epochs)
	next.ISR, next.ELR = nil, nil
	for i, id := range p.Replicas {
		inISR, inELR := slices.Contains(p.ISR, id), slices.Contains(p.ELR, id)
		if !inISR && !inELR {
			continue
		}
		node, registered := nodes[id]
		if registered && p.Epochs[i] < node.History.CleanSince {
			continue
		}
		if !inISR || !node.Live {
			next.ELR = append(next.ELR, id)
			continue
		}
		next.ISR = append(next.ISR, id)
		next.Epochs[i] = node.Epoch
	}

	current := slices.Index(p.Replicas, p.Leader)
	stays := current >= 0 && slices.Contains(next.ISR, p.Leader) && p.Epochs[current] == nodes[p.Leader].Epoch
	if stays && nodes[p.Leader].Leaving {
		// All of these count as live.
		stays = !slices.ContainsFunc(next.ISR, func(id cluster.NodeID) bool { return !nodes[id].Leaving && !nodes[id].Suspect })
	}
	if !stays {
		if p.Leader != cluster.NoNode {
			next.LastLeader = p.Leader
		}
		next.Leader = electable(next, nodes, topic)
		if next.Leader != cluster.NoNode {
			next.LastLeader = cluster.NoNode
			next.Epochs[slices.Index(next.Replicas, next.Leader)] = nodes[next.Leader].Epoch
			if !slices.Contains(next.ISR, next.Leader) {
				next.ISR = inOrder(append(next.ISR, next.Leader), next.Replicas)
			}
		}
		if next.Leader != cluster.NoNode || p.Leader != cluster.NoNode {
			next.LeaderEpoch++
		}
	}
	next.ELR = eligible(next.ELR, next.ISR, topic.MinInsyncReplicas, len(next.Replicas))
	if next.Leader == p.Leader && next.LeaderEpoch == p.LeaderEpoch && next.LastLeader == p.LastLeader &&
		slices.Equal(next.ISR, p.ISR) && slices.Equal(next.ELR, p.ELR) && slices.Equal(next.Epochs, p.Epochs) {
		return p, false
	}
	next.PartitionEpoch++
	return next, true
}

// electable returns who may lead a partition without a leader, or NoNode.
func electable(p PartitionState, nodes Nodes, topic TopicTraits) cluster.NodeID {
	members := slices.Concat(p.ISR, p.ELR)
	for _, want := range [...]struct{ suspect, leaving bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		for _, id := range members {
			if n := nodes[id]; n.Live && n.Suspect == want.suspect && n.Leaving == want.leaving {
				return id
			}
		}
	}
	last := slices.Index(p.Replicas, p.LastLeader)
	if len(p.ISR)+len(p.ELR) > 0 || last < 0 {
		return cluster.NoNode
	}
	node := nodes[p.LastLeader]
	intact := node.History.CachedSince
	if topic.Synced {
		intact = node.History.DirectorySince
	}
	for i, epoch := range p.Epochs {
		if i != last && epoch > 0 {
			intact = max(intact, node.History.IntactSince)
		}
	}
	if !node.Live || p.Epochs[last] < intact {
		return cluster.NoNode
	}
	return p.LastLeader
}

// inOrder returns the members in the order of the replicas, each once.
func inOrder(members, replicas []cluster.NodeID) []cluster.NodeID {
	return slices.DeleteFunc(slices.Clone(replicas), func(id cluster.NodeID) bool { return !slices.Contains(members, id) })
}

// eligible returns the ELR among candidates that hold every acknowledged record:
// none once the ISR is large enough for the high watermark to move without them.
func eligible(candidates, isr []cluster.NodeID, minInsyncReplicas, replicas int) []cluster.NodeID {
	if len(isr) >= EffectiveMinInsync(minInsyncReplicas, replicas) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(candidates), func(id cluster.NodeID) bool { return slices.Contains(isr, id) })
}

// Why an ISR that a leader proposes is refused. The caller's view is stale in all
// of these cases; it is answered with the partition as it is.
var (
	ErrNotLeader      = errors.New("the proposer does not lead the partition")
	ErrLeaderEpoch    = errors.New("the leader epoch is not the partition's")
	ErrPartitionEpoch = errors.New("the partition has changed meanwhile")
	ErrIneligible     = errors.New("the proposed ISR has an ineligible member")
)

// ISRMember is a replica of a proposed ISR.
type ISRMember struct {
	Node cluster.NodeID
	// Epoch is that of the process which the leader has seen, or -1 for one that is
	// in the ISR already.
	Epoch cluster.NodeEpoch
}

// ISRProposal is what a leader asks for.
type ISRProposal struct {
	Leader         cluster.NodeID
	LeaderEpoch    cluster.LeaderEpoch
	PartitionEpoch cluster.PartitionEpoch
	ISR            []ISRMember
	// Withdraws says that Leader has lost records and asks not to be counted on. It
	// is a leader that resigns, with an ISR that it leaves itself out of, or a
	// follower, without an ISR.
	Withdraws bool
}

// ProposeISR returns the partition with the proposed ISR (KIP-497), or why it is
// refused. Members that are not in the ISR yet need a lease (KIP-841), must be the
// very process that the leader saw catching up (KIP-903), and must not be leaving.
// Members that are taken out go into the ELR as long as the ISR is below min ISR
// (KIP-966).
// A leader that leaves itself out resigns, as it cannot serve: another member of the
// ISR is elected, or else of the ELR, and without one it is refused. What it has counts
// on in an unclean election, unless it withdraws as well.
// A follower that withdraws is in neither from then on, and in a new leader epoch of
// the same leader: nobody can be admitted for a position of the one before.
// Each accepted proposal raises the partition epoch, also one of the ISR that there
// is: what was proposed on the epoch before, and may still be on its way, is void
// then.
func ProposeISR(p PartitionState, proposal ISRProposal, nodes Nodes, topic TopicTraits) (PartitionState, error) {
	switch {
	case proposal.Withdraws && (p.Leader == cluster.NoNode || !slices.Contains(p.Replicas, proposal.Leader)):
		return p, fmt.Errorf("%w: node %d withdraws, and holds no replica or has no leader; node %d leads", ErrIneligible, proposal.Leader, p.Leader)
	case p.Leader != proposal.Leader && !proposal.Withdraws:
		return p, fmt.Errorf("%w: node %d proposes, node %d leads", ErrNotLeader, proposal.Leader, p.Leader)
	case p.LeaderEpoch != proposal.LeaderEpoch:
		return p, fmt.Errorf("%w: proposed under %d, now %d", ErrLeaderEpoch, proposal.LeaderEpoch, p.LeaderEpoch)
	case p.PartitionEpoch != proposal.PartitionEpoch:
		return p, fmt.Errorf("%w: proposed on %d, now %d", ErrPartitionEpoch, proposal.PartitionEpoch, p.PartitionEpoch)
	}
	if proposal.Withdraws && p.Leader != proposal.Leader {
		return withdraw(p, proposal.Leader, topic), nil
	}
	next := p
	next.Epochs = slices.Clone(p.Epochs)
	next.ISR = nil
	members := make(map[cluster.NodeID]cluster.NodeEpoch, len(proposal.ISR))
	for _, m := range proposal.ISR {
		if _, twice := members[m.Node]; twice || !slices.Contains(p.Replicas, m.Node) {
			return p, fmt.Errorf("%w: node %d is named twice or holds no replica", ErrIneligible, m.Node)
		}
		members[m.Node] = m.Epoch
	}
	_, stays := members[p.Leader]
	for i, id := range p.Replicas {
		epoch, ok := members[id]
		if !ok {
			continue
		}
		next.ISR = append(next.ISR, id)
		member, node := slices.Contains(p.ISR, id), nodes[id]
		switch {
		case member && epoch == -1:
			continue
		case !node.Live || node.Epoch != epoch:
			return p, fmt.Errorf("%w: node %d was seen with epoch %d and is registered with %d, live: %t", ErrIneligible, id, epoch, node.Epoch, node.Live)
		case !member && node.Leaving:
			return p, fmt.Errorf("%w: node %d is leaving", ErrIneligible, id)
		}
		next.Epochs[i] = epoch
	}
	if stays && proposal.Withdraws {
		return p, fmt.Errorf("%w: node %d withdraws and proposes to stay", ErrIneligible, p.Leader)
	}
	if stays {
		next.ELR = eligible(inOrder(slices.Concat(p.ELR, p.ISR), p.Replicas), next.ISR, topic.MinInsyncReplicas, len(p.Replicas))
		next.PartitionEpoch++
		return next, nil
	}
	// What it has is in doubt, so that it is not eligible either. A disk that hangs keeps
	// all; of what is lost nothing says any more which process held it.
	if proposal.Withdraws {
		next.Epochs[slices.Index(p.Replicas, p.Leader)] = 0
	}
	others := slices.DeleteFunc(slices.Concat(p.ELR, p.ISR), func(id cluster.NodeID) bool { return id == p.Leader })
	next.ELR = eligible(inOrder(others, p.Replicas), next.ISR, topic.MinInsyncReplicas, len(p.Replicas))
	elected, _ := Elect(next, nodes, topic)
	if elected.Leader == cluster.NoNode || elected.Leader == p.Leader {
		return p, fmt.Errorf("%w: no other member of the ISR can lead in place of node %d", ErrIneligible, p.Leader)
	}
	return elected, nil
}

// withdraw returns a partition that counts on one of its followers no more. What that
// one had it has lost: nothing says any more which process of it held all.
func withdraw(p PartitionState, follower cluster.NodeID, topic TopicTraits) PartitionState {
	others := func(members []cluster.NodeID) []cluster.NodeID {
		return slices.DeleteFunc(slices.Clone(members), func(id cluster.NodeID) bool { return id == follower })
	}
	next := p
	next.Epochs = slices.Clone(p.Epochs)
	next.Epochs[slices.Index(p.Replicas, follower)] = 0
	next.ISR = others(p.ISR)
	next.ELR = eligible(others(p.ELR), next.ISR, topic.MinInsyncReplicas, len(p.Replicas))
	next.LeaderEpoch++
	next.PartitionEpoch++
	return next
}

// MassLoss reports whether so many of the live nodes lost their leases at once
// that etcd is more likely to be at fault than the nodes: two or more, and more
// than half.
func MassLoss(lost, live int) bool { return lost >= 2 && 2*lost > live }
