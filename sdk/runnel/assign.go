package runnel

import (
	"context"
	"fmt"
	"slices"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// Assign replaces what the consumer reads. It returns once every start is known
// as an offset: what is written from then on is behind [Latest]. On an error
// nothing is assigned. Topics must exist.
func (c *Consumer) Assign(ctx context.Context, assignments ...Assignment) error {
	return c.assign(ctx, true, assignments)
}

// Add makes the consumer read more partitions, under the terms of Assign.
// Partitions that it reads already begin anew as the assignment says; the others
// are not disturbed.
func (c *Consumer) Add(ctx context.Context, assignments ...Assignment) error {
	return c.assign(ctx, false, assignments)
}

func (c *Consumer) assign(ctx context.Context, replace bool, assignments []Assignment) error {
	if err := c.begin(); err != nil {
		return err
	}
	fresh, err := c.readings(ctx, assignments)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return fmt.Errorf("consumer is %w", ErrClosed)
	}
	if c.member != nil {
		c.mu.Unlock()
		return newError(errorsv1.Reason_REASON_INVALID_REQUEST, "the consumer gets its partitions from group %q: Unsubscribe before Assign", c.config.group)
	}
	if replace {
		c.remove(slices.Clone(c.order))
	}
	for _, r := range fresh {
		if old := c.partitions[r.partition]; old != nil {
			c.remove([]*reading{old})
		}
		c.partitions[r.partition] = r
		c.order = append(c.order, r)
	}
	c.reconcile()
	c.broadcast()
	c.mu.Unlock()

	if err := c.resolved(ctx, fresh); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.remove(fresh)
		c.broadcast()
		return err
	}
	return nil
}

// readings returns what is to be read, one entry per partition.
func (c *Consumer) readings(ctx context.Context, assignments []Assignment) ([]*reading, error) {
	var all []*reading
	seen := make(map[TopicPartition]bool)
	for _, a := range assignments {
		topic, err := c.client.view.topic(ctx, a.topic)
		if err != nil {
			return nil, err
		}
		first, last := a.partition, a.partition
		if a.partition == allPartitions {
			first, last = 0, int32(len(topic.Partitions))-1
		}
		if first < 0 || int(last) >= len(topic.Partitions) {
			return nil, newError(errorsv1.Reason_REASON_PARTITION_NOT_FOUND,
				"topic %q has no partition %d: it has %d, from 0", a.topic, a.partition, len(topic.Partitions))
		}
		if a.start.kind == startOffset && a.start.position.Offset < 0 {
			return nil, newError(errorsv1.Reason_REASON_INVALID_REQUEST, "offset %d is below 0", a.start.position.Offset)
		}
		for partition := first; partition <= last; partition++ {
			tp := TopicPartition{Topic: a.topic, Partition: partition}
			if seen[tp] {
				return nil, newError(errorsv1.Reason_REASON_INVALID_REQUEST, "%s is assigned twice", tp)
			}
			seen[tp] = true
			unknown := Position{LeaderEpoch: -1}
			r := &reading{partition: tp, id: topic.ID, next: unknown, ahead: unknown, until: a.until, highWatermark: -1}
			r.begin(a.start)
			all = append(all, r)
		}
	}
	return all, nil
}

// begin makes a reading without buffered chunks start there.
func (r *reading) begin(start Start) {
	r.fault, r.faultShown, r.resume = nil, time.Time{}, nil
	r.pause.reset()
	r.aim(start)
}

// aim makes the fetcher go on there. What is buffered stays; what is under way
// is void.
func (r *reading) aim(start Start) {
	r.session++
	if r.tenure != nil {
		r.tenure.owed.Offset = -1
	}
	r.start, r.received = start, false
	r.startPending = start.kind != startOffset
	if !r.startPending {
		r.moveTo(start.position)
	}
	r.retryAt = time.Time{}
}

// moveTo makes p the position behind what is buffered.
func (r *reading) moveTo(p Position) {
	r.ahead = p
	if n := len(r.chunks); n > 0 {
		r.chunks[n-1].next = p
	} else {
		r.next = p
	}
}

// resolved waits until every start and bound is known.
func (c *Consumer) resolved(ctx context.Context, fresh []*reading) error {
	for {
		c.mu.Lock()
		changed := c.changed
		pending := false
		for _, r := range fresh {
			if c.partitions[r.partition] != r {
				// Replaced by a later assignment, or removed.
				continue
			}
			if r.pending() && r.fault != nil {
				c.mu.Unlock()
				return r.fault
			}
			pending = pending || r.pending()
		}
		closed := c.closed
		c.mu.Unlock()
		switch {
		case closed:
			return fmt.Errorf("consumer is %w", ErrClosed)
		case !pending:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("finding where to begin: %w", context.Cause(ctx))
		}
	}
}

// Remove makes the consumer read partitions no more; those that it does not read
// are ignored. A member of a group cannot take back what it was given: Unsubscribe,
// or Pause, does that.
func (c *Consumer) Remove(partitions ...TopicPartition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var gone []*reading
	for _, tp := range partitions {
		if r := c.partitions[tp]; r != nil && r.tenure == nil {
			gone = append(gone, r)
		}
	}
	c.remove(gone)
	c.broadcast()
}

// remove drops readings that are still the ones of their partition. Callers hold
// mu.
func (c *Consumer) remove(gone []*reading) {
	for _, r := range gone {
		if c.partitions[r.partition] != r {
			continue
		}
		c.drop(r)
		c.leave(r)
		delete(c.partitions, r.partition)
		c.order = slices.DeleteFunc(c.order, func(other *reading) bool { return other == r })
	}
}
