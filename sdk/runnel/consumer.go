package runnel

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// Consumer reads partitions that it is told to read by Assign, or, as a member of a
// group, those that the group gives it after Subscribe. Its methods may be called
// concurrently; Poll is meant for one goroutine, since concurrent calls divide
// the records among them in no particular way.
type Consumer struct {
	client   *Client
	config   consumerConfig
	shutdown sync.Once
	// tasks are the goroutines that the consumer owns.
	tasks sync.WaitGroup
	// attention holds a token while the supervisor may have to set its timer.
	attention chan struct{}
	// stage holds a token that whoever polls or leaves the group takes: the program is
	// told of one change at a time.
	stage chan struct{}
	// closing is closed when Close begins.
	closing chan struct{}
	// coordinator is that of the consumer's group, commits go through committer; both
	// are nil without a group.
	coordinator *coordinator
	committer   *committer

	mu sync.Mutex
	// changed is closed and replaced after anything that someone may wait for.
	// Guarded by mu, as is all that follows.
	changed chan struct{}
	// started says that the goroutines run: they do from the first Assign on;
	// closed that they have been told to end.
	started, closed bool
	// spawn starts a goroutine and returns what ends it, stop ends them all.
	spawn func(func(context.Context)) context.CancelFunc
	stop  context.CancelFunc

	partitions map[TopicPartition]*reading
	// order is that of the turns in which Poll serves partitions, turn the number
	// of the one to begin with.
	order    []*reading
	turn     int
	fetchers map[fetcherKey]*fetcher
	// buffered is the size of all chunks that wait for Poll.
	buffered int64

	// member is the place in the group; nil without a subscription.
	member *membership
	// held are records that Poll returns once the offset behind them is committed.
	held Records
}

// reading is a partition that is being read. Guarded by the consumer's mu.
type reading struct {
	partition TopicPartition
	id        cluster.TopicID
	// tenure is that of a member of a group; nil for others.
	tenure *tenure
	// start and until are resolved at the leader as long as they are pending.
	start        Start
	startPending bool
	until        int64
	// next is the position of Poll, ahead that of the fetcher: what lies between
	// them is in chunks.
	next, ahead Position
	chunks      []chunk
	// received says that the partition has answered with something since start.
	received bool
	// fault is why nothing comes behind chunks; faultShown when Poll last said so.
	fault      error
	faultShown time.Time
	// resume is where to go on once Poll has told of fault; nil for nowhere.
	resume *Start
	paused bool
	// highWatermark is the latest heard of, -1 before.
	highWatermark int64

	// session changes when what is under way is void.
	session uint64
	route   route
	fetcher *fetcher
	// streaming says that the fetcher's stream covers the partition.
	streaming bool
	retryAt   time.Time
	pause     backoff
}

// pending reports whether start or until must be resolved.
func (r *reading) pending() bool { return r.startPending || r.until == boundAtEnd }

// fetched reports whether there is nothing more to fetch.
func (r *reading) fetched() bool { return r.until >= 0 && r.ahead.Offset >= r.until && !r.startPending }

// finished reports whether Poll has returned all up to the bound.
func (r *reading) finished() bool { return r.fetched() && len(r.chunks) == 0 && r.fault == nil }

// wanted reports whether the fetcher has work to do here, now or at retryAt.
func (r *reading) wanted() bool {
	return r.fault == nil && !r.paused && (r.pending() || !r.fetched())
}

// NewConsumer returns a consumer without partitions. It does no I/O: that starts
// with Assign, or, for a member of a group, with Subscribe.
func (c *Client) NewConsumer(options ...ConsumerOption) (*Consumer, error) {
	config := consumerConfig{
		bufferBytes:      defaultConsumerBuffer,
		sessionTimeout:   defaultSessionTimeout,
		rebalanceTimeout: defaultRebalanceTimeout,
		autoCommit:       defaultAutoCommit,
	}
	for _, option := range options {
		option(&config)
	}
	if err := config.check(); err != nil {
		return nil, err
	}
	consumer := &Consumer{
		client:     c,
		config:     config,
		attention:  make(chan struct{}, 1),
		changed:    make(chan struct{}),
		partitions: make(map[TopicPartition]*reading),
		fetchers:   make(map[fetcherKey]*fetcher),
		stage:      make(chan struct{}, 1),
		closing:    make(chan struct{}),
	}
	consumer.unstage()
	if config.inGroup {
		consumer.coordinator = newCoordinator(c, config.group)
		consumer.committer = &committer{consumer: consumer, wake: make(chan struct{}, 1)}
	}
	if err := c.join(consumer); err != nil {
		return nil, err
	}
	return consumer, nil
}

// drop forgets what is buffered for a reading, and what is under way. Callers
// hold mu.
func (c *Consumer) drop(r *reading) {
	for i := range r.chunks {
		c.buffered -= r.chunks[i].size
	}
	r.chunks = nil
	for i := range c.held.chunks {
		if held := &c.held.chunks[i]; held.partition == r.partition {
			r.next = Position{Offset: held.from, LeaderEpoch: held.leaderEpoch}
			break
		}
	}
	c.held = c.held.without(func(held *chunk) bool { return held.partition == r.partition })
	r.ahead = r.next
	r.session++
	if r.streaming {
		r.fetcher.interrupt()
	}
}

// Seek makes the next Poll begin elsewhere in a partition, and clears its error.
// A start other than an offset is resolved in the background. A bound of the
// assignment stays in force.
func (c *Consumer) Seek(partition TopicPartition, start Start) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.reading(partition)
	if err != nil {
		return err
	}
	if start.kind == startOffset && start.position.Offset < 0 {
		return newError(errorsv1.Reason_REASON_INVALID_REQUEST, "offset %d is below 0", start.position.Offset)
	}
	c.drop(r)
	r.begin(start)
	c.reconcile()
	c.summon(r)
	c.broadcast()
	return nil
}

// Pause keeps Poll from returning records of partitions until Resume. What was
// fetched ahead of them is given up, so that they take no room from the others.
// Pausing twice does nothing more.
func (c *Consumer) Pause(partitions ...TopicPartition) error {
	return c.setPaused(true, partitions)
}

// Resume undoes Pause. Resuming what is not paused does nothing.
func (c *Consumer) Resume(partitions ...TopicPartition) error {
	return c.setPaused(false, partitions)
}

func (c *Consumer) setPaused(paused bool, partitions []TopicPartition) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, tp := range partitions {
		r, err := c.reading(tp)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if r.paused == paused {
			continue
		}
		r.paused = paused
		if paused {
			c.drop(r)
		} else {
			c.summon(r)
		}
	}
	c.broadcast()
	return errors.Join(errs...)
}

// Position returns where the next Poll begins in a partition: behind the last
// record that Poll returned. It is an error while the start is not known yet,
// which it is when Assign has returned.
func (c *Consumer) Position(partition TopicPartition) (Position, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.reading(partition)
	if err != nil {
		return Position{}, err
	}
	if r.startPending && len(r.chunks) == 0 {
		return Position{}, newError(errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE, "where %s begins is still being asked", partition)
	}
	return r.next, nil
}

// HighWatermark returns the end of what can be read of a partition, as of the
// last response; ok is false before the first. Its distance to the position is
// the lag.
func (c *Consumer) HighWatermark(partition TopicPartition) (offset int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.partitions[partition]
	if r == nil || r.highWatermark < 0 {
		return 0, false
	}
	return r.highWatermark, true
}

// EndReached reports whether Poll has returned all of a partition up to the
// bound of its assignment. It is false without a bound.
func (c *Consumer) EndReached(partition TopicPartition) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.partitions[partition]
	return r != nil && r.finished()
}

// Assigned returns the partitions that the consumer reads, in no particular
// order.
func (c *Consumer) Assigned() []TopicPartition {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]TopicPartition, 0, len(c.order))
	for _, r := range c.order {
		all = append(all, r.partition)
	}
	return all
}

// closeTimeout is how long Close tries to commit.
const closeTimeout = 10 * time.Second

// Close ends the consumer and waits for its goroutines. A Poll under way returns
// [ErrClosed].
//
// A member of a group leaves it: the Revoked callback runs, what the program has done
// with is committed unless it does that itself, and the partitions go to others at
// once, or, those of a static member, stay for the next process with its instance id.
// What the last Poll returned counts as done only if another Poll has followed: a
// program that has done with it and does not poll again calls [Consumer.Commit] first.
// Committing takes 10 s at most, leaving 3 s more. Other commits that are under way end
// with [ErrClosed]. The error says what was not committed. Closing again does nothing.
func (c *Consumer) Close() error {
	var err error
	c.shutdown.Do(func() {
		c.mu.Lock()
		c.closed = true
		close(c.closing)
		started, stop := c.started, c.stop
		c.broadcast()
		c.mu.Unlock()
		<-c.stage
		c.mu.Lock()
		m := c.member
		c.mu.Unlock()
		if m != nil {
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			err = c.giveUp(ctx)
			cancel()
			c.dismiss(context.Background(), m, c.config.instanceID != "")
		}
		c.unstage()
		if started {
			stop()
			c.tasks.Wait()
			c.client.view.release()
		}
		c.client.leave(c)
	})
	return err
}

// reading returns the entry of a partition. Callers hold mu.
func (c *Consumer) reading(tp TopicPartition) (*reading, error) {
	if r := c.partitions[tp]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("%s: %w", tp, ErrNotAssigned)
}

// broadcast wakes everyone who waits for a change. Callers hold mu.
func (c *Consumer) broadcast() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// begin makes the consumer's goroutines run.
func (c *Consumer) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("consumer is %w", ErrClosed)
	}
	if c.started {
		return nil
	}
	c.started = true
	c.client.view.retain()
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	c.spawn = func(task func(context.Context)) context.CancelFunc {
		taskCtx, cancelTask := context.WithCancel(ctx)
		c.tasks.Go(func() {
			defer cancelTask()
			task(taskCtx)
		})
		return cancelTask
	}
	c.spawn(c.supervise)
	if c.committer != nil {
		c.spawn(c.committer.run)
	}
	return nil
}

// supervise keeps readings routed to their leaders, until ctx ends.
func (c *Consumer) supervise(ctx context.Context) {
	for {
		_, newer := c.client.view.next()
		c.mu.Lock()
		c.reconcile()
		c.mu.Unlock()
		for current := true; current; {
			c.mu.Lock()
			again := c.recall(time.Now())
			c.mu.Unlock()
			timer := time.NewTimer(again)
			select {
			case <-newer:
				current = false
			case <-c.attention:
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
			timer.Stop()
		}
	}
}

// idle is how often the supervisor looks around without a reason.
const idle = time.Minute

// recall makes fetchers take up again what has paused for long enough, and
// returns how long until the next. Callers hold mu.
func (c *Consumer) recall(now time.Time) time.Duration {
	again := idle
	for _, r := range c.order {
		if r.fetcher == nil || r.streaming || r.retryAt.IsZero() || !r.wanted() {
			continue
		}
		if wait := r.retryAt.Sub(now); wait > 0 {
			again = min(again, wait)
			continue
		}
		r.retryAt = time.Time{}
		c.summon(r)
		c.broadcast()
	}
	return again
}

// reconcile routes readings as the cluster stands. Callers hold mu: so nobody is
// taken back to an older image, in which a new topic does not exist.
func (c *Consumer) reconcile() {
	image := c.client.view.image()
	if image == nil || c.closed {
		return
	}
	for _, r := range c.order {
		topic, ok := image.TopicByID(r.id)
		if !ok || int(r.partition.Partition) >= len(topic.Partitions) {
			if r.tenure != nil {
				// The image is behind the coordinator's, or the next assignment is
				// without it.
				c.leave(r)
				continue
			}
			c.fail(r, -1, newError(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "topic %q (%s) was deleted", r.partition.Topic, r.id).withOutcome(fatal))
			c.leave(r)
			continue
		}
		to, _ := leader(image, &topic.Partitions[r.partition.Partition])
		c.follow(r, to)
	}
	inUse := make(map[*fetcher]bool)
	for _, r := range c.order {
		inUse[r.fetcher] = true
	}
	for key, f := range c.fetchers {
		if !inUse[f] {
			f.stop()
			delete(c.fetchers, key)
		}
	}
}

// fail stops a reading behind what it has buffered; next is where it can go on,
// -1 if that is not known. Callers hold mu.
func (c *Consumer) fail(r *reading, next int64, err error) {
	if r.fault != nil {
		return
	}
	r.fault = &PartitionError{TopicPartition: r.partition, Offset: r.ahead.Offset, NextOffset: next, Err: err}
	r.session++
	if r.streaming {
		r.fetcher.interrupt()
	}
	c.broadcast()
}
