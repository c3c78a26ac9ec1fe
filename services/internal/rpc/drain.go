package rpc

import (
	"sync"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// Drain tells streams that the server is going away. Stopping an HTTP server
// does not end streams, and a stream that waits in Receive cannot be woken: so
// the goroutine of every streaming handler selects on [Drain.C] while a child
// receives, and returns [Drain.Err] once C is closed. The child's Receive fails
// as soon as the handler has returned. A handler that waits in Send, because its
// client does not read, is woken by [Serve] if it got the same Drain.
type Drain struct {
	c chan struct{}

	mu        sync.Mutex
	begun     bool
	unblocked map[*unblocker]struct{}
}

// NewDrain returns a Drain that has not begun.
func NewDrain() *Drain { return &Drain{c: make(chan struct{}), unblocked: map[*unblocker]struct{}{}} }

// Begin closes C. It may be called more than once and from any goroutine.
func (d *Drain) Begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.begun {
		return
	}
	d.begun = true
	close(d.c)
	for u := range d.unblocked {
		u.arm()
	}
}

// C is closed by the first Begin and never sends.
func (d *Drain) C() <-chan struct{} { return d.c }

// Err is what a stream ends with when it leaves: unavailable, so that the client
// goes on at another node or tries again.
func (d *Drain) Err() error {
	return rpcerr.New(errorsv1.Reason_REASON_DRAINING, "draining: this node is shutting down; reconnect")
}

// add arms a response when the drain begins, or at once if it has.
func (d *Drain) add(u *unblocker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.begun {
		u.arm()
		return
	}
	d.unblocked[u] = struct{}{}
}

// remove undoes add.
func (d *Drain) remove(u *unblocker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.unblocked, u)
}
