package rpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// Failover returns a transport that sends each call to the target that answered
// last, and on to the next one when a target is unavailable.
//
// A call with a single request, unary or server-streaming, is repeated at each
// other target at most once, as long as no response has come. It may then be
// executed twice, if a connection broke after the request had been read. A call
// whose requests are a stream is never repeated: it fails, and the next one goes
// to the next target.
func Failover(targets ...connect.Transport) connect.Transport {
	if len(targets) == 1 {
		return targets[0]
	}
	return &failover{targets: targets}
}

type failover struct {
	targets []connect.Transport
	last    atomic.Uint32 // Index of the target to begin with.
}

// NewClientStream implements connect.Transport.
func (f *failover) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	if len(f.targets) == 0 {
		return nil, rpcerr.Connect(rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "no address is configured for this service"))
	}
	first := int(f.last.Load()) % len(f.targets)
	stream, err := f.targets[first].NewClientStream(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &failoverStream{transport: f, ctx: ctx, spec: spec, stream: stream, target: first}, nil
}

// moveOn makes later calls begin after target, unless others have moved on from
// it already.
func (f *failover) moveOn(target int) (next int) {
	next = (target + 1) % len(f.targets)
	f.last.CompareAndSwap(uint32(target), uint32(next))
	return next
}

// failoverStream is one call. The RPC library allows one sender and one receiver
// at a time; Close may come at any time.
type failoverStream struct {
	transport *failover
	ctx       context.Context //nolint:containedctx // The call's own, as in every stream of the library.
	spec      connect.Spec

	mu     sync.Mutex
	stream connect.ClientStream
	closed bool

	// Owned by whoever receives, once the request has been sent.
	target   int
	moved    int
	answered bool

	// The one request, kept until the first response. Messages are never changed
	// after they were sent.
	request    any
	requested  bool
	sendClosed bool
}

func (s *failoverStream) current() connect.ClientStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream
}

// repeatable reports whether the whole request is at hand.
func (s *failoverStream) repeatable() bool {
	return s.spec.StreamType&connect.StreamTypeClient == 0 && s.requested
}

// SendHeaders implements connect.ClientStream.
func (s *failoverStream) SendHeaders() error { return s.current().SendHeaders() }

// Send implements connect.ClientStream.
func (s *failoverStream) Send(msg any) error {
	if s.spec.StreamType&connect.StreamTypeClient == 0 {
		s.request, s.requested = msg, true
	}
	err := s.current().Send(msg)
	if err == nil || errors.Is(err, io.EOF) {
		// The status of a call that has ended comes with Receive.
		return err
	}
	return s.recover(err)
}

// CloseSend implements connect.ClientStream.
func (s *failoverStream) CloseSend() error {
	s.sendClosed = true
	err := s.current().CloseSend()
	if err == nil {
		return nil
	}
	return s.recover(err)
}

// Receive implements connect.ClientStream.
func (s *failoverStream) Receive(msg any) error {
	for {
		err := s.current().Receive(msg)
		if err == nil || errors.Is(err, io.EOF) {
			s.answered, s.request = true, nil
			return err
		}
		if err := s.recover(err); err != nil {
			return err
		}
	}
}

// Close implements connect.ClientStream.
func (s *failoverStream) Close() error {
	s.mu.Lock()
	s.closed = true
	stream := s.stream
	s.mu.Unlock()
	return stream.Close()
}

// recover repeats the call at other targets. It returns nil once one of them has
// taken the request, and err if the call cannot be repeated.
func (s *failoverStream) recover(err error) error {
	for {
		if s.answered || !unavailable(s.ctx, err) {
			return err
		}
		next := s.transport.moveOn(s.target)
		if !s.repeatable() || s.moved >= len(s.transport.targets)-1 {
			return err
		}
		s.target = next
		s.moved++
		stream, openErr := s.transport.targets[next].NewClientStream(s.ctx, s.spec)
		if openErr != nil {
			err = openErr
			continue
		}
		if !s.replace(stream) {
			return err
		}
		if sendErr := stream.Send(s.request); sendErr != nil && !errors.Is(sendErr, io.EOF) {
			err = sendErr
			continue
		}
		if s.sendClosed {
			if closeErr := stream.CloseSend(); closeErr != nil {
				err = closeErr
				continue
			}
		}
		return nil
	}
}

// replace makes stream the current one and closes the one before; it reports
// false, and closes stream, if the call has been closed.
func (s *failoverStream) replace(stream connect.ClientStream) bool {
	s.mu.Lock()
	old, closed := s.stream, s.closed
	if !closed {
		s.stream = stream
	}
	s.mu.Unlock()
	if closed {
		_ = stream.Close()
		return false
	}
	_ = old.Close()
	return true
}

// unavailable reports whether another target may do better.
func unavailable(ctx context.Context, err error) bool {
	return ctx.Err() == nil && connect.CodeOf(err) == connect.CodeUnavailable
}
