package store

import "testing"

// TestPartitionIsCreatedAnew deletes a partition and writes another one of the
// same id, in other batches, to the volume that held it.
func TestPartitionIsCreatedAnew(t *testing.T) {
	for _, batches := range []int{1, erasedKeys + 10} {
		cfg := testConfig(t)
		cfg.Quarantine = 0
		s := open(t, cfg)
		id := partition(1)
		a := Append{Set: SetReplicated, State: State{Epochs: epochZero}}
		for range batches {
			b := makeBatch(a.State.LogEnd, 10, 100, 0, 1000, 1)
			a.Batches = append(a.Batches, b)
			a.State.LogEnd = b.LastOffset + 1
		}
		mustAppend(t, s.Log(id), a)
		mustAppend(t, s.Log(id), Append{Set: SetReplicated, State: State{LogEnd: a.State.LogEnd, Deleted: true}})
		eventually(t, "the partition is forgotten", func() bool { return !s.knows(id) })
		var want []Batch
		for offset := int64(0); offset < 24; offset += 4 {
			want = append(want, one(t, s.Log(id), SetReplicated, offset, 4, 100))
		}
		for range 2 {
			if err := sameBatches(readAll(t, s.Log(id), 0, 24, 1<<20), want); err != nil {
				t.Error(err)
			}
			closeUnclean(t, s)
			s = open(t, cfg)
		}
	}
}
