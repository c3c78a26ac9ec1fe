package store

import (
	"slices"
	"testing"
)

// TestSwitchNoticesTruncation truncates a log and writes it anew between a copy
// and the switch to it: in the volume that takes appends the span then looks like
// the one that was copied, but longer.
func TestSwitchNoticesTruncation(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	want := []Batch{one(t, l, SetSynced, 0, 5, 100)}
	one(t, l, SetSynced, 5, 5, 100)
	l.mu.Lock()
	// Nothing needs to lie in the volume that the copies are said to be in.
	c := &copied{log: l, cuts: l.cuts, from: slices.Clone(l.durable.spans), to: []span{{volume: 999, first: 0, end: 10, bytes: 1}}}
	l.mu.Unlock()
	if _, err := l.Truncate(t.Context(), 5, State{LogEnd: 5, Epochs: epochZero}); err != nil {
		t.Fatal(err)
	}
	want = append(want, one(t, l, SetSynced, 5, 3, 100), one(t, l, SetSynced, 8, 7, 100))
	if switched, err := l.switchSpans(t.Context(), c, nil); err != nil || switched {
		t.Errorf("switched: %t, %v", switched, err)
	}
	if err := sameBatches(readAll(t, l, 0, 15, 1<<20), want); err != nil {
		t.Error(err)
	}
}
