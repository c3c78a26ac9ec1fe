package runnel

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// farewell is how long a stream may take to end after its last request.
const farewell = time.Second

// sender sends the batches of all partitions that one storage node leads, over
// one stream: a goroutine that runs as long as the sender sends, another per
// stream receives the answers. Queues reach it by push and pushAt, under their
// own lock.
type sender struct {
	producer *Producer
	address  string
	client   storagev1connect.LogServiceClient
	// stop ends run. Guarded by the producer's mu.
	stop context.CancelFunc
	// awake holds a token while ready or clock may have changed.
	awake chan struct{}

	// Owned by run.
	stream  *produceStream
	pause   backoff
	retryAt time.Time

	mu sync.Mutex
	// ready lists queues that may send, each at most once, and clock those that
	// may later. Guarded by mu.
	ready []*partitionQueue
	clock clock
}

// produceStream is one stream to a node. Its receiver ends it: whatever breaks
// it cancels ctx and lets the receiver find out.
type produceStream struct {
	// stream is nil if it could not even be opened.
	stream *storagev1connect.LogServiceProduceClientStream
	cancel context.CancelCauseFunc
	// ended is closed by the receiver after it has given back what was pending.
	ended chan struct{}

	mu sync.Mutex
	// pending holds the batches whose answers are due, by request id; nil once
	// the stream has ended. Guarded by mu.
	pending map[uint64]*batch
	// err is why it ended. Guarded by mu.
	err error
	// answered says that the node has answered something. Guarded by mu.
	answered bool
}

func newSender(p *Producer, address string) *sender {
	return &sender{
		producer: p,
		address:  address,
		client:   p.client.log(address, transport.Produce),
		awake:    make(chan struct{}, 1),
	}
}

// push lists a queue that can send.
func (s *sender) push(q *partitionQueue) {
	s.mu.Lock()
	s.ready = append(s.ready, q)
	s.mu.Unlock()
	s.nudge()
}

// pushAt calls the queue's ring at a time.
func (s *sender) pushAt(q *partitionQueue, at time.Time) {
	s.mu.Lock()
	earliest := s.clock.add(q, at)
	s.mu.Unlock()
	if earliest {
		s.nudge()
	}
}

func (s *sender) nudge() {
	select {
	case s.awake <- struct{}{}:
	default:
	}
}

// pop returns the next queue that can send, or how long there will be none;
// below 0 without end.
func (s *sender) pop(now time.Time) (*partitionQueue, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		q, wait := s.clock.due(now)
		if q == nil {
			if len(s.ready) == 0 {
				return nil, wait
			}
			break
		}
		// ring locks the queue, which may at this moment be waiting for mu.
		s.mu.Unlock()
		q.ring(s, now)
		s.mu.Lock()
	}
	q := s.ready[0]
	s.ready[0] = nil
	s.ready = s.ready[1:]
	return q, 0
}

// run sends until ctx ends. Batches that are under way then are not waited for.
func (s *sender) run(ctx context.Context) {
	defer s.hangUp()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		if s.stream == nil && now.Before(s.retryAt) {
			// Let no queue take a batch for a node that does not answer: another may
			// lead it by the time it does.
			timer.Reset(s.retryAt.Sub(now))
			select {
			case <-timer.C:
				continue
			case <-ctx.Done():
				return
			}
		}
		q, wait := s.pop(now)
		if q == nil {
			if wait >= 0 {
				timer.Reset(wait)
			} else {
				timer.Stop()
			}
			select {
			case <-s.awake:
			case <-timer.C:
			case <-ctx.Done():
				return
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		a, needsIdentity := q.take(s, now)
		switch {
		case needsIdentity:
			id, err := s.producer.identify(ctx, s.client, s.address, q.neededIdentity())
			now = time.Now()
			if err != nil {
				s.retryAt = now.Add(s.pause.next())
			}
			q.identified(s, id, err, now)
		case a.batch != nil:
			s.send(ctx, q, a)
		}
	}
}

// send encodes and sends one batch.
func (s *sender) send(ctx context.Context, q *partitionQueue, a attempt) {
	if s.stream != nil && s.stream.hasEnded() {
		s.hangUp()
	}
	if s.stream == nil {
		s.dial(ctx)
	}
	config := &s.producer.config
	encoded, err := a.encode(config.compression)
	if !q.launch(a, encoded, err, s.stream, time.Now()) {
		return
	}
	if err := s.stream.expect(a); err != nil {
		q.lost(a.batch, a.id, err, false, time.Now())
		s.hangUp()
		s.retryAt = time.Now().Add(s.pause.next())
		return
	}
	err = s.stream.stream.Send(&storagev1.ProduceRequest{
		RequestId: a.id,
		Topic:     q.topic.name,
		Partition: q.partition,
		Acks:      config.acks.proto(),
		TimeoutMs: int32(config.requestTimeout.Milliseconds()),
		TopicId:   q.topic.id[:],
		Batch:     encoded,
	})
	if err != nil {
		// The cause is the receiver's to find; an error of Send alone, such as a
		// message over the limit, ends the stream as well.
		if !errors.Is(err, io.EOF) {
			s.stream.cancel(err)
		}
		s.hangUp()
		s.retryAt = time.Now().Add(s.pause.next())
		return
	}
	if config.acks == AcksNone {
		s.stream.settle(a.id)
		q.unacknowledged(a, time.Now())
	}
}

// dial opens a stream. That does no I/O: a node that cannot be reached shows in
// the first Send.
func (s *sender) dial(ctx context.Context) {
	// The stream outlives ctx by a moment, for the last requests to arrive.
	streamCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	st := &produceStream{cancel: cancel, ended: make(chan struct{}), pending: make(map[uint64]*batch)}
	forsaken := context.AfterFunc(ctx, func() { time.AfterFunc(farewell, func() { cancel(ErrClosed) }) })
	stream, err := s.client.Produce(streamCtx)
	s.stream = st
	if err != nil {
		st.end(callError(streamCtx, s.address, err), time.Now())
		forsaken()
		cancel(nil)
		return
	}
	st.stream = &stream
	s.producer.tasks.Go(func() {
		err := s.receive(streamCtx, st)
		st.end(callError(streamCtx, s.address, err), time.Now())
		forsaken()
		cancel(nil)
	})
}

// receive takes answers until the stream ends, and returns why it did.
func (s *sender) receive(ctx context.Context, st *produceStream) error {
	for {
		response, err := st.stream.Receive()
		if err != nil {
			return err
		}
		now := time.Now()
		b := st.settle(response.GetRequestId())
		if b != nil {
			if err := b.queue.answer(b, response, now); err != nil {
				if fault, ok := errors.AsType[*Error](err); ok {
					s.producer.fail(fault)
				}
				return err
			}
		}
		if d := response.GetFailure().GetNotLeader(); d.GetLeaderAddress() != "" {
			s.producer.redirect(response.GetTopic(), response.GetPartition(), d, now)
		}
		s.producer.deliveries.throttle(ctx)
	}
}

// hangUp ends the stream, if there is one, and waits until it is gone. Answers
// that are due do not come any more.
func (s *sender) hangUp() {
	if s.stream == nil {
		return
	}
	st := s.stream
	s.stream = nil
	// Requests without acknowledgement may still be on their way: let the node
	// read to the end of what was sent.
	if st.stream != nil {
		_ = st.stream.CloseSend()
	}
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-st.ended:
	case <-timer.C:
		st.cancel(ErrClosed)
		<-st.ended
	}
	if st.answered {
		s.pause.reset()
	}
}

// expect notes that the answer to an attempt is due. The error says why the
// stream has ended.
func (st *produceStream) expect(a attempt) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.pending == nil {
		return st.err
	}
	st.pending[a.id] = a.batch
	return nil
}

// settle returns the batch whose answer was due under a request id, if any.
func (st *produceStream) settle(id uint64) *batch {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.answered = true
	b := st.pending[id]
	delete(st.pending, id)
	return b
}

// end gives back what is pending, because of err.
func (st *produceStream) end(err error, now time.Time) {
	st.mu.Lock()
	pending := st.pending
	st.pending, st.err = nil, err
	st.mu.Unlock()
	sent := !neverSent(err)
	for id, b := range pending {
		b.queue.lost(b, id, err, sent, now)
	}
	close(st.ended)
}

func (st *produceStream) hasEnded() bool {
	select {
	case <-st.ended:
		return true
	default:
		return false
	}
}

// clock is a heap of alarms, the earliest first.
type clock struct{ alarms []alarm }

type alarm struct {
	at    time.Time
	queue *partitionQueue
}

// add sets an alarm and reports whether it is the earliest now.
func (c *clock) add(q *partitionQueue, at time.Time) bool {
	c.alarms = append(c.alarms, alarm{at: at, queue: q})
	i := len(c.alarms) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !c.alarms[i].at.Before(c.alarms[parent].at) {
			break
		}
		c.alarms[i], c.alarms[parent] = c.alarms[parent], c.alarms[i]
		i = parent
	}
	return i == 0
}

// due removes and returns an alarm's queue whose time has come, or how long none
// will be; below 0 if none is set.
func (c *clock) due(now time.Time) (*partitionQueue, time.Duration) {
	if len(c.alarms) == 0 {
		return nil, -1
	}
	first := c.alarms[0]
	if wait := first.at.Sub(now); wait > 0 {
		return nil, wait
	}
	last := len(c.alarms) - 1
	c.alarms[0] = c.alarms[last]
	c.alarms[last] = alarm{}
	c.alarms = c.alarms[:last]
	for i := 0; ; {
		least := i
		for _, child := range [...]int{2*i + 1, 2*i + 2} {
			if child < last && c.alarms[child].at.Before(c.alarms[least].at) {
				least = child
			}
		}
		if least == i {
			return first.queue, 0
		}
		c.alarms[i], c.alarms[least] = c.alarms[least], c.alarms[i]
		i = least
	}
}
