package main

import (
	"context"
	"errors"
	"sync"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
)

// commitStreams has one stream of commits per connection and address.
type commitStreams struct {
	bed     *bed
	streams map[streamKey]*commitStream
	cancel  []context.CancelFunc
	running sync.WaitGroup
}

type streamKey struct {
	pool    int
	address string
}

func newCommitStreams(b *bed) *commitStreams {
	return &commitStreams{bed: b, streams: make(map[streamKey]*commitStream)}
}

// at returns the stream of the i-th member to an address, which ends with ctx.
func (s *commitStreams) at(ctx context.Context, i int, address string) *commitStream {
	key := streamKey{i % len(s.bed.pools), address}
	c := s.streams[key]
	if c == nil {
		ctx, cancel := context.WithCancel(ctx)
		c = &commitStream{requests: make(chan *streamCommit), ended: make(chan struct{}), waiting: make(map[uint64]*streamCommit)}
		s.streams[key], s.cancel = c, append(s.cancel, cancel)
		client := s.bed.offsets(i, address)
		s.running.Go(func() { c.run(ctx, client) })
	}
	return c
}

func (s *commitStreams) close() {
	for _, cancel := range s.cancel {
		cancel()
	}
	s.running.Wait()
}

// commitStream is one stream: run sends, and a goroutine of it receives.
type commitStream struct {
	requests chan *streamCommit
	// ended is closed once err is set.
	ended chan struct{}
	err   error

	mu      sync.Mutex
	waiting map[uint64]*streamCommit
}

type streamCommit struct {
	request *coordinatorv1.CommitOffsetsRequest
	done    chan *coordinatorv1.CommitOffsetsStreamResponse
}

func (c *commitStream) run(ctx context.Context, client coordinatorv1connect.OffsetServiceClient) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.CommitOffsetsStream(ctx)
	if err != nil {
		c.err = err
		close(c.ended)
		return
	}
	var receiving sync.WaitGroup
	defer receiving.Wait()
	defer cancel()
	// HTTP/2 does not notice the end of ctx while it waits for more to send.
	defer func() { _ = stream.CloseSend() }()
	receiving.Go(func() { c.receive(stream) })
	for id := uint64(0); ; id++ {
		select {
		case one := <-c.requests:
			c.mu.Lock()
			c.waiting[id] = one
			c.mu.Unlock()
			if stream.Send(&coordinatorv1.CommitOffsetsStreamRequest{RequestId: id, Commit: one.request}) != nil {
				return // The receiver finds out why.
			}
		case <-c.ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (c *commitStream) receive(stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamClientStream) {
	for {
		response, err := stream.Receive()
		if err != nil {
			c.err = err
			close(c.ended)
			return
		}
		c.mu.Lock()
		one := c.waiting[response.GetRequestId()]
		delete(c.waiting, response.GetRequestId())
		c.mu.Unlock()
		if one != nil {
			one.done <- response
		}
	}
}

// commit sends one and waits for the answer.
func (c *commitStream) commit(ctx context.Context, request *coordinatorv1.CommitOffsetsRequest) (*coordinatorv1.CommitOffsetsResponse, error) {
	one := &streamCommit{request, make(chan *coordinatorv1.CommitOffsetsStreamResponse, 1)}
	select {
	case c.requests <- one:
	case <-c.ended:
		return nil, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case response := <-one.done:
		if failure := response.GetFailure(); failure != nil {
			return nil, errors.New(failure.GetMessage())
		}
		return response.GetResult(), nil
	case <-c.ended:
		return nil, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
