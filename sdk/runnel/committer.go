package runnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// committer sends the commits of a consumer, one request at a time, which keeps their
// order. What has gathered meanwhile goes together: of a partition the newest offset.
type committer struct {
	consumer *Consumer
	// wake holds a token while queue may have become non-empty.
	wake chan struct{}
	// sequence is the number of the last request of a member: what was given up and is
	// read late counts no more. It belongs to the goroutine that commits.
	sequence uint64

	// queue holds what is not under way, in order; ended says that nobody looks at it
	// any more. Both are guarded by the consumer's mu.
	queue []*commit
	ended bool
}

// commit is what one call wants committed. It belongs to the committer.
type commit struct {
	// offsets are those that are not settled, failed why others were not committed.
	offsets map[TopicPartition]GroupOffset
	failed  map[TopicPartition]error
	// abandoned is closed when the caller wants no more attempts, last is why the
	// latest failed.
	abandoned <-chan struct{}
	last      error
	// underWay says that a request with some of offsets is not answered. Guarded by the
	// consumer's mu.
	underWay bool
	// done is called once, without the consumer's mu.
	done func(error)
}

// givenUp reports whether the caller wants no more attempts.
func (m *commit) givenUp() bool {
	select {
	case <-m.abandoned:
		return true
	default:
		return false
	}
}

// enqueue makes the committer commit offsets, or without any those behind all that Poll
// has returned, as long as abandoned is open, and tell done. It returns the commit, or nil
// if done has been told.
func (c *Consumer) enqueue(offsets []GroupOffset, abandoned <-chan struct{}, done func(error)) *commit {
	if c.committer == nil {
		done(noGroup())
		return nil
	}
	if err := c.begin(); err != nil && !errors.Is(err, ErrClosed) {
		done(err)
		return nil
	}
	next := &commit{offsets: make(map[TopicPartition]GroupOffset), failed: make(map[TopicPartition]error), abandoned: abandoned, done: done}
	c.mu.Lock()
	switch {
	case c.committer.ended || !c.started:
		c.mu.Unlock()
		done(fmt.Errorf("consumer is %w", ErrClosed))
		return nil
	case len(c.committer.queue) >= maxQueuedCommits:
		c.mu.Unlock()
		done(newError(errorsv1.Reason_REASON_THROTTLED, "%d commits wait for the coordinator of group %q", maxQueuedCommits, c.config.group))
		return nil
	}
	if len(offsets) == 0 {
		for _, r := range c.order {
			if !r.startPending && r.next.Offset >= 0 {
				offsets = append(offsets, GroupOffset{TopicPartition: r.partition, Position: r.next, tenure: r.tenure})
				if r.tenure != nil {
					r.tenure.finished = r.next
				}
			}
		}
	}
	for _, offset := range offsets {
		if c.member != nil && offset.tenure == nil {
			offset.tenure = c.member.owned[offset.TopicPartition]
			if o := offset.tenure; o != nil && (o.reading == nil || o.reading.startPending) {
				o.told = true
			}
		}
		if c.member != nil && offset.tenure == nil || offset.tenure != nil && !c.holds(offset.tenure) {
			next.failed[offset.TopicPartition] = notHeld(offset.TopicPartition)
			continue
		}
		next.offsets[offset.TopicPartition] = offset
	}
	c.committer.push(next)
	c.mu.Unlock()
	return next
}

// push puts a commit in line. Callers hold mu.
func (k *committer) push(next *commit) {
	k.queue = append(k.queue, next)
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// commitStarts commits where the policy has made the member begin. What fails is tried
// again after the interval. Callers hold mu.
func (k *committer) commitStarts(owed []*tenure) {
	if k.ended {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), asyncCommitTimeout)
	next := &commit{offsets: make(map[TopicPartition]GroupOffset), failed: make(map[TopicPartition]error), abandoned: ctx.Done()}
	next.done = func(err error) {
		cancel()
		k.consumer.logCommit(err)
	}
	for _, o := range owed {
		next.offsets[o.partition] = GroupOffset{TopicPartition: o.partition, Position: o.owed, tenure: o}
	}
	k.push(next)
}

// run commits until ctx ends.
func (k *committer) run(ctx context.Context) {
	c := k.consumer
	interval := c.config.autoCommit
	if !c.config.commitsItself() {
		interval = defaultAutoCommit
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if commits := k.gather(nil); len(commits) > 0 {
			k.settle(ctx, commits)
			continue
		}
		select {
		case <-k.wake:
		case <-ticker.C:
			k.commitDue()
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	k.ended = true
	c.mu.Unlock()
	for _, left := range k.gather(nil) {
		left.done(fmt.Errorf("consumer is %w", ErrClosed))
	}
}

// commitDue is the auto-commit. What fails is tried again after the interval.
func (k *committer) commitDue() {
	c := k.consumer
	c.mu.Lock()
	var offsets []GroupOffset
	if c.member != nil {
		offsets = c.due(maps.Values(c.member.owned))
	}
	c.mu.Unlock()
	if len(offsets) > 0 {
		c.commitAsync(c.logCommit, offsets)
	}
}

// gather adds what has been queued to commits that are under way.
func (k *committer) gather(commits []*commit) []*commit {
	k.consumer.mu.Lock()
	defer k.consumer.mu.Unlock()
	commits = append(commits, k.queue...)
	k.queue = nil
	return commits
}

// settle commits until all is settled, abandoned, or ctx ends.
func (k *committer) settle(ctx context.Context, commits []*commit) {
	c := k.consumer
	var pause backoff
	for {
		commits = k.live(ctx, k.gather(commits))
		if len(commits) == 0 {
			return
		}
		request := k.request(commits)
		if len(request.GetOffsets()) == 0 {
			continue
		}
		var response *coordinatorv1.CommitOffsetsResponse
		err := c.coordinator.attempt(ctx, repeatable, func(ctx context.Context, address string) (err error) {
			response, err = c.client.commits.commit(ctx, address, request)
			if err == nil && len(response.GetResults()) != len(request.GetOffsets()) {
				err = newError(errorsv1.Reason_REASON_INTERNAL, "%s answers %d of %d offsets", address, len(response.GetResults()), len(request.GetOffsets()))
			}
			return err
		})
		if err = k.conclude(commits, request, response, err); err != nil {
			// If ctx ends meanwhile, live tells those who wait.
			_ = c.coordinator.rest(ctx, pause.next(), err)
		}
	}
}

// live ends the commits that are settled or that nobody wants any more, and returns
// the others.
func (k *committer) live(ctx context.Context, commits []*commit) []*commit {
	var left []*commit
	for _, next := range commits {
		switch {
		case next.givenUp():
			next.abandon()
		case ctx.Err() != nil:
			next.done(fmt.Errorf("consumer is %w", ErrClosed))
		case len(next.offsets) == 0:
			next.done(commitError(next.failed))
		default:
			left = append(left, next)
		}
	}
	return left
}

// abandon ends a commit that has run out of time.
func (m *commit) abandon() {
	for tp := range m.offsets {
		err := newError(errorsv1.Reason_REASON_TIMED_OUT, "the commit was not answered in time")
		if m.last != nil {
			err.Message += ": " + m.last.Error()
			err.cause = m.last
		}
		m.failed[tp] = err
	}
	m.done(commitError(m.failed))
}

// request asks for the newest offset of each partition. It settles those whose tenure
// is over.
func (k *committer) request(commits []*commit) *coordinatorv1.CommitOffsetsRequest {
	c := k.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	newest := make(map[TopicPartition]GroupOffset)
	for _, next := range commits {
		if next.givenUp() {
			continue
		}
		for tp, offset := range next.offsets {
			if offset.tenure != nil && !c.holds(offset.tenure) {
				delete(next.offsets, tp)
				next.failed[tp] = notHeld(tp)
				continue
			}
			newest[tp] = offset
			next.underWay = true
		}
	}
	request := &coordinatorv1.CommitOffsetsRequest{Group: c.config.group}
	if m := c.member; m != nil {
		k.sequence++
		request.MemberId, request.MemberEpoch, request.CommitSequence = m.id, m.epoch, k.sequence
	}
	bytes := 0
	for tp, offset := range newest {
		if len(request.GetOffsets()) == maxCommitOffsets || bytes >= maxCommitBytes {
			break
		}
		out := &coordinatorv1.OffsetCommit{Topic: tp.Topic, Partition: tp.Partition, Offset: offset.Offset, Metadata: offset.Metadata}
		if offset.LeaderEpoch >= 0 {
			out.LeaderEpoch = new(offset.LeaderEpoch)
		}
		if offset.tenure != nil {
			out.TopicId = offset.tenure.id[:]
		} else if r := c.partitions[tp]; r != nil {
			out.TopicId = r.id[:]
		}
		request.Offsets = append(request.Offsets, out)
		bytes += proto.Size(out)
	}
	return request
}

// conclude settles what an attempt has settled, and returns why another is needed; nil
// if nothing has to be repeated.
func (k *committer) conclude(commits []*commit, request *coordinatorv1.CommitOffsetsRequest, response *coordinatorv1.CommitOffsetsResponse, err error) error {
	c := k.consumer
	c.coordinator.learn(err)
	repeat := err
	if !repeatable(err) {
		repeat = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, sent := range request.GetOffsets() {
		tp := TopicPartition{Topic: sent.GetTopic(), Partition: sent.GetPartition()}
		outcome := err
		if err == nil {
			if failure := response.GetResults()[i].GetFailure(); failure != nil {
				outcome = failureError(failure)
			}
		}
		if outcome != nil && err == nil && IsRetriable(outcome) && ReasonOf(outcome) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			c.coordinator.learn(outcome)
			repeat = outcome
			continue
		}
		if outcome != nil && repeat != nil && err != nil {
			continue
		}
		if m := c.member; m != nil && lostPartition(outcome) {
			// The next heartbeat tells for certain.
			m.nextBeat = time.Now()
			m.wake()
		}
		for _, next := range commits {
			offset, ok := next.offsets[tp]
			if !ok {
				continue
			}
			delete(next.offsets, tp)
			o := offset.tenure
			owed := o.owes() && offset.Position == o.owed
			switch e, _ := errors.AsType[*Error](outcome); {
			case outcome == nil:
				if o != nil {
					o.committed = Position{Offset: sent.GetOffset(), LeaderEpoch: leaderEpochOf(sent)}
				}
				if owed {
					o.owed.Offset = -1
					if o.reading != nil {
						o.reading.pause.reset()
					}
					c.broadcast()
				}
			case e != nil:
				next.failed[tp] = remedied(e)
				if o == nil || e.outcome != fatal || lostPartition(e) {
					break
				}
				missing := e.Reason == errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE
				if missing {
					o.refused = offset.Position
				}
				if r := c.partitions[tp]; owed && r != nil && r.tenure == o && r.fault == nil {
					c.drop(r)
					if missing {
						r.streaming = false
						c.reset(r, e)
						c.retry(r, time.Now())
					} else {
						c.fail(r, -1, e)
					}
				}
			default:
				next.failed[tp] = outcome
			}
		}
	}
	for _, next := range commits {
		next.last, next.underWay = repeat, false
	}
	return repeat
}

func leaderEpochOf(sent *coordinatorv1.OffsetCommit) int32 {
	if sent.LeaderEpoch == nil {
		return -1
	}
	return sent.GetLeaderEpoch()
}
