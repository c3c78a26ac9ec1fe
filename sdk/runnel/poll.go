package runnel

import (
	"context"
	"fmt"
	"time"
)

// Poll returns records as soon as there are any, at most about 1 MiB of them
// unless a single batch is larger, and turn by turn from all partitions. It
// waits until there are some, or until ctx ends, whose cause it then returns;
// give it a context with a timeout to poll at intervals.
//
// A [PartitionError] says that one partition cannot be read on. It stops until
// the program seeks or removes it, and Poll repeats the error every second while
// the others go on; but see [ResetPolicy] about truncated logs. [ErrEnd] says that all
// partitions are at their bounds, [ErrNotAssigned] that there are none and no
// subscription, [ErrClosed] that Close has begun. An [Error] is why the consumer cannot
// be a member of its group as it is, such as REASON_INSTANCE_FENCED; it is returned until
// the program subscribes anew. Everything else that can go wrong heals by itself and is
// not returned.
//
// A member of a group carries out in Poll what its group wants, before anything else:
// the callbacks of [Rebalance] run here, and take their time beyond ctx, as does the
// commit of what is given up (up to 10 s). Calling Poll says that the program has done
// with all that it returned before; with auto-commit that is what gets committed.
//
// With [AtMostOnce] Poll commits the offset behind its records before it returns them,
// and returns none whose commit has not succeeded. If ctx ends or Close begins meanwhile
// it waits up to 1 s for the answer to what it has sent, and returns the records if they
// are committed: nobody else reads them. Otherwise they stay for the next Poll, as long as
// their partitions are the member's.
func (c *Consumer) Poll(ctx context.Context) (Records, error) {
	select {
	case <-c.stage:
	default:
		select {
		case <-c.stage:
		case <-ctx.Done():
			return Records{}, context.Cause(ctx)
		}
	}
	defer c.unstage()
	c.finishAll()
	for {
		if ctx.Err() != nil {
			return Records{}, context.Cause(ctx)
		}
		stepped, err := c.rebalance(ctx)
		if err != nil {
			return Records{}, err
		}
		if stepped {
			continue
		}
		records, wait, err := c.ready(time.Now())
		if err != nil {
			return records, err
		}
		if records.count > 0 {
			if c.config.delivery == AtMostOnce {
				records, err = c.commitAhead(ctx)
			}
			if err != nil || records.count > 0 {
				return records, err
			}
			continue
		}
		if err := wait.done(ctx); err != nil {
			return Records{}, err
		}
	}
}

// wait is what a Poll without records waits for.
type wait struct {
	changed <-chan struct{}
	// again is how long until there may be something to say without a change;
	// 0 for never.
	again time.Duration
}

func (w wait) done(ctx context.Context) error {
	var again <-chan time.Time
	if w.again > 0 {
		timer := time.NewTimer(w.again)
		defer timer.Stop()
		again = timer.C
	}
	select {
	case <-w.changed:
		return nil
	case <-again:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ready returns what Poll can return at once, or else what to wait for.
func (c *Consumer) ready(now time.Time) (Records, wait, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return Records{}, wait{}, fmt.Errorf("consumer is %w", ErrClosed)
	}
	w := wait{changed: c.changed}
	switch m := c.member; {
	case m != nil:
		if m.expire(now); m.pending() {
			again := make(chan struct{})
			close(again)
			return Records{}, wait{changed: again}, nil
		}
	case len(c.order) == 0:
		return Records{}, wait{}, fmt.Errorf("nothing to poll: %w", ErrNotAssigned)
	}
	if c.held.count > 0 {
		return c.held, w, nil
	}
	ended := len(c.order) > 0
	for _, r := range c.order {
		ended = ended && r.finished()
		if r.fault == nil || len(r.chunks) > 0 || r.paused {
			continue
		}
		if silence := faultInterval - now.Sub(r.faultShown); r.faultShown.IsZero() || silence <= 0 {
			r.faultShown = now
			fault := r.fault
			if r.resume != nil {
				r.begin(*r.resume)
				c.summon(r)
				c.broadcast()
			}
			return Records{}, w, fault
		} else if w.again == 0 || silence < w.again {
			w.again = silence
		}
	}
	if ended {
		return Records{}, w, ErrEnd
	}
	var records Records
	var size int64
	for took := true; took && size < pollBytes; {
		took = false
		for i := range c.order {
			r := c.order[(c.turn+i)%len(c.order)]
			if r.paused || len(r.chunks) == 0 || r.tenure.owes() || size >= pollBytes {
				continue
			}
			next := r.chunks[0]
			next.tenure = r.tenure
			r.chunks[0] = chunk{}
			r.chunks = r.chunks[1:]
			r.next = next.next
			size += next.size
			records.chunks = append(records.chunks, next)
			records.count += next.count
			took = true
		}
	}
	if size > 0 {
		c.turn = (c.turn + 1) % len(c.order)
		c.buffered -= size
		c.broadcast()
	}
	if c.config.delivery == AtMostOnce {
		c.held = records
	}
	return records, w, nil
}
