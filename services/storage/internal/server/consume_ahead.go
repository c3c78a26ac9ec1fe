package server

import (
	"context"

	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// readAhead is a read from the disk in a goroutine of its own. It is always for the
// turn that comes next: that of the first in the queue, or where nobody queues of
// the reader that has more to send. The stream waits for it before it ends.
type readAhead struct {
	slot  int
	fetch partition.Fetch
	done  chan struct{}
	// fetched and err are set when done is closed.
	fetched partition.Fetched
	err     error
}

// read returns what a partition has at the reader's position.
func (c *consumeStream) read(ctx context.Context, slot int) (partition.Fetched, error) {
	r := &c.readers[slot]
	if a := c.ahead; a != nil && a.slot == slot {
		<-a.done
		// What failed is tried again, and tells what there is to tell now.
		if c.ahead = nil; a.fetch.Offset == r.position && a.err == nil && len(a.fetched.Batches) > 0 {
			// The client may have let the response before wait for hours.
			return r.partition.Recheck(a.fetch, a.fetched)
		}
	}
	return r.partition.Read(ctx, c.fetch(r))
}

func (c *consumeStream) fetch(r *reader) partition.Fetch {
	return partition.Fetch{Offset: r.position, End: r.end, MaxBytes: c.server.share(c.maxBytes), LeaderEpoch: r.epoch}
}

// readOn begins to read for the turn that comes next, if this one has fetched from
// the disk, so that disk and network work at the same time. A stream holds one
// response more for it.
func (c *consumeStream) readOn(ctx context.Context, slot int, fetched partition.Fetched) {
	if len(c.queue) > 0 {
		slot = c.queue[0]
	} else if fetched.NextOffset >= fetched.HighWatermark {
		// The reader has no next turn before there is more.
		return
	}
	r := &c.readers[slot]
	if !fetched.Stored || c.ahead != nil || r.partition == nil || r.position >= r.end {
		return
	}
	a := &readAhead{slot: slot, fetch: c.fetch(r), done: make(chan struct{})}
	c.ahead = a
	p := r.partition
	c.server.streams.Child(func() {
		defer close(a.done)
		a.fetched, a.err = p.Read(ctx, a.fetch)
	})
}
