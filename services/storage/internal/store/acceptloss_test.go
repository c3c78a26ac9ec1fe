package store

import (
	"path/filepath"
	"testing"
)

// TestAcceptLoss: a log that has lost a volume goes on where it ends, takes batches, and
// is sound for the next process; what it keeps is what it had.
func TestAcceptLoss(t *testing.T) {
	for _, test := range []struct {
		volume, file string
		// start and end are where the log begins and ends then, where that is certain.
		start, end int64
		certain    bool
	}{
		{"synced-000001", "*.vlog", 60, 120, true},
		{"synced-000003", "*.mem", 0, 60, false},
	} {
		t.Run(test.volume, func(t *testing.T) {
			dir, end := victim(t, "kill")
			files, err := filepath.Glob(filepath.Join(dir, volumesFolder, test.volume, test.file))
			if err != nil || len(files) == 0 {
				t.Fatal(files, err)
			}
			if err := flipByte(files[len(files)-1], contentEnd(t, files[len(files)-1])/2); err != nil {
				t.Fatal(err)
			}
			if test.certain && end != test.end {
				t.Fatalf("the logs end at %d", end)
			}
			s, err := Open(damageConfig(dir))
			if err != nil {
				t.Fatal(err)
			}
			lost, other := s.Log(damagedPartitions[0]), s.Log(damagedPartitions[1])
			if test.certain {
				// It is noticed by whoever reads, or by the scrub.
				s.scrub.doubt(s.volumes.sealed(1))
				eventually(t, "the damage is found", func() bool { return lost.Failed() != nil && other.Failed() != nil })
			}
			if lost.Failed() == nil {
				t.Fatal("the log has not failed")
			}
			if err := lost.AcceptLoss(t.Context()); err != nil || lost.Failed() != nil {
				t.Fatal(err, lost.Failed())
			}
			if other.Failed() == nil {
				t.Error("the other log does not count as failed any more")
			}
			state, _ := lost.Loaded()
			if state.LogStart != test.start || test.certain && state.LogEnd != test.end || state.HighWatermark < state.LogStart {
				t.Errorf("the log is %+v", state)
			}
			next := state
			next.LogEnd++
			next.HighWatermark = next.LogEnd
			mustAppend(t, lost, Append{Set: SetSynced, Batches: []Batch{damageBatch(lost.id, state.LogEnd)}, State: next})
			if err := s.Close(1); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(damageConfig(dir)); err != nil {
				t.Fatal(err)
			}
			defer s.Close(1)
			if err := s.Log(lost.id).Failed(); err != nil {
				t.Errorf("the next process finds that it has failed: %v", err)
			}
			for offset := next.LogStart; offset < next.LogEnd; {
				batches, err := s.Log(lost.id).Read(t.Context(), offset, next.LogEnd, 1<<20)
				if err != nil || len(batches) == 0 {
					t.Fatalf("at %d: %d batches, %v", offset, len(batches), err)
				}
				for _, b := range batches {
					if err := sameBatches([]Batch{b}, []Batch{damageBatch(lost.id, b.BaseOffset)}); err != nil {
						t.Fatal(err)
					}
					offset = b.LastOffset + 1
				}
			}
			if err := s.Log(soundPartition).AcceptLoss(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
