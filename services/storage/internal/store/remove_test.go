package store

import (
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// TestRemovalWaitsForNewerRecord wants to remove a volume while the state record
// that replaces the one in it is being committed: until then nothing else holds.
func TestRemovalWaitsForNewerRecord(t *testing.T) {
	var armed atomic.Bool
	entered, release := make(chan struct{}), make(chan struct{})
	cfg := testConfig(t)
	cfg.stall = func(Set) {
		if armed.CompareAndSwap(true, false) {
			close(entered)
			<-release
		}
	}
	s := open(t, cfg)
	l := s.Log(partition(1))
	one(t, l, SetSynced, 0, 1, 100)
	v := s.volumes.ofSet(SetSynced)[0]
	if err := s.sets[SetSynced].roll(t.Context()); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	appended := make(chan error, 1)
	b := makeBatch(1, 1, 100, 0, 1001, 1)
	l.Append(Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: 2, Epochs: epochZero}}, func(err error) { appended <- err })
	<-entered
	carried := make(chan error, 1)
	go func() { carried <- s.cleaner.carryOver(t.Context(), v) }()
	eventually(t, "the removal waits its turn", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.pending == 2 || len(carried) == 1
	})
	if len(carried) == 1 {
		t.Error("the volume could go before the newer record was committed")
	}
	close(release)
	if err := <-appended; err != nil {
		t.Error(err)
	}
	if err := <-carried; err != nil {
		t.Error(err)
	}
}

// A volume with the damaged state record of a partition stays: without it an older
// record would hold, and the log end go back. It does not keep others from being
// removed.
func TestDamagedStateKeepsItsVolumeOnly(t *testing.T) {
	cfg := spaceConfig(t)
	s := open(t, cfg)
	broken, other := s.Log(partition(1)), s.Log(partition(2))
	fill(t, broken, SetSynced, 0, 2, 1000)
	sealAll(t, s)
	moveStart(t, broken, SetSynced, 4, 8)
	fill(t, other, SetSynced, 0, 2, 4<<10)
	sealAll(t, s)
	fill(t, other, SetSynced, 8, 62, 4<<10)
	sealAll(t, s)
	eventually(t, "the volumes are sealed", func() bool { return s.settled() && s.volumes.sealed(2) != nil })
	closeStore(t, s)
	inVolumeOf(t, cfg, volumeName(SetSynced, 2), func(db *badger.DB) {
		txn := db.NewTransactionAt(math.MaxUint64, true)
		if err := txn.Set(appendPartitionKey(nil, kindState, partition(1)), []byte("damaged")); err != nil {
			t.Fatal(err)
		}
		if err := txn.CommitAt(db.MaxVersion()+1, nil); err != nil {
			t.Fatal(err)
		}
	})
	s = open(t, cfg)
	// All of them are found dead at once.
	moveStart(t, s.Log(partition(2)), SetSynced, 256, 256)
	eventually(t, "the other volumes are gone", func() bool { return s.rest() == 2 })
	for range 2 {
		closeStore(t, s)
		s = open(t, cfg)
		if s.Log(partition(1)).Err() == nil {
			t.Fatalf("the state is no longer damaged: %v", volumeFolders(t, cfg))
		}
	}
}

// As long as an older record of a deleted partition may be left, that of its
// deletion is written anew before its volume goes.
func TestDeletionOutlivesOlderRecords(t *testing.T) {
	clock := newTestClock()
	cfg := spaceConfig(t)
	cfg.Quarantine, cfg.Now = time.Hour, clock.Now
	s := open(t, cfg)
	l := s.Log(partition(1))
	fill(t, l, SetSynced, 0, 2, 1000)
	fill(t, s.Log(partition(2)), SetSynced, 0, 12, 1000)
	sealAll(t, s)
	mustAppend(t, l, Append{Set: SetSynced, State: State{LogStart: 8, LogEnd: 8, Epochs: epochZero, Deleted: true}})
	fill(t, s.Log(partition(2)), SetSynced, 48, 12, 1000)
	sealAll(t, s)
	eventually(t, "the volumes are sealed", func() bool { return s.settled() && s.volumes.sealed(2) != nil })
	s.cleaner.close()
	clock.move(2 * time.Hour)
	if err := s.cleaner.carryOver(t.Context(), s.volumes.sealed(2)); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stateVolume == 2 {
		t.Error("that it is deleted goes with volume 2, and volume 1 still has the partition")
	}
}
