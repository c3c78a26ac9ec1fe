// Package rpc is the plumbing between the services and the RPC library: servers
// with their interceptors, listeners with their limits, draining, health,
// reflection, and the transports by which services call each other.
//
// It is the only place in services that builds HTTP servers.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"connectrpc.com/otelconnect"
	"go.opentelemetry.io/otel"

	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

// ServerOptions is what the RPCs of a server report to.
type ServerOptions struct {
	// Logger gets every RPC at debug level, and what nobody foresaw at error
	// level; nil discards.
	Logger *slog.Logger
	// Telemetry gets metrics and traces of all RPCs; nil discards.
	Telemetry *telemetry.Telemetry
}

// NewServer returns an RPC server without services. Handlers return
// [rpcerr.Error]s or any other error; a panic becomes an internal error.
// A process may have several servers; they share metrics if they share Telemetry.
func NewServer(o ServerOptions) *connect.Server {
	logger := o.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	tel := o.Telemetry
	if tel == nil {
		tel = telemetry.Discard()
	}
	// The outermost comes first. What stands outside of translate sees the code
	// that the client sees.
	interceptors := []connect.ServerInterceptor{observe(logger, newMetrics(tel.Registry))}
	trace := extractTrace(tel.Propagator)
	if !tel.Silent() {
		if spans, err := traceCalls(tel); err != nil {
			logger.Error("RPCs that come in get no spans", "error", err)
		} else {
			trace = spans
		}
	}
	interceptors = append(interceptors, trace)
	interceptors = append(interceptors, translate(logger))
	return connect.NewServer(interceptors...)
}

// NewClient returns a client whose calls and streams are traced as part of the call
// that ctx belongs to; tel may be nil. Where spans cannot be made OpenTelemetry's error
// handler is told, and the trace goes on without them.
func NewClient(t connect.Transport, tel *telemetry.Telemetry) *connect.Client {
	if tel == nil {
		return connect.NewClient(t)
	}
	trace := injectTrace(tel.Propagator)
	if !tel.Silent() {
		if spans, err := otelconnect.NewClientInterceptor(otelOptions(tel)...); err != nil {
			otel.Handle(fmt.Errorf("RPCs that go out get no spans: %w", err))
		} else {
			trace = spans
		}
	}
	return connect.NewClient(t, trace)
}

// InProcess returns a transport that calls the handlers of s directly. Messages
// are copied as they are received, after Send has returned: a message must never
// be changed after it was sent. Sends are unbuffered.
func InProcess(s *connect.Server) connect.Transport { return connectinprocess.New(s) }

// observe counts and, at debug level, logs every RPC. Its parts are functions of their
// own, so that little of them lies on the stack of a stream while that is open.
func observe(logger *slog.Logger, m *metrics) connect.ServerInterceptor {
	return func(next connect.ServerFunc) connect.ServerFunc {
		return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
			start := time.Now()
			inFlight := m.begin(spec.Procedure)
			err := next(ctx, spec, stream)
			inFlight.Dec()
			elapsed := time.Since(start)
			m.end(spec, err, elapsed)
			if logger.Enabled(ctx, slog.LevelDebug) {
				logCall(ctx, logger, spec.Procedure, err, elapsed)
			}
			return err
		}
	}
}

func logCall(ctx context.Context, logger *slog.Logger, procedure string, err error, elapsed time.Duration) {
	attrs := []slog.Attr{
		slog.String("procedure", procedure),
		slog.String("code", codeName(err)),
		slog.Duration("duration", elapsed),
	}
	if info, ok := connect.CallInfoForServerContext(ctx); ok {
		attrs = append(attrs, slog.String("peer", info.PeerAddr), slog.String("protocol", info.Protocol))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err), slog.Any("cause", errors.Unwrap(err)))
	}
	logger.LogAttrs(ctx, slog.LevelDebug, "rpc", attrs...)
}

// translate turns panics and whatever a handler returns into connect errors.
func translate(logger *slog.Logger) connect.ServerInterceptor {
	return func(next connect.ServerFunc) connect.ServerFunc {
		return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) (err error) {
			defer func() {
				var stack []byte
				if p := recover(); p != nil {
					if p == http.ErrAbortHandler { //nolint:errorlint // A sentinel that is compared by identity.
						panic(p)
					}
					stack = debug.Stack()
					err = fmt.Errorf("panic: %v", p)
				}
				if err == nil {
					return
				}
				err = rpcerr.Connect(foreseen(ctx, logger, spec, err, stack))
			}()
			return next(ctx, spec, stream)
		}
	}
}

// foreseen logs an error that nobody foresaw and returns it with the incident
// number that the log line carries. Other errors are returned as they are.
func foreseen(ctx context.Context, logger *slog.Logger, spec connect.Spec, err error, stack []byte) error {
	e := rpcerr.Classify(err)
	if e.Incident == "" {
		return err
	}
	if stack == nil && ctx.Err() != nil {
		// The client is gone, and most likely that is what the handler tripped over.
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	attrs := []slog.Attr{
		slog.String("incident", e.Incident),
		slog.String("procedure", spec.Procedure),
		slog.Any("error", err),
	}
	if stack != nil {
		attrs = append(attrs, slog.String("stack", string(stack)))
	}
	logger.LogAttrs(ctx, slog.LevelError, "rpc failed unexpectedly", attrs...)
	return e
}
