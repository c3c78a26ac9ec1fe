// Package telemetry sets up metrics and traces for one process.
//
// Prometheus metrics are always there: every part registers its collectors with
// the process's registry, and [Telemetry.MetricsHandler] serves them.
// OpenTelemetry is silent unless the standard OTEL_* variables name a collector:
// without them the providers do nothing and no connection is opened.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// maxScrapes bounds how many scrapes of /metrics run at once.
const maxScrapes = 4

// Telemetry is what the parts of a process report to. Its fields are never nil
// and are not changed after Setup.
type Telemetry struct {
	Registry       *prometheus.Registry
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
	Propagator     propagation.TextMapPropagator

	shutdown []func(context.Context) error
}

// Discard returns a Telemetry with a registry of its own that nobody scrapes and
// providers that do nothing.
func Discard() *Telemetry {
	return &Telemetry{
		Registry:       prometheus.NewRegistry(),
		TracerProvider: tracenoop.NewTracerProvider(),
		MeterProvider:  metricnoop.NewMeterProvider(),
		Propagator:     propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
	}
}

// Silent reports whether spans and OpenTelemetry's metrics go nowhere.
func (t *Telemetry) Silent() bool {
	_, noTraces := t.TracerProvider.(tracenoop.TracerProvider)
	_, noMetrics := t.MeterProvider.(metricnoop.MeterProvider)
	return noTraces && noMetrics
}

// Setup reads the OTEL_* variables and returns the telemetry of the process,
// which calls itself service unless OTEL_SERVICE_NAME says otherwise. Traces and
// metrics are exported only if OTEL_EXPORTER_OTLP_ENDPOINT, or the variable for
// the one signal, is set and OTEL_SDK_DISABLED is not true. An unknown protocol
// or a malformed variable is an error. A collector that cannot be reached is
// not: it is logged, and data is dropped once the queues are full.
func Setup(ctx context.Context, service string, logger *slog.Logger) (*Telemetry, error) {
	t := Discard()
	build := buildVersion()
	t.Registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo(service, build),
	)
	traces, metrics := wanted("TRACES"), wanted("METRICS")
	if !traces && !metrics {
		return t, nil
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.Warn("telemetry is not exported", "error", err)
	}))
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithAttributes(semconv.ServiceName(service), semconv.ServiceVersion(build)),
		resource.WithFromEnv(), // Last, so that OTEL_SERVICE_NAME wins.
	)
	if err != nil {
		return nil, fmt.Errorf("describe the process for OpenTelemetry (check OTEL_RESOURCE_ATTRIBUTES): %w", err)
	}
	if traces {
		if err := t.exportTraces(ctx, res); err != nil {
			return nil, errors.Join(err, t.Shutdown(ctx))
		}
	}
	if metrics {
		if err := t.exportMetrics(ctx, res); err != nil {
			return nil, errors.Join(err, t.Shutdown(ctx))
		}
	}
	return t, nil
}

func (t *Telemetry) exportTraces(ctx context.Context, res *resource.Resource) error {
	var exporter sdktrace.SpanExporter
	var err error
	switch p := protocol("TRACES"); p {
	case "http/protobuf":
		exporter, err = otlptracehttp.New(ctx)
	case "grpc":
		exporter, err = otlptracegrpc.New(ctx)
	default:
		err = unknownProtocol(p)
	}
	if err != nil {
		return fmt.Errorf("export traces: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(res))
	t.TracerProvider = provider
	t.shutdown = append(t.shutdown, provider.Shutdown)
	return nil
}

func (t *Telemetry) exportMetrics(ctx context.Context, res *resource.Resource) error {
	var exporter sdkmetric.Exporter
	var err error
	switch p := protocol("METRICS"); p {
	case "http/protobuf":
		exporter, err = otlpmetrichttp.New(ctx)
	case "grpc":
		exporter, err = otlpmetricgrpc.New(ctx)
	default:
		err = unknownProtocol(p)
	}
	if err != nil {
		return fmt.Errorf("export metrics: %w", err)
	}
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter)), sdkmetric.WithResource(res))
	t.MeterProvider = provider
	t.shutdown = append(t.shutdown, provider.Shutdown)
	return nil
}

// Shutdown sends what has not been sent yet, for as long as ctx allows, and
// stops the exporters. The providers do nothing afterwards.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for _, stop := range t.shutdown {
		errs = append(errs, stop(ctx))
	}
	t.shutdown = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("flush telemetry: %w", err)
	}
	return nil
}

// MetricsHandler serves the registry in Prometheus' text format.
func (t *Telemetry) MetricsHandler() http.Handler {
	return promhttp.HandlerFor(t.Registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes,
		Timeout:             10 * time.Second,
		DisableCompression:  true,
	})
}

// wanted reports whether the environment asks for a signal to be exported.
func wanted(signal string) bool {
	if strings.EqualFold(strings.TrimSpace(os.Getenv("OTEL_SDK_DISABLED")), "true") {
		return false
	}
	if strings.EqualFold(strings.TrimSpace(os.Getenv("OTEL_"+signal+"_EXPORTER")), "none") {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

// protocol is the OTLP protocol of a signal; the specification's default is
// http/protobuf.
func protocol(signal string) string {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if p := strings.TrimSpace(os.Getenv(name)); p != "" {
			return p
		}
	}
	return "http/protobuf"
}

func unknownProtocol(p string) error {
	return fmt.Errorf("OTLP protocol %q is not supported; set OTEL_EXPORTER_OTLP_PROTOCOL to grpc or http/protobuf", p)
}

func buildInfo(service, version string) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "runnel_build_info",
		Help:        "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"service": service, "version": version},
	})
	g.Set(1)
	return g
}

func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return info.Main.Version
}
