package runnel

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// TestStartThatTheLogHasLost: where the end at which the policy makes a member begin is
// not in the log any more when it is committed, the policy decides anew.
func TestStartThatTheLogHasLost(t *testing.T) {
	for delivery, name := range map[Delivery]string{AtLeastOnce: "at least once", AtMostOnce: "at most once"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				g := c.addCoordinators(1)
				c.createTopic("t", 1)
				c.fill(t, "t", 0, recordbatch.None, "0", "1")
				refused := 0
				g.refusing(func(TopicPartition) *errorsv1.Failure {
					refused++
					return failureOf(errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE)
				})
				a := c.member(t, "a", WithReset(ResetLatest), WithDelivery(delivery))
				subscribe(t, a, "t")
				nothing(t, a)
				g.refusing(nil)
				if refused < 2 || refused > 200 {
					t.Errorf("tried %d times in 10 s", refused)
				}
				nothing(t, a)
				if got := g.committed(t0); got != 2 {
					t.Errorf("committed = %d", got)
				}
				c.fill(t, "t", 0, recordbatch.None, "2")
				want(t, poll(t, a, 1), "0:2=2")
			})
		})
	}
}

// TestWhatTheLogHasLostIsNotCommitted: what a member has done with of a log that was cut
// off below is neither sent again and again nor committed once the log has grown again,
// which would pass over records.
func TestWhatTheLogHasLostIsNotCommitted(t *testing.T) {
	for name, policy := range map[string]ResetPolicy{"none": ResetNone, "earliest": ResetEarliest, "latest": ResetLatest} {
		for _, noticed := range []bool{true, false} {
			title := name + ", noticed by the commit"
			if noticed {
				title = name + ", noticed by the fetch"
			}
			t.Run(title, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newFakeCluster(1)
					g := c.addCoordinators(1)
					c.createTopic("t", 1)
					var mu sync.Mutex
					sent := 0
					g.onCommit = func(r *coordinatorv1.CommitOffsetsRequest) fault {
						mu.Lock()
						defer mu.Unlock()
						if r.GetOffsets()[0].GetOffset() == 4 {
							sent++
						}
						return fault{}
					}
					a := c.member(t, "a", WithReset(policy))
					if policy == ResetNone {
						if err := a.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
							t.Fatal(err)
						}
						if err := a.Commit(t.Context()); err != nil {
							t.Fatal(err)
						}
						a.Remove(t0)
					}
					subscribe(t, a, "t")
					pollInVain(t, a)
					for n := range 4 {
						c.fill(t, "t", 0, recordbatch.None, numbers(n, n+1)...)
					}
					want(t, poll(t, a, 4), "0:0=0", "0:1=1", "0:2=2", "0:3=3")
					if !noticed {
						// What is paused is not fetched.
						if err := a.Pause(t0); err != nil {
							t.Fatal(err)
						}
					}
					pollInVain(t, a)
					c.truncate("t", 0, 2)
					sleepFor(t, time.Minute)
					c.fill(t, "t", 0, recordbatch.None, "two", "three", "four")
					sleepFor(t, time.Minute)
					if got := g.committed(t0); got > 2 {
						t.Errorf("committed %d of a log that lost all from 2 on", got)
					}
					mu.Lock()
					if most := map[bool]int{true: 0, false: 1}[noticed]; sent > most {
						t.Errorf("what the log has lost was sent %d times", sent)
					}
					mu.Unlock()
					if !noticed {
						if err := a.Resume(t0); err != nil {
							t.Fatal(err)
						}
					}
					if _, err := a.Poll(t.Context()); ReasonOf(err) != errorsv1.Reason_REASON_LOG_TRUNCATED {
						t.Errorf("Poll = %v", err)
					}
					if policy == ResetNone {
						if err := a.Seek(t0, Offset(2)); err != nil {
							t.Fatal(err)
						}
					}
					sleepFor(t, time.Minute)
					if got := g.committed(t0); got > 2 {
						t.Errorf("committed %d before anything of it was read", got)
					}
					want(t, poll(t, a, 3), "0:2=two", "0:3=three", "0:4=four")
					if err := a.Commit(t.Context()); err != nil {
						t.Error(err)
					}
					if got := g.committed(t0); got != 5 {
						t.Errorf("committed = %d", got)
					}
				})
			})
		}
	}
}

// pollInVain polls for a moment in which there is nothing.
func pollInVain(t *testing.T, c *Consumer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if records, err := c.Poll(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Poll = %d records, %v", records.Len(), err)
	}
}
