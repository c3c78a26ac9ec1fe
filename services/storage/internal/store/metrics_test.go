package store

import (
	"reflect"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestMetricsAreRegistered: a metric that is kept is also shown, and goes when
// the store is closed.
func TestMetricsAreRegistered(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	m, err := newMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	collectors := m.collectors()
	kept := reflect.ValueOf(m).Elem()
	fields := 0
	for i := range kept.NumField() {
		field := kept.Type().Field(i)
		value := kept.Field(i)
		if !field.Type.Implements(reflect.TypeFor[prometheus.Collector]()) {
			continue
		}
		fields++
		if value.IsNil() {
			t.Errorf("%s is not made", field.Name)
			continue
		}
		if value.Kind() == reflect.Interface {
			value = value.Elem()
		}
		if !slices.ContainsFunc(collectors, func(c prometheus.Collector) bool { return reflect.ValueOf(c).Pointer() == value.Pointer() }) {
			t.Errorf("%s is not registered", field.Name)
		}
	}
	if fields == 0 {
		t.Error("no metric was found")
	}
	m.unregister()
	if _, err := newMetrics(registry); err != nil {
		t.Errorf("the store that is opened next: %v", err)
	}
}
