package runnel

import (
	"context"
	"sync"
	"sync/atomic"
)

// memory bounds the bytes that a producer holds. Who finds it full queues up,
// and is served in that order.
type memory struct {
	limit int64
	used  atomic.Int64
	// queued counts the waiters, so that the fast path sees them without mu.
	queued atomic.Int32

	mu      sync.Mutex
	waiters []*waiter
}

type waiter struct {
	bytes int64
	// granted is closed once the bytes belong to the waiter.
	granted chan struct{}
}

// tryAcquire takes so many bytes if they are free and nobody waits for some.
func (m *memory) tryAcquire(bytes int64) bool {
	return m.queued.Load() == 0 && m.take(bytes)
}

func (m *memory) take(bytes int64) bool {
	for {
		used := m.used.Load()
		if used+bytes > m.limit {
			return false
		}
		if m.used.CompareAndSwap(used, used+bytes) {
			return true
		}
	}
}

// acquire waits until so many bytes, at most the limit, are free and takes
// them. It gives up with the cause of ctx when that ends, and with ErrClosed
// when closed is closed.
func (m *memory) acquire(ctx context.Context, closed <-chan struct{}, bytes int64) error {
	m.mu.Lock()
	if len(m.waiters) == 0 {
		// Announced before the attempt, so that a release in between sees it.
		m.queued.Add(1)
		if m.take(bytes) {
			m.queued.Add(-1)
			m.mu.Unlock()
			return nil
		}
	} else {
		m.queued.Add(1)
	}
	w := &waiter{bytes: bytes, granted: make(chan struct{})}
	m.waiters = append(m.waiters, w)
	m.mu.Unlock()

	var err error
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-closed:
		err = ErrClosed
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, other := range m.waiters {
		if other == w {
			m.waiters = append(m.waiters[:i], m.waiters[i+1:]...)
			m.queued.Add(-1)
			m.serve()
			return err
		}
	}
	// Granted in the meantime: it goes to the next.
	m.used.Add(-bytes)
	m.serve()
	return err
}

// release gives bytes back.
func (m *memory) release(bytes int64) {
	m.used.Add(-bytes)
	if m.queued.Load() == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.serve()
}

// serve grants what is free to those who wait, in order. Callers hold mu.
func (m *memory) serve() {
	for len(m.waiters) > 0 && m.take(m.waiters[0].bytes) {
		close(m.waiters[0].granted)
		m.waiters[0] = nil
		m.waiters = m.waiters[1:]
		m.queued.Add(-1)
	}
}
