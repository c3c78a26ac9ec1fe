package sim

import (
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// Which nodes count as live, as the metadata service judges it.

// judge compares what the controller made of the nodes with their leases, as the
// service's controller does: un-fence, fence what is due, elect.
func (c *controller) judge() {
	if !c.leads || c.judging {
		return
	}
	c.judging = true
	c.job(func(done func()) {
		end := func() {
			c.balance(func() {
				c.judging = false
				done()
			})
		}
		var returned, lost []int
		live := 0
		for i, n := range c.catalog.nodes {
			switch s := n.made(); {
			case !n.registered():
			case s.fenced && n.live.mod != 0 && !s.deregistered:
				returned = append(returned, i)
			case s.fenced:
			default:
				live++
				if n.live.mod == 0 {
					lost = append(lost, i)
				}
			}
		}
		due := c.due(lost, live)
		failed := func(committed, bool) { c.refresh(end) }
		c.unfence(returned, failed, func() {
			c.fence(due, failed, func() {
				if c.judged == c.catalog.revision {
					end()
					return
				}
				c.elect(func(bool) { end() })
			})
		})
	})
}

// due returns which of the nodes without a lease are to be fenced now.
func (c *controller) due(lost []int, live int) []int {
	now := c.w.now
	first := now
	for i := range c.lost {
		switch {
		case !slices.Contains(lost, i):
			c.lost[i] = -1
		case c.lost[i] < 0:
			c.lost[i] = now
		}
		if c.lost[i] >= 0 {
			first = min(first, c.lost[i])
		}
	}
	c.fenced = slices.DeleteFunc(c.fenced, func(at time.Duration) bool { return now-at > c.w.settings.grace })
	if len(lost) == 0 {
		c.pause = 0
		return nil
	}
	if until := first + c.w.settings.grace; until > c.pause && rules.MassLoss(len(lost)+len(c.fenced), live+len(c.fenced)) {
		c.w.counts.MassLosses++
		c.pause = until
	}
	if now < c.pause {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(lost), func(i int) bool { return now-c.lost[i] < c.w.settings.settle })
}

// process returns comparisons that hold while the same process of a node is the
// latest, with its lease or without.
func sameProcess(i int, n catalogNode, leased bool) []comparison {
	return []comparison{{key: key{nodeKey, i}, mod: n.registration.mod}, {key: key{liveKey, i}, present: leased}}
}

func (c *controller) fence(due []int, failed func(committed, bool), then func()) {
	if len(due) == 0 {
		then()
		return
	}
	nodes := c.nodes()
	var comparisons []comparison
	var operations []operation
	for _, i := range due {
		state := nodes[cluster.NodeID(i)]
		state.Live = false
		nodes[cluster.NodeID(i)] = state
		comparisons = append(comparisons, sameProcess(i, c.catalog.nodes[i], false)...)
		operations = append(operations, operation{key: key{statusKey, i}, value: status{fenced: true, leaving: c.catalog.nodes[i].made().leaving}})
	}
	c.write(c.elections(nodes), comparisons, operations, failed, func() {
		for _, i := range due {
			c.lost[i] = -1
			c.fenced = append(c.fenced, c.w.now)
			c.w.counts.Fences++
			c.w.note(-1, c.name, "fenced", int64(i))
		}
		c.catchUp(then)
	})
}

func (c *controller) unfence(returned []int, failed func(committed, bool), then func()) {
	if len(returned) == 0 {
		then()
		return
	}
	var comparisons []comparison
	var operations []operation
	for _, i := range returned {
		comparisons = append(comparisons, sameProcess(i, c.catalog.nodes[i], true)...)
		operations = append(operations, operation{key: key{statusKey, i}, value: status{leaving: c.catalog.nodes[i].made().leaving}})
	}
	c.commit(comparisons, operations, failed, func() { c.catchUp(then) })
}
