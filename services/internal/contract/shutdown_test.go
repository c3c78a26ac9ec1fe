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
	runnelPath := runnelProgram(t)
	etcd := program(t, "go.etcd.io/etcd/server/v3")
	client, peer := freeAddress(t), freeAddress(t)
	start(t, etcd, "--data-dir", t.TempDir(), "--log-level", "error",
		"--listen-client-urls", "http://"+client, "--advertise-client-urls", "http://"+client,
		"--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer, "--initial-cluster", "default=http://"+peer)
	awaitHTTP(t, "http://"+client+"/health")
	bootstrap, metadataPeer := freeAddress(t), freeAddress(t)
	metadata := start(t, runnelPath, "metadata", "--etcd-endpoints", client, "--data-dir", t.TempDir(), "--listen", bootstrap, "--peer-listen", metadataPeer)
	if err := metadata.awaitReady(t.Context(), bootstrap); err != nil {
		t.Fatal(err)
	}
	const first = 10
	var nodes [3]*process
	var starts [3]func() *process
	for i := range nodes {
		dir, public, peer := t.TempDir(), freeAddress(t), freeAddress(t)
		starts[i] = func() *process {
			p := start(t, runnelPath, "storage", "--node-id", fmt.Sprint(first+i), "--metadata", metadataPeer, "--data-dir", dir, "--listen", public, "--peer-listen", peer)
			if err := p.awaitReady(t.Context(), public); err != nil {
				t.Fatal(err)
			}
			return p
		}
		nodes[i] = starts[i]()
	}
	runnel(t, bootstrap, nil, "topics", "create", "orders", "--replication-factor", "3", "--config", "min.insync.replicas=2").mustSucceed(t)
	leader := func() int {
		t.Helper()
		var topic struct {
			Partitions []struct {
				Leader int `json:"leader"`
			} `json:"partitions"`
		}
		described := runnel(t, bootstrap, nil, "topics", "describe", "orders", "-o", "json").mustSucceed(t)
		if err := json.Unmarshal([]byte(described.stdout), &topic); err != nil || len(topic.Partitions) != 1 || topic.Partitions[0].Leader < first {
			t.Fatalf("%v: %s", err, described.stdout)
		}
		return topic.Partitions[0].Leader - first
	}

	producer := exec.CommandContext(t.Context(), runnelPath, "--bootstrap", bootstrap, "produce", "orders", "--acks", "all")
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
		p := nodes[stopped]
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
		t.Logf("node %d stopped in %v", first+stopped, time.Since(began))
		if code := p.command.ProcessState; code == nil || code.ExitCode() != 0 {
			t.Fatalf("the node has not stopped well: %v", code)
		}
		if !strings.Contains(p.output(), "others lead what the node led") {
			t.Error("it has given nothing away before it stopped")
		}
		if now := leader(); now == stopped {
			t.Errorf("node %d leads, which has stopped", first+now)
		}
		send(more(300))
		nodes[stopped] = starts[stopped]()
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
