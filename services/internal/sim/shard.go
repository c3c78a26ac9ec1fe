package sim

import (
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// shard is a groups.Shard with the I/O around it, as long as its node coordinates the
// partition in one epoch.
type shard struct {
	c      *coordinator
	w      *world
	number int // Of the offsets partition, and index in the world.
	index  int
	epoch  cluster.CoordinatorEpoch
	rules  *groups.Shard
	dead   bool

	waiting []asked
	streams []opened
	// wake is when the rules are called next.
	wake time.Duration
	// round is the first record of the round that is being appended, and decision when that
	// was decided.
	round    groups.Record
	decision decision
	// io is the I/O that is under way, and position where a load reads on.
	io       groups.Ticket
	position consumer
	loading  bool
	// confirmed is when a leader last carried something out, as the simulation knows.
	confirmed time.Duration
}

// asked is a request that waits for its reply.
type asked struct {
	ticket  groups.Ticket
	request groups.Request
	at      time.Duration
	// began is its place in the order of what happens to registers.
	began int64
	reply func(groups.Reply)
}

// opened is a stream, which a Join has asked for at a time.
type opened struct {
	ticket groups.Ticket
	join   *groups.Join
	at     time.Duration
	stream *stream
}

func newShard(c *coordinator, number int, epoch cluster.CoordinatorEpoch) *shard {
	s := &shard{c: c, w: c.w, number: number, index: c.g.offsets[number], epoch: epoch, wake: -1}
	s.rules = groups.NewShard(c.g.config, c.id)
	s.rules.Begin(epoch)
	return s
}

func (s *shard) note(what string, numbers ...int64) { s.w.note(s.index, s.c.name, what, numbers...) }

func (s *shard) setTopics(t groups.Topics) {
	s.rules.SetTopics(t)
	s.step()
}

// finish ends the shard: it is another's.
func (s *shard) finish(why *groups.Refusal) {
	s.rules.End(why)
	s.step()
	s.die()
}

// die ends everything without a word.
func (s *shard) die() {
	s.dead = true
	for _, x := range s.streams {
		x.stream.end()
	}
	s.c.g.sawEnded(s)
}

func (s *shard) submit(request groups.Request, reply func(groups.Reply)) {
	s.c.ticket++
	s.waiting = append(s.waiting, asked{s.c.ticket, request, s.w.now, s.c.g.tick(), reply})
	s.rules.Submit(s.c.ticket, request, s.w.time())
	s.step()
}

func (s *shard) join(request *groups.Join, to *stream) {
	s.c.ticket++
	ticket := s.c.ticket
	to.from = s.c
	to.detach = func() {
		if s.c.up && !s.dead {
			s.c.inLife(func() { s.detach(ticket) })()
		}
	}
	s.streams = append(s.streams, opened{ticket, request, s.w.now, to})
	s.rules.Submit(ticket, request, s.w.time())
	if to.copied {
		to.end()
	}
	s.step()
}

// detach says that nobody reads a stream any more.
func (s *shard) detach(ticket groups.Ticket) {
	i := slices.IndexFunc(s.streams, func(x opened) bool { return x.ticket == ticket })
	if i < 0 || s.dead {
		return
	}
	join := s.streams[i].join
	s.streams = slices.Delete(s.streams, i, i+1)
	s.c.ticket++
	s.rules.Submit(s.c.ticket, &groups.Detach{Group: join.Group, Member: join.Member, Stream: ticket}, s.w.time())
	s.step()
}

// step does what the rules ask for.
func (s *shard) step() {
	if s.dead {
		return
	}
	e := s.rules.Step(s.w.time())
	switch {
	case e.Append != nil:
		s.append(*e.Append)
	case e.Check != nil:
		s.check(*e.Check)
	case e.Load != nil:
		s.load(*e.Load)
	}
	for _, r := range e.Replies {
		s.replies(r)
	}
	for _, a := range e.Assignments {
		s.assigns(a)
	}
	for _, x := range e.Closed {
		s.closes(x.Stream, x.Refusal)
	}
	if e.Wake.IsZero() {
		return
	}
	at := max(s.w.now, e.Wake.Sub(time.Unix(0, 0)))
	if s.wake > s.w.now && s.wake <= at {
		return
	}
	s.wake = at
	s.w.after(&s.c.process, at-s.w.now, func() {
		if !s.dead && s.wake == at {
			s.wake = -1
			s.step()
		}
	})
}

func (s *shard) replies(r groups.Reply) {
	if i := slices.IndexFunc(s.waiting, func(a asked) bool { return a.ticket == r.Ticket }); i >= 0 {
		a := s.waiting[i]
		s.waiting = slices.Delete(s.waiting, i, i+1)
		s.c.g.sawReply(s, a, r)
		a.reply(r)
		return
	}
	if r.Refusal != nil {
		s.closes(r.Ticket, r.Refusal)
	}
}

func (s *shard) assigns(a groups.Assignment) {
	i := slices.IndexFunc(s.streams, func(x opened) bool { return x.ticket == a.Stream })
	if i < 0 {
		return // It has been detached meanwhile.
	}
	x := s.streams[i]
	s.note("assigns", int64(x.stream.to.index), int64(a.Epoch), int64(len(a.Partitions)), int64(a.Awaited))
	s.c.g.sawAssignment(s, x, a)
	s.w.counts.Assignments++
	x.stream.send(func() { x.stream.to.assigned(x.stream.call, a) })
}

func (s *shard) closes(ticket groups.Ticket, why *groups.Refusal) {
	if i := slices.IndexFunc(s.streams, func(x opened) bool { return x.ticket == ticket }); i >= 0 {
		x := s.streams[i]
		s.streams = slices.Delete(s.streams, i, i+1)
		x.stream.close(why)
	}
}

// leader returns the node to ask, and the leadership that it is believed to have.
func (s *shard) leader() (*node, cluster.LeaderEpoch, bool) {
	p := s.c.view.partitions[s.index]
	if p.Leader == cluster.NoNode {
		return nil, 0, false
	}
	return s.w.node(p.Leader), p.LeaderEpoch, true
}

// exchange is a call to the leader: ask is what it does with it, once or, if the
// network repeats it, twice. answered gets the first answer, or that there was none.
func (s *shard) exchange(ticket groups.Ticket, ask func(r *replica, epoch cluster.LeaderEpoch, reply func(fenced)), answered func(fenced)) {
	s.io = ticket
	w := s.w
	finish := func(a fenced) {
		if s.io == ticket && !s.dead {
			s.io = 0
			answered(a)
			s.step()
		}
	}
	to, epoch, ok := s.leader()
	if !ok {
		w.after(&s.c.process, w.between(10*time.Millisecond, 50*time.Millisecond), func() { finish(fenced{outcome: groups.Refused}) })
		return
	}
	w.send(&s.c.process, &to.process, func() {
		if to.epoch == 0 {
			return
		}
		ask(to.replicas[s.index], epoch, func(a fenced) {
			a.at = w.now
			w.sendOnce(&to.process, &s.c.process, func() { finish(a) })
		})
	})
	w.after(&s.c.process, attemptTimeout, func() { finish(fenced{outcome: groups.Doubtful}) })
}

// fenced is a leader's answer to a coordinator, given at a time.
type fenced struct {
	outcome groups.Outcome
	end     int64
	at      time.Duration
}

func (s *shard) append(a groups.Append) {
	claim := rules.Claim{Epoch: a.Epoch, Expected: a.Expected}
	p := payload{a.Records, s.decided(a.Records)}
	s.exchange(a.Ticket, func(r *replica, epoch cluster.LeaderEpoch, reply func(fenced)) {
		r.fencedAppend(epoch, claim, p, func(o groups.Outcome, end int64) { reply(fenced{outcome: o, end: end}) })
	}, func(f fenced) {
		s.answered(f)
		s.note("has appended", int64(f.outcome), f.end, int64(a.Epoch), int64(len(a.Records)))
		s.rules.Appended(a.Ticket, f.outcome, f.end, s.w.time())
		if f.outcome == groups.Done && a.Expected != rules.AnyOffset {
			s.c.g.sawWhole(s, f.end)
		}
	})
}

// decided returns when records were decided that may be appended once more.
func (s *shard) decided(records []groups.Record) decision {
	if s.round == records[0] {
		return s.decision
	}
	s.round, s.decision = records[0], decision{at: s.w.now, tick: s.c.g.tick()}
	for _, a := range s.waiting {
		switch a.request.(type) {
		case *groups.DeleteGroup, *groups.DeleteOffsets:
			s.decision.deletions = append(s.decision.deletions, a.request)
		}
	}
	return s.decision
}

func (s *shard) check(a groups.Check) {
	claim := rules.Claim{Epoch: a.Epoch, Expected: a.Expected}
	s.exchange(a.Ticket, func(r *replica, _ cluster.LeaderEpoch, reply func(fenced)) {
		r.checkFence(claim, func(o groups.Outcome) { reply(fenced{outcome: o}) })
	}, func(f fenced) {
		s.answered(f)
		s.note("has checked", int64(f.outcome), int64(a.Epoch))
		s.rules.Checked(a.Ticket, f.outcome, s.w.time())
	})
}

// answered notes what the leader has said.
func (s *shard) answered(f fenced) {
	switch f.outcome {
	case groups.Done:
		s.confirmed = max(s.confirmed, f.at)
		s.w.counts.Fenced++
	case groups.Fenced:
		s.w.counts.FencedOff++
	case groups.Doubtful:
		s.w.counts.Doubtful++
	case groups.Refused:
	}
}

// loadAttempts is how often a load asks in vain before it fails.
const loadAttempts = 4

func (s *shard) load(l groups.Load) {
	s.io, s.loading = l.Ticket, true
	s.position = consumer{last: rules.NoEpoch}
	s.note("loads", l.End)
	s.loadOn(l, 0)
}

// loadOn reads on where the load is.
func (s *shard) loadOn(l groups.Load, attempts int) {
	w := s.w
	under := func() bool { return s.io == l.Ticket && !s.dead }
	if s.position.offset >= l.End || attempts == loadAttempts {
		s.io, s.loading = 0, false
		o := groups.Done
		if s.position.offset < l.End {
			o = groups.Refused
		}
		s.w.counts.Loads++
		s.rules.Loaded(l.Ticket, o, w.time())
		if o == groups.Done {
			s.c.g.sawWhole(s, l.End)
		}
		s.step()
		return
	}
	again := func(attempts int, delay time.Duration) {
		w.after(&s.c.process, delay, func() {
			if under() {
				s.loadOn(l, attempts)
			}
		})
	}
	to, epoch, ok := s.leader()
	if !ok {
		again(attempts+1, 50*time.Millisecond)
		return
	}
	at, answered := s.position, false
	w.sendOnce(&s.c.process, &to.process, func() {
		if to.epoch == 0 {
			return
		}
		out := to.replicas[s.index].consume(at, epoch)
		w.sendOnce(&to.process, &s.c.process, func() {
			if answered || !under() {
				return
			}
			answered = true
			if !out.ok || len(out.batches) == 0 {
				again(attempts+1, w.between(5*time.Millisecond, 50*time.Millisecond))
				return
			}
			s.read(l, out)
			if !w.calm && w.chance(100) {
				again(loadAttempts, 0) // What it reads from breaks off.
				return
			}
			again(0, 0)
		})
	})
	w.after(&s.c.process, requestTimeout, func() {
		if !answered && under() {
			answered = true
			s.loadOn(l, attempts+1)
		}
	})
}

// read takes what a leader has returned.
func (s *shard) read(l groups.Load, out read) {
	for i, b := range out.batches {
		if b.base >= l.End {
			break
		}
		s.rules.Load(l.Ticket, out.records[i])
		s.position.offset, s.position.last, s.position.value = b.last+1, b.epoch, b.value
	}
	if out.batches[0].base >= l.End {
		s.position.offset = l.End
	}
}
