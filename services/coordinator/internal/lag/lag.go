// Package lag shows how far consumer groups are behind, as a metric, without any
// client's help.
package lag

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnel-mesh/runnel/services/coordinator/internal/offsets"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// Config bounds the collector.
type Config struct {
	// Interval is how often it measures; above 0.
	Interval time.Duration
	// Series is how many partitions of groups it shows at most.
	Series int
}

// Offsets returns committed offsets, at most limit, and how many there are.
type Offsets func(ctx context.Context, limit int) (records []*rules.OffsetRecord, total int)

// Ends returns the ends of n partitions, which partition names.
type Ends func(ctx context.Context, n int, partition func(i int) (topic string, index int32)) []offsets.Ends

// Collector measures, and is what a registry asks.
type Collector struct {
	config  Config
	offsets Offsets
	ends    Ends

	lag, omitted *prometheus.Desc
	latest       atomic.Pointer[measurement]
}

type measurement struct {
	lags    []series
	omitted int
}

type series struct {
	group, topic, partition string
	lag                     int64
}

var _ prometheus.Collector = (*Collector)(nil)

// New returns a collector that has measured nothing yet.
func New(config Config, committed Offsets, ends Ends) *Collector {
	return &Collector{
		config: config, offsets: committed, ends: ends,
		lag: prometheus.NewDesc("runnel_group_lag",
			"Records that a consumer group has yet to read of a partition, by its committed offset.", []string{"group", "topic", "partition"}, nil),
		omitted: prometheus.NewDesc("runnel_group_lag_omitted_series",
			"Committed offsets whose lag is not shown, since there are more than the limit of this node.", nil, nil),
	}
}

// Run measures until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	ticker := time.NewTicker(c.config.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		// Before the next one is due, so that one that hangs delays none.
		measuring, cancel := context.WithTimeout(ctx, c.config.Interval)
		c.measure(measuring)
		cancel()
	}
}

// measure asks for the ends of all partitions that have committed offsets, each once.
func (c *Collector) measure(ctx context.Context) {
	records, total := c.offsets(ctx, c.config.Series)
	slices.SortFunc(records, func(a, b *rules.OffsetRecord) int {
		return cmp.Or(strings.Compare(string(a.Group), string(b.Group)), strings.Compare(a.TopicName, b.TopicName), cmp.Compare(a.Index, b.Index))
	})
	type partition struct {
		topic string
		index int32
	}
	var asked []partition
	at := make(map[partition]int)
	for _, r := range records {
		p := partition{r.TopicName, r.Index}
		if _, known := at[p]; !known {
			at[p], asked = len(asked), append(asked, p)
		}
	}
	ends := c.ends(ctx, len(asked), func(i int) (string, int32) { return asked[i].topic, asked[i].index })
	m := &measurement{omitted: total - len(records)}
	for i, r := range records {
		end := ends[at[partition{r.TopicName, r.Index}]]
		if end.Err != nil {
			continue
		}
		// The same topic may have been deleted and created again, each with an offset.
		if i > 0 && records[i-1].Group == r.Group && records[i-1].TopicName == r.TopicName && records[i-1].Index == r.Index {
			continue
		}
		m.lags = append(m.lags, series{string(r.Group), r.TopicName, strconv.Itoa(int(r.Index)), end.Lag(r.Offset)})
	}
	c.latest.Store(m)
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.lag
	descs <- c.omitted
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	m := c.latest.Load()
	if m == nil {
		m = &measurement{}
	}
	for _, s := range m.lags {
		metrics <- prometheus.MustNewConstMetric(c.lag, prometheus.GaugeValue, float64(s.lag), s.group, s.topic, s.partition)
	}
	metrics <- prometheus.MustNewConstMetric(c.omitted, prometheus.GaugeValue, float64(m.omitted))
}
