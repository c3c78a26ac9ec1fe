package rpc

import (
	"context"

	"connectrpc.com/connect/v2"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// extractTrace and injectTrace are all that is left of tracing in a process that exports
// nothing: a trace that came with a call goes on with the calls that are made for it, to
// processes that may well export. Making spans and attributes for nobody takes a tenth of
// the processor time of a small call.

// extractTrace takes the trace that a call belongs to from its headers.
func extractTrace(propagator propagation.TextMapPropagator) connect.ServerInterceptor {
	return func(next connect.ServerFunc) connect.ServerFunc {
		return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
			if !trace.SpanContextFromContext(ctx).IsValid() {
				if info, ok := connect.CallInfoForServerContext(ctx); ok {
					ctx = propagator.Extract(ctx, headers{info.RequestHeader()})
				}
			}
			return next(ctx, spec, stream)
		}
	}
}

// injectTrace puts the trace that a call belongs to into its headers, if there is one.
func injectTrace(propagator propagation.TextMapPropagator) connect.ClientInterceptor {
	return func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			if trace.SpanContextFromContext(ctx).IsValid() {
				info, ok := connect.CallInfoForClientContext(ctx)
				if !ok {
					ctx, info = connect.NewClientContext(ctx)
				}
				propagator.Inject(ctx, headers{info.RequestHeader()})
			}
			return next(ctx, spec)
		}
	}
}

// headers are those of a call, for a propagator.
type headers struct{ *connect.Header }

var _ propagation.TextMapCarrier = headers{}

// Keys implements propagation.TextMapCarrier.
func (h headers) Keys() []string {
	keys := make([]string, 0, h.Len())
	for key := range h.All() {
		keys = append(keys, key)
	}
	return keys
}
