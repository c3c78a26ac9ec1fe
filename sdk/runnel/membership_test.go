package runnel

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// TestCoordinatorMoves: a membership outlives its coordinator, and so do commits that
// are under way.
func TestCoordinatorMoves(t *testing.T) {
	for name, move := range map[string]func(c *fakeCluster, to int32){
		"and says so": func(c *fakeCluster, to int32) { c.coordinate(true, to) },
		"unannounced": func(c *fakeCluster, to int32) {
			c.coordinate(false, to)
			c.node(3).cut()
		},
		"dies": func(c *fakeCluster, to int32) {
			c.node(3).setDown(true)
			time.Sleep(4 * time.Second)
			c.coordinate(true, to)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				g := c.addCoordinators(2)
				c.createTopic("t", 1)
				lost := 0
				a := c.member(t, "a", WithSessionTimeout(9*time.Second), WithRebalance(Rebalance{
					Lost: func(context.Context, []TopicPartition) { lost++ },
				}))
				subscribe(t, a, "t")
				c.fill(t, "t", 0, recordbatch.None, "0")
				poll(t, a, 1)
				before, _ := a.GroupStatus()
				move(c, 4)
				if err := a.Commit(t.Context()); err != nil {
					t.Error(err)
				}
				settle(t, a)
				c.fill(t, "t", 0, recordbatch.None, "1")
				want(t, poll(t, a, 1), "0:1=1")
				after, ok := a.GroupStatus()
				if !ok || after.MemberID != before.MemberID || after.MemberEpoch != before.MemberEpoch || lost > 0 {
					t.Errorf("status before %+v, after %+v, lost %d", before, after, lost)
				}
				if g.joins < 2 || g.committed(t0) != 1 {
					t.Errorf("%d streams, committed %d", g.joins, g.committed(t0))
				}
				if joined := slices.DeleteFunc(g.history(), func(e string) bool { return e != "join a" }); len(joined) != 1 {
					t.Errorf("events = %v", g.history())
				}
			})
		})
	}
}

// TestMovedCoordinatorIsNotWaitedFor: calls to one that stands still are given up as soon
// as another is known to have its groups.
func TestMovedCoordinatorIsNotWaitedFor(t *testing.T) {
	const moves = 4 * time.Second
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(2)
		c.createTopic("t", 1)
		a := c.member(t, "a", WithSessionTimeout(9*time.Second), WithAutoCommit(0))
		subscribe(t, a, "t")
		c.fill(t, "t", 0, recordbatch.None, "0")
		poll(t, a, 1)
		var stands atomic.Bool
		stands.Store(true)
		still := func() fault {
			if stands.Load() {
				return fault{wait: make(chan struct{})}
			}
			return fault{}
		}
		g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault { return still() }
		g.onHeartbeat = func(*coordinatorv1.HeartbeatRequest) fault { return still() }
		began := time.Now()
		go func() {
			sleepFor(t, moves)
			stands.Store(false)
			c.coordinate(true, 4)
		}()
		if err := a.Commit(t.Context()); err != nil || g.committed(t0) != 1 {
			t.Errorf("Commit = %v, committed = %d", err, g.committed(t0))
		}
		if took := time.Since(began) - moves; took < 0 || took > time.Second {
			t.Errorf("committed %v after the groups have moved", took)
		}
		settle(t, a)
		if joined := slices.DeleteFunc(g.history(), func(e string) bool { return e != "join a" }); len(joined) != 1 {
			t.Errorf("events = %v", g.history())
		}
	})
}

func TestSubscribeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		g.limit = 1
		c.createTopic("t", 1)
		a := c.member(t, "a")
		subscribe(t, a, "t")
		b := c.member(t, "b")
		if err := b.Subscribe(t.Context(), "t"); ReasonOf(err) != errorsv1.Reason_REASON_GROUP_FULL || !IsRetriable(err) {
			t.Errorf("the second member = %v", err)
		}
		if _, err := b.Poll(t.Context()); !errors.Is(err, ErrNotAssigned) {
			t.Errorf("Poll = %v", err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		subscribe(t, b, "t")
		for name, err := range map[string]error{
			"no topics":    b.Subscribe(t.Context()),
			"no pattern":   b.SubscribePattern(t.Context(), ""),
			"bad pattern":  b.SubscribePattern(t.Context(), "a("),
			"empty string": b.Subscribe(t.Context(), ""),
		} {
			if ReasonOf(err) != errorsv1.Reason_REASON_INVALID_SUBSCRIPTION {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := b.Assign(t.Context(), AtAll("t", Earliest())); ReasonOf(err) != errorsv1.Reason_REASON_INVALID_REQUEST {
			t.Errorf("Assign = %v", err)
		}
		if err := c.consumer(t).Subscribe(t.Context(), "t"); ReasonOf(err) != errorsv1.Reason_REASON_INVALID_GROUP_ID {
			t.Errorf("without a group: %v", err)
		}
	})
}

// TestSubscribeWithoutCoordinator: who waits in vain is told why.
func TestSubscribeWithoutCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		a := c.member(t, "a")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := a.Subscribe(ctx, "t"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no coordinator is live") {
			t.Errorf("error = %v", err)
		}
	})
}

func TestChangedSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "old")
		a := c.member(t, "a")
		subscribe(t, a, "t", "u")
		want(t, poll(t, a, 1), "0:0=old")
		if status, _ := a.GroupStatus(); !slices.Equal(status.MissingTopics, []string{"u"}) {
			t.Errorf("status = %+v", status)
		}
		c.createTopic("u", 1)
		subscribe(t, a, "u")
		c.fill(t, "u", 0, recordbatch.None, "new")
		c.fill(t, "t", 0, recordbatch.None, "unread")
		want(t, settle(t, a)[0], "0:0=new")
		if got := a.Assigned(); len(got) != 1 || got[0].Topic != "u" {
			t.Errorf("assigned = %v", got)
		}
	})
}

// TestTwoProcessesWithOneInstanceID: the older is told, and does not take the id back.
func TestTwoProcessesWithOneInstanceID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 1)
		lost := 0
		a := c.member(t, "a", WithInstanceID("one"), WithRebalance(Rebalance{Lost: func(context.Context, []TopicPartition) { lost++ }}))
		var logged bytes.Buffer
		a.client.config.Logger = slog.New(slog.NewTextHandler(&logged, nil))
		subscribe(t, a, "t")
		nothing(t, a)
		b := c.member(t, "b", WithInstanceID("one"))
		subscribe(t, b, "t")
		sleepFor(t, 10*time.Second)
		for range 2 {
			if _, err := a.Poll(t.Context()); ReasonOf(err) != errorsv1.Reason_REASON_INSTANCE_FENCED {
				t.Errorf("Poll of the older = %v", err)
			}
		}
		c.fill(t, "t", 0, recordbatch.None, "0")
		want(t, settle(t, b)[0], "0:0=0")
		if lost != 1 {
			t.Errorf("lost %d times", lost)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil || logged.Len() > 0 {
			t.Errorf("Close of the older = %v, logged beside its error: %s", err, logged.String())
		}
		if !slices.Contains(g.history(), "leave b for a while") {
			t.Errorf("events = %v", g.history())
		}
	})
}

func TestNoCommittedOffsetAndNoPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0")
		a := c.member(t, "a", WithReset(ResetNone))
		subscribe(t, a, "t")
		_, err := a.Poll(t.Context())
		fault, ok := errors.AsType[*PartitionError](err)
		if !ok || fault.TopicPartition != t0 || ReasonOf(err) != errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE {
			t.Fatalf("Poll = %v", err)
		}
		if want := `t-0 cannot be read: group "g" has committed no offset there: say where to begin with WithReset(ResetEarliest) or WithReset(ResetLatest), or by Seek`; err.Error() != want {
			t.Errorf("error = %v", err)
		}
		if err := a.Seek(t0, Earliest()); err != nil {
			t.Fatal(err)
		}
		want(t, poll(t, a, 1), "0:0=0")
	})
}

// TestTruncationIsSeenOnResume: the committed leader epoch tells that the log was cut
// off below the committed offset while nobody read.
func TestTruncationIsSeenOnResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.addCoordinators(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0")
		c.fill(t, "t", 0, recordbatch.None, "1")
		a := c.member(t, "a")
		subscribe(t, a, "t")
		want(t, settle(t, a)[0], "0:0=0", "0:1=1")
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		c.truncate("t", 0, 1)
		c.fill(t, "t", 0, recordbatch.None, "another")
		c.fill(t, "t", 0, recordbatch.None, "2")
		b := c.member(t, "b")
		subscribe(t, b, "t")
		if _, err := b.Poll(t.Context()); ReasonOf(err) != errorsv1.Reason_REASON_LOG_TRUNCATED {
			t.Errorf("Poll = %v", err)
		}
		want(t, settle(t, b)[0], "0:1=another", "0:2=2")
	})
}
