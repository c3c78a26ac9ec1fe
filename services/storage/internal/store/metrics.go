package store

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are a store's; they live as long as it is open.
type metrics struct {
	groupBytes   *prometheus.HistogramVec
	groupAppends *prometheus.HistogramVec
	commit       *prometheus.HistogramVec
	queue        *prometheus.GaugeVec
	rolls        *prometheus.CounterVec
	opened       prometheus.Histogram
	open         prometheus.Gauge
	readBytes    prometheus.Counter
	readahead    prometheus.Counter
	corrupt      prometheus.Counter
	condemned    prometheus.Gauge
	failed       prometheus.Gauge
	scrubbed     prometheus.Counter
	scrubTook    prometheus.Gauge
	scrubEnded   prometheus.Gauge
	diskFree     prometheus.Gauge
	minFree      prometheus.Gauge
	ballast      prometheus.Gauge
	refused      prometheus.Counter
	shortened    prometheus.Counter
	hanging      *prometheus.GaugeVec
	stalled      *prometheus.CounterVec

	cleanings, cleanedBytes, cleaningSeconds, removedVolumes prometheus.Counter

	// late are collectors that came later than the others.
	late       []prometheus.Collector
	registerer prometheus.Registerer
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	const namespace, subsystem = "runnel", "storage"
	sets := []string{"set"}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help, Buckets: buckets}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	seconds := prometheus.ExponentialBuckets(50e-6, 2.5, 14)
	m := &metrics{
		groupBytes: prometheus.NewHistogramVec(
			histogram("commit_group_bytes", "Bytes of batches in a commit.", prometheus.ExponentialBuckets(1<<10, 4, 9)), sets),
		groupAppends: prometheus.NewHistogramVec(
			histogram("commit_group_appends", "Appends in a commit.", prometheus.ExponentialBuckets(1, 4, 7)), sets),
		commit: prometheus.NewHistogramVec(
			histogram("commit_seconds", "Seconds that a commit took.", seconds), sets),
		queue: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "append_queue_bytes", Help: "Bytes of batches that wait for their commit."}, sets),
		rolls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "volumes_sealed_total", Help: "Volumes that were replaced by a fresh one."}, sets),
		opened: prometheus.NewHistogram(
			histogram("volume_open_seconds", "Seconds that it took to open a sealed volume.", seconds)),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "volumes_open", Help: "Sealed volumes that are open for reading."}),
		readBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "store_read_bytes_total", Help: "Bytes of batches read from disk."}),
		readahead: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "read_ahead_bytes_total", Help: "Bytes that the disk was asked for ahead of readers."}),
		condemned: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "volumes_condemned", Help: "Volumes that were found damaged and set aside, and still lie in the directory."}),
		failed: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "partitions_failed", Help: "Partitions that have lost something and take no more records."}),
		scrubbed: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "scrub_bytes_total", Help: "Bytes of sealed volumes that were read to verify them."}),
		scrubTook: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "scrub_seconds", Help: "Seconds that the last round through all sealed volumes took."}),
		scrubEnded: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "scrub_finished_timestamp_seconds", Help: "When the last round through all sealed volumes ended, in seconds since the Unix epoch; 0 before the first."}),
		corrupt: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "corruptions_total", Help: "Reads and partitions that failed because bytes on disk are damaged or missing."}),
		diskFree: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "disk_free_bytes", Help: "Bytes that are free on the disk of the store."}),
		minFree: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "disk_min_free_bytes", Help: "Bytes that are kept free on the disk: records are refused below."}),
		ballast: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "disk_ballast_bytes", Help: "Bytes held back for a full disk; 0 once they were given up."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "disk_full_refusals_total", Help: "Appends that were refused because the disk is nearly full."}),
		shortened: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "partitions_shortened_total", Help: "Partitions that are not synced and lost their last records when the machine crashed."}),
		hanging: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "commits_stalled", Help: "Whether a commit hangs because the disk does not answer: 1, else 0."}, sets),
		stalled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "commit_stall_seconds_total", Help: "Seconds that commits took which hung."}, sets),
		cleanings:       counter("cleanings_total", "Runs in which volumes were emptied by copying what is still needed."),
		cleanedBytes:    counter("cleaned_bytes_total", "Bytes of batches copied to empty volumes."),
		cleaningSeconds: counter("cleaning_seconds_total", "Seconds spent emptying and removing volumes."),
		removedVolumes:  counter("volumes_removed_total", "Volumes removed from the disk."),
		registerer:      registerer,
	}
	if registerer == nil {
		return m, nil
	}
	for i, c := range m.collectors() {
		if err := registerer.Register(c); err != nil {
			for _, registered := range m.collectors()[:i] {
				registerer.Unregister(registered)
			}
			return nil, err
		}
	}
	return m, nil
}

// setMetrics are those of one set.
type setMetrics struct {
	groupBytes, groupAppends, commit prometheus.Observer
	queue                            prometheus.Gauge
	rolls                            prometheus.Counter
	hanging                          prometheus.Gauge
	stalled                          prometheus.Counter
}

func (m *metrics) of(name Set) setMetrics {
	label := string(name)
	return setMetrics{
		groupBytes:   m.groupBytes.WithLabelValues(label),
		groupAppends: m.groupAppends.WithLabelValues(label),
		commit:       m.commit.WithLabelValues(label),
		queue:        m.queue.WithLabelValues(label),
		rolls:        m.rolls.WithLabelValues(label),
		hanging:      m.hanging.WithLabelValues(label),
		stalled:      m.stalled.WithLabelValues(label),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.groupBytes, m.groupAppends, m.commit, m.queue, m.rolls, m.opened, m.open, m.readBytes, m.readahead, m.corrupt,
		m.condemned, m.failed, m.scrubbed, m.scrubTook, m.scrubEnded,
		m.diskFree, m.minFree, m.ballast, m.refused, m.shortened, m.hanging, m.stalled,
		m.cleanings, m.cleanedBytes, m.cleaningSeconds, m.removedVolumes}
}

// watch tells how much of some volumes is needed.
func (m *metrics) watch(r *volumes) error {
	if m.registerer == nil {
		return nil
	}
	space := newSpaceCollector(r)
	if err := m.registerer.Register(space); err != nil {
		return err
	}
	m.late = append(m.late, space)
	return nil
}

// unregister makes room for the metrics of the store that is opened next.
func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range append(m.collectors(), m.late...) {
		m.registerer.Unregister(c)
	}
}
