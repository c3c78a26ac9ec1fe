package runnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// mortal is a process of its own: once it is dead nothing reaches the cluster.
type mortal struct {
	*fakeCluster
	dead atomic.Bool
}

func (m *mortal) Transport(address string, class transport.Class) connect.Transport {
	return mortalTransport{m, m.fakeCluster.Transport(address, class), address}
}

func (m *mortal) kill() {
	m.dead.Store(true)
	for _, n := range m.nodes {
		n.cut()
	}
}

type mortalTransport struct {
	process *mortal
	connect.Transport
	address string
}

func (m mortalTransport) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	if m.process.dead.Load() {
		return nowhere{m.address}.NewClientStream(ctx, spec)
	}
	return m.Transport.NewClientStream(ctx, spec)
}

// TestDelivery kills a member at each step that it takes, and counts what its successor
// reads again and what nobody has read.
func TestDelivery(t *testing.T) {
	const records = 12
	for delivery, name := range map[Delivery]string{AtLeastOnce: "at least once", AtMostOnce: "at most once"} {
		t.Run(name, func(t *testing.T) {
			lost, repeated, kills := 0, 0, 0
			for step, killed := 0, true; killed; step++ {
				synctest.Test(t, func(t *testing.T) {
					var times map[string]int
					times, killed = deliver(t, delivery, step, records)
					for n := range records {
						switch times[strconv.Itoa(n)] {
						case 0:
							lost++
							if delivery == AtLeastOnce {
								t.Errorf("killed at step %d: record %d is lost", step, n)
							}
						case 1:
						default:
							repeated++
							if delivery == AtMostOnce {
								t.Errorf("killed at step %d: record %d is repeated", step, n)
							}
						}
					}
				})
				kills++
			}
			t.Logf("%d kills: %d lost, %d repeated", kills-1, lost, repeated)
			if kills < 20 {
				t.Errorf("only %d kills", kills)
			}
			if lost+repeated == 0 {
				t.Error("no kill has cost anything: they miss their moments")
			}
		})
	}
}

// deliver lets a member read a partition and kills it at a step, and a successor finish;
// it returns how often each record was handled, and whether it came to the kill.
func deliver(t *testing.T, delivery Delivery, step, records int) (times map[string]int, killed bool) {
	c := newFakeCluster(1)
	g := c.addCoordinators(1)
	c.createTopic("t", 1)
	for n := 0; n < records; n += 3 {
		c.fill(t, "t", 0, recordbatch.None, numbers(n, n+3)...)
	}
	// One batch per response, and so about one per poll.
	options := []ConsumerOption{WithSessionTimeout(3 * time.Second), WithDelivery(delivery), WithReset(ResetEarliest), WithGroup("g")}
	if delivery == AtLeastOnce {
		options = append(options, WithAutoCommit(7*time.Millisecond))
	}
	process := &mortal{fakeCluster: c}
	var mu sync.Mutex
	passed := 0
	// dies reports whether the member dies here.
	dies := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if process.dead.Load() {
			return true
		}
		passed++
		if passed > step {
			killed = true
			process.dead.Store(true)
		}
		return process.dead.Load()
	}
	g.onCommit = func(r *coordinatorv1.CommitOffsetsRequest) fault {
		if process.dead.Load() {
			return fault{}
		}
		if dies() {
			return fault{cut: true}
		}
		if dies() {
			return fault{cut: true, appended: true}
		}
		return fault{}
	}
	times = make(map[string]int)
	handle := func(r ConsumedRecord) {
		mu.Lock()
		defer mu.Unlock()
		times[string(r.Value)]++
	}
	client, err := Config{Bootstrap: []string{"meta:1"}, Transports: process, ClientID: "a"}.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() // Of a dead process: it reaches nobody.
	first, err := client.NewConsumer(options...)
	if err != nil {
		t.Fatal(err)
	}
	subscribe(t, first, "t")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
reading:
	for !dies() {
		short, done := context.WithTimeout(ctx, 100*time.Millisecond)
		polled, err := first.Poll(short)
		done()
		if ctx.Err() != nil || err == nil && dies() {
			break
		}
		for r := range polled.All() {
			sleepFor(t, 5*time.Millisecond)
			if dies() {
				break reading
			}
			handle(r)
			if dies() {
				break reading
			}
		}
	}
	mu.Lock()
	dead := killed
	mu.Unlock()
	if !dead {
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}
	process.kill()
	sleepFor(t, 4*time.Second)
	second := c.member(t, "b", options...)
	subscribe(t, second, "t")
	for {
		short, done := context.WithTimeout(t.Context(), 10*time.Second)
		polled, err := second.Poll(short)
		done()
		if err != nil {
			return times, dead
		}
		for r := range polled.All() {
			handle(r)
		}
	}
}

// TestAtMostOnceReturnsNothingUncommitted: what could not be committed is kept back, and
// comes once it can.
func TestAtMostOnceReturnsNothingUncommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0", "1")
		var down atomic.Bool
		down.Store(true)
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
			if down.Load() {
				return fault{failure: failureOf(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)}
			}
			return fault{}
		}
		a := c.member(t, "a", WithDelivery(AtMostOnce))
		subscribe(t, a, "t")
		nothing(t, a)
		down.Store(false)
		want(t, poll(t, a, 2), "0:0=0", "0:1=1")
		if g.committed(t0) != 2 {
			t.Errorf("committed = %d", g.committed(t0))
		}
	})
}

// TestAtMostOnceLeavesOutWhatTheLogHasLost: records that were fetched and are not in the
// log any more cannot be committed, and hold neither their partition nor the others up.
func TestAtMostOnceLeavesOutWhatTheLogHasLost(t *testing.T) {
	for name, test := range map[string]struct {
		cut  int64
		want []string
	}{
		"all of them":  {1, []string{"0:1=another", "1:0=other"}},
		"some of them": {2, []string{"0:1=1", "0:2=another", "1:0=other"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				g := c.addCoordinators(1)
				c.createTopic("t", 2)
				c.fill(t, "t", 0, recordbatch.None, "0")
				a := c.member(t, "a", WithDelivery(AtMostOnce))
				subscribe(t, a, "t")
				want(t, poll(t, a, 1), "0:0=0")
				c.fill(t, "t", 0, recordbatch.None, "1")
				c.fill(t, "t", 0, recordbatch.None, "2")
				c.fill(t, "t", 0, recordbatch.None, "3")
				c.fill(t, "t", 1, recordbatch.None, "other")
				synctest.Wait()
				c.truncate("t", 0, test.cut)
				c.fill(t, "t", 0, recordbatch.None, "another")
				var got []string
				for len(got) < len(test.want) {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					records, err := a.Poll(ctx)
					cancel()
					if err != nil && ReasonOf(err) != errorsv1.Reason_REASON_LOG_TRUNCATED {
						t.Fatalf("Poll after %v: %v", got, err)
					}
					for r := range records.All() {
						got = append(got, fmt.Sprintf("%d:%d=%s", r.Partition, r.Offset, r.Value))
					}
				}
				slices.Sort(got)
				want(t, got, test.want...)
				if g.committed(t0) != test.cut+1 {
					t.Errorf("committed = %d", g.committed(t0))
				}
			})
		})
	}
}

// TestCloseEndsAPollThatCommits: Close does not wait for a coordinator that never
// answers.
func TestCloseEndsAPollThatCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0")
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
			return fault{failure: failureOf(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)}
		}
		a := c.member(t, "a", WithDelivery(AtMostOnce))
		subscribe(t, a, "t")
		polled := make(chan error)
		go func() {
			_, err := a.Poll(context.Background())
			polled <- err
		}()
		sleepFor(t, time.Minute)
		before := time.Now()
		closed := make(chan error)
		go func() { closed <- a.Close() }()
		if err := <-polled; !errors.Is(err, ErrClosed) {
			t.Errorf("Poll = %v", err)
		}
		if err := <-closed; err != nil || time.Since(before) > time.Second {
			t.Errorf("Close took %v: %v", time.Since(before), err)
		}
	})
}

// TestCloseDoesNotWaitForCommits of the program: they are told that it has closed.
func TestCloseDoesNotWaitForCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0")
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault { return fault{wait: make(chan struct{})} }
		a := c.member(t, "a", WithAutoCommit(0))
		subscribe(t, a, "t")
		poll(t, a, 1)
		outcomes := make(chan error, 2)
		go func() { outcomes <- a.Commit(context.Background()) }()
		synctest.Wait()
		a.CommitAsync(func(err error) { outcomes <- err })
		synctest.Wait()
		before := time.Now()
		if err := a.Close(); err != nil || time.Since(before) > time.Second {
			t.Errorf("Close took %v: %v", time.Since(before), err)
		}
		for range 2 {
			if err := <-outcomes; !errors.Is(err, ErrClosed) {
				t.Errorf("a commit under way = %v", err)
			}
		}
	})
}

// TestCloseCommits what the program has done with, and nothing else.
func TestCloseCommits(t *testing.T) {
	for name, test := range map[string]struct {
		polls     int
		committed int64
	}{"after the first poll": {1, 0}, "after another poll": {2, 3}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				g := c.addCoordinators(1)
				c.createTopic("t", 1)
				c.fill(t, "t", 0, recordbatch.None, numbers(0, 3)...)
				a := c.member(t, "a", WithAutoCommit(time.Hour))
				subscribe(t, a, "t")
				poll(t, a, 3)
				if test.polls > 1 {
					nothing(t, a)
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				if got := max(g.committed(t0), 0); got != test.committed {
					t.Errorf("committed = %d, want %d", got, test.committed)
				}
				if err := a.Commit(t.Context()); !errors.Is(err, ErrClosed) {
					t.Errorf("Commit after Close = %v", err)
				}
				if _, err := a.Poll(t.Context()); !errors.Is(err, ErrClosed) {
					t.Errorf("Poll after Close = %v", err)
				}
			})
		})
	}
}

func TestAutoCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, numbers(0, 3)...)
		a := c.member(t, "a")
		subscribe(t, a, "t")
		poll(t, a, 3)
		sleepFor(t, 20*time.Second)
		if got := g.committed(t0); got > 0 {
			t.Errorf("committed %d while the program may still be at work", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := a.Poll(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		sleepFor(t, 6*time.Second)
		if got := g.committed(t0); got != 3 {
			t.Errorf("committed = %d", got)
		}
	})
}

// TestStartIsCommitted: where a member begins is committed though it reads nothing, so
// that how far behind it is can be told.
func TestStartIsCommitted(t *testing.T) {
	for name, test := range map[string]struct {
		options []ConsumerOption
		wait    time.Duration
		close   bool
		want    int64
	}{
		"the end":                                   {[]ConsumerOption{WithReset(ResetLatest)}, time.Second, false, 3},
		"the end, the program commits":              {[]ConsumerOption{WithReset(ResetLatest), WithAutoCommit(0)}, time.Second, false, 3},
		"the end, at most once":                     {[]ConsumerOption{WithReset(ResetLatest), WithDelivery(AtMostOnce)}, time.Second, false, 3},
		"the beginning, by auto-commit":             {nil, 6 * time.Second, false, 0},
		"the beginning, by Close":                   {nil, time.Second, true, 0},
		"not the beginning, if the program commits": {[]ConsumerOption{WithAutoCommit(0)}, 6 * time.Second, true, -1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				g := c.addCoordinators(1)
				c.createTopic("t", 1)
				if test.want > 0 {
					c.fill(t, "t", 0, recordbatch.None, numbers(0, 3)...)
				}
				a := c.member(t, "a", test.options...)
				subscribe(t, a, "t")
				ctx, cancel := context.WithTimeout(t.Context(), test.wait)
				defer cancel()
				if _, err := a.Poll(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				if test.close {
					if err := a.Close(); err != nil {
						t.Error(err)
					}
				}
				if got := g.committed(t0); got != test.want {
					t.Errorf("committed = %d, want %d", got, test.want)
				}
			})
		})
	}
}

// TestNothingBetweenTwoStartsIsLost: a member that begins at the end and ends, with or
// without a word, before it has read anything, or committed what it has read, is followed
// by one that goes on where it began.
func TestNothingBetweenTwoStartsIsLost(t *testing.T) {
	for delivery, options := range map[string][]ConsumerOption{
		"at least once":                      nil,
		"at least once, the program commits": {WithAutoCommit(0)},
		"at most once":                       {WithDelivery(AtMostOnce)},
	} {
		for _, end := range []string{"closed", "killed", "killed with records in hand"} {
			if delivery == "at most once" && end == "killed with records in hand" {
				continue
			}
			t.Run(delivery+", "+end, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newFakeCluster(1)
					c.addCoordinators(1)
					c.createTopic("t", 1)
					c.fill(t, "t", 0, recordbatch.None, "before")
					options := append([]ConsumerOption{WithReset(ResetLatest), WithSessionTimeout(3 * time.Second)}, options...)
					process := &mortal{fakeCluster: c}
					client, err := Config{Bootstrap: []string{"meta:1"}, Transports: process, ClientID: "a"}.NewClient()
					if err != nil {
						t.Fatal(err)
					}
					defer client.Close() // Of a dead process: it reaches nobody.
					first, err := client.NewConsumer(append(options, WithGroup("g"))...)
					if err != nil {
						t.Fatal(err)
					}
					subscribe(t, first, "t")
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					if _, err := first.Poll(ctx); !errors.Is(err, context.DeadlineExceeded) {
						t.Fatal(err)
					}
					switch end {
					case "closed":
						if err := first.Close(); err != nil {
							t.Fatal(err)
						}
					case "killed with records in hand":
						c.fill(t, "t", 0, recordbatch.None, "between")
						want(t, poll(t, first, 1), "0:1=between")
					}
					process.kill()
					if end != "killed with records in hand" {
						c.fill(t, "t", 0, recordbatch.None, "between")
					}
					sleepFor(t, 4*time.Second)
					second := c.member(t, "b", options...)
					subscribe(t, second, "t")
					want(t, poll(t, second, 1), "0:1=between")
				})
			})
		}
	}
}

// TestNothingIsReturnedBeforeTheStartIsCommitted: records that come meanwhile wait, and
// come once it is.
func TestNothingIsReturnedBeforeTheStartIsCommitted(t *testing.T) {
	for delivery, name := range map[Delivery]string{AtLeastOnce: "at least once", AtMostOnce: "at most once"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				g := c.addCoordinators(1)
				c.createTopic("t", 1)
				c.fill(t, "t", 0, recordbatch.None, "0")
				var reason atomic.Int32
				reason.Store(int32(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE))
				g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
					if r := errorsv1.Reason(reason.Load()); r != errorsv1.Reason_REASON_UNSPECIFIED {
						return fault{failure: failureOf(r)}
					}
					return fault{}
				}
				a := c.member(t, "a", WithReset(ResetLatest), WithDelivery(delivery))
				subscribe(t, a, "t")
				nothing(t, a)
				c.fill(t, "t", 0, recordbatch.None, "1")
				nothing(t, a)
				sleepFor(t, 2*asyncCommitTimeout)
				nothing(t, a)
				reason.Store(0)
				want(t, poll(t, a, 1), "0:1=1")
				reason.Store(int32(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE))

				// Where the program itself says where to begin nothing is waited for.
				b := c.member(t, "b", WithGroup("other"), WithReset(ResetLatest), WithAutoCommit(0))
				subscribe(t, b, "t")
				nothing(t, b)
				if err := b.Seek(t0, Earliest()); err != nil {
					t.Fatal(err)
				}
				want(t, poll(t, b, 2), "0:0=0", "0:1=1")
				reason.Store(0)
			})
		})
	}
}

// TestAddedPartitionBeginsAtItsStart: what was written there before the member has found it
// is read, at the end of everything else too, and by the successor of one that has died
// with it in hand.
func TestAddedPartitionBeginsAtItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 2)
		c.fill(t, "t", 0, recordbatch.None, "before")
		c.fill(t, "t", 1, recordbatch.None, "new")
		g.added = map[TopicPartition]bool{{Topic: "t", Partition: 1}: true}
		process := &mortal{fakeCluster: c}
		client, err := Config{Bootstrap: []string{"meta:1"}, Transports: process, ClientID: "a"}.NewClient()
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close() // Of a dead process: it reaches nobody.
		first, err := client.NewConsumer(WithGroup("g"), WithReset(ResetLatest), WithSessionTimeout(3*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		subscribe(t, first, "t")
		want(t, poll(t, first, 1), "1:0=new")
		process.kill()
		sleepFor(t, 4*time.Second)
		c.change(func() { g.added = nil })
		second := c.member(t, "b", WithReset(ResetLatest))
		subscribe(t, second, "t")
		want(t, poll(t, second, 1), "1:0=new")
		nothing(t, second)
	})
}

// TestStartThatCannotBeCommitted is told: nothing is read of the partition.
func TestStartThatCannotBeCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
			return fault{failure: failureOf(errorsv1.Reason_REASON_LIMIT_REACHED)}
		}
		a := c.member(t, "a", WithReset(ResetLatest), WithAutoCommit(0))
		subscribe(t, a, "t")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := a.Poll(ctx)
		if _, ok := errors.AsType[*PartitionError](err); !ok || ReasonOf(err) != errorsv1.Reason_REASON_LIMIT_REACHED {
			t.Errorf("Poll = %v", err)
		}
		g.onCommit = nil
	})
}

// TestStartUndoesNoCommit: what the program commits before it is known where the member
// begins is not undone by the commit of that.
func TestStartUndoesNoCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, numbers(0, 9)...)
		gate := make(chan struct{})
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault { return fault{wait: gate} }
		var a *Consumer
		a = c.member(t, "a", WithReset(ResetLatest), WithAutoCommit(0), WithRebalance(Rebalance{Assigned: func(context.Context, []TopicPartition) {
			a.CommitAsync(func(err error) {
				if err != nil {
					t.Error(err)
				}
			}, GroupOffset{TopicPartition: t0, Position: Position{Offset: 2, LeaderEpoch: -1}})
		}}))
		subscribe(t, a, "t")
		poll := func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if records, err := a.Poll(ctx); err == nil {
				t.Errorf("%d records are read from the end on", records.Len())
			}
		}
		poll()
		close(gate)
		poll()
		if committed := g.committed(t0); committed != 2 {
			t.Errorf("committed %d, want 2", committed)
		}
	})
}

// TestCommitsKeepTheirOrder: one at a time, and what gathers meanwhile goes together.
func TestCommitsKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, numbers(0, 9)...)
		gate := make(chan struct{})
		requests := 0
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
			requests++
			return fault{wait: gate}
		}
		a := c.member(t, "a", WithAutoCommit(0))
		subscribe(t, a, "t")
		records, err := a.Poll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		told := 0
		for i, r := range records.Slice()[:8] {
			a.CommitAsync(func(err error) {
				if err != nil {
					t.Error(err)
				}
				if told != i {
					t.Errorf("callback %d comes as number %d", i, told)
				}
				told++
			}, After(r))
			synctest.Wait()
		}
		close(gate)
		if err := a.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if requests > 3 || told != 8 || g.committed(t0) != 9 {
			t.Errorf("%d requests, %d callbacks, committed %d", requests, told, g.committed(t0))
		}
		committed, err := a.Committed(t.Context(), t0, TopicPartition{"t", 7})
		if err != nil || len(committed) != 1 || committed[t0].Position != (Position{Offset: 9, LeaderEpoch: 0}) {
			t.Errorf("committed = %+v, %v", committed, err)
		}
		// Going back is for the program to decide.
		if err := a.Commit(t.Context(), GroupOffset{TopicPartition: t0, Position: Position{Offset: 4, LeaderEpoch: -1}, Metadata: "again"}); err != nil {
			t.Fatal(err)
		}
		if committed, _ = a.Committed(t.Context()); committed[t0].Offset != 4 || committed[t0].LeaderEpoch != -1 || committed[t0].Metadata != "again" {
			t.Errorf("committed = %+v", committed)
		}
	})
}

func TestCommitErrorsNameTheRemedy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0")
		var failing atomic.Int32
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
			if reason := errorsv1.Reason(failing.Load()); reason != errorsv1.Reason_REASON_UNSPECIFIED {
				return fault{failure: failureOf(reason)}
			}
			return fault{}
		}
		a := c.member(t, "a", WithAutoCommit(0))
		subscribe(t, a, "t")
		poll(t, a, 1)
		for _, reason := range []errorsv1.Reason{
			errorsv1.Reason_REASON_UNKNOWN_MEMBER, errorsv1.Reason_REASON_MEMBER_FENCED, errorsv1.Reason_REASON_STALE_MEMBER_EPOCH,
			errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED,
		} {
			failing.Store(int32(reason))
			err := a.Commit(t.Context())
			failed, ok := errors.AsType[*CommitError](err)
			if !ok || ReasonOf(err) != reason || len(failed.Failed) != 1 || failed.Failed[0].TopicPartition != t0 || !strings.Contains(err.Error(), "go on with Poll") {
				t.Errorf("%v: %v", reason, err)
			}
		}
		failing.Store(int32(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := a.Commit(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a coordinator: %v", err)
		}
		failing.Store(0)
		if err := a.Commit(t.Context(), GroupOffset{TopicPartition: TopicPartition{"t", 5}}); ReasonOf(err) != errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED {
			t.Errorf("a partition of nobody: %v", err)
		}
		if err := c.consumer(t).Commit(t.Context()); ReasonOf(err) != errorsv1.Reason_REASON_INVALID_GROUP_ID {
			t.Errorf("without a group: %v", err)
		}
	})
}

// TestCommitWithoutMembership is what a program that assigns partitions itself does.
func TestCommitWithoutMembership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0", "1")
		a := c.member(t, "a")
		if err := a.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
			t.Fatal(err)
		}
		poll(t, a, 2)
		if err := a.Commit(t.Context()); err != nil {
			t.Error(err)
		}
		if got := g.history(); len(got) != 1 || got[0] != "commit nobody t-0=2" {
			t.Errorf("events = %v", got)
		}
	})
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, numbers(0, 5)...)
		a := c.member(t, "a", WithAutoCommit(time.Hour))
		subscribe(t, a, "t")
		var handled []string
		refused := errors.New("refused")
		handler := func(_ context.Context, r ConsumedRecord) error {
			if string(r.Value) == "3" && refused != nil {
				return refused
			}
			handled = append(handled, string(r.Value))
			return nil
		}
		err := a.Run(t.Context(), handler)
		if !errors.Is(err, refused) || !strings.Contains(fmt.Sprint(err), "t-0, offset 3") {
			t.Errorf("Run = %v", err)
		}
		want(t, handled, "0", "1", "2")
		if g.committed(t0) != 3 {
			t.Errorf("committed = %d", g.committed(t0))
		}
		refused = nil
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Run(ctx, handler); err != nil {
			t.Errorf("Run = %v", err)
		}
		want(t, handled, "0", "1", "2", "3", "4")
		if g.committed(t0) != 5 {
			t.Errorf("committed = %d", g.committed(t0))
		}
	})
}

// TestRunKeepsWhatItDidNotComeTo: an error in one partition costs no records of others.
func TestRunKeepsWhatItDidNotComeTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.addCoordinators(1)
		c.createTopic("t", 2)
		c.fill(t, "t", 0, recordbatch.None, "a", "b")
		c.fill(t, "t", 1, recordbatch.None, "c", "d")
		a := c.member(t, "a", WithAutoCommit(time.Hour))
		subscribe(t, a, "t")
		var both Records
		for both.count < 4 {
			records, err := a.Poll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			both.chunks, both.count = append(both.chunks, records.chunks...), both.count+records.count
		}
		refused := errors.New("refused")
		if _, err := a.handle(t.Context(), both, func(context.Context, ConsumedRecord) error { return refused }); !errors.Is(err, refused) {
			t.Errorf("handle = %v", err)
		}
		if got := settle(t, a)[0]; len(got) != 4 {
			t.Errorf("read again: %v", got)
		}
	})
}

func TestGroupOptionsAreChecked(t *testing.T) {
	client := newFakeCluster(1).client(t)
	for name, options := range map[string][]ConsumerOption{
		"group id":              {WithGroup("")},
		"longer than 255":       {WithGroup("g"), WithInstanceID(strings.Repeat("x", 256))},
		"assignor":              {WithGroup("g"), WithAssignor("best")},
		"session timeout":       {WithGroup("g"), WithSessionTimeout(time.Millisecond)},
		"rebalance timeout":     {WithGroup("g"), WithRebalanceTimeout(time.Millisecond)},
		"within 1s and 24h0m0s": {WithGroup("g"), WithRebalanceTimeout(25 * time.Hour)},
		"delivery":              {WithGroup("g"), WithDelivery(7)},
		"auto-commit":           {WithGroup("g"), WithAutoCommit(-1)},
		"leave WithAuto":        {WithGroup("g"), WithAutoCommit(0), WithDelivery(AtMostOnce)},
		"add WithGroup":         {WithAutoCommit(0)},
		"1 to 255":              {WithGroup(strings.Repeat("x", 256))},
		"sticky, range or ":     {WithGroup("g"), WithAssignor("x")},
	} {
		if _, err := client.NewConsumer(options...); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
