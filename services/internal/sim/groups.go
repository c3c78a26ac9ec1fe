package sim

import (
	"fmt"
	"time"

	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// crowd is what a run has of consumer groups: coordinators, which keep groups in
// offsets partitions of the world, and members, which share sources out.
type crowd struct {
	w *world
	// offsets holds the indexes of the offsets partitions. Group i is kept in
	// offsets[i % len(offsets)].
	offsets []int
	groups  []groups.GroupID
	// sources are the topics that groups read, those too that are deleted; topic id n is
	// that of sources[n-1]. Their records are numbers without a log: what is modelled of
	// them is how many there are.
	sources      []*source
	coordinators []*coordinator
	members      []*member
	admin        *admin
	checks       []*groupHistory // By offsets partition, in the order of offsets.
	// payloads are what the batches of offsets partitions hold, by their values.
	payloads map[int64]payload
	config   groups.Config
	// answering is the step in which a round was let out last, and answered its place in the
	// order of what happens to registers.
	answering int
	answered  int64
	// vacant is until when members of a group stay away.
	vacant []time.Duration
	// commits numbers what is committed.
	commits int64
	// session and rebalance are what members ask for.
	session, rebalance time.Duration
	// committing is per mille of the times that a member has processed something and commits
	// it: where that is seldom, coordinators have nothing to write for long.
	committing int
	// faultEvery is the mean time between faults of coordinators and members.
	faultEvery time.Duration
}

func newCrowd(w *world, nodes int) *crowd {
	g := &crowd{
		w: w, payloads: make(map[int64]payload),
		session: w.between(2*time.Second, 6*time.Second), rebalance: w.between(time.Second, 5*time.Second),
		faultEvery: w.between(200*time.Millisecond, 2*time.Second), committing: []int{250, 60, 10}[w.rng.IntN(3)],
	}
	if w.chance(400) {
		// Where less befalls what groups rest on, more comes of what they do.
		w.settings.faultEvery *= 6
		w.settings.churn = 0
	}
	confidence := w.between(500*time.Millisecond, 3*time.Second)
	g.config = groups.Config{
		MembersPerGroup: 20, Groups: 10, OffsetsPerGroup: 100, Queue: 200, Commits: 150, RoundBytes: []int{2000, 1 << 16}[w.rng.IntN(2)],
		HeartbeatInterval: w.between(200*time.Millisecond, 600*time.Millisecond),
		Confidence:        confidence, CheckInterval: confidence / 3,
		Retention: []time.Duration{0, 1, 1, 1}[w.rng.IntN(4)] * w.between(1500, 5000) * time.Millisecond,
		Aging:     w.between(100*time.Millisecond, time.Second),
	}
	for range 1 + w.rng.IntN(2) {
		t := topic{replicas: min([]int{3, 3, 3, 2, 1}[w.rng.IntN(5)], nodes), minInsync: []int{2, 2, 1}[w.rng.IntN(3)], synced: true, offsets: true}
		g.offsets = append(g.offsets, len(w.topics))
		w.topics = append(w.topics, t)
	}
	for i := range 1 + w.rng.IntN(2) {
		g.vacant = append(g.vacant, 0)
		g.groups = append(g.groups, groups.GroupID(fmt.Sprintf("g%d", i)))
	}
	return g
}

// populate makes the processes, after those of the world.
func (g *crowd) populate() {
	w := g.w
	for _, index := range g.offsets {
		g.checks = append(g.checks, newGroupHistory(w.check, index, g.config.Retention))
	}
	for i := range 2 + w.rng.IntN(2) {
		g.coordinators = append(g.coordinators, newCoordinator(g, i))
	}
	for i := range 3 + w.rng.IntN(4) {
		g.members = append(g.members, newMember(g, i))
	}
	g.admin = newAdmin(g)
}

// start lets coordinators and members begin; partitions of sources are there.
func (g *crowd) start() {
	w := g.w
	g.grow(0, 2+w.rng.IntN(5))
	if w.chance(700) {
		g.grow(1, 1+w.rng.IntN(3))
	}
	for _, c := range g.coordinators {
		c.start()
	}
}

// publish tells coordinators and programs what a metadata node shows.
func (g *crowd) publish(c *controller, shown *image) {
	w := g.w
	for _, to := range g.coordinators {
		w.send(&c.process, &to.process, func() { to.show(shown) })
	}
	for _, m := range g.members {
		w.send(&c.process, &m.process, func() { m.show(shown) })
	}
	w.send(&c.process, &g.admin.process, func() { g.admin.show(shown) })
}

// begin lets members join and faults begin.
func (g *crowd) begin() {
	w := g.w
	for _, m := range g.members {
		w.later(w.between(0, 2*time.Second), m.startAgain)
	}
	g.admin.start()
	w.later(time.Second, g.fault)
	w.later(0, g.produce)
}

// partition returns where a group is kept: the index of the offsets partition in the
// world, and its number.
func (g *crowd) partition(group int) (index, number int) {
	number = group % len(g.offsets)
	return g.offsets[number], number
}

// number returns the number of an offsets partition.
func (g *crowd) number(index int) int { return index - g.offsets[0] }

// check returns the checks of a group.
func (g *crowd) check(group int) *groupHistory { return g.checks[group%len(g.offsets)] }
