package store

import (
	"fmt"
	"testing"
)

// BenchmarkOpen opens a store that has many sealed volumes, each with a state
// record of every partition. What it costs goes with the volumes and
// the partitions, never with the bytes of the batches.
func BenchmarkOpen(b *testing.B) {
	for _, shape := range []struct{ volumes, partitions int }{{20, 1000}, {200, 1000}, {20, 20_000}} {
		b.Run(fmt.Sprintf("volumes=%d/partitions=%d", shape.volumes, shape.partitions), func(b *testing.B) {
			cfg := DefaultConfig()
			cfg.Dir = b.TempDir()
			s, err := Open(cfg)
			if err != nil {
				b.Fatal(err)
			}
			payload := randomBytes(100)
			for v := range shape.volumes {
				done := make(chan error, shape.partitions)
				for p := range shape.partitions {
					offset := int64(v)
					s.Log(partition(p)).Append(Append{
						Set:     SetReplicated,
						Batches: []Batch{{Bytes: payload, BaseOffset: offset, LastOffset: offset, MaxTimestamp: offset}},
						State:   State{LogEnd: offset + 1, HighWatermark: offset, Epochs: epochZero},
					}, func(err error) { done <- err })
				}
				for range shape.partitions {
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
				if err := s.sets[SetReplicated].roll(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				b.StopTimer()
				if err := s.Close(0); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if s, err = Open(cfg); err != nil {
					b.Fatal(err)
				}
			}
			if err := s.Close(0); err != nil {
				b.Fatal(err)
			}
		})
	}
}
