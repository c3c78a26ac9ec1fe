package store

import (
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// stallAfter is how long a commit may take before the node should lead no more.
	stallAfter = 2 * time.Second
	// warnAfter and giveUpAfter are when that is told again, and when the process
	// has to end: others can only go on without it.
	warnAfter   = 10 * time.Second
	giveUpAfter = 20 * time.Second
)

// stalls counts the sets whose commit hangs, and tells when the first begins to
// and when the last has gone on.
type stalls struct {
	onStall func(bool)

	mu    sync.Mutex
	count int
}

// add is called with 1 when a commit hangs and with -1 when it has gone on. The
// hook is called in that order, too.
func (s *stalls) add(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.count > 0
	s.count += n
	if now := s.count > 0; now != before {
		s.onStall(now)
	}
}

// watchdog notices commits that hang. It belongs to the commit goroutine of a
// set; its timer runs beside.
type watchdog struct {
	// Immutable.
	set     Set
	logger  *slog.Logger
	metrics setMetrics
	stalls  *stalls
	fail    func(error)

	mu sync.Mutex
	// timer runs while a commit does.
	timer *time.Timer
	began time.Time
	// run numbers the commits: a timer may ring for one that is over.
	run uint64
	// stalled says that the commit at hand hangs.
	stalled bool
}

func (w *watchdog) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = time.Now()
	w.run++
	run := w.run
	w.timer = time.AfterFunc(stallAfter, func() { w.ring(run) })
}

func (w *watchdog) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.run++
	w.timer.Stop()
	if !w.stalled {
		return
	}
	w.stalled = false
	took := time.Since(w.began)
	w.metrics.hanging.Set(0)
	w.metrics.stalled.Add(took.Seconds())
	w.logger.Warn("a commit that hung has gone on", "set", string(w.set), "took", took.Round(time.Millisecond))
	w.stalls.add(-1)
}

// ring is called while a commit takes too long.
func (w *watchdog) ring(run uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.run != run {
		return
	}
	took := time.Since(w.began)
	if took >= giveUpAfter {
		w.fail(fmt.Errorf("a commit to the set %q has hung for %v: the disk does not answer; look at the kernel's log and at the disk", w.set, took.Round(time.Second)))
		return
	}
	w.logger.Warn("a commit hangs: the disk does not answer", "set", string(w.set), "since", took.Round(time.Second), "gives_up_after", giveUpAfter)
	if !w.stalled {
		w.stalled = true
		w.metrics.hanging.Set(1)
		w.stalls.add(1)
	}
	next := giveUpAfter
	if took < warnAfter {
		next = warnAfter
	}
	w.timer.Reset(next - took)
}
