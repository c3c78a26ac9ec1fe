package runnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// streamCounts are what a node has seen of streams of commits.
type streamCounts struct{ begun, open, refused, commits int }

func (g *fakeGroups) counts(node int32) streamCounts {
	g.cluster.mu.Lock()
	defer g.cluster.mu.Unlock()
	return streamCounts{g.streams[node], g.streaming[node], g.refused[node], g.streamed}
}

// commits returns which of the events are commits.
func (g *fakeGroups) commits() []string {
	return slices.DeleteFunc(g.history(), func(event string) bool { return !strings.HasPrefix(event, "commit ") })
}

// assigned returns a consumer without membership that has read partition 0 of topic "t".
func assigned(t *testing.T, client *Client, group string) *Consumer {
	t.Helper()
	consumer, err := client.NewConsumer(WithGroup(group))
	if err != nil {
		t.Fatal(err)
	}
	if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
		t.Fatal(err)
	}
	return consumer
}

func at(offset int64) GroupOffset {
	return GroupOffset{TopicPartition: t0, Position: Position{Offset: offset, LeaderEpoch: -1}}
}

// newCommitCluster has the metadata node 1, the storage node 2, coordinators from 3 on,
// and 9 records.
func newCommitCluster(t *testing.T, coordinators int) (*fakeCluster, *fakeGroups) {
	c := newFakeCluster(1)
	g := c.addCoordinators(coordinators)
	c.createTopic("t", 1)
	c.fill(t, "t", 0, recordbatch.None, numbers(0, 9)...)
	return c, g
}

// TestCommitsShareAStream: the consumers of a client, but not those of another.
func TestCommitsShareAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, g := newCommitCluster(t, 1)
		client := c.client(t)
		var wait sync.WaitGroup
		for i := range 8 {
			consumer := assigned(t, client, fmt.Sprint("g", i%4))
			wait.Go(func() {
				for offset := range int64(9) {
					if err := consumer.Commit(t.Context(), at(offset+1)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wait.Wait()
		if got, want := g.counts(3), (streamCounts{begun: 1, open: 1, commits: 72}); got != want {
			t.Errorf("one client: %+v, want %+v", got, want)
		}
		if err := assigned(t, c.client(t), "g0").Commit(t.Context(), at(1)); err != nil {
			t.Error(err)
		}
		if got, want := g.counts(3), (streamCounts{begun: 2, open: 2, commits: 73}); got != want {
			t.Errorf("two clients: %+v, want %+v", got, want)
		}
	})
}

// TestBrokenCommitStream: what was under way is committed over the next one, whether it
// had been carried out or not.
func TestBrokenCommitStream(t *testing.T) {
	for name, test := range map[string]struct {
		fault   fault
		commits []string
	}{
		"before it is carried out": {fault{cut: true}, []string{"commit nobody t-0=2", "commit nobody t-0=5", "commit nobody t-0=7"}},
		"after":                    {fault{cut: true, appended: true}, []string{"commit nobody t-0=2", "commit nobody t-0=5", "commit nobody t-0=5", "commit nobody t-0=7"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, g := newCommitCluster(t, 1)
				var requests atomic.Int32
				g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
					if requests.Add(1) == 2 {
						return test.fault
					}
					return fault{}
				}
				consumer := assigned(t, c.client(t), "g")
				for _, offset := range []int64{2, 5, 7} {
					var told atomic.Int32
					consumer.CommitAsync(func(err error) {
						if err != nil {
							t.Error(err)
						}
						told.Add(1)
					}, at(offset))
					sleepFor(t, 5*time.Second)
					if told.Load() != 1 {
						t.Errorf("the outcome of %d is told %d times", offset, told.Load())
					}
				}
				if got := g.commits(); !slices.Equal(got, test.commits) {
					t.Errorf("commits = %v, want %v", got, test.commits)
				}
				if got, want := g.counts(3), (streamCounts{begun: 2, open: 1, commits: 4}); got != want {
					t.Errorf("%+v, want %+v", got, want)
				}
			})
		})
	}
}

// TestBrokenCommitStreamIsInDoubt: whatever ends a stream, its commits may have been
// carried out, and may be made again.
func TestBrokenCommitStreamIsInDoubt(t *testing.T) {
	for name, err := range map[string]error{
		"refusal": failureError(failureOf(errorsv1.Reason_REASON_DRAINING)),
		"fatal":   failureError(failureOf(errorsv1.Reason_REASON_INVALID_REQUEST)),
		"other":   callError(t.Context(), "coordinator-3:1", errors.New("broken")),
	} {
		if e, ok := errors.AsType[*Error](inDoubt(err)); !ok || !e.OutcomeUnknown() || !repeatable(e) {
			t.Errorf("%s: %#v", name, e)
		}
	}
	if e := inDoubt(callError(t.Context(), "nowhere:1", refusedConnection("nowhere:1"))); !IsRetriable(e) {
		t.Errorf("a connection that was refused: %#v", e)
	}
}

// TestCommitStreamFollowsTheCoordinator, also away from one that stands still. The stream
// to it ends once nobody has used it for a while.
func TestCommitStreamFollowsTheCoordinator(t *testing.T) {
	for name, stuck := range map[string]bool{"that answers": false, "that stands still": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, g := newCommitCluster(t, 2)
				gate := make(chan struct{})
				var requests atomic.Int32
				g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
					if requests.Add(1) == 2 && stuck {
						return fault{wait: gate}
					}
					return fault{}
				}
				consumer := assigned(t, c.client(t), "g")
				if err := consumer.Commit(t.Context(), at(1)); err != nil {
					t.Fatal(err)
				}
				if stuck {
					consumer.CommitAsync(func(err error) {
						if err != nil {
							t.Error(err)
						}
					}, at(2))
					synctest.Wait()
				}
				c.coordinate(true, 4)
				start := time.Now()
				if err := consumer.Commit(t.Context(), at(3)); err != nil || time.Since(start) > 5*time.Second {
					t.Errorf("after %v: %v", time.Since(start), err)
				}
				close(gate)
				synctest.Wait()
				if got := g.counts(4); got.begun != 1 || g.committed(t0) != 3 {
					t.Errorf("the new coordinator: %+v, committed %d", got, g.committed(t0))
				}
				for time.Since(start) < commitStreamIdle+5*time.Second {
					if err := consumer.Commit(t.Context(), at(4)); err != nil {
						t.Error(err)
					}
					sleepFor(t, 5*time.Second)
				}
				before, after := g.counts(3), g.counts(4)
				if before.begun != 1 || before.open != 0 || after.begun != 1 || after.open != 1 {
					t.Errorf("the old one: %+v, the new one: %+v", before, after)
				}
			})
		})
	}
}

// TestCommitsWithoutStreams go by calls to a coordinator of an older version, which is
// asked for a stream once a minute.
func TestCommitsWithoutStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, g := newCommitCluster(t, 1)
		know := func(streams bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			g.streamless = !streams
		}
		know(false)
		client := c.client(t)
		var wait sync.WaitGroup
		for i := range 4 {
			consumer := assigned(t, client, fmt.Sprint("g", i))
			wait.Go(func() {
				for offset := range int64(9) {
					start := time.Now()
					if err := consumer.Commit(t.Context(), at(offset+1)); err != nil || time.Since(start) > 0 {
						t.Errorf("after %v: %v", time.Since(start), err)
					}
					sleepFor(t, time.Second)
				}
			})
		}
		wait.Wait()
		// All of the first four may have asked before one was answered.
		if got := g.counts(3); got.refused < 1 || got.refused > 4 || got.commits != 0 || len(g.commits()) != 36 {
			t.Errorf("%+v, %d commits", got, len(g.commits()))
		}
		know(true)
		consumer := assigned(t, client, "g")
		for range 2 {
			if err := consumer.Commit(t.Context(), at(1)); err != nil {
				t.Error(err)
			}
			sleepFor(t, commitStreamIdle)
		}
		if got := g.counts(3); got.begun != 1 || got.commits != 1 {
			t.Errorf("after a minute: %+v", got)
		}
	})
}

// TestIdleCommitStreamEnds, and leaves nothing behind.
func TestIdleCommitStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, g := newCommitCluster(t, 1)
		client := c.client(t)
		consumer := assigned(t, client, "g")
		for i := range 3 {
			if err := consumer.Commit(t.Context(), at(1)); err != nil {
				t.Fatal(err)
			}
			sleepFor(t, commitStreamIdle-time.Second)
			if got := g.counts(3); got.begun != 1 || got.open != 1 {
				t.Errorf("after commit %d: %+v", i, got)
			}
		}
		sleepFor(t, 2*time.Second)
		start := time.Now()
		client.commits.running.Wait()
		if got := g.counts(3); got.open != 0 || len(client.commits.streams) != 0 || time.Since(start) > 0 {
			t.Errorf("unused for a minute: %+v, %d are left, ended %v later", got, len(client.commits.streams), time.Since(start))
		}
		if err := consumer.Commit(t.Context(), at(2)); err != nil || g.committed(t0) != 2 {
			t.Errorf("the next: %v, committed %d", err, g.committed(t0))
		}
	})
}

// TestIdleCommitStreamEndsWithoutAnswer, where the coordinator has forgotten it.
func TestIdleCommitStreamEndsWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, g := newCommitCluster(t, 1)
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault { return fault{wait: make(chan struct{})} }
		client := c.client(t)
		start := time.Now()
		if _, err := client.commits.commit(t.Context(), "coordinator-3:1", &coordinatorv1.CommitOffsetsRequest{Group: "g"}); !repeatable(err) {
			t.Error(err)
		}
		client.commits.running.Wait()
		took := time.Since(start)
		synctest.Wait()
		if took != commitStreamIdle+farewell || g.counts(3).open != 0 {
			t.Errorf("ended after %v, %+v", took, g.counts(3))
		}
	})
}

// TestCloseWithCommitsOnTheStream: they are told, and a coordinator that does not answer
// holds the client up for no longer than a stream may take to end.
func TestCloseWithCommitsOnTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, g := newCommitCluster(t, 1)
		gate := make(chan struct{})
		defer close(gate)
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault { return fault{wait: gate} }
		client := c.client(t)
		var told atomic.Int32
		for i := range 5 {
			assigned(t, client, fmt.Sprint("g", i)).CommitAsync(func(err error) {
				if !errors.Is(err, ErrClosed) && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				told.Add(1)
			}, at(1))
		}
		synctest.Wait()
		start := time.Now()
		if err := client.Close(); err != nil || time.Since(start) > farewell {
			t.Errorf("closed after %v: %v", time.Since(start), err)
		}
		synctest.Wait()
		if got := g.counts(3); told.Load() != 5 || got.begun != 1 || got.open != 0 {
			t.Errorf("%d are told, %+v", told.Load(), got)
		}
		if _, err := client.commits.commit(t.Context(), "coordinator-3:1", &coordinatorv1.CommitOffsetsRequest{}); !errors.Is(err, ErrClosed) {
			t.Errorf("a commit after that: %v", err)
		}
	})
}

// TestCommitGivenUpHarmsNoOther: its late answer is nobody's, and what was sent behind it
// is not overtaken by it.
func TestCommitGivenUpHarmsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, g := newCommitCluster(t, 1)
		gate := make(chan struct{})
		var requests atomic.Int32
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
			if requests.Add(1) == 1 {
				return fault{wait: gate}
			}
			return fault{}
		}
		client := c.client(t)
		commit := func(ctx context.Context, offsets ...int64) (int, error) {
			request := &coordinatorv1.CommitOffsetsRequest{Group: "g"}
			for _, offset := range offsets {
				request.Offsets = append(request.Offsets, &coordinatorv1.OffsetCommit{Topic: "t", Offset: offset})
			}
			response, err := client.commits.commit(ctx, "coordinator-3:1", request)
			return len(response.GetResults()), err
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := commit(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		// One whose caller has no deadline is given up too, and may be made again.
		start := time.Now()
		if _, err := commit(t.Context(), 2); !repeatable(err) || time.Since(start) != callTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if left := len(client.commits.streams["coordinator-3:1"].waiting); left != 0 {
			t.Errorf("%d that nobody waits for are kept", left)
		}
		var results int
		var err error
		var wait sync.WaitGroup
		wait.Go(func() { results, err = commit(t.Context(), 3, 4) })
		synctest.Wait()
		close(gate)
		wait.Wait()
		if err != nil || results != 2 {
			t.Errorf("the next has %d results: %v", results, err)
		}
		if got, want := g.commits(), []string{"commit nobody t-0=1", "commit nobody t-0=2", "commit nobody t-0=3", "commit nobody t-0=4"}; !slices.Equal(got, want) {
			t.Errorf("commits = %v", got)
		}
		if got := g.counts(3); got.begun != 1 {
			t.Errorf("%+v", got)
		}
	})
}

// TestCommitsAreNumbered: of a member each request has a higher number than the one before,
// what is sent again after a broken stream and after the loss of the membership included.
func TestCommitsAreNumbered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, g := newCommitCluster(t, 1)
		var last uint64
		requests := 0
		g.onCommit = func(request *coordinatorv1.CommitOffsetsRequest) fault {
			if requests++; request.GetMemberId() == "" || request.GetCommitSequence() <= last {
				t.Errorf("request %d is of %q and has number %d after %d", requests, request.GetMemberId(), request.GetCommitSequence(), last)
			}
			last = request.GetCommitSequence()
			return fault{cut: requests == 1, appended: true}
		}
		a := c.member(t, "a", WithAutoCommit(0))
		subscribe(t, a, "t")
		for range 2 {
			if _, err := a.Poll(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := a.Commit(t.Context(), at(3)); err != nil {
				t.Fatal(err)
			}
			if err := a.Commit(t.Context(), at(2)); err != nil {
				t.Fatal(err)
			}
			if err := a.Unsubscribe(t.Context()); err != nil {
				t.Fatal(err)
			}
			subscribe(t, a, "t")
		}
		if requests < 5 {
			t.Errorf("%d requests", requests)
		}
		g.onCommit = func(request *coordinatorv1.CommitOffsetsRequest) fault {
			if request.GetCommitSequence() != 0 {
				t.Errorf("a commit of no member has number %d", request.GetCommitSequence())
			}
			return fault{}
		}
		if err := assigned(t, c.client(t), "h").Commit(t.Context(), at(1)); err != nil {
			t.Error(err)
		}
	})
}

// TestCommitStreamOverHTTP: a coordinator without streams, one that ends them, and one that
// stands still, which hears that the stream was given up.
func TestCommitStreamOverHTTP(t *testing.T) {
	commit := func(client *Client, address string, group string) error {
		_, err := client.commits.commit(t.Context(), address, &coordinatorv1.CommitOffsetsRequest{Group: group})
		return err
	}
	for name, test := range map[string]func(t *testing.T, client *Client, address string, service *httpOffsets){
		"a coordinator without streams": func(t *testing.T, client *Client, address string, service *httpOffsets) {
			for range 2 {
				if err := commit(client, address, "g"); err != nil {
					t.Error(err)
				}
			}
			if streams, calls := service.streams.Load(), service.calls.Load(); streams != 0 || calls != 2 {
				t.Errorf("%d streams and %d calls", streams, calls)
			}
		},
		"the coordinator ends the stream": func(t *testing.T, client *Client, address string, service *httpOffsets) {
			for range 2 {
				if err := commit(client, address, "refused"); !repeatable(err) {
					t.Error(err)
				}
				if err := commit(client, address, "g"); err != nil {
					t.Error(err)
				}
			}
			if streams, calls := service.streams.Load(), service.calls.Load(); streams != 3 || calls != 0 {
				t.Errorf("%d streams and %d calls", streams, calls)
			}
		},
		"the coordinator stands still": func(t *testing.T, client *Client, address string, service *httpOffsets) {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := client.commits.commit(ctx, address, &coordinatorv1.CommitOffsetsRequest{Group: "stuck"})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			select {
			case <-service.givenUp:
			case <-time.After(5 * time.Second):
				t.Error("the stream goes on")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			service := &httpOffsets{older: name == "a coordinator without streams", givenUp: make(chan struct{})}
			address := service.serve(t)
			client, err := NewClient(address)
			if err != nil {
				t.Fatal(err)
			}
			test(t, client, address, service)
			start := time.Now()
			if err := client.Close(); err != nil || time.Since(start) > 5*farewell {
				t.Errorf("closed after %v: %v", time.Since(start), err)
			}
		})
	}
}

// httpOffsets is the offset service of a coordinator behind HTTP, which keeps nothing.
type httpOffsets struct {
	coordinatorv1connect.UnimplementedOffsetServiceHandler
	// older is one that knows no streams of commits.
	older          bool
	streams, calls atomic.Int32
	// givenUp is closed when a stream ends that has a commit of the group "stuck".
	givenUp chan struct{}
}

// serve returns the address.
func (h *httpOffsets) serve(t *testing.T) string {
	server := connect.NewServer()
	coordinatorv1connect.RegisterOffsetServiceHandler(server, h)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server, connecthttp.WithCodecs(transport.Codec()), connecthttp.WithCompressors())
	outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.older && strings.HasSuffix(r.URL.Path, "/CommitOffsetsStream") {
			http.NotFound(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serving := &http.Server{Handler: outer, HTTP2: transport.ServerHTTP2(), Protocols: new(http.Protocols), ReadHeaderTimeout: 5 * time.Second}
	serving.Protocols.SetUnencryptedHTTP2(true)
	var running sync.WaitGroup
	running.Go(func() { _ = serving.Serve(listener) })
	t.Cleanup(func() {
		_ = serving.Close()
		running.Wait()
	})
	return listener.Addr().String()
}

func (h *httpOffsets) CommitOffsets(context.Context, *coordinatorv1.CommitOffsetsRequest) (*coordinatorv1.CommitOffsetsResponse, error) {
	h.calls.Add(1)
	return &coordinatorv1.CommitOffsetsResponse{}, nil
}

func (h *httpOffsets) CommitOffsetsStream(ctx context.Context, stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamServerStream) error {
	h.streams.Add(1)
	for {
		request, err := stream.Receive()
		if err != nil {
			return err
		}
		switch request.GetCommit().GetGroup() {
		case "refused":
			return statusError(failureOf(errorsv1.Reason_REASON_DRAINING))
		case "stuck":
			<-ctx.Done()
			close(h.givenUp)
			return ctx.Err()
		}
		if err := stream.Send(&coordinatorv1.CommitOffsetsStreamResponse{RequestId: request.GetRequestId(), Result: &coordinatorv1.CommitOffsetsResponse{}}); err != nil {
			return err
		}
	}
}
