package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// eventually waits for a condition that a goroutine of the store brings about.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("%s did not happen", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// hold makes the commit goroutine of a set wait until the returned function is
// called; what is appended meanwhile queues.
func hold(t testing.TB, s *Store, set Set) (release func()) {
	t.Helper()
	l := s.Log(PartitionID{Topic: cluster.TopicID{0xff}})
	held, released := make(chan struct{}), make(chan struct{})
	l.Append(Append{Set: set}, func(error) {
		close(held)
		<-released
	})
	<-held
	return sync.OnceFunc(func() { close(released) })
}

func TestAppendGroups(t *testing.T) {
	s := open(t, testConfig(t))
	one(t, s.Log(partition(0)), SetSynced, 0, 1, 10)
	release := hold(t, s, SetSynced)
	before := s.sets[SetSynced].writer.version
	const appends = 40
	var order []int
	var done sync.WaitGroup
	for i := range appends {
		l := s.Log(partition(i % 4))
		b := makeBatch(l.next, 2, 100, 0, 1000, 1)
		done.Add(1)
		l.Append(Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: b.LastOffset + 1, Epochs: epochZero}}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			order = append(order, i)
			done.Done()
		})
	}
	release()
	done.Wait()
	if !slices.IsSorted(order) {
		t.Errorf("the appends were answered in the order %v", order)
	}
	closeStore(t, s)
	if commits := s.sets[SetSynced].writer.version - before; commits != 1 {
		t.Errorf("%d appends that waited took %d commits", appends, commits)
	}
}

// TestGroupFitsTransaction queues more appends than Badger takes in one
// transaction, though they have few bytes.
func TestGroupFitsTransaction(t *testing.T) {
	s := open(t, testConfig(t))
	one(t, s.Log(partition(0)), SetSynced, 0, 1, 10)
	release := hold(t, s, SetSynced)
	before := s.sets[SetSynced].writer.version
	const appends = 4000
	var done sync.WaitGroup
	done.Add(appends)
	l := s.Log(partition(1))
	for i := range int64(appends) {
		b := makeBatch(i, 1, 8, 0, 1000, 1)
		l.Append(Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: i + 1, Epochs: epochZero}}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			done.Done()
		})
	}
	release()
	done.Wait()
	closeStore(t, s)
	if commits := s.sets[SetSynced].writer.version - before; commits < 2 || commits > 10 {
		t.Errorf("%d appends took %d commits", appends, commits)
	}
}

func TestAppendWaitsForRoom(t *testing.T) {
	cfg := testConfig(t)
	cfg.GroupBytes, cfg.QueueBytes = 8<<10, 16<<10
	s := open(t, cfg)
	release := hold(t, s, SetSynced)
	l := s.Log(partition(1))
	const appends = 10
	var queued atomic.Int32
	var outcomes sync.WaitGroup
	outcomes.Add(appends)
	var appender sync.WaitGroup
	appender.Go(func() {
		for i := range int64(appends) {
			b := makeBatch(i, 1, 4<<10, 0, 1000, 1)
			l.Append(Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: i + 1, Epochs: epochZero}}, func(err error) {
				if err != nil {
					t.Error(err)
				}
				outcomes.Done()
			})
			queued.Add(1)
		}
	})
	eventually(t, "a full queue", func() bool { return queued.Load() == 3 })
	s.sets[SetSynced].mu.Lock()
	if n := s.sets[SetSynced].queued; n > cfg.QueueBytes {
		t.Errorf("%d bytes are queued, at most %d may", n, cfg.QueueBytes)
	}
	s.sets[SetSynced].mu.Unlock()
	release()
	appender.Wait()
	outcomes.Wait()
	// One that is larger than the whole queue gets through too.
	b := makeBatch(appends, 1, 64<<10, 0, 1000, 1)
	mustAppend(t, l, Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: appends + 1, Epochs: epochZero}})
	readAll(t, l, 0, appends+1, 1<<20)
}

func TestAppendRefusesWhatDoesNotFit(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	one(t, l, SetSynced, 0, 10, 100)
	good := func() Append {
		b := makeBatch(10, 5, 100, 0, 1000, 1)
		return Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: 15, Epochs: epochZero}}
	}
	for name, spoil := range map[string]func(*Append){
		"unknown set":        func(a *Append) { a.Set = "elsewhere" },
		"gap":                func(a *Append) { a.Batches[0].BaseOffset++ },
		"overlap":            func(a *Append) { a.Batches[0].BaseOffset-- },
		"last before base":   func(a *Append) { a.Batches[0].LastOffset = 9 },
		"log end beyond":     func(a *Append) { a.State.LogEnd++ },
		"log end without":    func(a *Append) { a.Batches = nil },
		"log start negative": func(a *Append) { a.State.LogStart = -1 },
		"log start beyond":   func(a *Append) { a.State.LogStart = 16 },
		"no bytes":           func(a *Append) { a.Batches[0].Bytes = nil },
		"too many bytes":     func(a *Append) { a.Batches[0].Bytes = make([]byte, 3<<20) },
		"too many producers": func(a *Append) { a.RemovedProducers = make([]int64, maxProducers+1) },
	} {
		a := good()
		spoil(&a)
		if err := appendSync(t, l, a); !errors.Is(err, ErrInvalidAppend) {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustAppend(t, l, good())
	readAll(t, l, 0, 15, 1)
	// A replica may begin anew further on, where the log then starts and ends.
	wantError(t, appendSync(t, l, Append{Set: SetSynced, State: State{LogStart: 100, LogEnd: 100}}), ErrInvalidAppend)
	if err := l.Restart(t.Context(), SetSynced, State{LogStart: 100, LogEnd: 100}); err != nil {
		t.Fatal(err)
	}
	_, err := l.Read(context.Background(), 12, 100, 1)
	wantError(t, err, ErrOffsetOutOfRange)
	next := Append{Set: SetSynced, Batches: []Batch{makeBatch(100, 3, 100, 0, 1000, 1)}, State: State{LogStart: 99, LogEnd: 103}}
	wantError(t, appendSync(t, l, next), ErrInvalidAppend)
	next.State.LogStart = 100
	mustAppend(t, l, next)
	readAll(t, l, 100, 103, 1)
	if n := len(l.durable.spans); n != 1 {
		t.Errorf("%d spans", n)
	}
}

func TestReadLimits(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	var all []Batch
	for i := range int64(10) {
		all = append(all, one(t, l, SetSynced, i*5, 5, 2000))
	}
	size := len(all[0].Bytes)
	for _, c := range []struct {
		name                string
		offset, end         int64
		maxBytes, from, not int
	}{
		{"first", 0, 50, 1, 0, 1},
		{"within a batch", 12, 50, 1, 2, 3},
		{"last of a batch", 14, 50, 1, 2, 3},
		{"exactly two", 10, 50, 2 * size, 2, 4},
		{"less than two", 10, 50, 2*size - 1, 2, 3},
		{"until the end offset", 10, 21, 1 << 20, 2, 5},
		{"batches that begin below", 10, 20, 1 << 20, 2, 4},
		{"all", 0, 50, 1 << 20, 0, 10},
		{"nothing below the end offset", 20, 20, 1 << 20, 4, 4},
		{"at the log end", 50, 60, 1 << 20, 0, 0},
		{"beyond the log end", 55, 60, 1 << 20, 0, 0},
	} {
		got, err := l.Read(context.Background(), c.offset, c.end, c.maxBytes)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if err := sameBatches(got, all[c.from:c.not]); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	got, err := l.Read(context.Background(), 0, 50, 1)
	if err != nil {
		t.Fatal(err)
	}
	clear(got[0].Bytes)
	if err := sameBatches(readAll(t, l, 0, 50, 1<<20), all); err != nil {
		t.Errorf("after a reader wrote into its copy: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = l.Read(ctx, 0, 50, 1)
	wantError(t, err, context.Canceled)
}

// TestVolumesRollUnderLoad appends and reads concurrently, while volumes are
// replaced and sealed ones opened and closed within their bound.
func TestVolumesRollUnderLoad(t *testing.T) {
	cfg := testConfig(t)
	cfg.VolumeBytes = 256 << 10
	cfg.MaxOpenSealed = 2
	s := open(t, cfg)
	const partitions = 4
	var ends [partitions]atomic.Int64
	var appending, reading sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	for p := range partitions {
		appending.Go(func() {
			l := s.Log(partition(p))
			for i := int64(0); ctx.Err() == nil; i++ {
				b := makeBatch(i, 1, 16<<10, 0, 1000+i, uint64(p))
				if err := appendSync(t, l, Append{Set: allSets[p%2], Batches: []Batch{b}, State: State{LogEnd: i + 1, Epochs: epochZero}}); err != nil {
					t.Error(err)
					return
				}
				ends[p].Store(i + 1)
			}
		})
		for reader := range 2 {
			reading.Go(func() {
				l := s.Log(partition(p))
				for n := int64(reader); ctx.Err() == nil; n += 7 {
					end := ends[p].Load()
					if end == 0 {
						continue
					}
					got, err := l.Read(context.Background(), n%end, end, 40<<10)
					if err != nil || len(got) == 0 || got[0].BaseOffset != n%end {
						t.Errorf("read %d at %d of %d: %d batches, %v", p, n%end, end, len(got), err)
						return
					}
					s.volumes.mu.Lock()
					open := s.volumes.open
					s.volumes.mu.Unlock()
					if open > cfg.MaxOpenSealed {
						t.Errorf("%d sealed volumes are open", open)
						return
					}
				}
			})
		}
	}
	eventually(t, "sealing", func() bool {
		sealed := 0
		for _, set := range allSets {
			for _, v := range s.volumes.ofSet(set) {
				s.volumes.mu.Lock()
				if v.sealed {
					sealed++
				}
				s.volumes.mu.Unlock()
			}
		}
		return sealed >= 5
	})
	stop()
	appending.Wait()
	reading.Wait()
	for p := range partitions {
		end := ends[p].Load()
		var want []Batch
		for i := range end {
			want = append(want, makeBatch(i, 1, 16<<10, 0, 1000+i, uint64(p)))
		}
		if err := sameBatches(readAll(t, s.Log(partition(p)), 0, end, 1<<20), want); err != nil {
			t.Errorf("partition %d: %v", p, err)
		}
	}
}

func TestVolumeIsSealedByAge(t *testing.T) {
	cfg := testConfig(t)
	cfg.VolumeAge = time.Second
	s := open(t, cfg)
	l := s.Log(partition(1))
	b := one(t, l, SetSynced, 0, 1, 100)
	first := filepath.Join(cfg.Dir, volumesFolder, "synced-000001")
	eventually(t, "sealing", func() bool {
		v, err := readVolume(first)
		return err == nil && v.sealed
	})
	if err := sameBatches(readAll(t, l, 0, 1, 1), []Batch{b}); err != nil {
		t.Error(err)
	}
	one(t, l, SetSynced, 1, 1, 100)
	if spans := l.durable.spans; len(spans) != 2 || spans[0].volume != 1 || spans[1].volume != 2 {
		t.Errorf("spans %+v", spans)
	}
}

func TestSetChange(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	var want []Batch
	other := s.Log(partition(2))
	one(t, other, SetReplicated, 0, 1, 100)
	release := hold(t, s, SetSynced)
	b := makeBatch(0, 1, 100, 0, 1000, 1)
	want = append(want, b)
	first, second := make(chan error, 1), make(chan error, 1)
	l.Append(Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: 1, Epochs: epochZero}}, func(err error) { first <- err })
	var waiting sync.WaitGroup
	waiting.Go(func() {
		second <- appendSync(t, l, Append{Set: SetReplicated, State: State{LogEnd: 1, Epochs: epochZero}})
	})
	// While the other set commits for others.
	for i := range int64(100) {
		one(t, other, SetReplicated, 1+i, 1, 100)
	}
	select {
	case <-second:
		t.Error("an append to another set overtook one that was pending")
	default:
	}
	release()
	waiting.Wait()
	if err := errors.Join(<-first, <-second); err != nil {
		t.Fatal(err)
	}
	for i := range int64(6) {
		want = append(want, one(t, l, allSets[(i+1)%2], i+1, 1, 100))
	}
	if err := sameBatches(readAll(t, l, 0, 7, 1<<20), want); err != nil {
		t.Error(err)
	}
	if n := len(l.durable.spans); n != 7 {
		t.Errorf("%d spans", n)
	}
}

// TestAppendBeyondTransaction appends more than Badger takes in one transaction,
// in number, in keys and in values.
func TestAppendBeyondTransaction(t *testing.T) {
	for name, c := range map[string]struct{ batches, size int }{
		"number": {4000, 10},
		"keys":   {1000, 800},
		"values": {60, 100_000},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.QueueBytes = 1 << 30
			s := open(t, cfg)
			l := s.Log(partition(1))
			want := []Batch{one(t, l, SetSynced, 0, 1, 100)}
			a := Append{Set: SetSynced, Producers: []Producer{{ID: 1, Batches: []ProducerBatch{{BaseOffset: 1}}}}}
			for i := range int64(c.batches) {
				a.Batches = append(a.Batches, makeBatch(i+1, 1, c.size, 0, 1000, 1))
			}
			want = append(want, a.Batches...)
			end := int64(c.batches) + 1
			a.State = State{LogEnd: end, Epochs: epochZero}
			before := s.sets[SetSynced].writer.version
			mustAppend(t, l, a)
			want = append(want, one(t, l, SetSynced, end, 1, 100))
			closeStore(t, s)
			if commits := s.sets[SetSynced].writer.version - before; commits < 3 {
				t.Errorf("%d commits: the append fits into a transaction", commits)
			}
			s = open(t, cfg)
			if err := sameBatches(readAll(t, s.Log(partition(1)), 0, end+1, 1<<20), want); err != nil {
				t.Error(err)
			}
			// More keys than one transaction deletes are cut off with their volume.
			l = s.Log(partition(1))
			if _, err := l.Truncate(context.Background(), 1, State{LogEnd: 1, Epochs: epochZero}); err != nil {
				t.Fatal(err)
			}
			b := one(t, l, SetSynced, 1, 3, 50)
			if err := sameBatches(readAll(t, l, 0, 4, 1<<20), []Batch{want[0], b}); err != nil {
				t.Error(err)
			}
			closeUnclean(t, s)
			s = open(t, cfg)
			if err := sameBatches(readAll(t, s.Log(partition(1)), 0, 4, 1<<20), []Batch{want[0], b}); err != nil {
				t.Error(err)
			}
			if _, producers := s.Log(partition(1)).Loaded(); len(producers) != 0 {
				t.Errorf("the log remembers %+v of batches that were cut off", producers)
			}
		})
	}
}

// TestTruncateIntoAnotherSet cuts into the active volume of a set that the log
// has left, and then appends to that set again, in other batches.
func TestTruncateIntoAnotherSet(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(1))
	var want []Batch
	for i := range int64(10) {
		want = append(want, one(t, l, allSets[i/5], i, 1, 100))
	}
	if _, err := l.Truncate(context.Background(), 2, State{LogEnd: 2, Epochs: epochZero}); err != nil {
		t.Fatal(err)
	}
	want = append(want[:2], one(t, l, SetSynced, 2, 6, 100), one(t, l, SetReplicated, 8, 6, 100))
	for range 2 {
		if err := sameBatches(readAll(t, s.Log(partition(1)), 0, 14, 1<<20), want); err != nil {
			t.Error(err)
		}
		closeUnclean(t, s)
		s = open(t, cfg)
	}
}

// TestReadDuringTruncation reads while the log is cut and grows again in other
// batches, in the same volume.
func TestReadDuringTruncation(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	const kept, end = 5, 300
	one(t, l, SetReplicated, 0, kept, 100)
	ctx, stop := context.WithCancel(context.Background())
	var reading sync.WaitGroup
	defer reading.Wait()
	defer stop()
	for range 2 {
		reading.Go(func() {
			for ctx.Err() == nil {
				got, err := l.Read(context.Background(), kept, end, 1<<20)
				if err != nil {
					t.Errorf("read: %v", err)
					return
				}
				// All batches of a round have the same number of records.
				for _, b := range got[:max(0, len(got)-1)] {
					if b.LastOffset-b.BaseOffset != got[0].LastOffset-got[0].BaseOffset {
						t.Errorf("batches of different rounds: %d to %d after %d to %d", b.BaseOffset, b.LastOffset, got[0].BaseOffset, got[0].LastOffset)
						return
					}
				}
				if _, err := l.OffsetForTime(context.Background(), 1010, end); err != nil {
					t.Errorf("search: %v", err)
					return
				}
			}
		})
	}
	for round := range 40 {
		a := Append{Set: SetReplicated, State: State{LogEnd: end, Epochs: epochZero}}
		for offset := int64(kept); offset < end; {
			records := min(int64(1+round%4), end-offset)
			b := makeBatch(offset, int(records), 100, 0, 1000+offset, 1)
			a.Batches = append(a.Batches, b)
			offset = b.LastOffset + 1
		}
		mustAppend(t, l, a)
		if _, err := l.Truncate(context.Background(), kept, State{LogEnd: kept, Epochs: epochZero}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSealingWaitsForReaders holds a volume while it is replaced.
func TestSealingWaitsForReaders(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	b := one(t, l, SetSynced, 0, 1, 100)
	v, err := s.volumes.acquire(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	db := v.db
	if err := s.sets[SetSynced].roll(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the attempt to close the volume", func() bool {
		s.volumes.mu.Lock()
		defer s.volumes.mu.Unlock()
		return v.mode == changing
	})
	one(t, l, SetSynced, 1, 1, 100)
	if db.IsClosed() {
		t.Fatal("a volume was closed under a reader")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = s.volumes.acquire(ctx, 1)
	wantError(t, err, context.Canceled)
	s.volumes.release(v)
	if err := sameBatches(readAll(t, l, 0, 1, 1), []Batch{b}); err != nil {
		t.Error(err)
	}
	if !db.IsClosed() {
		t.Error("the volume is still open for writing")
	}
}

func TestTruncateManyKeysSealsVolume(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(1))
	a := Append{Set: SetReplicated, State: State{LogEnd: maxDeletes + 10, Epochs: epochZero}}
	for i := range int64(maxDeletes + 10) {
		a.Batches = append(a.Batches, makeBatch(i, 1, 8, 0, 1000, 1))
	}
	mustAppend(t, l, a)
	if _, err := l.Truncate(context.Background(), 5, State{LogEnd: 5, Epochs: epochZero}); err != nil {
		t.Fatal(err)
	}
	b := one(t, l, SetReplicated, 5, 4, 50)
	if err := sameBatches(readAll(t, l, 0, 9, 1<<20), append(a.Batches[:5:5], b)); err != nil {
		t.Error(err)
	}
	if spans := l.durable.spans; len(spans) != 2 || spans[0].volume == spans[1].volume {
		t.Errorf("spans %+v", spans)
	}
}

// TestStagedBatchesAreRemoved leaves behind what a process leaves that dies in
// the midst of an append beyond a transaction.
func TestStagedBatchesAreRemoved(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	want := []Batch{one(t, s.Log(partition(1)), SetSynced, 0, 2, 100), one(t, s.Log(partition(2)), SetSynced, 0, 2, 100)}
	closeUnclean(t, s)
	inVolume(t, cfg, func(db *badger.DB) {
		txn := db.NewTransactionAt(math.MaxUint64, true)
		for _, id := range []PartitionID{partition(1), partition(3)} {
			for i := range int64(5) {
				b := makeBatch(2+i*7, 7, 100, 0, 1000, 9)
				if err := txn.SetEntry(badger.NewEntry(appendOffsetKey(nil, kindBatch, id, b.LastOffset), b.Bytes)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := txn.CommitAt(db.MaxVersion()+1, nil); err != nil {
			t.Fatal(err)
		}
	})
	s = open(t, cfg)
	// Other batches at the same offsets now.
	for i, l := range []*Log{s.Log(partition(1)), s.Log(partition(2))} {
		b := one(t, l, SetSynced, 2, 40, 100)
		if err := sameBatches(readAll(t, l, 0, 42, 1<<20), []Batch{want[i], b}); err != nil {
			t.Error(err)
		}
	}
	b := one(t, s.Log(partition(3)), SetSynced, 0, 40, 100)
	if err := sameBatches(readAll(t, s.Log(partition(3)), 0, 40, 1), []Batch{b}); err != nil {
		t.Error(err)
	}
}

// inVolume opens the first synced volume of a closed store.
func inVolume(t *testing.T, cfg Config, f func(*badger.DB)) {
	t.Helper()
	inVolumeOf(t, cfg, volumeName(SetSynced, 1), f)
}

// inVolumeOf opens a volume of a closed store.
func inVolumeOf(t *testing.T, cfg Config, name string, f func(*badger.DB)) {
	t.Helper()
	cfg = cfg.withDefaults()
	dir := filepath.Join(cfg.Dir, volumesFolder, name)
	if err := removeChecksums(dir); err != nil {
		t.Fatal(err)
	}
	db, err := openWritable(dir, true, &cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	f(db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOffsetForTimeWithIndex(t *testing.T) {
	cfg := testConfig(t)
	cfg.valueLogBytes = 16 << 20
	s := open(t, cfg)
	l := s.Log(partition(1))
	// 6 MiB of batches in one volume, whose times go back now and then.
	const batches = 60
	var all []Batch
	for i := range int64(batches) {
		at := 1000 + i*10
		if i%7 == 3 {
			at -= 200
		}
		b := makeBatch(i*3, 3, 100<<10, 0, at, 1)
		mustAppend(t, l, Append{Set: SetReplicated, Batches: []Batch{b}, State: State{LogEnd: i*3 + 3, Epochs: epochZero}})
		all = append(all, b)
	}
	if entries := countKeys(t, s, l, kindTime); entries < 4 || entries > 6 {
		t.Errorf("%d entries in the time index", entries)
	}
	for at := int64(700); at < 1700; at += 3 {
		i := slices.IndexFunc(all, func(b Batch) bool { return b.MaxTimestamp >= at })
		got, err := l.OffsetForTime(context.Background(), at, batches*3)
		switch {
		case err != nil:
			t.Fatal(err)
		case i < 0 && got != nil, i >= 0 && got == nil:
			t.Fatalf("time %d: %v, want batch %d", at, got, i)
		case i >= 0:
			if err := sameBatches([]Batch{*got}, all[i:i+1]); err != nil {
				t.Fatalf("time %d: %v", at, err)
			}
		}
	}
	if got, err := l.OffsetForTime(context.Background(), 1500, 30); got != nil || err != nil {
		t.Errorf("found %v, %v beyond the end offset", got, err)
	}
}

func countKeys(t *testing.T, s *Store, l *Log, k kind) int {
	t.Helper()
	n := 0
	for _, volume := range s.volumes.numbers() {
		v, err := s.volumes.acquire(context.Background(), volume)
		if err != nil {
			t.Fatal(err)
		}
		txn := v.db.NewTransactionAt(math.MaxUint64, false)
		it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, k, l.id)})
		for it.Rewind(); it.Valid(); it.Next() {
			n++
		}
		it.Close()
		txn.Discard()
		s.volumes.release(v)
	}
	return n
}

// flip changes bits of a byte of a batch in the value log of a volume.
func flip(t *testing.T, cfg Config, volume string, b Batch, at int, bits byte) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(cfg.Dir, volumesFolder, volume, "*.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range logs {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		i := bytes.Index(raw, b.Bytes)
		if i < 0 {
			continue
		}
		// In place: the file may be mapped.
		file, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = file.WriteAt([]byte{raw[i+at] ^ bits}, int64(i+at))
		if err := errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("the batch is not in the value log")
}

func TestReadNoticesDamage(t *testing.T) {
	for name, damage := range map[string]struct {
		at   int
		bits byte
	}{
		"base offset raised": {7, 0x04}, "base offset lowered": {7, 0x08}, "length": {11, 0x04}, "leader epoch": {15, 0x04},
		"magic": {16, 0x04}, "checksum": {18, 0x04}, "attributes": {22, 0x04}, "last offset delta": {26, 0x04},
		"first record": {recordbatch.HeaderSize + 1, 0x04}, "last record": {3000, 0x80},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			l := s.Log(partition(1))
			var all []Batch
			for i := range int64(5) {
				all = append(all, one(t, l, SetSynced, i*4, 4, 4000))
			}
			closeStore(t, s)
			s = open(t, cfg)
			flip(t, cfg, "synced-000001", all[2], damage.at, damage.bits)
			l = s.Log(partition(1))
			got, err := l.Read(context.Background(), 0, 20, 1<<20)
			if err != nil {
				t.Fatalf("the batches before the damage: %v", err)
			}
			if err := sameBatches(got, all[:2]); err != nil {
				t.Fatal(err)
			}
			_, err = l.Read(context.Background(), 8, 20, 1<<20)
			var corrupt *ErrCorrupt
			if !errors.As(err, &corrupt) || corrupt.Partition != l.ID() || corrupt.Volume != 1 || corrupt.Offset != 8 {
				t.Fatalf("error is %v, want corruption of %v in volume 1 at 8", err, l.ID())
			}
			got, err = l.Read(context.Background(), 12, 20, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if err := sameBatches(got, all[3:]); err != nil {
				t.Fatalf("behind the damage: %v", err)
			}
		})
	}
}

func TestReadNoticesHole(t *testing.T) {
	for name, gone := range map[string]int64{"first": 3, "middle": 11, "last": 19} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			for i := range int64(5) {
				one(t, s.Log(partition(1)), SetSynced, i*4, 4, 100)
			}
			closeStore(t, s)
			inVolume(t, cfg, func(db *badger.DB) {
				txn := db.NewTransactionAt(math.MaxUint64, true)
				if err := txn.Delete(appendOffsetKey(nil, kindBatch, partition(1), gone)); err != nil {
					t.Fatal(err)
				}
				if err := txn.CommitAt(db.MaxVersion()+1, nil); err != nil {
					t.Fatal(err)
				}
			})
			s = open(t, cfg)
			for _, offset := range []int64{gone, gone - 3} {
				_, err := s.Log(partition(1)).Read(context.Background(), offset, 20, 1<<20)
				var corrupt *ErrCorrupt
				if !errors.As(err, &corrupt) || corrupt.Offset != offset {
					t.Errorf("reading at %d, where batch %d is missing: %v", offset, gone, err)
				}
			}
		})
	}
}

func TestOpenNoticesDamagedState(t *testing.T) {
	broken := func(change func(d *durable)) func(key []byte, l *Log) []byte {
		return func(key []byte, l *Log) []byte {
			d := l.durable
			d.spans = slices.Clone(d.spans)
			d.generation += 5
			change(&d)
			_, value := appendMessage(nil, key, d.message())
			return value
		}
	}
	for name, value := range map[string]func(key []byte, l *Log) []byte{
		"checksum": func(key []byte, l *Log) []byte {
			_, v := appendMessage(nil, append(key, 1), l.durable.message())
			return v
		},
		"too short":         func([]byte, *Log) []byte { return []byte{1, 2} },
		"log end":           broken(func(d *durable) { d.LogEnd++ }),
		"log start":         broken(func(d *durable) { d.LogStart = d.LogEnd + 1 }),
		"no spans":          broken(func(d *durable) { d.spans = nil }),
		"empty span":        broken(func(d *durable) { d.spans[0].first = d.spans[0].end }),
		"gap between spans": broken(func(d *durable) { d.spans = append(d.spans, span{volume: 1, first: 2, end: 3}); d.LogEnd = 3 }),
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			for p := range 3 {
				one(t, s.Log(partition(p)), SetSynced, 0, 1, 100)
			}
			l := s.Log(partition(1))
			closeStore(t, s)
			inVolume(t, cfg, func(db *badger.DB) {
				key := appendPartitionKey(nil, kindState, partition(1))
				txn := db.NewTransactionAt(math.MaxUint64, true)
				if err := txn.SetEntry(badger.NewEntry(key, value(slices.Clone(key), l))); err != nil {
					t.Fatal(err)
				}
				if err := txn.CommitAt(db.MaxVersion()+1, nil); err != nil {
					t.Fatal(err)
				}
			})
			s = open(t, cfg)
			for p := range 3 {
				var corrupt *ErrCorrupt
				if err := s.Log(partition(p)).Err(); errors.As(err, &corrupt) != (p == 1) {
					t.Errorf("partition %d: %v", p, err)
				}
			}
			one(t, s.Log(partition(2)), SetSynced, 1, 1, 100)
		})
	}
}

// TestOpenAfterKillInBadger leaves files as Badger does when it is killed at the
// wrong moment, in which state it does not open them itself.
func TestOpenAfterKillInBadger(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	b := one(t, s.Log(partition(1)), SetSynced, 0, 1, 5000)
	closeUnclean(t, s)
	for _, name := range []string{"00099.mem", "000099.vlog"} {
		write(t, filepath.Join(cfg.Dir, volumesFolder, "synced-000001", name), "")
		s = open(t, cfg)
		if err := sameBatches(readAll(t, s.Log(partition(1)), 0, 1, 1), []Batch{b}); err != nil {
			t.Error(err)
		}
		closeUnclean(t, s)
	}
}

func TestDeletedPartition(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(1))
	one(t, l, SetSynced, 0, 5, 100)
	mustAppend(t, l, Append{Set: SetSynced, State: State{LogEnd: 5, Deleted: true}})
	if got, err := l.Read(context.Background(), 0, 5, 1); err == nil && len(got) > 0 {
		t.Error("a deleted partition was read")
	}
	for _, end := range []func(testing.TB, *Store){closeStore, closeUnclean} {
		end(t, s)
		s = open(t, cfg)
		if state, _ := s.Log(partition(1)).Loaded(); !state.Deleted || s.Log(partition(1)).Err() != nil {
			t.Errorf("loaded with %+v, %v", state, s.Log(partition(1)).Err())
		}
	}
}

func TestFatalError(t *testing.T) {
	cfg := testConfig(t)
	var fatal []error
	cfg.OnFatal = func(err error) { fatal = append(fatal, err) }
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := s.Log(partition(1))
	b := one(t, l, SetSynced, 0, 1, 100)
	release := hold(t, s, SetSynced)
	outcomes := make(chan error, 3)
	for i := range int64(3) {
		next := makeBatch(1+i, 1, 100, 0, 1000, 1)
		l.Append(Append{Set: SetSynced, Batches: []Batch{next}, State: State{LogEnd: 2 + i, Epochs: epochZero}}, func(err error) { outcomes <- err })
	}
	// As Badger does it within a commit.
	s.volumes.logger.Errorf("Error while curlf sync: %v\n", errors.New("input/output error"))
	release()
	for range 3 {
		if err := <-outcomes; err == nil || !strings.Contains(err.Error(), "input/output error") {
			t.Errorf("a queued append: %v", err)
		}
	}
	if err := appendSync(t, l, Append{Set: SetSynced, State: State{LogEnd: 4}}); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("a later append: %v", err)
	}
	if err := appendSync(t, s.Log(partition(2)), Append{Set: SetReplicated}); err == nil {
		t.Error("an append to the other set was taken")
	}
	if err := sameBatches(readAll(t, l, 0, 1, 1), []Batch{b}); err != nil {
		t.Errorf("what was committed before: %v", err)
	}
	if err := s.Close(1); err == nil {
		t.Error("the store was closed in good order")
	}
	if len(fatal) != 1 {
		t.Errorf("OnFatal was called with %v", fatal)
	}
	cfg.OnFatal = nil
	if open(t, cfg).Clean() {
		t.Error("the store is clean")
	}
}

// interruptedLog reports an error of the disk in the midst of a commit.
type interruptedLog struct {
	badger.Logger
	armed atomic.Bool
}

func (l *interruptedLog) Debugf(format string, _ ...any) {
	if strings.HasPrefix(format, "Writing to memtable") && l.armed.Load() {
		l.Errorf("Error while curlf sync: %v\n", errors.New("input/output error"))
	}
}

// TestUnreturnedErrorFailsCommit has Badger report an error while it commits, and
// return none.
func TestUnreturnedErrorFailsCommit(t *testing.T) {
	cfg := testConfig(t)
	var fatal atomic.Int32
	cfg.OnFatal = func(error) { fatal.Add(1) }
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	logger := &interruptedLog{Logger: s.volumes.logger}
	s.volumes.logger = logger
	l := s.Log(partition(1))
	one(t, l, SetSynced, 0, 1, 5000)
	logger.armed.Store(true)
	b := makeBatch(1, 1, 5000, 0, 1000, 1)
	if err := appendSync(t, l, Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: 2, Epochs: epochZero}}); err == nil {
		t.Error("the append was acknowledged")
	}
	if err := s.Close(0); err == nil || fatal.Load() != 1 {
		t.Errorf("closing: %v; OnFatal was called %d times", err, fatal.Load())
	}
}

// TestCommitErrorIsFatal has Badger refuse a commit.
func TestCommitErrorIsFatal(t *testing.T) {
	cfg := testConfig(t)
	var fatal atomic.Int32
	cfg.OnFatal = func(error) { fatal.Add(1) }
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := s.Log(partition(1))
	one(t, l, SetSynced, 0, 1, 100)
	if err := s.sets[SetSynced].writer.volume.db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := appendSync(t, l, Append{Set: SetSynced, State: State{LogEnd: 1}}); err == nil {
			t.Error("the append was taken")
		}
	}
	if err := s.Close(0); err == nil || fatal.Load() != 1 {
		t.Errorf("closing: %v; OnFatal was called %d times", err, fatal.Load())
	}
}

// TestBadgerReportsInTheseWords compares what the store listens for with the
// source of the very Badger that it is built with.
func TestBadgerReportsInTheseWords(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/dgraph-io/badger/v4").Output()
	if err != nil || len(bytes.TrimSpace(dir)) == 0 {
		t.Skipf("the source of Badger is not at hand: %v", err)
	}
	for _, c := range []struct{ file, call string }{
		{"value.go", `vlog.opt.Errorf("` + fatalFormats[0]},
		{"db.go", `db.opt.Errorf("` + fatalFormats[1]},
		{"levels.go", `s.kv.opt.Debugf("` + tableFormat},
	} {
		source, err := os.ReadFile(filepath.Join(string(bytes.TrimSpace(dir)), c.file))
		if err != nil {
			t.Skipf("the source of Badger is not at hand: %v", err)
		}
		if n := strings.Count(string(source), c.call); n != 1 {
			t.Errorf("%s has %q %d times", c.file, c.call, n)
		}
	}
	// Every sync error of the value log that is not returned must be among them.
	source, err := os.ReadFile(filepath.Join(string(bytes.TrimSpace(dir)), "value.go"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), ".Sync()"); n != 2 {
		t.Errorf("value.go syncs in %d places instead of 2: look what becomes of the errors", n)
	}
}

func TestCloseAnswersEveryAppendOnce(t *testing.T) {
	s := open(t, testConfig(t))
	release := hold(t, s, SetSynced)
	l := s.Log(partition(1))
	const appends = 20
	var answers [appends + 1]atomic.Int32
	var failed atomic.Int32
	var done sync.WaitGroup
	push := func(i int) {
		b := makeBatch(int64(i), 1, 100, 0, 1000, 1)
		done.Add(1)
		l.Append(Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: int64(i) + 1, Epochs: epochZero}}, func(err error) {
			if err != nil {
				failed.Add(1)
			}
			answers[i].Add(1)
			done.Done()
		})
	}
	for i := range appends {
		push(i)
	}
	var closing sync.WaitGroup
	closing.Go(func() { closeStore(t, s) })
	release()
	closing.Wait()
	done.Wait()
	if n := failed.Load(); n != 0 {
		t.Errorf("%d appends that were queued before Close failed", n)
	}
	push(appends)
	done.Wait()
	if failed.Load() != 1 {
		t.Error("an append after Close succeeded")
	}
	for i := range answers {
		if n := answers[i].Load(); n != 1 {
			t.Errorf("append %d was answered %d times", i, n)
		}
	}
	_, err := l.Read(context.Background(), 0, 1, 1)
	wantError(t, err, ErrClosed)
	_, err = l.Truncate(context.Background(), 3, State{LogEnd: 3})
	wantError(t, err, ErrClosed)
	s.late.Wait()
}

func TestLogIsAlwaysTheSame(t *testing.T) {
	s := open(t, testConfig(t))
	if first := s.Log(partition(1)); first != s.Log(partition(1)) || first == s.Log(partition(2)) {
		t.Error("a partition has not exactly one log")
	}
	if got := s.Partitions(); len(got) != 0 {
		t.Errorf("%v have a state record", got)
	}
	mustAppend(t, s.Log(partition(1)), Append{Set: SetSynced})
	if got := s.Partitions(); len(got) != 1 || got[0] != partition(1) {
		t.Errorf("%v have a state record", got)
	}
}

func TestTruncations(t *testing.T) {
	var list []truncation
	for i := range 40 {
		list = addTruncation(list, truncation{generation: uint64(10 * (i + 1)), offset: int64(100 * (i + 1))})
	}
	if len(list) != maxTruncations {
		t.Fatalf("%d truncations", len(list))
	}
	for _, c := range []struct {
		generation uint64
		below      int64
	}{{0, 100}, {200, 100}, {250, 2700}, {260, 2700}, {395, 4000}, {400, math.MaxInt64}} {
		got := validBelow(list, c.generation)
		// What became one voids all that either did.
		if got > c.below {
			t.Errorf("records of generation %d hold below %d, want %d: %v", c.generation, got, c.below, list)
		}
	}
	before := fmt.Sprint(list)
	if got := addTruncation(list, truncation{generation: 500, offset: 50}); len(got) != 1 {
		t.Errorf("a truncation below all others leaves %v", got)
	}
	if fmt.Sprint(list) != before {
		t.Error("the list was changed")
	}
}

func TestValueBytes(t *testing.T) {
	cfg := testConfig(t).withDefaults()
	cfg.valueLogBytes = 16 << 20
	db, err := openWritable(t.TempDir(), false, &cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	sizes := []int{1, 1023, 1024, 1025, 16382, 16383, 16384, 16385, 1<<21 - 1, 1 << 21, 1<<21 + 1}
	for i, size := range sizes {
		txn := db.NewTransactionAt(math.MaxUint64, true)
		if err := txn.SetEntry(badger.NewEntry(appendOffsetKey(nil, kindBatch, partition(1), int64(i)), make([]byte, size))); err != nil {
			t.Fatal(err)
		}
		if err := txn.CommitAt(uint64(i+1), nil); err != nil {
			t.Fatal(err)
		}
	}
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{})
	defer it.Close()
	i := 0
	for it.Rewind(); it.Valid(); it.Next() {
		if got := valueBytes(it.Item()); got != sizes[i] {
			t.Errorf("a value of %d bytes is taken for %d", sizes[i], got)
		}
		i++
	}
	if i != len(sizes) {
		t.Errorf("%d values", i)
	}
}
