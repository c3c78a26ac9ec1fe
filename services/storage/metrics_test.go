package storage

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// described is the name and the help text of a metric.
var described = regexp.MustCompile(`^Desc\{fqName: "([^"]*)", help: "((?:[^"\\]|\\.)*)"`)

// metricsOf returns the help texts of all metrics of a registry by their names,
// of those too that have no value yet.
func metricsOf(t *testing.T, registry *prometheus.Registry) map[string]string {
	t.Helper()
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		registry.Describe(descs)
	}()
	found := make(map[string]string)
	for d := range descs {
		m := described.FindStringSubmatch(d.String())
		if m == nil {
			t.Errorf("a metric that cannot be read: %s", d)
			continue
		}
		found[m[1]] = m[2]
	}
	return found
}

// TestMetrics: whatever the node measures bears its name, and says in which unit
// and of what.
func TestMetrics(t *testing.T) {
	t.Parallel()
	r := run(t, newMetadata(t))
	r.ready()
	if _, err := r.append(); err != nil {
		t.Fatal(err)
	}
	found := metricsOf(t, r.service.tel.Registry)
	for name, help := range found {
		if !strings.HasPrefix(name, "runnel_storage_") {
			t.Errorf("%s does not begin with runnel_storage_", name)
		}
		if !regexp.MustCompile(`^[A-Z0-9].{12,}\.$`).MatchString(help) {
			t.Errorf("%s: help text %q is no sentence", name, help)
		}
		for _, unit := range []string{"bytes", "seconds"} {
			if strings.Contains(name, "_"+unit) && !strings.Contains(strings.ToLower(help), unit) {
				t.Errorf("%s: help text %q does not name its unit, %s", name, help, unit)
			}
		}
	}
	// One of each package that measures something: they are all registered.
	for _, name := range []string{"commit_seconds", "append_bytes_total", "produce_streams", "cluster_version", "partitions_under_replicated"} {
		if _, there := found["runnel_storage_"+name]; !there {
			t.Errorf("runnel_storage_%s is not registered, only %d others", name, len(found))
		}
	}
	families, err := r.service.tel.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	// What comes with the store goes with it.
	r.cancel()
	if err := r.ends(); err != nil {
		t.Fatal(err)
	}
	var left []string
	for name := range metricsOf(t, r.service.tel.Registry) {
		if strings.HasPrefix(name, "runnel_storage_commit") || strings.HasPrefix(name, "runnel_storage_volume") {
			left = append(left, name)
		}
	}
	if slices.Sort(left); len(left) > 0 {
		t.Errorf("still registered when the store is closed: %v", left)
	}
}

// TestOperationsNameMetrics: what operators are told to watch is there.
func TestOperationsNameMetrics(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../deploy/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, newMetadata(t))
	r.ready()
	found := metricsOf(t, r.service.tel.Registry)
	named := regexp.MustCompile(`\brunnel_storage_[a-z_]+`).FindAllString(string(page), -1)
	if len(named) == 0 {
		t.Error("the page names no metric")
	}
	for _, name := range named {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, suffix)
		}
		if _, there := found[base]; !there {
			t.Errorf("there is no metric %s", name)
		}
	}
}
