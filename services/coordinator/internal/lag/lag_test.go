package lag

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnel-mesh/runnel/services/coordinator/internal/offsets"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

func TestLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := []*rules.OffsetRecord{
			record("g", "orders", 0, 7), record("g", "orders", 1, 1), record("h", "orders", 0, 10),
			record("h", "broken", 0, 1), record("i", "orders", 0, 3),
		}
		var asked []string
		c := New(Config{Interval: 15 * time.Second, Series: 4}, func(_ context.Context, limit int) ([]*rules.OffsetRecord, int) {
			return all[:min(limit, len(all))], len(all)
		}, func(_ context.Context, n int, partition func(int) (string, int32)) []offsets.Ends {
			out := make([]offsets.Ends, n)
			asked = nil
			for i := range n {
				topic, index := partition(i)
				asked = append(asked, fmt.Sprint(topic, "/", index))
				out[i] = offsets.Ends{Start: 5, End: 10}
				if topic == "broken" {
					out[i].Err = errors.New("no leader")
				}
			}
			return out
		})
		if got := shown(t, c); got != "runnel_group_lag_omitted_series 0" {
			t.Errorf("before the first measurement: %s", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		time.Sleep(16 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		want := "runnel_group_lag g orders 0 3, runnel_group_lag g orders 1 5, runnel_group_lag h orders 0 0, runnel_group_lag_omitted_series 1"
		if got := shown(t, c); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if len(asked) != 3 {
			t.Errorf("asked for %v, want each partition once", asked)
		}
	})
}

func record(group, topic string, index int32, offset int64) *rules.OffsetRecord {
	return &rules.OffsetRecord{Group: rules.GroupID(group), TopicName: topic, Partition: rules.Partition{Index: index}, Offset: offset}
}

// shown returns what the metrics of a collector say.
func shown(t *testing.T, c *Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, family := range families {
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			words := []string{family.GetName(), labels["group"], labels["topic"], labels["partition"], fmt.Sprint(m.GetGauge().GetValue())}
			out = append(out, strings.Join(strings.Fields(strings.Join(words, " ")), " "))
		}
	}
	return strings.Join(out, ", ")
}
