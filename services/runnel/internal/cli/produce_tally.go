package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// maxReportedFailures bounds how many failed lines are named one by one.
const maxReportedFailures = 10

// stallNotice is how long nothing may be acknowledged before the person hears
// that the command has not hung.
const stallNotice = 5 * time.Second

// tally counts what became of the lines. It may be used concurrently, as the
// producer's callbacks do.
type tally struct {
	// complain tells the person; it is called concurrently.
	complain func(format string, args ...any)
	// giveUp is called for a failure that the lines after it would share.
	giveUp func()

	taken, records, bytes atomic.Int64
	gaveUp                atomic.Bool

	mu       sync.Mutex
	failures int64
}

// take counts a line that was read, before its outcome is known.
func (t *tally) take() { t.taken.Add(1) }

// sent counts a record that was acknowledged.
func (t *tally) sent(bytes int) {
	t.records.Add(1)
	t.bytes.Add(int64(bytes))
}

// failed counts a line that did not become a record, and tells of the first
// ones.
func (t *tally) failed(line int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures++
	switch {
	case t.gaveUp.Load():
		// What was on its way fails for the same reason.
	case !concernsOneRecord(err):
		t.gaveUp.Store(true)
		t.complain("line %d was not sent and reading stops here: %s", line, sentence(err))
		t.giveUp()
	case t.failures <= maxReportedFailures:
		t.complain("line %d was not sent: %s", line, refusedLine(err))
	case t.failures == maxReportedFailures+1:
		t.complain("further lines that cannot be sent are only counted")
	}
}

// open returns how many lines have no outcome yet, and how many have one.
func (t *tally) open() (open, settled int64) {
	t.mu.Lock()
	settled = t.failures
	t.mu.Unlock()
	settled += t.records.Load()
	return t.taken.Load() - settled, settled
}

// watch tells when nothing is acknowledged for a while, once per standstill,
// until ctx ends or stop is called, which waits for it. why names what stands in
// the way, "" if that is not known.
func (t *tally) watch(ctx context.Context, why func(context.Context) string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{}) // closed by the goroutine
	go func() {
		defer close(done)
		ticks := time.NewTicker(stallNotice)
		defer ticks.Stop()
		_, before := t.open()
		told := false
		for {
			select {
			case <-ticks.C:
			case <-ctx.Done():
				return
			}
			open, settled := t.open()
			stalled := open > 0 && settled == before
			if stalled && !told {
				because := why(ctx)
				if because != "" {
					because = " (" + because + ")"
				}
				if ctx.Err() != nil {
					return
				}
				t.complain("nothing has been acknowledged for %v%s; still trying", stallNotice, because)
			}
			told, before = stalled, settled
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// afterInterrupt tells a moment after the end of ctx what is still waited for,
// until stop is called, which waits for it.
func (t *tally) afterInterrupt(ctx context.Context) (stop func()) {
	done, stopped := make(chan struct{}), make(chan struct{}) // closed by the goroutine, and by stop
	go func() {
		defer close(done)
		select {
		case <-ctx.Done():
		case <-stopped:
			return
		}
		select {
		case <-time.After(firstNotice):
		case <-stopped:
			return
		}
		if open, _ := t.open(); open > 0 {
			t.complain("interrupted, and waiting until %s acknowledged; Ctrl-C again gives up", areOrIs(open, "record"))
		}
	}()
	return func() {
		close(stopped)
		<-done
	}
}

func areOrIs(n int64, noun string) string {
	if n == 1 {
		return plural(n, noun) + " is"
	}
	return plural(n, noun) + " are"
}

// summary is what produce says at its end; its JSON form is what -o json
// prints.
type summary struct {
	Records  int64   `json:"records"`
	Bytes    int64   `json:"bytes"`
	Seconds  float64 `json:"seconds"`
	Failures int64   `json:"failures"`
}

func (t *tally) summary(took time.Duration) summary {
	t.mu.Lock()
	defer t.mu.Unlock()
	return summary{Records: t.records.Load(), Bytes: t.bytes.Load(), Seconds: took.Seconds(), Failures: t.failures}
}

func (s summary) text() string {
	line := fmt.Sprintf("%s, %s, %.3f seconds, %s", plural(s.Records, "record"), plural(s.Bytes, "byte"), s.Seconds, plural(s.Failures, "failure"))
	if s.Records > 0 && s.Seconds > 0 {
		line += fmt.Sprintf(" (%.0f records/s, %.2f MB/s)", float64(s.Records)/s.Seconds, float64(s.Bytes)/1e6/s.Seconds)
	}
	return line
}

// in returns the summary in a form of output.
func (s summary) in(form string) string {
	if form == outputJSON {
		return s.json()
	}
	return s.text()
}

func (s summary) json() string {
	text, _ := json.Marshal(s) // numbers only
	return string(text)
}
