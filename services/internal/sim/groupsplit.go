package sim

import (
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// Faults that make two coordinators of one partition, each of which finds somebody to
// serve.

// sever cuts the links between processes and others, as long as wanted.
func (w *world) sever(some, others []*process, length time.Duration) {
	set := func(cut bool) {
		for _, a := range some {
			for _, b := range others {
				w.cut[a.index][b.index], w.cut[b.index][a.index] = cut, cut
			}
		}
	}
	set(true)
	w.later(length, func() { set(false) })
}

// island cuts the leader of an offsets partition, its coordinator and some members off
// from everybody else, who elect and go on.
func (g *crowd) island(length time.Duration) {
	w := g.w
	index := g.offsets[w.rng.IntN(len(g.offsets))]
	p, _ := w.etcd.partition(index)
	c, ok := g.coordinator(p.Coordinator)
	if p.Leader == cluster.NoNode || !ok {
		return
	}
	w.note(index, "net", "island", int64(p.Leader), int64(c.id))
	leader := w.node(p.Leader)
	inside := []*process{&leader.process, &c.process}
	for _, m := range g.members {
		if w.chance(500) {
			inside = append(inside, &m.process)
		}
	}
	var outside []*process
	for _, other := range w.processes {
		in := false
		for _, x := range inside {
			in = in || x == other
		}
		if !in {
			outside = append(outside, other)
		}
	}
	w.sever(inside, outside, length)
}

// usurp gives an offsets partition to another coordinator while the one before hears
// nothing of it, and neither does a member, which it goes on to serve for a while.
func (g *crowd) usurp() {
	w := g.w
	number := w.rng.IntN(len(g.offsets))
	p, _ := w.etcd.partition(g.offsets[number])
	c, ok := g.coordinator(p.Coordinator)
	if !ok {
		return
	}
	for _, ctl := range w.controllers {
		if ctl.up && ctl.leads {
			ctl.usurp(g.offsets[number])
		}
	}
	length := g.config.Confidence + w.between(0, g.config.Confidence)
	var metadata, storage, others []*process
	for _, ctl := range w.controllers {
		metadata = append(metadata, &ctl.process)
	}
	for _, n := range w.nodes {
		storage = append(storage, &n.process)
	}
	for _, other := range g.coordinators {
		if other != c {
			others = append(others, &other.process)
		}
	}
	w.sever([]*process{&c.process}, metadata, length+time.Second)
	w.sever([]*process{&c.process}, storage, length)
	if w.chance(500) {
		w.later(w.between(100*time.Millisecond, length), func() { g.unseat(g.offsets[number]) })
	}
	var members []*process
	for _, m := range g.members {
		if _, at := g.partition(m.group); at == number && w.chance(400) {
			members = append(members, &m.process)
		}
	}
	w.sever(members, metadata, length+g.session)
	w.sever(members, others, length+g.session)
}

// unseat has a partition led by another node while its coordinator does nothing: what the
// one before asks for comes first.
func (g *crowd) unseat(index int) {
	w := g.w
	p, _ := w.etcd.partition(index)
	c, ok := g.coordinator(p.Coordinator)
	if !ok || p.Leader == cluster.NoNode || w.calm {
		return
	}
	w.pause(&c.process, w.between(500*time.Millisecond, 3*time.Second))
	w.node(p.Leader).bounce()
}

// usurp gives an offsets partition to another coordinator.
func (c *controller) usurp(index int) {
	c.job(func(done func()) {
		before := c.catalog.partitions[index]
		nodes := c.leased()
		next := before.PartitionState
		for i := range c.w.crowd.coordinators {
			id := cluster.NodeID(len(c.w.nodes) + 1 + i)
			if n := nodes[id]; id != before.Coordinator && n.Live && !n.Leaving {
				next.Coordinator, next.CoordinatorNodeEpoch = id, n.Epoch
				next.CoordinatorEpoch++
				next.PartitionEpoch++
				break
			}
		}
		if next.Coordinator == before.Coordinator {
			done()
			return
		}
		c.w.note(index, c.name, "usurps", int64(next.Coordinator), int64(next.CoordinatorEpoch))
		c.commit([]comparison{{key: key{partitionKey, index}, mod: before.mod}}, []operation{{key: key{partitionKey, index}, value: next}},
			func(committed, bool) { c.refresh(done) }, done)
	})
}
