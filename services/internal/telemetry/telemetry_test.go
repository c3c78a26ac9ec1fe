package telemetry_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"go.opentelemetry.io/otel/trace"
	collectormetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector takes what an OTLP exporter sends over HTTP.
type collector struct {
	*httptest.Server
	mu      sync.Mutex
	spans   []string // kind and name
	metrics []string
	service string
	calls   int
}

func newCollector(t *testing.T) *collector {
	c := &collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			var err error
			if body, err = gzip.NewReader(r.Body); err != nil {
				t.Error(err)
				return
			}
		}
		data, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.calls++
		switch r.URL.Path {
		case "/v1/traces":
			var request collectortrace.ExportTraceServiceRequest
			if err := proto.Unmarshal(data, &request); err != nil {
				t.Error(err)
			}
			for _, rs := range request.GetResourceSpans() {
				for _, a := range rs.GetResource().GetAttributes() {
					if a.GetKey() == "service.name" {
						c.service = a.GetValue().GetStringValue()
					}
				}
				for _, ss := range rs.GetScopeSpans() {
					for _, s := range ss.GetSpans() {
						c.spans = append(c.spans, s.GetKind().String()+" "+s.GetName())
					}
				}
			}
		case "/v1/metrics":
			var request collectormetrics.ExportMetricsServiceRequest
			if err := proto.Unmarshal(data, &request); err != nil {
				t.Error(err)
			}
			for _, rm := range request.GetResourceMetrics() {
				for _, sm := range rm.GetScopeMetrics() {
					for _, m := range sm.GetMetrics() {
						c.metrics = append(c.metrics, m.GetName())
					}
				}
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

type logService struct {
	storagev1connect.UnimplementedLogServiceHandler
}

func (logService) ListOffsets(context.Context, *storagev1.ListOffsetsRequest) (*storagev1.ListOffsetsResponse, error) {
	return &storagev1.ListOffsetsResponse{}, nil
}

func (logService) Consume(_ context.Context, _ *storagev1.ConsumeRequest, stream storagev1connect.LogServiceConsumeServerStream) error {
	return stream.Send(&storagev1.ConsumeResponse{})
}

// exercise serves a unary call and a stream over the network.
func exercise(t *testing.T, tel *telemetry.Telemetry) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerOptions{Telemetry: tel})
	storagev1connect.RegisterLogServiceHandler(server, logService{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, rpc.ServeOptions{Listener: listener, Server: server, Telemetry: tel}) }()
	pool := transport.NewPool(transport.Options{})
	client := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(listener.Addr().String(), transport.Control)))
	if _, err := client.ListOffsets(t.Context(), &storagev1.ListOffsetsRequest{}); err != nil {
		t.Error(err)
	}
	stream, err := client.Consume(t.Context(), &storagev1.ConsumeRequest{})
	for err == nil {
		_, err = stream.Receive()
	}
	pool.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func setup(t *testing.T) (*telemetry.Telemetry, *bytes.Buffer) {
	t.Helper()
	logs := &bytes.Buffer{}
	tel, err := telemetry.Setup(t.Context(), "runnel-test", slog.New(slog.NewTextHandler(logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return tel, logs
}

func shutdown(t *testing.T, tel *telemetry.Telemetry) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := tel.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

func TestOneSpanPerCallAndStream(t *testing.T) {
	c := newCollector(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	tel, _ := setup(t)
	exercise(t, tel)
	shutdown(t, tel)
	slices.Sort(c.spans)
	if !slices.Equal(c.spans, []string{"SPAN_KIND_SERVER runnel.storage.v1.LogService/Consume", "SPAN_KIND_SERVER runnel.storage.v1.LogService/ListOffsets"}) {
		t.Errorf("spans %q", c.spans)
	}
	if c.service != "runnel-test" {
		t.Errorf("service %q", c.service)
	}
	if !slices.ContainsFunc(c.metrics, func(name string) bool { return strings.Contains(name, "rpc.server") }) {
		t.Errorf("metrics %q", c.metrics)
	}
}

func TestNothingIsSentUnasked(t *testing.T) {
	for name, env := range map[string]func(url string) map[string]string{
		"no variables": func(string) map[string]string { return nil },
		"disabled": func(url string) map[string]string {
			return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SDK_DISABLED": "True"}
		},
		"no exporter": func(url string) map[string]string {
			return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCollector(t)
			for k, v := range env(c.URL) {
				t.Setenv(k, v)
			}
			tel, logs := setup(t)
			_, span := tel.TracerProvider.Tracer("test").Start(t.Context(), "x", trace.WithNewRoot())
			if span.IsRecording() {
				t.Error("spans are recorded")
			}
			exercise(t, tel)
			shutdown(t, tel)
			if c.calls != 0 || logs.Len() != 0 {
				t.Errorf("%d calls, log %s", c.calls, logs)
			}
		})
	}
}

func TestOneSignalOnly(t *testing.T) {
	c := newCollector(t)
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", c.URL+"/v1/traces")
	t.Setenv("OTEL_SERVICE_NAME", "named-by-operator")
	tel, _ := setup(t)
	exercise(t, tel)
	shutdown(t, tel)
	if len(c.spans) != 2 || len(c.metrics) != 0 || c.service != "named-by-operator" {
		t.Errorf("spans %q, metrics %q, service %q", c.spans, c.metrics, c.service)
	}
}

func TestUnknownProtocolIsRefused(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke-signals")
	_, err := telemetry.Setup(t.Context(), "x", slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "smoke-signals") || !strings.Contains(err.Error(), "OTEL_EXPORTER_OTLP_PROTOCOL") {
		t.Errorf("%v", err)
	}
}

func TestMetricsHandler(t *testing.T) {
	tel, _ := setup(t)
	recorder := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{"go_goroutines ", "process_open_fds ", `runnel_build_info{service="runnel-test"`} {
		if !strings.Contains(recorder.Body.String(), want) {
			t.Errorf("no %s", want)
		}
	}
}
