package store

import (
	"testing"
)

// TestTightDiskRolls: where space is tight, a deletion gives back what lies in an
// active volume too, though that is small.
func TestTightDiskRolls(t *testing.T) {
	for _, tight := range []bool{false, true} {
		disk := &fakeDisk{usage: usage{free: 900 << 30, total: 1 << 40}}
		cfg := testConfig(t)
		cfg.measureDisk = disk.measure
		s := open(t, cfg)
		if tight {
			disk.set(2 << 30)
		}
		for n := range 2 {
			l := s.Log(partition(n))
			end := int64(0)
			for ; end < 8; end++ {
				one(t, l, SetSynced, end, 1, 1<<20)
			}
			moveStart(t, l, SetSynced, end, end)
		}
		eventually(t, "the space comes back", func() bool {
			s.volumes.mu.Lock()
			dead := int64(0)
			for _, v := range s.volumes.byNumber {
				dead += v.space.size() - v.space.needed()
			}
			s.volumes.mu.Unlock()
			return (dead < 4<<20) == tight && s.settled()
		})
		eventually(t, "one volume is left", func() bool { return len(volumeFolders(t, cfg)) == 1 })
		// What is small stays.
		last := volumeFolders(t, cfg)[0]
		one(t, s.Log(partition(3)), SetSynced, 0, 1, 1<<20)
		moveStart(t, s.Log(partition(3)), SetSynced, 1, 1)
		s.cleaner.rollUnused()
		if q := s.sets[SetSynced]; q.rolling || volumeName(SetSynced, q.active) != last {
			t.Errorf("tight %t: volume %d follows %s", tight, q.active, last)
		}
		closeStore(t, s)
	}
}

// TestVolumesOfSmallDisks: the active volumes, which give nothing back, are a part of
// the disk.
func TestVolumesOfSmallDisks(t *testing.T) {
	for _, c := range []struct{ total, configured, want int64 }{
		{0, 1 << 30, 1 << 30},
		{1 << 40, 1 << 30, 1 << 30},
		{640 << 20, 1 << 30, 40 << 20},
		{640 << 20, 1 << 20, 1 << 20},
		{100 << 20, 1 << 30, leastVolume},
	} {
		if got := (&disk{total: c.total}).volumeBytes(c.configured); got != c.want {
			t.Errorf("of a disk of %d bytes and %d configured: %d, want %d", c.total, c.configured, got, c.want)
		}
	}
}

// TestRollsAreQueuedOnce: while a commit hangs, no more and more rolls wait for it.
func TestRollsAreQueuedOnce(t *testing.T) {
	cfg := testConfig(t)
	held, release := make(chan struct{}), make(chan struct{})
	first := true
	cfg.stall = func(Set) {
		if first {
			first = false
			close(held)
			<-release
		}
	}
	s := open(t, cfg)
	l := s.Log(partition(0))
	outcome := make(chan error, 1)
	l.Append(Append{Set: SetSynced, Batches: []Batch{makeBatch(0, 1, 100, 0, 1000, 1)}, State: State{LogEnd: 1, Epochs: epochZero}}, func(err error) { outcome <- err })
	<-held
	q := s.sets[SetSynced]
	for range 100 {
		q.rollSoon(&operation{kind: rollVolume, force: true, offset: 1})
	}
	q.mu.Lock()
	n := len(q.queue)
	q.mu.Unlock()
	close(release)
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
	if n != 1 {
		t.Errorf("%d rolls wait, want 1", n)
	}
	eventually(t, "the roll", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.active == 2 && !q.rolling
	})
}
