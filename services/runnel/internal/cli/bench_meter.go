package cli

import (
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latencies are recorded in microseconds, up to ten minutes, to three digits.
const (
	minLatencyMicros = 1
	maxLatencyMicros = int64(10 * time.Minute / time.Microsecond)
	latencyDigits    = 3
)

// meterWindow is how often a running benchmark tells how it does.
const meterWindow = 5 * time.Second

// meter counts what a benchmark has done. It may be used concurrently.
type meter struct {
	mu        sync.Mutex
	start     time.Time
	last      time.Time
	records   int64
	bytes     int64
	failed    int64
	latencies *hdrhistogram.Histogram
	window    window
}

// window is what happened since the last interim report.
type window struct {
	start   time.Time
	records int64
	bytes   int64
	sum     time.Duration
	max     time.Duration
}

func newMeter(start time.Time) *meter {
	return &meter{
		start:     start,
		last:      start,
		latencies: hdrhistogram.New(minLatencyMicros, maxLatencyMicros, latencyDigits),
		window:    window{start: start},
	}
}

// done counts a record that took from began to now.
func (m *meter) done(bytes int, began, now time.Time) {
	latency := max(now.Sub(began), 0)
	micros := min(max(latency.Microseconds(), minLatencyMicros), maxLatencyMicros)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count(1, int64(bytes), now)
	_ = m.latencies.RecordValue(micros) // in range
	m.window.sum += latency
	m.window.max = max(m.window.max, latency)
}

// received counts records without a latency of their own.
func (m *meter) received(records, bytes int64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count(records, bytes, now)
}

func (m *meter) count(records, bytes int64, now time.Time) {
	m.records += records
	m.bytes += bytes
	m.window.records += records
	m.window.bytes += bytes
	if now.After(m.last) {
		m.last = now
	}
}

func (m *meter) fail() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed++
}

// interim returns what happened since it was last called, as a line for
// people, and begins the next window. Where nothing happened the line says why, if
// that is known; why may be nil.
func (m *meter) interim(verb string, now time.Time, why func() error) string {
	m.mu.Lock()
	w := m.window
	m.window = window{start: now}
	m.mu.Unlock()

	seconds := now.Sub(w.start).Seconds()
	line := fmt.Sprintf("%d records %s, %.1f records/s (%.2f MB/s)", w.records, verb, per(float64(w.records), seconds), per(float64(w.bytes)/1e6, seconds))
	if w.sum > 0 {
		line += fmt.Sprintf(", %.2f ms avg latency, %.2f ms max latency",
			milliseconds(w.sum)/float64(w.records), milliseconds(w.max))
	}
	if w.records == 0 && why != nil {
		if err := why(); err != nil {
			line += ": " + sentence(err)
		}
	}
	return line
}

// benchReport is the outcome of a benchmark, as -o json prints it.
type benchReport struct {
	Benchmark          string         `json:"benchmark"`
	Topic              string         `json:"topic"`
	Records            int64          `json:"records"`
	Failed             int64          `json:"failed"`
	Bytes              int64          `json:"bytes"`
	Seconds            float64        `json:"seconds"`
	RecordsPerSecond   float64        `json:"records_per_second"`
	MegabytesPerSecond float64        `json:"megabytes_per_second"`
	LatencyMS          *latencyReport `json:"latency_ms,omitempty"`
}

// latencyReport is in milliseconds.
type latencyReport struct {
	Avg  float64 `json:"avg"`
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99_9"`
	Max  float64 `json:"max"`
}

// report sums up. The time runs from the start to the last record.
func (m *meter) report(benchmark, topic string) benchReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	seconds := m.last.Sub(m.start).Seconds()
	r := benchReport{
		Benchmark:          benchmark,
		Topic:              topic,
		Records:            m.records,
		Failed:             m.failed,
		Bytes:              m.bytes,
		Seconds:            seconds,
		RecordsPerSecond:   per(float64(m.records), seconds),
		MegabytesPerSecond: per(float64(m.bytes)/1e6, seconds),
	}
	if m.latencies.TotalCount() > 0 {
		at := func(percentile float64) float64 { return float64(m.latencies.ValueAtPercentile(percentile)) / 1000 }
		r.LatencyMS = &latencyReport{
			Avg: m.latencies.Mean() / 1000, P50: at(50), P95: at(95), P99: at(99), P999: at(99.9),
			Max: float64(m.latencies.Max()) / 1000,
		}
	}
	return r
}

// table returns the report for people.
func (r benchReport) table() *table {
	header := []string{"RECORDS", "FAILED", "SECONDS", "RECORDS/S", "MB/S"}
	cells := []any{
		r.Records, r.Failed, fmt.Sprintf("%.3f", r.Seconds),
		fmt.Sprintf("%.0f", r.RecordsPerSecond), fmt.Sprintf("%.2f", r.MegabytesPerSecond),
	}
	if l := r.LatencyMS; l != nil {
		header = append(header, "AVG MS", "P50 MS", "P95 MS", "P99 MS", "P99.9 MS", "MAX MS")
		for _, ms := range []float64{l.Avg, l.P50, l.P95, l.P99, l.P999, l.Max} {
			cells = append(cells, fmt.Sprintf("%.3f", ms))
		}
	}
	t := newTable(header...)
	t.row(cells...)
	return t
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func per(amount, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return amount / seconds
}
