package sim

import (
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// call sends a request of a process to a controller. The answer may be unknown though
// the controller acted; handle answers with nil if it is not controller.
func (w *world) call(p *process, c *controller, handle func(answer func(any)), then func(answer any, known bool)) {
	answered, life := false, p.life
	finish := func(answer any, known bool) {
		if !answered && p.life == life {
			answered = true
			then(answer, known)
		}
	}
	w.send(p, &c.process, func() {
		handle(func(answer any) {
			w.send(&c.process, p, func() { finish(answer, true) })
		})
	})
	w.after(p, 2*requestTimeout, func() { finish(nil, false) })
}

// anyController returns a metadata node to ask.
func (w *world) anyController() *controller { return w.controllers[w.rng.IntN(len(w.controllers))] }

// admission is what a process says of itself when it starts.
type admission struct {
	node            cluster.NodeID
	boot, directory int
	clean           bool
	// damaged says that a replica has lost records.
	damaged bool
}

// registered is the answer: the view at version shows the process as live, and no
// partition led by an earlier one.
type registered struct {
	epoch   cluster.NodeEpoch
	version int64
}

// register admits a process; an earlier one of the same node is fenced by it.
func (c *controller) register(a admission, answer func(any)) {
	if !c.leads {
		answer(nil)
		return
	}
	c.job(func(done func()) {
		i := int(a.node)
		before := c.catalog.nodes[i]
		var history rules.History
		if before.registration.mod != 0 {
			r := before.registration.value.(registration)
			history = r.history.After(before.epoch(), rules.Restart{
				Clean: a.clean, SameBoot: r.boot == a.boot, SameDirectory: r.directory == a.directory, Damaged: a.damaged,
			})
		}
		c.ask(func() any { return c.w.etcd.grant(c.w.settings.lease) }, func(lease any, known bool) {
			if !known {
				done()
				return
			}
			comparisons := []comparison{{key: key{nodeKey, i}, mod: before.registration.mod}}
			operations := []operation{
				{key: key{nodeKey, i}, value: registration{a.boot, a.directory, history}},
				{key: key{statusKey, i}, value: status{}},
				{key: key{liveKey, i}, value: true, lease: lease.(int64)},
			}
			c.commit(comparisons, operations, func(committed, bool) { c.refresh(done) }, func() {
				epoch := cluster.NodeEpoch(c.written)
				if before.live.lease != 0 {
					c.ask(func() any { c.w.etcd.revoke(before.live.lease); return nil }, func(any, bool) {})
				}
				c.elect(func(ok bool) {
					if !ok {
						done()
						return
					}
					c.catchUp(func() {
						c.w.note(-1, c.name, "registered", int64(a.node), int64(epoch))
						answer(registered{epoch, c.catalog.revision})
						done()
					})
				})
			})
		})
	})
}

// deregister fences a process that stops in good order, and moves what it leads.
func (c *controller) deregister(id cluster.NodeID, epoch cluster.NodeEpoch, answer func(any)) {
	if !c.leads {
		answer(nil)
		return
	}
	c.job(func(done func()) {
		i := int(id)
		n := c.catalog.nodes[i]
		if n.epoch() != epoch || !n.registered() {
			answer(false)
			done()
			return
		}
		nodes := c.nodes()
		state := nodes[id]
		state.Live = false
		nodes[id] = state
		c.write(c.elections(nodes), []comparison{{key: key{nodeKey, i}, mod: n.registration.mod}}, []operation{
			{key: key{statusKey, i}, value: status{fenced: true, deregistered: true}},
			{key: key{liveKey, i}},
		}, func(committed, bool) { c.refresh(done) }, func() {
			c.lost[i] = -1
			answer(true)
			done()
		})
	})
}

// altered is the answer to a proposal: the partition as it is now.
type altered struct {
	accepted  bool
	partition cluster.Partition
}

// alter makes a proposal of a leader's process, if it is legal.
func (c *controller) alter(id cluster.NodeID, epoch cluster.NodeEpoch, index int, p rules.ISRProposal, answer func(any)) {
	if !c.leads {
		answer(nil)
		return
	}
	c.job(func(done func()) {
		c.tryAlter(id, epoch, index, p, answer, done)
	})
}

func (c *controller) tryAlter(id cluster.NodeID, epoch cluster.NodeEpoch, index int, p rules.ISRProposal, answer func(any), done func()) {
	if n := c.catalog.nodes[id]; !n.registered() || n.epoch() != epoch {
		done() // The process is replaced: it is none of its business any more.
		return
	}
	before := c.catalog.partitions[index]
	next, err := rules.ProposeISR(before.PartitionState, p, c.leased(), c.traits(index))
	if err != nil {
		answer(altered{false, before.Partition})
		done()
		return
	}
	comparisons := []comparison{{key: key{partitionKey, index}, mod: before.mod}}
	for _, added := range next.ISR {
		if !slices.Contains(before.ISR, added) {
			comparisons = append(comparisons, sameProcess(int(added), c.catalog.nodes[added], true)...)
		}
	}
	c.commit(comparisons, []operation{{key: key{partitionKey, index}, value: next}}, func(committed, bool) { c.refresh(done) }, func() {
		c.w.counts.ISRChanges++
		answer(altered{true, next.Partition})
		done()
	})
}
