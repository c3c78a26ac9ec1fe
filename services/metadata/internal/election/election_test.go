package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/metadata/internal/etcdtest"
)

var etcd *etcdtest.Server

func TestMain(m *testing.M) {
	os.Exit(etcdtest.Main(m, func(s *etcdtest.Server) { etcd = s }, func() error { return goleak.Find() }))
}

// office is where candidates of a test lead: each term is sent to terms and lasts
// until its context ends or leave is closed.
type office struct {
	t      *testing.T
	prefix string
	client *clientv3.Client
	terms  chan *held
}

type held struct {
	*Term
	ctx   context.Context
	node  cluster.NodeID
	leave chan struct{}
}

func newOffice(t *testing.T) *office {
	return &office{t: t, prefix: etcd.Prefix() + "election", client: etcd.Client(t, etcd.Endpoint()), terms: make(chan *held)}
}

// candidate runs a candidate until the returned function is called. With an
// endpoint of its own it can be cut off.
func (o *office) candidate(node cluster.NodeID, endpoint string) (stop func()) {
	o.t.Helper()
	c := NewCandidate(Options{
		Client: etcd.Client(o.t, endpoint), Prefix: o.prefix, Node: node, TTL: 2 * time.Second,
		Logger: slog.New(slog.DiscardHandler), RequestTimeout: 2 * time.Second,
	})
	ctx, cancel := context.WithCancel(o.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- c.Run(ctx, func(ctx context.Context, term *Term) error {
			h := &held{term, ctx, node, make(chan struct{})}
			select {
			case o.terms <- h:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case <-h.leave:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			o.t.Errorf("candidate %d: %v", node, err)
		}
	}
	o.t.Cleanup(stop)
	return stop
}

func (o *office) next() *held {
	o.t.Helper()
	select {
	case h := <-o.terms:
		return h
	case <-time.After(20 * time.Second):
		o.t.Fatal("nobody was elected")
		return nil
	}
}

func (o *office) nobody(d time.Duration) {
	o.t.Helper()
	select {
	case h := <-o.terms:
		o.t.Fatalf("node %d was elected as well", h.node)
	case <-time.After(d):
	}
}

func (o *office) write(h *held, value string) error {
	_, err := h.Commit(o.t.Context(), nil, clientv3.OpPut(o.prefix+"-value", value))
	return err
}

func (o *office) value() string {
	o.t.Helper()
	response, err := o.client.Get(o.t.Context(), o.prefix+"-value")
	if err != nil || len(response.Kvs) != 1 {
		o.t.Fatalf("read value: %v, %v", response, err)
	}
	return string(response.Kvs[0].Value)
}

func TestOneLeadsAndTheOtherWaits(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	stopFirst := o.candidate(1, etcd.Endpoint())
	first := o.next()
	o.candidate(2, etcd.Endpoint())
	o.nobody(100 * time.Millisecond)
	if err := o.write(first, "first"); err != nil {
		t.Fatal(err)
	}
	// Stopping resigns: the other does not wait for a lease.
	start := time.Now()
	stopFirst()
	second := o.next()
	if took := time.Since(start); second.node != 2 || took > time.Second {
		t.Errorf("node %d followed after %v", second.node, took)
	}
	if err := o.write(first, "late"); !errors.Is(err, ErrSuperseded) {
		t.Errorf("a write after the term: %v", err)
	}
	if err := o.write(second, "second"); err != nil || o.value() != "second" {
		t.Errorf("value is %q, %v", o.value(), err)
	}
}

// TestSupersededControllerCannotWrite cuts a controller off until its lease has
// run out and another leads, as a pause of its process would; its clock is of no
// help to it.
func TestSupersededControllerCannotWrite(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	link := etcd.Link(t)
	o.candidate(1, link.Endpoint())
	first := o.next()
	if err := o.write(first, "first"); err != nil {
		t.Fatal(err)
	}
	o.candidate(2, etcd.Endpoint())
	link.Cut()
	second := o.next()
	// The second has won, and has not written yet: that the first fails already is
	// etcd's doing.
	link.Mend()
	for {
		err := o.write(first, "zombie")
		if errors.Is(err, ErrSuperseded) {
			break
		}
		if err == nil {
			t.Fatal("the superseded controller wrote")
		}
	}
	if got := o.value(); got != "first" {
		t.Fatalf("value is %q", got)
	}
	if err := o.write(second, "second"); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Commit(t.Context(), []clientv3.Cmp{clientv3.Compare(clientv3.Version("none"), ">", 0)}); !errors.Is(err, ErrSuperseded) {
		t.Errorf("with a comparison that fails too: %v", err)
	}
	<-first.ctx.Done()
}

// TestWinningProvesNothing takes the key from a candidate that has just been told
// that it has won: two hold a Term, one can open it.
func TestWinningProvesNothing(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.candidate(1, etcd.Endpoint())
	first := o.next()
	if _, err := o.client.Delete(t.Context(), first.key); err != nil {
		t.Fatal(err)
	}
	o.candidate(2, etcd.Endpoint())
	second := o.next()
	if first.ctx.Err() != nil {
		t.Fatal("the first has noticed; the test shows nothing")
	}
	if err := o.write(first, "first"); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the first to win opens a term: %v", err)
	}
	if err := o.write(second, "second"); err != nil {
		t.Errorf("the second to win opens no term: %v", err)
	}
}

// TestRestartDoesNotWaitForTheLease kills a candidate, which leaves its lease
// behind.
func TestRestartDoesNotWaitForTheLease(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	link := etcd.Link(t)
	o.candidate(1, link.Endpoint())
	killed := o.next()
	link.Cut()
	start := time.Now()
	o.candidate(1, etcd.Endpoint())
	next := o.next()
	if took := time.Since(start); took > time.Second {
		t.Errorf("the restarted node leads after %v, with a lease of 2 s", took)
	}
	link.Mend()
	for {
		err := o.write(killed, "zombie")
		if errors.Is(err, ErrSuperseded) {
			break
		}
		if err == nil {
			t.Fatal("the predecessor wrote")
		}
	}
	if err := o.write(next, "next"); err != nil {
		t.Error(err)
	}
}

func TestRestartLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.candidate(1, etcd.Endpoint())
	first := o.next()
	o.candidate(2, etcd.Endpoint())
	o.nobody(100 * time.Millisecond)
	if err := o.write(first, "still"); err != nil {
		t.Error(err)
	}
}

func TestCommitTellsConflictFromSuperseded(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.candidate(1, etcd.Endpoint())
	h := o.next()
	key := o.prefix + "-other"
	if _, err := h.Commit(t.Context(), []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), ">", 0)}, clientv3.OpPut(key, "")); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v", err)
	}
	if err := o.write(h, "after"); err != nil {
		t.Errorf("a conflict ends the term: %v", err)
	}
}

func TestCommitTakesAsMuchAsItSays(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.candidate(1, etcd.Endpoint())
	h := o.next()
	var comparisons []clientv3.Cmp
	var ops []clientv3.Op
	for i := range MaxComparisons {
		comparisons = append(comparisons, clientv3.Compare(clientv3.CreateRevision(fmt.Sprint(o.prefix, i)), "=", 0))
	}
	for i := range MaxOps {
		ops = append(ops, clientv3.OpPut(fmt.Sprint(o.prefix, i), ""))
	}
	if _, err := h.Commit(t.Context(), comparisons, ops...); err != nil {
		t.Error(err)
	}
	if _, err := h.Commit(t.Context(), nil, append(ops, clientv3.OpPut(o.prefix, ""))...); err == nil {
		t.Error("etcd takes more than MaxOps: raise it")
	}
}

func TestResign(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.candidate(1, etcd.Endpoint())
	first := o.next()
	if err := first.Resign(t.Context(), clientv3.OpPut(o.prefix+"-value", "farewell")); err != nil {
		t.Fatal(err)
	}
	if err := o.write(first, "late"); !errors.Is(err, ErrSuperseded) || o.value() != "farewell" {
		t.Errorf("after resigning: %v, value %q", err, o.value())
	}
	if err := first.Resign(t.Context()); err != nil {
		t.Errorf("resigning again: %v", err)
	}
	close(first.leave)
	if again := o.next(); again.node != 1 {
		t.Errorf("node %d leads", again.node)
	}
}

// TestStopWithoutEtcd stops a candidate that cannot reach etcd.
func TestStopWithoutEtcd(t *testing.T) {
	t.Parallel()
	for _, leads := range []bool{true, false} {
		o := newOffice(t)
		if !leads {
			o.candidate(2, etcd.Endpoint())
			o.next()
		}
		link := etcd.Link(t)
		stop := o.candidate(1, link.Endpoint())
		if leads {
			o.next()
		} else {
			o.nobody(100 * time.Millisecond)
		}
		link.Cut()
		start := time.Now()
		stop()
		if took := time.Since(start); took > 2*resignTimeout {
			t.Errorf("leads %t: it took %v to stop", leads, took)
		}
	}
}
