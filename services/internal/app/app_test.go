package app

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal writes down what happens in which order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

// component takes a second to become ready and one to stop.
func (j *journal) component(name string) Component {
	up := make(chan struct{})
	return Component{
		Name: name,
		Run: func(ctx context.Context) error {
			j.add("run " + name)
			time.Sleep(time.Second)
			close(up)
			<-ctx.Done()
			time.Sleep(time.Second)
			j.add("stopped " + name)
			return nil
		},
		Ready: func(ctx context.Context) error {
			select {
			case <-up:
				j.add("ready " + name)
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		Leave: func(context.Context) {
			time.Sleep(time.Second)
			j.add("leave " + name)
		},
		Drain: func() { j.add("drain " + name) },
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		g := New(nil, j.component("a"), j.component("b"), j.component("c"))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		if err := g.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		want := []string{
			"run a", "ready a", "run b", "ready b", "run c", "ready c",
			"leave c", "leave b", "leave a",
			"drain c", "drain b", "drain a", "stopped c", "stopped b", "stopped a",
		}
		if got := j.all(); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		if err := g.Ready(t.Context()); err == nil {
			t.Error("ready after the stop")
		}
	})
}

func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		g := New(nil, j.component("a"), j.component("b"), j.component("c"))
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if err := g.Run(ctx); err != nil {
			t.Errorf("%v", err)
		}
		want := []string{"run a", "ready a", "run b", "leave b", "leave a", "drain b", "drain a", "stopped b", "stopped a"}
		if got := j.all(); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	})
}

var errBroken = errors.New("disk is broken")

func TestFirstFailureStopsAllAndIsNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		failing := Component{Name: "b", Run: func(context.Context) error {
			time.Sleep(time.Minute)
			return errBroken
		}}
		logs := &strings.Builder{}
		g := New(slog.New(slog.NewTextHandler(logs, nil)), j.component("a"), failing, j.component("c"))
		err := g.Run(t.Context())
		if !errors.Is(err, errBroken) || err.Error() != "b: disk is broken" {
			t.Errorf("%v", err)
		}
		if got := j.all(); !slices.Contains(got, "stopped a") || !slices.Contains(got, "stopped c") || slices.Contains(got, "leave a") {
			t.Errorf("%q", got)
		}
		if strings.Count(logs.String(), "disk is broken") != 1 {
			t.Errorf("log: %s", logs)
		}
		if err := g.Ready(t.Context()); !errors.Is(err, errBroken) {
			t.Errorf("Ready: %v", err)
		}
	})
}

func TestFailureEndsLeaving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		failing := Component{Name: "b", Run: func(ctx context.Context) error {
			time.Sleep(time.Minute)
			return errBroken
		}}
		slow := Component{
			Name:  "c",
			Run:   func(ctx context.Context) error { <-ctx.Done(); return nil },
			Leave: func(ctx context.Context) { <-ctx.Done() },
		}
		g := New(nil, j.component("a"), failing, slow)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		begin := time.Now()
		if err := g.Run(ctx); !errors.Is(err, errBroken) {
			t.Errorf("%v", err)
		}
		if took := time.Since(begin); took > 2*time.Minute {
			t.Errorf("it took %v", took)
		}
		if got := j.all(); !slices.Equal(got, []string{"run a", "ready a", "drain a", "stopped a"}) {
			t.Errorf("%q", got)
		}
	})
}

func TestFailureWhileStarting(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]Component{
		"run":          {Name: "b", Run: func(context.Context) error { return errBroken }, Ready: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
		"ready":        {Name: "b", Run: func(ctx context.Context) error { <-ctx.Done(); return nil }, Ready: func(context.Context) error { return errBroken }},
		"run, stopped": {Name: "b", Run: func(context.Context) error { return errBroken }, Ready: func(context.Context) error { return errors.New("has stopped") }},
	} {
		synctest.Test(t, func(t *testing.T) {
			j := &journal{}
			err := New(nil, j.component("a"), broken, j.component("c")).Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), "b: ") {
				t.Errorf("%s: %v", name, err)
			}
			if strings.HasPrefix(name, "run") && !errors.Is(err, errBroken) {
				t.Errorf("%s: %v", name, err)
			}
			if got := j.all(); slices.Contains(got, "run c") || !slices.Contains(got, "stopped a") {
				t.Errorf("%s: %q", name, got)
			}
		})
	}
}

func TestFailuresWhileStoppingAreReported(t *testing.T) {
	t.Parallel()
	slow := Component{Name: "slow", Run: func(ctx context.Context) error { <-ctx.Done(); return errBroken }}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(nil, slow).Run(ctx); !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "slow: ") {
		t.Errorf("%v", err)
	}
}

func TestEarlyReturnIsAFailure(t *testing.T) {
	t.Parallel()
	lazy := Component{Name: "lazy", Run: func(context.Context) error { return nil }}
	if err := New(nil, lazy).Run(t.Context()); !errors.Is(err, errEarlyReturn) || !strings.Contains(err.Error(), "lazy") {
		t.Errorf("%v", err)
	}
}
