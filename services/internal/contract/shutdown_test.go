package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestControlledShutdown stops the leader of a partition while records with
// acks=all come in, and starts it again: the producer notices nothing, and each
// record is there once.
func TestControlledShutdown(t *testing.T) {
	t.Parallel()
	cluster := startMesh(t, 1, 3, 0)
	bootstrap := cluster.metadata[0].address
	runnel(t, bootstrap, nil, "topics", "create", "orders", "--replication-factor", "3", "--config", "min.insync.replicas=2").mustSucceed(t)
	leader := func() *node {
		t.Helper()
		var topic struct {
			Partitions []struct {
				Leader int32 `json:"leader"`
			} `json:"partitions"`
		}
		described := runnel(t, bootstrap, nil, "topics", "describe", "orders", "-o", "json").mustSucceed(t)
		if err := json.Unmarshal([]byte(described.stdout), &topic); err != nil || len(topic.Partitions) != 1 {
			t.Fatalf("%v: %s", err, described.stdout)
		}
		return cluster.node(t, topic.Partitions[0].Leader)
	}

	producer := exec.CommandContext(t.Context(), runnelProgram(t), "--bootstrap", bootstrap, "produce", "orders", "--acks", "all")
	input, err := producer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var summary bytes.Buffer
	producer.Stderr = &summary
	if err := producer.Start(); err != nil {
		t.Fatal(err)
	}
	sent := 0
	tick := time.Tick(time.Millisecond)
	send := func(enough func() bool) {
		t.Helper()
		for !enough() {
			<-tick
			if _, err := fmt.Fprintln(input, sent); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	more := func(n int) func() bool {
		until := sent + n
		return func() bool { return sent >= until }
	}
	for range 2 {
		send(more(300))
		stopped := leader()
		p := stopped.process()
		began := time.Now()
		if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		send(func() bool {
			select {
			case <-p.done:
				return true
			default:
				return time.Since(began) > 20*time.Second
			}
		})
		t.Logf("node %d stopped in %v", stopped.id, time.Since(began))
		if code := p.command.ProcessState; code == nil || code.ExitCode() != 0 {
			t.Fatalf("the node has not stopped well: %v", code)
		}
		if !strings.Contains(p.output(), "others lead what the node led") {
			t.Error("it has given nothing away before it stopped")
		}
		if now := leader(); now == stopped {
			t.Errorf("node %d leads, which has stopped", now.id)
		}
		send(more(300))
		if err := stopped.start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := input.Close(); err != nil {
		t.Fatal(err)
	}
	if err := producer.Wait(); err != nil {
		t.Fatalf("%v: %s", err, summary.String())
	}
	if !strings.Contains(summary.String(), "0 failures") {
		t.Errorf("the producer says: %s", summary.String())
	}
	read := runnel(t, bootstrap, nil, "consume", "orders", "--from-beginning", "--exit-at-end").mustSucceed(t)
	got := lines([]byte(read.stdout))
	if len(got) != sent {
		t.Fatalf("%d records are there, %d were acknowledged", len(got), sent)
	}
	for i, value := range got {
		if value != fmt.Sprint(i) {
			t.Fatalf("record %d is %q", i, value)
		}
	}
}
