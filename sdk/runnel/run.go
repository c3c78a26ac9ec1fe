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
// polled together. The one that it failed on is not read again by anybody; those that it
// did not come to, since ctx has ended or handler has failed, are given back: Run commits
// the offset before them, and whoever reads next begins there. The error says if that
// failed. Records of a partition that the member has lost meanwhile are handed out here:
// nobody else gets them.
func (c *Consumer) Run(ctx context.Context, handler func(context.Context, ConsumedRecord) error) error {
	for {
		records, err := c.Poll(ctx)
		var unread map[TopicPartition]GroupOffset
		if err == nil {
			unread, err = c.handle(ctx, records, handler)
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
		if c.config.delivery == AtMostOnce {
			return errors.Join(err, c.giveBack(ctx, unread))
		}
		return errors.Join(err, c.commitFinished(ctx, tenures))
	}
}

// giveBack takes back commits ahead of records that nobody has seen.
func (c *Consumer) giveBack(ctx context.Context, unread map[TopicPartition]GroupOffset) error {
	if len(unread) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return c.commit(ctx, slices.Collect(maps.Values(unread)))
}

// errHandler marks the errors of handlers.
var errHandler = errors.New("handling a record failed")

// handle gives records to a handler, as long as nobody else can get them. Those that it
// does not come to are polled again; where they begin is returned.
func (c *Consumer) handle(ctx context.Context, records Records, handler func(context.Context, ConsumedRecord) error) (unread map[TopicPartition]GroupOffset, err error) {
	lost := make(map[*tenure]bool)
	unread = make(map[TopicPartition]GroupOffset)
	leave := func(record ConsumedRecord) {
		c.unread(record)
		tp := TopicPartition{Topic: record.Topic, Partition: record.Partition}
		if _, ok := unread[tp]; !ok {
			unread[tp] = GroupOffset{TopicPartition: tp, Position: Position{Offset: record.Offset, LeaderEpoch: -1}, tenure: record.tenure}
		}
	}
	for record := range records.All() {
		switch {
		case err != nil:
			leave(record)
			continue
		case lost[record.tenure]:
			continue
		}
		if err = context.Cause(ctx); err != nil {
			leave(record)
			continue
		}
		if err = handler(ctx, record); err != nil {
			err = fmt.Errorf("%w: %s-%d, offset %d: %w", errHandler, record.Topic, record.Partition, record.Offset, err)
		}
		switch {
		case c.config.delivery == AtMostOnce:
		case err != nil:
			leave(record)
		case !c.finish(record):
			lost[record.tenure] = true
		}
	}
	return unread, err
}

// unread makes the next Poll begin with a record again, or with an earlier one if it
// does already.
func (c *Consumer) unread(record ConsumedRecord) {
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
