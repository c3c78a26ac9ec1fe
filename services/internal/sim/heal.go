package sim

import (
	"fmt"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// healWithin is how long everything may take to come to rest.
const healWithin = 90 * time.Second

// heal ends all faults: everybody runs, everybody reaches everybody, producers send
// nothing new.
func (w *world) heal() {
	w.note(-1, "world", "heals")
	w.calm = true
	for i := range w.cut {
		clear(w.cut[i])
	}
	for _, p := range w.processes {
		w.resume(p)
	}
	for _, c := range w.controllers {
		if !c.up {
			c.start()
		}
	}
	for _, n := range w.nodes {
		n.startAgain()
	}
	if w.crowd != nil {
		w.crowd.heal()
	}
	w.later(2*w.settings.lease+w.settings.grace, w.operate)
}

// operate does what only an operator may: partitions that no node can lead without a
// loss get a leader all the same.
func (w *world) operate() {
	w.later(time.Second, w.operate)
	for _, n := range w.nodes {
		// Also one that had begun to stop when the faults ended.
		n.startAgain()
	}
	if w.crowd != nil {
		w.crowd.heal()
	}
	for i, p := range w.etcd.partitions {
		if p.Leader == cluster.NoNode && len(p.ISR)+len(p.ELR) == 0 {
			if w.intact(i) {
				w.check.fail(35, i, "nobody leads, and none of the replicas has ever lost anything: %+v", p)
				return
			}
			w.operator(i, true)
		}
	}
}

// intact says that no replica of a partition can ever have lost what it had written.
func (w *world) intact(i int) bool {
	for _, n := range w.nodes {
		if n.everLossy[i] && n.holds(i) {
			return false
		}
	}
	return true
}

// atRest says whether nothing is left to do.
func (w *world) atRest() bool { return w.steps%64 == 0 && w.unrest() == "" }

// unrest returns what is not at rest, or "".
func (w *world) unrest() string {
	for _, n := range w.nodes {
		if !n.up || n.epoch == 0 || n.stopping || w.etcd.node(int(n.id)).fenced || w.etcd.node(int(n.id)).epoch != n.epoch {
			return fmt.Sprintf("%s is not live", n.name)
		}
	}
	for i, p := range w.etcd.partitions {
		if p.Leader != p.Replicas[0] {
			return fmt.Sprintf("partition %d is led by node %d and not by the first of %v", i, p.Leader, p.Replicas)
		}
		if len(p.ISR) != len(p.Replicas) || len(p.ELR) > 0 {
			return fmt.Sprintf("partition %d has leader %d, ISR %v and ELR %v of %v", i, p.Leader, p.ISR, p.ELR, p.Replicas)
		}
		leader := w.node(p.Leader).replicas[i]
		if leader.rules.Role() != rules.Leading || leader.rules.Epoch() != p.LeaderEpoch || leader.rules.HighWatermark() != leader.rules.Next() {
			return fmt.Sprintf("the leader of partition %d, node %d, has not committed all", i, p.Leader)
		}
		for _, id := range p.Replicas {
			r := w.node(id).replicas[i]
			if r.file.failed {
				return fmt.Sprintf("partition %d on node %d lacks what it has lost", i, id)
			}
			if r.rules.HighWatermark() != leader.rules.Next() || r.rules.LogEnd() != leader.rules.Next() || r.rules.Next() != r.rules.LogEnd() || r.rules.Epoch() != p.LeaderEpoch || len(r.waiters) > 0 {
				return fmt.Sprintf("partition %d on node %d is not where its leader is", i, id)
			}
		}
		c := w.clients[i]
		for _, pr := range c.producers {
			if len(pr.flight) > 0 {
				return fmt.Sprintf("a producer of partition %d waits for an acknowledgement", i)
			}
		}
		if c.consumer.offset != leader.rules.HighWatermark() {
			return fmt.Sprintf("the consumer of partition %d is at %d of %d", i, c.consumer.offset, leader.rules.HighWatermark())
		}
	}
	if w.crowd != nil {
		return w.crowd.unrest()
	}
	return ""
}

// checkRest looks at what is there in the end: everything that was acknowledged, once,
// in order, at its offset, on each replica.
func (w *world) checkRest() {
	if what := w.unrest(); what != "" {
		partition := -1
		fmt.Sscanf(what, "partition %d", &partition)
		w.check.fail(35, partition, "%s after everything was healed", what)
		return
	}
	if w.crowd != nil {
		for _, h := range w.crowd.checks {
			h.linearizable()
		}
	}
	for i, p := range w.etcd.partitions {
		leader := w.node(p.Leader).replicas[i]
		for _, id := range p.Replicas {
			w.checkEqual(leader, w.node(id).replicas[i])
		}
		w.check.finally(i, leader.rules.LogStart(), leader.batches)
	}
}

// checkEqual compares a replica with its leader's.
func (w *world) checkEqual(leader, r *replica) {
	for _, b := range r.batches {
		if own, ok := leader.at(b.base); ok && own != b || !ok && b.base >= leader.rules.LogStart() {
			w.check.fail(8, r.index, "the log of node %d has %+v, that of the leader, node %d, has %+v", r.n.id, b, leader.n.id, own)
			return
		}
	}
}

// finally is the whole log of a partition as it is read in the end.
func (k *checker) finally(p int, start int64, log []batch) {
	h := k.partitions[p]
	if h.excused {
		return
	}
	read := make(map[int64]int64, len(log))
	for _, b := range log {
		if before, twice := read[b.value]; twice && before >= h.start {
			k.fail(3, p, "value %d is read at %d and at %d", b.value, before, b.base)
		}
		read[b.value] = b.base
	}
	for _, a := range h.acked {
		if at, ok := read[a.value]; a.base >= start && (!ok || at != a.base) {
			k.fail(1, p, "value %d was acknowledged at %d and is read at %d (%t)", a.value, a.base, at, ok)
		}
	}
}
