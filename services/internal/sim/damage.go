package sim

import (
	"math/rand/v2"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// damage makes replicas lose records while their processes run, in some of the seeds. Its
// numbers are its own, so that the other seeds are as they would be without it.
type damage struct {
	rng *rand.Rand
	// every is the mean time between losses, 0 for never.
	every time.Duration
}

func newDamage(seed uint64) damage {
	d := damage{rng: rand.New(rand.NewPCG(seed, 0xda3a))}
	if d.rng.IntN(4) == 0 {
		d.every = 200*time.Millisecond + time.Duration(d.rng.Int64N(int64(4*time.Second)))
	}
	return d
}

// damageOne has a replica find out that it has lost records, and sees to the next time.
func (w *world) damageOne() {
	if w.calm {
		return
	}
	w.later(time.Duration(w.damage.rng.Int64N(int64(2*w.damage.every))), w.damageOne)
	n, i := w.nodes[w.damage.rng.IntN(len(w.nodes))], w.damage.rng.IntN(len(w.topics))
	p, ok := w.etcd.partition(i)
	if !ok || len(p.Replicas) == 1 || n.epoch == 0 || !n.up || !n.holds(i) || n.files[i].failed || !w.mayLack(n, i) {
		return
	}
	r := n.replicas[i]
	if r.rules.LogEnd() == r.rules.LogStart() {
		return
	}
	r.note("has lost records", r.rules.LogStart(), r.rules.LogEnd())
	w.counts.Damages++
	n.everLossy[i] = true
	// This very process may come back into the ISR.
	n.lossy[i], n.lostAt[i] = true, min(n.epoch-1, n.lostAt[i])
	n.files[i].failed, n.files[i].whole = true, 0
	r.rules.SetFailed(true)
}

// stuck says that somebody leads who has lost records and is the only one in sync: it
// takes no more until an operator gives up what it has.
func (w *world) stuck() bool {
	for i, p := range w.etcd.partitions {
		if p.Leader != cluster.NoNode && len(p.ISR)+len(p.ELR) == 1 && w.node(p.Leader).files[i].failed {
			return true
		}
	}
	return false
}
