package groups

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

const (
	// mailbox is how many requests may wait for the goroutine of a shard. More are held
	// where they came from; the shard's own queue refuses what is too much.
	mailbox = 256
	// burst is how many inputs one step takes together.
	burst = 256
)

// Where a shard stands, for those who look at it from outside.
const (
	shardIdle = iota
	shardLoading
	shardServing
)

// shard is the driver of one [rules.Shard].
type shard struct {
	host      *Host
	partition rules.Partition
	requests  chan submission
	// outcomes come from I/O, and looks from metrics: both run in the shard's goroutine.
	outcomes chan func(now time.Time)
	looks    chan func()
	news     chan news
	// ended is closed when the goroutine has ended.
	ended chan struct{}
	// given is what the cluster said last; it belongs to the host's goroutine.
	given assignment

	state                   atomic.Int32
	groups, members, queued atomic.Int64

	// The rest belongs to the goroutine.
	rules   *rules.Shard
	taken   assignment
	calls   map[rules.Ticket]chan<- answer
	streams map[rules.Ticket]*Stream
	// certain is when the latest append or check was sent that has succeeded.
	certain time.Time
	// loadBegan is when the partition was taken; zero once it serves.
	loadBegan time.Time
	// cancel ends the I/O of the epoch.
	cancel context.CancelFunc
	epoch  context.Context //nolint:containedctx // Ends with cancel; I/O of one epoch is begun in many steps.
	io     sync.WaitGroup
}

// assignment is what the cluster says of a partition.
type assignment struct {
	// epoch is 0 while another node coordinates it.
	epoch  rules.CoordinatorEpoch
	topics *topics
}

// news is an assignment on its way to the shard; taken is closed once it was acted on.
type news struct {
	assignment
	taken chan struct{}
}

// submission is a request on its way to the shard; one of done and stream is set, or
// none of them for a Detach.
type submission struct {
	ticket  rules.Ticket
	request rules.Request
	done    chan<- answer
	stream  *Stream
	// abandoned is closed when nobody waits for done any more; nil without.
	abandoned <-chan struct{}
}

// answer is what became of a request.
type answer struct {
	value   any
	refusal *rules.Refusal
	certain time.Time
}

func newShard(h *Host, p rules.Partition, self cluster.NodeID) *shard {
	return &shard{
		host: h, partition: p,
		requests: make(chan submission, mailbox), outcomes: make(chan func(time.Time), 1), looks: make(chan func()),
		news: make(chan news), ended: make(chan struct{}),
		rules: rules.NewShard(h.config, self),
		calls: make(map[rules.Ticket]chan<- answer), streams: make(map[rules.Ticket]*Stream),
		cancel: func() {},
	}
}

// assign tells the shard what the cluster says now, and returns once it has acted on
// that: what it let out before is on its way.
func (s *shard) assign(a assignment) {
	if s.given == a {
		return
	}
	s.given = a
	n := news{a, make(chan struct{})}
	select {
	case s.news <- n:
		<-n.taken
	case <-s.ended:
	}
}

// run drives the shard until ctx ends.
func (s *shard) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case r := <-s.requests:
			s.submit(r)
		case outcome := <-s.outcomes:
			outcome(time.Now())
		case look := <-s.looks:
			look()
			continue
		case n := <-s.news:
			s.follow(ctx, n.assignment)
			close(n.taken)
		case <-timer.C:
		}
		s.takeMore()
		if ctx.Err() != nil {
			break
		}
		if wake := s.step(); wake.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(wake), time.Millisecond))
		}
	}
	s.end(errStopping)
	close(s.ended)
	s.refuseAll()
	s.io.Wait()
}

// takeMore takes what has arrived meanwhile, so that it shares a round.
func (s *shard) takeMore() {
	for range burst {
		select {
		case r := <-s.requests:
			s.submit(r)
		default:
			return
		}
	}
}

// submit takes a request, unless its caller has given it up: one that was on its way here
// for long must not undo what the caller has asked for since, such as an older commit a
// newer one.
func (s *shard) submit(r submission) {
	select {
	case <-r.abandoned:
		return
	default:
	}
	switch {
	case r.done != nil:
		s.calls[r.ticket] = r.done
	case r.stream != nil:
		s.streams[r.ticket] = r.stream
	default:
		if detach, ok := r.request.(*rules.Detach); ok {
			delete(s.streams, detach.Stream)
		}
	}
	s.rules.Submit(r.ticket, r.request, time.Now())
}

// follow acts on what the cluster says.
func (s *shard) follow(ctx context.Context, given assignment) {
	if given.epoch != s.taken.epoch {
		if s.taken.epoch != 0 {
			s.end(errNotHere)
		}
		if given.epoch != 0 {
			s.epoch, s.cancel = context.WithCancel(ctx)
			s.loadBegan = time.Now()
			s.state.Store(shardLoading)
			s.host.logger.Info("coordinating", "partition", s.partition.Index, "coordinator_epoch", given.epoch)
		}
	}
	if given.topics != s.taken.topics {
		s.rules.SetTopics(given.topics)
	}
	if given.epoch != 0 && given.epoch != s.taken.epoch {
		s.rules.Begin(given.epoch)
	}
	s.taken = given
}

// end gives the partition up.
func (s *shard) end(why *rules.Refusal) {
	s.rules.End(why)
	s.cancel()
	s.cancel, s.certain, s.loadBegan = func() {}, time.Time{}, time.Time{}
	s.state.Store(shardIdle)
	s.carryOut(s.rules.Step(time.Now()))
}

// refuseAll answers what is left when the goroutine ends, so that nobody waits for it.
func (s *shard) refuseAll() {
	for {
		select {
		case r := <-s.requests:
			if r.done != nil {
				r.done <- answer{refusal: errStopping}
			} else if r.stream != nil {
				r.stream.close(errStopping)
			}
			continue
		default:
		}
		break
	}
	for ticket, done := range s.calls {
		delete(s.calls, ticket)
		done <- answer{refusal: errStopping}
	}
	for ticket, stream := range s.streams {
		delete(s.streams, ticket)
		stream.close(errStopping)
	}
}

// step lets the rules decide and returns when they want to be asked again.
func (s *shard) step() time.Time {
	effects := s.rules.Step(time.Now())
	s.carryOut(effects)
	stats := s.rules.Stats()
	s.groups.Store(int64(stats.Groups))
	s.members.Store(int64(stats.Members))
	s.queued.Store(int64(stats.Queued))
	switch {
	case s.taken.epoch == 0:
		s.state.Store(shardIdle)
	case stats.Serving:
		s.state.Store(shardServing)
		if !s.loadBegan.IsZero() {
			took := time.Since(s.loadBegan)
			s.loadBegan = time.Time{}
			s.host.metrics.loading.Observe(took.Seconds())
			s.host.logger.Info("groups are loaded", "partition", s.partition.Index, "coordinator_epoch", s.taken.epoch, "groups", stats.Groups, "members", stats.Members, "took", took)
		}
	default:
		if s.state.Swap(shardLoading) == shardServing {
			// It begins anew from the log.
			s.loadBegan = time.Now()
		}
	}
	return effects.Wake
}

// carryOut lets out what a step has decided, in its order, and begins its I/O.
func (s *shard) carryOut(effects rules.Effects) {
	for _, reply := range effects.Replies {
		if reply.Refusal != nil && reply.Refusal.Reason == errorsv1.Reason_REASON_THROTTLED {
			s.host.metrics.throttled.Inc()
		}
		if done := s.calls[reply.Ticket]; done != nil {
			delete(s.calls, reply.Ticket)
			done <- answer{value: reply.Value, refusal: reply.Refusal, certain: s.certain}
		} else if stream := s.streams[reply.Ticket]; stream != nil && reply.Refusal != nil {
			delete(s.streams, reply.Ticket)
			stream.close(reply.Refusal)
		}
	}
	for i := range effects.Assignments {
		if stream := s.streams[effects.Assignments[i].Stream]; stream != nil {
			stream.put(&effects.Assignments[i], s.certain)
		}
	}
	for _, closed := range effects.Closed {
		if stream := s.streams[closed.Stream]; stream != nil {
			delete(s.streams, closed.Stream)
			stream.close(closed.Refusal)
		}
	}
	switch {
	case effects.Append != nil:
		s.append(effects.Append)
	case effects.Check != nil:
		s.check(effects.Check)
	case effects.Load != nil:
		s.load(effects.Load)
	}
}

func (s *shard) append(a *rules.Append) {
	ctx, sent := s.epoch, time.Now()
	s.io.Go(func() {
		outcome, end, err := s.host.log.Append(ctx, s.partition, a)
		s.report(ctx, "append", outcome, err)
		s.deliver(func(now time.Time) {
			s.host.metrics.round("append", outcome, now.Sub(sent))
			s.confirm(ctx, outcome, sent)
			s.rules.Appended(a.Ticket, outcome, end, now)
		})
	})
}

func (s *shard) check(c *rules.Check) {
	ctx, sent := s.epoch, time.Now()
	s.io.Go(func() {
		outcome, err := s.host.log.Check(ctx, s.partition, c)
		s.report(ctx, "check", outcome, err)
		s.deliver(func(now time.Time) {
			s.host.metrics.round("check", outcome, now.Sub(sent))
			s.confirm(ctx, outcome, sent)
			s.rules.Checked(c.Ticket, outcome, now)
		})
	})
}

func (s *shard) load(l *rules.Load) {
	ctx, sent := s.epoch, time.Now()
	s.io.Go(func() {
		outcome, err := s.host.log.Load(ctx, s.partition, l.End, func(records []rules.Record) {
			s.deliver(func(time.Time) { s.rules.Load(l.Ticket, records) })
		})
		s.report(ctx, "load", outcome, err)
		s.deliver(func(now time.Time) {
			s.host.metrics.round("load", outcome, now.Sub(sent))
			s.rules.Loaded(l.Ticket, outcome, now)
		})
	})
}

// confirm notes that nobody else had the partition when a request was sent.
func (s *shard) confirm(ctx context.Context, outcome rules.Outcome, sent time.Time) {
	if outcome == rules.Done && ctx.Err() == nil {
		s.certain = sent
	}
}

// deliver has the goroutine of the shard run something; what comes too late is dropped.
func (s *shard) deliver(outcome func(now time.Time)) {
	select {
	case s.outcomes <- outcome:
	case <-s.ended:
	}
}

// report logs what was not done.
func (s *shard) report(ctx context.Context, what string, outcome rules.Outcome, err error) {
	if outcome == rules.Done || ctx.Err() != nil {
		return
	}
	level := s.host.logger.Warn
	if outcome == rules.Refused {
		level = s.host.logger.Info
	}
	level("groups could not be written or read", "partition", s.partition.Index, "what", what, "outcome", outcomeName(outcome), "error", err)
}

// do submits a request and waits for its answer.
func (s *shard) do(ctx context.Context, request rules.Request) (any, error) {
	done := make(chan answer, 1)
	if err := s.send(ctx, submission{ticket: s.host.ticket(), request: request, done: done, abandoned: ctx.Done()}); err != nil {
		return nil, err
	}
	select {
	case a := <-done:
		return a.value, s.judge(a)
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ended:
	}
	select {
	case a := <-done:
		return a.value, s.judge(a)
	default:
		return nil, errStopping
	}
}

// judge returns the error of an answer.
func (s *shard) judge(a answer) error {
	if !sayable(a.refusal) && time.Since(a.certain) > s.host.config.Confidence {
		return stale(a.certain)
	}
	if a.refusal != nil {
		return a.refusal
	}
	return nil
}

// sayable reports whether a refusal says nothing about a group, and holds therefore
// whoever coordinates it.
func sayable(r *rules.Refusal) bool {
	if r == nil {
		return false
	}
	switch r.Reason {
	case errorsv1.Reason_REASON_NOT_COORDINATOR,
		errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE,
		errorsv1.Reason_REASON_DRAINING,
		errorsv1.Reason_REASON_THROTTLED:
		return true
	default:
		return false
	}
}

func (s *shard) send(ctx context.Context, r submission) error {
	select {
	case s.requests <- r:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		return errStopping
	}
}

// join submits a Join.
func (s *shard) join(ctx context.Context, join *rules.Join) (*Stream, error) {
	stream := &Stream{shard: s, ticket: s.host.ticket(), group: join.Group, member: join.Member, c: make(chan struct{}, 1)}
	if err := s.send(ctx, submission{ticket: stream.ticket, request: join, stream: stream}); err != nil {
		return nil, err
	}
	return stream, nil
}

// offsets returns up to limit committed offsets, and how many there are.
func (s *shard) offsets(ctx context.Context, limit int) (found []*rules.OffsetRecord, total int, _ error) {
	looked := make(chan struct{})
	look := func() {
		defer close(looked)
		s.rules.Offsets(func(r *rules.OffsetRecord) bool {
			if total++; len(found) < limit {
				found = append(found, r)
			}
			return true
		})
	}
	select {
	case s.looks <- look:
	case <-s.ended:
		return nil, 0, errStopping
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	<-looked
	return found, total, nil
}

func (h *Host) ticket() rules.Ticket { return rules.Ticket(h.tickets.Add(1)) }
