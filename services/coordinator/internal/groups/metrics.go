package groups

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

type metrics struct {
	rounds   *prometheus.CounterVec
	duration *prometheus.HistogramVec
	loading  prometheus.Histogram
	// throttled counts requests that found the queue of their partition full.
	throttled prometheus.Counter
}

func newMetrics(h *Host, registerer prometheus.Registerer) *metrics {
	m := &metrics{
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "runnel_coordinator_rounds_total",
			Help: "Appends to __consumer_offsets, checks of a fence and loads, by what came of them.",
		}, []string{"kind", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "runnel_coordinator_round_seconds",
			Help:    "Time that an append, a check or a load took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"kind"}),
		loading: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "runnel_coordinator_loading_seconds",
			Help:    "Time from when the node was given a partition of __consumer_offsets until it served its groups.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}),
	}
	m.throttled = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "runnel_coordinator_throttled_total",
		Help: "Requests refused since too many, or too many commits, waited for a round of their partition of __consumer_offsets.",
	})
	for _, kind := range []string{"append", "check", "load"} {
		for _, o := range []rules.Outcome{rules.Done, rules.Refused, rules.Doubtful, rules.Fenced} {
			m.rounds.WithLabelValues(kind, outcomeName(o))
		}
		m.duration.WithLabelValues(kind)
	}
	if registerer == nil {
		return m
	}
	sum := func(count func(*shard) int64) func() float64 {
		return func() float64 {
			var total int64
			for _, s := range h.all() {
				total += count(s)
			}
			return float64(total)
		}
	}
	in := func(state int32) func(*shard) int64 {
		return func(s *shard) int64 {
			if s.state.Load() == state {
				return 1
			}
			return 0
		}
	}
	gauge := func(name, help string, count func(*shard) int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "runnel", Subsystem: "coordinator", Name: name, Help: help}, sum(count))
	}
	registerer.MustRegister(m.rounds, m.duration, m.loading, m.throttled,
		gauge("partitions_serving", "Partitions of __consumer_offsets whose groups this node serves.", in(shardServing)),
		gauge("partitions_loading", "Partitions of __consumer_offsets that this node coordinates and does not serve yet.", in(shardLoading)),
		gauge("groups", "Consumer groups on this node.", func(s *shard) int64 { return s.groups.Load() }),
		gauge("members", "Members of consumer groups on this node.", func(s *shard) int64 { return s.members.Load() }),
		gauge("queued_requests", "Requests that wait for a round.", func(s *shard) int64 { return s.queued.Load() + int64(len(s.requests)) }),
	)
	return m
}

func (m *metrics) round(kind string, outcome rules.Outcome, took time.Duration) {
	m.rounds.WithLabelValues(kind, outcomeName(outcome)).Inc()
	m.duration.WithLabelValues(kind).Observe(took.Seconds())
}

func outcomeName(o rules.Outcome) string {
	switch o {
	case rules.Done:
		return "done"
	case rules.Refused:
		return "refused"
	case rules.Doubtful:
		return "doubtful"
	default:
		return "fenced"
	}
}
