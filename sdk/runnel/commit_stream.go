package runnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

const (
	// commitStreamIdle is how long a stream stays open without commits, and for how long
	// a coordinator that knows no such stream is not asked for one again.
	commitStreamIdle = time.Minute
	// maxStreamedBytes is the largest commit that goes over the stream: servers take no
	// larger request, and one on the stream would fail all others with it. What goes by a
	// call instead is refused, and so cannot be overtaken by a commit of the stream that
	// was given up. It leaves room for what a request of the stream adds.
	maxStreamedBytes = transport.MaxRequestBytes - 64
)

// errStreamOver says that a stream has ended before it has taken a commit.
var errStreamOver = errors.New("the stream has ended")

// commitStreams are the streams over which all consumers of a client commit, one for each
// coordinator: a call of its own for each commit costs client and server several times as
// much. It may be used concurrently.
type commitStreams struct {
	client  *Client
	running sync.WaitGroup

	mu sync.Mutex
	// streams are those that take commits, by address. Guarded by mu.
	streams map[string]*commitStream
	// without has until when coordinators get calls, since they know no streams. Guarded
	// by mu.
	without map[string]time.Time
	// closed says that no stream begins any more. Guarded by mu.
	closed bool
}

// commitStream is one stream. A goroutine owns it, which sends, and has another that
// receives.
type commitStream struct {
	address string
	client  coordinatorv1connect.OffsetServiceClient
	cancel  context.CancelCauseFunc
	// requests hands commits to the owner; there is no queue but those who wait here.
	requests chan *streamedCommit
	// ended is closed when nothing is taken any more.
	ended chan struct{}

	mu sync.Mutex
	// waiting are the commits whose answers are due, by request id. Guarded by mu.
	waiting map[uint64]*streamedCommit
}

// streamedCommit is a commit on its way.
type streamedCommit struct {
	request *coordinatorv1.CommitOffsetsRequest
	// id is that of the request once it is being sent, abandoned says that nobody waits
	// for the outcome any more. Guarded by the stream's mu.
	id        uint64
	abandoned bool
	// done gets the one outcome; it has room for it.
	done chan commitOutcome
}

type commitOutcome struct {
	response *coordinatorv1.CommitOffsetsStreamResponse
	// err is why the stream has ended.
	err error
}

func newCommitStreams(client *Client) *commitStreams {
	return &commitStreams{client: client, streams: make(map[string]*commitStream), without: make(map[string]time.Time)}
}

// commit has the coordinator at an address commit, within callTimeout. An error that ends
// the stream leaves the outcome unknown, as that of a call would.
func (s *commitStreams) commit(ctx context.Context, address string, request *coordinatorv1.CommitOffsetsRequest) (*coordinatorv1.CommitOffsetsResponse, error) {
	if proto.Size(request) > maxStreamedBytes {
		return call(ctx, address, s.client.offsets(address).CommitOffsets, request)
	}
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		stream, err := s.at(address)
		if err != nil {
			return nil, err
		}
		if stream == nil {
			return call(ctx, address, s.client.offsets(address).CommitOffsets, request)
		}
		response, err := stream.commit(limited, request)
		switch {
		case err == nil:
			if failure := response.GetFailure(); failure != nil {
				return nil, failureError(failure)
			}
			return response.GetResult(), nil
		case errors.Is(err, errStreamOver):
		case connect.CodeOf(err) == connect.CodeUnimplemented:
			s.avoid(address)
		default:
			return nil, inDoubt(callError(ctx, address, err))
		}
	}
}

// inDoubt is what becomes of the commits of a stream that ends with an error: whatever
// that says of the stream, each of them may have been carried out.
func inDoubt(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || neverSent(err) {
		return err
	}
	return &Error{Message: e.Message, outcome: unknown, cause: e}
}

// at returns the stream to an address, nil where there is none to be had.
func (s *commitStreams) at(address string) (*commitStream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("client is %w", ErrClosed)
	}
	if time.Now().Before(s.without[address]) {
		return nil, nil
	}
	stream := s.streams[address]
	if stream == nil {
		ctx, cancel := context.WithCancelCause(context.Background())
		stream = &commitStream{
			address: address, client: s.client.offsets(address), cancel: cancel,
			requests: make(chan *streamedCommit), ended: make(chan struct{}), waiting: make(map[uint64]*streamedCommit),
		}
		s.streams[address] = stream
		s.running.Go(func() {
			defer cancel(nil)
			err := stream.run(ctx)
			s.mu.Lock()
			delete(s.streams, address)
			s.mu.Unlock()
			stream.end(err)
		})
	}
	return stream, nil
}

// avoid has commits go by calls for a while.
func (s *commitStreams) avoid(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(s.without, func(_ string, until time.Time) bool { return now.After(until) })
	s.without[address] = now.Add(commitStreamIdle)
}

// close ends all streams and waits for their goroutines. Nobody may be waiting for a
// commit any more.
func (s *commitStreams) close() {
	s.mu.Lock()
	s.closed = true
	for _, stream := range s.streams {
		stream.cancel(ErrClosed)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// commit returns the answer to a commit. The error is errStreamOver if it was not sent.
func (c *commitStream) commit(ctx context.Context, request *coordinatorv1.CommitOffsetsRequest) (*coordinatorv1.CommitOffsetsStreamResponse, error) {
	one := &streamedCommit{request: request, done: make(chan commitOutcome, 1)}
	select {
	case c.requests <- one:
	case <-c.ended:
		return nil, errStreamOver
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case outcome := <-one.done:
		return outcome.response, outcome.err
	case <-ctx.Done():
		c.abandon(one)
		return nil, ctx.Err()
	}
}

// run sends what it is given until the stream ends, and returns why it did; nil if
// nobody has used it for a while. The stream is opened with the first commit.
func (c *commitStream) run(ctx context.Context) error {
	idle := time.NewTimer(commitStreamIdle)
	defer idle.Stop()
	var stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamClientStream
	var received chan error // Gets why the stream has ended; nil before there is one.
	for id := uint64(1); ; id++ {
		var one *streamedCommit
		select {
		case one = <-c.requests:
		case err := <-received:
			// HTTP/2 does not notice the end of ctx while it waits for more to send.
			_ = stream.CloseSend()
			return err
		case <-ctx.Done():
			if received != nil {
				_ = c.hangUp(stream, received)
			}
			return context.Cause(ctx)
		case <-idle.C:
			if received == nil {
				return nil
			}
			return c.hangUp(stream, received)
		}
		idle.Reset(commitStreamIdle)
		if !c.expect(one, id) {
			continue
		}
		if received == nil {
			var err error
			if stream, err = c.client.CommitOffsetsStream(ctx); err != nil {
				return err
			}
			received = make(chan error, 1)
			go func() { received <- c.receive(stream) }()
		}
		if err := stream.Send(&coordinatorv1.CommitOffsetsStreamRequest{RequestId: id, Commit: one.request}); err != nil {
			_ = stream.CloseSend()
			if errors.Is(err, io.EOF) {
				return <-received // The cause is the receiver's to find.
			}
			// An error of Send alone ends the stream as well.
			c.cancel(err)
			<-received
			return err
		}
	}
}

// hangUp ends a stream that nobody uses.
func (c *commitStream) hangUp(stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamClientStream, received <-chan error) error {
	_ = stream.CloseSend()
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-received:
	case <-timer.C:
		c.cancel(ErrClosed)
		<-received
	}
	return nil
}

// receive hands out answers until the stream ends, and returns why it did.
func (c *commitStream) receive(stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamClientStream) error {
	for {
		response, err := stream.Receive()
		if err != nil {
			return err
		}
		c.mu.Lock()
		one := c.waiting[response.GetRequestId()]
		delete(c.waiting, response.GetRequestId())
		c.mu.Unlock()
		if one != nil { // Its caller may have given it up.
			one.done <- commitOutcome{response: response}
		}
	}
}

// expect notes that the answer to a commit is due. It reports false if nobody waits for
// it: such a commit is not sent.
func (c *commitStream) expect(one *streamedCommit, id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one.abandoned {
		return false
	}
	one.id = id
	c.waiting[id] = one
	return true
}

// abandon is for a commit whose caller waits no more. One that was sent may still be
// carried out, but before those of its group that are sent later over this stream.
func (c *commitStream) abandon(one *streamedCommit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	one.abandoned = true
	delete(c.waiting, one.id)
}

// end gives up what is waiting, because of err.
func (c *commitStream) end(err error) {
	c.mu.Lock()
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	for _, one := range waiting {
		one.done <- commitOutcome{err: err}
	}
	close(c.ended)
}
