package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"
)

// histogram counts durations, each to 1 % exact.
type histogram struct {
	counts [2400]int64
	total  int64
	max    time.Duration
}

const histogramStep = 1.01

func (h *histogram) add(d time.Duration) {
	i := 0
	if us := float64(d) / float64(time.Microsecond); us > 1 {
		i = min(int(math.Log(us)/math.Log(histogramStep)), len(h.counts)-1)
	}
	h.counts[i]++
	h.total++
	h.max = max(h.max, d)
}

// quantile returns the duration in milliseconds that a share of the counted ones
// does not exceed.
func (h *histogram) quantile(share float64) float64 {
	left := int64(math.Ceil(share * float64(h.total)))
	for i, n := range h.counts {
		if left -= n; left <= 0 && n > 0 {
			return min(math.Pow(histogramStep, float64(i+1))/1e3, milliseconds(h.max))
		}
	}
	return 0
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// meter measures a run.
type meter struct {
	settings settings
	out      io.Writer
	start    time.Time
	cpu      time.Duration

	mu sync.Mutex
	// second and all count the acknowledgements of the second at hand and of the
	// run.
	second, all         histogram
	sentBytes, ackBytes int64
	totalSent, totalAck int64
	failures            int64
	failure             error
	lastAck             time.Time
	pause, longest      time.Duration
	stalls              int
	maxDisk, excess     int64
	// excessSeen says that excess was measured.
	excessSeen bool
}

func newMeter(s settings, out io.Writer) *meter { return &meter{settings: s, out: out} }

// measure runs something that is to end with its context, which ends after as many
// seconds as are set.
func (m *meter) measure(ctx context.Context, run func(context.Context) error) error {
	m.start = time.Now()
	m.lastAck, m.cpu = m.start, processorTime(m.settings.pid)
	ctx, cancel := context.WithTimeout(ctx, time.Duration(m.settings.seconds)*time.Second)
	defer cancel()
	reports := make(chan struct{}) // Closed by the reporter.
	go func() {
		defer close(reports)
		m.report(ctx)
	}()
	err := run(ctx)
	cancel()
	<-reports
	return err
}

func (m *meter) sent(bytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sentBytes += int64(bytes)
	m.totalSent += int64(bytes)
}

func (m *meter) acked(due time.Time, bytes int, err error) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.failures++
		m.failure = err
		return
	}
	m.second.add(now.Sub(due))
	m.all.add(now.Sub(due))
	m.pause = max(m.pause, now.Sub(m.lastAck))
	m.lastAck = now
	m.ackBytes += int64(bytes)
	m.totalAck += int64(bytes)
}

// report looks once a second until ctx ends.
func (m *meter) report(ctx context.Context) {
	fmt.Fprintln(m.out, "second,sent_mb,acked_mb,p50_ms,p99_ms,p99.99_ms,max_ms,pause_ms,disk_mib,live_mib,what")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	before := observe(m.settings)
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := observe(m.settings)
		what := now.since(before)
		before = now

		m.mu.Lock()
		h := m.second
		m.second = histogram{}
		sent, acked := m.sentBytes, m.ackBytes
		m.sentBytes, m.ackBytes = 0, 0
		// A pause that goes on counts as far as it has come.
		pause := max(m.pause, time.Since(m.lastAck))
		m.pause = 0
		m.longest = max(m.longest, pause)
		if h.max > m.settings.stall {
			m.stalls++
		}
		if m.settings.data != "" {
			m.maxDisk = max(m.maxDisk, now.disk)
			if now.live > 0 {
				if over := now.disk - 2*now.live; !m.excessSeen || over > m.excess {
					m.excess, m.excessSeen = over, true
				}
			}
		}
		m.mu.Unlock()

		if h.max > m.settings.stall {
			fmt.Printf("second %d: up to %.0f ms, no acknowledgement for %.0f ms; %s\n", n, milliseconds(h.max), milliseconds(pause), strings.Join(what, ", "))
		}
		fmt.Fprintf(m.out, "%d,%.1f,%.1f,%.2f,%.2f,%.2f,%.2f,%.2f,%d,%d,%s\n", n, float64(sent)/1e6, float64(acked)/1e6,
			h.quantile(0.5), h.quantile(0.99), h.quantile(0.9999), milliseconds(h.max), milliseconds(pause), now.disk>>20, now.live>>20, strings.Join(what, "; "))
	}
}

// summary prints one "name value" per line.
func (m *meter) summary() {
	elapsed := time.Since(m.start)
	m.mu.Lock()
	defer m.mu.Unlock()
	line := func(name, format string, value any) { fmt.Printf("%s "+format+"\n", name, value) }
	line("sent_mb_per_s", "%.1f", float64(m.totalSent)/1e6/elapsed.Seconds())
	line("acked_mb_per_s", "%.1f", float64(m.totalAck)/1e6/elapsed.Seconds())
	line("p50_ms", "%.2f", m.all.quantile(0.5))
	line("p99_ms", "%.2f", m.all.quantile(0.99))
	line("p9999_ms", "%.2f", m.all.quantile(0.9999))
	line("max_ms", "%.1f", milliseconds(m.all.max))
	line("pause_ms", "%.1f", milliseconds(m.longest))
	line("stalled_seconds", "%d", m.stalls)
	line("failures", "%d", m.failures)
	if m.failure != nil {
		fmt.Printf("# the last failure: %v\n", m.failure)
	}
	if m.settings.pid != 0 {
		line("server_cpu_percent", "%.1f", (processorTime(m.settings.pid)-m.cpu).Seconds()/elapsed.Seconds()*100)
	}
	if m.settings.data != "" {
		line("max_disk_mib", "%d", m.maxDisk>>20)
		if m.excessSeen {
			line("over_twice_live_mib", "%d", m.excess>>20)
		}
	}
}
