package rpc

import (
	"context"
	"strings"

	"connectrpc.com/connect/v2"
	"connectrpc.com/otelconnect"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

// otelOptions are those of otelconnect, for calls of any kind.
func otelOptions(tel *telemetry.Telemetry) []otelconnect.Option {
	return []otelconnect.Option{
		otelconnect.WithTracerProvider(tel.TracerProvider),
		otelconnect.WithMeterProvider(tel.MeterProvider),
		otelconnect.WithPropagator(tel.Propagator),
		otelconnect.WithTrustRemote(),
	}
}

// traceCalls gives each RPC a span that lasts as long as its handler runs, and
// each unary one a place in the OTLP metrics too, where the duration of a stream
// would say nothing.
//
// Streams do without otelconnect: a frame of it of more than 1 KiB would lie on the
// stack of each of them for as long as it is open, and their stacks would be twice
// as large, see TestStreamsHaveSmallStacks.
func traceCalls(tel *telemetry.Telemetry) (connect.ServerInterceptor, error) {
	unary, err := otelconnect.NewServerInterceptor(otelOptions(tel)...)
	if err != nil {
		return nil, err
	}
	streams := streamTracer{tracer: tel.TracerProvider.Tracer("github.com/runnel-mesh/runnel/services/internal/rpc"), propagator: tel.Propagator}
	return func(next connect.ServerFunc) connect.ServerFunc {
		call := unary(next)
		return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
			if spec.StreamType == connect.StreamTypeUnary {
				return call(ctx, spec, stream)
			}
			ctx, span := streams.begin(ctx, spec.Procedure)
			defer span.End() // Also when the handler panics.
			err := next(ctx, spec, stream)
			finish(span, err)
			return err
		}
	}, nil
}

// streamTracer makes the spans of streams, with the names and attributes of
// OpenTelemetry's conventions for RPCs.
type streamTracer struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
}

// begin starts a span within the trace that the client has named.
func (t streamTracer) begin(ctx context.Context, procedure string) (context.Context, trace.Span) {
	name := strings.TrimPrefix(procedure, "/")
	attributes := []attribute.KeyValue{semconv.RPCMethod(name)}
	if info, ok := connect.CallInfoForServerContext(ctx); ok {
		attributes = append(attributes, system(info.Protocol))
		if !trace.SpanContextFromContext(ctx).IsValid() {
			ctx = t.propagator.Extract(ctx, headers{info.RequestHeader()})
		}
	}
	return t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attributes...))
}

// finish notes what became of a stream. What is the client's own doing is no error
// of the server, see the conventions.
func finish(span trace.Span, err error) {
	if !span.IsRecording() {
		return
	}
	if err == nil {
		span.SetAttributes(semconv.RPCResponseStatusCode("OK"))
		return
	}
	code := connect.CodeOf(err)
	name := strings.ToUpper(code.String())
	span.SetAttributes(semconv.RPCResponseStatusCode(name), semconv.ErrorTypeKey.String(name))
	switch code {
	case connect.CodeUnknown, connect.CodeDeadlineExceeded, connect.CodeUnimplemented, connect.CodeInternal, connect.CodeUnavailable, connect.CodeDataLoss:
		span.SetStatus(codes.Error, err.Error())
	default:
	}
}

// system is what the conventions call a protocol.
func system(protocol string) attribute.KeyValue {
	switch protocol {
	case connect.ProtocolNameGRPC, connect.ProtocolNameGRPCWeb:
		return semconv.RPCSystemNameGRPC
	case connect.ProtocolNameConnect:
		return semconv.RPCSystemNameConnectrpc
	default:
		return semconv.RPCSystemNameKey.String(protocol)
	}
}
