package runnel

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

func TestBootstrapAddressesAreChecked(t *testing.T) {
	for _, address := range []string{"", "localhost", ":7070", "localhost:", "localhost:http", "localhost:0", "localhost:70000", "http://localhost:7070"} {
		if _, err := NewClient("127.0.0.1:7070", address); err == nil {
			t.Errorf("%q was accepted", address)
		} else if !strings.Contains(err.Error(), address) {
			t.Errorf("the error does not name %q: %v", address, err)
		}
	}
	for _, address := range []string{"localhost:7070", "[::1]:7070", "node-1.example.org:65535"} {
		client, err := NewClient(address)
		if err != nil {
			t.Errorf("%q: %v", address, err)
			continue
		}
		_ = client.Close()
	}
}

func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		for _, n := range c.nodes {
			n.setDown(true)
		}
		client, err := Config{Bootstrap: []string{"meta:1", "store-2:1", "elsewhere:1"}, Transports: c}.NewClient()
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		p, err := client.NewProducer()
		if err != nil {
			t.Fatal(err)
		}
		consumer, err := client.NewConsumer()
		if err != nil {
			t.Fatal(err)
		}
		const want = "no bootstrap address answers: tried meta:1 (connection refused), store-2:1 (connection refused), elsewhere:1 (connection refused); " +
			"is `runnel up` running? If the cluster is elsewhere, pass another address to NewClient"
		calls := map[string]func() error{
			"Send":            func() error { return p.Send(t.Context(), Record{Topic: "t"}, nil) },
			"Assign":          func() error { return consumer.Assign(t.Context(), At("t", 0, Earliest())) },
			"ListTopics":      func() error { _, err := client.Admin().ListTopics(t.Context()); return err },
			"DescribeCluster": func() error { _, err := client.Admin().DescribeCluster(t.Context()); return err },
			"ListOffsets":     func() error { _, err := client.Admin().ListOffsets(t.Context(), At("t", 0, Earliest())); return err },
		}
		for name, call := range calls {
			start := time.Now()
			err := call()
			if err == nil || err.Error() != want {
				t.Errorf("%s: %v", name, err)
			}
			if failure, ok := errors.AsType[*BootstrapError](err); !ok || len(failure.Attempts) != 3 {
				t.Errorf("%s: %#v", name, err)
			}
			if waited := time.Since(start); waited > time.Second {
				t.Errorf("%s took %v", name, waited)
			}
		}
		// It heals as soon as one of them is there.
		for _, n := range c.nodes {
			n.setDown(false)
		}
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
			t.Error(err)
		}
	})
}

func TestAnyAddressWillDo(t *testing.T) {
	for _, address := range []string{"meta:1", "store-2:1", "store-3:1"} {
		t.Run(address, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(2)
				client, err := Config{Bootstrap: []string{"elsewhere:1", address}, Transports: c}.NewClient()
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				if _, err := client.Admin().CreateTopic(t.Context(), TopicSpec{Name: "t", Partitions: 2}); err != nil {
					t.Fatal(err)
				}
				p, err := client.NewProducer()
				if err != nil {
					t.Fatal(err)
				}
				for i := range int32(2) {
					if _, err := p.SendSync(t.Context(), Record{Topic: "t", Partition: OnPartition(i)}); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

func TestWatchHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 1)
		client := c.client(t)
		p, err := client.NewProducer()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
		versionSoon := func() {
			t.Helper()
			time.Sleep(5 * time.Second)
			c.mu.Lock()
			defer c.mu.Unlock()
			if got := client.view.image().Version; got != c.version {
				t.Errorf("version %d is known, the cluster is at %d", got, c.version)
			}
		}
		c.createTopic("1", 1)
		versionSoon()
		c.node(1).cut()
		c.createTopic("2", 1)
		versionSoon()
		// The bootstrap node is gone for good: the others carry on.
		c.node(1).setDown(true)
		c.createTopic("3", 1)
		versionSoon()
		if _, ok := client.view.image().Topic("3"); !ok {
			t.Error("topic 3 is not known")
		}
	})
}

// TestViewNeverGoesBack: a node that lags is passed over, a cluster that was set
// up anew is not.
func TestViewNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		client := c.client(t)
		p, err := client.NewProducer()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		known := c.version
		c.version = 1
		c.mu.Unlock()
		c.node(1).cut()
		time.Sleep(time.Minute)
		if got := client.view.image().Version; got != known {
			t.Errorf("version %d after %d", got, known)
		}
		c.mu.Lock()
		c.id[0]++
		c.mu.Unlock()
		c.node(1).cut()
		c.node(2).cut()
		time.Sleep(time.Minute)
		if got := client.view.image(); got.Version != 1 || got.ClusterID != c.id {
			t.Errorf("the new cluster was not taken up: version %d", got.Version)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		client := c.client(t)
		p, err := client.NewProducer(WithLinger(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		consumer, err := client.NewConsumer()
		if err != nil {
			t.Fatal(err)
		}
		if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
			t.Fatal(err)
		}
		if err := p.Send(t.Context(), Record{Topic: "t"}, nil); err != nil {
			t.Fatal(err)
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
		if n := len(c.records(t, "t", 0)); n != 1 {
			t.Errorf("%d records were delivered", n)
		}
		if _, err := consumer.Poll(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Poll = %v", err)
		}
		if err := p.Send(t.Context(), Record{Topic: "t"}, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Send = %v", err)
		}
		if _, err := client.NewProducer(); !errors.Is(err, ErrClosed) {
			t.Errorf("NewProducer = %v", err)
		}
		if _, err := client.NewConsumer(); !errors.Is(err, ErrClosed) {
			t.Errorf("NewConsumer = %v", err)
		}
	})
}

func TestEveryReasonHasAnOutcome(t *testing.T) {
	doubtful := map[Reason]bool{
		errorsv1.Reason_REASON_UNSPECIFIED:                      true,
		errorsv1.Reason_REASON_INTERNAL:                         true,
		errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND: true,
		errorsv1.Reason_REASON_TIMED_OUT:                        true,
		errorsv1.Reason_REASON_STORAGE_FAILED:                   true,
	}
	for number, name := range errorsv1.Reason_name {
		if got := outcomeOf(Reason(number)) == unknown; got != doubtful[Reason(number)] {
			t.Errorf("%s: outcome unknown is %v", name, got)
		}
	}
	if outcomeOf(9999) != unknown {
		t.Error("a reason of the future counts as known")
	}
}

func TestErrorsTellTheirReason(t *testing.T) {
	failure := failureOf(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS)
	err := callError(context.Background(), "a:1", statusError(failure))
	if ReasonOf(err) != failure.Reason || err.Error() != failure.Message || !IsRetriable(err) {
		t.Errorf("error = %v", err)
	}
	err = callError(context.Background(), "a:1", refusedConnection("a:1"))
	if !IsRetriable(err) || err.Error() != "a:1: connection refused" {
		t.Errorf("error = %v", err)
	}
	err = callError(context.Background(), "a:1", errors.New("broken"))
	if e, ok := errors.AsType[*Error](err); !ok || e.Retriable() || !e.OutcomeUnknown() {
		t.Errorf("error = %v", err)
	}
	for _, status := range []string{"404 Not Found", "HTTP status 415 Unsupported Media Type"} {
		err = callError(context.Background(), "a:1", connect.NewError(connect.CodeUnknown, status))
		if want := "a:1: " + status + ", which no client address of Runnel says: give the address that a node has as --listen"; err.Error() != want {
			t.Errorf("error = %v", err)
		}
	}
	if err = callError(context.Background(), "a:1", connect.NewError(connect.CodeUnknown, "404 lines are lost")); err.Error() != "a:1: 404 lines are lost" {
		t.Errorf("error = %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("enough")
	cancel(cause)
	if err := callError(ctx, "a:1", errors.New("broken")); !errors.Is(err, cause) {
		t.Errorf("error = %v", err)
	}
}

// TestNobodyListens goes through the real transport.
func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	client, err := NewClient(address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Admin().ListTopics(t.Context())
	if failure, ok := errors.AsType[*BootstrapError](err); !ok || !IsRetriable(failure.Attempts[0].Err) {
		t.Errorf("error = %#v", err)
	}
	if err == nil || !strings.HasPrefix(err.Error(), "no bootstrap address answers: tried "+address+" (connection refused); is `runnel up` running") {
		t.Errorf("error = %v", err)
	}
}
