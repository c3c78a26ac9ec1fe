package rules

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestProducersCheck(t *testing.T) {
	t.Parallel()
	// Producer 7 in epoch 3 has appended sequences 0..19 in batches of two at
	// offsets 100..119; the last 6 of the batches are remembered.
	remembered := func() *Producers {
		p := NewProducers(10)
		for i := range int32(10) {
			p.Record(ProducerAppend{ID: 7, Epoch: 3, BaseSequence: 2 * i, LastSequence: 2*i + 1}, 100+2*int64(i), -1, 0)
		}
		return p
	}
	for _, test := range []struct {
		name string
		in   ProducerAppend
		want ProducerVerdict
	}{
		{
			name: "KIP-98: the first batch of a producer",
			in:   ProducerAppend{ID: 8, Epoch: 0, BaseSequence: 0, LastSequence: 4},
			want: ProducerVerdict{Outcome: ProducerAppends},
		},
		{
			name: "KIP-98: the next batch",
			in:   ProducerAppend{ID: 7, Epoch: 3, BaseSequence: 20, LastSequence: 29},
			want: ProducerVerdict{Outcome: ProducerAppends},
		},
		{
			name: "KIP-98: the last batch again",
			in:   ProducerAppend{ID: 7, Epoch: 3, BaseSequence: 18, LastSequence: 19},
			want: ProducerVerdict{
				Outcome: ProducerDuplicate, Original: ProducerBatch{BaseSequence: 18, LastSequence: 19, BaseOffset: 118, AppendTime: -1},
			},
		},
		{
			name: "KAFKA-5494: the oldest of five batches in flight again",
			in:   ProducerAppend{ID: 7, Epoch: 3, BaseSequence: 10, LastSequence: 11},
			want: ProducerVerdict{
				Outcome: ProducerDuplicate, Original: ProducerBatch{BaseSequence: 10, LastSequence: 11, BaseOffset: 110, AppendTime: -1},
			},
		},
		{
			name: "a batch older than those remembered",
			in:   ProducerAppend{ID: 7, Epoch: 3, BaseSequence: 6, LastSequence: 7},
			want: ProducerVerdict{Outcome: ProducerOutOfOrder, ExpectedSequence: 20},
		},
		{
			name: "a batch that begins like an old one but ends elsewhere",
			in:   ProducerAppend{ID: 7, Epoch: 3, BaseSequence: 18, LastSequence: 20},
			want: ProducerVerdict{Outcome: ProducerOutOfOrder, ExpectedSequence: 20},
		},
		{
			name: "KIP-98: a gap",
			in:   ProducerAppend{ID: 7, Epoch: 3, BaseSequence: 21, LastSequence: 21},
			want: ProducerVerdict{Outcome: ProducerOutOfOrder, ExpectedSequence: 20},
		},
		{
			name: "KIP-98: an older epoch is fenced",
			in:   ProducerAppend{ID: 7, Epoch: 2, BaseSequence: 20, LastSequence: 20},
			want: ProducerVerdict{Outcome: ProducerFenced, CurrentEpoch: 3},
		},
		{
			name: "KIP-360: a newer epoch begins with sequence 0",
			in:   ProducerAppend{ID: 7, Epoch: 4, BaseSequence: 0, LastSequence: 0},
			want: ProducerVerdict{Outcome: ProducerAppends},
		},
		{
			name: "KIP-360: a newer epoch that goes on with old sequences",
			in:   ProducerAppend{ID: 7, Epoch: 4, BaseSequence: 20, LastSequence: 20},
			want: ProducerVerdict{Outcome: ProducerOutOfOrder, ExpectedSequence: 0},
		},
		{
			name: "KIP-360: an unknown producer that is not at its beginning",
			in:   ProducerAppend{ID: 9, Epoch: 0, BaseSequence: 1, LastSequence: 1},
			want: ProducerVerdict{Outcome: ProducerUnknown},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := remembered()
			for range 2 {
				if got := p.Check(test.in); got != test.want {
					t.Errorf("got %+v, want %+v", got, test.want)
				}
			}
		})
	}
}

// TestProducersSurviveTheCutOfAllInFlight: a follower that has all five batches of a
// producer in flight cuts them, and leads next. The producer sends them again, and
// the first of them does not begin with sequence 0.
func TestProducersSurviveTheCutOfAllInFlight(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		cut  int64
		want ProducerVerdict
	}{
		{"five", 105, ProducerVerdict{Outcome: ProducerAppends}},
		{"four", 106, ProducerVerdict{Outcome: ProducerDuplicate, Original: ProducerBatch{BaseSequence: 5, LastSequence: 5, BaseOffset: 105, AppendTime: -1}}},
		{"with the last that was acknowledged, which is no cut that is ever made", 104, ProducerVerdict{Outcome: ProducerUnknown}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := NewProducers(10)
			for i := range int32(10) {
				p.Record(ProducerAppend{ID: 7, BaseSequence: i, LastSequence: i}, 100+int64(i), -1, 0)
			}
			p.TruncateEnd(test.cut)
			if got := p.Check(ProducerAppend{ID: 7, BaseSequence: 5, LastSequence: 5}); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestProducersSequenceWraps(t *testing.T) {
	t.Parallel()
	p, _ := RestoreProducers(1, []ProducerState{{
		ID: 1, Batches: []ProducerBatch{{BaseSequence: math.MaxInt32 - 3, LastSequence: math.MaxInt32 - 2, BaseOffset: 5}},
	}})
	over := ProducerAppend{ID: 1, BaseSequence: math.MaxInt32 - 1, LastSequence: 3}
	if got := p.Check(over); got.Outcome != ProducerAppends {
		t.Fatalf("batch over the wrap: %+v", got)
	}
	p.Record(over, 7, -1, 0)
	if got := p.Check(over); got.Outcome != ProducerDuplicate || got.Original.BaseOffset != 7 {
		t.Errorf("the same batch again: %+v", got)
	}
	if got := p.Check(ProducerAppend{ID: 1, BaseSequence: 4, LastSequence: 4}); got.Outcome != ProducerAppends {
		t.Errorf("batch after the wrap: %+v", got)
	}
	if got := NextSequence(math.MaxInt32); got != 0 {
		t.Errorf("sequence after the greatest: %d", got)
	}
}

func TestProducersForgetTheOldest(t *testing.T) {
	t.Parallel()
	p := NewProducers(2)
	first := ProducerAppend{ID: 1}
	p.Record(first, 0, -1, 0)
	p.Record(ProducerAppend{ID: 2}, 1, -1, 0)
	p.Record(ProducerAppend{ID: 1, BaseSequence: 1, LastSequence: 1}, 2, -1, 0)
	_, forgotten, forgot := p.Record(ProducerAppend{ID: 3}, 3, -1, 0)
	if !forgot || forgotten != 2 {
		t.Errorf("forgot %d (%t), want 2: its last batch is the oldest", forgotten, forgot)
	}
	if p.Len() != 2 {
		t.Errorf("%d producers with a limit of 2", p.Len())
	}
	if got := p.Check(ProducerAppend{ID: 2, BaseSequence: 1, LastSequence: 1}); got.Outcome != ProducerUnknown {
		t.Errorf("forgotten producer: %+v", got)
	}
	if got := p.Check(first); got.Outcome != ProducerDuplicate || got.Original.BaseOffset != 0 {
		t.Errorf("remembered producer: %+v", got)
	}
}

func TestProducersRestoreKeepsTheNewest(t *testing.T) {
	t.Parallel()
	states := []ProducerState{
		{ID: 1, Batches: []ProducerBatch{{BaseOffset: 30}}},
		{ID: 2, Batches: []ProducerBatch{{BaseOffset: 10}}},
		{ID: 3, Batches: []ProducerBatch{{BaseOffset: 20}}},
		{ID: 4},
	}
	p, forgotten := RestoreProducers(2, states)
	if !slices.Equal(forgotten, []int64{4, 2}) {
		t.Errorf("forgot %v, want [4 2]", forgotten)
	}
	if _, id, forgot := p.Record(ProducerAppend{ID: 5}, 40, -1, 0); !forgot || id != 3 {
		t.Errorf("forgot %d (%t), want 3", id, forgot)
	}
}

// The memory against a plain list of everything that was appended, with
// producers that repeat, skip, restart and are forgotten, and with cuts.
func TestProducersProperties(t *testing.T) {
	t.Parallel()
	type appended struct {
		ProducerAppend
		offset int64
	}
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 4).Draw(t, "limit")
		p := NewProducers(limit)
		var log []appended
		var end int64
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 19).Draw(t, "step") {
			case 0:
				end = rapid.Int64Range(0, end).Draw(t, "cut")
				log = slices.DeleteFunc(log, func(a appended) bool { return a.offset+int64(a.LastSequence-a.BaseSequence) >= end })
				p.TruncateEnd(end)
				continue
			case 1:
				var states []ProducerState
				for k := p.oldest; k != nil; k = k.newer {
					states = append(states, k.state())
				}
				restored, forgotten := RestoreProducers(limit, states)
				if len(forgotten) > 0 {
					t.Fatalf("restore forgot %v", forgotten)
				}
				p = restored
				continue
			}
			var a ProducerAppend
			if len(log) > 0 && rapid.Bool().Draw(t, "repeat") {
				a = log[rapid.IntRange(0, len(log)-1).Draw(t, "which")].ProducerAppend
			} else {
				a = ProducerAppend{
					ID:           rapid.Int64Range(0, 5).Draw(t, "id"),
					Epoch:        int16(rapid.IntRange(0, 2).Draw(t, "epoch")),
					BaseSequence: rapid.Int32Range(0, 6).Draw(t, "base"),
				}
				a.LastSequence = a.BaseSequence + rapid.Int32Range(0, 1).Draw(t, "more")
			}
			verdict := p.Check(a)
			switch verdict.Outcome {
			case ProducerDuplicate:
				at := slices.IndexFunc(log, func(b appended) bool {
					return b.ProducerAppend == a && b.offset == verdict.Original.BaseOffset
				})
				if at < 0 {
					t.Fatalf("%+v is called a duplicate of offset %d, which holds none", a, verdict.Original.BaseOffset)
				}
			case ProducerAppends:
				// Of what is remembered nothing is appended twice, and the sequence has
				// no gap.
				_, remembered := p.byID[a.ID]
				for _, b := range slices.Backward(log) {
					if !remembered || b.ID != a.ID {
						continue
					}
					if b.Epoch > a.Epoch || b.Epoch == a.Epoch && a.BaseSequence != NextSequence(b.LastSequence) {
						t.Fatalf("%+v passes after %+v", a, b)
					}
					break
				}
				state, _, _ := p.Record(a, end, -1, 0)
				if n := len(state.Batches); n == 0 || n > RememberedBatches || state.Batches[n-1].BaseOffset != end {
					t.Fatalf("state after the append: %+v", state)
				}
				log = append(log, appended{a, end})
				end += int64(a.LastSequence-a.BaseSequence) + 1
			}
			if p.Len() > limit {
				t.Fatalf("%d producers with a limit of %d", p.Len(), limit)
			}
		}
		// The list and the map hold the same, in the order of last offsets.
		last, count := int64(-1), 0
		for k := p.oldest; k != nil; k = k.newer {
			offset := k.batches[k.count-1].BaseOffset
			if offset <= last || p.byID[k.id] != k {
				t.Fatalf("producer %d with last offset %d follows %d", k.id, offset, last)
			}
			last, count = offset, count+1
		}
		if count != p.Len() {
			t.Fatalf("list of %d, map of %d", count, p.Len())
		}
	})
}
