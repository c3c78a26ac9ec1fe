package sim

import (
	"slices"
	"sort"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// How leader and followers exchange what they have.

// fetch shows the leader where this follower stands.
func (r *replica) fetch() {
	p, _ := r.rules.Assignment()
	if r.cutting || r.n.epoch == 0 {
		return
	}
	position, ok := r.rules.Position(r.n.epoch)
	if !ok {
		return // Once it is written.
	}
	position.Probe = r.probe
	leader, life := r.w.node(p.Leader), r.n.life
	r.w.send(&r.n.process, &leader.process, func() { leader.replicas[r.index].serve(position, life) })
}

// serve answers a follower, over the stream of that life of its process.
func (r *replica) serve(p rules.Position, life int) {
	f := r.rules.Fetch(p, r.w.time())
	out := rules.Replicated{LeaderEpoch: r.rules.Epoch(), Follows: p.LogEnd, HighWatermark: r.rules.HighWatermark(), LogStart: r.rules.LogStart(), CoordinatorEpoch: r.rules.CoordinatorEpoch(), Probe: r.rules.Probe()}
	if b, ok := r.at(p.LogEnd); ok && f.Outcome == rules.FetchServed && b.base < p.LogEnd {
		// A log that has begun anew at its own start, which lies within a batch.
		f.Outcome = rules.FetchRestarts
	}
	switch f.Outcome {
	case rules.FetchServed:
		r.sent[p.Node], r.lives[p.Node] = p.LogEnd, life
		r.moved()
		r.push(p.Node)
		r.propose()
		return
	case rules.FetchDiverges:
		out.Diverges, out.Epoch, out.End = true, f.Epoch, f.End
	case rules.FetchRestarts:
		out.Restarts, out.RestartOffset = true, r.rules.LogStart()
		if len(r.batches) > 0 {
			out.RestartOffset = r.batches[0].base
		}
		r.rules.ServesFrom(out.RestartOffset)
	default:
		r.note("refuses", int64(p.Node), int64(f.Outcome), int64(p.LeaderEpoch), p.LogEnd)
		return
	}
	r.note("answers", int64(p.Node), int64(f.Outcome), int64(out.Epoch), out.End)
	r.deliver(p.Node, life, out, nil)
}

// push sends a follower what follows what it was sent last, and the high watermark.
func (r *replica) push(id cluster.NodeID) {
	follows := r.sent[id]
	first := r.rules.LogStart()
	if len(r.batches) > 0 {
		first = r.batches[0].base
	}
	if follows < first {
		// What follows was deleted meanwhile. Its next position tells it to begin anew.
		r.sent[id] = -1
		return
	}
	end := r.rules.LogEnd()
	if r.w.settings.eager {
		end = r.rules.Next()
	}
	out := rules.Replicated{LeaderEpoch: r.rules.Epoch(), Follows: follows, HighWatermark: r.rules.HighWatermark(), LogStart: r.rules.LogStart(), CoordinatorEpoch: r.rules.CoordinatorEpoch(), Probe: r.rules.Probe()}
	from := sort.Search(len(r.batches), func(i int) bool { return r.batches[i].last >= follows })
	to := from
	for to < len(r.batches) && to-from < windowBatches && r.batches[to].last < end {
		b := r.batches[to]
		out.Batches = append(out.Batches, rules.BatchBounds{BaseOffset: b.base, LastOffset: b.last, Epoch: b.epoch})
		to++
	}
	sent := slices.Clone(r.batches[from:to])
	if to > from {
		r.sent[id] = sent[len(sent)-1].last + 1
		for _, e := range r.rules.Epochs() {
			if e.StartOffset >= follows && e.StartOffset <= sent[len(sent)-1].last {
				out.Epochs = append(out.Epochs, e)
			}
		}
	}
	r.deliver(id, r.lives[id], out, sent, r.holes.of(sent)...)
}

// deliver sends over the stream that a life of the follower's process has opened. What is
// gone of the batches goes with them.
func (r *replica) deliver(id cluster.NodeID, life int, out rules.Replicated, batches []batch, gone ...int64) {
	to := r.w.node(id)
	r.w.send(&r.n.process, &to.process, func() {
		if to.life == life {
			to.replicas[r.index].receive(out, batches, gone)
		}
	})
}

// receive follows the leader.
func (r *replica) receive(in rules.Replicated, batches []batch, gone []int64) {
	if r.cutting || r.n.epoch == 0 {
		return
	}
	defer r.probed(in)
	d := r.rules.Receive(in)
	switch d.Outcome {
	case rules.ReceiveDropped:
	case rules.ReceiveInvalid:
		r.note("invalid", in.Follows, int64(in.Epoch), in.End)
		r.w.check.fail(7, r.index, "node %d finds invalid what its leader sent: %+v", r.n.id, in)
	case rules.ReceiveTruncates:
		if r.rules.Next() != r.rules.LogEnd() {
			return // The leader is asked again once it is written.
		}
		cut := max(d.Offset, r.rules.LogStart())
		kept := cutBatches(r.batches, cut)
		if len(kept) > 0 {
			cut = min(cut, kept[len(kept)-1].last+1)
		} else if len(r.batches) > 0 {
			cut = min(cut, r.batches[0].base)
		}
		r.note("truncates", r.rules.Next(), d.Offset, cut)
		r.w.counts.Truncations++
		r.w.checkCuts(r, cut)
		r.batches = kept
		r.rules.Cut(cut)
		r.producers.TruncateEnd(cut)
		r.holes.cut(cut)
		r.verified = min(r.verified, cut)
		r.cutting = true
		r.write(op{kind: opCut, offset: cut})
	case rules.ReceiveRestarts:
		if r.rules.Next() != r.rules.LogEnd() {
			return
		}
		r.note("restarts", r.rules.Next(), d.Offset)
		r.w.counts.Restarts++
		if r.file.failed {
			r.w.counts.BegunAnew++
			r.w.checkDrops(r)
		}
		if r.w.check.partitions[r.index].unclean == rules.NoEpoch && !r.n.lossy[r.index] {
			r.w.check.logStart(r.index, r.n.id, r.rules.LogStart(), d.Offset)
		}
		r.restart(d.Offset)
	case rules.ReceiveAppends:
		if !r.agrees && r.rules.Epoch() >= r.w.check.partitions[r.index].unclean {
			r.agrees = true
		}
		r.rules.QueueCopies(in)
		for _, b := range batches {
			r.w.checkAppends(r, b)
			r.batches = append(r.batches, b)
			record(r.producers, b)
		}
		if len(batches) > 0 {
			r.holes.add(gone, 0)
			r.write(op{kind: opAppend, batches: batches, gone: gone})
		}
		r.start(d.LogStart)
	}
	r.moved()
}

// restart drops the log, which begins anew, empty, at an offset.
func (r *replica) restart(offset int64) {
	r.batches, r.producers, r.holes = nil, rules.NewProducers(producersPerPartition), holes{}
	r.rules.Restart(offset)
	r.verified, r.agrees = offset, r.rules.Epoch() >= r.w.check.partitions[r.index].unclean
	r.cutting = true
	if r.file.failed {
		r.file.whole = len(r.file.ops) + 1
	}
	r.write(op{kind: opRestart, offset: offset})
}

// start moves the log start forward.
func (r *replica) start(offset int64) {
	if offset <= r.rules.LogStart() {
		return
	}
	r.rules.AdvanceStart(offset)
	r.batches = startBatches(r.batches, offset)
	r.note("log start", offset)
	r.write(op{kind: opStart, offset: offset})
}
