package store

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// testClock is a clock that stands still until it is moved.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func newTestClock() *testClock { return &testClock{now: time.UnixMilli(1_700_000_000_000)} }

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// deleteLog marks a log as deleted.
func deleteLog(t testing.TB, l *Log, set Set, end int64) {
	t.Helper()
	mustAppend(t, l, Append{Set: set, State: State{LogEnd: end, Epochs: epochZero, Deleted: true}})
}

// knows says whether the store has a log of the partition.
func (s *Store) knows(id PartitionID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logs[id] != nil
}

// The batches of a deleted partition stay for the quarantine, which goes on while
// the store is closed; then they go, and so does the partition.
func TestQuarantine(t *testing.T) {
	clock := newTestClock()
	cfg := spaceConfig(t)
	cfg.Quarantine, cfg.Now = time.Hour, clock.Now
	s := open(t, cfg)
	kept, doomed := s.Log(partition(1)), s.Log(partition(2))
	want := fill(t, kept, SetSynced, 0, 2, 1000)
	fill(t, doomed, SetSynced, 0, 64, 4<<10)
	deleteLog(t, doomed, SetSynced, 256)
	if _, err := doomed.Read(t.Context(), 0, maxOffset, 1000); err == nil {
		t.Error("a deleted partition was read")
	}
	sealAll(t, s)
	for range 2 {
		clock.move(29 * time.Minute)
		s.cleaner.poke()
		eventually(t, "the cleaner is idle", s.settled)
		s.cleaner.close()
		doomed.mu.Lock()
		if len(doomed.durable.spans) == 0 {
			t.Fatal("the batches have gone before their time")
		}
		doomed.mu.Unlock()
		closeUnclean(t, s)
		s = open(t, cfg)
		doomed = s.Log(partition(2))
	}
	clock.move(3 * time.Minute)
	s.cleaner.poke()
	eventually(t, "the batches are gone", func() bool {
		doomed.mu.Lock()
		defer doomed.mu.Unlock()
		return len(doomed.durable.spans) == 0
	})
	eventually(t, "the partition is forgotten", func() bool { return s.settled() && !s.knows(partition(2)) })
	eventually(t, "the volumes are gone", func() bool { return s.settled() && s.rest() <= 1 })
	closeStore(t, s)
	s = open(t, cfg)
	if s.knows(partition(2)) {
		t.Error("the partition has come back")
	}
	if err := sameBatches(readAll(t, s.Log(partition(1)), 0, 8, 1<<20), want); err != nil {
		t.Error(err)
	}
}

// A sealed volume that holds little else than the records of deleted partitions is
// not kept for them.
func TestVolumeOfDeletedPartitionsVanishes(t *testing.T) {
	for _, unclean := range []bool{false, true} {
		clock := newTestClock()
		cfg := spaceConfig(t)
		cfg.Quarantine, cfg.Now = time.Hour, clock.Now
		s := open(t, cfg)
		one(t, s.Log(partition(0)), SetSynced, 0, 1, 100)
		for i := range 200 {
			deleteLog(t, s.Log(partition(1+i)), SetSynced, 0)
		}
		sealAll(t, s)
		if unclean {
			closeUnclean(t, s)
			s = open(t, cfg)
		}
		one(t, s.Log(partition(0)), SetSynced, 1, 1, 100)
		clock.move(2 * time.Hour)
		s.cleaner.poke()
		eventually(t, "the deleted partitions are forgotten", func() bool { return s.settled() && len(s.Partitions()) == 1 })
	}
}

// Partitions that come and go leave nothing behind, neither in memory nor on the
// disk.
func TestPartitionsThatComeAndGoLeaveNothing(t *testing.T) {
	rounds, count := 25, 200
	if testing.Short() {
		rounds = 5
	}
	cfg := spaceConfig(t)
	cfg.VolumeBytes = 256 << 10
	s := open(t, cfg)
	one(t, s.Log(partition(0)), SetSynced, 0, 1, 100)
	for round := range rounds {
		set := allSets[round%2]
		var all sync.WaitGroup
		for i := range count {
			id := PartitionID{Topic: cluster.TopicID{0xbb, byte(round)}, Index: int32(i)}
			b := makeBatch(0, 1, 500, 0, 1000, 1)
			all.Add(2)
			done := func(err error) {
				if err != nil {
					t.Error(err)
				}
				all.Done()
			}
			producer := Producer{ID: int64(i), Batches: []ProducerBatch{{LastSequence: 0, AppendTime: -1}}}
			s.Log(id).Append(Append{Set: set, Batches: []Batch{b}, State: State{LogEnd: 1, Epochs: epochZero}, Producers: []Producer{producer}}, done)
			s.Log(id).Append(Append{Set: set, State: State{LogEnd: 1, Epochs: epochZero, Deleted: true}}, done)
		}
		all.Wait()
		if round%10 == 4 {
			closeUnclean(t, s)
			s = open(t, cfg)
		}
	}
	gone := func() bool { return s.settled() && len(s.Partitions()) == 1 }
	// What lies in sealed volumes, or partly in them, goes with these.
	eventually(t, "few partitions are left", func() bool { return s.settled() && len(s.Partitions()) <= 2*count })
	sealAll(t, s)
	one(t, s.Log(partition(0)), SetSynced, 1, 1, 100)
	one(t, s.Log(partition(9)), SetReplicated, 0, 1, 100)
	deleteLog(t, s.Log(partition(9)), SetReplicated, 1)
	eventually(t, "all partitions are forgotten", gone)
	s.mu.Lock()
	logs := len(s.logs)
	s.mu.Unlock()
	if logs != 1 {
		t.Errorf("%d logs are in memory", logs)
	}
	closeUnclean(t, s)
	s = open(t, cfg)
	if list := s.Partitions(); len(list) != 1 {
		t.Errorf("%d partitions have come back", len(list))
	}
	if len(s.cleaner.graves()) != 0 {
		t.Error("there are graves left")
	}
}

// An idle partition keeps its state and its producers though the volumes in which
// they were written are gone.
func TestIdlePartitionOutlivesItsVolumes(t *testing.T) {
	for _, set := range allSets {
		t.Run(string(set), func(t *testing.T) {
			cfg := spaceConfig(t)
			s := open(t, cfg)
			epochs := []EpochStart{{Epoch: 0, StartOffset: 0}, {Epoch: 7, StartOffset: 2}}
			idle := s.Log(partition(1))
			state := State{LogStart: 0, LogEnd: 4, HighWatermark: 3, Epochs: epochs, CoordinatorEpoch: 5}
			producers := []Producer{
				{ID: 11, Epoch: 2, LastTimestamp: 9, Batches: []ProducerBatch{{BaseSequence: 3, LastSequence: 4, BaseOffset: 0, AppendTime: -1}}},
				{ID: 12, Epoch: 0, LastTimestamp: 8, Batches: []ProducerBatch{{BaseSequence: 0, LastSequence: 1, BaseOffset: 2, AppendTime: 77}}},
				{ID: 13, Epoch: 0, LastTimestamp: 8, Batches: []ProducerBatch{{BaseSequence: 0, LastSequence: 1, BaseOffset: 2, AppendTime: 77}}},
			}
			batches := []Batch{makeBatch(0, 2, 100, 0, 1000, 1), makeBatch(2, 2, 100, 7, 1001, 1)}
			mustAppend(t, idle, Append{Set: set, Batches: batches, State: state, Producers: producers})
			state.LogStart = 4
			state.Epochs = []EpochStart{{Epoch: 7, StartOffset: 4}}
			mustAppend(t, idle, Append{Set: set, State: state, RemovedProducers: []int64{13}})

			// A busy one fills volumes that are removed after it, several times over.
			busy, end := s.Log(partition(2)), int64(0)
			for range 4 {
				fillMoving(t, busy, set, end, 48, 4<<10)
				end += 4 * 48
				sealAll(t, s)
				eventually(t, "all that is sealed is gone", func() bool { return s.settled() && !s.volumes.has(1) && s.rest() == 0 })
				closeUnclean(t, s)
				s = open(t, cfg)
				busy = s.Log(partition(2))
			}
			closeStore(t, s)
			s = open(t, cfg)
			got, packed := s.Log(partition(1)).Loaded()
			gotProducers := packed.Unpack()
			if fmt.Sprint(got) != fmt.Sprint(state) {
				t.Errorf("the state is %+v, want %+v", got, state)
			}
			if fmt.Sprint(gotProducers) != fmt.Sprint(producers[:2]) {
				t.Errorf("the producers are %+v, want %+v", gotProducers, producers[:2])
			}
		})
	}
}

// fillMoving appends batches and lets the log start follow each at once.
func fillMoving(t testing.TB, l *Log, set Set, from int64, batches, size int) {
	t.Helper()
	for range batches {
		b := makeBatch(from, 4, size, 0, 1000, 1)
		mustAppend(t, l, Append{Set: set, Batches: []Batch{b}, State: State{LogStart: from, LogEnd: from + 4, Epochs: epochZero}})
		from += 4
	}
	moveStart(t, l, set, from, from)
}

func TestSpansAreSplit(t *testing.T) {
	clock := newTestClock()
	cfg := testConfig(t)
	cfg.Now = clock.Now
	s := open(t, cfg)
	l := s.Log(partition(1))
	end := int64(0)
	add := func(size int, limit int64, age time.Duration) {
		b := makeBatch(end, 1, size, 0, 1000+end, 1)
		end++
		mustAppend(t, l, Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: end, Epochs: epochZero}, SpanBytes: limit, SpanAge: age})
	}
	ends := func() (out []int64) {
		for _, s := range l.Spans(nil) {
			out = append(out, s.EndOffset)
		}
		return out
	}
	want := func(ends []int64, offsets ...int64) {
		t.Helper()
		if fmt.Sprint(ends) != fmt.Sprint(offsets) {
			t.Errorf("spans end at %v, want %v", ends, offsets)
		}
	}
	for range 5 {
		add(1000, 0, 0)
	}
	want(ends(), 5)
	add(1000, 4000, 0)
	want(ends(), 5, 6)
	add(1000, 0, time.Minute)
	want(ends(), 5, 7)
	clock.move(time.Minute)
	add(1000, 0, time.Minute)
	clock.move(59 * time.Second)
	add(1000, 0, time.Minute)
	want(ends(), 5, 7, 9)
	closeStore(t, s)
	s = open(t, cfg)
	l = s.Log(partition(1))
	want(ends(), 5, 7, 9)
	if got := len(readAll(t, l, 0, 9, 1<<20)); got != 9 {
		t.Errorf("%d batches were read", got)
	}
	moveStart(t, l, SetSynced, 6, 9)
	want(ends(), 7, 9)
}

// A partition that was deleted while something was under way for it is forgotten
// as soon as that is over, and nothing brings it back: neither a compaction that
// was under way nor an append to the log that somebody still has.
func TestBusyPartitionIsForgotten(t *testing.T) {
	cfg := testConfig(t)
	cfg.Quarantine = 0
	s := open(t, cfg)
	l := s.Log(partition(1))
	fill(t, l, SetReplicated, 0, 8, 1000)
	l.mu.Lock()
	l.pending++
	l.mu.Unlock()
	mustAppend(t, l, Append{Set: SetReplicated, State: State{LogEnd: l.next, Deleted: true}})
	eventually(t, "its batches are dropped", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.durable.spans) == 0
	})
	if !s.knows(partition(1)) {
		t.Fatal("the partition was forgotten while something was under way for it")
	}
	l.complete()
	eventually(t, "the partition is forgotten", func() bool { return !s.knows(partition(1)) })
	if _, err := l.Compact(t.Context(), CompactOptions{Set: SetReplicated, Below: math.MaxInt64, Now: time.Now(), MapBytes: 1 << 20}); err != nil {
		t.Errorf("compaction: %v", err)
	}
	if _, err := l.Read(t.Context(), 0, 8, 1); !errors.Is(err, ErrOffsetOutOfRange) {
		t.Errorf("read: %v", err)
	}
	for _, set := range []Set{SetReplicated, SetSynced} {
		if err := appendSync(t, l, Append{Set: set, State: State{LogEnd: l.next}}); !errors.Is(err, ErrInvalidAppend) {
			t.Errorf("append to the set %s: %v", set, err)
		}
	}
	if _, err := l.Truncate(t.Context(), 0, State{}); !errors.Is(err, ErrInvalidAppend) {
		t.Errorf("truncate: %v", err)
	}
	closeUnclean(t, s)
	if s = open(t, cfg); s.knows(partition(1)) {
		t.Error("the partition is there again")
	}
}
