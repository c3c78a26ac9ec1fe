package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 16 << 10

	// DefaultMaxConnections is the number of open connections of a listener unless
	// ServeOptions says otherwise.
	DefaultMaxConnections = 10_000
	// DefaultGrace is how long streams and calls may take to end unless
	// ServeOptions says otherwise.
	DefaultGrace = 10 * time.Second

	// envelopeSlack is what a protocol adds around the one message of a request.
	envelopeSlack = 1 << 10
)

// ServeOptions says what to serve and where.
type ServeOptions struct {
	// Listener is where clients connect; Serve closes it. Required.
	Listener net.Listener
	// Server has the services; Serve adds health and reflection. Required.
	Server *connect.Server
	// Handlers are served beside the RPCs, by pattern of http.ServeMux.
	Handlers map[string]http.Handler
	// Drain is begun when ctx ends, if not before; nil makes one. Streams whose
	// client does not read are ended soon after it has begun.
	Drain *Drain
	// Grace is how long streams and calls may take to end after the drain has
	// begun; 0 means DefaultGrace. What is left is cut off.
	Grace time.Duration
	// Health is served as grpc.health.v1.Health, and its state as a whole at
	// /readyz. It is set to not serving when ctx ends. May be nil.
	Health *Health
	// Reflection serves descriptions of the services of Server.
	Reflection bool
	// MaxConnections bounds the open connections; 0 means DefaultMaxConnections.
	MaxConnections int
	// Logger gets what goes wrong with connections, at debug level; nil discards.
	Logger *slog.Logger
	// Telemetry gets the metrics of connections; nil discards.
	Telemetry *telemetry.Telemetry
}

// Serve serves HTTP/1.1 and HTTP/2 without TLS (h2c, prior knowledge) on one
// port: the Connect, gRPC and gRPC-Web protocols with protobuf and JSON, never
// compressed. It returns nil once ctx has ended and the connections are closed,
// and an error if the listener fails. Handlers that were cut off after Grace may
// be on their way out still.
func Serve(ctx context.Context, o ServeOptions) error {
	if o.Listener == nil || o.Server == nil {
		return errors.New("serve RPCs: a listener and a server are needed")
	}
	o = withDefaults(o)
	if o.Health != nil {
		o.Health.register(o.Server, o.Drain)
	}
	if o.Reflection {
		registerReflection(o.Server, o.Drain)
	}
	srv := &http.Server{
		Handler:           routes(o),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         new(http.Protocols),
		HTTP2:             transport.ServerHTTP2(),
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	busy := &busyConns{conns: map[net.Conn]struct{}{}}
	srv.ConnState = busy.track
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)

	listener := newLimitListener(o.Listener, o.MaxConnections, o.Telemetry.Registry)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	select {
	case err := <-served:
		o.Drain.Begin()
		_ = srv.Close()
		return fmt.Errorf("serve RPCs on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	if o.Health != nil {
		o.Health.stop()
	}
	o.Drain.Begin()
	if !shutdown(context.WithoutCancel(ctx), srv, busy, o.Grace) {
		o.Logger.Warn("calls that did not end in time are cut off", "address", listener.Addr().String(), "grace", o.Grace)
	}
	<-served
	return nil
}

func withDefaults(o ServeOptions) ServeOptions {
	if o.Drain == nil {
		o.Drain = NewDrain()
	}
	if o.Grace <= 0 {
		o.Grace = DefaultGrace
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = DefaultMaxConnections
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Telemetry == nil {
		o.Telemetry = telemetry.Discard()
	}
	return o
}

func routes(o ServeOptions) *http.ServeMux {
	mux := http.NewServeMux()
	options := []connecthttp.Option{
		connecthttp.WithCodecs(transport.Codec(), connectproto.NewJSONCodec()),
		connecthttp.WithCompressors(),
		connecthttp.WithReadMaxBytes(transport.MaxRequestBytes),
		connecthttp.WithSendMaxBytes(transport.MaxMessageBytes),
	}
	kinds := map[string]connect.StreamType{}
	for spec := range o.Server.Specs() {
		kinds[spec.Procedure] = spec.StreamType
	}
	guard := &guardedMux{mux: mux, kinds: kinds, drain: o.Drain, errors: connecthttp.NewErrorWriter(options...)}
	connecthttp.Mount(guard, o.Server, options...)
	for pattern, handler := range o.Handlers {
		mux.Handle(pattern, handler)
	}
	if _, taken := o.Handlers["/healthz"]; !taken {
		mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	}
	if _, taken := o.Handlers["/readyz"]; !taken && o.Health != nil {
		mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
			if !o.Health.Serving() {
				http.Error(w, "not ready", http.StatusServiceUnavailable)
				return
			}
			_, _ = io.WriteString(w, "ok\n")
		})
	}
	return mux
}

// ServiceNames returns the full names of the services that a server has, in
// ascending order.
func ServiceNames(server *connect.Server) []string {
	var names []string
	for spec := range server.Specs() {
		service, _, ok := strings.Cut(strings.TrimPrefix(spec.Procedure, "/"), "/")
		if ok && !slices.Contains(names, service) {
			names = append(names, service)
		}
	}
	slices.Sort(names)
	return names
}

// guardedMux puts in front of each RPC what its shape needs.
type guardedMux struct {
	mux    *http.ServeMux
	kinds  map[string]connect.StreamType
	drain  *Drain
	errors *connecthttp.ErrorWriter
}

// Handle implements connecthttp.ServeMux.
func (m *guardedMux) Handle(pattern string, handler http.Handler) {
	kind, known := m.kinds[pattern]
	if !known {
		kind = connect.StreamTypeUnary
	}
	// A single message, or none for an unknown method. Beyond its limit the RPC
	// library would read on in order to answer in good form. Each of many messages has
	// its own limit.
	const single = transport.MaxRequestBytes + envelopeSlack
	switch kind {
	case connect.StreamTypeUnary:
		handler = http.MaxBytesHandler(handler, single)
	case connect.StreamTypeServer:
		handler = m.stream(single, handler)
	case connect.StreamTypeBidi:
		handler = m.needHTTP2(pattern, m.stream(0, handler))
	case connect.StreamTypeClient:
	}
	m.mux.Handle(pattern, handler)
}

// stream serves a stream whose response has many messages and whose request at most so
// many bytes, or any number if that is 0. It is one handler with one allocation, since
// there may be thousands of streams that have nothing to do.
func (m *guardedMux) stream(maxRequest int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		response := &struct {
			envelopeWriter
			unblocker
		}{envelopeWriter{ResponseWriter: w}, unblocker{response: w}}
		if maxRequest > 0 {
			r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		}
		m.drain.add(&response.unblocker)
		defer func() {
			_ = response.release() // The handler, which could be told of an error, has returned.
			m.drain.remove(&response.unblocker)
			response.disarm()
		}()
		next.ServeHTTP(&response.envelopeWriter, r)
	})
}

// needHTTP2 says what to do, where the RPC library would answer with a bare
// status 505.
func (m *guardedMux) needHTTP2(procedure string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor >= 2 {
			next.ServeHTTP(w, r)
			return
		}
		// The client may wait for an answer before it ends its request.
		w.Header().Set("Connection", "close")
		err := rpcerr.Connect(rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST,
			"%s is a bidirectional stream and needs HTTP/2, but the request came over %s; use a gRPC or Connect client, or curl --http2-prior-knowledge",
			procedure, r.Proto))
		if !m.errors.IsSupported(r) {
			http.Error(w, err.Error(), http.StatusHTTPVersionNotSupported)
			return
		}
		_ = m.errors.Write(w, r, err)
	})
}
