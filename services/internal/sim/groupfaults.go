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
	switch x := w.rng.IntN(136); {
	case x >= 122:
		g.vacate(w.rng.IntN(len(g.groups)))
	case x >= 118:
		g.drop(w.rng.IntN(len(sourceNames)))
	case x >= 112:
		g.admin.meddle(w.rng.IntN(len(g.groups)))
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
		g.grow(w.rng.IntN(len(sourceNames)), 1+w.rng.IntN(2))
	default:
		w.isolate(&m.process, long)
	}
}

// waver has the member want something else for a while: what it had goes to others and
// comes back.
func (m *member) waver(length time.Duration) {
	before := m.subscription
	m.subscription = groups.Subscription{Topics: []string{sourceNames[m.w.rng.IntN(len(sourceNames))]}}
	m.w.after(&m.process, 0, m.rejoin)
	m.w.after(&m.process, length, func() {
		m.subscription = before
		m.rejoin()
	})
}

// vacate has all members of a group stop for a while, in good order or not. Meanwhile it
// may expire, and an operator may do what is refused while it has members.
func (g *crowd) vacate(group int) {
	w := g.w
	away := w.between(time.Second, g.session+3*g.config.Retention)
	orderly := w.chance(800)
	g.vacant[group] = w.now + away
	for _, m := range g.members {
		switch {
		case m.group != group:
		case orderly || w.chance(700):
			m.leave(false, func() { w.after(&m.process, 0, m.comeBack) })
		default:
			m.kill()
			w.later(0, m.startAgain)
		}
	}
	for range w.rng.IntN(2) * w.rng.IntN(6) {
		w.later(w.between(away/10, away), func() { g.admin.meddle(group) })
	}
}

// vacant says whether the member's group is to have no members now. The member comes when
// that is over.
func (m *member) vacant(comes func()) bool {
	until := m.g.vacant[m.group]
	if m.w.calm || m.w.now >= until {
		return false
	}
	m.w.later(until-m.w.now, comes)
	return true
}

// comeBack joins again after the program had left.
func (m *member) comeBack() {
	if m.out && !m.vacant(m.comeBack) {
		m.out = false
		m.renew()
		m.join()
	}
}

// heal ends all faults of coordinators and members.
func (g *crowd) heal() {
	for i := range sourceNames {
		if _, s := g.newest(i); s == nil {
			g.grow(i, 1)
		}
	}
	for _, c := range g.coordinators {
		c.startAgain()
	}
	for _, m := range g.members {
		if m.twin {
			// Somebody has found the mistake.
			m.twin, m.instance = false, ""
			m.leave(false, func() {})
		}
		m.startAgain()
		m.comeBack()
	}
}
