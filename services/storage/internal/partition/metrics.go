package partition

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// metrics are those of all partitions of a process.
type metrics struct {
	batches, bytes, records prometheus.Counter
	duplicates              prometheus.Counter
	forgottenProducers      prometheus.Counter
	tailHits, tailMisses    prometheus.Counter
	tailBytes               prometheus.Gauge
	inFlight                prometheus.Gauge
	budgetWaits             prometheus.Counter
	leaders, followers      prometheus.Gauge
	asleep                  prometheus.Gauge
	retained                prometheus.Counter

	copiedBatches, copiedBytes, copiedRecords prometheus.Counter
	truncations, restarts                     prometheus.Counter

	compactions                   *prometheus.CounterVec
	compactionRead, compactionOut prometheus.Counter
	compactionRecords             prometheus.Counter
	compactionMapFull             prometheus.Counter
	compactionSeconds             prometheus.Histogram
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "runnel_storage_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "runnel_storage_" + name, Help: help})
	}
	m := &metrics{
		batches:            counter("append_batches_total", "Record batches appended."),
		bytes:              counter("append_bytes_total", "Bytes of record batches appended."),
		records:            counter("append_records_total", "Records appended."),
		duplicates:         counter("append_duplicates_total", "Batches of idempotent producers that had been appended before."),
		forgottenProducers: counter("forgotten_producers_total", "Idempotent producers forgotten because a partition had too many."),
		tailHits:           counter("tail_cache_hits_total", "Reads served from the tail cache."),
		tailMisses:         counter("tail_cache_misses_total", "Reads served by the store."),
		tailBytes:          gauge("tail_cache_bytes", "Bytes of the batches in the tail cache."),
		inFlight:           gauge("append_in_flight_bytes", "Bytes of appends on their way into the store."),
		budgetWaits:        counter("append_budget_waits_total", "Appends that waited for the budget of bytes in flight."),
		retained:           counter("retention_removed_bytes_total", "Bytes of record batches removed because they were too old or too many."),
		leaders:            gauge("partitions_led", "Partitions that this node leads."),
		followers:          gauge("partitions_followed", "Partitions that this node follows."),
		asleep:             gauge("partitions_asleep", "Partitions that this node leads and that nobody has used for a while, so that little of them is in memory."),
		copiedBatches:      counter("replicated_batches_total", "Record batches that followers here have taken from their leaders."),
		copiedBytes:        counter("replicated_bytes_total", "Bytes of record batches that followers here have taken from their leaders."),
		copiedRecords:      counter("replicated_records_total", "Records that followers here have taken from their leaders."),
		truncations:        counter("replica_truncations_total", "Logs of followers here that were cut because their leaders have other records."),
		restarts:           counter("replica_restarts_total", "Logs of followers here that were dropped and begun anew because their leaders no longer have what follows."),
		compactions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "runnel_storage_compactions_total", Help: "Runs of compaction, by outcome: compacted, nothing (to do), or failed."}, []string{"outcome"}),
		compactionRead:    counter("compaction_read_bytes_total", "Bytes of record batches before compaction."),
		compactionOut:     counter("compaction_written_bytes_total", "Bytes of record batches that compaction has left."),
		compactionRecords: counter("compaction_removed_records_total", "Records that compaction has removed."),
		compactionMapFull: counter("compaction_map_full_total", "Runs of compaction that had more keys than memory for them."),
		compactionSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "runnel_storage_compaction_seconds", Help: "Seconds that a run of compaction took.", Buckets: prometheus.ExponentialBuckets(1e-3, 4, 12)}),
	}
	if registerer != nil {
		registerer.MustRegister(m.batches, m.bytes, m.records, m.duplicates, m.forgottenProducers, m.tailHits, m.tailMisses,
			m.tailBytes, m.inFlight, m.budgetWaits, m.leaders, m.followers, m.asleep, m.retained,
			m.copiedBatches, m.copiedBytes, m.copiedRecords, m.truncations, m.restarts,
			m.compactions, m.compactionRead, m.compactionOut, m.compactionRecords, m.compactionMapFull, m.compactionSeconds)
	}
	return m
}

func (m *metrics) appended(bytes, records int) {
	m.batches.Inc()
	m.bytes.Add(float64(bytes))
	m.records.Add(float64(records))
}

func (m *metrics) copied(batches, bytes, records int) {
	m.copiedBatches.Add(float64(batches))
	m.copiedBytes.Add(float64(bytes))
	m.copiedRecords.Add(float64(records))
}

func (m *metrics) compacted(done store.Compacted, took time.Duration, err error) {
	outcome := "nothing"
	switch {
	case err != nil:
		outcome = "failed"
	case done.Progress:
		outcome = "compacted"
		m.compactionRead.Add(float64(done.BytesIn))
		m.compactionOut.Add(float64(done.BytesOut))
		m.compactionRecords.Add(float64(done.Records))
	}
	if done.MapFull {
		m.compactionMapFull.Inc()
	}
	m.compactions.WithLabelValues(outcome).Inc()
	m.compactionSeconds.Observe(took.Seconds())
}

// moved counts a change of role.
func (m *metrics) moved(before, after rules.Role) {
	if before == after {
		return
	}
	if gauge := m.ofRole(before); gauge != nil {
		gauge.Dec()
	}
	if gauge := m.ofRole(after); gauge != nil {
		gauge.Inc()
	}
}

func (m *metrics) ofRole(r rules.Role) prometheus.Gauge {
	switch r {
	case rules.Leading:
		return m.leaders
	case rules.Following:
		return m.followers
	default:
		return nil
	}
}
