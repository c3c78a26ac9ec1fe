package sim

import (
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// fault makes something go wrong, and sees to the next time.
func (w *world) fault() {
	if w.calm {
		return
	}
	w.later(w.between(0, 2*w.settings.faultEvery), w.fault)
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	c := w.controllers[w.rng.IntN(len(w.controllers))]
	down := w.between(50*time.Millisecond, 2*w.settings.lease)
	switch x := w.rng.IntN(100); {
	case x < 18:
		n.crash()
		w.later(down, n.startAgain)
	case x < 28:
		if w.mayLose(n, false) {
			n.crashMachine()
		} else {
			n.crash()
		}
		w.later(down, n.startAgain)
	case x < 30:
		if w.mayLose(n, true) {
			n.loseDirectory()
			w.later(down, n.startAgain)
		}
	case x < 40:
		if n.up && !n.paused {
			n.stop()
		}
	case x < 52:
		w.pause(&n.process, down)
	case x < 58:
		w.pause(&c.process, down)
	case x < 62:
		c.end()
		w.later(down, func() {
			if !c.up {
				c.start()
			}
		})
	case x < 72:
		w.cutLinks(w.someProcess(), w.someProcess(), down)
	case x < 80:
		w.isolate(&n.process, down)
	case x < 84:
		w.isolate(&c.process, down)
	case x < 87:
		w.note(-1, "etcd", "loses all leases")
		w.etcd.revokeAll()
	case x < 90:
		for _, n := range w.nodes {
			n.crash()
			w.later(w.between(50*time.Millisecond, down), n.startAgain)
		}
	case x < 92:
		// A slow etcd: nobody reaches it.
		w.isolate(&w.etcd.process, down)
	case x < 95:
		i := w.rng.IntN(len(w.topics))
		// What groups rest on must not be lost.
		w.operator(i, w.settings.unclean && w.chance(500) && !w.topics[i].offsets)
	case x < 97:
		if w.settings.altered {
			w.alterMinInsync(w.rng.IntN(len(w.topics)))
		}
	case x < 99:
		w.stall(w.someProcess(), w.someProcess(), down)
	default:
		w.cutLinks(&n.process, &w.nodes[w.rng.IntN(len(w.nodes))].process, down)
	}
}

// churn moves a leadership to the preferred replica, or away from it.
func (w *world) churn() {
	if w.calm {
		return
	}
	w.later(w.between(0, 2*w.settings.churn), w.churn)
	i := w.rng.IntN(len(w.topics))
	p, _ := w.etcd.partition(i)
	n := w.node(p.Replicas[0])
	if p.Leader != n.id {
		if p.Leader == cluster.NoNode || w.chance(500) {
			w.operator(i, false)
		} else {
			w.interlude(i, p, n)
		}
		return
	}
	if w.chance(500) {
		w.pause(&n.process, w.between(0, time.Second))
		return
	}
	n.bounce()
}

// interlude has the preferred replica lead for a moment, with less than the leader
// before and after, which hears nothing of it. What its followers had told that one
// before comes late.
func (w *world) interlude(i int, p rules.PartitionState, preferred *node) {
	old := &w.node(p.Leader).process
	w.stall(old, &preferred.process, w.between(200*time.Millisecond, time.Second))
	for _, id := range p.Replicas {
		if id != p.Leader {
			w.stall(&w.node(id).process, old, w.between(500*time.Millisecond, 3*time.Second))
		}
	}
	w.later(w.between(50*time.Millisecond, 300*time.Millisecond), func() {
		w.operator(i, false)
		w.pause(old, w.between(200*time.Millisecond, time.Second))
		w.later(w.between(50*time.Millisecond, 400*time.Millisecond), preferred.bounce)
	})
}

// bounce kills the process, which is there again at once.
func (n *node) bounce() {
	n.crash()
	n.w.later(n.w.between(0, 100*time.Millisecond), n.startAgain)
}

func (w *world) someProcess() *process { return w.processes[w.rng.IntN(len(w.processes))] }

func (w *world) pause(p *process, length time.Duration) {
	if !p.up || p.paused {
		return
	}
	w.note(-1, p.name, "paused", int64(length))
	p.paused = true
	life := p.life
	w.later(length, func() {
		if p.life == life {
			w.note(-1, p.name, "resumed")
			w.resume(p)
		}
	})
}

// cutLinks cuts the link from one process to another, and now and then the way back.
func (w *world) cutLinks(from, to *process, length time.Duration) {
	both := w.chance(500)
	w.note(-1, from.name, "cut off from", int64(to.index), number(both))
	w.cut[from.index][to.index] = true
	w.cut[to.index][from.index] = w.cut[to.index][from.index] || both
	w.later(length, func() {
		w.cut[from.index][to.index] = false
		if both {
			w.cut[to.index][from.index] = false
		}
	})
}

// isolate cuts all links of a process, of one direction or of both.
func (w *world) isolate(p *process, length time.Duration) {
	w.note(-1, p.name, "isolated")
	in, out := w.chance(700), w.chance(700)
	set := func(cut bool) {
		for i := range w.cut {
			if in {
				w.cut[i][p.index] = cut
			}
			if out {
				w.cut[p.index][i] = cut
			}
		}
	}
	set(true)
	w.later(length, func() { set(false) })
}

// mayLose says whether a node may lose what it has not synced, or its directory:
// of each partition fewer than min ISR replicas may lack records at a time, else
// nothing is promised.
func (w *world) mayLose(n *node, directory bool) bool {
	for i, t := range w.topics {
		if n.holds(i) && (!t.synced || directory) && !w.mayLack(n, i) {
			return false
		}
	}
	return true
}

// mayLack says whether a node's replica of a partition may lack records.
func (w *world) mayLack(n *node, i int) bool {
	lossy := 1
	for _, other := range w.nodes {
		if other != n && other.lossy[i] {
			lossy++
		}
	}
	return n.lossy[i] || lossy < rules.EffectiveMinInsync(w.lowest[i], w.topics[i].replicas)
}

// alterMinInsync gives a topic another min.insync.replicas, which nodes and
// controllers hear of in their own time.
func (w *world) alterMinInsync(i int) {
	n := 1 + w.rng.IntN(3)
	w.note(i, "oper", "alters min.insync.replicas", int64(n))
	w.counts.Altered++
	w.lowest[i], w.highest[i] = min(w.lowest[i], n), max(w.highest[i], n)
	w.etcd.put(key{topicKey, i}, n, 0)
}
