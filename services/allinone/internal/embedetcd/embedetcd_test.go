package embedetcd

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, dir string, logs *strings.Builder) *Etcd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	begin := time.Now()
	e, err := Start(ctx, Config{Dir: dir, QuotaBytes: 1 << 30, Logger: slog.New(slog.NewTextHandler(logs, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %s", time.Since(begin))
	return e
}

// slowness is what etcd warns of while the disk or the machine is slow, and of nothing
// else.
var slowness = []string{
	`msg="slow fdatasync"`,
	`msg="apply request took too long"`,
	`msg="waiting for ReadIndex response took too long, retrying"`,
	`msg="leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk"`,
}

// faults returns the lines that are more than warnings of slowness.
func faults(logs string) []string {
	var out []string
	for line := range strings.Lines(logs) {
		slow := slices.ContainsFunc(slowness, func(message string) bool { return strings.Contains(line, " level=WARN "+message) })
		if !slow {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// TestSlownessIsNoFault: a test on a slow disk passes, and is not blind to anything else.
func TestSlownessIsNoFault(t *testing.T) {
	logs := &strings.Builder{}
	log := zap.New(&slogCore{logger: slog.New(slog.NewTextHandler(logs, nil)), stopping: new(atomic.Bool)})
	log.Warn("slow fdatasync", zap.Duration("took", 2*time.Second))
	log.Warn("apply request took too long", zap.Duration("took", 200*time.Millisecond))
	if got := faults(logs.String()); len(got) > 0 {
		t.Errorf("taken for faults: %q", got)
	}
	log.Error("slow fdatasync")
	log.Warn("closing the listener failed", zap.String("why", `level=WARN msg="slow fdatasync"`))
	if got := faults(logs.String()); len(got) != 2 {
		t.Errorf("faults: %q", got)
	}
}

func TestKeepsDataAndStaysQuiet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("a-long-path", 20), "etcd")
	logs := &strings.Builder{}
	e := start(t, dir, logs)
	if _, err := e.Client().Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = start(t, dir, logs)
	got, err := e.Client().Get(t.Context(), "k")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "v" {
		t.Errorf("%v %v", got, err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if told := faults(logs.String()); len(told) > 0 {
		t.Errorf("logged:\n%s", strings.Join(told, "\n"))
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory %v %v", info.Mode(), err)
	}
}

// The client that calls the server directly must do what the metadata service
// asks of one: elections, leases that run out, watches, fenced transactions.
func TestDirectClientElectsAndWatches(t *testing.T) {
	e := start(t, t.TempDir(), &strings.Builder{})
	defer e.Close()
	client := e.Client()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(5))
	if err != nil {
		t.Fatal(err)
	}
	election := concurrency.NewElection(session, "controller")
	if err := election.Campaign(t.Context(), "me"); err != nil {
		t.Fatal(err)
	}
	watch := client.Watch(clientv3.WithRequireLeader(t.Context()), "p/", clientv3.WithPrefix())
	txn, err := client.Txn(t.Context()).
		If(clientv3.Compare(clientv3.CreateRevision(election.Key()), "=", election.Rev())).
		Then(clientv3.OpPut("p/x", "1")).Commit()
	if err != nil || !txn.Succeeded {
		t.Fatalf("%v %v", txn, err)
	}
	if r := <-watch; len(r.Events) != 1 || string(r.Events[0].Kv.Key) != "p/x" {
		t.Errorf("%+v", r)
	}
	lease, err := client.Grant(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(t.Context(), "p/live", "1", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	if r := <-watch; len(r.Events) != 1 {
		t.Errorf("%+v", r)
	}
	if r := <-watch; len(r.Events) != 1 || r.Events[0].Type != clientv3.EventTypeDelete {
		t.Errorf("the lease did not run out: %+v", r)
	}
	if err := session.Close(); err != nil {
		t.Error(err)
	}
}

func TestStartFailsPlainly(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Config{Dir: filepath.Join(file, "etcd"), QuotaBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("%v", err)
	}
}
