package rpc

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// lastWords is how long a connection without calls stays open at a stop: enough
// to write what is left to write, and the notice to the client.
const lastWords = 50 * time.Millisecond

// shutdown ends a server: no new connections, and the old ones end with their
// last call. It reports false if calls were cut off because grace had passed.
//
// http.Server.Shutdown alone takes a second for each idle HTTP/2 connection, whose
// client is given that time to close it, and five for one that has not sent
// anything yet.
func shutdown(ctx context.Context, srv *http.Server, busy *busyConns, grace time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- srv.Shutdown(ctx) }()
	tick := time.NewTicker(lastWords / 2)
	defer tick.Stop()
	for quiet := 0; quiet < 2; {
		select {
		case err := <-done:
			_ = srv.Close()
			return err == nil
		case <-tick.C:
			quiet++
			if busy.any() {
				quiet = 0
			}
		}
	}
	_ = srv.Close()
	cancel()
	<-done
	return true
}

// busyConns knows the connections on which calls are running.
type busyConns struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// track is for http.Server.ConnState. A connection of HTTP/2 is active while it
// has streams.
func (b *busyConns) track(conn net.Conn, state http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if state == http.StateActive {
		b.conns[conn] = struct{}{}
	} else {
		delete(b.conns, conn)
	}
}

func (b *busyConns) any() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns) > 0
}
