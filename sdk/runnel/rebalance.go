package runnel

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// tell calls a callback of the program.
func (c *Consumer) tell(ctx context.Context, callback func(context.Context, []TopicPartition), partitions []TopicPartition) {
	if callback == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.config.rebalanceTimeout)
	defer cancel()
	slices.SortFunc(partitions, func(a, b TopicPartition) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	callback(ctx, partitions)
}

// rebalance takes one step towards what the group wants, and reports whether there was
// one to take. Callers hold the stage.
func (c *Consumer) rebalance(ctx context.Context) (stepped bool, err error) {
	c.mu.Lock()
	m := c.member
	if m == nil {
		c.mu.Unlock()
		return false, nil
	}
	m.expire(time.Now())
	switch {
	case len(m.lost) > 0:
		lost := m.lost
		m.lost = nil
		c.mu.Unlock()
		c.tell(ctx, c.config.rebalance.Lost, lost)
		return true, nil
	case m.fatal != nil:
		err = m.fatal
	case m.refusal != nil:
		err, m.refusal = m.refusal, nil
	case m.target != nil:
		to, incarnation := m.target, m.incarnation
		revoked := m.revoke(to)
		c.mu.Unlock()
		if err := c.handOver(ctx, revoked); err != nil {
			c.client.config.Logger.Warn("offsets of revoked partitions are not committed: what was read there is read again by others",
				"group", c.config.group, "error", err)
		}
		c.mu.Lock()
		if !m.over && m.incarnation == incarnation {
			m.apply(to)
		}
		stepped = true
	default:
		if begun, ok := m.begin(); ok {
			c.mu.Unlock()
			c.tell(ctx, c.config.rebalance.Assigned, begun)
			return true, nil
		}
	}
	c.mu.Unlock()
	return stepped, err
}

// revoke stops reading what an assignment takes away, and returns it. Callers hold mu.
func (m *membership) revoke(to *target) []*tenure {
	c := m.consumer
	var revoked []*tenure
	for tp, o := range m.owned {
		if id, ok := to.partitions[tp]; ok && id == o.id {
			continue
		}
		o.revoking = true
		if o.reading != nil {
			c.drop(o.reading)
			o.reading.paused = true
			revoked = append(revoked, o)
		}
	}
	return revoked
}

// handOver tells the program of what it gives up, and commits what it has done with
// there.
func (c *Consumer) handOver(ctx context.Context, revoked []*tenure) error {
	if len(revoked) == 0 {
		return nil
	}
	partitions := make([]TopicPartition, len(revoked))
	for i, o := range revoked {
		partitions[i] = o.partition
	}
	c.tell(ctx, c.config.rebalance.Revoked, partitions)
	return c.commitFinished(ctx, revoked)
}

// giveUp is what happens to the partitions of a member that leaves. Callers hold the
// stage.
func (c *Consumer) giveUp(ctx context.Context) error {
	c.mu.Lock()
	m := c.member
	if m == nil {
		c.mu.Unlock()
		return nil
	}
	m.expire(time.Now())
	lost := m.lost
	m.lost = nil
	revoked := m.revoke(&target{})
	c.mu.Unlock()
	if len(lost) > 0 {
		c.tell(ctx, c.config.rebalance.Lost, lost)
	}
	return c.handOver(ctx, revoked)
}

// apply makes an assignment the one that is followed, of which what it takes away was
// given up, and confirms it. Callers hold mu.
func (m *membership) apply(to *target) {
	c := m.consumer
	for _, o := range m.owned {
		if o.revoking {
			c.end(o)
		}
	}
	m.epoch = to.epoch
	if m.target == to {
		m.target = nil
	}
	var added []*tenure
	for tp, id := range to.partitions {
		if m.owned[tp] == nil {
			o := &tenure{partition: tp, id: id, added: to.added[tp], finished: noPosition, committed: noPosition, refused: noPosition, owed: noPosition}
			m.owned[tp] = o
			added = append(added, o)
		}
	}
	m.announce = true
	m.nextBeat = time.Now()
	m.wake()
	if len(added) > 0 {
		c.spawn(func(ctx context.Context) { m.locate(ctx, added) })
	}
}

// locate asks where the group has come to in partitions that are new.
func (m *membership) locate(ctx context.Context, added []*tenure) {
	c := m.consumer
	partitions := make([]TopicPartition, len(added))
	for i, o := range added {
		partitions[i] = o.partition
	}
	var pause backoff
	committed, err := c.committed(ctx, partitions)
	for e, ok := errors.AsType[*Error](err); ok && e.outcome != fatal; e, ok = errors.AsType[*Error](err) {
		if sleep(ctx, pause.next()) != nil {
			return
		}
		committed, err = c.committed(ctx, partitions)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil || m.over {
		return
	}
	if err != nil {
		m.fail(err)
		return
	}
	found := make(map[TopicPartition]*coordinatorv1.CommittedOffset, len(committed))
	for _, o := range committed {
		found[TopicPartition{Topic: o.GetTopic(), Partition: o.GetPartition()}] = o
	}
	for _, o := range added {
		o.startKnown, m.located = true, true
		// What was committed for a topic of that name which is gone says nothing.
		if at := found[o.partition]; at != nil && bytes.Equal(at.GetTopicId(), o.id[:]) {
			p := Position{Offset: at.GetOffset(), LeaderEpoch: -1}
			if at.LeaderEpoch != nil {
				p.LeaderEpoch = at.GetLeaderEpoch()
			}
			o.begin, o.finished, o.committed = &p, p, p
		}
	}
	c.broadcast()
}

// begin makes the partitions whose start is known readable and returns them; ok is
// false if there is nothing to tell. Callers hold mu.
func (m *membership) begin() (begun []TopicPartition, ok bool) {
	c := m.consumer
	m.located = false
	waiting := false
	for _, o := range m.owned {
		switch {
		case o.reading != nil:
		case !o.startKnown:
			waiting = true
		default:
			o.reading = c.readingOf(o)
			c.partitions[o.partition] = o.reading
			c.order = append(c.order, o.reading)
			begun = append(begun, o.partition)
		}
	}
	if len(begun) > 0 {
		c.reconcile()
		c.broadcast()
	} else if waiting || !m.announce {
		return nil, false
	}
	m.announce = waiting
	return begun, true
}

// readingOf returns the reading that begins where a tenure does. Callers hold mu.
func (c *Consumer) readingOf(o *tenure) *reading {
	r := &reading{partition: o.partition, id: o.id, tenure: o, next: noPosition, ahead: noPosition, until: noBound, highWatermark: -1}
	start, ok := c.config.reset.start()
	switch {
	case o.begin != nil:
		r.begin(From(*o.begin))
	case ok && o.added:
		// What it holds was written while the group was there to read it.
		start, _ = ResetEarliest.start()
		r.begin(start)
	case ok:
		r.begin(start)
	default:
		r.fault = &PartitionError{TopicPartition: o.partition, Offset: -1, NextOffset: -1, Err: newError(
			errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE,
			"group %q has committed no offset there: say where to begin with WithReset(ResetEarliest) or WithReset(ResetLatest), or by Seek", c.config.group)}
	}
	return r
}
