package runnel

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// TestLateRequestsDoubleNothing: a node holds two batches up while another leads.
// The first is given up, the second found to be out of order; and then the node
// leads again and takes both.
func TestLateRequestsDoubleNothing(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprint("known ", known), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(2)
				c.createTopic("t", 1)
				const idle, elsewhere, back = 0, 1, 2
				var phase atomic.Int32
				resume := make(chan struct{})
				c.onProduce = func(n *fakeNode, request *storagev1.ProduceRequest) fault {
					h, err := recordbatch.Verify(request.GetBatch())
					if err != nil {
						t.Error(err)
					}
					switch phase.Load() {
					case elsewhere:
						if n.id == 2 {
							return fault{wait: resume}
						}
						// The first is not accepted by the time it expires.
						if first, _ := recordbatch.Decode(request.GetBatch(), recordbatch.Limits{}); number(t, first[0]) == 1 {
							return fault{failure: failureOf(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS)}
						}
						if h.ProducerEpoch > 0 {
							phase.Store(back)
							c.moveLeader("t", 0, 2, false)
							close(resume)
							return fault{delay: time.Millisecond}
						}
					}
					return fault{}
				}
				p := c.producer(t, WithLinger(0), WithBatchBytes(1), WithDeliveryTimeout(10*time.Second))
				if known {
					if _, err := p.SendSync(t.Context(), Record{Topic: "t", Value: []byte("0")}); err != nil {
						t.Fatal(err)
					}
				}
				phase.Store(elsewhere)
				got := newOutcomes()
				for n := range 2 {
					if err := p.Send(t.Context(), Record{Topic: "t", Value: strconv.AppendInt(nil, int64(n+1), 10)}, got.callback(n+1)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(4 * time.Second)
				}
				c.moveLeader("t", 0, 3, true)
				if err := p.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				if phase.Load() == elsewhere {
					c.moveLeader("t", 0, 2, true)
					close(resume)
				}
				synctest.Wait()
				if _, err := p.SendSync(t.Context(), Record{Topic: "t", Value: []byte("3")}); err != nil {
					t.Fatal(err)
				}
				seen := make(map[int]int)
				for _, r := range c.records(t, "t", 0) {
					seen[number(t, r)]++
				}
				for n := 1; n <= 3; n++ {
					if seen[n] != 1 {
						t.Errorf("record %d is in the log %d times", n, seen[n])
					}
				}
				for n, err := range got.errs {
					if e, ok := errors.AsType[*Error](err); !ok || !e.OutcomeUnknown() {
						t.Errorf("record %d was written and failed for certain: %v", n, err)
					}
				}
			})
		})
	}
}

// TestBrokenStreamPutsAllThatWasSentInDoubt: the sender may find its stream
// broken, with the next batch at hand, before the receiver gives back what is
// under way.
func TestBrokenStreamPutsAllThatWasSentInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		resume := make(chan struct{})
		c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault { return fault{wait: resume} }
		p := c.producer(t, WithLinger(0), WithBatchBytes(1))
		for range 2 {
			if err := p.Send(t.Context(), Record{Topic: "t"}, nil); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		q := p.topicQueue("t", 0)
		q.mu.Lock()
		first, second := q.window[0], q.window[1]
		attempt := second.attempt
		q.mu.Unlock()
		q.lost(second, attempt, io.ErrUnexpectedEOF, false, time.Now())
		q.mu.Lock()
		if !first.doubtful {
			t.Error("the batch under way counts as not taken")
		}
		q.mu.Unlock()
		close(resume)
		if err := p.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
