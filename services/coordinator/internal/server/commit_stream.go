package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

const (
	// maxStreamCommits is how many commits of a stream may be unanswered before the
	// server stops reading it. The contract names it.
	maxStreamCommits = 256
	// maxStreamBytes is how many bytes the unanswered commits of a stream may take before
	// the server stops reading it; the last one may go beyond. The contract names it.
	maxStreamBytes = 4 << 20
	// offsetAnswerBytes is about what the answer to one offset takes that is refused.
	offsetAnswerBytes = 256
	// streamedWithin is how long a commit of a stream may take, waiting in its lane
	// included, and so how long commits that get nowhere, and take all that may be
	// unanswered, hold up the others of their stream. As long as an append may take: the
	// outcome of what takes longer is not known then either. The contract names it.
	streamedWithin = 10 * time.Second
	// drainGrace is how long a draining stream waits for the outcome of what it has
	// accepted.
	drainGrace = 5 * time.Second
)

// CommitOffsetsStream implements coordinatorv1connect.OffsetServiceHandler. A child
// goroutine receives, one for each group with unanswered commits carries them out, and
// this one sends the outcomes and leaves when the node drains. The receiver ends when its
// Receive fails, at the latest because this one has returned; what has not begun by then
// is not carried out any more.
func (s *Server) CommitOffsetsStream(ctx context.Context, stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamServerStream) error {
	if err := s.committing.Enter(); err != nil {
		return err
	}
	defer s.committing.Leave()
	s.committers.Inc()
	defer s.committers.Dec()
	c := &commitStream{
		server: s,
		lanes:  make(map[string]*commitLane),
		wake:   make(chan struct{}, 1),
		slots:  make(chan struct{}, maxStreamCommits),
		room:   make(chan struct{}, 1),
		left:   make(chan struct{}),
	}
	defer close(c.left)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.committing.Child(func() { c.receive(ctx, stream) })
	return c.send(ctx, stream)
}

// commitStream is a stream of commits between the goroutine that receives, those that
// carry out, and the one that sends.
type commitStream struct {
	server *Server
	// wake has a token when there is something for the sender to look at.
	wake chan struct{}
	// slots has a token for each commit that was not answered yet. A full channel holds
	// the client back.
	slots chan struct{}
	// room has a token when bytes may have fallen to maxStreamBytes.
	room chan struct{}
	// left is closed by the sender when it returns.
	left chan struct{}

	mu sync.Mutex
	// lanes has the groups with a goroutine that carries their commits out.
	lanes map[string]*commitLane
	// ready are commits to be answered.
	ready       []*streamCommit
	outstanding int
	// bytes is what the outstanding commits take, their answers included.
	bytes int
	// ended says that the receiver has stopped, with endErr; io.EOF is the client's
	// half-close.
	ended  bool
	endErr error
}

// commitLane is the queue behind the commit of a group that is being carried out. One
// after the other: a commit that takes its time is not overtaken by the next, which its
// client may have sent after it has given the first one up.
type commitLane struct{ first, last *streamCommit }

// streamCommit is a commit without an answer.
type streamCommit struct {
	next *streamCommit
	id   uint64
	// bytes is what it takes of maxStreamBytes.
	bytes int
	req   *coordinatorv1.CommitOffsetsRequest
	// came is when it was read.
	came time.Time
	res  *coordinatorv1.CommitOffsetsResponse
	err  error
}

func (c *commitStream) receive(ctx context.Context, stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamServerStream) {
	defer func() {
		// The interceptor that catches panics of handlers does not see this goroutine.
		if cause := recover(); cause != nil {
			c.server.logger.ErrorContext(ctx, "panic while receiving", "panic", cause, "stack", string(debug.Stack()))
			c.end(fmt.Errorf("panic: %v", cause))
		}
	}()
	for {
		req, err := stream.Receive()
		if err == nil && req.GetCommit() == nil {
			err = invalid("request %d has no commit; each request of the stream is one", req.GetRequestId())
		}
		if err != nil {
			c.end(err)
			return
		}
		select {
		case c.slots <- struct{}{}:
		case <-c.left:
			return
		}
		commit := req.GetCommit()
		next := &streamCommit{
			id: req.GetRequestId(), req: commit, came: time.Now(),
			bytes: proto.Size(commit) + offsetAnswerBytes*len(commit.GetOffsets()),
		}
		if !c.accept(ctx, next) || !c.waitForRoom() {
			// What the client sends behind it is not read any more.
			return
		}
	}
}

// accept has a commit carried out once those of its group before it are. It reports false
// when the stream drains.
func (c *commitStream) accept(ctx context.Context, next *streamCommit) bool {
	group := next.req.GetGroup()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outstanding++
	c.bytes += next.bytes
	select {
	case <-c.server.drain.C():
		next.err = c.server.drain.Err()
		c.ready = append(c.ready, next)
		c.signal()
		return false
	default:
	}
	switch lane := c.lanes[group]; {
	case lane == nil:
		lane = &commitLane{}
		c.lanes[group] = lane
		c.server.committing.Child(func() { c.serve(ctx, group, lane, next) })
	case lane.last == nil:
		lane.first, lane.last = next, next
	default:
		lane.last.next, lane.last = next, next
	}
	return true
}

// waitForRoom waits until what is unanswered does not take too much. It reports false when
// the sender has left.
func (c *commitStream) waitForRoom() bool {
	for {
		c.mu.Lock()
		full := c.bytes > maxStreamBytes
		c.mu.Unlock()
		if !full {
			return true
		}
		select {
		case <-c.room:
		case <-c.left:
			return false
		}
	}
}

// serve carries out the commits of a group, until there are none.
func (c *commitStream) serve(ctx context.Context, group string, lane *commitLane, next *streamCommit) {
	for next != nil && ctx.Err() == nil {
		c.carryOut(ctx, next)
		c.mu.Lock()
		c.ready = append(c.ready, next)
		next = lane.first
		switch {
		case next == nil:
			delete(c.lanes, group)
		case next == lane.last:
			lane.first, lane.last = nil, nil
		default:
			lane.first, next.next = next.next, nil
		}
		c.mu.Unlock()
		c.signal()
	}
}

// carryOut leaves the outcome of a commit in it.
func (c *commitStream) carryOut(ctx context.Context, one *streamCommit) {
	defer func() {
		if cause := recover(); cause != nil {
			one.err = fmt.Errorf("panic: %v\n%s", cause, debug.Stack())
		}
	}()
	one.res, one.err = c.server.commit(ctx, one.req, one.came.Add(streamedWithin))
	one.req = nil
}

func (c *commitStream) end(err error) {
	c.mu.Lock()
	c.ended, c.endErr = true, err
	c.mu.Unlock()
	c.signal()
}

func (c *commitStream) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *commitStream) send(ctx context.Context, stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamServerStream) error {
	drain := c.server.drain.C()
	var overdue <-chan time.Time
	var spare []*streamCommit
	for {
		select {
		case <-c.wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-drain:
			drain, overdue = nil, time.After(drainGrace)
		case <-overdue:
			return c.server.drain.Err()
		}
		c.mu.Lock()
		ready := c.ready
		c.ready = spare
		c.mu.Unlock()
		answered := 0
		for _, one := range ready {
			if err := stream.Send(c.response(ctx, one)); err != nil {
				return err
			}
			<-c.slots
			answered += one.bytes
		}
		c.mu.Lock()
		c.outstanding -= len(ready)
		c.bytes -= answered
		outstanding, ended, err := c.outstanding, c.ended, c.endErr
		c.mu.Unlock()
		select {
		case c.room <- struct{}{}:
		default:
		}
		clear(ready)
		spare = ready[:0]
		switch {
		case ended && !errors.Is(err, io.EOF):
			return err
		case outstanding > 0:
		case ended:
			return nil
		case drain == nil:
			return c.server.drain.Err()
		}
	}
}

// response is what a client is told of a commit.
func (c *commitStream) response(ctx context.Context, one *streamCommit) *coordinatorv1.CommitOffsetsStreamResponse {
	res, code := &coordinatorv1.CommitOffsetsStreamResponse{RequestId: one.id, Result: one.res}, "ok"
	if one.err != nil {
		e := rpcerr.Classify(one.err)
		if e.Incident != "" {
			c.server.logger.LogAttrs(ctx, slog.LevelError, "commit failed unexpectedly", slog.String("incident", e.Incident), slog.Any("error", one.err))
		}
		res.Failure, code = e.Failure(), rpcerr.Code(e.Reason).String()
	}
	c.server.streamed.WithLabelValues(code).Observe(time.Since(one.came).Seconds())
	return res
}
