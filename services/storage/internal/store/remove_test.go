package store

import (
	"sync/atomic"
	"testing"
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
	go func() { carried <- s.cleaner.carryOver(t.Context(), v, map[uint64]bool{v.number: true}) }()
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
