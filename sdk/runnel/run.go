package runnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Run polls and gives the records to handler, one after the other, until ctx ends or
// every partition is read to its bound; then it returns nil. An error of handler, or of
// Poll such as a [PartitionError], ends Run, which returns it.
//
// In a group with [AtLeastOnce] the record that handler failed on and those behind it
// count as not done with: whoever reads the partition next begins with it. Run commits
// what is done with before it returns, unless the program commits, and takes up to 10 s
// for that also when ctx has ended; called again it begins with the record that handler
// failed on. Records of a partition that the member has lost meanwhile are left out.
//
// With [AtMostOnce] records are committed when handler gets the first of those that were
// polled together: those that it did not come to, and the one that it failed on, are not
// read again by anybody.
func (c *Consumer) Run(ctx context.Context, handler func(context.Context, ConsumedRecord) error) error {
	for {
		records, err := c.Poll(ctx)
		if err == nil {
			err = c.handle(ctx, records, handler)
		}
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil && !errors.Is(err, errHandler), errors.Is(err, ErrEnd):
			err = nil
		}
		c.mu.Lock()
		var tenures []*tenure
		if c.member != nil {
			tenures = slices.Collect(maps.Values(c.member.owned))
		}
		c.mu.Unlock()
		return errors.Join(err, c.commitFinished(ctx, tenures))
	}
}

// errHandler marks the errors of handlers.
var errHandler = errors.New("handling a record failed")

// handle gives records to a handler, as long as they are the consumer's. Those that it
// does not come to are polled again, unless the group counts them as read.
func (c *Consumer) handle(ctx context.Context, records Records, handler func(context.Context, ConsumedRecord) error) error {
	lost := make(map[*tenure]bool)
	var err error
	for record := range records.All() {
		switch {
		case err != nil:
			c.unread(record)
			continue
		case lost[record.tenure]:
			continue
		}
		if err = context.Cause(ctx); err == nil {
			if err = handler(ctx, record); err != nil {
				err = fmt.Errorf("%w: %s-%d, offset %d: %w", errHandler, record.Topic, record.Partition, record.Offset, err)
			}
		}
		if err != nil {
			c.unread(record)
		} else if !c.finish(record) {
			lost[record.tenure] = true
		}
	}
	return err
}

// unread makes the next Poll begin with a record again, or with an earlier one if it
// does already.
func (c *Consumer) unread(record ConsumedRecord) {
	if c.config.delivery == AtMostOnce {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.partitions[TopicPartition{Topic: record.Topic, Partition: record.Partition}]
	if r == nil || r.tenure != record.tenure || r.next.Offset <= record.Offset {
		return
	}
	c.drop(r)
	r.begin(Offset(record.Offset))
	c.summon(r)
	c.broadcast()
}
