package runnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// ResetPolicy says what a consumer does when the partition does not hold the
// offset at which it is to read on: retention has removed it, or it never was
// there.
//
// That records which were read are no longer in the log, as after an unclean
// election, Poll tells under every policy, with a [PartitionError] whose reason is
// REASON_LOG_TRUNCATED. Under [ResetEarliest] and [ResetLatest] it tells so once,
// and the consumer goes on where the log parts from what was read, or as the policy
// says if that is not known.
type ResetPolicy int8

const (
	// ResetNone fails the Poll with a [PartitionError] and leaves it to the
	// program to seek. It is the default: going on by itself would pass over
	// records, or read some twice, without anyone noticing.
	ResetNone ResetPolicy = iota
	// ResetEarliest goes on with the first record that the partition holds.
	ResetEarliest
	// ResetLatest goes on at the end of the partition.
	ResetLatest
)

const (
	defaultConsumerBuffer = 32 << 20
	minConsumerBuffer     = 64 << 10
	// maxResponseBytes is how much one response of a stream carries, unless a
	// single batch is larger.
	maxResponseBytes = 1 << 20
	// pollBytes is about how much one Poll returns at most.
	pollBytes = 1 << 20
	// faultInterval is how often Poll repeats the error of a partition that
	// nobody has done anything about.
	faultInterval = time.Second
)

type consumerConfig struct {
	reset       ResetPolicy
	bufferBytes int64
}

// ConsumerOption changes a setting of a consumer.
type ConsumerOption func(*consumerConfig)

// WithReset sets what happens when the offset to read is not there; default
// [ResetNone].
func WithReset(policy ResetPolicy) ConsumerOption {
	return func(c *consumerConfig) { c.reset = policy }
}

// WithMaxBufferedBytes bounds the records that are fetched ahead of Poll: 64 KiB
// or more, default 32 MiB. What is counted is batches as received, and the
// records of compressed ones. One response per node, of about 1 MiB, may come on
// top.
func WithMaxBufferedBytes(n int64) ConsumerOption {
	return func(c *consumerConfig) { c.bufferBytes = n }
}

// Consumer reads partitions that it is told to read. Its methods may be called
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
}

// reading is a partition that is being read. Guarded by the consumer's mu.
type reading struct {
	partition TopicPartition
	id        cluster.TopicID
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
// with Assign.
func (c *Client) NewConsumer(options ...ConsumerOption) (*Consumer, error) {
	config := consumerConfig{bufferBytes: defaultConsumerBuffer}
	for _, option := range options {
		option(&config)
	}
	var faults []error
	if config.reset < ResetNone || config.reset > ResetLatest {
		faults = append(faults, fmt.Errorf("reset policy %d is not none, earliest or latest", config.reset))
	}
	if config.bufferBytes < minConsumerBuffer {
		faults = append(faults, fmt.Errorf("buffer of %d bytes is below %d", config.bufferBytes, minConsumerBuffer))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	consumer := &Consumer{
		client:     c,
		config:     config,
		attention:  make(chan struct{}, 1),
		changed:    make(chan struct{}),
		partitions: make(map[TopicPartition]*reading),
		fetchers:   make(map[fetcherKey]*fetcher),
	}
	if err := c.join(consumer); err != nil {
		return nil, err
	}
	return consumer, nil
}

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
// are ignored.
func (c *Consumer) Remove(partitions ...TopicPartition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var gone []*reading
	for _, tp := range partitions {
		if r := c.partitions[tp]; r != nil {
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

// drop forgets what is buffered for a reading, and what is under way. Callers
// hold mu.
func (c *Consumer) drop(r *reading) {
	for i := range r.chunks {
		c.buffered -= r.chunks[i].size
	}
	r.chunks = nil
	r.ahead = r.next
	r.session++
	if r.streaming {
		r.fetcher.interrupt()
	}
}

// Poll returns records as soon as there are any, at most about 1 MiB of them
// unless a single batch is larger, and turn by turn from all partitions. It
// waits until there are some, or until ctx ends, whose cause it then returns;
// give it a context with a timeout to poll at intervals.
//
// A [PartitionError] says that one partition cannot be read on. It stops until
// the program seeks or removes it, and Poll repeats the error every second while
// the others go on; but see [ResetPolicy] about truncated logs. [ErrEnd] says that all partitions are at their bounds.
// Everything else that can go wrong heals by itself and is not returned.
func (c *Consumer) Poll(ctx context.Context) (Records, error) {
	for {
		records, wait, err := c.ready(time.Now())
		if err != nil || records.count > 0 {
			return records, err
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
	if len(c.order) == 0 {
		return Records{}, wait{}, fmt.Errorf("nothing to poll: %w", ErrNotAssigned)
	}
	w := wait{changed: c.changed}
	ended := true
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
			if r.paused || len(r.chunks) == 0 || size >= pollBytes {
				continue
			}
			next := r.chunks[0]
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
	return records, w, nil
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

// Close ends the consumer and waits for its goroutines. A Poll under way returns
// [ErrClosed]. Closing again does nothing.
func (c *Consumer) Close() error {
	c.shutdown.Do(func() {
		c.mu.Lock()
		c.closed = true
		started, stop := c.started, c.stop
		c.broadcast()
		c.mu.Unlock()
		if started {
			stop()
			c.tasks.Wait()
			c.client.view.release()
		}
		c.client.leave(c)
	})
	return nil
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
