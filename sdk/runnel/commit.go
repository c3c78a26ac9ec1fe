package runnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

const (
	// asyncCommitTimeout is how long a commit that nobody waits for is tried.
	asyncCommitTimeout = 30 * time.Second
	// maxCommitOffsets is how many offsets one request may carry, and maxCommitBytes how
	// many bytes they may take, so that it stays well below what servers read. One offset
	// takes about 5 KiB at most.
	maxCommitOffsets = 10_000
	maxCommitBytes   = 8 << 20
	// maxFetchedOffsets is how many offsets are asked for at once: with all that can be
	// committed with them they fit into an answer.
	maxFetchedOffsets = 5_000
	// maxQueuedCommits bounds the commits that nobody waits for.
	maxQueuedCommits = 10_000
)

// After returns the offset to commit once a record, and all before it in its
// partition, are done with.
func After(record ConsumedRecord) GroupOffset {
	return GroupOffset{
		TopicPartition: TopicPartition{Topic: record.Topic, Partition: record.Partition},
		Position:       Position{Offset: record.Offset + 1, LeaderEpoch: record.LeaderEpoch},
		tenure:         record.tenure,
	}
}

// CommitError says which offsets were not committed; all others were.
type CommitError struct {
	// Failed has why, in the order of topics and partitions.
	Failed []CommitOutcome
}

// Error names the partitions, why, and the remedy.
func (e *CommitError) Error() string {
	const shown = 3
	var parts []string
	for i, f := range e.Failed {
		if i == shown {
			parts = append(parts, fmt.Sprintf("%d more", len(e.Failed)-shown))
			break
		}
		parts = append(parts, fmt.Sprintf("%s: %v", f.TopicPartition, f.Err))
	}
	return "offsets are not committed: " + strings.Join(parts, "; ")
}

// Unwrap returns the errors of all partitions.
func (e *CommitError) Unwrap() []error {
	errs := make([]error, len(e.Failed))
	for i, f := range e.Failed {
		errs[i] = f.Err
	}
	return errs
}

// Commit records how far the consumer's group has come, and returns once that survives
// any crash: the offsets given, see [After], or else those behind all that Poll has
// returned. Whatever can be tried again is, also at another coordinator.
//
// When ctx ends Commit returns its cause. What is under way then may still take effect,
// what has not been sent does not.
//
// A [CommitError] says which partitions failed, most often since they are not the
// member's any more: what was read of a partition before it was taken away or lost is not
// committed afterwards, even if the member has it again. What the program has in hand of
// it somebody else does as well. The place for the last commit is the Revoked callback of
// [Rebalance], during which the partitions are still the member's.
//
// Commits take effect in the order of their calls, asynchronous and automatic ones among
// them, and one that has returned leaves none before it under way. A Commit that Close
// finds waiting returns [ErrClosed], its outcome unknown; in the callbacks that Close
// runs commits work. A consumer with partitions by Assign commits for a group that has
// no members.
func (c *Consumer) Commit(ctx context.Context, offsets ...GroupOffset) error {
	c.decide(offsets)
	return c.commit(ctx, offsets)
}

// commit is Commit of what the consumer itself has found out.
func (c *Consumer) commit(ctx context.Context, offsets []GroupOffset) error {
	done := make(chan error, 1)
	c.enqueue(offsets, ctx.Done(), func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("committing for group %q: %w", c.config.group, context.Cause(ctx))
	}
}

// decide notes that the program itself says what it has done with, which auto-commit
// then goes by.
func (c *Consumer) decide(offsets []GroupOffset) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.member == nil {
		return
	}
	for _, offset := range offsets {
		if o := c.member.owned[offset.TopicPartition]; o != nil && (offset.tenure == nil || offset.tenure == o) {
			o.finished = offset.Position
		}
	}
}

// CommitAsync is Commit for those who do not wait: it is tried for 30 s, and callback is
// told what came of it, exactly once; where it is nil a failure is logged. Callbacks run
// one after the other in the goroutine that commits for the consumer, and must not wait
// for it, as by Commit. Some run in CommitAsync itself: those of calls that fail at once,
// as when the consumer is closed.
//
// Close does not wait for such commits: callbacks of those that it finds under way get
// [ErrClosed], their outcome unknown. A program that wants them settled calls
// [Consumer.Commit] before Close.
func (c *Consumer) CommitAsync(callback func(error), offsets ...GroupOffset) {
	if callback == nil {
		callback = c.logCommit
	}
	c.decide(offsets)
	c.commitAsync(callback, offsets)
}

// logCommit is told of commits that nobody else wants to hear of.
func (c *Consumer) logCommit(err error) {
	// That a partition is lost the membership finds out, and tells.
	if err != nil && !lostPartition(err) {
		c.client.config.Logger.Warn("commit failed", "group", c.config.group, "error", err)
	}
}

func (c *Consumer) commitAsync(callback func(error), offsets []GroupOffset) {
	ctx, cancel := context.WithTimeout(context.Background(), asyncCommitTimeout)
	c.enqueue(offsets, ctx.Done(), func(err error) {
		cancel()
		callback(err)
	})
}

// Committed returns what the consumer's group has committed for partitions, without
// any for all; those without a committed offset are left out.
func (c *Consumer) Committed(ctx context.Context, partitions ...TopicPartition) (map[TopicPartition]GroupOffset, error) {
	committed, err := c.committed(ctx, partitions)
	if err != nil {
		return nil, err
	}
	all := make(map[TopicPartition]GroupOffset, len(committed))
	for _, o := range groupOffsets(committed) {
		all[o.TopicPartition] = o
	}
	return all, nil
}

func (c *Consumer) committed(ctx context.Context, partitions []TopicPartition) ([]*coordinatorv1.CommittedOffset, error) {
	if c.coordinator == nil {
		return nil, noGroup()
	}
	var all []*coordinatorv1.CommittedOffset
	for asked := false; !asked || len(partitions) > 0; asked = true {
		n := min(len(partitions), maxFetchedOffsets)
		byTopic := make(map[string][]int32)
		for _, tp := range partitions[:n] {
			byTopic[tp.Topic] = append(byTopic[tp.Topic], tp.Partition)
		}
		partitions = partitions[n:]
		request := &coordinatorv1.FetchOffsetsRequest{Group: c.config.group, Partitions: partitionSets(byTopic)}
		var response *coordinatorv1.FetchOffsetsResponse
		err := c.coordinator.call(ctx, repeatable, func(ctx context.Context, address string) (err error) {
			response, err = call(ctx, address, c.client.offsets(address).FetchOffsets, request)
			return err
		})
		if err != nil {
			return nil, err
		}
		all = append(all, response.GetOffsets()...)
	}
	return all, nil
}

func noGroup() *Error {
	return newError(errorsv1.Reason_REASON_INVALID_GROUP_ID, "committed offsets are those of a group: make the consumer with WithGroup")
}

// finishAll notes that the program has done with all that Poll has returned.
func (c *Consumer) finishAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.member == nil || !c.config.commitsItself() {
		return
	}
	for _, o := range c.member.owned {
		if r := o.reading; r != nil && !r.startPending && r.next.Offset >= 0 && !r.parted(r.next.Offset) {
			o.finished = r.next
		}
	}
}

// finish notes that the program has done with a record, and reports whether it is
// still the member's.
func (c *Consumer) finish(record ConsumedRecord) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := record.tenure
	if o == nil {
		return true
	}
	if done := After(record).Position; !o.reading.parted(done.Offset) {
		o.finished = done
	}
	return c.holds(o)
}

// holds reports whether a tenure goes on. Callers hold mu.
func (c *Consumer) holds(o *tenure) bool { return c.member != nil && c.member.owned[o.partition] == o }

// commitFinished commits what is due in partitions.
func (c *Consumer) commitFinished(ctx context.Context, tenures []*tenure) error {
	c.mu.Lock()
	offsets := c.due(slices.Values(tenures))
	c.mu.Unlock()
	if len(offsets) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return c.commit(ctx, offsets)
}

// due returns what the consumer has yet to commit by itself: where the policy has made
// it begin, and, unless that is left to the program, what the program has done with. What
// was refused is due no more: once the log has grown again it would pass over records.
// Callers hold mu.
func (c *Consumer) due(tenures func(yield func(*tenure) bool)) []GroupOffset {
	var offsets []GroupOffset
	for o := range tenures {
		switch {
		case o.owes():
			offsets = append(offsets, GroupOffset{TopicPartition: o.partition, Position: o.owed, tenure: o})
		case o.finished == o.refused:
		case c.config.commitsItself() && o.finished.Offset >= 0 && o.finished != o.committed:
			offsets = append(offsets, GroupOffset{TopicPartition: o.partition, Position: o.finished, tenure: o})
		}
	}
	return offsets
}

// commitAhead commits the offsets behind the records that Poll is about to return, and
// returns those of which that succeeded. The others stay held for the next Poll as long
// as they are the member's and in the log; the error says why if there is nothing to
// return.
func (c *Consumer) commitAhead(ctx context.Context) (Records, error) {
	c.mu.Lock()
	held := c.held
	c.mu.Unlock()
	behind := make(map[TopicPartition]GroupOffset)
	for _, chunk := range held.chunks {
		behind[chunk.partition] = GroupOffset{TopicPartition: chunk.partition, Position: chunk.next, tenure: chunk.tenure}
	}
	offsets := make([]GroupOffset, 0, len(behind))
	for _, offset := range behind {
		offsets = append(offsets, offset)
	}
	stopped, err := c.settleAhead(ctx, offsets)
	// waiting are the partitions whose records the next Poll tries to commit again.
	failed, waiting := make(map[TopicPartition]bool), make(map[TopicPartition]bool)
	c.mu.Lock()
	defer c.mu.Unlock()
	if partly, ok := errors.AsType[*CommitError](err); ok {
		err = nil
		for _, f := range partly.Failed {
			failed[f.TopicPartition] = true
			switch {
			case lostPartition(f.Err):
			case ReasonOf(f.Err) == errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE:
				c.readAgain(f.TopicPartition, f.Err)
			default:
				waiting[f.TopicPartition], err = true, partly
			}
		}
	} else if err != nil {
		return Records{}, cmp.Or(stopped, err)
	}
	gone := func(held *chunk) bool { return held.tenure != nil && !c.holds(held.tenure) }
	records := c.held.without(func(held *chunk) bool { return failed[held.partition] || gone(held) })
	c.held = c.held.without(func(held *chunk) bool { return !waiting[held.partition] || gone(held) })
	if records.count > 0 {
		return records, nil
	}
	return Records{}, cmp.Or(stopped, err)
}

// stopGrace is how long a Poll that is to end waits for the answer to the commit of what
// it is about to return.
const stopGrace = time.Second

// settleAhead commits what Poll is about to return, and returns what came of it. Where
// ctx ends or the consumer closes meanwhile, stopped says so: then nothing more is sent,
// but what is under way may have been carried out, and its answer is waited for: without
// it those records are nobody's.
func (c *Consumer) settleAhead(ctx context.Context, offsets []GroupOffset) (stopped, err error) {
	done, abandoned := make(chan error, 1), make(chan struct{})
	ahead := c.enqueue(offsets, abandoned, func(err error) { done <- err })
	select {
	case err := <-done:
		return nil, err
	case <-c.closing:
		stopped = fmt.Errorf("consumer is %w", ErrClosed)
	case <-ctx.Done():
		stopped = fmt.Errorf("committing for group %q: %w", c.config.group, context.Cause(ctx))
	}
	close(abandoned)
	c.mu.Lock()
	underWay := ahead != nil && ahead.underWay
	c.mu.Unlock()
	if !underWay {
		select {
		case err := <-done:
			return stopped, err
		default:
			return stopped, stopped
		}
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case err := <-done:
		return stopped, err
	case <-grace.C:
		return stopped, stopped
	}
}

// readAgain gives up what is held of a partition and what is buffered behind it: the log
// has been cut off below. It goes on with the first record held, and that its leader is
// asked for that one tells where the log has gone another way. Callers hold mu.
func (c *Consumer) readAgain(partition TopicPartition, why error) {
	r := c.partitions[partition]
	if r == nil || !slices.ContainsFunc(c.held.chunks, func(held chunk) bool { return held.partition == partition && held.tenure == r.tenure }) {
		return
	}
	c.client.config.Logger.Warn("records that the log has lost since they were fetched are left out", "partition", partition, "error", why)
	c.drop(r)
	r.begin(From(r.next))
	c.summon(r)
	c.broadcast()
}

// lostPartition reports whether a commit failed since the partition is not the
// member's.
func lostPartition(err error) bool {
	switch ReasonOf(err) {
	case errorsv1.Reason_REASON_UNKNOWN_MEMBER, errorsv1.Reason_REASON_MEMBER_FENCED, errorsv1.Reason_REASON_INSTANCE_FENCED,
		errorsv1.Reason_REASON_STALE_MEMBER_EPOCH, errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED:
		return true
	}
	return false
}

// remedied returns the error of a commit with what to do about it.
func remedied(e *Error) *Error {
	var remedy string
	switch e.Reason {
	case errorsv1.Reason_REASON_UNKNOWN_MEMBER, errorsv1.Reason_REASON_MEMBER_FENCED:
		remedy = "the consumer has lost its place in the group and joins again: give up what is in hand and go on with Poll"
	case errorsv1.Reason_REASON_STALE_MEMBER_EPOCH, errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED:
		remedy = "another member may have the partition by now, from the last commit on: give up what is in hand and go on with Poll"
	case errorsv1.Reason_REASON_INSTANCE_FENCED:
		remedy = "another process has taken the instance id up: give each process its own"
	default:
		return e
	}
	told := *e
	told.Message, told.cause = e.Message+"; "+remedy, e
	return &told
}

// notHeld says that an offset was read under an assignment that is over.
func notHeld(tp TopicPartition) *Error {
	return remedied(newError(errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED, "%s is not assigned to the member, or was taken away since the record was read", tp))
}

// commitError returns nil if nothing has failed.
func commitError(failed map[TopicPartition]error) error {
	if len(failed) == 0 {
		return nil
	}
	e := &CommitError{}
	for tp, err := range failed {
		e.Failed = append(e.Failed, CommitOutcome{TopicPartition: tp, Err: err})
	}
	slices.SortFunc(e.Failed, func(a, b CommitOutcome) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return e
}
