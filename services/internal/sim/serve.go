package sim

import (
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// What a leader answers to clients.

// produce is a leader's answer to a batch. epoch is the newest leadership that the
// client has seen.
func (r *replica) produce(b batch, a acks, epoch cluster.LeaderEpoch, reply func(produced)) {
	if r.rules.Role() != rules.Leading || r.cutting || r.file.failed || epoch > r.rules.Epoch() {
		reply(produced{outcome: producedRefused})
		return
	}
	if have, need := r.rules.InSync(); a == acksAll && have < need {
		reply(produced{outcome: producedRefused})
		return
	}
	done := produced{epoch: r.rules.Epoch()}
	count := b.last - b.base + 1
	verdict := r.producers.Check(b.producer)
	switch verdict.Outcome {
	case rules.ProducerDuplicate:
		r.w.counts.Duplicates++
		done.base = verdict.Original.BaseOffset
	case rules.ProducerAppends:
		b.base = r.rules.Next()
		b.last = b.base + count - 1
		b.epoch = r.rules.Epoch()
		done.base = b.base
		r.w.checkAppends(r, b)
		r.rules.Queue(b.last + 1)
		r.batches = append(r.batches, b)
		record(r.producers, b)
		r.note("appends", b.base, b.last, int64(b.epoch), b.value)
		r.write(op{kind: opAppend, batches: []batch{b}})
		if r.w.settings.eager {
			r.pushAll()
		}
	case rules.ProducerUnknown:
		reply(produced{outcome: producedForgotten})
		return
	default:
		reply(produced{outcome: producedOutOfOrder})
		return
	}
	if a == acksNone {
		reply(done)
		return
	}
	r.waiters = append(r.waiters, waiter{end: done.base + count, acks: a, reply: reply, done: done})
	r.moved()
}

// pushAll sends to followers that have all that they were sent before.
func (r *replica) pushAll() {
	p, _ := r.rules.Assignment()
	for _, id := range p.Replicas {
		if id != r.n.id && r.sent[id] >= 0 {
			r.push(id)
		}
	}
}

// read is what a consumer or a reader of the latest offset gets.
type read struct {
	ok bool
	// truncated says that the position lies in what another leadership has replaced.
	truncated bool
	end       int64
	// start is the log start where the offset is below it.
	start   int64
	epoch   cluster.LeaderEpoch
	latest  int64
	batches []batch
	// records are those of the batches, of offsets partitions.
	records [][]groups.Record
}

// consume answers a reader at a position. epoch is the newest leadership that it
// has seen.
func (r *replica) consume(at consumer, epoch cluster.LeaderEpoch) read {
	offset, last := at.offset, at.last
	if r.rules.Role() != rules.Leading || r.cutting || max(epoch, last) > r.rules.Epoch() {
		return read{}
	}
	if r.rules.HighWatermark() < r.rules.EpochStart() {
		// Earlier leaders may have let readers see more (KIP-207).
		return read{}
	}
	r.w.check.serves(r.index, r.n.id, r.rules.Epoch(), r.rules.LogStart())
	out := read{ok: true, epoch: r.rules.Epoch(), latest: r.rules.HighWatermark(), start: r.rules.LogStart()}
	if _, end, diverges := r.rules.Epochs().Diverges(last, offset, r.rules.Next()); diverges {
		out.truncated, out.end = true, end
		return out
	}
	if offset < out.start || offset > r.rules.HighWatermark() {
		return out
	}
	for _, b := range r.batches {
		if b.last >= offset && b.last < r.rules.HighWatermark() && len(out.batches) < 20 {
			out.batches = append(out.batches, b)
			if r.topic.offsets {
				out.records = append(out.records, r.held(b))
			}
		}
	}
	r.w.checkServes(r, at, out)
	return out
}
