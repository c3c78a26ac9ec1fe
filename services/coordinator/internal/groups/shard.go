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
	// reported is when a failure was logged last, in nanoseconds since the Unix epoch; 0
	// for never.
	reported atomic.Int64

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
