package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"
)

// TestConsumeEndsWithItsReader: following a topic to which nothing is written
// ends quietly when the reader of the output goes away.
func TestConsumeEndsWithItsReader(t *testing.T) {
	topic := topicName(t)
	succeed(t, "a\nb\n", "produce", topic)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	var stderr bytes.Buffer
	done := make(chan int)
	go func() {
		done <- Run(t.Context(), Environment{
			Args: []string{"consume", topic, "--from-beginning"}, Stdout: writer, Stderr: &stderr,
			Getenv: func(string) string { return clusterAddress(t) },
		})
	}()
	got := make([]byte, len("a\nb\n"))
	if _, err := io.ReadFull(reader, got); err != nil || string(got) != "a\nb\n" {
		t.Errorf("read %q (%v)", got, err)
	}
	reader.Close()
	if code := <-done; code != exitSuccess || stderr.Len() > 0 {
		t.Errorf("exit code %d, stderr %s", code, stderr.String())
	}
}

func TestWhileRead(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	for _, out := range []io.Writer{writer, io.Discard} {
		ctx, stop := whileRead(t.Context(), out)
		if ctx.Err() != nil {
			t.Error("it ends although the output is read")
		}
		stop()
		if ctx.Err() == nil {
			t.Error("it does not end with stop")
		}
	}
	ctx, stop := whileRead(t.Context(), writer)
	defer stop()
	reader.Close()
	<-ctx.Done()
	if cause := context.Cause(ctx); !isClosedPipe(cause) {
		t.Errorf("the cause is %v", cause)
	}
}
