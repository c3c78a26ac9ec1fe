package partition

import (
	"context"
	"errors"
	"time"

	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// compactRetryAfter is how long a partition rests in which a run has failed, or
// found nothing to do.
const compactRetryAfter = 10 * time.Minute

// compaction is what a partition remembers of its compaction; Partition.mu guards
// it.
type compaction struct {
	// queued says that the host's compactor looks after the partition.
	queued bool
	// unfinished says that the last run had too many keys for its memory.
	unfinished bool
	// last is when the last run began, or else the compactor first looked here, and
	// notBefore when the next may begin; both in milliseconds since the Unix epoch,
	// 0 before.
	last, notBefore int64
}

// Compact runs compaction once, by the settings of the topic, below the high
// watermark. Each replica compacts on its own.
func (p *Partition) Compact(ctx context.Context) (store.Compacted, error) {
	config := p.topic.Config()
	p.lock()
	below, tail, err := p.replica.HighWatermark(), &p.tail, p.unavailable
	p.mu.Unlock()
	if err != nil {
		return store.Compacted{}, err
	}
	now := p.host.config.Now()
	options := store.CompactOptions{
		Set:             p.topic.set(),
		Below:           below,
		Now:             now,
		MinLag:          milliseconds(config.MinCompactionLagMs),
		DeleteRetention: milliseconds(config.DeleteRetentionMs),
		MapBytes:        p.host.config.KeyMapBytes,
		Limits:          p.host.config.Decoding,
	}
	options.SpanBytes, options.SpanAge = spanLimits(config)
	started := time.Now()
	done, err := p.log.Compact(ctx, options)
	p.host.metrics.compacted(done, time.Since(started), err)
	if done.Progress {
		p.host.tails.compacted(tail, done.End)
	}
	p.lock()
	p.compaction.last, p.compaction.notBefore = now.UnixMilli(), 0
	p.compaction.unfinished = done.MapFull
	if err != nil || !done.Progress {
		p.compaction.notBefore = now.Add(compactRetryAfter).UnixMilli()
	}
	p.mu.Unlock()
	if errors.Is(err, store.ErrOffsetOutOfRange) {
		// The log start has moved past what was being read.
		return done, nil
	}
	return done, err
}

func milliseconds(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// soilLocked has the host's compactor look after the partition if there may be
// something to compact.
func (p *Partition) soilLocked() {
	if !p.compaction.queued && p.unavailable == nil && p.replica.HighWatermark() > p.replica.StartWritten() && p.topic.Config().Compacted() {
		p.compaction.queued = true
		p.host.compactor.add(p)
	}
}

// compactionDue says whether compaction should run now, and how urgently. A
// partition without anything to compact, now or later, leaves the compactor.
func (p *Partition) compactionDue(now time.Time) (urgency float64, due bool) {
	config := p.topic.Config()
	p.lock()
	if p.compaction.last == 0 {
		p.compaction.last = now.UnixMilli()
	}
	facts := rules.CompactionFacts{Unfinished: p.compaction.unfinished, SinceLast: milliseconds(now.UnixMilli() - p.compaction.last)}
	below, rests := p.replica.HighWatermark(), now.UnixMilli() < p.compaction.notBefore
	over := p.unavailable != nil || !config.Compacted()
	p.mu.Unlock()
	if !over {
		dirt := p.log.Dirt(below, now, milliseconds(config.MinCompactionLagMs))
		facts.Bytes, facts.Dirty = dirt.Bytes, dirt.Dirty
		facts.TombstonesExpired = !dirt.TombstonesUntil.IsZero() && !now.Before(dirt.TombstonesUntil)
		over = dirt.Dirty+dirt.Young == 0 && dirt.TombstonesUntil.IsZero()
	}
	if over {
		p.lock()
		defer p.mu.Unlock()
		// Else there has come something since.
		if p.replica.HighWatermark() == below || p.unavailable != nil {
			p.compaction.queued = false
			p.host.compactor.remove(p)
		}
		return 0, false
	}
	urgency, due = config.CompactionDue(facts)
	return urgency, due && !rests
}

// appendLimits are [spanLimits] for what is appended: with a lag, what is old
// enough for compaction must be told from the rest, too.
func appendLimits(config *rules.TopicConfig) (bytes int64, age time.Duration) {
	bytes, age = spanLimits(config)
	if !config.Compacted() || config.MinCompactionLagMs == 0 {
		return bytes, age
	}
	lag := max(milliseconds(config.MinCompactionLagMs)/spansPerRetention, minSpanAge)
	if age == 0 || lag < age {
		age = lag
	}
	return bytes, age
}
