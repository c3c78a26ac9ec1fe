package runnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

func subscribe(t testing.TB, c *Consumer, topics ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Subscribe(ctx, topics...); err != nil {
		t.Fatal(err)
	}
}

// settle polls all consumers for some seconds, and returns what each has read.
func settle(t testing.TB, consumers ...*Consumer) [][]string {
	t.Helper()
	read := make([][]string, len(consumers))
	var wait sync.WaitGroup
	for i, c := range consumers {
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for {
				records, err := c.Poll(ctx)
				if errors.Is(err, context.DeadlineExceeded) {
					return
				}
				if err != nil {
					t.Errorf("consumer %d: %v", i, err)
					return
				}
				for r := range records.All() {
					read[i] = append(read[i], fmt.Sprintf("%d:%d=%s", r.Partition, r.Offset, r.Value))
				}
			}
		})
	}
	wait.Wait()
	return read
}

func TestMemberReadsFromTheCommittedOffsets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		g := c.addCoordinators(1)
		c.createTopic("t", 2)
		c.fill(t, "t", 0, recordbatch.None, numbers(0, 3)...)
		c.fill(t, "t", 1, recordbatch.None, "x")
		first := c.member(t, "a")
		subscribe(t, first, "t")
		got := settle(t, first)[0]
		slices.Sort(got)
		want(t, got, "0:0=0", "0:1=1", "0:2=2", "1:0=x")
		if g.committed(t0) != 3 {
			t.Errorf("committed = %d", g.committed(t0))
		}
		if status, ok := first.GroupStatus(); !ok || status.Members != 1 || status.Partitions != 2 || status.MemberEpoch != 1 {
			t.Errorf("status = %+v, %v", status, ok)
		}
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		c.fill(t, "t", 0, recordbatch.None, "3")
		second := c.member(t, "b")
		subscribe(t, second, "t")
		want(t, settle(t, second)[0], "0:3=3")
	})
}

func TestPartitionsAreSharedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 4)
		var members []*Consumer
		for _, name := range []string{"a", "b", "c"} {
			m := c.member(t, name)
			subscribe(t, m, "t")
			members = append(members, m)
			settle(t, members...)
		}
		owner := make(map[TopicPartition]int)
		for _, m := range members {
			assigned := m.Assigned()
			if len(assigned) < 1 || len(assigned) > 2 {
				t.Errorf("a member has %v", assigned)
			}
			for _, tp := range assigned {
				owner[tp]++
			}
		}
		for i := range int32(4) {
			if n := owner[TopicPartition{"t", i}]; n != 1 {
				t.Errorf("partition %d has %d owners", i, n)
			}
		}
		// Who leaves hands over at once.
		if err := members[0].Close(); err != nil {
			t.Error(err)
		}
		for i := range 4 {
			c.fill(t, "t", i, recordbatch.None, "late")
		}
		read := settle(t, members[1:]...)
		if n := len(read[0]) + len(read[1]); n != 4 {
			t.Errorf("read %v", read)
		}
		if err := members[1].Unsubscribe(t.Context()); err != nil {
			t.Error(err)
		}
		settle(t, members[2])
		if n := len(members[2].Assigned()); n != 4 {
			t.Errorf("the last member has %d partitions", n)
		}
		if _, err := members[1].Poll(t.Context()); !errors.Is(err, ErrNotAssigned) {
			t.Errorf("Poll after Unsubscribe = %v", err)
		}
		if !slices.Contains(g.history(), "leave b") {
			t.Errorf("events = %v", g.history())
		}
	})
}

// TestRevocationOrder: a partition goes on only once the program was told, what it has
// done with is committed, and the coordinator was told.
func TestRevocationOrder(t *testing.T) {
	for name, byHand := range map[string]bool{"auto-commit": false, "by hand": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				g := c.addCoordinators(1)
				c.createTopic("t", 2)
				c.fill(t, "t", 0, recordbatch.None, "0")
				c.fill(t, "t", 1, recordbatch.None, "0", "1")
				event := func(format string, args ...any) {
					c.mu.Lock()
					defer c.mu.Unlock()
					g.events = append(g.events, fmt.Sprintf(format, args...))
				}
				var a *Consumer
				options := []ConsumerOption{WithAutoCommit(time.Hour)}
				if byHand {
					options = []ConsumerOption{WithAutoCommit(0)}
				}
				options = append(options, WithRebalance(Rebalance{
					Assigned: func(_ context.Context, partitions []TopicPartition) { event("assigned %v", partitions) },
					Revoked: func(ctx context.Context, partitions []TopicPartition) {
						event("revoked %v", partitions)
						if byHand {
							if err := a.Commit(ctx); err != nil {
								t.Error(err)
							}
						}
					},
					Lost: func(_ context.Context, partitions []TopicPartition) { event("lost %v", partitions) },
				}))
				a = c.member(t, "a", options...)
				subscribe(t, a, "t")
				poll(t, a, 3)
				nothing(t, a)
				b := c.member(t, "b", WithRebalance(Rebalance{
					Assigned: func(_ context.Context, partitions []TopicPartition) { event("b assigned %v", partitions) },
				}))
				subscribe(t, b, "t")
				nothing(t, b) // Nobody polls for a: nothing is given up.
				before := len(g.history())
				if got := b.Assigned(); len(got) != 0 {
					t.Fatalf("b has %v", got)
				}
				settle(t, a, b)
				at := -1
				for _, e := range []string{"revoked [t-0]", "commit a t-0=1", "confirm a", "b assigned [t-0]"} {
					next := slices.Index(g.history()[before:], e)
					if next <= at {
						t.Fatalf("%q is at %d, after %d, of %v", e, next, at, g.history()[before:])
					}
					at = next
				}
				if slices.ContainsFunc(g.history(), func(e string) bool { return strings.HasPrefix(e, "lost") }) {
					t.Errorf("events = %v", g.history())
				}
			})
		})
	}
}

func TestLostSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		var mu sync.Mutex
		mute := false
		names := make(map[string]string)
		// Nothing of a arrives while it is mute.
		muted := func(name string) fault {
			mu.Lock()
			defer mu.Unlock()
			if mute && name == "a" {
				return fault{delay: time.Hour}
			}
			return fault{}
		}
		setMute := func(on bool) {
			mu.Lock()
			defer mu.Unlock()
			mute = on
		}
		g.onJoin = func(r *coordinatorv1.JoinRequest) fault {
			mu.Lock()
			names[r.GetMemberId()] = r.GetClientId()
			mu.Unlock()
			return muted(r.GetClientId())
		}
		g.onHeartbeat = func(r *coordinatorv1.HeartbeatRequest) fault {
			mu.Lock()
			name := names[r.GetMemberId()]
			mu.Unlock()
			return muted(name)
		}
		var lost []TopicPartition
		a := c.member(t, "a", WithSessionTimeout(9*time.Second), WithRebalance(Rebalance{
			Lost: func(_ context.Context, partitions []TopicPartition) { lost = append(lost, partitions...) },
		}))
		subscribe(t, a, "t")
		c.fill(t, "t", 0, recordbatch.None, "0", "1")
		records, err := a.Poll(t.Context())
		if err != nil || records.Len() != 2 {
			t.Fatal(records.Len(), err)
		}
		first, _ := a.GroupStatus()
		stale := records.Slice()[0]
		c.fill(t, "t", 0, recordbatch.None, "2")
		setMute(true)
		sleepFor(t, 12*time.Second)
		if got := a.Assigned(); len(got) != 0 {
			t.Errorf("after the session timeout a has %v", got)
		}
		b := c.member(t, "b")
		subscribe(t, b, "t")
		want(t, poll(t, b, 3), "0:0=0", "0:1=1", "0:2=2")
		nothing(t, a)
		if len(lost) != 1 || lost[0] != t0 {
			t.Errorf("lost = %v", lost)
		}
		if err := a.Commit(t.Context(), After(stale)); ReasonOf(err) != errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED {
			t.Errorf("stale commit = %v", err)
		}
		setMute(false)
		settle(t, a, b)
		if status, ok := a.GroupStatus(); !ok || status.Members != 2 || status.MemberID == first.MemberID {
			t.Errorf("a is back as %+v, %v", status, ok)
		}
		// What was read in the first life is stale in the second, whoever has it.
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		settle(t, a)
		if got := a.Assigned(); len(got) != 1 {
			t.Errorf("a has %v", got)
		}
		if err := a.Commit(t.Context(), After(stale)); ReasonOf(err) != errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED {
			t.Errorf("stale commit = %v", err)
		}
	})
}

// sleepFor lets the bubble's time pass.
func sleepFor(t testing.TB, d time.Duration) {
	t.Helper()
	if err := sleep(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

// TestRebalanceTimeout: the coordinator is told, and callbacks get no longer.
func TestRebalanceTimeout(t *testing.T) {
	for name, test := range map[string]struct {
		options []ConsumerOption
		want    time.Duration
	}{
		"default": {nil, 5 * time.Minute},
		"chosen":  {[]ConsumerOption{WithRebalanceTimeout(7 * time.Second)}, 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				g := c.addCoordinators(1)
				c.createTopic("t", 1)
				g.onJoin = func(r *coordinatorv1.JoinRequest) fault {
					if got := time.Duration(r.GetRebalanceTimeoutMs()) * time.Millisecond; got != test.want {
						t.Errorf("the coordinator is told %v, want %v", got, test.want)
					}
					return fault{}
				}
				var took time.Duration
				a := c.member(t, "a", append(test.options, WithRebalance(Rebalance{Assigned: func(ctx context.Context, _ []TopicPartition) {
					began := time.Now()
					<-ctx.Done()
					took = time.Since(began)
				}}))...)
				subscribe(t, a, "t")
				nothing(t, a)
				if took != test.want {
					t.Errorf("the callback gets %v, want %v", took, test.want)
				}
			})
		})
	}
}

// TestStartFoundBetweenLooks: where to begin may become known after Poll has looked for
// it and before it waits; nothing else need happen from then on.
func TestStartFoundBetweenLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.addCoordinators(1)
		c.createTopic("t", 1)
		a := c.member(t, "a")
		subscribe(t, a, "t")
		synctest.Wait()
		<-a.stage
		defer a.unstage()
		c.mu.Lock() // No offset is fetched meanwhile.
		for stepped := true; stepped; {
			var err error
			if stepped, err = a.rebalance(t.Context()); err != nil {
				t.Error(err)
			}
		}
		c.mu.Unlock()
		synctest.Wait()
		_, w, err := a.ready(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.changed:
		default:
			t.Error("Poll waits for what has happened")
		}
	})
}
