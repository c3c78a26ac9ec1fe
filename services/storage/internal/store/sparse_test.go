package store

import (
	"context"
	"math"
	"slices"
	"testing"
)

// removeBatches deletes batches behind the log's back and makes its only span
// sparse, as if compaction had left it so.
func removeBatches(t *testing.T, s *Store, l *Log, gone []Batch) {
	t.Helper()
	v, err := s.volumes.acquire(context.Background(), l.durable.spans[0].volume)
	if err != nil {
		t.Fatal(err)
	}
	defer s.volumes.release(v)
	txn := v.db.NewTransactionAt(math.MaxUint64, true)
	defer txn.Discard()
	for _, b := range gone {
		if err := txn.Delete(appendOffsetKey(nil, kindBatch, l.id, b.LastOffset)); err != nil {
			t.Fatal(err)
		}
	}
	if err := txn.CommitAt(v.db.MaxVersion()+1, nil); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.durable.spans[0].sparse = true
	l.mu.Unlock()
}

// TestReadAcrossGaps: a sparse span may lack any batch, also its first and its
// last, and a reader gets what is left between the bounds.
func TestReadAcrossGaps(t *testing.T) {
	for _, gone := range [][]int{{}, {0}, {1, 2, 5}, {9}, {0, 8, 9}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}} {
		s := open(t, testConfig(t))
		l := s.Log(partition(1))
		var all, left, lost []Batch
		for i := range 10 {
			all = append(all, one(t, l, SetSynced, int64(3*i), 3, 100))
		}
		for i, b := range all {
			if slices.Contains(gone, i) {
				lost = append(lost, b)
			} else {
				left = append(left, b)
			}
		}
		removeBatches(t, s, l, lost)
		// What follows in the same volume is in a span of its own.
		l.mu.Lock()
		l.durable.spans = append(l.durable.spans, span{volume: l.durable.spans[0].volume, first: 30, end: 30})
		l.mu.Unlock()
		left = append(left, one(t, l, SetSynced, 30, 3, 100))
		for offset := range int64(33) {
			for end := offset + 1; end <= 33; end++ {
				var want []Batch
				for _, b := range left {
					if b.LastOffset >= offset && b.BaseOffset < end {
						want = append(want, b)
					}
				}
				got, err := l.Read(context.Background(), offset, end, 1<<20)
				if err != nil {
					t.Fatalf("without %v, %d to %d: %v", gone, offset, end, err)
				}
				if err := sameBatches(got, want); err != nil {
					t.Fatalf("without %v, %d to %d: %v", gone, offset, end, err)
				}
			}
		}
		for at := int64(990); at < 1040; at++ {
			var want int64 = -1
			for _, b := range left {
				if b.MaxTimestamp >= at {
					want = b.BaseOffset
					break
				}
			}
			got, err := l.OffsetForTime(context.Background(), at, 33)
			if err != nil || (got == nil) != (want < 0) || got != nil && got.BaseOffset != want {
				t.Fatalf("without %v, the batch for %d is %v, %v, want that at %d", gone, at, got, err, want)
			}
		}
		closeStore(t, s)
	}
}
