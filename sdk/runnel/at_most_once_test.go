package runnel

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// TestStopWhileCommittingAhead: a member that is told to stop while the offset behind what
// it is about to return is being committed returns the records if that succeeds, since
// nobody else gets them.
func TestStopWhileCommittingAhead(t *testing.T) {
	for _, stop := range []string{"ctx ends", "Close"} {
		for _, outcome := range []string{"committed", "refused for now", "no answer"} {
			t.Run(stop+", "+outcome, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newFakeCluster(1)
					g := c.addCoordinators(1)
					c.createTopic("t", 1)
					c.fill(t, "t", 0, recordbatch.None, "0", "1")
					gate := make(chan struct{})
					g.onCommit = func(*coordinatorv1.CommitOffsetsRequest) fault {
						f := fault{wait: gate}
						if outcome == "refused for now" {
							f.failure = failureOf(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)
						}
						return f
					}
					a := c.member(t, "a", WithDelivery(AtMostOnce))
					subscribe(t, a, "t")
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					var polled Records
					var err error
					ended := make(chan struct{})
					go func() {
						defer close(ended)
						polled, err = a.Poll(ctx)
					}()
					sleepFor(t, time.Second)
					before, reason := time.Now(), context.Canceled
					closed := make(chan error, 1)
					if stop == "Close" {
						reason = ErrClosed
						go func() { closed <- a.Close() }()
					} else {
						cancel()
						closed <- nil
					}
					if outcome != "no answer" {
						time.AfterFunc(100*time.Millisecond, func() { close(gate) })
					}
					<-ended
					if err := <-closed; err != nil {
						t.Errorf("Close = %v", err)
					}
					if took := time.Since(before); took > 2*stopGrace {
						t.Errorf("stopping took %v", took)
					}
					if outcome == "committed" {
						if err != nil || polled.Len() != 2 || g.committed(t0) != 2 {
							t.Errorf("Poll = %d records, %v; committed %d", polled.Len(), err, g.committed(t0))
						}
					} else if !errors.Is(err, reason) || polled.Len() != 0 || g.committed(t0) != -1 {
						t.Errorf("Poll = %d records, %v; committed %d", polled.Len(), err, g.committed(t0))
					}
					if outcome == "no answer" {
						close(gate)
					}
				})
			})
		}
	}
}

// TestPollOfAStoppedProgram takes nothing off the group, and notes that the records before
// are done with.
func TestPollOfAStoppedProgram(t *testing.T) {
	for delivery, committed := range map[Delivery]int64{AtLeastOnce: 1, AtMostOnce: 1} {
		synctest.Test(t, func(t *testing.T) {
			c := newFakeCluster(1)
			g := c.addCoordinators(1)
			c.createTopic("t", 1)
			c.fill(t, "t", 0, recordbatch.None, "0")
			a := c.member(t, "a", WithDelivery(delivery))
			subscribe(t, a, "t")
			want(t, poll(t, a, 1), "0:0=0")
			for range 20 {
				c.fill(t, "t", 0, recordbatch.None, "more")
			}
			synctest.Wait()
			stopped, cancel := context.WithCancel(t.Context())
			cancel()
			for range 20 {
				if records, err := a.Poll(stopped); !errors.Is(err, context.Canceled) || records.Len() > 0 {
					t.Fatalf("Poll = %d records, %v", records.Len(), err)
				}
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			if got := g.committed(t0); got != committed {
				t.Errorf("delivery %d: committed = %d", delivery, got)
			}
		})
	}
}

// TestAtMostOnceReturnsWhatIsCommitted: one partition that cannot be committed keeps no
// other's records back.
func TestAtMostOnceReturnsWhatIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		g := c.addCoordinators(1)
		c.createTopic("t", 2)
		a := c.member(t, "a", WithDelivery(AtMostOnce))
		subscribe(t, a, "t")
		nothing(t, a)
		g.refusing(func(tp TopicPartition) *errorsv1.Failure {
			if tp == t0 {
				return failureOf(errorsv1.Reason_REASON_LIMIT_REACHED)
			}
			return nil
		})
		c.fill(t, "t", 0, recordbatch.None, "zero")
		c.fill(t, "t", 1, recordbatch.None, "one")
		synctest.Wait()
		want(t, poll(t, a, 1), "1:0=one")
		if _, err := a.Poll(t.Context()); ReasonOf(err) != errorsv1.Reason_REASON_LIMIT_REACHED {
			t.Errorf("Poll = %v", err)
		}
		g.refusing(nil)
		want(t, poll(t, a, 1), "0:0=zero")
	})
}

// TestRunAtMostOnce: whatever ends Run, each record is handled once, by this member or by
// its successor.
func TestRunAtMostOnce(t *testing.T) {
	const records, stopAt = 10, 4
	refused := errors.New("refused")
	for _, end := range []string{"ctx ends", "handler fails", "Close"} {
		t.Run(end, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				c.addCoordinators(1)
				c.createTopic("t", 1)
				c.fill(t, "t", 0, recordbatch.None, numbers(0, records)...)
				times := make(map[string]int)
				a := c.member(t, "a", WithDelivery(AtMostOnce))
				subscribe(t, a, "t")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				err := a.Run(ctx, func(_ context.Context, r ConsumedRecord) error {
					times[string(r.Value)]++
					if string(r.Value) != strconv.Itoa(stopAt) {
						return nil
					}
					switch end {
					case "ctx ends":
						cancel()
					case "handler fails":
						return refused
					case "Close":
						return a.Close()
					}
					return nil
				})
				switch {
				case end == "ctx ends" && err == nil:
				case end == "handler fails" && errors.Is(err, refused):
				case end == "Close" && errors.Is(err, ErrClosed):
				default:
					t.Errorf("Run = %v", err)
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				b := c.member(t, "b", WithDelivery(AtMostOnce))
				subscribe(t, b, "t")
				short, done := context.WithTimeout(t.Context(), 10*time.Second)
				defer done()
				if err := b.Run(short, func(_ context.Context, r ConsumedRecord) error {
					times[string(r.Value)]++
					return nil
				}); err != nil {
					t.Error(err)
				}
				for n := range records {
					if got := times[strconv.Itoa(n)]; got != 1 {
						t.Errorf("record %d was handled %d times", n, got)
					}
				}
			})
		})
	}
}
