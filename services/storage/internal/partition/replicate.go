package partition

import (
	"context"
	"errors"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// maxCopies is how many batches a leader sends at once at most, and maxReceived
// how many a follower takes: each may change two producers, of which the store
// takes a bounded number in one append.
const (
	maxCopies   = 1000
	maxReceived = 2 * maxCopies
)

// Fetched takes note of where a follower stands, which may move the high watermark
// and complete appends. now is the time of this process.
func (p *Partition) Fetched(at rules.Position, now time.Time) rules.Fetch {
	p.lock()
	defer p.mu.Unlock()
	if p.unavailable != nil {
		return rules.Fetch{Outcome: rules.FetchNotLeader}
	}
	before := p.replica.HighWatermark()
	p.replica.SetFailed(p.log.Failed() != nil)
	fetch := p.replica.Fetch(at, now)
	p.movedLocked(before)
	return fetch
}

// ReadFollower returns what is to be sent to a follower of this leadership whose
// log ends at an offset, or will once it has what was sent before: batches up to
// the log end, as many as have maxBytes and at least one if there is any; or that
// it has to restart, where the log no longer has what follows. The position was
// [rules.FetchServed] under the same leader epoch. The bytes are shared and must
// not be changed.
func (p *Partition) ReadFollower(ctx context.Context, epoch cluster.LeaderEpoch, offset int64, maxBytes int) (rules.Replicated, [][]byte, error) {
	p.lock()
	err := p.servesLocked(epoch)
	end, tail := p.replica.LogEnd(), &p.tail
	p.mu.Unlock()
	if err != nil {
		return rules.Replicated{}, nil, err
	}
	out := rules.Replicated{LeaderEpoch: epoch, Follows: offset}
	batches, err := p.readCopies(ctx, tail, offset, end, maxBytes)
	switch {
	case errors.Is(err, store.ErrOffsetOutOfRange):
		batches = nil
		out.Restarts = true
		if out.RestartOffset, err = p.RestartOffset(ctx, epoch); err != nil {
			return rules.Replicated{}, nil, err
		}
	case err != nil:
		return rules.Replicated{}, nil, p.readError(ctx, offset, err)
	}
	last := offset - 1
	for _, b := range batches {
		header, err := recordbatch.ParseHeader(b)
		if err != nil {
			return rules.Replicated{}, nil, p.unreadable(offset, err)
		}
		last = header.LastOffset()
		out.Batches = append(out.Batches, rules.BatchBounds{
			BaseOffset: header.BaseOffset, LastOffset: last, Epoch: cluster.LeaderEpoch(header.LeaderEpoch),
		})
	}
	p.lock()
	defer p.mu.Unlock()
	// What was read since may be that of another leader.
	if err := p.servesLocked(epoch); err != nil {
		return rules.Replicated{}, nil, err
	}
	out.HighWatermark, out.LogStart = p.replica.HighWatermark(), p.replica.StartWritten()
	out.CoordinatorEpoch, out.Probe = p.replica.CoordinatorEpoch(), p.replica.Probe()
	for _, e := range p.replica.Epochs() {
		if e.StartOffset >= offset && e.StartOffset <= last {
			out.Epochs = append(out.Epochs, e)
		}
	}
	return out, batches, nil
}

// readCopies reads batches below an offset where one begins.
func (p *Partition) readCopies(ctx context.Context, tail *tail, offset, end int64, maxBytes int) ([][]byte, error) {
	if offset >= end {
		return nil, nil
	}
	batches, _, ok := p.host.tails.read(tail, offset, end, maxBytes)
	if ok {
		p.host.metrics.tailHits.Inc()
		return batches[:min(len(batches), maxCopies)], nil
	}
	p.host.metrics.tailMisses.Inc()
	stored, err := p.log.Read(ctx, offset, end, maxBytes)
	if err != nil {
		return nil, err
	}
	for _, b := range stored[:min(len(stored), maxCopies)] {
		if b.LastOffset >= end {
			break
		}
		batches = append(batches, b.Bytes)
	}
	return batches, nil
}

// RestartOffset returns where a follower of this leadership begins anew that cannot
// go on from its position: where the batch begins that holds the log start.
func (p *Partition) RestartOffset(ctx context.Context, epoch cluster.LeaderEpoch) (int64, error) {
	for {
		p.lock()
		err := p.servesLocked(epoch)
		start, end := p.replica.LogStart(), p.replica.LogEnd()
		p.mu.Unlock()
		if err != nil {
			return 0, err
		}
		offset := start
		if start < end {
			batches, err := p.log.Read(ctx, start, end, 1)
			if errors.Is(err, store.ErrOffsetOutOfRange) && p.startMoved(start) {
				continue
			}
			if err != nil {
				return 0, p.readError(ctx, start, err)
			}
			if len(batches) > 0 {
				offset = min(start, batches[0].BaseOffset)
			}
		}
		p.lock()
		moved := p.replica.LogStart() != start
		if !moved {
			p.replica.ServesFrom(offset)
		}
		p.mu.Unlock()
		if !moved {
			return offset, nil
		}
	}
}

// startMoved says whether the log start has moved away from an offset.
func (p *Partition) startMoved(from int64) bool {
	p.lock()
	defer p.mu.Unlock()
	return p.replica.LogStart() != from
}

// Sent is how far a follower of a leadership has been told.
type Sent struct {
	LeaderEpoch cluster.LeaderEpoch
	// LogEnd is that of the follower with all that was sent, or [math.MaxInt64] where
	// no batches may be sent for now.
	LogEnd int64
	// HighWatermark, LogStart and Probe are those of the latest message.
	HighWatermark, LogStart, Probe int64
}

// AwaitFollower asks for ready to be told of slot once there is more to tell a
// follower than was sent: records, a high watermark, a log start, a probe, or the end of
// the leadership. It reports false, and ready is not told, when there is already.
// Each call is for one telling, which may be for nothing; [Partition.Forget] takes
// it back.
func (p *Partition) AwaitFollower(ready *Ready, slot int, sent Sent) bool {
	p.lock()
	defer p.mu.Unlock()
	r := &p.replica
	if p.servesLocked(sent.LeaderEpoch) != nil || r.LogEnd() > sent.LogEnd || r.HighWatermark() > sent.HighWatermark || p.replica.StartWritten() > sent.LogStart || r.Probe() > sent.Probe {
		return false
	}
	n := p.newsLocked()
	n.followers = append(n.followers, armedReader{ready: ready, slot: slot})
	return true
}

// Propose decides whether the ISR should change, as [rules.Replica.Propose] does, and
// resigns while the disk does not answer. live must not block, nor call the partition.
func (p *Partition) Propose(now time.Time, maxLag time.Duration, live func(cluster.NodeID) (cluster.NodeEpoch, bool)) bool {
	p.lock()
	defer p.mu.Unlock()
	if p.unavailable != nil {
		return false
	}
	if p.host.stalled.Load() {
		return p.replica.Resign()
	}
	p.replica.SetFailed(p.log.Failed() != nil)
	return p.replica.Propose(now, maxLag, live)
}

// Proposal returns the change of the ISR that waits for its outcome, if any.
func (p *Partition) Proposal() (rules.ISRProposal, bool) {
	p.lock()
	defer p.mu.Unlock()
	if p.unavailable != nil {
		return rules.ISRProposal{}, false
	}
	return p.replica.Proposal()
}

// Answer takes the cluster's answer to a proposal, see [rules.Replica.Answer], and acts
// on it as [Partition.Apply] does.
func (p *Partition) Answer(proposal rules.ISRProposal, accepted bool, current cluster.Partition, now time.Time) error {
	return p.apply(func() rules.Applied { return p.replica.Answer(proposal, accepted, current, now) })
}
