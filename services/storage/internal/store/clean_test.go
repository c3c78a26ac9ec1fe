package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

// spaceConfig makes many small volumes.
func spaceConfig(t testing.TB) Config {
	cfg := testConfig(t)
	cfg.VolumeBytes = 64 << 10
	cfg.CleaningRate = 1 << 40
	cfg.Quarantine = 0
	return cfg
}

// moveStart moves the log start of a log that [one] or fill has written.
func moveStart(t testing.TB, l *Log, set Set, start, end int64) {
	t.Helper()
	mustAppend(t, l, Append{Set: set, State: State{LogStart: start, LogEnd: end, HighWatermark: end, Epochs: epochZero}})
}

// fill appends batches of 4 records each, and returns them.
func fill(t testing.TB, l *Log, set Set, from int64, batches, size int) []Batch {
	t.Helper()
	var out []Batch
	for i := range batches {
		out = append(out, one(t, l, set, from+int64(4*i), 4, size))
	}
	return out
}

// volumeFolders are the volumes on disk.
func volumeFolders(t testing.TB, cfg Config) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(cfg.Dir, volumesFolder))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// sealAll makes all volumes be sealed that take appends.
func sealAll(t testing.TB, s *Store) {
	t.Helper()
	for _, name := range allSets {
		set := s.sets[name]
		set.mu.Lock()
		started := set.started
		set.mu.Unlock()
		if !started {
			continue
		}
		if err := set.roll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// rest counts the volumes but for those that are open for writing.
func (s *Store) rest() int {
	s.volumes.mu.Lock()
	defer s.volumes.mu.Unlock()
	n := 0
	for _, v := range s.volumes.byNumber {
		if v.mode != writable {
			n++
		}
	}
	return n
}

// settled says that the cleaner finds nothing to do.
func (s *Store) settled() bool {
	dead, victims := s.cleaner.choose(nil)
	return len(dead) == 0 && len(victims) == 0 && len(s.cleaner.wake) == 0
}

// copied returns how many bytes cleaning has copied.
func (s *Store) copied(t testing.TB) float64 {
	t.Helper()
	var m dto.Metric
	if err := s.metrics.cleanedBytes.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func TestVolumesWithoutSpansVanish(t *testing.T) {
	for _, set := range allSets {
		t.Run(string(set), func(t *testing.T) {
			cfg := spaceConfig(t)
			s := open(t, cfg)
			l := s.Log(partition(1))
			fill(t, l, set, 0, 64, 4<<10)
			moveStart(t, l, set, 256, 256)
			sealAll(t, s)
			eventually(t, "all other volumes are gone", func() bool { return s.settled() && s.rest() == 0 })
			for range 2 {
				closeStore(t, s)
				s = open(t, cfg)
				l = s.Log(partition(1))
				state, _ := l.Loaded()
				if err := l.Err(); err != nil || state.LogStart != 256 || state.LogEnd != 256 || len(state.Epochs) != 1 {
					t.Fatalf("the state is %+v, %v", state, err)
				}
			}
			batch := makeBatch(256, 4, 100, 0, 1000, 1)
			mustAppend(t, l, Append{Set: set, Batches: []Batch{batch}, State: State{LogStart: 256, LogEnd: 260, Epochs: epochZero}})
			if err := sameBatches(readAll(t, l, 256, 260, 1<<20), []Batch{batch}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Readers get the same bytes before, while and after volumes are emptied.
func TestCleaningKeepsWhatIsNeeded(t *testing.T) {
	cfg := spaceConfig(t)
	// Nothing waits.
	cfg.measureDisk = func(string) (usage, error) { return usage{free: 4 << 30, total: 1 << 40}, nil }
	s := open(t, cfg)
	const cold = 5
	kept := make(map[int][]Batch)
	hot := s.Log(partition(0))
	end := int64(0)
	for round := range 40 {
		for i := range cold {
			kept[i] = append(kept[i], one(t, s.Log(partition(1+i)), SetSynced, int64(round*3), 3, 700))
		}
		fill(t, hot, SetSynced, end, 6, 3<<10)
		end += 24
	}
	check := func(s *Store) error {
		for i, want := range kept {
			var got []Batch
			for len(got) < len(want) {
				more, err := s.Log(partition(1+i)).Read(context.Background(), int64(3*len(got)), maxOffset, 1<<30)
				if err != nil || len(more) == 0 {
					return fmt.Errorf("log %d: %d batches after %d: %w", i, len(more), len(got), err)
				}
				got = append(got, more...)
			}
			if err := sameBatches(got, want); err != nil {
				return fmt.Errorf("log %d: %w", i, err)
			}
			at, err := s.Log(partition(1+i)).OffsetForTime(context.Background(), 1060, maxOffset)
			if err != nil || at == nil || at.BaseOffset != 60 {
				return fmt.Errorf("log %d: time 1060 is at %v, %v", i, at, err)
			}
		}
		return nil
	}
	if err := check(s); err != nil {
		t.Fatal(err)
	}
	before := len(volumeFolders(t, cfg))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := check(s); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for start := int64(24); start <= end; start += 24 {
		moveStart(t, hot, SetSynced, start, end)
	}
	eventually(t, "half of the volumes are gone", func() bool { return s.settled() && len(volumeFolders(t, cfg)) <= before/2 })
	close(stop)
	readers.Wait()
	for _, clean := range []bool{false, true} {
		if clean {
			closeStore(t, s)
		} else {
			closeUnclean(t, s)
		}
		s = open(t, cfg)
		if err := check(s); err != nil {
			t.Fatal(err)
		}
	}
}

// What retention drops soon is not copied before, unless the dead bytes become too
// many: for the live ones, or for the disk.
func TestCleaningWaits(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("disk full %v", full), func(t *testing.T) {
			cfg := spaceConfig(t)
			var free atomic.Int64
			free.Store(1 << 40)
			cfg.measureDisk = func(string) (usage, error) { return usage{free: free.Load(), total: 1 << 40}, nil }
			s := open(t, cfg)
			hot, soon, kept, much := s.Log(partition(1)), s.Log(partition(2)), s.Log(partition(3)), s.Log(partition(4))
			fill(t, much, SetSynced, 0, 256, 2<<10)
			const rounds = 48
			for i := range int64(rounds) {
				fill(t, hot, SetSynced, 12*i, 3, 2<<10)
				fill(t, soon, SetSynced, 4*i, 1, 2<<10)
				fill(t, kept, SetSynced, 4*i, 1, 2<<10)
			}
			sealAll(t, s)
			moveStart(t, hot, SetSynced, 12*rounds, 12*rounds)
			moveStart(t, soon, SetSynced, 4*rounds, 4*rounds)
			eventually(t, "volumes are less than half live", func() bool { return s.settled() && s.halfDead() > 1 })
			if copied := s.copied(t); copied > 0 {
				t.Fatalf("%v bytes were copied", copied)
			}
			if full {
				free.Store(4 << 30)
				eventually(t, "volumes were emptied", func() bool {
					s.cleaner.poke()
					return s.halfDead() == 0
				})
			} else {
				moveStart(t, much, SetSynced, 4*240, 4*256)
				eventually(t, "volumes were emptied", func() bool { return s.settled() && s.copied(t) > 0 })
			}
			if copied := s.copied(t); copied > 3*rounds<<10 {
				t.Errorf("%v bytes were copied, of %d that stay", copied, rounds*2<<10)
			}
		})
	}
}

// halfDead counts the sealed volumes of which less than half is needed.
func (s *Store) halfDead() int {
	s.volumes.mu.Lock()
	defer s.volumes.mu.Unlock()
	n := 0
	for _, v := range s.volumes.byNumber {
		if v.sealed && 2*v.space.needed() < v.space.size() {
			n++
		}
	}
	return n
}

func TestLogStartNeverGoesBack(t *testing.T) {
	cfg := spaceConfig(t)
	s := open(t, cfg)
	source := rand.New(rand.NewPCG(1, 2))
	var start, end int64
	for range 30 {
		l := s.Log(partition(1))
		state, _ := l.Loaded()
		if state.LogStart != start || state.LogEnd != end {
			t.Fatalf("the log has %d to %d, want %d to %d", state.LogStart, state.LogEnd, start, end)
		}
		for range 3 {
			b := makeBatch(end, 4, 6<<10, 0, 1000, 1)
			end += 4
			mustAppend(t, l, Append{Set: SetReplicated, Batches: []Batch{b}, State: State{LogStart: start, LogEnd: end, Epochs: epochZero}})
			start += source.Int64N(end - start + 1)
			mustAppend(t, l, Append{Set: SetReplicated, State: State{LogStart: start, LogEnd: end, Epochs: epochZero}})
		}
		err := appendSync(t, l, Append{Set: SetReplicated, State: State{LogStart: start - 1, LogEnd: end, Epochs: epochZero}})
		wantError(t, err, ErrInvalidAppend)
		if source.IntN(2) == 0 {
			closeStore(t, s)
		} else {
			closeUnclean(t, s)
		}
		s = open(t, cfg)
	}
}

// What is left of a removal that was cut short goes when the store is opened.
func TestRemovalIsFinishedAtOpen(t *testing.T) {
	cfg := spaceConfig(t)
	s := open(t, cfg)
	fill(t, s.Log(partition(1)), SetSynced, 0, 2, 100)
	closeStore(t, s)
	left := filepath.Join(cfg.Dir, volumesFolder, "synced-000009"+removedSuffix)
	if err := os.MkdirAll(filepath.Join(left, "sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	for _, name := range volumeFolders(t, cfg) {
		if strings.HasSuffix(name, removedSuffix) {
			t.Errorf("%s is still there", name)
		}
	}
	if !s.Clean() {
		t.Error("the store was taken for one that was killed")
	}
}
