// Package transport is the client side of HTTP: how the SDK and the services
// reach a server, and the codec that both sides use.
//
// Servers speak HTTP/2 without TLS by prior knowledge (h2c). RPCs are never
// compressed: producers compress whole batches. Each class of traffic to an
// address has a connection of its own, since a stream whose reader is slow can
// hold up the others of its connection (golang/go#54330).
//
// A message that was received owns the memory that its large bytes fields point
// to, see [Codec].
package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
)

// Class separates traffic that must not wait for each other.
type Class int

// The classes of traffic.
const (
	// Control is metadata, admin calls and heartbeats.
	Control Class = iota
	// Produce is record batches on their way to a leader.
	Produce
	// Consume is records on their way to a consumer.
	Consume
	// Replicate is record batches on their way to a follower.
	Replicate
)

// String returns the class's name.
func (c Class) String() string {
	switch c {
	case Control:
		return "control"
	case Produce:
		return "produce"
	case Consume:
		return "consume"
	case Replicate:
		return "replicate"
	}
	return fmt.Sprintf("class %d", int(c))
}

const (
	defaultDialTimeout = 5 * time.Second
	idleConnTimeout    = 90 * time.Second
	// maxTargets bounds a pool that lives through many changes of addresses.
	maxTargets = 1024
)

// Options configures a [Pool]. The zero value is ready to use.
type Options struct {
	// DialTimeout bounds the time to connect; 0 means 5 s.
	DialTimeout time.Duration
	// Dial replaces the network, for tests; nil means TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Pool holds the connections of one client or service. All methods may be
// called concurrently.
type Pool struct {
	options Options

	mu      sync.Mutex
	closed  bool
	targets map[target]*peer
	conns   map[*trackedConn]struct{}
}

type target struct {
	address string
	class   Class
}

type peer struct {
	http      *http.Transport
	transport connect.Transport
}

// NewPool returns a pool without connections; they are made as calls need them.
func NewPool(o Options) *Pool {
	if o.DialTimeout <= 0 {
		o.DialTimeout = defaultDialTimeout
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{KeepAlive: pingAfter}).DialContext
	}
	return &Pool{options: o, targets: map[target]*peer{}, conns: map[*trackedConn]struct{}{}}
}

// Transport returns the transport to host:port for a class of traffic, the same
// one each time. It does not connect. An address that cannot be reached makes
// calls fail with the code unavailable.
func (p *Pool) Transport(address string, c Class) connect.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := target{address: address, class: c}
	if t, ok := p.targets[key]; ok {
		return t.transport
	}
	if len(p.targets) >= maxTargets {
		p.evictLocked()
	}
	t := p.newPeer(address, c)
	p.targets[key] = t
	return t.transport
}

// Close cuts all connections, also those in use, and makes later calls fail.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	peers := p.targets
	p.targets = map[target]*peer{}
	conns := p.conns
	p.conns = map[*trackedConn]struct{}{}
	p.mu.Unlock()
	for _, t := range peers {
		t.http.CloseIdleConnections()
	}
	for c := range conns {
		_ = c.Conn.Close()
	}
}

// evictLocked forgets any one target. Whoever holds its transport goes on using
// it; its connection closes when it has been idle for a while.
func (p *Pool) evictLocked() {
	for key := range p.targets {
		delete(p.targets, key)
		return
	}
}

func (p *Pool) newPeer(address string, c Class) *peer {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h := &http.Transport{
		DialContext:        p.dial,
		DisableCompression: true,
		IdleConnTimeout:    idleConnTimeout,
		Protocols:          protocols,
		HTTP2:              clientHTTP2(c),
	}
	base := (&url.URL{Scheme: "http", Host: address}).String()
	return &peer{http: h, transport: connecthttp.NewTransport(client{h}, base,
		connecthttp.WithCodecs(Codec(), connectproto.NewJSONCodec()),
		connecthttp.WithCompressors(),
		connecthttp.WithReadMaxBytes(MaxMessageBytes),
		connecthttp.WithSendMaxBytes(MaxMessageBytes),
	)}
}

func (p *Pool) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if p.isClosed() {
		return nil, errPoolClosed
	}
	timed, cancel := context.WithTimeout(ctx, p.options.DialTimeout)
	defer cancel()
	conn, err := p.options.Dial(timed, network, address)
	if err != nil {
		if ctx.Err() == nil {
			return nil, &DialError{Cause: err}
		}
		return nil, err
	}
	tracked := &trackedConn{Conn: conn, pool: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = conn.Close()
		return nil, errPoolClosed
	}
	p.conns[tracked] = struct{}{}
	return tracked, nil
}

func (p *Pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// DialError says that no connection could be made: nothing of the call has
// reached the server. Errors of calls have it in their chain.
type DialError struct {
	// Cause is not part of the chain: a timeout of the dial is not one of the
	// call, and would get the code deadline_exceeded.
	Cause error
}

// Error returns the message of the cause.
func (e *DialError) Error() string { return e.Cause.Error() }

var errPoolClosed = errors.New("the client is closed")

// trackedConn is known to its pool until it is closed.
type trackedConn struct {
	net.Conn
	pool *Pool
}

func (c *trackedConn) Close() error {
	c.pool.mu.Lock()
	delete(c.pool.conns, c)
	c.pool.mu.Unlock()
	return c.Conn.Close()
}

// client sends requests without what http.Client adds for browsers.
type client struct{ http *http.Transport }

// Do implements connecthttp.HTTPClient.
func (c client) Do(request *http.Request) (*http.Response, error) {
	if request.Body != nil && request.ContentLength < 0 {
		clone := *request
		clone.Body = &envelopeBody{body: request.Body}
		request = &clone
	}
	return c.http.RoundTrip(request)
}
