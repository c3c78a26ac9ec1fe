package rules

import (
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// Proposal returns the change of the ISR that waits for its outcome: it is to be
// sent, again and again until [Replica.Answer] or [Replica.Apply] has decided it.
func (r *Replica) Proposal() (ISRProposal, bool) {
	if r.withdraws() {
		return ISRProposal{Leader: r.self, LeaderEpoch: r.assignment.LeaderEpoch, PartitionEpoch: r.assignment.PartitionEpoch, Withdraws: true}, true
	}
	if r.leadership == nil || r.proposal == nil {
		return ISRProposal{}, false
	}
	return ISRProposal{
		Leader: r.self, LeaderEpoch: r.assignment.LeaderEpoch, PartitionEpoch: r.assignment.PartitionEpoch, ISR: r.proposal,
		Withdraws: r.failed && !r.proposesToStay(),
	}, true
}

// Propose decides whether the ISR should change: followers that have not had all
// that there is for longer than maxLag leave it, and those come in that have
// reached the high watermark, the start of this leadership and the log start in it. live returns
// the epoch of a node's process that has its lease and is not leaving, as far as is
// known here. It reports whether there is a proposal to send that was not there
// before. A follower that has lost records proposes, each time, to be counted on no more.
func (r *Replica) Propose(now time.Time, maxLag time.Duration, live func(cluster.NodeID) (cluster.NodeEpoch, bool)) bool {
	if r.leadership == nil {
		return r.withdraws()
	}
	if r.failed {
		return r.Resign()
	}
	if r.proposal != nil {
		return false
	}
	next := []ISRMember{}
	have, need := r.InSync()
	// What was refused is settled by whatever is accepted next, and so is an ELR that
	// is left of a higher min.insync.replicas.
	changed := len(r.possible) > 0 || have >= need && len(r.assignment.ELR) > 0
	for _, id := range r.assignment.Replicas {
		in := slices.Contains(r.assignment.ISR, id)
		if id == r.self {
			next = append(next, ISRMember{Node: id, Epoch: -1})
			continue
		}
		f := r.follower(id)
		switch {
		case in && r.lags(f, now, maxLag):
			changed = true
		case in:
			next = append(next, ISRMember{Node: id, Epoch: -1})
		case r.admits(f):
			if epoch, ok := live(id); ok && epoch == f.epoch {
				next = append(next, ISRMember{Node: id, Epoch: epoch})
				changed = true
			}
		}
	}
	if !changed {
		return false
	}
	r.propose(next)
	return true
}

func (r *Replica) propose(isr []ISRMember) {
	r.proposal = isr
	for _, m := range isr {
		if !slices.Contains(r.possible, m.Node) {
			r.possible = append(r.possible, m.Node)
		}
	}
}

// Resign proposes the ISR without this replica, where it leads and there are others
// in it, or in the ELR: it cannot serve. That takes the place of a proposal that is not answered yet:
// whichever is accepted first makes the other void. It reports whether there is a
// proposal to send that was not there before.
func (r *Replica) Resign() bool {
	if r.leadership == nil {
		return false
	}
	others := []ISRMember{}
	for _, id := range r.assignment.ISR {
		if id != r.self {
			others = append(others, ISRMember{Node: id, Epoch: -1})
		}
	}
	if len(others)+len(r.assignment.ELR) == 0 || r.proposal != nil && !r.proposesToStay() {
		return false
	}
	r.propose(others)
	return true
}

// proposesToStay says whether the leader itself is in the ISR that it has proposed.
func (r *Replica) proposesToStay() bool {
	return slices.ContainsFunc(r.proposal, func(m ISRMember) bool { return m.Node == r.self })
}

// lags says whether a member of the ISR keeps the high watermark back. One that has
// all there is takes nothing and shows no position, and lags only from the next
// record on: that it has all is noted each time that somebody asks.
func (r *Replica) lags(f *follower, now time.Time, maxLag time.Duration) bool {
	if f.fetched && f.logEnd >= r.logEnd {
		f.caughtUp = now
		return false
	}
	since := r.ledSince
	if f.caughtUp.After(since) {
		since = f.caughtUp
	}
	return now.Sub(since) > maxLag
}

// admits says whether a follower has all that an in-sync replica needs. A
// position below the start of this leadership does not do, though it may be above
// the high watermark: what earlier leaders acknowledged may lie between them. Nor does
// a log start below the leader's: what was deleted would be back if it led.
func (r *Replica) admits(f *follower) bool {
	return f.fetched && f.logEnd >= r.highWatermark && f.logEnd >= r.epochStart && f.logStart >= r.logStart
}

// Answer takes the cluster's answer to a proposal: whether it was accepted, and the
// partition as it is now, with the partition epoch of the proposal if it was
// refused. An answer to an earlier proposal changes nothing but what it tells of
// the partition.
func (r *Replica) Answer(proposal ISRProposal, accepted bool, current cluster.Partition, now time.Time) Applied {
	if r.leadership != nil && r.proposal != nil && proposal.PartitionEpoch == r.assignment.PartitionEpoch {
		r.proposal = nil
	}
	a := r.Apply(current, now)
	if accepted && proposal.Withdraws && r.failed && !a.Stale && !a.TooNew && !r.counted() {
		r.withdrawn = true
	}
	return a
}
