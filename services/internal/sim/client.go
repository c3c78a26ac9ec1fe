package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// acks is when a producer wants its acknowledgement.
type acks uint8

const (
	acksNone acks = iota
	acksLeader
	acksAll
)

// producedOutcome is what a leader answers.
type producedOutcome uint8

const (
	producedOK producedOutcome = iota
	// producedRefused: nothing was appended, try again, perhaps elsewhere.
	producedRefused
	// producedUnknown: it was appended and may or may not stay.
	producedUnknown
	// producedOutOfOrder and producedForgotten are those of the sequences.
	producedOutOfOrder
	producedForgotten
)

type produced struct {
	outcome producedOutcome
	base    int64
	epoch   cluster.LeaderEpoch
}

// attemptsTimeout is when a client gives up on one attempt.
const attemptTimeout = 1500 * time.Millisecond

// client is a program that produces to a partition and consumes it.
type client struct {
	process
	w         *world
	index     int
	view      *image
	producers []*producer
	consumer  consumer
	// seen is the newest leadership that any answer has named.
	seen cluster.LeaderEpoch
	// acked is the end of what was acknowledged to it by all, and latest the largest
	// end that it was told of; both since the unclean election that began this epoch.
	acked, latest int64
	unclean       cluster.LeaderEpoch
}

// pending is a batch on its way.
type pending struct {
	batch    batch
	done     bool
	attempts int
	// definite says that each attempt so far was refused, and none was repeated by the
	// network or left without an answer.
	definite bool
	// floor is the end of what had been acknowledged when it was sent first, since
	// the unclean election that began this epoch.
	floor   int64
	unclean cluster.LeaderEpoch
}

// producer is an idempotent producer with up to five batches in flight.
type producer struct {
	c        *client
	acks     acks
	id       int64
	sequence int32
	flight   []*pending
	every    time.Duration
}

// consumer reads on from its position.
type consumer struct {
	offset int64
	last   cluster.LeaderEpoch
	value  int64 // Of the batch before the offset; 0 for unknown.
	read   int
}

func newClient(w *world, index int) *client {
	c := &client{w: w, index: index}
	w.register(&c.process, fmt.Sprintf("cli%d", index))
	c.consumer.last = rules.NoEpoch
	c.seen, c.unclean = rules.NoEpoch, rules.NoEpoch
	return c
}

func (c *client) start() {
	c.begin()
	if c.w.topics[c.index].offsets {
		c.w.every(&c.process, 50*time.Millisecond, 300*time.Millisecond, c.poll)
		return
	}
	for i := range 1 + c.w.rng.IntN(2) {
		a := acksAll
		if i > 0 {
			a = []acks{acksNone, acksLeader, acksAll}[c.w.rng.IntN(3)]
		}
		p := &producer{c: c, acks: a, every: c.w.between(20*time.Millisecond, 150*time.Millisecond)}
		p.renew()
		c.producers = append(c.producers, p)
		c.w.every(&c.process, p.every/2, 2*p.every, p.next)
	}
	c.w.every(&c.process, 50*time.Millisecond, 300*time.Millisecond, c.poll)
	if c.w.chance(300) {
		c.w.every(&c.process, 2*time.Second, 8*time.Second, c.deleteRecords)
	}
}

func (c *client) show(i *image) {
	if c.view == nil || i.revision > c.view.revision {
		c.view = i
		if p := i.partitions[c.index]; p.Replicas != nil {
			c.seen = max(c.seen, p.LeaderEpoch)
		}
	}
}

// leader returns the node to ask.
func (c *client) leader() (*node, bool) {
	if c.view == nil || c.view.partitions[c.index].Replicas == nil {
		return nil, false
	}
	id := c.view.partitions[c.index].Leader
	if id == cluster.NoNode {
		return nil, false
	}
	return c.w.node(id), true
}

// renew takes a new producer id; what was in flight has an unknown outcome for good.
func (p *producer) renew() {
	p.id, p.sequence, p.flight = p.c.w.check.producerID(), 0, nil
}

// next sends a new batch, if there may be another one.
func (p *producer) next() {
	w := p.c.w
	if w.calm || len(p.flight) >= 5 || p.c.view == nil {
		return
	}
	count := int64(1 + w.rng.IntN(3))
	first := p.sequence
	p.c.reset()
	x := &pending{definite: true, floor: p.c.acked, unclean: p.c.unclean}
	x.batch = batch{base: 0, last: count - 1, value: w.check.newValue(), producer: rules.ProducerAppend{
		ID: p.id, BaseSequence: first, LastSequence: first + int32(count) - 1,
	}}
	p.sequence += int32(count)
	if p.acks == acksNone {
		p.attempt(x)
		return
	}
	p.flight = append(p.flight, x)
	p.attempt(x)
}

// attempt sends a batch once.
func (p *producer) attempt(x *pending) {
	c, w := p.c, p.c.w
	x.attempts++
	number := x.attempts
	head := len(p.flight) > 0 && p.flight[0] == x
	leader, ok := c.leader()
	if !ok {
		p.again(x, number, false)
		return
	}
	answered := false
	finish := func(a produced, known bool) {
		if answered || number != x.attempts {
			return
		}
		answered = true
		if !known {
			x.definite = false
			p.again(x, number, false)
			return
		}
		p.answered(x, a, head)
	}
	seen := c.seen
	repeated := w.chance(w.settings.duplicate)
	deliver := func() {
		leader.replicas[c.index].produce(x.batch, p.acks, seen, func(a produced) {
			w.sendOnce(&leader.process, &c.process, func() { finish(a, true) })
		})
	}
	guarded := func() {
		if leader.epoch != 0 {
			deliver()
		}
	}
	w.sendOnce(&c.process, &leader.process, guarded)
	if repeated && !w.calm {
		x.definite = false
		w.sendOnce(&c.process, &leader.process, guarded)
	}
	w.after(&c.process, attemptTimeout, func() { finish(produced{}, false) })
}

// again repeats a batch with the same sequence.
func (p *producer) again(x *pending, number int, soon bool) {
	if p.acks == acksNone {
		p.renew()
		return
	}
	delay := p.c.w.between(50*time.Millisecond, 200*time.Millisecond)
	if soon {
		delay = time.Millisecond
	}
	p.c.w.after(&p.c.process, delay, func() {
		if !x.done && x.attempts == number && slices.Contains(p.flight, x) {
			p.attempt(x)
		}
	})
}

func (p *producer) answered(x *pending, a produced, head bool) {
	c, w := p.c, p.c.w
	if x.done || p.acks != acksNone && !slices.Contains(p.flight, x) {
		return
	}
	number := x.attempts
	switch a.outcome {
	case producedOK:
		x.done = true
		c.seen = max(c.seen, a.epoch)
		w.counts.Acked++
		if p.acks == acksAll {
			end := a.base + x.batch.last + 1
			w.note(c.index, c.name, "acknowledged", a.base, int64(a.epoch), x.batch.value)
			c.reset()
			if x.unclean != c.unclean {
				x.floor = 0
			}
			w.check.acknowledged(c.index, x.batch, a.base, x.floor, a.epoch)
			if a.epoch >= c.unclean {
				c.acked = max(c.acked, end)
			}
		}
		p.settle()
	case producedRefused:
		if p.acks == acksAll && x.definite && len(p.flight) == 1 && !w.calm && w.chance(50) {
			// The program gives up: nothing was appended, so the sequence is free again.
			w.note(c.index, c.name, "gives up", x.batch.value)
			w.check.failed(c.index, x.batch.value)
			p.sequence, p.flight = x.batch.producer.BaseSequence, nil
			return
		}
		p.again(x, number, false)
	case producedUnknown:
		x.definite = false
		p.again(x, number, false)
	case producedOutOfOrder, producedForgotten:
		if p.acks == acksNone || head {
			w.counts.UnknownProducers++
			w.note(c.index, c.name, "loses its sequence", int64(a.outcome), p.id, int64(x.batch.producer.BaseSequence))
			if p.acks == acksAll {
				w.check.lostSequence(c.index, p.id, x.batch.producer.BaseSequence, a.outcome)
			}
			p.renew()
			return
		}
		p.again(x, number, false)
	}
}

// settle takes what is acknowledged out of what is in flight.
func (p *producer) settle() {
	for len(p.flight) > 0 && p.flight[0].done {
		p.flight = p.flight[1:]
	}
}

// reset forgets what it was told before an unclean election.
func (c *client) reset() {
	if h := c.w.check.partitions[c.index]; c.unclean != h.unclean {
		c.unclean, c.acked, c.latest = h.unclean, 0, 0
	}
}

// poll reads on.
func (c *client) poll() {
	leader, ok := c.leader()
	if !ok {
		return
	}
	w := c.w
	c.reset()
	at := c.consumer
	seen, unclean, acked, latest := c.seen, c.unclean, c.acked, c.latest
	w.sendOnce(&c.process, &leader.process, func() {
		if leader.epoch == 0 {
			return
		}
		r := leader.replicas[c.index].consume(at, seen)
		w.sendOnce(&leader.process, &c.process, func() {
			if c.reset(); c.unclean != unclean {
				acked, latest = 0, 0
			}
			c.polled(at, r, acked, latest)
		})
	})
}

// polled takes what was read at a position. acked and latest are what the client
// knew when it asked.
func (c *client) polled(at consumer, r read, acked, latest int64) {
	if !r.ok || at != c.consumer {
		return
	}
	w := c.w
	c.seen = max(c.seen, r.epoch)
	w.check.latest(c.index, r.latest, acked, latest, r.epoch)
	if r.epoch >= c.unclean {
		c.latest = max(c.latest, r.latest)
	}
	switch {
	case r.truncated:
		w.counts.Truncated++
		w.note(c.index, c.name, "is told of a truncation", at.offset, r.end)
		w.check.truncated(c.index, at.offset, r.end)
		c.consumer.offset, c.consumer.last, c.consumer.value = r.end, rules.NoEpoch, 0
		return
	case at.offset < r.start:
		c.consumer.offset, c.consumer.last, c.consumer.value = r.start, rules.NoEpoch, 0
		return
	}
	for _, b := range r.batches {
		w.check.consumed(c.index, c.consumer.offset, c.consumer.value, b, r.epoch)
		w.counts.Consumed++
		c.consumer.offset, c.consumer.last, c.consumer.value = b.last+1, b.epoch, b.value
	}
	c.consumer.read++
}

// deleteRecords moves the log start to somewhere below what was read. The leader's
// answer is checked where it is given.
func (c *client) deleteRecords() {
	leader, ok := c.leader()
	if !ok || c.consumer.offset == 0 || c.w.calm {
		return
	}
	to := c.w.rng.Int64N(c.consumer.offset + 1)
	c.w.send(&c.process, &leader.process, func() {
		r := leader.replicas[c.index]
		if leader.epoch != 0 && r.rules.Role() == rules.Leading && !r.cutting && !r.file.failed && to <= r.rules.HighWatermark() {
			if have, need := r.rules.InSync(); have < need {
				return
			}
			c.w.check.deleted(c.index, to)
			r.deletions = append(r.deletions, to)
			r.start(to)
			r.moved()
		}
	})
}
