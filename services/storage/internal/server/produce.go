package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// drainGrace is how long a draining stream waits for the outcome of what it has
// accepted.
const drainGrace = 5 * time.Second

// Produce serves a stream. A child goroutine receives and appends; this one
// sends the outcomes and leaves when the node drains. The child ends when its
// Receive fails, at the latest because this one has returned.
func (s *Server) Produce(ctx context.Context, stream storagev1connect.LogServiceProduceServerStream) error {
	if err := s.streams.Enter(); err != nil {
		return err
	}
	defer s.streams.Leave()
	s.producing.Inc()
	defer s.producing.Dec()
	p := &produceStream{
		server: s,
		lanes:  make(map[laneID]*lane),
		wake:   make(chan struct{}, 1),
		slots:  make(chan struct{}, s.config.StreamRequests),
		left:   make(chan struct{}),
	}
	defer close(p.left)
	s.streams.Child(func() { p.receive(ctx, stream) })
	return p.send(ctx, stream)
}

// produceStream is a Produce stream between the goroutine that receives, the one
// that sends, and those that complete appends.
type produceStream struct {
	server *Server
	// wake has a token when there is something for the sender to look at.
	wake chan struct{}
	// slots has a token for each request that was not answered yet. A full channel
	// holds the client back.
	slots chan struct{}
	// left is closed by the sender when it returns.
	left chan struct{}

	mu sync.Mutex
	// lanes has the partitions with requests that are not answered yet.
	lanes map[laneID]*lane
	// ready are requests to be answered, those of one partition in their order.
	ready       []*pending
	outstanding int
	// ended says that the receiver has stopped, with endErr; io.EOF is the client's
	// half-close.
	ended  bool
	endErr error
}

type laneID struct {
	topic     string
	partition int32
}

// lane is the queue of a partition's requests, by which the responses keep their
// order whatever order the outcomes come in.
type lane struct{ first, last *pending }

// pending is a request without an answer.
type pending struct {
	stream *produceStream
	next   *pending
	req    *storagev1.ProduceRequest
	result partition.Result
	done   bool
}

// Complete implements partition.Completion.
func (r *pending) Complete(result partition.Result) { r.stream.complete(r, result) }

// answered says whether a finished request gets a response.
func (r *pending) answered() bool {
	return r.result.Err != nil || r.req.GetAcks() != logv1.Acks_ACKS_NONE
}

func (p *produceStream) receive(ctx context.Context, stream storagev1connect.LogServiceProduceServerStream) {
	defer func() {
		// The interceptor that catches panics of handlers does not see this goroutine.
		if cause := recover(); cause != nil {
			p.server.logger.ErrorContext(ctx, "panic while receiving", "panic", cause, "stack", string(debug.Stack()))
			p.end(fmt.Errorf("panic: %v", cause))
		}
	}()
	for {
		req, err := stream.Receive()
		if err != nil {
			p.end(err)
			return
		}
		select {
		case p.slots <- struct{}{}:
		case <-p.left:
			return
		}
		r := &pending{stream: p, req: req}
		if !p.accept(r) {
			// What the client sends behind it is not read any more.
			r.Complete(partition.Result{Err: p.server.drain.Err()})
			return
		}
		err = p.server.append(ctx, req, r)
		// The batch is the partition's now; waiting for the answer must not keep it.
		req.Batch, req.Records = nil, nil
		if err != nil {
			r.Complete(partition.Result{Err: err})
		}
	}
}

// accept gives a request its place among those of its partition. It reports
// false when the stream drains.
func (p *produceStream) accept(r *pending) bool {
	id := laneID{r.req.GetTopic(), r.req.GetPartition()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outstanding++
	l := p.lanes[id]
	if l == nil {
		l = &lane{}
		p.lanes[id] = l
	}
	if l.last != nil {
		l.last.next = r
	} else {
		l.first = r
	}
	l.last = r
	select {
	case <-p.server.drain.C():
		return false
	default:
		return true
	}
}

// complete records an outcome and hands over what can be answered now.
func (p *produceStream) complete(r *pending, result partition.Result) {
	id := laneID{r.req.GetTopic(), r.req.GetPartition()}
	p.mu.Lock()
	r.result, r.done = result, true
	l := p.lanes[id]
	for l.first != nil && l.first.done {
		finished := l.first
		l.first, finished.next = finished.next, nil
		if finished.answered() {
			p.ready = append(p.ready, finished)
		} else {
			p.settleLocked()
		}
	}
	if l.first == nil {
		delete(p.lanes, id)
	}
	p.mu.Unlock()
	p.signal()
}

// settleLocked gives back the slot of a request that needs no response any more.
func (p *produceStream) settleLocked() {
	p.outstanding--
	<-p.slots
}

func (p *produceStream) end(err error) {
	p.mu.Lock()
	p.ended, p.endErr = true, err
	p.mu.Unlock()
	p.signal()
}

func (p *produceStream) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *produceStream) send(ctx context.Context, stream storagev1connect.LogServiceProduceServerStream) error {
	drain := p.server.drain.C()
	var overdue <-chan time.Time
	var spare []*pending
	for {
		select {
		case <-p.wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-drain:
			drain, overdue = nil, time.After(drainGrace)
		case <-overdue:
			return p.server.drain.Err()
		}
		p.mu.Lock()
		ready := p.ready
		p.ready = spare
		p.mu.Unlock()
		for _, r := range ready {
			if err := stream.Send(p.response(ctx, r)); err != nil {
				return err
			}
			p.mu.Lock()
			p.settleLocked()
			p.mu.Unlock()
		}
		p.mu.Lock()
		outstanding, ended, err := p.outstanding, p.ended, p.endErr
		p.mu.Unlock()
		clear(ready)
		spare = ready[:0]
		switch {
		case ended && !errors.Is(err, io.EOF):
			return err
		case outstanding > 0:
		case ended:
			return nil
		case drain == nil:
			return p.server.drain.Err()
		}
	}
}

func (p *produceStream) response(ctx context.Context, r *pending) *storagev1.ProduceResponse {
	if r.result.Err == nil {
		return produceResponse(r.req, r.result)
	}
	return &storagev1.ProduceResponse{
		RequestId:    r.req.GetRequestId(),
		Topic:        r.req.GetTopic(),
		Partition:    r.req.GetPartition(),
		BaseOffset:   -1,
		AppendTimeMs: -1,
		Failure:      p.server.failure(ctx, r.result.Err),
	}
}
