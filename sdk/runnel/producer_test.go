package runnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

func (c *fakeCluster) producer(t testing.TB, options ...ProducerOption) *Producer {
	t.Helper()
	p, err := c.client(t).NewProducer(options...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// log collects the outcomes of records that are numbered by their values.
type outcomes struct {
	mu   sync.Mutex
	acks map[int32][]outcomeOf1
	errs map[int]error
}

type outcomeOf1 struct {
	number int
	ack    Ack
}

func newOutcomes() *outcomes {
	return &outcomes{acks: make(map[int32][]outcomeOf1), errs: make(map[int]error)}
}

func (o *outcomes) callback(number int) func(Ack, error) {
	return func(ack Ack, err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if err != nil {
			o.errs[number] = err
			return
		}
		o.acks[ack.Partition] = append(o.acks[ack.Partition], outcomeOf1{number, ack})
	}
}

func (o *outcomes) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.errs)
	for _, acks := range o.acks {
		n += len(acks)
	}
	return n
}

func number(t testing.TB, r recordbatch.Record) int {
	t.Helper()
	n, err := strconv.Atoi(string(bytes.TrimRight(r.Value, ".")))
	if err != nil {
		t.Fatalf("value %q is not a number", r.Value)
	}
	return n
}

func TestSendSyncReturnsWhereTheRecordWent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 3)
		p := c.producer(t)
		at := time.UnixMilli(1_700_000_000_000)
		for i := range 3 {
			ack, err := p.SendSync(t.Context(), Record{Topic: "t", Partition: OnPartition(1), Value: []byte("v"), Timestamp: at})
			if err != nil {
				t.Fatal(err)
			}
			if want := (Ack{Topic: "t", Partition: 1, Offset: int64(i), Timestamp: at}); ack != want {
				t.Errorf("ack = %+v, want %+v", ack, want)
			}
		}
		records := c.records(t, "t", 1)
		if len(records) != 3 || records[0].Timestamp != at.UnixMilli() {
			t.Errorf("log = %+v", records)
		}
	})
}

func TestRecordsArriveAsSent(t *testing.T) {
	for _, compression := range []Compression{NoCompression, Gzip, Snappy, LZ4, Zstd} {
		t.Run(compression.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				c.createTopic("t", 1)
				p := c.producer(t, WithCompression(compression))
				key, value := []byte("key"), []byte(strings.Repeat("value", 100))
				headers := []Header{{Key: "h", Value: []byte("1")}, {Key: "h"}}
				if err := p.Send(t.Context(), Record{Topic: "t", Key: key, Value: value, Headers: headers}, nil); err != nil {
					t.Fatal(err)
				}
				// They are the caller's again.
				clear(key)
				clear(value)
				headers[0].Key = "changed"
				if err := p.Send(t.Context(), Record{Topic: "t"}, nil); err != nil {
					t.Fatal(err)
				}
				before := time.Now()
				if err := p.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				records := c.records(t, "t", 0)
				if len(records) != 2 {
					t.Fatalf("%d records", len(records))
				}
				first := records[0]
				if string(first.Key) != "key" || string(first.Value) != strings.Repeat("value", 100) || len(first.Headers) != 2 ||
					first.Headers[0].Key != "h" || string(first.Headers[0].Value) != "1" || first.Headers[1].Value != nil {
					t.Errorf("record = %+v", first)
				}
				if first.Timestamp != before.UnixMilli() {
					t.Errorf("timestamp = %d, want %d", first.Timestamp, before.UnixMilli())
				}
				if records[1].Key != nil || records[1].Value != nil {
					t.Errorf("nulls became %+v", records[1])
				}
			})
		})
	}
}

// TestOrderUnderFailures sends through a cluster that fails in every way, and
// holds the log against what was sent and what was promised.
func TestOrderUnderFailures(t *testing.T) {
	seeds := 150
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { orderUnderFailures(t, uint64(seed)) })
		})
	}
}

func orderUnderFailures(t *testing.T, seed uint64) {
	const partitions, records = 3, 600
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 1))
	roll := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
	idempotent := seed%4 != 3
	// Hurried producers give up what takes long, and the cluster takes long.
	hurried, patience := seed%3 == 0, time.Hour
	if hurried {
		patience = time.Duration(50+roll(400)) * time.Millisecond
	}
	c := newFakeCluster(3)
	topic := c.createTopic("t", partitions)
	compacted := seed%5 == 0
	if compacted {
		topic.config = map[string]string{"cleanup.policy": "compact"}
	}
	var calm atomic.Bool
	reasons := []errorsv1.Reason{
		errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS,
		errorsv1.Reason_REASON_THROTTLED,
		errorsv1.Reason_REASON_DISK_FULL,
		errorsv1.Reason_REASON_TOPIC_NOT_FOUND,
		errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH,
	}
	doubtful := []errorsv1.Reason{
		errorsv1.Reason_REASON_TIMED_OUT,
		errorsv1.Reason_REASON_INTERNAL,
		errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
		errorsv1.Reason_REASON_STORAGE_FAILED,
	}
	rejected := make(map[int]bool)
	c.onProduce = func(_ *fakeNode, request *storagev1.ProduceRequest) fault {
		f := fault{delay: time.Duration(roll(2000)) * time.Microsecond}
		if calm.Load() {
			return f
		}
		if hurried && roll(30) == 0 {
			f.delay = time.Duration(roll(800)) * time.Millisecond
		}
		switch roll(22) {
		case 0, 1:
			f.failure = failureOf(reasons[roll(len(reasons))])
		case 2:
			f.failure = failureOf(doubtful[roll(len(doubtful))])
		case 3:
			f.failure, f.appended = failureOf(doubtful[roll(len(doubtful))]), true
		case 4:
			f.cut = true
		case 5:
			f.cut, f.appended = true, true
		case 6:
			if seed%2 == 0 {
				f.failure = failureOf(errorsv1.Reason_REASON_RECORD_TOO_LARGE)
				first, err := recordbatch.Decode(request.GetBatch(), recordbatch.Limits{})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				for _, r := range first {
					rejected[number(t, r)] = true
				}
				mu.Unlock()
			}
		case 7:
			c.moveLeader("t", int(request.GetPartition()), int32(2+roll(3)), roll(2) == 0)
		}
		return f
	}
	options := []ProducerOption{
		WithBatchBytes(200 + roll(400)), WithIdempotence(idempotent),
		WithRequestTimeout(time.Second), WithDeliveryTimeout(patience),
		WithCompression(Compression(roll(5))),
	}
	if roll(2) == 0 {
		options = append(options, WithLinger(time.Duration(roll(3))*time.Millisecond))
	}
	if roll(3) == 0 {
		options = append(options, WithAcks(AcksLeader))
	}
	if roll(3) == 0 {
		options = append(options, WithBufferBytes(int64(1000+roll(3000))))
	}
	p := c.producer(t, options...)
	got := newOutcomes()
	for n := range records {
		r := Record{Topic: "t", Partition: OnPartition(int32(roll(partitions))), Value: fmt.Appendf(nil, "%d%s", n, strings.Repeat(".", roll(60)))}
		if compacted {
			if roll(12) > 0 {
				r.Key = []byte("k")
			} else {
				mu.Lock()
				rejected[n] = true
				mu.Unlock()
			}
		}
		if err := p.Send(t.Context(), r, got.callback(n)); err != nil {
			t.Fatalf("record %d: %v", n, err)
		}
		if roll(20) == 0 {
			time.Sleep(time.Duration(roll(5000)) * time.Microsecond)
		}
	}
	time.Sleep(time.Second)
	calm.Store(true)
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got.count() != records {
		t.Fatalf("%d outcomes for %d records", got.count(), records)
	}
	for n, err := range got.errs {
		e, ok := errors.AsType[*Error](err)
		switch {
		case !ok:
			t.Errorf("record %d: %v", n, err)
		case hurried && e.Reason == errorsv1.Reason_REASON_TIMED_OUT:
		case compacted && e.Reason == errorsv1.Reason_REASON_KEY_REQUIRED && e.OutcomeUnknown():
			// A doubtful batch with a record without a key fails as a whole.
		case idempotent && e.OutcomeUnknown() && (e.Reason == errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE || e.Reason == errorsv1.Reason_REASON_UNKNOWN_PRODUCER):
			// It was behind a batch that was given up in doubt.
		case idempotent && !rejected[n]:
			t.Errorf("record %d failed although nothing refused it: %v", n, err)
		case !idempotent && !rejected[n] && !e.OutcomeUnknown():
			t.Errorf("record %d: %v", n, err)
		}
	}
	for partition := range topic.partitions {
		log := c.records(t, "t", partition)
		last := -1
		at := make(map[int]int64)
		for _, r := range log {
			n := number(t, r)
			at[n] = r.Offset
			if e, ok := errors.AsType[*Error](got.errs[n]); ok && !e.OutcomeUnknown() {
				t.Errorf("record %d failed for certain (%v) and was written", n, e)
			} else if ok && !idempotent {
				// It may have been under way when the next were sent.
				continue
			}
			if n <= last {
				t.Errorf("partition %d: record %d comes after %d", partition, n, last)
			}
			last = n
		}
		previous := -1
		for _, o := range got.acks[int32(partition)] {
			if offset, ok := at[o.number]; !ok || offset != o.ack.Offset {
				t.Errorf("record %d was acknowledged at %d, but is at %d (%v)", o.number, o.ack.Offset, offset, ok)
			}
			if o.number <= previous {
				t.Errorf("partition %d: callback of %d after that of %d", partition, o.number, previous)
			}
			previous = o.number
		}
	}
}

func TestSequencesWrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		topic := c.createTopic("t", 1)
		var sequences []int32
		c.onProduce = func(_ *fakeNode, request *storagev1.ProduceRequest) fault {
			h, err := recordbatch.Verify(request.GetBatch())
			if err != nil {
				t.Error(err)
			}
			sequences = append(sequences, h.BaseSequence)
			return fault{}
		}
		p := c.producer(t)
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
		q := (*(*p.topics.Load())["t"].queues.Load())[0]
		q.mu.Lock()
		q.nextSequence = math.MaxInt32
		q.mu.Unlock()
		c.mu.Lock()
		topic.partitions[0].producers[1].next = math.MaxInt32
		c.mu.Unlock()
		for range 2 {
			if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
				t.Fatal(err)
			}
		}
		if want := []int32{0, math.MaxInt32, 0}; fmt.Sprint(sequences) != fmt.Sprint(want) {
			t.Errorf("sequences = %v, want %v", sequences, want)
		}
	})
}

func TestRedirectHealsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 1)
		p := c.producer(t)
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
		c.moveLeader("t", 0, 3, false)
		start := time.Now()
		ack, err := p.SendSync(t.Context(), Record{Topic: "t"})
		if err != nil || ack.Offset != 1 {
			t.Fatalf("ack = %+v, %v", ack, err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("the redirect took %v", waited)
		}
	})
}

func TestWatchReroutesAPartitionWhoseLeaderIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 1)
		p := c.producer(t)
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
		c.node(2).setDown(true)
		var acked atomic.Int64
		for range 10 {
			if err := p.Send(t.Context(), Record{Topic: "t"}, func(_ Ack, err error) {
				if err == nil {
					acked.Add(1)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second)
		if acked.Load() != 0 {
			t.Fatal("acknowledged by a node that is down")
		}
		c.moveLeader("t", 0, 3, true)
		synctest.Wait()
		if acked.Load() != 10 {
			t.Errorf("%d of 10 acknowledged once the watch named the new leader", acked.Load())
		}
	})
}

func TestServerThatKeepsSilentIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		var asked atomic.Int64
		never := make(chan struct{})
		c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault {
			if asked.Add(1) == 1 {
				return fault{wait: never}
			}
			return fault{}
		}
		p := c.producer(t, WithRequestTimeout(time.Second))
		start := time.Now()
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(start); waited < 2*time.Second || waited > 3*time.Second {
			t.Errorf("gave up after %v", waited)
		}
	})
}

func TestUnknownTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		p := c.producer(t)
		start := time.Now()
		err := p.Send(t.Context(), Record{Topic: "nobody"}, nil)
		if ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND || !strings.Contains(err.Error(), `"nobody"`) {
			t.Errorf("error = %v", err)
		}
		if waited := time.Since(start); waited > 2*unknownTopicWait {
			t.Errorf("that took %v", waited)
		}
		// A topic that comes meanwhile is found.
		go func() {
			time.Sleep(unknownTopicWait / 2)
			c.createTopic("late", 1)
		}()
		if _, err := p.SendSync(t.Context(), Record{Topic: "late"}); err != nil {
			t.Error(err)
		}
	})
}

func TestUnknownPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 2)
		p := c.producer(t)
		for _, partition := range []int32{-2, 2, 1000} {
			err := p.Send(t.Context(), Record{Topic: "t", Partition: OnPartition(partition)}, nil)
			if ReasonOf(err) != errorsv1.Reason_REASON_PARTITION_NOT_FOUND {
				t.Errorf("partition %d: %v", partition, err)
			}
		}
	})
}

func TestTopicCreatedAgainDoesNotSwallow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		c.node(2).setDown(true)
		p := c.producer(t)
		var failed error
		if err := p.Send(t.Context(), Record{Topic: "t", Value: []byte("old")}, func(_ Ack, err error) { failed = err }); err != nil {
			t.Fatal(err)
		}
		c.deleteTopic("t")
		c.createTopic("t", 1)
		synctest.Wait()
		if ReasonOf(failed) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			t.Errorf("record for the deleted topic: %v", failed)
		}
		c.node(2).setDown(false)
		if ack, err := p.SendSync(t.Context(), Record{Topic: "t", Value: []byte("new")}); err != nil || ack.Offset != 0 {
			t.Fatalf("ack = %+v, %v", ack, err)
		}
		if records := c.records(t, "t", 0); len(records) != 1 || string(records[0].Value) != "new" {
			t.Errorf("log = %+v", records)
		}
		c.deleteTopic("t")
		synctest.Wait()
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			t.Errorf("deleted topic: %v", err)
		}
	})
}

func TestBufferBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 2)
		gate := make(chan struct{})
		c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault { return fault{wait: gate} }
		const limit = 10_000
		p := c.producer(t, WithBufferBytes(limit), WithLinger(time.Minute))
		value := make([]byte, 900)
		sent := 0
		for ; ; sent++ {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := p.Send(ctx, Record{Topic: "t", Partition: OnPartition(int32(sent % 2)), Value: value}, nil)
			cancel()
			if err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				break
			}
			if sent > 100 {
				t.Fatal("no bound")
			}
		}
		if sent < 9 || sent > 11 {
			t.Errorf("%d records of 900 bytes fit into %d bytes", sent, limit)
		}
		if used := p.memory.used.Load(); used > limit {
			t.Errorf("%d bytes used", used)
		}
		if err := p.Send(t.Context(), Record{Topic: "t", Value: make([]byte, limit)}, nil); ReasonOf(err) != errorsv1.Reason_REASON_RECORD_TOO_LARGE {
			t.Errorf("record larger than the buffer: %v", err)
		}
		if err := p.Send(t.Context(), Record{Topic: "t", Value: make([]byte, maxBatchBytes)}, nil); ReasonOf(err) != errorsv1.Reason_REASON_RECORD_TOO_LARGE {
			t.Errorf("record larger than any batch: %v", err)
		}
		// Room is made as answers come, in the order of those who wait.
		var order []int
		var mu sync.Mutex
		var wait sync.WaitGroup
		for i := range 3 {
			wait.Go(func() {
				if err := p.Send(t.Context(), Record{Topic: "t", Partition: OnPartition(0), Value: value}, nil); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
			})
			synctest.Wait()
		}
		close(gate)
		wait.Wait()
		if err := p.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if used := p.memory.used.Load(); used != 0 {
			t.Errorf("%d bytes are still taken", used)
		}
		if total := len(c.records(t, "t", 0)) + len(c.records(t, "t", 1)); total != sent+3 {
			t.Errorf("%d records of %d", total, sent+3)
		}
	})
}

// TestFullBufferSendsWhatLingers: when all memory is in batches that wait for
// more records, waiting would never end.
func TestFullBufferSendsWhatLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 10)
		p := c.producer(t, WithBufferBytes(5000), WithLinger(time.Minute))
		start := time.Now()
		for i := range 100 {
			if err := p.Send(t.Context(), Record{Topic: "t", Partition: OnPartition(int32(i % 10)), Value: make([]byte, 300)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if waited := time.Since(start); waited > time.Second {
			t.Errorf("that took %v", waited)
		}
	})
}

func TestFlushWaitsForCallbacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 4)
		c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault { return fault{delay: 10 * time.Millisecond} }
		p := c.producer(t, WithLinger(time.Minute))
		var ran atomic.Int64
		for i := range 100 {
			err := p.Send(t.Context(), Record{Topic: "t", Partition: OnPartition(int32(i % 4))}, func(Ack, error) {
				time.Sleep(time.Millisecond)
				ran.Add(1)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if err := p.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ran.Load() != 100 {
			t.Errorf("%d of 100 callbacks ran", ran.Load())
		}
		if waited := time.Since(start); waited > time.Second {
			t.Errorf("Flush lingered for %v", waited)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := p.Send(t.Context(), Record{Topic: "t"}, nil); err != nil {
			t.Fatal(err)
		}
		if err := p.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush = %v, want the end of its context", err)
		}
	})
}

func TestFlushReportsSilentLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault {
			return fault{failure: failureOf(errorsv1.Reason_REASON_RECORD_TOO_LARGE)}
		}
		p := c.producer(t, WithLinger(time.Minute))
		for range 3 {
			if err := p.Send(t.Context(), Record{Topic: "t"}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Send(t.Context(), Record{Topic: "t"}, func(Ack, error) {}); err != nil {
			t.Fatal(err)
		}
		err := p.Flush(t.Context())
		if ReasonOf(err) != errorsv1.Reason_REASON_RECORD_TOO_LARGE || !strings.HasPrefix(err.Error(), "3 records") {
			t.Errorf("Flush = %v", err)
		}
		if err := p.Flush(t.Context()); err != nil {
			t.Errorf("second Flush = %v", err)
		}
	})
}

func TestCloseDeliversAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		p := c.producer(t, WithLinger(time.Minute))
		got := newOutcomes()
		for n := range 10 {
			if err := p.Send(t.Context(), Record{Topic: "t", Value: strconv.AppendInt(nil, int64(n), 10)}, got.callback(n)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if len(got.acks[0]) != 10 {
			t.Errorf("%d of 10 delivered", len(got.acks[0]))
		}
		if err := p.Send(t.Context(), Record{Topic: "t"}, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Send after Close = %v", err)
		}
		if err := p.Send(t.Context(), Record{Topic: "other"}, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Send after Close = %v", err)
		}
		if err := p.Flush(t.Context()); err != nil {
			t.Errorf("Flush after Close = %v", err)
		}
	})
}

func TestAbortEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 2)
		never := make(chan struct{})
		c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault { return fault{wait: never} }
		p := c.producer(t, WithLinger(time.Minute))
		errs := make([]error, 2)
		for i := range errs {
			if err := p.Send(t.Context(), Record{Topic: "t", Partition: OnPartition(int32(i))}, func(_ Ack, err error) { errs[i] = err }); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				p.topicQueue("t", 0).sealOpen(time.Now())
				synctest.Wait()
			}
		}
		start := time.Now()
		p.Abort()
		if waited := time.Since(start); waited > 2*farewell {
			t.Errorf("Abort took %v", waited)
		}
		for i, err := range errs {
			e, ok := errors.AsType[*Error](err)
			if !errors.Is(err, ErrClosed) {
				t.Errorf("record %d: %v", i, err)
			}
			if doubtful := ok && e.OutcomeUnknown(); doubtful != (i == 0) {
				t.Errorf("record %d: outcome unknown is %v (%v)", i, doubtful, err)
			}
		}
	})
}

func (p *Producer) topicQueue(topic string, partition int) *partitionQueue {
	return (*(*p.topics.Load())[topic].queues.Load())[partition]
}

func TestDeliveryTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		p := c.producer(t, WithDeliveryTimeout(10*time.Second))
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
		c.node(2).setDown(true)
		synctest.Wait()
		start := time.Now()
		_, err := p.SendSync(t.Context(), Record{Topic: "t"})
		if waited := time.Since(start); waited < 10*time.Second || waited > 11*time.Second {
			t.Errorf("failed after %v", waited)
		}
		if e, ok := errors.AsType[*Error](err); !ok || e.OutcomeUnknown() || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("error = %v", err)
		}
		// Once the node is back the partition goes on, with a new identity.
		c.node(2).setDown(false)
		if ack, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil || ack.Offset != 1 {
			t.Errorf("ack = %+v, %v", ack, err)
		}
	})
}

// TestWhatWasNeverSentIsNotInDoubt: without idempotence nothing may be sent
// twice, but what never left can be sent when its node is back.
func TestWhatWasNeverSentIsNotInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		c.node(2).setDown(true)
		p := c.producer(t, WithIdempotence(false))
		go func() {
			time.Sleep(time.Second)
			c.node(2).setDown(false)
		}()
		if ack, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil || ack.Offset != 0 {
			t.Errorf("ack = %+v, %v", ack, err)
		}
	})
}

func TestDoubtfulExpiryLeavesAGap(t *testing.T) {
	for _, appended := range []bool{false, true} {
		t.Run(fmt.Sprint("appended ", appended), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				c.createTopic("t", 1)
				var broken atomic.Bool
				c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault {
					if broken.Load() {
						return fault{failure: failureOf(errorsv1.Reason_REASON_TIMED_OUT), appended: appended}
					}
					return fault{}
				}
				p := c.producer(t, WithDeliveryTimeout(10*time.Second), WithBatchBytes(100), WithLinger(0))
				if _, err := p.SendSync(t.Context(), Record{Topic: "t", Value: []byte("0")}); err != nil {
					t.Fatal(err)
				}
				broken.Store(true)
				got := newOutcomes()
				for n := 1; n < 5; n++ {
					if err := p.Send(t.Context(), Record{Topic: "t", Value: fmt.Appendf(nil, "%d%s", n, strings.Repeat(".", 90))}, got.callback(n)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				// The first expire; the rest is sent again when the cluster works.
				time.Sleep(7500 * time.Millisecond)
				broken.Store(false)
				if err := p.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				if len(got.errs) == 0 || len(got.errs) == 4 {
					t.Fatalf("errors: %v", got.errs)
				}
				seen := make(map[int]int)
				last := -1
				for _, r := range c.records(t, "t", 0) {
					n := number(t, r)
					seen[n]++
					if seen[n] > 1 || n < last {
						t.Errorf("record %d after %d", n, last)
					}
					last = n
				}
				for n := 1; n < 5; n++ {
					e, failed := errors.AsType[*Error](got.errs[n])
					switch {
					case failed && !e.OutcomeUnknown():
						t.Errorf("record %d: %v, but nobody can know", n, e)
					case !failed && seen[n] != 1:
						t.Errorf("record %d was acknowledged and is in the log %d times", n, seen[n])
					}
				}
			})
		})
	}
}

func TestForgottenProducerStartsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		topic := c.createTopic("t", 2)
		p := c.producer(t)
		for i := range 2 {
			if _, err := p.SendSync(t.Context(), Record{Topic: "t", Partition: OnPartition(int32(i))}); err != nil {
				t.Fatal(err)
			}
		}
		c.mu.Lock()
		clear(topic.partitions[0].producers)
		c.mu.Unlock()
		for i := range 2 {
			if ack, err := p.SendSync(t.Context(), Record{Topic: "t", Partition: OnPartition(int32(i))}); err != nil || ack.Offset != 1 {
				t.Errorf("partition %d: %+v, %v", i, ack, err)
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, want := range []int16{1, 0} {
			if got := topic.partitions[i].producers[1].epoch; got != want {
				t.Errorf("partition %d: epoch %d, want %d", i, got, want)
			}
		}
	})
}

// TestVanishedRecords: the leader has lost what it acknowledged. Within the
// promise of AcksLeader that is passed over, otherwise somebody has to hear of it.
func TestVanishedRecords(t *testing.T) {
	for _, acks := range []Acks{AcksLeader, AcksAll} {
		t.Run(acks.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				topic := c.createTopic("t", 1)
				p := c.producer(t, WithAcks(acks))
				for range 3 {
					if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
						t.Fatal(err)
					}
				}
				c.mu.Lock()
				partition := topic.partitions[0]
				partition.batches, partition.end = partition.batches[:1], 1
				partition.producers[1].next, partition.producers[1].recent = 1, partition.producers[1].recent[:1]
				c.mu.Unlock()
				ack, err := p.SendSync(t.Context(), Record{Topic: "t"})
				if acks == AcksLeader {
					if err != nil || ack.Offset != 1 {
						t.Errorf("ack = %+v, %v", ack, err)
					}
					return
				}
				if ReasonOf(err) != errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE {
					t.Errorf("error = %v", err)
				}
				if ack, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil || ack.Offset != 1 {
					t.Errorf("the next record: %+v, %v", ack, err)
				}
			})
		})
	}
}

// TestGapThatWasNone: a batch that was given up in doubt turns out to have been
// appended. From then on a missing sequence is a loss like any other.
func TestGapThatWasNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		topic := c.createTopic("t", 1)
		var broken atomic.Bool
		requests := 0
		c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault {
			if broken.Load() {
				f := fault{failure: failureOf(errorsv1.Reason_REASON_TIMED_OUT), appended: true}
				if requests++; requests == 1 {
					f.delay = 4 * time.Second
				}
				return f
			}
			return fault{}
		}
		p := c.producer(t, WithDeliveryTimeout(10*time.Second), WithLinger(0), WithBatchBytes(1))
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
		broken.Store(true)
		errs := make([]error, 2)
		for i := range errs {
			if err := p.Send(t.Context(), Record{Topic: "t"}, func(_ Ack, err error) { errs[i] = err }); err != nil {
				t.Fatal(err)
			}
			// The second goes out behind the first, and has more time left.
			time.Sleep(3 * time.Second)
		}
		time.Sleep(4400 * time.Millisecond)
		q := p.topicQueue("t", 0)
		q.mu.Lock()
		if q.gap != 1 {
			t.Errorf("gap = %d", q.gap)
		}
		q.mu.Unlock()
		broken.Store(false)
		if err := p.Flush(t.Context()); err != nil && ReasonOf(err) != errorsv1.Reason_REASON_TIMED_OUT {
			t.Fatal(err)
		}
		if errs[0] == nil || errs[1] != nil {
			t.Fatalf("outcomes %v", errs)
		}
		c.mu.Lock()
		partition := topic.partitions[0]
		partition.batches, partition.end = partition.batches[:1], 1
		partition.producers[1].next, partition.producers[1].recent = 1, partition.producers[1].recent[:1]
		c.mu.Unlock()
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); ReasonOf(err) != errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE {
			t.Errorf("error = %v", err)
		}
	})
}

func TestFencedProducerStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 2)
		c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault {
			return fault{failure: failureOf(errorsv1.Reason_REASON_PRODUCER_FENCED)}
		}
		p := c.producer(t)
		if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); ReasonOf(err) != errorsv1.Reason_REASON_PRODUCER_FENCED {
			t.Errorf("error = %v", err)
		}
		synctest.Wait()
		for i := range 2 {
			if err := p.Send(t.Context(), Record{Topic: "t", Partition: OnPartition(int32(i))}, nil); ReasonOf(err) != errorsv1.Reason_REASON_PRODUCER_FENCED {
				t.Errorf("Send = %v", err)
			}
		}
	})
}

func TestAcksNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 1)
		p := c.producer(t, WithAcks(AcksNone))
		for range 3 {
			if ack, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil || ack.Offset != -1 {
				t.Errorf("ack = %+v, %v", ack, err)
			}
		}
		synctest.Wait()
		if n := len(c.records(t, "t", 0)); n != 3 {
			t.Errorf("%d records", n)
		}
		// A refusal comes too late for its record, but sets the route right.
		c.moveLeader("t", 0, 3, false)
		for range 2 {
			if _, err := p.SendSync(t.Context(), Record{Topic: "t"}); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
		if n := len(c.records(t, "t", 0)); n != 4 {
			t.Errorf("%d records, want 4", n)
		}
		// What was sent is read to the end.
		if err := p.Send(t.Context(), Record{Topic: "t"}, nil); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if n := len(c.records(t, "t", 0)); n != 5 {
			t.Errorf("%d records after Close, want 5", n)
		}
	})
}

func TestAtMostFiveInFlight(t *testing.T) {
	for _, test := range []struct {
		idempotent bool
		want       int64
	}{{true, 5}, {false, 1}} {
		t.Run(fmt.Sprint("idempotent ", test.idempotent), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				c.createTopic("t", 1)
				p := c.producer(t, WithIdempotence(test.idempotent), WithBatchBytes(1), WithLinger(0))
				var most int
				c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault {
					q := p.topicQueue("t", 0)
					q.mu.Lock()
					most = max(most, len(q.window))
					q.mu.Unlock()
					return fault{delay: time.Millisecond}
				}
				for range 50 {
					if err := p.Send(t.Context(), Record{Topic: "t"}, nil); err != nil {
						t.Fatal(err)
					}
				}
				if err := p.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				if int64(most) != test.want {
					t.Errorf("%d batches under way, want %d", most, test.want)
				}
			})
		})
	}
}

func TestLinger(t *testing.T) {
	tests := []struct {
		name    string
		options []ProducerOption
		// batches that ten records become, one per millisecond, with answers that
		// take 4.5 ms.
		least, most int
	}{
		{"adaptive", nil, 3, 4},
		{"zero", []ProducerOption{WithLinger(0)}, 6, 10},
		{"long", []ProducerOption{WithLinger(time.Second)}, 1, 1},
		{"full", []ProducerOption{WithLinger(time.Second), WithBatchBytes(1)}, 10, 10},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				c.createTopic("t", 1)
				c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault { return fault{delay: 4500 * time.Microsecond} }
				p := c.producer(t, test.options...)
				for range 10 {
					if err := p.Send(t.Context(), Record{Topic: "t"}, nil); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Millisecond)
				}
				time.Sleep(2 * time.Second)
				c.mu.Lock()
				defer c.mu.Unlock()
				if n := len(c.topics["t"].partitions[0].batches); n < test.least || n > test.most {
					t.Errorf("%d batches, want %d to %d", n, test.least, test.most)
				}
			})
		})
	}
}

func TestCallbackMaySend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		p := c.producer(t, WithBufferBytes(2000))
		done := make(chan struct{})
		left := 100
		var next func(Ack, error)
		next = func(_ Ack, err error) {
			if err != nil {
				t.Error(err)
			}
			if left--; left == 0 {
				close(done)
				return
			}
			if err := p.Send(t.Context(), Record{Topic: "t", Value: make([]byte, 1500)}, next); err != nil {
				t.Error(err)
			}
		}
		if err := p.Send(t.Context(), Record{Topic: "t"}, next); err != nil {
			t.Fatal(err)
		}
		<-done
	})
}

func TestConcurrentSenders(t *testing.T) {
	c := newFakeCluster(2)
	c.createTopic("t", 3)
	p := c.producer(t, WithBufferBytes(100_000))
	const senders, each = 8, 2000
	var got [senders * each]atomic.Int64
	var wait sync.WaitGroup
	for s := range senders {
		wait.Go(func() {
			for i := range each {
				n := s*each + i
				r := Record{Topic: "t", Key: []byte{byte(s)}, Value: strconv.AppendInt(nil, int64(n), 10)}
				err := p.Send(t.Context(), r, func(ack Ack, err error) {
					if err != nil {
						t.Error(err)
					}
					got[n].Add(1)
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range got {
		if got[n].Load() != 1 {
			t.Fatalf("record %d has %d outcomes", n, got[n].Load())
		}
	}
	next := make(map[byte]int)
	for partition := range 3 {
		for _, r := range c.records(t, "t", partition) {
			s := r.Key[0]
			if want := PartitionForKey(r.Key, 3); int(want) != partition {
				t.Fatalf("key %v is in partition %d, want %d", r.Key, partition, want)
			}
			if n := number(t, r); n != int(s)*each+next[s] {
				t.Fatalf("sender %d: record %d where %d was due", s, n, next[s])
			}
			next[s]++
		}
	}
}

func TestProducerOptionsAreChecked(t *testing.T) {
	client := newFakeCluster(1).client(t)
	_, err := client.NewProducer(WithBatchBytes(0), WithBufferBytes(0), WithRequestTimeout(0), WithDeliveryTimeout(0),
		WithLinger(-1), WithAcks(9), WithCompression(9))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"batch size", "buffer", "request timeout", "delivery timeout", "linger", "acks", "compression"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not name the %s: %v", part, err)
		}
	}
	if _, err := client.NewProducer(WithAcks(AcksNone), WithIdempotence(true)); err == nil {
		t.Error("idempotence without acks was accepted")
	}
}

// TestRetriedRefusalsAreNamed refuses a record until its time is up, for reasons
// that pass.
func TestRetriedRefusalsAreNamed(t *testing.T) {
	for _, reason := range []errorsv1.Reason{
		errorsv1.Reason_REASON_DISK_FULL,
		errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS,
		errorsv1.Reason_REASON_NO_LEADER,
		errorsv1.Reason_REASON_THROTTLED,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster(1)
				c.createTopic("t", 2)
				c.onProduce = func(_ *fakeNode, request *storagev1.ProduceRequest) fault {
					if request.GetPartition() == 0 {
						return fault{}
					}
					return fault{failure: failureOf(reason)}
				}
				p := c.producer(t, WithDeliveryTimeout(10*time.Second))
				if err := p.HeldUp("t"); err != nil {
					t.Errorf("before the first record: %v", err)
				}
				if _, err := p.SendSync(t.Context(), Record{Topic: "t", Partition: OnPartition(0)}); err != nil {
					t.Fatal(err)
				}
				failed := make(chan error, 1)
				err := p.Send(t.Context(), Record{Topic: "t", Partition: OnPartition(1)}, func(_ Ack, err error) { failed <- err })
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
				if err := p.HeldUp("t"); ReasonOf(err) != reason {
					t.Errorf("while it waits: %v, want %v", err, reason)
				}
				if err := p.HeldUp("other"); err != nil {
					t.Errorf("of another topic: %v", err)
				}
				err = <-failed
				why := failureError(failureOf(reason))
				if ReasonOf(err) != errorsv1.Reason_REASON_TIMED_OUT || !strings.HasSuffix(err.Error(), ": "+why.Message) || ReasonOf(errors.Unwrap(err)) != reason {
					t.Errorf("its time is up: %v, which does not name %v", err, why)
				}
				if err := p.HeldUp("t"); err != nil {
					t.Errorf("nothing waits: %v", err)
				}
			})
		})
	}
}

func TestHeldUpNamesAMissingLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		c.moveLeader("t", 0, -1, true)
		p := c.producer(t)
		defer p.Abort()
		if err := p.Send(t.Context(), Record{Topic: "t"}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := p.HeldUp("t"); ReasonOf(err) != errorsv1.Reason_REASON_NO_LEADER {
			t.Errorf("it says %v", err)
		}
	})
}

// TestRecordsWithoutKeyFailAlone sends records with and without keys to a
// compacted topic, several batches at once, some behind others that are refused.
func TestRecordsWithoutKeyFailAlone(t *testing.T) {
	for _, test := range []struct {
		name    string
		options []ProducerOption
	}{
		{"idempotent", nil},
		{"compressed", []ProducerOption{WithCompression(Zstd)}},
		{"not idempotent", []ProducerOption{WithIdempotence(false)}},
		{"one record per batch", []ProducerOption{WithBatchBytes(1)}},
		{"one batch", []ProducerOption{WithBatchBytes(1 << 20), WithLinger(time.Minute)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const records = 200
				c := newFakeCluster(1)
				topic := c.createTopic("t", 1)
				topic.config = map[string]string{"cleanup.policy": "compact"}
				c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault { return fault{delay: time.Millisecond} }
				p := c.producer(t, append([]ProducerOption{WithBatchBytes(300), WithLinger(0)}, test.options...)...)
				keyless := func(n int) bool { return n%7 == 3 || n >= 100 && n < 120 }
				var told []int
				offset := int64(0)
				silent := 0
				for n := range records {
					r := Record{Topic: "t", Key: []byte{}, Value: strconv.AppendInt(nil, int64(n), 10)}
					if keyless(n) {
						r.Key = nil
					}
					done := func(ack Ack, err error) {
						told = append(told, n)
						if keyless(n) {
							if ReasonOf(err) != errorsv1.Reason_REASON_KEY_REQUIRED || IsRetriable(err) || ack.Offset != -1 {
								t.Errorf("record %d without a key: %+v, %v", n, ack, err)
							}
							return
						}
						if err != nil || ack.Offset < offset {
							t.Errorf("record %d: %+v, %v; the one before it is at %d", n, ack, err, offset)
						}
						offset = ack.Offset
						c.mu.Lock()
						end := topic.partitions[0].end
						c.mu.Unlock()
						if ack.Offset >= end {
							t.Errorf("record %d was acknowledged at %d, behind the end %d", n, ack.Offset, end)
						}
					}
					if n%10 == 3 {
						done = nil
						if keyless(n) {
							silent++
						}
					}
					if err := p.Send(t.Context(), r, done); err != nil {
						t.Fatal(err)
					}
				}
				err := p.Flush(t.Context())
				if ReasonOf(err) != errorsv1.Reason_REASON_KEY_REQUIRED || !strings.HasPrefix(err.Error(), fmt.Sprintf("%d records", silent)) {
					t.Errorf("Flush = %v, want the loss of %d records without a callback", err, silent)
				}
				var want, wantTold []int
				for n := range records {
					if !keyless(n) {
						want = append(want, n)
					}
					if n%10 != 3 {
						wantTold = append(wantTold, n)
					}
				}
				var got []int
				for _, r := range c.records(t, "t", 0) {
					got = append(got, number(t, r))
				}
				if !slices.Equal(got, want) {
					t.Errorf("the log has %v, want %v", got, want)
				}
				if !slices.Equal(told, wantTold) {
					t.Errorf("callbacks ran in the order %v", told)
				}
				if used := p.memory.used.Load(); used != 0 {
					t.Errorf("%d bytes of memory are not given back", used)
				}
			})
		})
	}
}

// TestDoubtfulBatchIsNotTakenApart refuses a batch for lack of keys after an
// attempt without an answer, which may have appended all of it.
func TestDoubtfulBatchIsNotTakenApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		topic := c.createTopic("t", 1)
		asked := 0
		c.onProduce = func(*fakeNode, *storagev1.ProduceRequest) fault {
			if asked++; asked == 1 {
				return fault{cut: true, appended: true}
			}
			c.mu.Lock()
			topic.config = map[string]string{"cleanup.policy": "compact"}
			c.mu.Unlock()
			return fault{}
		}
		p := c.producer(t, WithLinger(time.Minute))
		got := newOutcomes()
		for n := range 2 {
			r := Record{Topic: "t", Key: []byte("k"), Value: strconv.AppendInt(nil, int64(n), 10)}
			if n == 1 {
				r.Key = nil
			}
			if err := p.Send(t.Context(), r, got.callback(n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for n := range 2 {
			e, ok := errors.AsType[*Error](got.errs[n])
			if !ok || e.Reason != errorsv1.Reason_REASON_KEY_REQUIRED || !e.OutcomeUnknown() {
				t.Errorf("record %d: %v", n, got.errs[n])
			}
		}
		if log := c.records(t, "t", 0); len(log) != 2 {
			t.Errorf("the log has %d records, want the 2 of the first attempt", len(log))
		}
	})
}
