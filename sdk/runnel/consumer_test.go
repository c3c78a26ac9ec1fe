package runnel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

func (c *fakeCluster) consumer(t testing.TB, options ...ConsumerOption) *Consumer {
	t.Helper()
	consumer, err := c.client(t).NewConsumer(options...)
	if err != nil {
		t.Fatal(err)
	}
	return consumer
}

// numbers returns the strings of the numbers from and below until.
func numbers(from, until int) []string {
	var all []string
	for n := from; n < until; n++ {
		all = append(all, strconv.Itoa(n))
	}
	return all
}

// poll returns the values of the next n records, each as "partition:offset=value".
func poll(t testing.TB, c *Consumer, n int) []string {
	t.Helper()
	var all []string
	for len(all) < n {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		records, err := c.Poll(ctx)
		cancel()
		if err != nil {
			t.Fatalf("Poll after %v: %v", all, err)
		}
		for r := range records.All() {
			all = append(all, fmt.Sprintf("%d:%d=%s", r.Partition, r.Offset, r.Value))
		}
	}
	return all
}

// nothing checks that Poll has nothing to return for a while.
func nothing(t testing.TB, c *Consumer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if records, err := c.Poll(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Poll returned %v, %v", records.Slice(), err)
	}
}

func want(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

var t0 = TopicPartition{Topic: "t"}

func TestConsumeFromEarliestAndFollow(t *testing.T) {
	for codec := recordbatch.None; codec <= recordbatch.Zstd; codec++ {
		t.Run(codec.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				c.createTopic("t", 1)
				c.fill(t, "t", 0, codec, "a", "b")
				consumer := c.consumer(t)
				if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
					t.Fatal(err)
				}
				want(t, poll(t, consumer, 2), "0:0=a", "0:1=b")
				nothing(t, consumer)
				c.fill(t, "t", 0, codec, "c")
				want(t, poll(t, consumer, 1), "0:2=c")
				if position, err := consumer.Position(t0); err != nil || position.Offset != 3 {
					t.Errorf("position = %+v, %v", position, err)
				}
				if end, ok := consumer.HighWatermark(t0); !ok || end != 3 {
					t.Errorf("high watermark = %d, %v", end, ok)
				}
			})
		})
	}
}

func TestConsumedRecordIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 2)
		c.moveLeader("t", 1, 2, true)
		client := c.client(t)
		p, err := client.NewProducer()
		if err != nil {
			t.Fatal(err)
		}
		at := time.UnixMilli(1234567)
		sent := Record{Topic: "t", Partition: OnPartition(1), Key: []byte{}, Value: nil, Timestamp: at, Headers: []Header{{Key: "a", Value: []byte("b")}}}
		if _, err := p.SendSync(t.Context(), sent); err != nil {
			t.Fatal(err)
		}
		consumer, err := client.NewConsumer()
		if err != nil {
			t.Fatal(err)
		}
		if err := consumer.Assign(t.Context(), At("t", 1, Earliest())); err != nil {
			t.Fatal(err)
		}
		records, err := consumer.Poll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := records.Slice()[0]
		if got.Topic != "t" || got.Partition != 1 || got.Offset != 0 || got.LeaderEpoch != 1 || !got.Timestamp.Equal(at) ||
			got.Key == nil || len(got.Key) != 0 || got.Value != nil || len(got.Headers) != 1 || string(got.Headers[0].Value) != "b" {
			t.Errorf("record = %+v", got)
		}
		if position, err := consumer.Position(TopicPartition{"t", 1}); err != nil || position != (Position{Offset: 1, LeaderEpoch: 1}) {
			t.Errorf("position = %+v, %v", position, err)
		}
	})
}

func TestStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		for i := range 4 {
			c.fill(t, "t", 0, recordbatch.None, strconv.Itoa(2*i), strconv.Itoa(2*i+1))
		}
		consumer := c.consumer(t)
		tests := []struct {
			start Start
			want  string
		}{
			{Earliest(), "0:0=0"},
			{Offset(3), "0:3=3"},
			{From(Position{Offset: 4, LeaderEpoch: 0}), "0:4=4"},
			{Time(time.UnixMilli(999)), "0:0=0"},
			{Time(time.UnixMilli(1001)), "0:8=8"},
			{Latest(), "0:8=8"},
			{Start{}, "0:8=8"},
		}
		for _, test := range tests {
			if err := consumer.Assign(t.Context(), At("t", 0, test.start)); err != nil {
				t.Fatal(err)
			}
			if c.topics["t"].partitions[0].end == 8 && strings.HasPrefix(test.want, "0:8") {
				c.fill(t, "t", 0, recordbatch.None, "8")
			} else if strings.HasPrefix(test.want, "0:8") {
				// Latest is behind what is there by now.
				nothing(t, consumer)
				continue
			}
			if got := poll(t, consumer, 1); got[0] != test.want {
				t.Errorf("%v: %v, want %v", test.start, got[0], test.want)
			}
		}
	})
}

func TestAssignChecksItsArguments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 2)
		consumer := c.consumer(t)
		tests := []struct {
			assignments []Assignment
			reason      errorsv1.Reason
		}{
			{[]Assignment{At("nobody", 0, Earliest())}, errorsv1.Reason_REASON_TOPIC_NOT_FOUND},
			{[]Assignment{At("t", 2, Earliest())}, errorsv1.Reason_REASON_PARTITION_NOT_FOUND},
			{[]Assignment{At("t", -5, Earliest())}, errorsv1.Reason_REASON_PARTITION_NOT_FOUND},
			{[]Assignment{At("t", 0, Offset(-1))}, errorsv1.Reason_REASON_INVALID_REQUEST},
			{[]Assignment{At("t", 0, Earliest()), AtAll("t", Earliest())}, errorsv1.Reason_REASON_INVALID_REQUEST},
		}
		for _, test := range tests {
			if err := consumer.Assign(t.Context(), test.assignments...); ReasonOf(err) != test.reason {
				t.Errorf("%+v: %v", test.assignments, err)
			}
		}
		if _, err := consumer.Poll(t.Context()); !errors.Is(err, ErrNotAssigned) {
			t.Errorf("Poll = %v", err)
		}
		if err := consumer.Seek(t0, Earliest()); !errors.Is(err, ErrNotAssigned) {
			t.Errorf("Seek = %v", err)
		}
		if _, err := consumer.Position(t0); !errors.Is(err, ErrNotAssigned) {
			t.Errorf("Position = %v", err)
		}
		if err := consumer.Pause(t0); !errors.Is(err, ErrNotAssigned) {
			t.Errorf("Pause = %v", err)
		}
	})
}

// TestAssignWaitsForALeader: where to begin is known when Assign returns, or it
// fails and leaves nothing behind.
func TestAssignWaitsForALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		c.moveLeader("t", 0, -1, true)
		consumer := c.consumer(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := consumer.Assign(ctx, At("t", 0, Latest())); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Assign = %v", err)
		}
		if n := len(consumer.Assigned()); n != 0 {
			t.Errorf("%d partitions are assigned", n)
		}
		go func() {
			time.Sleep(time.Second)
			c.moveLeader("t", 0, 2, true)
		}()
		if err := consumer.Assign(t.Context(), At("t", 0, Latest())); err != nil {
			t.Fatal(err)
		}
		c.fill(t, "t", 0, recordbatch.None, "a")
		want(t, poll(t, consumer, 1), "0:0=a")
	})
}

func TestSeekMovesOnePartitionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 2)
		for partition := range 2 {
			c.fill(t, "t", partition, recordbatch.None, numbers(0, 10)...)
		}
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), AtAll("t", Earliest())); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		opened := c.opened
		if err := consumer.Seek(TopicPartition{"t", 1}, Offset(7)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c.opened != opened+1 {
			t.Errorf("the stream was opened %d times", c.opened-opened)
		}
		got := poll(t, consumer, 13)
		var zero, one []string
		for _, r := range got {
			if strings.HasPrefix(r, "0:") {
				zero = append(zero, r)
			} else {
				one = append(one, r)
			}
		}
		if len(zero) != 10 || zero[0] != "0:0=0" {
			t.Errorf("partition 0: %v", zero)
		}
		want(t, one, "1:7=7", "1:8=8", "1:9=9")
		// Back, forth and by name.
		for _, test := range []struct {
			start Start
			want  string
		}{{Earliest(), "1:0=0"}, {Offset(9), "1:9=9"}, {Offset(2), "1:2=2"}} {
			if err := consumer.Seek(TopicPartition{"t", 1}, test.start); err != nil {
				t.Fatal(err)
			}
			if got := poll(t, consumer, 1); got[0] != test.want {
				t.Errorf("%v: %v, want %v", test.start, got[0], test.want)
			}
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 2)
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), AtAll("t", Earliest())); err != nil {
			t.Fatal(err)
		}
		c.fill(t, "t", 0, recordbatch.None, "a")
		c.fill(t, "t", 1, recordbatch.None, "A")
		synctest.Wait()
		if err := consumer.Pause(t0); err != nil {
			t.Fatal(err)
		}
		want(t, poll(t, consumer, 1), "1:0=A")
		c.fill(t, "t", 0, recordbatch.None, "b")
		c.fill(t, "t", 1, recordbatch.None, "B")
		want(t, poll(t, consumer, 1), "1:1=B")
		nothing(t, consumer)
		if consumer.buffered != 0 {
			t.Errorf("%d bytes are buffered for a partition that is paused", consumer.buffered)
		}
		if err := consumer.Resume(t0); err != nil {
			t.Fatal(err)
		}
		want(t, poll(t, consumer, 2), "0:0=a", "0:1=b")
	})
}

func TestAddAndRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 2)
		c.fill(t, "t", 0, recordbatch.None, "a")
		c.fill(t, "t", 1, recordbatch.None, "A", "B")
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
			t.Fatal(err)
		}
		if err := consumer.Add(t.Context(), At("t", 1, Offset(1))); err != nil {
			t.Fatal(err)
		}
		got := poll(t, consumer, 2)
		slices.Sort(got)
		want(t, got, "0:0=a", "1:1=B")
		consumer.Remove(t0)
		c.fill(t, "t", 0, recordbatch.None, "b")
		c.fill(t, "t", 1, recordbatch.None, "C")
		want(t, poll(t, consumer, 1), "1:2=C")
		nothing(t, consumer)
		if err := consumer.Assign(t.Context(), At("t", 0, Offset(1))); err != nil {
			t.Fatal(err)
		}
		want(t, poll(t, consumer, 1), "0:1=b")
	})
}

func TestReadingUntilABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 3)
		c.fill(t, "t", 0, recordbatch.None, numbers(0, 10)...)
		c.fill(t, "t", 1, recordbatch.Snappy, numbers(0, 10)...)
		consumer := c.consumer(t)
		err := consumer.Assign(t.Context(),
			At("t", 0, Offset(2)).Until(5), At("t", 1, Offset(8)).UntilEnd(), At("t", 2, Earliest()).UntilEnd())
		if err != nil {
			t.Fatal(err)
		}
		// What comes later is behind the bounds.
		c.fill(t, "t", 1, recordbatch.None, "more")
		c.fill(t, "t", 2, recordbatch.None, "more")
		var got []string
		for {
			records, err := consumer.Poll(t.Context())
			if errors.Is(err, ErrEnd) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for r := range records.All() {
				got = append(got, fmt.Sprintf("%d:%d", r.Partition, r.Offset))
			}
		}
		slices.Sort(got)
		want(t, got, "0:2", "0:3", "0:4", "1:8", "1:9")
		for partition, offset := range []int64{5, 10, 0} {
			tp := TopicPartition{"t", int32(partition)}
			if position, err := consumer.Position(tp); err != nil || position.Offset != offset || !consumer.EndReached(tp) {
				t.Errorf("%v: position %+v, %v, end reached %v", tp, position, err, consumer.EndReached(tp))
			}
		}
		// Seeking back takes it up again, with the same bound.
		if err := consumer.Seek(t0, Offset(4)); err != nil {
			t.Fatal(err)
		}
		want(t, poll(t, consumer, 1), "0:4=4")
		if _, err := consumer.Poll(t.Context()); !errors.Is(err, ErrEnd) {
			t.Errorf("Poll = %v", err)
		}
	})
}

func TestOutOfRange(t *testing.T) {
	for _, test := range []struct {
		policy ResetPolicy
		offset int64
		want   string
	}{
		{ResetNone, 1, ""}, {ResetNone, 100, ""},
		{ResetEarliest, 1, "0:4=4"}, {ResetEarliest, 100, "0:4=4"},
		{ResetLatest, 1, "0:8=8"}, {ResetLatest, 100, "0:8=8"},
	} {
		t.Run(fmt.Sprint(test.policy, test.offset), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				topic := c.createTopic("t", 1)
				for i := range 4 {
					c.fill(t, "t", 0, recordbatch.None, numbers(2*i, 2*i+2)...)
				}
				topic.partitions[0].deleteBefore(4)
				consumer := c.consumer(t, WithReset(test.policy))
				if err := consumer.Assign(t.Context(), At("t", 0, Offset(test.offset))); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if test.policy != ResetNone {
					c.fill(t, "t", 0, recordbatch.None, "8")
					if got := poll(t, consumer, 1); got[0] != test.want {
						t.Errorf("got %v, want %v", got[0], test.want)
					}
					return
				}
				_, err := consumer.Poll(t.Context())
				fault, ok := errors.AsType[*PartitionError](err)
				if !ok || ReasonOf(err) != errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE || fault.TopicPartition != t0 || fault.Offset != test.offset {
					t.Fatalf("Poll = %v", err)
				}
				if e, _ := errors.AsType[*Error](err); e != nil {
					if earliest, latest, ok := e.OffsetRange(); !ok || earliest != 4 || latest != 8 {
						t.Errorf("range %d to %d, %v", earliest, latest, ok)
					}
				}
				// It is said again until something is done about it, but not all the time.
				start := time.Now()
				if _, err := consumer.Poll(t.Context()); ReasonOf(err) != errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE {
					t.Errorf("second Poll = %v", err)
				}
				if waited := time.Since(start); waited != faultInterval {
					t.Errorf("the error was repeated after %v", waited)
				}
				if test.offset == 1 && fault.NextOffset != 4 || test.offset == 100 && fault.NextOffset != -1 {
					t.Errorf("next offset = %d", fault.NextOffset)
				}
				if err := consumer.Seek(t0, Offset(6)); err != nil {
					t.Fatal(err)
				}
				want(t, poll(t, consumer, 2), "0:6=6", "0:7=7")
			})
		})
	}
}

// TestEarliestIsNotOutOfRange: retention may pass between asking for the first
// offset and reading it.
func TestEarliestIsNotOutOfRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		topic := c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0")
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), At("t", 0, Latest())); err != nil {
			t.Fatal(err)
		}
		if err := consumer.Pause(t0); err != nil {
			t.Fatal(err)
		}
		if err := consumer.Seek(t0, Earliest()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		consumer.mu.Lock()
		r := consumer.partitions[t0]
		r.startPending = false
		r.moveTo(Position{Offset: 0, LeaderEpoch: -1})
		consumer.mu.Unlock()
		c.fill(t, "t", 0, recordbatch.None, "1")
		topic.partitions[0].deleteBefore(1)
		if err := consumer.Resume(t0); err != nil {
			t.Fatal(err)
		}
		want(t, poll(t, consumer, 1), "0:1=1")
	})
}

func TestCorruptBatchIsNamedAndCanBeSkipped(t *testing.T) {
	damages := map[string]func([]byte) []byte{
		"record":      func(b []byte) []byte { b[len(b)-3] ^= 1; return b },
		"truncated":   func(b []byte) []byte { return b[:len(b)-1] },
		"no header":   func(b []byte) []byte { return b[:10] },
		"empty":       func([]byte) []byte { return nil },
		"codec":       func(b []byte) []byte { b[22] |= 7; return b },
		"last offset": func(b []byte) []byte { b[26] = 0x7f; return b },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				c.createTopic("t", 2)
				for i := range 3 {
					c.fill(t, "t", 0, recordbatch.None, numbers(2*i, 2*i+2)...)
				}
				c.onConsume = func(_ *fakeNode, response *storagev1.ConsumeResponse) {
					for i, b := range response.GetBatches() {
						if h, _ := recordbatch.ParseHeader(b); h.BaseOffset == 2 && response.GetPartition() == 0 {
							response.Batches = slices.Clone(response.Batches)
							response.Batches[i] = damage(slices.Clone(b))
						}
					}
				}
				consumer := c.consumer(t)
				if err := consumer.Assign(t.Context(), AtAll("t", Earliest())); err != nil {
					t.Fatal(err)
				}
				want(t, poll(t, consumer, 2), "0:0=0", "0:1=1")
				_, err := consumer.Poll(t.Context())
				fault, ok := errors.AsType[*PartitionError](err)
				if !ok || fault.TopicPartition != t0 || fault.Offset != 2 || fault.NextOffset != 4 {
					t.Fatalf("Poll = %v", err)
				}
				for _, part := range []string{"t-0", "offset 2", "offset 4"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("the error does not say %q: %v", part, err)
					}
				}
				if position, err := consumer.Position(t0); err != nil || position.Offset != 2 {
					t.Errorf("position = %+v, %v", position, err)
				}
				// The other partition goes on.
				c.fill(t, "t", 1, recordbatch.None, "other")
				want(t, poll(t, consumer, 1), "1:0=other")
				if err := consumer.Seek(t0, Offset(fault.NextOffset)); err != nil {
					t.Fatal(err)
				}
				want(t, poll(t, consumer, 2), "0:4=4", "0:5=5")
			})
		})
	}
}

// TestBatchThatLiesAboutItsRecords has a good checksum and records that do not
// match the header.
func TestBatchThatLiesAboutItsRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		topic := c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0", "1")
		lie := slices.Clone(topic.partitions[0].batches[0])
		lie[len(lie)-5]++
		recordbatch.SetAppendTime(lie, 5)
		topic.partitions[0].batches[0] = lie
		c.fill(t, "t", 0, recordbatch.None, "2")
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
			t.Fatal(err)
		}
		_, err := consumer.Poll(t.Context())
		fault, ok := errors.AsType[*PartitionError](err)
		if !ok || !errors.Is(err, recordbatch.ErrCorrupt) || fault.Offset != 0 || fault.NextOffset != 2 {
			t.Fatalf("Poll = %v", err)
		}
		if err := consumer.Seek(t0, Offset(2)); err != nil {
			t.Fatal(err)
		}
		want(t, poll(t, consumer, 1), "0:2=2")
	})
}

func TestGapsAreFine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		topic := c.createTopic("t", 1)
		for i := range 4 {
			c.fill(t, "t", 0, recordbatch.None, numbers(2*i, 2*i+2)...)
		}
		p := topic.partitions[0]
		p.batches = slices.Delete(p.batches, 1, 3)
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), At("t", 0, Offset(1)).UntilEnd()); err != nil {
			t.Fatal(err)
		}
		want(t, poll(t, consumer, 3), "0:1=1", "0:6=6", "0:7=7")
		if _, err := consumer.Poll(t.Context()); !errors.Is(err, ErrEnd) {
			t.Errorf("Poll = %v", err)
		}
	})
}

func TestPrefetchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 2)
		value := strings.Repeat("x", 10_000)
		for range 100 {
			c.fill(t, "t", 0, recordbatch.None, value)
			c.fill(t, "t", 1, recordbatch.None, value)
		}
		const limit = 100_000
		consumer := c.consumer(t, WithMaxBufferedBytes(limit))
		if err := consumer.Assign(t.Context(), AtAll("t", Earliest())); err != nil {
			t.Fatal(err)
		}
		count := 0
		for count < 200 {
			synctest.Wait()
			if consumer.buffered > limit+limit/2 {
				t.Fatalf("%d bytes are buffered", consumer.buffered)
			}
			records, err := consumer.Poll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			count += records.Len()
		}
		if consumer.buffered != 0 {
			t.Errorf("%d bytes are left", consumer.buffered)
		}
	})
}

func TestConsumerFollowsTheLeader(t *testing.T) {
	for _, announce := range []bool{false, true} {
		t.Run(fmt.Sprint("announced ", announce), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(2)
				c.createTopic("t", 1)
				consumer := c.consumer(t)
				if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
					t.Fatal(err)
				}
				for i := range 4 {
					c.fill(t, "t", 0, recordbatch.None, strconv.Itoa(i))
					want(t, poll(t, consumer, 1), fmt.Sprintf("0:%d=%d", i, i))
					c.moveLeader("t", 0, int32(3-i%2), announce)
				}
			})
		})
	}
}

func TestConsumerHealsAfterDisconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 2)
		random := rand.New(rand.NewPCG(1, 2))
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), AtAll("t", Earliest())); err != nil {
			t.Fatal(err)
		}
		next := [2]int{}
		for n := range 200 {
			partition := random.IntN(2)
			c.fill(t, "t", partition, recordbatch.None, strconv.Itoa(n))
			switch random.IntN(6) {
			case 0:
				c.node(int32(2 + random.IntN(2))).cut()
			case 1:
				node := c.node(int32(2 + random.IntN(2)))
				node.setDown(true)
				outage := time.Duration(random.IntN(100)) * time.Millisecond
				go func() {
					time.Sleep(outage)
					node.setDown(false)
				}()
				time.Sleep(200 * time.Millisecond)
			case 2:
				leader := c.topics["t"].partitions[partition].leader
				c.moveLeader("t", partition, 5-leader, random.IntN(2) == 0)
			case 3:
				c.node(1).cut()
			}
			for _, got := range poll(t, consumer, 1) {
				if expected := fmt.Sprintf("%d:%d=%d", partition, next[partition], n); got != expected {
					t.Fatalf("got %s, want %s", got, expected)
				}
				next[partition]++
			}
		}
	})
}

func TestDeletedTopicIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		c.createTopic("other", 1)
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), At("t", 0, Earliest()), At("other", 0, Earliest())); err != nil {
			t.Fatal(err)
		}
		c.deleteTopic("t")
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "not meant")
		_, err := consumer.Poll(t.Context())
		if ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			t.Errorf("Poll = %v", err)
		}
		c.fill(t, "other", 0, recordbatch.None, "x")
		want(t, poll(t, consumer, 1), "0:0=x")
	})
}

func TestCloseEndsPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := consumer.Poll(t.Context())
			ended <- err
		}()
		synctest.Wait()
		for range 2 {
			if err := consumer.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Errorf("Poll = %v", err)
		}
		if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); !errors.Is(err, ErrClosed) {
			t.Errorf("Assign = %v", err)
		}
	})
}

func TestRecordsOfAPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 3)
		for partition := range 3 {
			c.fill(t, "t", partition, recordbatch.None, numbers(0, 3)...)
			c.fill(t, "t", partition, recordbatch.LZ4, numbers(3, 6)...)
		}
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), AtAll("t", Offset(1))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		records, err := consumer.Poll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if records.Len() != 15 || len(records.Slice()) != 15 {
			t.Errorf("%d and %d records, want 15", records.Len(), len(records.Slice()))
		}
		partitions := 0
		for tp, part := range records.ByPartition() {
			partitions++
			next := int64(1)
			for r := range part.All() {
				if r.Partition != tp.Partition || r.Offset != next {
					t.Errorf("%v: offset %d, want %d", tp, r.Offset, next)
				}
				next++
			}
			if part.Len() != 5 || next != 6 {
				t.Errorf("%v has %d records up to %d", tp, part.Len(), next)
			}
		}
		if partitions != 3 {
			t.Errorf("%d partitions", partitions)
		}
		for range records.All() {
			break // Leaving early is fine.
		}
	})
}

func TestPollIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 2)
		value := strings.Repeat("x", 100_000)
		for range 40 {
			c.fill(t, "t", 0, recordbatch.None, value)
		}
		c.fill(t, "t", 1, recordbatch.None, "small")
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), AtAll("t", Earliest())); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		records, err := consumer.Poll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(records.Slice(), func(r ConsumedRecord) bool { return r.Partition == 1 }) {
			t.Error("the large partition crowds out the small one")
		}
		if records.Len() > 12 {
			t.Errorf("one Poll returned %d records of 100 kB", records.Len())
		}
	})
}

func TestConsumerOptionsAreChecked(t *testing.T) {
	client := newFakeCluster(1).client(t)
	_, err := client.NewConsumer(WithReset(9), WithMaxBufferedBytes(1))
	if err == nil || !strings.Contains(err.Error(), "reset policy") || !strings.Contains(err.Error(), "buffer") {
		t.Errorf("error = %v", err)
	}
}

// TestLateResponseIsVoid: what a stream had under way when the consumer was
// sent elsewhere must not count.
func TestLateResponseIsVoid(t *testing.T) {
	changes := map[string]func(*Consumer) error{
		"seek":   func(c *Consumer) error { return c.Seek(t0, Offset(0)) },
		"pause":  func(c *Consumer) error { return c.Pause(t0) },
		"remove": func(c *Consumer) error { c.Remove(t0); return nil },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				topic := c.createTopic("t", 1)
				c.fill(t, "t", 0, recordbatch.None, "0")
				consumer := c.consumer(t)
				if err := consumer.Assign(t.Context(), At("t", 0, Earliest())); err != nil {
					t.Fatal(err)
				}
				want(t, poll(t, consumer, 1), "0:0=0")
				consumer.mu.Lock()
				r := consumer.partitions[t0]
				under := &session{reading: r, number: r.session, from: r.ahead, until: noBound}
				consumer.mu.Unlock()
				if err := change(consumer); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				consumer.mu.Lock()
				before := r.next
				consumer.mu.Unlock()
				c.fill(t, "t", 0, recordbatch.None, "1", "2")
				c.mu.Lock()
				late := topic.partitions[0].batches[1]
				c.mu.Unlock()
				consumer.take(under, &storagev1.ConsumeResponse{Topic: "t", Batches: [][]byte{late}, NextOffset: 3, HighWatermark: 3})
				consumer.mu.Lock()
				if r.next != before || name != "seek" && len(r.chunks) > 0 {
					t.Errorf("the response counted: position %+v, was %+v", r.next, before)
				}
				consumer.mu.Unlock()
				if name == "seek" {
					want(t, poll(t, consumer, 3), "0:0=0", "0:1=1", "0:2=2")
				}
			})
		})
	}
}

// TestBoundEndsTheStream: what lies behind the bounds is not sent for nothing.
func TestBoundEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		c.fill(t, "t", 0, recordbatch.None, "0", "1")
		consumer := c.consumer(t)
		if err := consumer.Assign(t.Context(), At("t", 0, Earliest()).UntilEnd()); err != nil {
			t.Fatal(err)
		}
		want(t, poll(t, consumer, 2), "0:0=0", "0:1=1")
		synctest.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		for call := range c.node(2).calls {
			if call.stream {
				t.Error("a stream is still open")
			}
		}
	})
}

// TestConsumeCompacted: batches are missing, others have lost records or all of
// them. The consumer passes over what is not there, and ends at its bound also
// where nothing is left before it.
func TestConsumeCompacted(t *testing.T) {
	for codec := recordbatch.None; codec <= recordbatch.Zstd; codec++ {
		t.Run(codec.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				p := c.createTopic("t", 1).partitions[0]
				for i := range 6 {
					c.fill(t, "t", 0, codec, strconv.Itoa(3*i), strconv.Itoa(3*i+1), strconv.Itoa(3*i+2))
				}
				c.change(func() {
					// Offsets 3 to 5 and 9 to 11 are gone as batches.
					p.batches = append(p.batches[:1:1], p.batches[2], p.batches[4], p.batches[5])
					for i, stays := range map[int][]int64{1: {7}, 2: {12, 14}, 3: nil} {
						left, err := recordbatch.Filter(p.batches[i], recordbatch.Limits{}, recordbatch.NoTimestamp,
							func(r recordbatch.Record) bool { return slices.Contains(stays, r.Offset) })
						if err != nil {
							t.Fatal(err)
						}
						p.batches[i] = left.Batch
					}
				})
				left := []int{0, 1, 2, 7, 12, 14}
				for from := range 18 {
					for until := from; until <= 18; until++ {
						consumer := c.consumer(t)
						if err := consumer.Assign(t.Context(), At("t", 0, Offset(int64(from))).Until(int64(until))); err != nil {
							t.Fatal(err)
						}
						var wanted []string
						for _, n := range left {
							if n >= from && n < until {
								wanted = append(wanted, fmt.Sprintf("0:%d=%d", n, n))
							}
						}
						want(t, poll(t, consumer, len(wanted)), wanted...)
						if records, err := consumer.Poll(t.Context()); !errors.Is(err, ErrEnd) {
							t.Fatalf("%d to %d: Poll at the end returned %v, %v", from, until, records.Slice(), err)
						}
						if position, err := consumer.Position(t0); err != nil || position.Offset != int64(until) {
							t.Fatalf("%d to %d: position at the end %+v, %v", from, until, position, err)
						}
						if err := consumer.Close(); err != nil {
							t.Fatal(err)
						}
					}
				}
				// Position moves by batches, not by records.
				consumer := c.consumer(t)
				if err := consumer.Assign(t.Context(), At("t", 0, Earliest()).UntilEnd()); err != nil {
					t.Fatal(err)
				}
				poll(t, consumer, len(left))
				if _, err := consumer.Poll(t.Context()); !errors.Is(err, ErrEnd) {
					t.Fatal(err)
				}
			})
		})
	}
}
