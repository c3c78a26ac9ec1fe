package replication

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// Metrics are those of replication.
type Metrics struct {
	served, followed              prometheus.Gauge
	responses                     prometheus.Counter
	bytesOut                      prometheus.Counter
	divergences, restarts, resent prometheus.Counter
	shrinks, expansions           prometheus.Counter
	proposals                     prometheus.Gauge
	lag                           *lagCollector
}

// NewMetrics returns the metrics; registerer may be nil. underReplicated counts the
// partitions that this node leads and whose ISR is smaller than their replicas.
func NewMetrics(registerer prometheus.Registerer, underReplicated func() int) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "runnel_storage_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "runnel_storage_" + name, Help: help})
	}
	m := &Metrics{
		served:      gauge("replicate_streams_served", "Replicate streams of followers being served."),
		followed:    gauge("replicate_streams_followed", "Replicate streams to leaders that stand."),
		responses:   counter("replicate_responses_total", "Responses sent to followers."),
		bytesOut:    counter("replicate_sent_bytes_total", "Bytes of record batches sent to followers."),
		divergences: counter("follower_divergences_total", "Positions of followers whose log had parted from that of this leader."),
		restarts:    counter("follower_restarts_total", "Positions of followers from which this leader could not go on, so that they began anew."),
		resent:      counter("replica_resends_total", "Positions from which this follower asked to be sent again what it had not taken."),
		shrinks:     counter("isr_shrinks_total", "ISR changes that took replicas out of partitions that this node leads."),
		expansions:  counter("isr_expansions_total", "ISR changes that added replicas to partitions that this node leads."),
		proposals:   gauge("isr_proposals_waiting", "ISR changes that were proposed and not answered yet."),
		lag:         &lagCollector{},
	}
	if registerer != nil {
		registerer.MustRegister(m.served, m.followed, m.responses, m.bytesOut, m.divergences, m.restarts, m.resent,
			m.shrinks, m.expansions, m.proposals, m.lag,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "runnel_storage_partitions_under_replicated", Help: "Partitions that this node leads with fewer in-sync replicas than replicas.",
			}, func() float64 { return float64(underReplicated()) }))
	}
	return m
}

// lagCollector asks for the lag of the followers when it is collected.
type lagCollector struct {
	mu  sync.Mutex
	lag func() map[cluster.NodeID]int64
}

var lagDesc = prometheus.NewDesc("runnel_storage_follower_lag_messages",
	"Messages of the partitions that this node leads that a follower has not acknowledged.", []string{"follower"}, nil)

func (c *lagCollector) set(lag func() map[cluster.NodeID]int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lag = lag
}

// Describe implements prometheus.Collector.
func (c *lagCollector) Describe(out chan<- *prometheus.Desc) { out <- lagDesc }

// Collect implements prometheus.Collector.
func (c *lagCollector) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	lag := c.lag
	c.mu.Unlock()
	if lag == nil {
		return
	}
	for node, messages := range lag() {
		out <- prometheus.MustNewConstMetric(lagDesc, prometheus.GaugeValue, float64(messages), strconv.Itoa(int(node)))
	}
}
