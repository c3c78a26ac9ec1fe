package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwaitReady(t *testing.T) {
	readyAfter := func(d time.Duration, outcome error) func(context.Context) error {
		at := time.Now().Add(d)
		return func(ctx context.Context) error {
			select {
			case <-time.After(time.Until(at)):
				return outcome
			case <-ctx.Done():
				return fmt.Errorf("it waits for etcd: %w", ctx.Err())
			}
		}
	}
	tests := []struct {
		name     string
		after    time.Duration
		outcome  error
		patience time.Duration
		notices  int
		want     string
	}{
		{"at once", 0, nil, time.Hour, 0, "<nil>"},
		{"later", 2*readyNotice + time.Second, nil, time.Hour, 2, "<nil>"},
		{"never, for a reason", time.Second, errors.New("wrong directory"), time.Hour, 0, "wrong directory"},
		{"stopped", time.Hour, nil, readyNotice + time.Second, 1, "it waits for etcd: context deadline exceeded"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				ctx, cancel := context.WithTimeout(t.Context(), test.patience)
				defer cancel()
				err := awaitReady(ctx, slog.New(slog.NewTextHandler(&log, nil)), "metadata", readyAfter(test.after, test.outcome))
				if fmt.Sprint(err) != test.want {
					t.Errorf("got %v, want %s", err, test.want)
				}
				if n := strings.Count(log.String(), "it waits for etcd"); n != test.notices {
					t.Errorf("%d notices instead of %d:\n%s", n, test.notices, log.String())
				}
			})
		})
	}
}

func TestListenAddresses(t *testing.T) {
	tests := []struct {
		address string
		open    bool // to other machines
		any     bool // names no host
		here    string
	}{
		{"127.0.0.1:7070", false, false, "127.0.0.1:7070"},
		{"127.9.9.9:7070", false, false, "127.9.9.9:7070"},
		{"localhost:7070", false, false, "localhost:7070"},
		{"[::1]:7070", false, false, "[::1]:7070"},
		{":7070", true, true, "127.0.0.1:7070"},
		{"0.0.0.0:7070", true, true, "127.0.0.1:7070"},
		{"[::]:7070", true, true, "127.0.0.1:7070"},
		{"10.0.0.7:7070", true, false, "10.0.0.7:7070"},
		{"log.example.org:7070", true, false, "log.example.org:7070"},
	}
	for _, test := range tests {
		if got := openToMachines(test.address); got != test.open {
			t.Errorf("%s is open to other machines: %t", test.address, got)
		}
		if got := anyHost(test.address); got != test.any {
			t.Errorf("%s names no host: %t", test.address, got)
		}
		if got := reachedFromHere(test.address); got != test.here {
			t.Errorf("%s is reached at %s, want %s", test.address, got, test.here)
		}
		if _, err := parseListenAddress(test.address); err != nil {
			t.Errorf("%s: %v", test.address, err)
		}
	}
}

func TestNextSteps(t *testing.T) {
	tests := []struct{ address, variable, want string }{
		{defaultAddress, "", "./bin/runnel topics describe greetings"},
		{"127.0.0.1:9090", "", "./bin/runnel --bootstrap 127.0.0.1:9090 topics describe greetings"},
		{"127.0.0.1:9090", "127.0.0.1:9090", "./bin/runnel topics describe greetings"},
		{defaultAddress, "log.example.org:7070", "./bin/runnel --bootstrap 127.0.0.1:7070 topics describe greetings"},
	}
	for _, test := range tests {
		p := newProgram(Environment{Program: "./bin/runnel", Getenv: func(string) string { return test.variable }})
		self := invocation{argv0: p.Program, executable: "/src/bin/runnel"}
		if steps := p.nextSteps(self, test.address); len(steps) != 3 || steps[2] != test.want {
			t.Errorf("at %s with %q: %q", test.address, test.variable, steps)
		}
	}
}
