package partition

import (
	"context"
	"fmt"
	"slices"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// maxForeignBytes bounds a batch from a leader: a message on the wire has no more.
const maxForeignBytes = 32 << 20

// Position returns where a follower stands, for its leader; false where it does not
// follow, has not yet written what it queued before the present epoch, or has lost
// something and is counted on, see [rules.Replica.Position].
func (p *Partition) Position(epoch cluster.NodeEpoch) (rules.Position, bool) {
	p.lock()
	defer p.mu.Unlock()
	if p.roleLocked() != rules.Following {
		return rules.Position{}, false
	}
	p.replica.SetFailed(p.log.Failed() != nil)
	return p.replica.Position(epoch)
}

// Received is what has become of what a leader sent.
type Received struct {
	Outcome rules.ReceiveOutcome
	// Writes says that something is written, so that the position will change.
	Writes bool
	// Anew says that a log which had lost records was dropped: its leader sends all.
	Anew bool
}

// Receive takes what the leader has sent: the bounds of its batches stand in in,
// their bytes, which must not change any more, in batches. Where it writes
// anything, done is called once, when that is as durable as the topic asks, or
// with the error: then the position is worth telling. It must not block, nor call
// any other method than [Partition.Position]. It may be called before Receive
// returns, and not at all with an error.
//
// Nothing foreign is trusted: an error with REASON_CORRUPT_BATCH says that the
// batches do not pass their checks, or not fit what is said of them; nothing was
// changed. The outcome [rules.ReceiveDropped] is no error.
//
// ctx is that of the node rather than of a stream: a replica whose truncation was
// abandoned is not served any more. Receive blocks while the store's queue is full.
func (p *Partition) Receive(ctx context.Context, in rules.Replicated, batches [][]byte, done func(error)) (Received, error) {
	headers, err := p.verifyForeign(in, batches)
	if err != nil {
		return Received{}, err
	}
	received, wrote, err := p.receive(ctx, in, headers, batches, done)
	if err == nil && wrote {
		done(nil)
	}
	return received, err
}

// verifyForeign checks batches by themselves and against their bounds.
func (p *Partition) verifyForeign(in rules.Replicated, batches [][]byte) ([]recordbatch.Header, error) {
	if len(batches) != len(in.Batches) || len(batches) > maxReceived {
		return nil, p.foreign(in.Follows, fmt.Errorf("%d batches with the bounds of %d, at most %d", len(batches), len(in.Batches), maxReceived))
	}
	headers := make([]recordbatch.Header, len(batches))
	for i, b := range batches {
		bounds := in.Batches[i]
		if len(b) > maxForeignBytes {
			return nil, p.foreign(bounds.BaseOffset, fmt.Errorf("a batch has %d bytes, at most %d", len(b), maxForeignBytes))
		}
		header, err := recordbatch.Verify(b)
		if err != nil {
			return nil, p.foreign(bounds.BaseOffset, err)
		}
		if header.BaseOffset != bounds.BaseOffset || header.LastOffset() != bounds.LastOffset || cluster.LeaderEpoch(header.LeaderEpoch) != bounds.Epoch {
			return nil, p.foreign(bounds.BaseOffset, fmt.Errorf("a batch has the offsets %d to %d of leader epoch %d, and is said to have %d to %d of %d",
				header.BaseOffset, header.LastOffset(), header.LeaderEpoch, bounds.BaseOffset, bounds.LastOffset, bounds.Epoch))
		}
		headers[i] = header
	}
	return headers, nil
}

// foreign says that what a leader sent is not appended.
func (p *Partition) foreign(offset int64, err error) error {
	return rpcerr.New(errorsv1.Reason_REASON_CORRUPT_BATCH,
		"what the leader of %s sent for offset %d does not pass its checks and was not appended: %v; it is asked for again: if this goes on, check the leader's disk and the network",
		p.name(), offset, err).WithCause(err)
}

// receive reports wrote when done is due at once.
func (p *Partition) receive(ctx context.Context, in rules.Replicated, headers []recordbatch.Header, batches [][]byte, done func(error)) (_ Received, wrote bool, _ error) {
	p.appending.Lock()
	defer p.appending.Unlock()
	p.lock()
	if err := p.unavailable; err != nil {
		p.mu.Unlock()
		return Received{}, false, err
	}
	failed := p.log.Failed() != nil
	p.replica.SetFailed(failed)
	before := p.replica.HighWatermark()
	decision := p.replica.Receive(in)
	p.movedLocked(before)
	p.mu.Unlock()
	out := Received{Outcome: decision.Outcome}
	var err error
	switch decision.Outcome {
	case rules.ReceiveDropped:
	case rules.ReceiveAppends:
		out.Writes, err = p.appendCopies(in, decision.LogStart, headers, batches, done)
	case rules.ReceiveTruncates:
		out.Writes, wrote = true, true
		err = p.truncate(ctx, decision.Offset)
	case rules.ReceiveRestarts:
		out.Writes, out.Anew, wrote = true, failed, true
		err = p.restart(ctx, decision.Offset)
	default:
		err = p.foreign(in.Follows, fmt.Errorf("it does not continue a log that ends at %d", in.Follows))
	}
	if err != nil {
		return Received{Outcome: decision.Outcome}, false, err
	}
	return out, wrote, nil
}

// appendCopies queues what was received, and reports whether there is anything to
// write; appending is held.
func (p *Partition) appendCopies(in rules.Replicated, logStart int64, headers []recordbatch.Header, batches [][]byte, done func(error)) (bool, error) {
	if err := p.log.Failed(); err != nil {
		return false, p.lost(err)
	}
	p.lock()
	next, start := p.replica.Next(), p.replica.LogStart()
	p.mu.Unlock()
	if len(batches) == 0 && logStart <= start {
		return false, nil
	}
	size := 0
	for _, b := range batches {
		size += len(b)
	}
	if err := p.log.Admit(size); err != nil {
		return false, p.noRoom(err)
	}
	config := p.topic.Config()
	push := store.Append{Set: p.topic.set(), Batches: make([]store.Batch, len(batches)), Gaps: config.Compacted()}
	push.SpanBytes, push.SpanAge = appendLimits(config)
	records := 0
	for i, h := range headers {
		// The topic may have been compacted once, and the leader's store vouches for
		// what is missing; but no compaction reaches its high watermark.
		if h.BaseOffset > next {
			push.Gaps = true
			if h.BaseOffset >= in.HighWatermark {
				return false, p.foreign(next, fmt.Errorf("the next batch begins at %d", h.BaseOffset))
			}
		}
		next = h.LastOffset() + 1
		records += int(h.RecordCount)
		push.Batches[i] = store.Batch{Bytes: batches[i], BaseOffset: h.BaseOffset, LastOffset: h.LastOffset(), MaxTimestamp: h.MaxTimestamp}
	}
	push.Producers, push.RemovedProducers = p.recordForeign(headers)
	p.lock()
	p.replica.QueueCopies(in)
	p.replica.AdvanceStart(logStart)
	push.State = p.stateLocked()
	p.commits.push(commit{logEnd: push.State.LogEnd, logStart: push.State.LogStart, done: done})
	p.mu.Unlock()
	p.host.metrics.copied(len(batches), size, records)
	p.log.Append(push, p.committed)
	return true, nil
}

// recordForeign remembers what batches of a leader say of their producers: it has
// judged them. It returns what the store has to write and to remove; appending is
// held.
func (p *Partition) recordForeign(headers []recordbatch.Header) (changed []store.Producer, removed []int64) {
	var places map[int64]int
	for _, h := range headers {
		appendTime := int64(-1)
		if h.LogAppendTime() {
			appendTime = h.MaxTimestamp
			p.appendTime = max(p.appendTime, appendTime)
		}
		if !h.Idempotent() || h.BaseSequence < 0 {
			continue
		}
		p.restoreProducers()
		states, forgotten := p.recordSequence(rules.ProducerAppend{
			ID: h.ProducerID, Epoch: h.ProducerEpoch, BaseSequence: h.BaseSequence, LastSequence: h.LastSequence(),
		}, h.BaseOffset, appendTime, h.MaxTimestamp)
		removed = slices.DeleteFunc(removed, func(id int64) bool { return id == h.ProducerID })
		removed = append(removed, forgotten...)
		if i, again := places[h.ProducerID]; again {
			changed[i] = states[0]
			continue
		}
		if places == nil {
			places = make(map[int64]int)
		}
		places[h.ProducerID] = len(changed)
		changed = append(changed, states[0])
	}
	return changed, removed
}

// settle waits until nothing is queued; appending is held.
func (p *Partition) settle(ctx context.Context) error {
	p.lock()
	queued := p.commits.len() > 0
	p.mu.Unlock()
	if !queued {
		return nil
	}
	durable := make(chan error, 1)
	p.writeAppending(nil, func(err error) { durable <- err })
	return wait(ctx, durable)
}

// truncate cuts what is at or above an offset out of the log of a follower: its
// leader does not have it (KIP-101). The batch that holds the offset goes as a
// whole. Epochs, producers and the tail cache forget it too, once the cut is
// durable. appending is held.
func (p *Partition) truncate(ctx context.Context, offset int64) error {
	if err := p.settle(ctx); err != nil {
		return err
	}
	p.lock()
	state := p.stateLocked()
	p.mu.Unlock()
	state.LogEnd, state.HighWatermark = offset, min(state.HighWatermark, offset)
	state.Epochs = rules.Epochs(state.Epochs).TruncateEnd(offset)
	end, err := p.log.Truncate(ctx, offset, state)
	if err != nil {
		return p.abandoned(err)
	}
	p.lock()
	p.replica.Cut(end)
	p.checkpointed = min(p.checkpointed, end)
	p.host.tails.cut(&p.tail, end)
	p.mu.Unlock()
	// The store voids on its own what its producer records say of the cut.
	p.restoreProducers()
	p.producers.TruncateEnd(end)
	p.host.metrics.truncations.Inc()
	return nil
}

// restart drops the log of a follower, which begins anew, empty, at an offset:
// what follows its end is no longer in its leader's. appending is held.
func (p *Partition) restart(ctx context.Context, offset int64) error {
	if err := p.settle(ctx); err != nil {
		return err
	}
	p.lock()
	// The coordinators of what is dropped, or never comes, are superseded all the same.
	epoch := p.replica.CoordinatorEpoch()
	p.mu.Unlock()
	state := store.State{LogStart: offset, LogEnd: offset, HighWatermark: offset, CoordinatorEpoch: int64(epoch)}
	if err := p.log.Restart(ctx, p.topic.set(), state); err != nil {
		return p.abandoned(err)
	}
	p.lock()
	p.replica.Restart(offset)
	p.replica.SetFailed(p.log.Failed() != nil)
	p.checkpointed = offset
	p.host.tails.drop(&p.tail)
	p.mu.Unlock()
	p.producers, p.loaded = rules.NewProducers(p.host.config.ProducersPerPartition), ""
	p.host.metrics.restarts.Inc()
	return nil
}

// abandoned closes a partition of which nobody knows whether its log was cut;
// appending is held.
func (p *Partition) abandoned(err error) error {
	err = p.failed(err)
	p.lock()
	defer p.mu.Unlock()
	p.shutLocked(err)
	return err
}
