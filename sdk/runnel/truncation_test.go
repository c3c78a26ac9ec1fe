package runnel

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// truncated polls once, and wants to be told that the log was truncated.
func truncated(t *testing.T, consumer *Consumer, offset, next int64) {
	t.Helper()
	_, err := consumer.Poll(t.Context())
	fault, ok := errors.AsType[*PartitionError](err)
	if !ok || ReasonOf(err) != errorsv1.Reason_REASON_LOG_TRUNCATED || fault.Offset != offset || fault.NextOffset != next {
		t.Fatalf("Poll = %v, want truncation at offset %d and the way on at %d", err, offset, next)
	}
}

// KIP-320: what was read and is no longer in the log is told under every policy,
// though the offset to read on at exists, and nothing of what stands there now is
// passed over.
func TestTruncationIsReported(t *testing.T) {
	for _, policy := range []ResetPolicy{ResetNone, ResetEarliest, ResetLatest} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				c.createTopic("t", 1)
				c.fill(t, "t", 0, recordbatch.None, "0", "1")
				c.moveLeader("t", 0, 2, true)
				c.fill(t, "t", 0, recordbatch.None, "2", "3")
				consumer := c.consumer(t, WithReset(policy))
				if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
					t.Fatal(err)
				}
				poll(t, consumer, 4)
				if at, err := consumer.Position(t0); err != nil || at != (Position{Offset: 4, LeaderEpoch: 1}) {
					t.Errorf("position %+v, %v", at, err)
				}
				c.truncate("t", 0, 2)
				c.fill(t, "t", 0, recordbatch.None, "x", "y", "z")
				truncated(t, consumer, 4, 2)
				if policy == ResetNone {
					// It stops until the program decides.
					truncated(t, consumer, 4, 2)
					if err := consumer.Seek(t0, Offset(2)); err != nil {
						t.Fatal(err)
					}
				}
				want(t, poll(t, consumer, 3), "0:2=x", "0:3=y", "0:4=z")
			})
		})
	}
}

// Where the log parts from what was read is not known when it has nothing of the
// last epoch and the epoch before goes on further than the reader got.
func TestTruncationAtAnUnknownOffset(t *testing.T) {
	for policy, values := range map[ResetPolicy][]string{ResetNone: nil, ResetEarliest: {"0:0=a", "0:1=b"}, ResetLatest: {"0:5=f"}} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				topic := c.createTopic("t", 1)
				c.fill(t, "t", 0, recordbatch.None, "0", "1")
				c.moveLeader("t", 0, 2, true)
				c.fill(t, "t", 0, recordbatch.None, "2")
				consumer := c.consumer(t, WithReset(policy))
				if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
					t.Fatal(err)
				}
				poll(t, consumer, 3)
				c.mu.Lock()
				p := topic.partitions[0]
				p.batches, p.end, p.epoch = nil, 0, 0
				c.mu.Unlock()
				c.fill(t, "t", 0, recordbatch.None, "a", "b", "c", "d", "e")
				c.mu.Lock()
				p.epoch = 2
				c.changedLocked()
				c.mu.Unlock()
				truncated(t, consumer, 3, -1)
				if policy == ResetNone {
					return
				}
				synctest.Wait()
				c.fill(t, "t", 0, recordbatch.None, "f")
				got := poll(t, consumer, len(values))
				want(t, got[:len(values)], values...)
			})
		})
	}
}

// A reader that has read nothing yet still knows which record stood before where
// it begins.
func TestTruncationBeforeTheFirstRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0", "1")
		consumer := c.consumer(t, WithReset(ResetLatest))
		if err := consumer.Assign(t.Context(), At("t", 0, Latest())); err != nil {
			t.Fatal(err)
		}
		c.truncate("t", 0, 0)
		c.fill(t, "t", 0, recordbatch.None, "x", "y", "z")
		truncated(t, consumer, 2, 0)
		want(t, poll(t, consumer, 3), "0:0=x", "0:1=y", "0:2=z")
	})
}
