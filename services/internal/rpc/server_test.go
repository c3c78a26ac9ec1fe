package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

func TestInProcessErrors(t *testing.T) {
	t.Parallel()
	logs := &syncBuffer{}
	server := NewServer(ServerOptions{Logger: slog.New(slog.NewTextHandler(logs, nil))})
	storagev1connect.RegisterLogServiceHandler(server, &logService{drain: NewDrain()})
	client := storagev1connect.NewLogServiceClient(NewClient(InProcess(server), nil))
	_, err := client.Append(t.Context(), appendTo("panic"))
	failure, ok := rpcerr.Parse(err)
	if !ok || connect.CodeOf(err) != connect.CodeInternal || strings.Contains(failure.Message, "secret") {
		t.Errorf("%v", err)
	}
	if !strings.Contains(logs.String(), "secret of the panic") || !strings.Contains(logs.String(), "server_test.go") && !strings.Contains(logs.String(), "main_test.go") {
		t.Errorf("log without panic or stack: %s", logs)
	}
}

func TestOneTracePerCallAndStream(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	tel := telemetry.Discard()
	tel.TracerProvider = trace.NewTracerProvider(trace.WithSyncer(spans))
	server := NewServer(ServerOptions{Telemetry: tel})
	drain := NewDrain()
	storagev1connect.RegisterLogServiceHandler(server, &logService{drain: drain})
	client := storagev1connect.NewLogServiceClient(NewClient(InProcess(server), tel))
	if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
		t.Fatal(err)
	}
	consume := func(request *storagev1.ConsumeRequest) {
		stream, err := client.Consume(t.Context(), request)
		for err == nil {
			_, err = stream.Receive()
		}
	}
	consume(&storagev1.ConsumeRequest{StopAtEnd: true})
	drain.Begin()
	consume(&storagev1.ConsumeRequest{})

	var ended []string
	traces := map[string]int{}
	for _, s := range spans.GetSpans() {
		status := ""
		for _, a := range s.Attributes {
			if a.Key == "rpc.response.status_code" {
				status = a.Value.AsString()
			}
		}
		ended = append(ended, fmt.Sprint(s.SpanKind, " ", s.Name, " ", status, " ", s.Status.Code))
		traces[s.SpanContext.TraceID().String()]++
	}
	slices.Sort(ended)
	want := []string{
		"client runnel.storage.v1.LogService/Append OK Unset",
		"client runnel.storage.v1.LogService/Consume OK Unset",
		"client runnel.storage.v1.LogService/Consume UNAVAILABLE Error",
		"server runnel.storage.v1.LogService/Append OK Unset",
		"server runnel.storage.v1.LogService/Consume OK Unset",
		"server runnel.storage.v1.LogService/Consume UNAVAILABLE Error",
	}
	if !slices.Equal(ended, want) {
		t.Errorf("spans %q", ended)
	}
	for id, count := range traces {
		if count != 2 {
			t.Errorf("trace %s has %d spans, must have those of the client and the server", id, count)
		}
	}
}

// relay passes its calls on.
type relay struct {
	storagev1connect.UnimplementedLogServiceHandler
	next storagev1connect.LogServiceClient
}

func (r *relay) Append(ctx context.Context, req *storagev1.AppendRequest) (*storagev1.AppendResponse, error) {
	return r.next.Append(ctx, req)
}

// withoutInstruments is a meter provider whose meters have none to give.
type withoutInstruments struct{ metricnoop.MeterProvider }

func (withoutInstruments) Meter(string, ...metric.MeterOption) metric.Meter { return noInstruments{} }

type noInstruments struct{ metricnoop.Meter }

func (noInstruments) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return nil, errors.New("no instruments here")
}

func TestTracesPassThroughWhoMakesNoSpans(t *testing.T) {
	told := make(chan error, 1)
	before := otel.GetErrorHandler()
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { told <- err }))
	defer otel.SetErrorHandler(before)
	broken := telemetry.Discard()
	broken.MeterProvider = withoutInstruments{}
	for name, passing := range map[string]*telemetry.Telemetry{"exports nothing": telemetry.Discard(), "cannot make any": broken} {
		t.Run(name, func(t *testing.T) {
			spans := tracetest.NewInMemoryExporter()
			tel := telemetry.Discard()
			tel.TracerProvider = trace.NewTracerProvider(trace.WithSyncer(spans))
			// Over the network: in the process, the context alone would bring it.
			serve := func(tel *telemetry.Telemetry, handler storagev1connect.LogServiceHandler) connect.Transport {
				server := NewServer(ServerOptions{Telemetry: tel})
				storagev1connect.RegisterLogServiceHandler(server, handler)
				s := startServer(t, func(o *ServeOptions) { o.Server = server })
				pool := transport.NewPool(transport.Options{})
				t.Cleanup(pool.Close)
				return pool.Transport(s.address, transport.Control)
			}
			last := serve(tel, &logService{drain: NewDrain()})
			middle := serve(passing, &relay{next: storagev1connect.NewLogServiceClient(NewClient(last, passing))})
			client := storagev1connect.NewLogServiceClient(NewClient(middle, tel))
			if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
				t.Fatal(err)
			}
			got := spans.GetSpans()
			if len(got) != 2 || got[0].SpanContext.TraceID() != got[1].SpanContext.TraceID() || got[0].Parent.SpanID() != got[1].SpanContext.SpanID() {
				t.Errorf("spans %+v", got)
			}
		})
	}
	select {
	case err := <-told:
		if !strings.Contains(err.Error(), "RPCs that go out get no spans: ") {
			t.Error(err)
		}
	default:
		t.Error("nobody is told that there are no spans")
	}
}

func TestServersShareMetrics(t *testing.T) {
	t.Parallel()
	tel := telemetry.Discard()
	for range 2 {
		server := NewServer(ServerOptions{Telemetry: tel})
		storagev1connect.RegisterLogServiceHandler(server, &logService{drain: NewDrain()})
		client := storagev1connect.NewLogServiceClient(NewClient(InProcess(server), nil))
		if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
			t.Fatal(err)
		}
	}
	families, err := tel.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "runnel_rpc_started_total" && f.GetMetric()[0].GetCounter().GetValue() != 2 {
			t.Errorf("%v", f)
		}
	}
}

func TestCancelledCallIsNoIncident(t *testing.T) {
	t.Parallel()
	logs := &syncBuffer{}
	logger := slog.New(slog.NewTextHandler(logs, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	handler := translate(logger)(func(context.Context, connect.Spec, connect.ServerStream) error {
		return http.ErrBodyReadAfterClose
	})
	if err := handler(ctx, connect.Spec{}, nil); connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("%v", err)
	}
	if logs.String() != "" {
		t.Errorf("logged %s", logs)
	}
	if err := handler(t.Context(), connect.Spec{}, nil); connect.CodeOf(err) != connect.CodeInternal || logs.String() == "" {
		t.Errorf("%v, log %q", err, logs)
	}
}

func TestEnvelopesAreJoined(t *testing.T) {
	t.Parallel()
	prefix := []byte{0, 0, 0, 0, 3}
	small, large := []byte("abc"), bytes.Repeat([]byte("x"), maxJoinedBytes+1)
	for name, tc := range map[string]struct {
		writes [][]byte
		want   [][]byte
	}{
		"small":              {[][]byte{prefix, small}, [][]byte{append(slices.Clone(prefix), small...)}},
		"large":              {[][]byte{prefix, large}, [][]byte{prefix, large}},
		"empty":              {[][]byte{prefix, {}}, [][]byte{prefix}},
		"five bytes long":    {[][]byte{prefix, []byte("12345"), prefix, small}, [][]byte{append(slices.Clone(prefix), "12345"...), append(slices.Clone(prefix), small...)}},
		"nothing follows":    {[][]byte{prefix}, [][]byte{prefix}},
		"not enveloped":      {[][]byte{[]byte("no such thing")}, [][]byte{[]byte("no such thing")}},
		"flushed in between": {[][]byte{prefix, nil, small}, [][]byte{prefix, small}},
	} {
		recorder := &writes{ResponseRecorder: httptest.NewRecorder()}
		joined := &envelopeWriter{ResponseWriter: recorder}
		for _, p := range tc.writes {
			if p == nil {
				joined.Flush()
				continue
			}
			if n, err := joined.Write(p); n != len(p) || err != nil {
				t.Errorf("%s: wrote %d of %d, %v", name, n, len(p), err)
			}
		}
		if err := joined.release(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.EqualFunc(recorder.all, tc.want, bytes.Equal) {
			t.Errorf("%s: %d writes, want %d", name, len(recorder.all), len(tc.want))
		}
	}
}

type writes struct {
	*httptest.ResponseRecorder
	all [][]byte
}

func (w *writes) Write(p []byte) (int, error) {
	w.all = append(w.all, bytes.Clone(p))
	return len(p), nil
}
