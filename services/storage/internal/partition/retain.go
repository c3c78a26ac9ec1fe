package partition

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

const (
	// spansPerRetention is into how many spans the log of a partition is cut that
	// retention keeps small: as much more than asked for may stay.
	spansPerRetention = 4
	// minSpanBytes and minSpanAge bound how often a new span begins, which writes
	// the whole state record.
	minSpanBytes = 64 << 10
	minSpanAge   = time.Second
)

// spanLimits are how large and how old a span becomes, so that retention can
// remove records in time; 0 is any.
func spanLimits(config *rules.TopicConfig) (bytes int64, age time.Duration) {
	if !config.Deletes() {
		return 0, 0
	}
	if config.RetentionBytes != rules.Unlimited {
		bytes = max(config.RetentionBytes/spansPerRetention, minSpanBytes)
	}
	if config.RetentionMs != rules.Unlimited {
		age = max(time.Duration(config.RetentionMs)*time.Millisecond/spansPerRetention, minSpanAge)
	}
	return bytes, age
}

// Retain removes the records that the topic's retention no longer keeps, if this
// node leads. It returns before that is durable, which readers see then. spans is
// memory that it may use, and is returned for the next.
func (p *Partition) Retain(now time.Time, spans []store.Span) []store.Span {
	config := p.topic.Config()
	if !config.Deletes() || config.RetentionMs == rules.Unlimited && config.RetentionBytes == rules.Unlimited {
		return spans
	}
	spans = p.log.Spans(spans[:0])
	if len(spans) == 0 {
		return spans
	}
	rule := rules.Retention{NowMs: now.UnixMilli(), RetentionMs: config.RetentionMs, RetentionBytes: config.RetentionBytes}
	p.mu.Lock()
	leads := true
	if p.awake == nil {
		state := p.state()
		rule.LogStart, rule.HighWatermark = state.LogStart, state.HighWatermark
	} else {
		rule.LogStart, rule.HighWatermark = p.replica.StartWritten(), p.replica.HighWatermark()
		leads = p.roleLocked() == rules.Leading
	}
	p.mu.Unlock()
	if !leads {
		return spans
	}
	rule.Spans = make([]rules.RetainedSpan, len(spans))
	for i, s := range spans {
		rule.Spans[i] = rules.RetainedSpan{EndOffset: s.EndOffset, Bytes: s.Bytes, MaxTimestamp: s.MaxTimestamp}
	}
	start := rule.NewLogStart()
	if start <= rule.LogStart {
		return spans
	}
	var removed int64
	for _, s := range spans {
		if s.EndOffset <= start {
			removed += s.Bytes
		}
	}
	_, err := p.advanceStart(start, rules.NoEpoch, nil, func(err error) {
		if err == nil {
			p.host.metrics.retained.Add(float64(removed))
		}
	})
	// It has just stopped leading, or will be asked again.
	_ = err
	return spans
}

// visit asks the partitions that this node leads to remove what they need not keep,
// and lets them rest, until ctx ends.
func (h *Host) visit(ctx context.Context) {
	ticker := time.NewTicker(h.config.RetentionEvery)
	defer ticker.Stop()
	var spans []store.Span
	slept := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, p := range h.leading() {
			if ctx.Err() != nil {
				return
			}
			spans = p.Retain(h.config.Now(), spans)
			if p.rest() {
				slept++
			}
		}
		if slept >= givesBack {
			debug.FreeOSMemory()
			slept = 0
		}
	}
}

// leading returns the partitions that this node leads.
func (h *Host) leading() []*Partition {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]*Partition, 0, len(h.led))
	for p := range h.led {
		out = append(out, p)
	}
	return out
}

// moved takes note of a change of role, and of the number of replicas.
func (h *Host) moved(p *Partition, before, after rules.Role, replicas int) {
	h.metrics.moved(before, after)
	h.mu.Lock()
	defer h.mu.Unlock()
	set(h.led, p, after == rules.Leading)
	set(h.followed, p, after == rules.Leading && replicas > 1)
	set(h.following, p, after == rules.Following)
}

func set(partitions map[*Partition]struct{}, p *Partition, member bool) {
	if member {
		partitions[p] = struct{}{}
	} else {
		delete(partitions, p)
	}
}
