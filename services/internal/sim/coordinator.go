package sim

import (
	"fmt"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// coordinator is a coordinator node. It keeps nothing on a disk.
type coordinator struct {
	process
	g  *crowd
	w  *world
	id cluster.NodeID

	epoch    cluster.NodeEpoch
	version  int64
	view     *image
	shards   []*shard // By offsets partition; nil for one that it does not coordinate.
	stopping bool
	silent   bool
	ticket   groups.Ticket
}

func newCoordinator(g *crowd, i int) *coordinator {
	c := &coordinator{g: g, w: g.w, id: cluster.NodeID(len(g.w.nodes) + 1 + i)}
	g.w.register(&c.process, fmt.Sprintf("coord%d", c.id))
	return c
}

func (g *crowd) coordinator(id cluster.NodeID) (*coordinator, bool) {
	i := int(id) - len(g.w.nodes) - 1
	if i < 0 || i >= len(g.coordinators) {
		return nil, false
	}
	return g.coordinators[i], true
}

// start begins a life of the process.
func (c *coordinator) start() {
	c.begin()
	c.epoch, c.version, c.view, c.stopping, c.silent = 0, 0, nil, false, false
	c.shards = make([]*shard, len(c.g.offsets))
	c.w.note(-1, c.name, "start")
	c.register()
}

func (c *coordinator) startAgain() {
	if !c.up {
		c.start()
	}
}

func (c *coordinator) register() {
	w, to := c.w, c.w.anyController()
	w.call(&c.process, to, func(answer func(any)) { to.register(admission{node: c.id, clean: true}, answer) }, func(answer any, known bool) {
		r, ok := answer.(registered)
		switch {
		case c.epoch != 0:
		case !known || !ok:
			w.after(&c.process, w.between(50*time.Millisecond, 300*time.Millisecond), c.register)
		default:
			c.epoch, c.version = r.epoch, r.version
			w.note(-1, c.name, "registered", int64(c.epoch), c.version)
			c.heartbeat()
		}
	})
}

func (c *coordinator) heartbeat() {
	w, to := c.w, c.w.anyController()
	w.after(&c.process, w.settings.lease/3, c.heartbeat)
	if c.silent {
		return
	}
	id, epoch := c.id, c.epoch
	w.call(&c.process, to, func(answer func(any)) {
		to.ask(func() any { return w.etcd.heartbeat(id, epoch, w.settings.lease) }, func(current any, known bool) {
			if known {
				answer(current)
			}
		})
	}, func(current any, known bool) {
		if known && !current.(bool) {
			c.crash()
			w.later(100*time.Millisecond, c.startAgain)
		}
	})
}

// show takes over what a metadata node shows: what the coordinator has, and what
// topics there are.
func (c *coordinator) show(i *image) {
	if c.epoch == 0 || i.revision < c.version || c.view != nil && i.revision <= c.view.revision {
		return
	}
	c.view = i
	for number, index := range c.g.offsets {
		p := i.partitions[index]
		s := c.shards[number]
		mine := p.Replicas != nil && p.Coordinator == c.id && !c.stopping
		switch {
		case s != nil && (!mine || p.CoordinatorEpoch != s.epoch):
			c.w.note(index, c.name, "ends", int64(s.epoch))
			c.shards[number] = nil
			s.finish(&groups.Refusal{Reason: errorsv1.Reason_REASON_NOT_COORDINATOR, Message: "another node coordinates the group"})
			s = nil
		}
		if mine && s == nil {
			c.w.note(index, c.name, "begins", int64(p.CoordinatorEpoch))
			c.w.counts.Coordinators++
			s = newShard(c, number, p.CoordinatorEpoch)
			c.shards[number] = s
		}
		if s != nil {
			s.setTopics(shown{c.g, i})
		}
	}
}

// crash kills the process.
func (c *coordinator) crash() {
	if !c.up {
		return
	}
	c.w.counts.CoordinatorCrashes++
	c.w.note(-1, c.name, "crash")
	c.die()
}

// die ends the process and with it all streams.
func (c *coordinator) die() {
	c.end()
	for i, s := range c.shards {
		if s != nil {
			s.die()
			c.shards[i] = nil
		}
	}
}

// stop ends the process in good order: what it coordinates goes to others first.
func (c *coordinator) stop() {
	if c.stopping || c.epoch == 0 {
		return
	}
	w := c.w
	c.stopping = true
	w.note(-1, c.name, "stopping")
	to, id, epoch := w.anyController(), c.id, c.epoch
	w.call(&c.process, to, func(answer func(any)) { to.leave(id, epoch, answer) }, func(any, bool) {
		c.silent = true
		w.call(&c.process, to, func(answer func(any)) { to.deregister(id, epoch, answer) }, func(any, bool) {
			w.note(-1, c.name, "stopped")
			c.die()
			w.later(w.between(100*time.Millisecond, 3*time.Second), c.startAgain)
		})
	})
}

// submit hands a request over that has come for an offsets partition.
func (c *coordinator) submit(number int, request groups.Request, reply func(groups.Reply)) {
	if c.epoch == 0 || c.shards[number] == nil {
		reply(groups.Reply{Refusal: &groups.Refusal{Reason: errorsv1.Reason_REASON_NOT_COORDINATOR, Message: "this node does not coordinate the group"}})
		return
	}
	c.shards[number].submit(request, reply)
}

// join hands over who wants to be a member, whose assignments go to a stream.
func (c *coordinator) join(number int, request *groups.Join, to *stream) {
	if c.epoch == 0 || c.shards[number] == nil {
		to.close(&groups.Refusal{Reason: errorsv1.Reason_REASON_NOT_COORDINATOR, Message: "this node does not coordinate the group"})
		return
	}
	c.shards[number].join(request, to)
}

// stream is that of a Join: what is sent arrives in its order, or the stream breaks.
type stream struct {
	from *coordinator
	to   *member
	// life is that of the member's process, and call its Join.
	life, call int
	// copied says that the network has made it: nobody reads it.
	copied bool
	over   bool
	// arrives is when what was sent last does.
	arrives time.Duration
	// detach tells the coordinator that nobody reads.
	detach func()
}

// send sends what the member does on its arrival.
func (s *stream) send(deliver func()) {
	w := s.to.w
	if s.over || s.copied {
		return
	}
	from, to := &s.from.process, &s.to.process
	if w.cut[from.index][to.index] || !w.calm && w.chance(w.settings.drop) {
		s.end()
		return
	}
	at := w.now
	if !w.calm {
		at = max(at, w.stalled[from.index][to.index])
	}
	s.arrives = max(s.arrives, at+w.latency())
	w.queue.add(s.arrives, w.receiver(to, func() {
		if s.to.life == s.life && s.to.call == s.call {
			deliver()
		}
	}))
}

// end breaks the stream; both sides find out in their time.
func (s *stream) end() {
	if s.over {
		return
	}
	s.over = true
	w := s.to.w
	w.later(w.between(100*time.Millisecond, 2*time.Second), s.detach)
	if s.copied {
		return
	}
	w.later(w.between(100*time.Millisecond, 2*time.Second), func() {
		if s.to.up && s.to.life == s.life {
			s.to.inLife(func() { s.to.broken(s.call) })()
		}
	})
}

// close ends the stream with a reason.
func (s *stream) close(why *groups.Refusal) {
	s.send(func() { s.to.closed(s.call, why) })
	s.over = true
}
