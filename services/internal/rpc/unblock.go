package rpc

import (
	"net/http"
	"sync"
	"time"
)

// sendGrace is how long a response of a stream may wait for its client to read
// once the drain has begun.
const sendGrace = time.Second

// unblocker makes the response of a stream that is draining fail in Send instead of
// waiting for a client that does not read: such a client would hold up the stop for as
// long as it likes. What has been sent already still reaches it.
type unblocker struct {
	mu       sync.Mutex
	response http.ResponseWriter
	timer    *time.Timer
	over     bool // The handler has returned: response may not be used any more.
}

func (u *unblocker) arm() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over {
		u.timer = time.AfterFunc(sendGrace, u.fire)
	}
}

func (u *unblocker) fire() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over {
		// A time in the past: writes fail at once. Not all writers can do it.
		_ = http.NewResponseController(u.response).SetWriteDeadline(time.Unix(1, 0))
	}
}

func (u *unblocker) disarm() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	if u.timer != nil {
		u.timer.Stop()
	}
}
