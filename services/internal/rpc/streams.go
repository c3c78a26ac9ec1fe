package rpc

import (
	"context"
	"sync"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// Streams counts streams and the goroutines that serve them, bounds them, and lets one
// wait for their end. Its methods may be called concurrently.
type Streams struct {
	limit int

	mu     sync.Mutex
	active int
	// idle is closed when active falls to 0; nil while nobody waits.
	idle chan struct{}
}

// NewStreams returns a count of streams that takes so many.
func NewStreams(limit int) *Streams { return &Streams{limit: limit} }

// Enter counts a stream until Leave, or refuses it.
func (s *Streams) Enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active >= s.limit {
		return rpcerr.New(errorsv1.Reason_REASON_THROTTLED, "this node serves as many streams as it takes; close some, or try again later")
	}
	s.active++
	return nil
}

// Child runs part of a stream in a goroutine that Wait waits for, too.
func (s *Streams) Child(run func()) {
	s.mu.Lock()
	s.active++
	s.mu.Unlock()
	go func() {
		defer s.Leave()
		run()
	}()
}

// Leave ends what Enter has begun.
func (s *Streams) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	if s.active == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// Wait returns once there are none, or with the error of ctx.
func (s *Streams) Wait(ctx context.Context) error {
	s.mu.Lock()
	if s.active == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
