package contract

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// shared is what the clients of one partition have seen that a group reads: one
// producer, and members that process records at least once and commit what they have
// processed. The mutex of history guards it all.
type shared struct {
	history
	tenures []*tenure
	commits []committed
	// first is when each offset was processed first.
	first map[int64]time.Time
}

// tenure is the partition in the hands of a member: from its Assigned callback to the
// end of its Revoked or Lost callback, or of its process.
type tenure struct {
	member   string
	from, to time.Time
	// ended is how; empty while it lasts.
	ended string
	// begin is the first offset that was processed, -1 for none; what was processed is
	// gapless.
	begin  int64
	values []string
}

// whose says who has or had it.
func (o *tenure) whose() string {
	if o == nil {
		return "nobody"
	}
	return fmt.Sprintf("%s (%s)", o.member, cmp.Or(o.ended, "still"))
}

// committed is an offset that stood at some time between two: it was acknowledged to a
// member, or answered to somebody who asked.
type committed struct {
	offset      int64
	asked, told time.Time
	by          string
}

// assign begins a tenure.
func (h *shared) assign(member string, at time.Time) *tenure {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := &tenure{member: member, from: at, begin: -1}
	h.tenures = append(h.tenures, o)
	return o
}

// end ends a tenure, if that has not ended.
func (h *shared) end(o *tenure, how string, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o != nil && o.ended == "" {
		o.to, o.ended = at, how
	}
}

// process adds records to a tenure, and says what is wrong with that.
func (h *shared) process(o *tenure, offset int64, values []string, at time.Time) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o == nil || o.ended != "" {
		return fmt.Sprintf("offset %d is processed by a member that has not been assigned the partition", offset)
	}
	if o.begin < 0 {
		o.begin = offset
	} else if want := o.begin + int64(len(o.values)); offset != want {
		return fmt.Sprintf("%s processes offset %d where %d is due", o.member, offset, want)
	}
	o.values = append(o.values, values...)
	if h.first == nil {
		h.first = make(map[int64]time.Time)
	}
	for i := range values {
		if _, again := h.first[offset+int64(i)]; !again {
			h.first[offset+int64(i)] = at
		}
	}
	return ""
}

func (h *shared) commit(c committed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commits = append(h.commits, c)
}

// held returns the tenure that lasts.
func (h *shared) held() (o *tenure, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.tenures {
		if o.ended == "" {
			return o, true
		}
	}
	return nil, false
}

// beyond returns when the first record that was sent after a time was processed, and
// when its offset was known to be committed, or what is wanting for that.
func (h *shared) beyond(began time.Time) (processed, told time.Time, wanting string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	offset := int64(-1)
	for _, s := range h.sendings {
		if s.sent.After(began) && s.outcome == acknowledged && (offset < 0 || s.offset < offset) {
			offset = s.offset
		}
	}
	processed, ok := h.first[offset]
	switch {
	case offset < 0:
		return processed, told, "none is acknowledged"
	case !ok:
		return processed, told, fmt.Sprintf("offset %d is not processed", offset)
	}
	for _, c := range h.commits {
		if c.offset > offset && (told.IsZero() || c.told.Before(told)) {
			told = c.told
		}
	}
	if told.IsZero() {
		return processed, told, fmt.Sprintf("offset %d is not committed", offset)
	}
	return processed, told, ""
}

// unprocessed returns how many acknowledged records nobody has processed.
func (h *shared) unprocessed() (left int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sendings {
		if _, ok := h.first[s.offset]; s.outcome == acknowledged && !ok {
			left++
		}
	}
	return left
}

// checkShared returns what of it cannot be, whoever died meanwhile: no partition has
// two owners, nothing that was acknowledged is left out, a member begins no earlier than
// what was committed and no later than what was processed, and what is committed never
// goes back nor gets ahead of what was processed. Repeats is how many records were
// processed again.
func (h *shared) checkShared() (anomalies []string, repeats int) {
	report := func(format string, args ...any) { anomalies = append(anomalies, fmt.Sprintf(format, args...)) }
	tenures := slices.Clone(h.tenures)
	slices.SortStableFunc(tenures, func(a, b *tenure) int { return a.from.Compare(b.from) })
	at := make(map[int64]string)
	next := int64(0)
	for i, o := range tenures {
		for _, before := range tenures[:i] {
			if before.ended == "" || before.to.After(o.from) {
				report("two owners: %s is assigned the partition %v before %s is done with it (%s)", o.member, before.to.Sub(o.from), before.member, before.ended)
			}
		}
		if o.begin < 0 {
			continue
		}
		if c := newest(h.commits, o.from); c.offset > o.begin {
			report("repeat: %s begins at offset %d, though %d was committed (%s) %v before", o.member, o.begin, c.offset, c.by, o.from.Sub(c.told))
		}
		if o.begin > next {
			report("skip: %s begins at offset %d, and %d is not processed", o.member, o.begin, next)
		}
		for j, value := range o.values {
			offset := o.begin + int64(j)
			if before, again := at[offset]; again {
				repeats++
				if before != value {
					report("changed: offset %d is processed as %q and as %q", offset, before, value)
				}
			}
			at[offset] = value
		}
		next = max(next, o.begin+int64(len(o.values)))
	}
	for _, s := range h.sendings {
		if s.outcome == acknowledged && at[s.offset] != s.value {
			report("lost: %q was acknowledged at offset %d, where %q was processed", s.value, s.offset, at[s.offset])
		}
	}
	for _, c := range h.commits {
		if before := newest(h.commits, c.asked); before.offset > c.offset {
			report("regress: %s has %d committed, %v after %d was (%s)", c.by, c.offset, c.asked.Sub(before.told), before.offset, before.by)
		}
		if c.offset == 0 {
			continue
		}
		// What comes before was processed before, or the tenures would have gaps.
		if first, ok := h.first[c.offset-1]; !ok || first.After(c.told) {
			report("ahead: %s has %d committed before offset %d is processed", c.by, c.offset, c.offset-1)
		}
	}
	return anomalies, repeats
}

// newest returns the highest offset of which somebody was told before a time.
func newest(commits []committed, before time.Time) (highest committed) {
	for _, c := range commits {
		if c.told.Before(before) && c.offset > highest.offset {
			highest = c
		}
	}
	return highest
}

// idle returns the longest time that touches a span in which nothing was processed for
// the first time.
func (h *shared) idle(from, to time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	times := []time.Time{from, to}
	for _, at := range h.first {
		times = append(times, at)
	}
	return longestGap(times, from, to)
}

// TestShared plants each anomaly: a checker that sees none would pass everything.
func TestShared(t *testing.T) {
	at := func(second int) time.Time { return time.Unix(int64(second), 0) }
	owned := func(member string, from, to int) *tenure {
		return &tenure{member: member, from: at(from), to: at(to), ended: memberRevoked, begin: -1}
	}
	for _, test := range []struct {
		want    string
		repeats int
		plant   func(h *shared)
	}{
		{"", 1, func(h *shared) {}},
		{"two owners", 1, func(h *shared) { h.tenures = append(h.tenures, owned("c", 9, 11)) }},
		{"two owners", 1, func(h *shared) { h.tenures[0].ended = "" }},
		{"lost", 1, func(h *shared) {
			h.sendings = append(h.sendings, &sending{value: "d", outcome: acknowledged, offset: 3})
		}},
		{"lost", 1, func(h *shared) { h.sendings[0].offset = 1 }},
		{"repeat", 2, func(h *shared) { h.tenures[1].begin, h.tenures[1].values = 0, []string{"a", "b", "c"} }},
		{"skip", 0, func(h *shared) { h.tenures[1].begin = 3 }},
		{"changed", 1, func(h *shared) { h.tenures[1].values[0] = "x" }},
		{"regress", 1, func(h *shared) { h.commits = append(h.commits, committed{0, at(7), at(8), "watcher"}) }},
		{"ahead", 1, func(h *shared) { h.commits = append(h.commits, committed{3, at(7), at(8), "watcher"}) }},
		{"ahead", 1, func(h *shared) { h.commits = append(h.commits, committed{4, at(30), at(31), "watcher"}) }},
	} {
		h := &shared{}
		for i, value := range []string{"a", "b", "c"} {
			h.sendings = append(h.sendings, &sending{value: value, outcome: acknowledged, offset: int64(i)})
		}
		h.tenures = []*tenure{owned("a", 1, 10), owned("b", 20, 30)}
		for _, wrong := range []string{
			h.process(&tenure{begin: -1}, 0, []string{"a", "b"}, at(2)),
			h.process(&tenure{begin: -1}, 1, []string{"b", "c"}, at(21)),
		} {
			if wrong != "" {
				t.Fatal(wrong)
			}
		}
		h.tenures[0].begin, h.tenures[0].values = 0, []string{"a", "b"}
		h.tenures[1].begin, h.tenures[1].values = 1, []string{"b", "c"}
		h.commits = []committed{{1, at(5), at(6), "a"}}
		test.plant(h)
		got, repeats := h.checkShared()
		if test.want == "" && len(got) > 0 || test.want != "" && !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, test.want+":") }) {
			t.Errorf("%q planted, found %q", test.want, got)
		}
		if repeats != test.repeats {
			t.Errorf("%q planted, %d repeats, want %d", test.want, repeats, test.repeats)
		}
	}
	h := &shared{}
	o := h.assign("a", at(1))
	if h.process(nil, 0, []string{"a"}, at(1)) == "" {
		t.Error("records without a tenure are taken")
	}
	if h.process(o, 0, []string{"a"}, at(2)) != "" || h.process(o, 2, []string{"c"}, at(3)) == "" {
		t.Error("a gap in what a member processes is taken")
	}
	h.end(o, memberLost, at(4))
	if h.process(o, 1, []string{"b"}, at(5)) == "" {
		t.Error("records after the end of a tenure are taken")
	}
	if got := h.idle(at(3), at(9)); got != 6*time.Second {
		t.Errorf("idle for %v", got)
	}
}
