package main

import "testing"

// A calm process has little garbage, a busy one more for as long as it is busy and some
// seconds longer, within bounds.
func TestPacer(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	var p pacer
	if got := p.percent(64*mib, 9*mib); got != garbageCalm {
		t.Errorf("a calm process: %d percent", got)
	}
	for i, step := range []struct {
		alive, allocated uint64
		want             int
	}{
		{100 * mib, 10 * mib, garbageCalm},
		{64 * mib, 10 * mib, 200},
		{20 * mib, 80 * mib, garbageBusy},
		{0, 1, garbageBusy},
		{171 * mib, 200 * mib, garbageCalm},
		{1000 * mib, 2000 * mib, garbageCalm},
	} {
		if got := p.percent(step.alive, step.allocated); got != step.want {
			t.Errorf("look %d: %d percent, want %d", i, got, step.want)
		}
	}
	for i := range paceCalm + 1 {
		want := 200
		if i >= paceCalm-1 {
			want = garbageCalm
		}
		if got := p.percent(64*mib, mib); got != want {
			t.Errorf("%d looks after it was busy: %d percent, want %d", i+1, got, want)
		}
	}
}
