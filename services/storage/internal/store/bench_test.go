package store

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// appendShapes are what the benchmarks append: batches of one size from a number
// of producers, each with a partition of its own and one append in flight.
var appendShapes = []struct {
	size, producers int
}{
	{64 << 10, 128},
	{64 << 10, 1},
	{1 << 10, 128},
	{1 << 10, 1},
}

func randomBytes(size int) []byte {
	out := make([]byte, size)
	for i := 0; i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(out[i:], rand.Uint64())
	}
	return out
}

// cpuTime returns the processor time of the process.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// reportCPU reports processor time per batch: on a busy machine it tells more
// than the time on the clock.
func reportCPU(b *testing.B, started time.Duration) {
	b.ReportMetric(float64((cpuTime(b)-started).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// BenchmarkAppend is what the store takes. BenchmarkBadger below is the measure
// for it: run both together.
func BenchmarkAppend(b *testing.B) {
	for _, set := range allSets {
		for _, shape := range appendShapes {
			b.Run(fmt.Sprintf("set=%s/size=%d/producers=%d", set, shape.size, shape.producers), func(b *testing.B) {
				cfg := DefaultConfig()
				cfg.Dir = b.TempDir()
				s, err := Open(cfg)
				if err != nil {
					b.Fatal(err)
				}
				payload := randomBytes(shape.size)
				b.SetBytes(int64(shape.size))
				b.ReportAllocs()
				started := cpuTime(b)
				b.ResetTimer()
				var left atomic.Int64
				left.Store(int64(b.N))
				var producers sync.WaitGroup
				for i := range shape.producers {
					producers.Go(func() {
						l := s.Log(partition(i))
						done := make(chan error, 1)
						for offset := int64(0); left.Add(-1) >= 0; offset++ {
							l.Append(Append{
								Set:     set,
								Batches: []Batch{{Bytes: payload, BaseOffset: offset, LastOffset: offset, MaxTimestamp: offset}},
								State:   State{LogEnd: offset + 1, HighWatermark: offset, Epochs: epochZero},
							}, func(err error) { done <- err })
							if err := <-done; err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				producers.Wait()
				b.StopTimer()
				reportCPU(b, started)
				if err := s.Close(0); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// BenchmarkBadger writes the same batches to a bare Badger with the same
// options: one goroutine, one transaction for as many batches as a group of
// BenchmarkAppend has at most.
func BenchmarkBadger(b *testing.B) {
	for _, set := range allSets {
		for _, shape := range appendShapes {
			b.Run(fmt.Sprintf("set=%s/size=%d/producers=%d", set, shape.size, shape.producers), func(b *testing.B) {
				cfg := DefaultConfig().withDefaults()
				db, err := openWritable(b.TempDir(), set.synced(), &cfg, nil)
				if err != nil {
					b.Fatal(err)
				}
				payload := randomBytes(shape.size)
				group := min(shape.producers, cfg.GroupBytes/shape.size)
				b.SetBytes(int64(shape.size))
				b.ReportAllocs()
				started := cpuTime(b)
				b.ResetTimer()
				for n, version := 0, uint64(1); n < b.N; version++ {
					txn := db.NewTransactionAt(math.MaxUint64, true)
					for range min(group, b.N-n) {
						key := appendOffsetKey(nil, kindBatch, partition(n%shape.producers), int64(n/shape.producers))
						if err := txn.SetEntry(badger.NewEntry(key, payload)); err != nil {
							b.Fatal(err)
						}
						n++
					}
					if err := txn.CommitAt(version, nil); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				reportCPU(b, started)
				if err := db.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
