package sim

import (
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

const requestTimeout = time.Second

// term is a leadership of a controller: the election key that won.
type term struct {
	key    key
	create int64
}

// catalog is the state of the cluster as a controller's watch has shown it.
type catalog struct {
	revision   int64
	cursor     int // In etcd's history.
	nodes      []catalogNode
	partitions []catalogPartition
	minInsync  []stored
	sources    []stored
	elections  []stored
}

type catalogNode struct {
	registration, status, live stored
}

type catalogPartition struct {
	rules.PartitionState
	mod int64
}

func (n catalogNode) registered() bool { return n.registration.mod != 0 && n.status.mod != 0 }

func (n catalogNode) epoch() cluster.NodeEpoch { return cluster.NodeEpoch(n.registration.mod) }

func (n catalogNode) made() status {
	s, _ := n.status.value.(status)
	return s
}

// image is what a catalog tells nodes and clients. It is never changed.
type image struct {
	revision   int64
	partitions []cluster.Partition
	// epochs are those of nodes that are live and not about to stop; 0 for others.
	// Node n is at n-1.
	epochs []cluster.NodeEpoch
	// minInsync are those of the partitions.
	minInsync []int
	// sources are the topics that groups read.
	sources []sourceState
}

// controller is one metadata node: it campaigns, watches, and decides while it
// believes that it has won. It does one job at a time.
type controller struct {
	process
	w       *world
	id      int
	catalog catalog
	image   *image
	lease   int64
	// own is the candidacy, and term the same once it has won.
	own, term term
	// leads says that the term was opened; opening, that its first transaction is
	// under way.
	leads, opening bool
	busy           bool
	jobs           []func(done func())
	// written is the revision of the newest own write.
	written int64
	// caughtUp waits for the catalog to show a revision.
	caughtUp []awaited
	judging  bool
	judged   int64
	lost     []time.Duration // Since when a node has no lease; -1 for never.
	pause    time.Duration
	fenced   []time.Duration
	// balanced is when leaderships were last compared with preferences, and unbalanced
	// at which revision each partition was found whose preferred replica could lead.
	balanced   time.Duration
	unbalanced []int64
}

type awaited struct {
	revision int64
	run      func()
}

func newController(w *world, id int) *controller {
	c := &controller{w: w, id: id}
	w.register(&c.process, []string{"ctl0", "ctl1"}[id])
	return c
}

// start begins a life of the process.
func (c *controller) start() {
	c.begin()
	c.catalog = catalog{
		nodes: make([]catalogNode, c.w.allNodes()+1), partitions: make([]catalogPartition, len(c.w.topics)),
		minInsync: make([]stored, len(c.w.topics)),
		elections: make([]stored, len(c.w.controllers)), sources: make([]stored, len(sourceNames)),
	}
	c.image, c.leads, c.opening, c.lease, c.own = nil, false, false, 0, term{}
	c.busy, c.jobs, c.caughtUp, c.written, c.judging = false, nil, nil, 0, false
	c.campaign()
	c.w.every(&c.process, 200*time.Millisecond, 400*time.Millisecond, func() {
		c.ask(func() any { return c.w.etcd.revision }, func(revision any, known bool) {
			if known {
				c.watched(revision.(int64))
			}
		})
		c.open()
		c.judge()
	})
	c.w.every(&c.process, c.w.settings.lease/3, c.w.settings.lease/3, c.keepAlive)
	c.w.every(&c.process, 500*time.Millisecond, time.Second, func() { c.publish() })
}

// ask calls etcd. The answer may be unknown though etcd acted. What waits for it
// ends with the term in which it was asked.
func (c *controller) ask(act func() any, then func(answer any, known bool)) {
	answered, asked, life := false, c.term, c.life
	finish := func(answer any, known bool) {
		if !answered && c.term == asked && c.life == life {
			answered = true
			then(answer, known)
		}
	}
	e := c.w.etcd
	c.w.sendOnce(&c.process, &e.process, func() {
		answer := act()
		c.w.sendOnce(&e.process, &c.process, func() { finish(answer, true) })
	})
	c.w.after(&c.process, requestTimeout, func() { finish(nil, false) })
}

// campaign becomes a candidate, after it has revoked what earlier processes left.
func (c *controller) campaign() {
	c.leads, c.opening, c.term = false, false, term{}
	c.jobs, c.busy, c.caughtUp, c.judging = nil, false, nil, false
	type candidate struct{ lease, create int64 }
	e := c.w.etcd
	k := key{electionKey, c.id}
	life := c.own
	c.ask(func() any {
		if s := e.entries[k]; s.mod != 0 {
			e.revoke(s.lease)
		}
		id := e.grant(c.w.settings.lease)
		e.put(k, true, id)
		return candidate{id, e.entries[k].create}
	}, func(answer any, known bool) {
		switch {
		case c.own != life:
		case !known:
			c.w.after(&c.process, 300*time.Millisecond, c.campaign)
		default:
			c.lease, c.own = answer.(candidate).lease, term{k, answer.(candidate).create}
			c.open()
		}
	})
}

// open opens the term if the catalog shows that the own candidacy is the oldest.
func (c *controller) open() {
	if c.leads || c.opening || c.own.create == 0 || c.catalog.revision < c.own.create {
		return
	}
	for _, s := range c.catalog.elections {
		if s.mod != 0 && s.create < c.own.create {
			return
		}
	}
	c.opening, c.term = true, c.own
	c.commit(nil, []operation{{key: key{termKey, 0}, value: c.id}}, func(committed, bool) {
		c.opening, c.term = false, term{}
	}, func() {
		c.opening, c.leads = false, true
		c.w.counts.Terms++
		c.w.note(-1, c.name, "controller", c.own.create)
		c.judged, c.pause, c.fenced = 0, 0, nil
		c.balanced, c.unbalanced = c.w.now, nil
		c.lost = make([]time.Duration, c.w.allNodes()+1)
		for i := range c.lost {
			c.lost[i] = -1
		}
		c.judge()
	})
}

func (c *controller) keepAlive() {
	held := c.lease
	if held == 0 {
		return
	}
	c.ask(func() any { return c.w.etcd.keepAlive(held) }, func(answer any, known bool) {
		if known && !answer.(bool) && c.lease == held {
			c.resign()
		}
	})
}

// resign gives up a term that is over.
func (c *controller) resign() {
	c.lease, c.own = 0, term{}
	c.campaign()
}

// commit writes in the term: then is called if it was written, and failed if not,
// or if that is unknown.
func (c *controller) commit(comparisons []comparison, operations []operation, failed func(outcome committed, known bool), then func()) {
	own := c.term
	if own.create == 0 {
		return // The term is over, and with it whatever waits for this.
	}
	c.ask(func() any { return c.w.etcd.commit(own, comparisons, operations) }, func(answer any, known bool) {
		outcome, _ := answer.(committed)
		switch {
		case known && outcome.superseded:
			c.w.counts.Superseded++
			c.w.note(-1, c.name, "superseded", own.create)
			c.resign()
		case !known || outcome.conflict:
			failed(outcome, known)
		default:
			c.written = max(c.written, outcome.revision)
			then()
		}
	})
}

// watched takes over what the watch shows, up to a revision.
func (c *controller) watched(revision int64) {
	if revision <= c.catalog.revision {
		return
	}
	history := c.w.etcd.history
	s := &c.catalog
	for ; s.cursor < len(history) && history[s.cursor].revision <= revision; s.cursor++ {
		h := history[s.cursor]
		switch h.key.kind {
		case nodeKey:
			s.nodes[h.key.id].registration = h.stored
		case statusKey:
			s.nodes[h.key.id].status = h.stored
		case liveKey:
			s.nodes[h.key.id].live = h.stored
		case partitionKey:
			s.partitions[h.key.id] = catalogPartition{h.stored.value.(rules.PartitionState), h.stored.mod}
		case topicKey:
			s.minInsync[h.key.id] = h.stored
		case electionKey:
			s.elections[h.key.id] = h.stored
		case sourceKey:
			s.sources[h.key.id] = h.stored
		case termKey:
		}
	}
	s.revision = revision
	c.publish()
	c.open()
	waiting := c.caughtUp
	c.caughtUp = nil
	for _, a := range waiting {
		if a.revision <= revision {
			a.run()
		} else {
			c.caughtUp = append(c.caughtUp, a)
		}
	}
	c.judge()
}

// publish tells nodes and clients, without knowing who has missed it.
func (c *controller) publish() {
	if c.image == nil || c.image.revision < c.catalog.revision {
		c.image = &image{revision: c.catalog.revision, epochs: make([]cluster.NodeEpoch, len(c.w.nodes))}
		for i, p := range c.catalog.partitions {
			c.image.minInsync = append(c.image.minInsync, c.traits(i).MinInsyncReplicas)
			c.image.partitions = append(c.image.partitions, p.Partition)
		}
		for _, s := range c.catalog.sources {
			now, _ := s.value.(sourceState)
			c.image.sources = append(c.image.sources, now)
		}
		for i := range c.w.nodes {
			if n := c.catalog.nodes[i+1]; n.registered() && !n.made().fenced && !n.made().leaving {
				c.image.epochs[i] = n.epoch()
			}
		}
	}
	shown := c.image
	for _, n := range c.w.nodes {
		c.w.send(&c.process, &n.process, func() { n.show(shown) })
	}
	for _, l := range c.w.clients {
		c.w.send(&c.process, &l.process, func() { l.show(shown) })
	}
	if c.w.crowd != nil {
		c.w.crowd.publish(c, shown)
	}
}

// job does something when its turn comes, with a catalog that shows all that this
// term has written. done ends the turn.
func (c *controller) job(run func(done func())) {
	c.jobs = append(c.jobs, run)
	c.work()
}

func (c *controller) work() {
	if c.busy || len(c.jobs) == 0 || !c.leads {
		return
	}
	run := c.jobs[0]
	c.jobs = c.jobs[1:]
	c.busy = true
	own := c.term
	c.catchUp(func() {
		run(func() {
			if c.term == own {
				c.busy = false
				c.work()
			}
		})
	})
}

// catchUp waits until the catalog shows all that this term has written.
func (c *controller) catchUp(then func()) {
	if c.catalog.revision >= c.written {
		then()
		return
	}
	c.caughtUp = append(c.caughtUp, awaited{c.written, then})
}

// refresh waits until the catalog shows what stands in etcd now, however long that
// takes: after a write with an unknown outcome nothing else will do.
func (c *controller) refresh(then func()) {
	c.commit(nil, []operation{{key: key{termKey, 0}, value: c.id}}, func(committed, bool) { c.refresh(then) }, func() { c.catchUp(then) })
}

// nodes returns what elections depend on.
func (c *controller) nodes() rules.Nodes {
	nodes := make(rules.Nodes)
	for i, n := range c.catalog.nodes {
		if n.registered() {
			s := n.made()
			state := rules.NodeState{Epoch: n.epoch(), Live: !s.fenced, Suspect: !s.fenced && n.live.mod == 0, Leaving: s.leaving, History: n.registration.value.(registration).history.Resolve(n.epoch())}
			nodes[cluster.NodeID(i)] = state
		}
	}
	return nodes
}

// leased returns the nodes without those that have just lost their leases.
func (c *controller) leased() rules.Nodes {
	nodes := c.nodes()
	for i, n := range c.catalog.nodes {
		if state, ok := nodes[cluster.NodeID(i)]; ok && n.live.mod == 0 {
			state.Live = false
			nodes[cluster.NodeID(i)] = state
		}
	}
	return nodes
}

// traits are those of a partition's topic, as far as is known here.
func (c *controller) traits(index int) rules.TopicTraits {
	t := c.w.topics[index].traits()
	if n, changed := c.catalog.minInsync[index].value.(int); changed {
		t.MinInsyncReplicas = n
	}
	return t
}

type partitionChange struct {
	index int
	state rules.PartitionState
	mod   int64
}

// elections returns what has to change for these nodes.
func (c *controller) elections(nodes rules.Nodes) []partitionChange {
	var changes []partitionChange
	for i, p := range c.catalog.partitions {
		if p.mod == 0 {
			continue
		}
		if next, changed := rules.Elect(p.PartitionState, nodes, c.traits(i)); changed {
			changes = append(changes, partitionChange{i, next, p.mod})
		}
	}
	return c.coordinators(nodes, changes)
}

// write stores changed partitions, one after the other, and the last of them
// together with the operations.
func (c *controller) write(changes []partitionChange, comparisons []comparison, last []operation, failed func(committed, bool), then func()) {
	if len(changes)+len(last) == 0 {
		then()
		return
	}
	conditions, operations := slices.Clone(comparisons), []operation(nil)
	if len(changes) > 0 {
		conditions = append(conditions, comparison{key: key{partitionKey, changes[0].index}, mod: changes[0].mod})
		operations = append(operations, operation{key: key{partitionKey, changes[0].index}, value: changes[0].state})
		changes = changes[1:]
	}
	if len(changes) == 0 {
		operations = append(operations, last...)
		last = nil
	}
	c.commit(conditions, operations, failed, func() { c.write(changes, comparisons, last, failed, then) })
}

// elect brings all partitions in line with the nodes.
func (c *controller) elect(then func(bool)) {
	c.catchUp(func() {
		revision := c.catalog.revision
		c.write(c.elections(c.nodes()), nil, nil, func(committed, bool) { c.refresh(func() { then(false) }) }, func() {
			c.judged = revision
			then(true)
		})
	})
}
