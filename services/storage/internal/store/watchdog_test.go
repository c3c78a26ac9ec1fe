package store

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchdog lets commits hang for as long as a test wants.
func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		hang   time.Duration
		events []string
		warns  int
	}{
		{1900 * time.Millisecond, nil, 0},
		{3 * time.Second, []string{"2s stalled", "3s goes on"}, 2},
		{12 * time.Second, []string{"2s stalled", "12s goes on"}, 3},
		{25 * time.Second, []string{"2s stalled", "20s fails", "25s goes on"}, 3},
	} {
		t.Run(c.hang.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, err := newMetrics(nil)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				var mu sync.Mutex
				var events []string
				note := func(what string) {
					mu.Lock()
					defer mu.Unlock()
					events = append(events, fmt.Sprint(time.Since(began), " ", what))
				}
				var lines strings.Builder
				all := stalls{onStall: func(stalled bool) {
					if note("stalled"); !stalled {
						mu.Lock()
						defer mu.Unlock()
						events[len(events)-1] = fmt.Sprint(time.Since(began), " goes on")
					}
				}}
				dog := watchdog{
					set: SetSynced, logger: slog.New(slog.NewTextHandler(&lines, nil)), metrics: m.of(SetSynced), stalls: &all,
					fail: func(error) { note("fails") },
				}
				other := watchdog{set: SetReplicated, logger: slog.New(slog.DiscardHandler), metrics: m.of(SetReplicated), stalls: &all, fail: dog.fail}
				dog.begin()
				// A second set that hangs for a part of that time tells nothing new.
				if c.hang > 10*time.Second {
					time.Sleep(time.Second)
					other.begin()
					time.Sleep(5 * time.Second)
					other.end()
				}
				time.Sleep(c.hang - time.Since(began))
				synctest.Wait()
				dog.end()
				if !slices.Equal(events, c.events) {
					t.Errorf("events are %q, want %q", events, c.events)
				}
				if n := strings.Count(lines.String(), "level=WARN"); n != c.warns {
					t.Errorf("%d warnings, want %d:\n%s", n, c.warns, lines.String())
				}
				// The next commit is quick, and later nothing rings.
				dog.begin()
				dog.end()
				time.Sleep(time.Hour)
				if len(events) != len(c.events) {
					t.Errorf("a commit that was quick made %q", events[len(c.events):])
				}
			})
		})
	}
}

// TestStall holds a commit up for longer than the watchdog waits.
func TestStall(t *testing.T) {
	cfg := testConfig(t)
	stalled := make(chan bool, 2)
	cfg.OnStall = func(s bool) { stalled <- s }
	held, release := make(chan struct{}, 1), make(chan struct{})
	cfg.stall = func(Set) {
		select {
		case held <- struct{}{}:
			<-release
		default:
		}
	}
	s := open(t, cfg)
	l := s.Log(partition(0))
	b := makeBatch(0, 1, 10, 0, 1000, 1)
	outcome := make(chan error, 1)
	l.Append(Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: 1, Epochs: epochZero}}, func(err error) { outcome <- err })
	if !<-stalled {
		t.Error("a commit went on that had not hung")
	}
	close(release)
	if <-stalled {
		t.Error("a commit hung twice")
	}
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
}
