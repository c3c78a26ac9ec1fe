package store

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// catchUpBytes is how much BenchmarkCatchUp writes and reads; more with
// RUNNEL_BENCH_CATCHUP_MIB.
func catchUpBytes(b *testing.B) int64 {
	text := os.Getenv("RUNNEL_BENCH_CATCHUP_MIB")
	if text == "" {
		return 256 << 20
	}
	mib, err := strconv.ParseInt(text, 10, 32)
	if err != nil || mib < 1 {
		b.Fatalf("RUNNEL_BENCH_CATCHUP_MIB=%q, must be a number of MiB", text)
	}
	return mib << 20
}

// BenchmarkCatchUp reads what is not in the page cache, from the begin of a log
// to its end, for one partition and for several that were written together and
// are read one after the other. The share is that of the rate at which the same
// files are read in order.
func BenchmarkCatchUp(b *testing.B) {
	for _, partitions := range []int{1, 4, 32} {
		b.Run(fmt.Sprintf("partitions=%d", partitions), func(b *testing.B) {
			const size = 256 << 10
			total := catchUpBytes(b)
			cfg := DefaultConfig()
			cfg.Dir = b.TempDir()
			ends := writeBacklog(b, cfg, partitions, size, total)
			b.SetBytes(total)
			var disk, read, cpu time.Duration
			var faults int64
			for b.Loop() {
				b.StopTimer()
				files := dropFiles(b, cfg.Dir)
				started := time.Now()
				for _, path := range files {
					readFile(b, path)
				}
				disk += time.Since(started)
				dropFiles(b, cfg.Dir)
				s, err := Open(cfg)
				if err != nil {
					b.Fatal(err)
				}
				started = time.Now()
				cpuBefore, faultsBefore := cpuTime(b), majorFaults(b)
				b.StartTimer()
				for i, end := range ends {
					l := s.Log(partition(i))
					for offset := int64(0); offset < end; {
						batches, err := l.Read(b.Context(), offset, end, 1<<20)
						if err != nil {
							b.Fatal(err)
						}
						offset = batches[len(batches)-1].LastOffset + 1
					}
				}
				b.StopTimer()
				read += time.Since(started)
				cpu += cpuTime(b) - cpuBefore
				faults += majorFaults(b) - faultsBefore
				if err := s.Close(0); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(total)*float64(b.N)/1e6/disk.Seconds(), "disk-MB/s")
			b.ReportMetric(disk.Seconds()/read.Seconds(), "share")
			// On a busy machine these two tell more than the time on the clock.
			b.ReportMetric(float64(cpu.Nanoseconds())/float64(total)/float64(b.N), "cpu-ns/B")
			b.ReportMetric(float64(faults)/float64(b.N), "faults/op")
		})
	}
}

// majorFaults returns how often the process has waited for a page of a mapping.
func majorFaults(b *testing.B) int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return usage.Majflt
}

// writeBacklog fills a store, and returns the log end of each partition.
func writeBacklog(b *testing.B, cfg Config, partitions, size int, total int64) []int64 {
	s, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ends := make([]int64, partitions)
	value := randomBytes(size)
	done := make(chan error, 64)
	pending := 0
	for i := int64(0); i*int64(size) < total; i++ {
		p := int(i) % partitions
		var builder recordbatch.Builder
		if err := builder.Append(nil, value, nil, i); err != nil {
			b.Fatal(err)
		}
		batch, err := builder.Build(recordbatch.WithoutProducer(recordbatch.None))
		if err != nil {
			b.Fatal(err)
		}
		offset := ends[p]
		recordbatch.Assign(batch, offset, 0)
		s.Log(partition(p)).Append(Append{
			Set:     SetReplicated,
			Batches: []Batch{{Bytes: batch, BaseOffset: offset, LastOffset: offset, MaxTimestamp: i}},
			State:   State{LogEnd: offset + 1, HighWatermark: offset + 1},
		}, func(err error) { done <- err })
		ends[p]++
		if pending++; pending == cap(done) {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			pending--
		}
	}
	for range pending {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(0); err != nil {
		b.Fatal(err)
	}
	return ends
}

// dropFiles takes all value logs of a closed store out of the page cache.
func dropFiles(b *testing.B, dir string) []string {
	files, err := filepath.Glob(filepath.Join(dir, volumesFolder, "*", "*.vlog"))
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			b.Fatal(err)
		}
		dropCached(f, 0, info.Size())
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
	return files
}

func readFile(b *testing.B, path string) {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	// Without WriterTo, which would not read at all.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20)); err != nil {
		b.Fatal(err)
	}
}
