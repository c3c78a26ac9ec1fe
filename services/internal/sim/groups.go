package sim

import (
	"fmt"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
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
	// sources are the topics that groups read. Their records are numbers without a log:
	// what is modelled of them is how many there are.
	sources      []*source
	coordinators []*coordinator
	members      []*member
	admin        *admin
	checks       []*groupHistory // By offsets partition, in the order of offsets.
	// payloads are the records of the batches of offsets partitions, by their values.
	payloads map[int64][]groups.Record
	config   groups.Config
	// clock numbers what happens to registers, commits what is committed.
	clock, commits int64
	// session and rebalance are what members ask for.
	session, rebalance time.Duration
	// committing is per mille of the times that a member has processed something and commits
	// it: where that is seldom, coordinators have nothing to write for long.
	committing int
	// faultEvery is the mean time between faults of coordinators and members.
	faultEvery time.Duration
}

// source is a topic that groups read, by how many records its partitions have.
type source struct {
	topic groups.Topic
	ends  []int64
}

const maxSourcePartitions = 8

func newCrowd(w *world, nodes int) *crowd {
	g := &crowd{
		w: w, payloads: make(map[int64][]groups.Record),
		session: w.between(2*time.Second, 6*time.Second), rebalance: w.between(time.Second, 5*time.Second),
		faultEvery: w.between(200*time.Millisecond, 2*time.Second), committing: []int{250, 60, 10}[w.rng.IntN(3)],
	}
	confidence := w.between(500*time.Millisecond, 3*time.Second)
	g.config = groups.Config{
		MembersPerGroup: 20, Groups: 10, OffsetsPerGroup: 100, Queue: 200, RoundBytes: []int{2000, 1 << 16}[w.rng.IntN(2)],
		HeartbeatInterval: w.between(200*time.Millisecond, 600*time.Millisecond),
		Confidence:        confidence, CheckInterval: confidence / 3,
	}
	for range 1 + w.rng.IntN(2) {
		t := topic{replicas: min([]int{3, 3, 3, 2, 1}[w.rng.IntN(5)], nodes), minInsync: []int{2, 2, 1}[w.rng.IntN(3)], synced: true, offsets: true}
		g.offsets = append(g.offsets, len(w.topics))
		w.topics = append(w.topics, t)
	}
	for i := range 2 {
		s := &source{topic: groups.Topic{ID: cluster.TopicID{15: byte(i + 1)}, Name: fmt.Sprintf("t%d", i)}}
		g.sources = append(g.sources, s)
	}
	for i := range 1 + w.rng.IntN(2) {
		g.groups = append(g.groups, groups.GroupID(fmt.Sprintf("g%d", i)))
	}
	return g
}

// populate makes the processes, after those of the world.
func (g *crowd) populate() {
	w := g.w
	for _, index := range g.offsets {
		g.checks = append(g.checks, newGroupHistory(w.check, index))
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

// grow gives a source more partitions, or its first ones.
func (g *crowd) grow(i, by int) {
	s := g.sources[i]
	n := min(maxSourcePartitions, len(s.ends)+by)
	if n == len(s.ends) {
		return
	}
	for len(s.ends) < n {
		s.ends = append(s.ends, 0)
	}
	g.w.note(-1, "oper", "partitions of a source", int64(i), int64(n))
	g.w.etcd.put(key{sourceKey, i}, int32(n), 0)
}

// produce adds records to sources, until there are no more faults.
func (g *crowd) produce() {
	w := g.w
	if w.calm {
		return
	}
	w.later(w.between(50*time.Millisecond, 150*time.Millisecond), g.produce)
	for _, s := range g.sources {
		for i := range s.ends {
			s.ends[i] += w.rng.Int64N(3)
		}
	}
}

// end returns how many records a partition of a source has.
func (g *crowd) end(p groups.Partition) int64 { return g.sources[p.Topic[15]-1].ends[p.Index] }

// shown is what an image shows of sources.
type shown struct {
	g *crowd
	i *image
}

// ByName returns the topic of that name.
func (s shown) ByName(name string) (groups.Topic, bool) {
	for i, known := range s.g.sources {
		if known.topic.Name == name {
			return s.topic(i)
		}
	}
	return groups.Topic{}, false
}

// ByID returns the topic of that id.
func (s shown) ByID(id cluster.TopicID) (groups.Topic, bool) { return s.topic(int(id[15]) - 1) }

// Deleted reports that no topic is deleted.
func (s shown) Deleted(cluster.TopicID) bool { return false }

// All yields all topics.
func (s shown) All(yield func(groups.Topic) bool) {
	for i := range s.g.sources {
		if t, ok := s.topic(i); ok && !yield(t) {
			return
		}
	}
}

// Version grows with each change.
func (s shown) Version() int64 { return s.i.revision }

func (s shown) topic(i int) (groups.Topic, bool) {
	t := s.g.sources[i].topic
	t.Partitions = s.i.sources[i]
	return t, t.Partitions > 0
}
