package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestConsumePositions(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "2")
	for partition := range 2 {
		var input strings.Builder
		for i := range 5 {
			fmt.Fprintf(&input, "%d-%d\n", partition, i)
		}
		succeed(t, input.String(), "produce", topic, "--partition", fmt.Sprint(partition))
	}
	tests := []struct {
		flags string
		want  []string
	}{
		{"--exit-at-end", nil},
		{"--timeout 50ms", nil},
		{"--from-beginning --partition 1 --exit-at-end", []string{"1-0", "1-1", "1-2", "1-3", "1-4"}},
		{"--from-beginning --partition 1 --max-records 2", []string{"1-0", "1-1"}},
		{"--from-beginning --partition 1 --max-records 99 --exit-at-end", []string{"1-0", "1-1", "1-2", "1-3", "1-4"}},
		{"--from-beginning --partition 1 --timeout 200ms", []string{"1-0", "1-1", "1-2", "1-3", "1-4"}},
		{"--offset 0:3 --exit-at-end", []string{"0-3", "0-4"}},
		{"--offset 0:4 --offset 1:5 --exit-at-end", []string{"0-4"}},
		{"--offset 1:2 --partition 1 --exit-at-end", []string{"1-2", "1-3", "1-4"}},
		{"--from-time 2001-01-01T00:00:00Z --partition 0 --exit-at-end", []string{"0-0", "0-1", "0-2", "0-3", "0-4"}},
		{"--from-time 2201-01-01T00:00:00Z --exit-at-end", nil},
	}
	for _, test := range tests {
		t.Run(test.flags, func(t *testing.T) {
			got := succeed(t, "", append([]string{"consume", topic}, strings.Fields(test.flags)...)...)
			want := strings.Join(test.want, "\n")
			if want != "" {
				want += "\n"
			}
			if got.stdout != want || got.stderr != "" {
				t.Errorf("got %q and %q, want %q", got.stdout, got.stderr, want)
			}
		})
	}
}

// TestConsumeFollows: what comes in is printed at once, not when a buffer is
// full, and an interrupt is a good end.
func TestConsumeFollows(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic)
	succeed(t, "old\n", "produce", topic)
	ctx, interrupt := context.WithCancel(t.Context())
	out, in := io.Pipe()
	var stderr bytes.Buffer
	done := make(chan int)
	go func() {
		defer in.Close()
		done <- Run(ctx, Environment{
			Args: []string{"consume", topic, "--bootstrap", clusterAddress(t), "--offset", "0:1"}, Stdout: in, Stderr: &stderr,
			Getenv: func(string) string { return "" },
		})
	}()
	for _, line := range []string{"new\n", "newer\n"} {
		succeed(t, line, "produce", topic)
		got := make([]byte, len(line))
		if _, err := io.ReadFull(out, got); err != nil || string(got) != line {
			t.Fatalf("read %q, want %q (%v)", got, line, err)
		}
	}
	interrupt()
	if code := <-done; code != exitSuccess || stderr.Len() > 0 {
		t.Errorf("exit code %d, stderr %s", code, stderr.String())
	}
}

// endOfPipe is an output whose reader is gone after so many bytes.
type endOfPipe struct {
	left int
	err  error
}

func (w *endOfPipe) Write(b []byte) (int, error) {
	if len(b) > w.left {
		return 0, &os.PathError{Op: "write", Path: "|1", Err: w.err}
	}
	w.left -= len(b)
	return len(b), nil
}

func TestOutputIsClosed(t *testing.T) {
	topic := topicName(t)
	succeed(t, strings.Repeat("line\n", 1000), "produce", topic)
	for _, args := range [][]string{
		{"consume", topic, "--from-beginning"},
		{"consume", topic, "--from-beginning", "-o", "json"},
		{"topics", "describe", topic},
		{"topics", "list", "-o", "json"},
		{"cluster", "describe"},
	} {
		for _, test := range []struct {
			err    error
			code   int
			stderr string
		}{
			{syscall.EPIPE, exitSuccess, ""},
			{syscall.ENOSPC, exitFailure, "runnel: cannot write to the standard output: write |1: no space left on device\n"},
		} {
			var stderr bytes.Buffer
			code := Run(t.Context(), Environment{
				Args: args, Stdout: &endOfPipe{left: 10, err: test.err}, Stderr: &stderr,
				Getenv: func(string) string { return clusterAddress(t) },
			})
			if code != test.code || stderr.String() != test.stderr {
				t.Errorf("%s: exit code %d, stderr %s", strings.Join(args, " "), code, stderr.String())
			}
		}
	}
}
