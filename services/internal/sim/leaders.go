package sim

import (
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// What moves leaderships though nobody has failed: nodes that are about to stop, the
// balance of preferred leaders, and operators.

// leave takes note that a process is about to stop, and moves what it leads as far
// as that can go. The answer is the revision that shows it.
func (c *controller) leave(id cluster.NodeID, epoch cluster.NodeEpoch, answer func(any)) {
	if !c.leads {
		answer(nil)
		return
	}
	c.job(func(done func()) {
		i := int(id)
		n := c.catalog.nodes[i]
		moved := func() {
			c.elect(func(ok bool) {
				if !ok {
					done()
					return
				}
				c.catchUp(func() {
					answer(c.catalog.revision)
					done()
				})
			})
		}
		switch made := n.made(); {
		case n.epoch() != epoch || !n.registered():
			done()
		case made.leaving:
			moved()
		default:
			made.leaving = true
			c.commit([]comparison{{key: key{nodeKey, i}, mod: n.registration.mod}, {key: key{statusKey, i}, mod: n.status.mod}},
				[]operation{{key: key{statusKey, i}, value: made}}, func(committed, bool) { c.refresh(done) }, func() {
					c.w.note(-1, c.name, "leaving", int64(id))
					moved()
				})
		}
	})
}

// promote stores a partition with a new leader, which has its lease and is the
// process that was chosen.
func (c *controller) promote(change partitionChange, unclean bool, then func()) {
	leader := change.state.Leader
	comparisons := append(sameProcess(int(leader), c.catalog.nodes[leader], true), comparison{key: key{partitionKey, change.index}, mod: change.mod})
	c.commit(comparisons, []operation{{key: key{partitionKey, change.index}, value: change.state, unclean: unclean}}, func(committed, bool) { c.refresh(then) }, then)
}

// electLeader is an operator's wish: the preferred replica leads, or, uncleanly, the
// best that is live where no other can.
func (c *controller) electLeader(index int, unclean bool) {
	if !c.leads {
		return
	}
	c.job(func(done func()) {
		before := c.catalog.partitions[index]
		if before.mod == 0 {
			done()
			return
		}
		nodes := c.leased()
		if !unclean {
			if next, changed := rules.Prefer(before.PartitionState, nodes); changed {
				c.w.counts.Preferred++
				c.promote(partitionChange{index, next, before.mod}, false, done)
				return
			}
			done()
			return
		}
		if before.Leader != cluster.NoNode {
			done()
			return
		}
		if next, _ := rules.Elect(before.PartitionState, nodes, c.traits(index)); next.Leader != cluster.NoNode {
			c.promote(partitionChange{index, next, before.mod}, false, done)
			return
		}
		if next, elected := rules.ElectUnclean(before.PartitionState, nodes); elected {
			c.promote(partitionChange{index, next, before.mod}, true, done)
			return
		}
		done()
	})
}

// balance gives leaderships back to preferred replicas, of partitions that looked
// the same the last time.
func (c *controller) balance(then func()) {
	if c.w.now < c.balanced+c.w.settings.balance {
		then()
		return
	}
	c.balanced = c.w.now
	if c.w.now < c.pause {
		c.unbalanced = nil
		then()
		return
	}
	found := make([]int64, len(c.catalog.partitions))
	var due []partitionChange
	nodes := c.leased()
	for i, p := range c.catalog.partitions {
		if p.mod == 0 {
			continue
		}
		if next, changed := rules.Prefer(p.PartitionState, nodes); changed {
			found[i] = p.mod
			if c.unbalanced != nil && c.unbalanced[i] == p.mod {
				due = append(due, partitionChange{i, next, p.mod})
			}
		}
	}
	c.unbalanced = found
	c.promoteAll(due, then)
}

func (c *controller) promoteAll(due []partitionChange, then func()) {
	if len(due) == 0 {
		then()
		return
	}
	c.w.counts.Preferred++
	c.promote(due[0], false, func() { c.promoteAll(due[1:], then) })
}

// operator asks whoever may be controller for a leader. Nobody waits for the answer.
func (w *world) operator(index int, unclean bool) {
	from, c := &w.clients[index].process, w.anyController()
	w.note(index, "oper", "asks for a leader", number(unclean))
	w.sendOnce(from, &c.process, func() { c.electLeader(index, unclean) })
}

// stop ends the process in good order: it gives away what it leads, serves on until
// others lead it, deregisters, writes all that is queued, and leaves the clean marker
// last.
func (n *node) stop() {
	if n.stopping || n.epoch == 0 {
		return
	}
	n.stopping = true
	n.w.note(-1, n.name, "stopping")
	n.giveAway(n.w.now + n.w.settings.grace/2)
}

// giveAway moves what the node leads until nothing is left that others could lead,
// or a time has come.
func (n *node) giveAway(until time.Duration) {
	if n.others() == 0 || n.w.now >= until {
		if n.others() > 0 {
			n.w.note(-1, n.name, "stops as a leader")
		}
		n.deregister(5)
		return
	}
	c, id, epoch := n.w.anyController(), n.id, n.epoch
	again := func() { n.w.after(&n.process, 50*time.Millisecond, func() { n.giveAway(until) }) }
	n.w.call(&n.process, c, func(answer func(any)) { c.leave(id, epoch, answer) }, func(answer any, known bool) {
		if revision, ok := answer.(int64); known && ok {
			n.awaitView(revision, until, again)
			return
		}
		again()
	})
}

// awaitView waits until the node has taken note of what a revision shows.
func (n *node) awaitView(revision int64, until time.Duration, then func()) {
	if n.view != nil && n.view.revision >= revision || n.w.now >= until {
		then()
		return
	}
	n.w.after(&n.process, 20*time.Millisecond, func() { n.awaitView(revision, until, then) })
}

// others counts the partitions that the node leads and another could lead.
func (n *node) others() (count int) {
	if n.view == nil {
		return 0
	}
	for _, p := range n.view.partitions {
		if p.Leader == n.id && slices.ContainsFunc(p.ISR, func(id cluster.NodeID) bool { _, able := n.live(id); return able && id != n.id }) {
			count++
		}
	}
	return count
}

// deregister is the last word to the controller.
func (n *node) deregister(attempts int) {
	n.silent = true
	if attempts == 0 {
		n.shut()
		return
	}
	c, id, epoch := n.w.anyController(), n.id, n.epoch
	n.w.call(&n.process, c, func(answer func(any)) { c.deregister(id, epoch, answer) }, func(answer any, known bool) {
		if !known || answer == nil {
			n.w.after(&n.process, 100*time.Millisecond, func() { n.deregister(attempts - 1) })
			return
		}
		n.shut()
	})
}

func (n *node) shut() {
	n.w.counts.CleanStops++
	n.w.note(-1, n.name, "stopped")
	n.end()
	for i, f := range n.files {
		f.ops = append(f.ops, op{kind: opState, state: n.replicas[i].state()})
		f.written, f.synced = len(f.ops), len(f.ops)
	}
	n.clean = true
	n.w.later(n.w.between(100*time.Millisecond, 4*time.Second), n.startAgain)
}
