package sim

import (
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// What the checker is told of the model: all that it needs, each time that it
// changes.

// checkStep looks at what any event may have changed: whether those who may lead
// next have all that is committed.
func (w *world) checkStep() {
	for i := range w.etcd.partitions {
		p := &w.etcd.partitions[i]
		h := w.check.partitions[i]
		if h.excused {
			continue
		}
		for _, members := range [...][]cluster.NodeID{p.ISR, p.ELR} {
			for _, id := range members {
				n := w.node(id)
				if !n.current(*p) || n.files[i].failed {
					continue
				}
				r := n.replicas[i]
				w.check.member(i, id, r.rules.LogEnd())
				w.check.memberStart(i, id, r.file.start)
				w.verify(r, min(h.end(), r.rules.LogEnd()), 11)
			}
		}
	}
}

// verify compares a log with what is committed, up to an offset.
func (w *world) verify(r *replica, end int64, invariant int) {
	h := w.check.partitions[r.index]
	end = min(end, h.end())
	for r.verified < end {
		if start := r.rules.LogStart(); len(r.batches) == 0 || r.batches[0].base > r.verified {
			// What lies below the log start is gone with good reason.
			if len(r.batches) > 0 {
				start = r.batches[0].base
			}
			if start <= r.verified {
				w.check.fail(invariant, r.index, "the log of node %d has nothing at %d, which is committed", r.n.id, r.verified)
				return
			}
			r.verified = start
			continue
		}
		b, ok := r.at(r.verified)
		if !ok || h.batchAt(r.verified) != b {
			w.check.fail(invariant, r.index, "the log of node %d has %+v at %d, where %+v is committed", r.n.id, b, r.verified, h.batchAt(r.verified))
			return
		}
		r.verified = b.last + 1
	}
}

// checkReplica looks at a replica that may have moved its high watermark.
func (w *world) checkReplica(r *replica) {
	h := w.check.partitions[r.index]
	high := r.rules.HighWatermark()
	if !w.bound(r) {
		r.checkedHigh = high
		return
	}
	if r.rules.Role() == rules.Leading && high > r.checkedHigh {
		w.checkHighWatermark(r, h, high)
	}
	r.checkedHigh = high
	// A high watermark is not below the log start, and that does not go back, though an
	// unclean election may have elected somebody who has heard of less.
	if h.unclean != rules.NoEpoch && high <= r.rules.LogStart() {
		return
	}
	if high > h.end() {
		w.check.fail(8, r.index, "the high watermark of node %d is %d, and no leader's was above %d", r.n.id, high, h.end())
	}
	w.verify(r, high, 8)
}

func (w *world) checkHighWatermark(r *replica, h *history, high int64) {
	p, _ := r.rules.Assignment()
	_, need := r.rules.InSync()
	maximal := slices.Concat(p.ISR, p.ELR, r.possible)
	agreed := w.etcd.partitions[r.index]
	w.check.highWatermark(r.index, highWatermarkMoved{
		node: r.n.id, epoch: p.LeaderEpoch, to: high, isr: p.ISR, need: need, maximal: maximal, agreed: agreed, isrReach: len(agreed.ISR) >= need,
	})
	for _, id := range maximal {
		n := w.node(id)
		if id == r.n.id {
			w.check.memberEnd(r.index, r.n.id, id, high, r.rules.LogEnd())
			continue
		}
		if n.up && n.epoch != 0 && !n.lossy[r.index] && n.replicas[r.index].rules.Epoch() == p.LeaderEpoch {
			w.check.memberEnd(r.index, r.n.id, id, high, n.replicas[r.index].rules.LogEnd())
		}
	}
	h.reach(p.LeaderEpoch, high)
	w.commit(r, high)
	for _, n := range w.nodes {
		if !n.up || n.epoch == 0 {
			continue
		}
		if other := n.replicas[r.index]; other.rules.Role() == rules.Leading {
			w.check.superseded(r.index, p.LeaderEpoch, high, other.rules.Epoch(), other.rules.Next())
		}
	}
}

// commit takes note of what a leader has committed.
func (w *world) commit(r *replica, high int64) {
	h := w.check.partitions[r.index]
	for h.end() < high {
		b, ok := r.at(h.end())
		if !ok {
			w.check.fail(7, r.index, "the log of node %d has nothing at %d, below its high watermark", r.n.id, h.end())
			return
		}
		end := h.end()
		w.check.commit(r.index, b)
		if h.end() == end {
			return
		}
		if w.topics[r.index].offsets {
			w.crowd.committed(r.index, b)
		}
	}
}

// bound says whether a replica is held to what is committed. After an unclean
// election one is not before its log agrees with that of the new leader, since its
// high watermark falls by a truncation only.
func (w *world) bound(r *replica) bool {
	h := w.check.partitions[r.index]
	return h.binds(r.rules.Epoch()) && (h.unclean == rules.NoEpoch || r.agrees)
}

// checkLeads looks at a leadership that begins.
func (w *world) checkLeads(r *replica) {
	h := w.check.partitions[r.index]
	w.counts.Elections++
	if r.rules.Epoch() < h.unclean {
		return
	}
	r.agrees = true
	if h.excused {
		before := h.end()
		w.check.resumes(r.index, r.rules.Epoch(), r.rules.LogStart(), r.batches)
		for _, n := range w.nodes {
			if n.up {
				other := n.replicas[r.index]
				other.verified = min(other.verified, h.end())
			}
		}
		w.commit(r, r.rules.HighWatermark())
		r.note("resumes", before, h.end())
	}
	w.check.leads(r.index, r.n.id, r.rules.Epoch(), r.rules.LogEnd())
	w.check.serves(r.index, r.n.id, r.rules.Epoch(), r.rules.LogStart())
	w.verify(r, min(h.before(r.rules.Epoch()), r.rules.LogEnd()), 10)
}

// checkAppends looks at a batch that a replica is about to append.
func (w *world) checkAppends(r *replica, b batch) {
	// A log without batches begins anywhere at or below its start's batch.
	next, before := b.base, rules.NoEpoch
	if n := len(r.batches); n > 0 {
		next, before = r.batches[n-1].last+1, r.batches[n-1].epoch
	}
	w.check.appended(r.index, r.n.id, next, before, b, r.rules.Role() == rules.Leading)
}

// checkCuts looks at a truncation that is about to be made.
func (w *world) checkCuts(r *replica, offset int64) {
	h := w.check.partitions[r.index]
	if !h.excused && offset < min(r.verified, h.end()) {
		w.check.fail(8, r.index, "node %d truncates its log at %d, and has what is committed up to %d", r.n.id, offset, min(r.verified, h.end()))
	}
}

// checkAcknowledges looks at an acknowledgement by all that a leader gives.
func (w *world) checkAcknowledges(r *replica, end int64) {
	if h := w.check.partitions[r.index]; w.bound(r) && end > h.end() {
		w.check.fail(1, r.index, "node %d acknowledges all below %d, and committed is what lies below %d", r.n.id, end, h.end())
	}
}

// checkServes looks at what a leader gives to a consumer at a position.
func (w *world) checkServes(r *replica, at consumer, out read) {
	for _, b := range out.batches {
		if b.last >= r.rules.HighWatermark() {
			w.check.fail(16, r.index, "node %d serves %+v with its high watermark at %d", r.n.id, b, r.rules.HighWatermark())
		}
	}
	if before, ok := r.at(at.offset - 1); ok && at.value != 0 && len(out.batches) > 0 && before.value != at.value {
		w.check.fail(19, r.index, "node %d serves a consumer at %d, which has read value %d before that, where value %d is", r.n.id, at.offset, at.value, before.value)
	}
}

// checkRegistered looks at a process that learns of its registration.
func (w *world) checkRegistered(n *node) {
	known := w.etcd.node(int(n.id))
	if known.epoch != n.epoch {
		return
	}
	for i, p := range w.etcd.partitions {
		at := slices.Index(p.Replicas, n.id)
		if at >= 0 && (slices.Contains(p.ISR, n.id) || slices.Contains(p.ELR, n.id)) {
			w.check.registered(i, n.id, p.Epochs[at], known.history.CleanSince)
		}
	}
}

// agreed is called with each state of a partition that is written.
func (w *world) agreed(i int, before rules.PartitionState, existed bool, now rules.PartitionState, unclean bool) {
	isr := int64(0)
	for _, id := range now.ISR {
		isr = isr*10 + int64(id)
	}
	w.note(i, "etcd", "agreed", int64(now.Leader), int64(now.LeaderEpoch), int64(now.PartitionEpoch), isr)
	w.check.agreed(i, w.highest[i], before, existed, now)
	for _, id := range now.ISR {
		w.check.unfenced(i, id, w.etcd.node(int(id)).fenced, !slices.Contains(before.ISR, id), now.Leader == id && before.Leader != id)
	}
	if unclean {
		w.counts.Unclean++
		w.check.electedUncleanly(i, now.LeaderEpoch)
		if w.topics[i].offsets {
			w.crowd.checks[w.crowd.number(i)].excused = true
		}
		for _, n := range w.nodes {
			if n.up {
				n.replicas[i].agrees = false
			}
		}
	}
	for at, id := range now.Replicas {
		n := w.node(id)
		if !slices.Contains(now.ISR, id) {
			continue
		}
		if n.lossy[i] && now.Epochs[at] > n.lostAt[i] && !n.files[i].failed {
			n.lossy[i] = false
		}
		if !existed || slices.Contains(before.ISR, id) || now.LeaderEpoch != before.LeaderEpoch {
			continue
		}
		w.check.added(i, id, now.Epochs[at], w.etcd.node(int(id)).epoch, w.etcd.entries[key{liveKey, int(id)}].mod != 0)
		w.checkAdded(i, n, now)
	}
}

// checkAdded looks at the log of a node that its leader has taken into the ISR.
func (w *world) checkAdded(i int, n *node, p rules.PartitionState) {
	leader := w.node(p.Leader)
	if !n.up || n.epoch == 0 || n.epoch != w.etcd.node(int(n.id)).epoch || !leader.up || leader.epoch == 0 {
		return
	}
	r, l := n.replicas[i], leader.replicas[i]
	if l.rules.Epoch() != p.LeaderEpoch || l.rules.Role() != rules.Leading {
		return
	}
	// Its high watermark may have moved without the node only if that was not in the
	// maximal ISR.
	w.check.caughtUp(i, n.id, r.rules.LogEnd(), l.rules.HighWatermark(), l.rules.EpochStart())
}

// checkDrops looks at what the cluster keeps of a replica that has lost records and drops
// what is left. Where another leads by now, or has taken it in, it is known by what it
// has been since.
func (w *world) checkDrops(r *replica) {
	p := w.etcd.partitions[r.index]
	if p.LeaderEpoch == r.rules.Epoch() {
		member := slices.Contains(p.ISR, r.n.id) || slices.Contains(p.ELR, r.n.id)
		w.check.dropsLost(r.index, r.n.id, p.Epochs[slices.Index(p.Replicas, r.n.id)], member)
	}
}
