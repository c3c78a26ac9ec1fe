package store

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"
)

// childDirectory is the variable that makes the test binary a child which
// appends to the store in that directory until it is killed.
const childDirectory = "RUNNEL_STORE_TEST_DIRECTORY"

const crashPartitions = 8

// crashConfig makes volumes, value logs and memory tables change hands many
// times a second.
func crashConfig(dir string) Config {
	cfg := DefaultConfig()
	cfg.Dir = dir
	cfg.VolumeBytes = 6 << 20
	cfg.valueLogBytes = 2 << 20
	cfg.memTableBytes = 1 << 20
	return cfg
}

func crashSet(p int) Set { return allSets[p%2] }

// crashBatch is the batch that partition p has at an offset, whenever it is
// appended.
func crashBatch(p int, offset int64) Batch {
	r := rand.New(rand.NewPCG(uint64(p), uint64(offset)))
	size := 100 + r.IntN(3000)
	if r.IntN(10) == 0 {
		size = 60_000
	}
	return makeBatch(offset, 1+r.IntN(9), size, 0, 1_000_000+offset, uint64(p))
}

// crashAppend is an append of a few batches at an offset; now and then of more
// than a transaction takes.
func crashAppend(p int, offset int64, producer *Producer) Append {
	r := rand.New(rand.NewPCG(uint64(p)+1000, uint64(offset)))
	n := 1 + r.IntN(3)
	if r.IntN(200) == 0 {
		n = 2000
	}
	a := Append{Set: crashSet(p)}
	for range n {
		b := crashBatch(p, offset)
		a.Batches = append(a.Batches, b)
		offset = b.LastOffset + 1
		producer.Batches = append(slices.Clone(producer.Batches), ProducerBatch{BaseOffset: b.BaseOffset, LastSequence: int32(b.LastOffset - b.BaseOffset)})
		producer.Batches = producer.Batches[max(0, len(producer.Batches)-5):]
	}
	a.State = State{LogEnd: offset, HighWatermark: offset, Epochs: epochZero}
	a.Producers = []Producer{*producer}
	return a
}

// child appends to all partitions for ever and prints "ack PARTITION END" for
// what is acknowledged, and "cut PARTITION OFFSET" before it truncates.
func child(dir string) {
	s, err := Open(crashConfig(dir))
	if err != nil {
		fmt.Println("fail", err)
		os.Exit(1)
	}
	var output sync.Mutex
	say := func(format string, args ...any) {
		output.Lock()
		defer output.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	say("open")
	var workers sync.WaitGroup
	for p := range crashPartitions {
		workers.Go(func() {
			l := s.Log(partition(p))
			state, packed := l.Loaded()
			producers := packed.Unpack()
			producer := Producer{ID: int64(p)}
			if len(producers) > 0 {
				producer = producers[0]
			}
			r := rand.New(rand.NewPCG(rand.Uint64(), 1))
			offset := state.LogEnd
			var flying sync.WaitGroup
			for {
				for range 1 + r.IntN(8) {
					a := crashAppend(p, offset, &producer)
					offset = a.State.LogEnd
					flying.Add(1)
					end := offset
					l.Append(a, func(err error) {
						if err != nil {
							say("fail %v", err)
						}
						say("ack %d %d", p, end)
						flying.Done()
					})
				}
				flying.Wait()
				if r.IntN(30) == 0 {
					cut := max(0, producer.Batches[r.IntN(len(producer.Batches))].BaseOffset)
					say("cut %d %d", p, cut)
					if _, err := l.Truncate(context.Background(), cut, State{LogEnd: cut, HighWatermark: cut, Epochs: epochZero}); err != nil {
						say("fail %v", err)
					}
					offset = cut
					producer.Batches = slices.DeleteFunc(slices.Clone(producer.Batches), func(b ProducerBatch) bool { return b.BaseOffset >= cut })
				}
			}
		})
	}
	workers.Wait()
}

// TestKill kills a process that appends, at random moments, and compares what
// the next one finds with what was acknowledged.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	acked := make([]int64, crashPartitions)
	rounds := 8
	if testing.Short() {
		rounds = 4
	}
	var recoveries time.Duration
	for round := range rounds {
		life := time.Duration(rand.IntN(300)) * time.Millisecond
		if round%4 == 3 {
			// While it still opens the store, or soon after.
			life = time.Duration(rand.IntN(30)) * time.Millisecond
		}
		wrote := runChild(t, dir, life, acked)
		if err := inspectSound(crashConfig(dir)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		started := time.Now()
		s, err := Open(crashConfig(dir))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		recoveries = max(recoveries, time.Since(started))
		if s.Clean() && wrote {
			t.Fatalf("round %d: a killed process has left a clean store", round)
		}
		for p := range crashPartitions {
			verifyCrashed(t, s, p, acked[p])
			acked[p] = s.Log(partition(p)).durable.LogEnd
		}
		if err := s.Close(1); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("log ends %v; the slowest recovery took %v", acked, recoveries)
}

// runChild lets a child append for a while and records what it acknowledges, if
// anything.
func runChild(t *testing.T, dir string, life time.Duration, acked []int64) (wrote bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDirectory+"="+dir)
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	if life < 30*time.Millisecond {
		kill.Reset(life)
	}
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		var what string
		var p int
		var offset int64
		if _, err := fmt.Sscan(lines.Text(), &what); err != nil {
			continue
		}
		switch what {
		case "open":
			kill.Reset(life)
		case "ack", "cut":
			// The last line may be torn.
			if n, _ := fmt.Sscanf(lines.Text(), what+" %d %d", &p, &offset); n == 2 && p < len(acked) {
				if what == "cut" && offset > acked[p] {
					t.Errorf("the child cuts partition %d at %d, beyond %d", p, offset, acked[p])
				}
				acked[p] = offset
				wrote = true
			}
		case "fail":
			t.Errorf("child: %s", lines.Text())
		}
	}
	_ = cmd.Wait()
	kill.Stop()
	return wrote
}

func verifyCrashed(t *testing.T, s *Store, p int, acked int64) {
	t.Helper()
	l := s.Log(partition(p))
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
	state, packed := l.Loaded()
	producers := packed.Unpack()
	if state.LogEnd < acked {
		t.Fatalf("partition %d ends at %d, but %d was acknowledged", p, state.LogEnd, acked)
	}
	if state.LogEnd == 0 {
		return
	}
	var last []ProducerBatch
	for offset := int64(0); offset < state.LogEnd; {
		batches, err := l.Read(context.Background(), offset, state.LogEnd, 1<<20)
		if err != nil || len(batches) == 0 {
			t.Fatalf("partition %d at %d of %d: %d batches, %v", p, offset, state.LogEnd, len(batches), err)
		}
		for _, b := range batches {
			if err := sameBatches([]Batch{b}, []Batch{crashBatch(p, offset)}); err != nil {
				t.Fatalf("partition %d at %d: %v", p, offset, err)
			}
			offset = b.LastOffset + 1
			last = append(last[max(0, len(last)-4):], ProducerBatch{BaseOffset: b.BaseOffset, LastSequence: int32(b.LastOffset - b.BaseOffset)})
		}
	}
	// A truncation makes a log forget batches, but never remember wrong ones.
	if len(producers) == 0 {
		return
	}
	got := producers[0].Batches
	if n := len(got); n == 0 || n > 5 || !slices.Equal(got, last[len(last)-n:]) {
		t.Fatalf("partition %d remembers %+v, its last batches are %+v", p, got, last)
	}
}
