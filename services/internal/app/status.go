package app

import (
	"context"
	"fmt"
	"sync"
)

// Status is how far a service has come, for those who wait for it: the Ready of a
// [Component]. Create it with [NewStatus]. Any of its methods may be called
// concurrently.
type Status struct {
	service string
	ready   chan struct{} // Closed by SetReady.
	stopped chan struct{} // Closed by SetStopped.

	mu sync.Mutex
	// phase says what the service is doing; empty while it is ready.
	phase string
	err   error
}

// NewStatus returns the status of a service that has not been started. The name,
// such as "storage service", begins the errors of [Status.Ready].
func NewStatus(service string) *Status {
	return &Status{
		service: service, phase: "it has not been started",
		ready: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// SetPhase says what the service is doing instead of being ready, as a sentence:
// "it opens the store".
func (s *Status) SetPhase(phase string) { s.set(phase, nil) }

// SetReady says that the service can be used. It is called at most once.
func (s *Status) SetReady() {
	s.set("", nil)
	close(s.ready)
}

// SetStopped says that the service has stopped, and why if it had not been told
// to. It is called once, and last.
func (s *Status) SetStopped(err error) {
	s.set("it has stopped", err)
	close(s.stopped)
}

func (s *Status) set(phase string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.err = phase, err
}

// Ready blocks until the service is ready for the first time, or has stopped, or
// ctx ends. It then returns nil if the service is ready, and an error that says
// what it is doing, or wraps why it has stopped, if not.
func (s *Status) Ready(ctx context.Context) error {
	select {
	case <-s.stopped:
	case <-s.ready:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return fmt.Errorf("%s has stopped: %w", s.service, s.err)
	case s.phase != "":
		return fmt.Errorf("%s is not ready: %s", s.service, s.phase)
	}
	return nil
}
