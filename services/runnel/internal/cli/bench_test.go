package cli

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

func TestBenchmarks(t *testing.T) {
	topic := topicName(t)
	common := []string{"--topic", topic, "--records", "500", "--record-size", "64", "--partitions", "2", "--acks", "leader", "--compression", "lz4", "--linger", "1ms", "--batch-bytes", "4096"}
	for _, test := range []struct {
		args      []string
		records   int64
		latencies bool
	}{
		{[]string{"consume"}, 500, false},
		{[]string{"produce"}, 500, true},
		{[]string{"produce", "--rate", "5000"}, 500, true},
		{[]string{"consume", "--records", "1200"}, 1200, false},
		{[]string{"consume", "--records", "99999"}, 1500, false},
		{[]string{"latency", "--records", "50"}, 50, true},
		{[]string{"latency", "--rate", "5000"}, 500, true},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			args := append([]string{"bench", test.args[0]}, append(common, test.args[1:]...)...)
			got := succeed(t, "", append(args, "-o", "json")...)
			var report benchReport
			if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
				t.Fatal(err)
			}
			if report.Benchmark != test.args[0] || report.Topic != topic || report.Records != test.records || report.Failed != 0 ||
				report.Bytes != 64*test.records || report.Seconds <= 0 || report.RecordsPerSecond <= 0 {
				t.Errorf("reported %+v", report)
			}
			if l := report.LatencyMS; (l != nil) != test.latencies || l != nil && !(0 < l.P50 && l.P50 <= l.P99 && l.P99 <= l.P999 && l.P999 <= l.Max) {
				t.Errorf("latencies are %+v", l)
			}
		})
	}
	if got := succeed(t, "", "bench", "produce", "--topic", topic, "--records", "10"); !regexp.MustCompile(
		`^RECORDS +FAILED +SECONDS +RECORDS/S +MB/S +AVG MS +P50 MS +P95 MS +P99 MS +P99.9 MS +MAX MS\n10 +0 +[\d.]+ +\d+ +[\d.]+( +[\d.]+){6}\n$`).MatchString(got.stdout) {
		t.Errorf("the table is\n%s", got.stdout)
	}
}
