package store

import (
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// TestPackedProducersAreTheSame: whatever is packed comes out as it was.
func TestPackedProducersAreTheSame(t *testing.T) {
	batch := rapid.Custom(func(t *rapid.T) ProducerBatch {
		return ProducerBatch{
			BaseSequence: rapid.Int32().Draw(t, "base sequence"), LastSequence: rapid.Int32().Draw(t, "last sequence"),
			BaseOffset: rapid.Int64().Draw(t, "base offset"), AppendTime: rapid.Int64().Draw(t, "append time"),
		}
	})
	producer := rapid.Custom(func(t *rapid.T) Producer {
		return Producer{
			ID: rapid.Int64().Draw(t, "id"), Epoch: rapid.Int16().Draw(t, "epoch"), LastTimestamp: rapid.Int64().Draw(t, "timestamp"),
			Batches: rapid.SliceOfN(batch, 0, 6).Draw(t, "batches"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(producer, 0, 4).Draw(t, "producers")
		got := PackProducers(list).Unpack()
		if len(got) != len(list) || len(list) > 0 && !reflect.DeepEqual(got, list) {
			t.Fatalf("%+v came out as %+v", list, got)
		}
	})
}

// TestPackedProducersAreSmall: one with all batches that are remembered, and sequence
// numbers that have just wrapped.
func TestPackedProducersAreSmall(t *testing.T) {
	p := Producer{ID: 1 << 20, Epoch: 3, LastTimestamp: 1_800_000_000_000}
	sequence, offset := int32(math.MaxInt32-100), int64(1)<<40
	for range 6 {
		p.Batches = append(p.Batches, ProducerBatch{BaseSequence: sequence, LastSequence: (sequence + 39) & math.MaxInt32, BaseOffset: offset, AppendTime: -1})
		sequence, offset = (sequence+40)&math.MaxInt32, offset+40
	}
	if n := len(PackProducers([]Producer{p})); n > 64 {
		t.Errorf("%d bytes", n)
	}
}
