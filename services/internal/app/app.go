// Package app runs the components of a process: in an order, until one fails or
// the process is told to stop, and then backwards.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// Component is a part of a process that runs until it is told to stop.
type Component struct {
	// Name names the component in errors and logs.
	Name string
	// Run works until ctx ends and returns nil then. An error, or an early return,
	// stops the process. Required.
	Run func(ctx context.Context) error
	// Ready blocks until the component can be used, and returns an error if that
	// does not come to be before ctx ends. The next component starts after it. May
	// be nil.
	Ready func(ctx context.Context) error
	// Leave is called when the process is told to stop, before anything else, the last
	// one first: the component gives to other processes what it can, and serves on. It
	// returns soon, and at once if ctx ends, which says that a component has failed
	// meanwhile. It is not called for a process that stops because of a failure. May
	// be nil.
	Leave func(ctx context.Context)
	// Drain is called before any component is stopped, the last one first. It
	// returns at once. May be nil.
	Drain func()
}

// Group runs components. Create it with [New].
type Group struct {
	logger     *slog.Logger
	components []Component

	ready   chan struct{} // Closed by Run once all components are ready.
	stopped chan struct{} // Closed by Run when it returns.
	err     error         // What Run returned; read after stopped is closed.
}

// New returns a group that starts its components in the order given: each may
// rely on those before it from its start to its stop. A nil logger discards.
func New(logger *slog.Logger, components ...Component) *Group {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Group{
		logger: logger, components: components,
		ready: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// Run starts the components one after another and blocks until ctx ends or one
// of them fails. It then lets those that are told to stop leave, drains all of them
// and stops them one by one, the last
// one first, and returns the failures, each with the name of its component: nil
// if there were none. It is called once.
func (g *Group) Run(ctx context.Context) error {
	defer close(g.stopped)
	g.err = g.run(ctx)
	return g.err
}

// Ready blocks until all components are ready, and returns an error if ctx ends
// or the group stops before.
func (g *Group) Ready(ctx context.Context) error {
	select {
	case <-g.ready:
	case <-g.stopped:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-g.stopped:
		if g.err != nil {
			return g.err
		}
		return errors.New("the process has been stopped")
	default:
		return nil
	}
}

// errEarlyReturn is the failure of a component that ended unasked.
var errEarlyReturn = errors.New("ended although nobody had stopped it")

// running is a component that has been started.
type running struct {
	Component
	stop context.CancelFunc
	done chan struct{} // Closed when Run has returned.
	err  error         // Read after done is closed.
}

func (g *Group) run(ctx context.Context) error {
	// The first failure ends it; its cause is the failure.
	alive, end := context.WithCancelCause(ctx)
	defer end(nil)
	// Nothing that runs sees the end of ctx by itself: the order is ours.
	base := context.WithoutCancel(ctx)
	// Unlike alive it outlives ctx.
	whole, broken := context.WithCancel(base)
	defer broken()
	fail := func(err error) {
		end(err)
		broken()
	}

	var started []*running
	var failures []error
	for _, c := range g.components {
		started = append(started, start(base, c, fail))
		if err := ready(alive, c); err != nil {
			// Unless it could not become ready because it, or another one, has failed or
			// because it was told to stop.
			if alive.Err() == nil {
				fail(fmt.Errorf("start %s: %w", c.Name, err))
			}
			break
		}
		if alive.Err() != nil {
			break
		}
		g.logger.Debug("component is ready", "component", c.Name)
	}
	if alive.Err() == nil {
		close(g.ready)
		<-alive.Done()
	}
	cause := context.Cause(alive)
	if ctx.Err() == nil {
		failures = append(failures, cause)
		g.logger.Error("stopping because of a failure", "error", cause)
	}

	for i := len(started) - 1; i >= 0 && whole.Err() == nil; i-- {
		if started[i].Leave != nil {
			started[i].Leave(whole)
		}
	}
	for i := len(started) - 1; i >= 0; i-- {
		if started[i].Drain != nil {
			started[i].Drain()
		}
	}
	for i := len(started) - 1; i >= 0; i-- {
		r := started[i]
		r.stop()
		<-r.done
		g.logger.Debug("component has stopped", "component", r.Name, "error", r.err)
		if r.err != nil && !errors.Is(cause, r.err) {
			failures = append(failures, fmt.Errorf("%s: %w", r.Name, r.err))
		}
	}
	return errors.Join(failures...)
}

func start(base context.Context, c Component, fail func(error)) *running {
	ctx, stop := context.WithCancel(base)
	r := &running{Component: c, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = c.Run(ctx)
		if r.err == nil && ctx.Err() == nil {
			r.err = errEarlyReturn
		}
		if r.err != nil {
			fail(fmt.Errorf("%s: %w", c.Name, r.err))
		}
	}()
	return r
}

func ready(ctx context.Context, c Component) error {
	if c.Ready == nil {
		return nil
	}
	return c.Ready(ctx)
}
