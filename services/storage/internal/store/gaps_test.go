package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// copyOf appends batches that were copied from a compacted log.
func copyOf(set Set, batches ...Batch) Append {
	last := batches[len(batches)-1].LastOffset
	return Append{Set: set, Batches: batches, Gaps: true, State: State{LogEnd: last + 1, Epochs: epochZero}}
}

// TestAppendWithGaps copies a log in which batches are missing, in various portions,
// and reads it from every offset, before and after a crash. What is appended without
// gaps later stays in spans that tell of a loss.
func TestAppendWithGaps(t *testing.T) {
	for _, portions := range [][]int{{1, 1, 1, 1, 1}, {5}, {2, 3}, {1, 4}} {
		t.Run(fmt.Sprint(portions), func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			l := s.Log(partition(1))
			// The log begins and goes on with a gap.
			var all []Batch
			for _, base := range []int64{3, 5, 20, 22, 40} {
				all = append(all, makeBatch(base, 2, 100, 0, 1000+base, uint64(base)))
			}
			rest := all
			for _, n := range portions {
				mustAppend(t, l, copyOf(SetSynced, rest[:n]...))
				rest = rest[n:]
			}
			if n := len(l.durable.spans); n != 1 || !l.durable.spans[0].sparse || l.durable.spans[0].first != 0 {
				t.Fatalf("the spans are %+v, want one that is sparse, from 0", l.durable.spans)
			}
			all = append(all, one(t, l, SetSynced, 42, 3, 100))
			if n := len(l.durable.spans); n != 2 || l.durable.spans[1].sparse {
				t.Fatalf("the spans are %+v, want that of a gapless append apart", l.durable.spans)
			}
			for _, when := range []string{"written", "after a crash"} {
				for offset := range int64(45) {
					var want []Batch
					for _, b := range all {
						if b.LastOffset >= offset {
							want = append(want, b)
						}
					}
					got, err := l.Read(context.Background(), offset, 45, 1<<20)
					if err != nil {
						t.Fatalf("%s, from %d: %v", when, offset, err)
					}
					if err := sameBatches(got, want); err != nil {
						t.Fatalf("%s, from %d: %v", when, offset, err)
					}
				}
				closeUnclean(t, s)
				s = open(t, cfg)
				l = s.Log(partition(1))
				if err := l.Failed(); err != nil {
					t.Fatal(err)
				}
			}
			// A cut in a gap leaves the rest, and what comes then may leave another gap.
			if end, err := l.Truncate(t.Context(), 30, State{LogEnd: 30, Epochs: epochZero}); err != nil || end != 30 {
				t.Fatalf("cut at 30: %d, %v", end, err)
			}
			next := makeBatch(33, 1, 100, 0, 2000, 33)
			mustAppend(t, l, copyOf(SetSynced, next))
			got, err := l.Read(context.Background(), 24, 34, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if err := sameBatches(got, []Batch{next}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGapsAreRefused: only a copy may leave offsets out, and nothing may go back.
func TestGapsAreRefused(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	one(t, l, SetSynced, 0, 10, 100)
	gap := copyOf(SetSynced, makeBatch(12, 2, 100, 0, 1000, 1))
	gap.Gaps = false
	wantError(t, appendSync(t, l, gap), ErrInvalidAppend)
	wantError(t, appendSync(t, l, copyOf(SetSynced, makeBatch(9, 2, 100, 0, 1000, 1))), ErrInvalidAppend)
	wantError(t, appendSync(t, l, copyOf(SetSynced, makeBatch(12, 2, 100, 0, 1000, 1), makeBatch(13, 2, 100, 0, 1000, 2))), ErrInvalidAppend)
	mustAppend(t, l, copyOf(SetSynced, makeBatch(12, 2, 100, 0, 1000, 1)))
}

// TestRestart drops a log that has failed and begins anew, also in a set that the
// store has nothing in: producers and the failure belong to what is gone.
func TestRestart(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(1))
	b := makeBatch(0, 10, 100, 0, 1000, 1)
	producer := Producer{ID: 7, Batches: []ProducerBatch{{LastSequence: 9, AppendTime: -1}}, LastTimestamp: 1000}
	mustAppend(t, l, Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: 10, Epochs: epochZero}, Producers: []Producer{producer}})
	l.Fail("a test says so")
	if _, failed := errors.AsType[*ErrFailed](l.Failed()); !failed {
		t.Fatal("the log has not failed")
	}
	wantError(t, l.Restart(t.Context(), SetSynced, State{LogStart: 4, LogEnd: 5}), ErrInvalidAppend)
	fresh := s.Log(partition(2))
	for _, log := range []*Log{l, fresh} {
		if err := log.Restart(t.Context(), SetFor(true, true), State{LogStart: 4, LogEnd: 4, HighWatermark: 4}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Failed(); err != nil {
		t.Error(err)
	}
	if fresh.home != SetFor(true, true) {
		t.Errorf("it is recorded in %q", fresh.home)
	}
	closeUnclean(t, s)
	s = open(t, cfg)
	for id := range 2 {
		l := s.Log(partition(id + 1))
		state, packed := l.Loaded()
		producers := packed.Unpack()
		if state.LogStart != 4 || state.LogEnd != 4 || len(producers) != 0 || l.Failed() != nil {
			t.Errorf("loaded with %+v and %d producers, %v", state, len(producers), l.Failed())
		}
		mustAppend(t, l, Append{Set: SetFor(true, true), Batches: []Batch{makeBatch(4, 2, 100, 0, 1000, 9)}, State: State{LogStart: 4, LogEnd: 6, Epochs: epochZero}})
		readAll(t, l, 4, 6, 1)
	}
}
