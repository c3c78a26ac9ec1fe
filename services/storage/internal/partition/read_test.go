package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

func fetch(offset int64) Fetch {
	return Fetch{Offset: offset, End: 1 << 60, MaxBytes: 1 << 20, LeaderEpoch: rules.NoEpoch}
}

func TestReadStopsAtTheHighWatermark(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	_, p := open(t, log)
	add(t, p, plain(t, "a", "b"), all)
	add(t, p, plain(t, "c"), all)
	for committed, want := range []int64{0, 2, 3} {
		if committed > 0 {
			log.commit(1, nil)
		}
		f, err := p.Read(t.Context(), fetch(0))
		if err != nil || f.NextOffset != want || f.HighWatermark != want || len(f.Batches) != committed {
			t.Errorf("after %d commits: %d batches, next %d, high watermark %d, %v; want next %d", committed, len(f.Batches), f.NextOffset, f.HighWatermark, err, want)
		}
	}
	if log.reads > 0 {
		t.Errorf("%d reads of the store at the tail", log.reads)
	}
	f, err := p.Read(t.Context(), fetch(1))
	if err != nil || f.NextOffset != 3 || len(f.Batches) != 2 {
		t.Errorf("from inside a batch: %d batches, next %d, %v", len(f.Batches), f.NextOffset, err)
	}
	bounded := fetch(0)
	bounded.End = 2
	if f, err = p.Read(t.Context(), bounded); err != nil || f.NextOffset != 2 {
		t.Errorf("bounded: next %d, %v", f.NextOffset, err)
	}
	small := fetch(0)
	small.MaxBytes = 1
	if f, err = p.Read(t.Context(), small); err != nil || f.NextOffset != 2 || len(f.Batches) != 1 {
		t.Errorf("with one byte: %d batches, next %d, %v", len(f.Batches), f.NextOffset, err)
	}
}

func TestReadOutOfRange(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log)
	for range 5 {
		add(t, p, plain(t, "a", "b"), all).result(t)
	}
	if start, err := p.DeleteRecords(t.Context(), 3, 0); err != nil || start != 3 {
		t.Fatalf("log start %d, %v", start, err)
	}
	for _, offset := range []int64{-1, 2, 11, 1 << 50} {
		_, err := p.Read(t.Context(), fetch(offset))
		e := wantReason(t, err, errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE)
		d, ok := e.Detail.(*errorsv1.OffsetOutOfRange)
		if !ok || d.GetOffset() != offset || d.GetEarliestOffset() != 3 || d.GetLatestOffset() != 10 || d.GetTopic() != "orders" || d.GetPartition() != 3 {
			t.Errorf("detail %+v", e.Detail)
		}
	}
	if f, err := p.Read(t.Context(), fetch(10)); err != nil || len(f.Batches) != 0 || f.NextOffset != 10 {
		t.Errorf("at the end: %+v, %v", f, err)
	}
	if f, err := p.Read(t.Context(), fetch(3)); err != nil || f.LogStart != 3 || f.NextOffset != 10 {
		t.Errorf("at the start: %+v, %v", f, err)
	}
}

func TestDeleteRecords(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &memoryLog{}
		_, p := open(t, log)
		add(t, p, plain(t, "a", "b"), all).result(t)
		apply(t, p, led(2))
		add(t, p, plain(t, "c", "d"), all).result(t)
		_, err := p.DeleteRecords(t.Context(), 5, rules.NoEpoch)
		wantReason(t, err, errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE)

		log.hold = true
		result := make(chan error, 1)
		ready := NewReady()
		p.Await(ready, 0, 4, rules.NoEpoch)
		go func() {
			_, err := p.DeleteRecords(t.Context(), 3, rules.NoEpoch)
			result <- err
		}()
		synctest.Wait()
		if bounds, _ := p.Bounds(rules.NoEpoch); bounds.LogStart != 0 || len(result) != 0 {
			t.Error("the log start moved before it was durable")
		}
		log.commit(1, nil)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		if got := ready.Take(nil); len(got) != 1 {
			t.Errorf("readers were told %v of the new log start", got)
		}
		log.hold = false
		if start, err := p.DeleteRecords(t.Context(), 1, rules.NoEpoch); err != nil || start != 3 {
			t.Errorf("below the log start: %d, %v", start, err)
		}
		state := log.last().State
		if state.LogStart != 3 || state.LogEnd != 4 || !slices.Equal(state.Epochs, []store.EpochStart{{Epoch: 2, StartOffset: 3}}) {
			t.Errorf("state %+v", state)
		}
		if r := add(t, p, plain(t, "e"), all).result(t); r.LogStart != 3 {
			t.Errorf("next append: %+v", r)
		}
	})
}

func TestCheckPosition(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log)
	add(t, p, plain(t, "a", "b"), all).result(t)
	apply(t, p, led(2))
	add(t, p, plain(t, "c", "d"), all).result(t)
	for _, test := range []struct {
		name     string
		offset   int64
		lastRead int32
		reason   errorsv1.Reason
	}{
		{"nothing read", 4, -1, 0},
		{"the epoch's end", 2, 0, 0},
		{"inside of the epoch", 3, 2, 0},
		{"KIP-320: more of an epoch than there is", 3, 0, errorsv1.Reason_REASON_LOG_TRUNCATED},
		{"KIP-320: an epoch that is not in the log", 1, 1, errorsv1.Reason_REASON_LOG_TRUNCATED},
		{"beyond the end", 5, -1, errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE},
	} {
		err := p.CheckPosition(test.offset, rulesEpoch(test.lastRead), rules.NoEpoch)
		if test.reason == 0 {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		e := wantReason(t, err, test.reason)
		if d, ok := e.Detail.(*errorsv1.LogTruncated); ok != (test.reason == errorsv1.Reason_REASON_LOG_TRUNCATED) ||
			ok && (d.GetOffset() != test.offset || d.GetLastReadEpoch() != test.lastRead || d.GetEpoch() != 0 || d.GetEndOffset() != 2 || d.GetTopic() == "") {
			t.Errorf("%s: detail %v", test.name, e.Detail)
		}
	}
}

func TestFindTime(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log)
	var b recordbatch.Builder
	for _, timestamps := range [][]int64{{100, 300, 200}, {250, 400}, {50}} {
		for _, ts := range timestamps {
			if err := b.Append(nil, []byte("v"), nil, ts); err != nil {
				t.Fatal(err)
			}
		}
		batch, err := b.Build(recordbatch.WithoutProducer(recordbatch.Gzip))
		if err != nil {
			t.Fatal(err)
		}
		add(t, p, batch, all).result(t)
	}
	for timestamp, want := range map[int64]RecordAt{
		0:   {Offset: 0, Timestamp: 100, Found: true},
		100: {Offset: 0, Timestamp: 100, Found: true},
		101: {Offset: 1, Timestamp: 300, Found: true},
		301: {Offset: 4, Timestamp: 400, Found: true},
		401: {Offset: 6},
	} {
		if got, err := p.FindTime(t.Context(), timestamp, rules.NoEpoch); err != nil || got != want {
			t.Errorf("at %d: %+v, %v, want %+v", timestamp, got, err, want)
		}
	}
	// What lies below the log start does not count, though the store finds its
	// batch.
	if _, err := p.DeleteRecords(t.Context(), 2, rules.NoEpoch); err != nil {
		t.Fatal(err)
	}
	if got, err := p.FindTime(t.Context(), 201, rules.NoEpoch); err != nil || got != (RecordAt{Offset: 3, Timestamp: 250, Found: true}) {
		t.Errorf("beyond a log start: %+v, %v", got, err)
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	_, p := open(t, log)
	one, other := NewReady(), NewReady()
	for range 2 {
		if !p.Await(one, 7, p.replica.HighWatermark(), 0) || !p.Await(other, 8, p.replica.HighWatermark(), 0) {
			t.Fatal("nothing to wait for")
		}
		add(t, p, plain(t, "a"), all)
		if len(one.C()) != 0 {
			t.Fatal("told before the commit")
		}
		log.commit(1, nil)
		<-one.C()
		<-other.C()
		if got := one.Take(nil); !slices.Equal(got, []int{7}) {
			t.Errorf("took %v, want [7]", got)
		}
		other.Take(nil)
	}
	// One telling per Await, whatever happens since.
	for range 3 {
		add(t, p, plain(t, "a"), all)
		log.commit(1, nil)
	}
	if got := one.Take(nil); len(got) != 0 || len(one.C()) != 0 {
		t.Errorf("told %v without having asked", got)
	}
	if p.Await(one, 7, 0, 0) {
		t.Error("waits although there is something to read")
	}
	if p.Await(one, 7, p.replica.HighWatermark(), 9) {
		t.Error("waits in an epoch that is not the leader's")
	}
	p.Await(one, 7, p.replica.HighWatermark(), 0)
	p.Await(other, 8, p.replica.HighWatermark(), 0)
	p.Forget(one)
	add(t, p, plain(t, "a"), all)
	log.commit(1, nil)
	if got := one.Take(nil); len(got) != 0 {
		t.Errorf("told %v after Forget", got)
	}
	if got := other.Take(nil); len(got) != 1 {
		t.Errorf("the other was told %v", got)
	}
}

// What was fetched a while ago meets the errors of now, and has the bounds of now.
func TestRecheck(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log)
	for _, value := range []string{"a", "b", "c"} {
		add(t, p, plain(t, value), leader)
	}
	f := Fetch{Offset: 1, End: 2, MaxBytes: 1 << 20, LeaderEpoch: 0}
	fetched, err := p.Read(t.Context(), f)
	if err != nil || len(fetched.Batches) != 1 {
		t.Fatalf("fetched %+v, %v", fetched, err)
	}
	add(t, p, plain(t, "d"), leader)
	if _, err := p.DeleteRecords(t.Context(), 1, rules.NoEpoch); err != nil {
		t.Fatal(err)
	}
	again, err := p.Recheck(f, fetched)
	if err != nil || again.LogStart != 1 || again.HighWatermark != 4 || again.NextOffset != 2 || len(again.Batches) != 1 {
		t.Errorf("later it is %+v, %v", again, err)
	}
	if _, err := p.DeleteRecords(t.Context(), 2, rules.NoEpoch); err != nil {
		t.Fatal(err)
	}
	_, err = p.Recheck(f, fetched)
	wantReason(t, err, errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE)
	apply(t, p, led(1))
	_, err = p.Recheck(f, fetched)
	wantReason(t, err, errorsv1.Reason_REASON_FENCED_LEADER_EPOCH)
}

func TestReadErrors(t *testing.T) {
	t.Parallel()
	_, p := open(t, &memoryLog{})
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.readError(canceled, 0, errors.New("any")); !errors.Is(err, context.Canceled) {
		t.Errorf("of a reader that is gone: %v", err)
	}
	for _, test := range []struct {
		err    error
		reason errorsv1.Reason
	}{
		{fmt.Errorf("read: %w", store.ErrClosed), errorsv1.Reason_REASON_DRAINING},
		{fmt.Errorf("read: %w", store.ErrOffsetOutOfRange), errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE},
		{fmt.Errorf("read: %w", &store.ErrCorrupt{}), errorsv1.Reason_REASON_CORRUPT_LOG},
		{errBound, errorsv1.Reason_REASON_CORRUPT_LOG},
		{errors.New("input/output error"), errorsv1.Reason_REASON_STORAGE_FAILED},
	} {
		wantReason(t, p.readError(t.Context(), 0, test.err), test.reason)
	}
}

func TestDamagedLogIsNotServed(t *testing.T) {
	t.Parallel()
	log := &memoryLog{fault: &store.ErrCorrupt{Reason: "bits"}}
	_, p := open(t, log)
	_, err := p.Read(t.Context(), fetch(0))
	wantReason(t, err, errorsv1.Reason_REASON_CORRUPT_LOG)
	wantReason(t, p.Append(request(plain(t, "a"), all), newOutcome()), errorsv1.Reason_REASON_CORRUPT_LOG)
}

// What the cache returns is what was appended, and it stays within its budget,
// whatever the order of appends, reads, cuts and evictions.
func TestTailProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		type entry struct {
			batch      []byte
			base, last int64
		}
		c := &tails{budget: rapid.Int64Range(0, 20*(tailOverhead+50)).Draw(t, "budget"), metrics: newMetrics(nil)}
		all := make([]tail, 3)
		model := make([][]entry, len(all))
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, len(all)-1).Draw(t, "partition")
			end := int64(0)
			if n := len(model[i]); n > 0 {
				end = model[i][n-1].last + 1
			}
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				cut := rapid.Int64Range(0, end).Draw(t, "cut")
				model[i] = slices.DeleteFunc(model[i], func(e entry) bool { return e.last >= cut })
				c.cut(&all[i], cut)
			case 1:
				end += rapid.Int64Range(1, 5).Draw(t, "gap")
				fallthrough
			default:
				e := entry{batch: bytes.Repeat([]byte{byte(end)}, rapid.IntRange(1, 100).Draw(t, "size")), base: end, last: end + rapid.Int64Range(0, 3).Draw(t, "records")}
				model[i] = append(model[i], e)
				c.add(&all[i], e.batch, e.base, e.last)
			}
			used := int64(0)
			for i := range all {
				for j := range all[i].entries.len() {
					used += (*all[i].entries.at(j)).cost()
				}
			}
			if used != c.used || used > c.budget {
				t.Fatalf("%d bytes used, %d counted, budget %d", used, c.used, c.budget)
			}
			for i := range all {
				offset, limit := rapid.Int64Range(0, 40).Draw(t, "offset"), rapid.Int64Range(0, 40).Draw(t, "limit")
				batches, next, ok := c.read(&all[i], offset, limit, rapid.IntRange(1, 300).Draw(t, "max"))
				if !ok {
					continue
				}
				at := slices.IndexFunc(model[i], func(e entry) bool { return e.base <= offset && offset <= e.last })
				if at < 0 {
					t.Fatalf("offset %d is served and was never appended", offset)
				}
				for j, batch := range batches {
					e := model[i][at+j]
					if !bytes.Equal(e.batch, batch) || e.last >= limit || (j > 0 && e.base != model[i][at+j-1].last+1) {
						t.Fatalf("batch %d of a read at %d is not that of offsets %d to %d", j, offset, e.base, e.last)
					}
				}
				if next != model[i][at+len(batches)-1].last+1 {
					t.Fatalf("next offset %d after %d", next, model[i][at+len(batches)-1].last)
				}
			}
		}
	})
}

func TestTailEvictsTheOldestOfAll(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	host, p := open(t, log)
	host.tails.budget = 3 * (1000 + tailOverhead)
	for i := range 4 {
		add(t, p, plain(t, strings.Repeat(string(rune('a'+i)), 400)), all).result(t)
	}
	if _, err := p.Read(t.Context(), fetch(3)); err != nil || log.reads != 0 {
		t.Errorf("%d reads of the store for the newest, %v", log.reads, err)
	}
	if f, err := p.Read(t.Context(), fetch(0)); err != nil || log.reads != 1 || f.NextOffset != 4 {
		t.Errorf("%d reads of the store for the oldest, next %d, %v", log.reads, f.NextOffset, err)
	}
}

// TestReadAcrossGaps: where compaction has left nothing below the bound, the
// reader goes on at it.
func TestReadAcrossGaps(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	host, p := open(t, log)
	for _, value := range []string{"a", "b", "c", "d"} {
		add(t, p, plain(t, value, value), all).result(t)
	}
	host.tails.drop(&p.tail)
	log.batches = slices.Delete(log.batches, 1, 3)
	for _, test := range []struct {
		offset, end, next int64
		batches           int
	}{
		{0, 8, 8, 2},
		{0, 2, 2, 1},
		{2, 8, 8, 1},
		{3, 7, 0, -1},
		{2, 6, 6, 0},
		{3, 5, 5, 0},
		{2, 3, 3, 0},
		{8, 8, 8, 0},
	} {
		f := fetch(test.offset)
		f.End = test.end
		got, err := p.Read(t.Context(), f)
		if test.batches < 0 {
			wantReason(t, err, errorsv1.Reason_REASON_CORRUPT_LOG)
			continue
		}
		if err != nil || len(got.Batches) != test.batches || got.NextOffset != test.next {
			t.Errorf("%d to %d: %d batches, next offset %d, %v; want %d and %d", test.offset, test.end, len(got.Batches), got.NextOffset, err, test.batches, test.next)
		}
	}
	if got, err := p.FindTime(t.Context(), 0, rules.NoEpoch); err != nil || got.Offset != 0 {
		t.Errorf("found %+v, %v", got, err)
	}
}
