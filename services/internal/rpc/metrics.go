package rpc

import (
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of all RPCs of a process. The procedures are those that are
// registered, so that no client can add label values.
type metrics struct {
	started  *prometheus.CounterVec
	finished *prometheus.CounterVec
	inFlight *prometheus.GaugeVec
	unary    *prometheus.HistogramVec
}

func newMetrics(registry *prometheus.Registry) *metrics {
	return &metrics{
		started: register(registry, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "runnel_rpc_started_total",
			Help: "RPCs begun, streams included.",
		}, []string{"procedure"})),
		finished: register(registry, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "runnel_rpc_finished_total",
			Help: "RPCs ended, by the code that the client got.",
		}, []string{"procedure", "code"})),
		inFlight: register(registry, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "runnel_rpc_in_flight",
			Help: "RPCs that have begun and not ended, streams included.",
		}, []string{"procedure"})),
		unary: register(registry, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "runnel_rpc_unary_seconds",
			Help:    "Time that unary RPCs took in the server.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"procedure", "code"})),
	}
}

// begin counts an RPC and returns the gauge that is to be lowered at its end.
func (m *metrics) begin(procedure string) prometheus.Gauge {
	m.started.WithLabelValues(procedure).Inc()
	inFlight := m.inFlight.WithLabelValues(procedure)
	inFlight.Inc()
	return inFlight
}

func (m *metrics) end(spec connect.Spec, err error, elapsed time.Duration) {
	code := codeName(err)
	m.finished.WithLabelValues(spec.Procedure, code).Inc()
	if spec.StreamType == connect.StreamTypeUnary {
		m.unary.WithLabelValues(spec.Procedure, code).Observe(elapsed.Seconds())
	}
}

// register returns the collector that is registered already, if there is one:
// the servers of a process share their metrics.
func register[C prometheus.Collector](registry *prometheus.Registry, c C) C {
	err := registry.Register(c)
	if err == nil {
		return c
	}
	if existing, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if same, ok := existing.ExistingCollector.(C); ok {
			return same
		}
	}
	panic(fmt.Sprintf("rpc: metrics clash with those of another package: %v", err))
}

func codeName(err error) string {
	if err == nil {
		return "ok"
	}
	return connect.CodeOf(err).String()
}
