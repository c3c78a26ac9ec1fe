package partition

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// compactor compacts the partitions of compacted topics: one at a time, so that
// the memory for keys is bounded, and the dirtiest first. It looks only at those
// that were appended to since they were compacted, or have tombstones that expire
// one day.
type compactor struct {
	host *Host
	// wake has a signal when there is a first partition.
	wake chan struct{}

	mu         sync.Mutex
	partitions map[*Partition]struct{}
}

func newCompactor(h *Host) *compactor {
	return &compactor{host: h, wake: make(chan struct{}, 1), partitions: make(map[*Partition]struct{})}
}

func (c *compactor) add(p *Partition) {
	c.mu.Lock()
	c.partitions[p] = struct{}{}
	first := len(c.partitions) == 1
	c.mu.Unlock()
	if first {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

func (c *compactor) remove(p *Partition) {
	c.mu.Lock()
	delete(c.partitions, p)
	c.mu.Unlock()
}

func (c *compactor) list() []*Partition {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*Partition, 0, len(c.partitions))
	for p := range c.partitions {
		out = append(out, p)
	}
	return out
}

// run works until ctx ends. It costs nothing while no partition waits.
func (c *compactor) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		for again := true; again; {
			timer := time.NewTimer(c.host.config.CompactEvery)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			again = c.round(ctx)
		}
	}
}

// round compacts what is due, and reports whether there is anything to look after.
func (c *compactor) round(ctx context.Context) bool {
	type due struct {
		partition *Partition
		urgency   float64
	}
	var work []due
	for _, p := range c.list() {
		if urgency, ok := p.compactionDue(c.host.config.Now()); ok {
			work = append(work, due{p, urgency})
		}
	}
	slices.SortFunc(work, func(a, b due) int { return cmp.Compare(b.urgency, a.urgency) })
	for _, w := range work {
		if ctx.Err() != nil {
			return false
		}
		if _, err := w.partition.Compact(ctx); err != nil && ctx.Err() == nil {
			c.host.config.Logger.Warn("a partition could not be compacted; it is tried again later",
				"topic", w.partition.topic.Name, "partition", w.partition.index, "error", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.partitions) > 0
}
