package contract

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// outcome is what a producer was told of a record.
type outcome int8

const (
	// untold: nothing was heard, or that it may have been written.
	untold outcome = iota
	// acknowledged: it stands at an offset.
	acknowledged
	// refusedForGood: it was not written and never will be.
	refusedForGood
)

// sending is a record that a producer has sent. Values are never sent twice.
type sending struct {
	value   string
	outcome outcome
	offset  int64
	// sent and told are when it was sent and when its outcome came.
	sent, told time.Time
}

// reading is a record that a consumer was given.
type reading struct {
	offset int64
	value  string
}

// history is what the clients of one partition have seen: one producer that keeps
// the order of its records, a consumer that has followed from the beginning, and one
// that has read all of it at the end.
type history struct {
	mu       sync.Mutex
	sendings []*sending
	followed []reading
	final    []reading
}

// check returns what of it cannot be, whatever crashed meanwhile (the numbers are
// those of the invariants that clients can see: no acknowledged record is lost or
// moved, none is there twice or out of order, none that was refused is there, and
// what was read once stays).
func (h *history) check() (anomalies []string) {
	report := func(format string, args ...any) { anomalies = append(anomalies, fmt.Sprintf(format, args...)) }
	place := make(map[string]int64, len(h.final))
	for i, r := range h.final {
		if r.offset != int64(i) {
			report("gap: the record after offset %d has offset %d", i-1, r.offset)
			break
		}
		if before, twice := place[r.value]; twice {
			report("duplicate: %q is at offsets %d and %d", r.value, before, r.offset)
		}
		place[r.value] = r.offset
	}
	order := int64(-1)
	known := make(map[string]bool, len(h.sendings))
	for _, s := range h.sendings {
		known[s.value] = true
		at, found := place[s.value]
		switch {
		case s.outcome == acknowledged && !found:
			report("lost: %q was acknowledged at offset %d and is not there", s.value, s.offset)
		case s.outcome == acknowledged && at != s.offset:
			report("moved: %q was acknowledged at offset %d and is at %d", s.value, s.offset, at)
		case s.outcome == refusedForGood && found:
			report("undead: %q was refused and is at offset %d", s.value, at)
		}
		if found {
			if at <= order {
				report("disorder: %q is at offset %d, though one sent before it is at %d", s.value, at, order)
			}
			order = max(order, at)
		}
	}
	for _, value := range slices.Sorted(maps.Keys(place)) {
		if !known[value] {
			report("foreign: %q at offset %d was never sent", value, place[value])
		}
	}
	for i, r := range h.followed {
		switch {
		case r.offset != int64(i):
			report("skip: the consumer was given offset %d after %d", r.offset, i-1)
			return anomalies
		case i >= len(h.final):
			report("vanished: the consumer was given %q at offset %d, and the log ends at %d", r.value, r.offset, len(h.final))
			return anomalies
		case h.final[i].value != r.value:
			report("changed: the consumer was given %q at offset %d, where %q is now", r.value, r.offset, h.final[i].value)
		}
	}
	if len(h.followed) < len(h.final) {
		report("unseen: the consumer was given %d of %d records", len(h.followed), len(h.final))
	}
	return anomalies
}

// pause returns the longest time between two acknowledgements that touches a span.
func (h *history) pause(from, to time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	var times []time.Time
	for _, s := range h.sendings {
		if s.outcome == acknowledged {
			times = append(times, s.told)
		}
	}
	return longestGap(times, from, to)
}

// longestGap returns the longest time between two neighbouring times that touches a
// span.
func longestGap(times []time.Time, from, to time.Time) (longest time.Duration) {
	slices.SortFunc(times, time.Time.Compare)
	for i := 1; i < len(times); i++ {
		if times[i].After(from) && times[i-1].Before(to) {
			longest = max(longest, times[i].Sub(times[i-1]))
		}
	}
	return longest
}

// firstSentAfter returns when the first record that was sent after a time was
// acknowledged.
func (h *history) firstSentAfter(at time.Time) (told time.Time, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sendings {
		if s.sent.After(at) && s.outcome == acknowledged && (!ok || s.told.Before(told)) {
			told, ok = s.told, true
		}
	}
	return told, ok
}

// TestHistory plants each anomaly: a checker that sees none would pass everything.
func TestHistory(t *testing.T) {
	sent := func(outcomes ...any) (all []*sending) {
		for i := 0; i < len(outcomes); i += 2 {
			s := &sending{value: outcomes[i].(string)}
			switch o := outcomes[i+1].(type) {
			case int:
				s.outcome, s.offset = acknowledged, int64(o)
			case outcome:
				s.outcome = o
			}
			all = append(all, s)
		}
		return all
	}
	read := func(values ...string) (all []reading) {
		for i, v := range values {
			all = append(all, reading{int64(i), v})
		}
		return all
	}
	for _, test := range []struct {
		want string
		h    *history
	}{
		{"", &history{sendings: sent("a", 0, "b", untold, "c", 2, "d", untold, "e", refusedForGood), followed: read("a", "b", "c"), final: read("a", "b", "c")}},
		{"lost", &history{sendings: sent("a", 0, "b", 1), followed: read("a"), final: read("a")}},
		{"moved", &history{sendings: sent("a", 0, "b", 2, "c", untold), followed: read("a", "b", "c"), final: read("a", "b", "c")}},
		{"duplicate", &history{sendings: sent("a", 0, "b", 1), followed: read("a", "b", "a"), final: read("a", "b", "a")}},
		{"disorder", &history{sendings: sent("a", 1, "b", 0), followed: read("b", "a"), final: read("b", "a")}},
		{"undead", &history{sendings: sent("a", 0, "b", refusedForGood), followed: read("a", "b"), final: read("a", "b")}},
		{"foreign", &history{sendings: sent("a", 0), followed: read("a", "x"), final: read("a", "x")}},
		{"gap", &history{sendings: sent("a", 0), followed: read("a"), final: []reading{{0, "a"}, {2, "b"}}}},
		{"skip", &history{sendings: sent("a", 0, "b", 1), followed: []reading{{1, "b"}}, final: read("a", "b")}},
		{"vanished", &history{sendings: sent("a", 0, "b", untold), followed: read("a", "b"), final: read("a")}},
		{"changed", &history{sendings: sent("a", 0, "b", untold, "c", untold), followed: read("a", "b"), final: read("a", "c")}},
		{"unseen", &history{sendings: sent("a", 0, "b", 1), followed: read("a"), final: read("a", "b")}},
	} {
		got := test.h.check()
		if test.want == "" && len(got) > 0 || test.want != "" && !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, test.want+":") }) {
			t.Errorf("%q planted, found %q", test.want, got)
		}
	}
}
