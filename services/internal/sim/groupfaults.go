package sim

import (
	"time"

	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// fault makes something go wrong with coordinators or members, and sees to the next
// time.
func (g *crowd) fault() {
	w := g.w
	if w.calm {
		return
	}
	w.later(w.between(0, 2*g.faultEvery), g.fault)
	c := g.coordinators[w.rng.IntN(len(g.coordinators))]
	m := g.members[w.rng.IntN(len(g.members))]
	down := w.between(50*time.Millisecond, 2*w.settings.lease)
	long := w.between(50*time.Millisecond, 2*g.session)
	switch x := w.rng.IntN(112); {
	case x >= 106:
		g.island(w.between(w.settings.lease, 3*w.settings.lease))
	case x >= 100:
		g.usurp()
	case x < 8:
		c.crash()
		w.later(down, c.startAgain)
	case x < 20:
		w.pause(&c.process, down)
	case x < 24:
		c.stop()
	case x < 29:
		w.isolate(&c.process, down)
	case x < 36:
		w.cutLinks(&c.process, &w.nodes[w.rng.IntN(len(w.nodes))].process, down)
	case x < 42:
		w.cutLinks(&c.process, &w.controllers[w.rng.IntN(len(w.controllers))].process, down)
	case x < 48:
		w.cutLinks(&m.process, &c.process, long)
	case x < 52:
		w.stall(w.someProcess(), &c.process, down)
	case x < 58:
		m.kill()
		w.later(w.between(0, long), m.startAgain)
	case x < 66:
		w.pause(&m.process, long)
	case x < 76:
		keep := w.chance(500)
		m.leave(keep, func() { w.after(&m.process, w.between(0, g.session), m.comeBack) })
	case x < 82:
		m.subscribe()
		w.after(&m.process, 0, m.rejoin)
	case x < 92:
		m.waver(w.between(100*time.Millisecond, g.session/2))
	case x < 94:
		g.grow(w.rng.IntN(len(g.sources)), 1+w.rng.IntN(2))
	default:
		w.isolate(&m.process, long)
	}
}

// waver has the member want something else for a while: what it had goes to others and
// comes back.
func (m *member) waver(length time.Duration) {
	before := m.subscription
	m.subscription = groups.Subscription{Topics: []string{[]string{"t0", "t1"}[m.w.rng.IntN(2)]}}
	m.w.after(&m.process, 0, m.rejoin)
	m.w.after(&m.process, length, func() {
		m.subscription = before
		m.rejoin()
	})
}

// comeBack joins again after the program had left.
func (m *member) comeBack() {
	if m.out {
		m.out = false
		m.renew()
		m.join()
	}
}

// heal ends all faults of coordinators and members.
func (g *crowd) heal() {
	if len(g.sources[1].ends) == 0 {
		g.grow(1, 1)
	}
	for _, c := range g.coordinators {
		c.startAgain()
	}
	for _, m := range g.members {
		m.startAgain()
		m.comeBack()
	}
}
