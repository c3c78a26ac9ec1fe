package store

import (
	"testing"
	"time"
)

// TestQuarantineOfAnotherClock deletes a partition while the clock is a year ahead.
func TestQuarantineOfAnotherClock(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		clock := newTestClock()
		cfg := spaceConfig(t)
		cfg.Quarantine, cfg.Now = 300*time.Millisecond, clock.Now
		s := open(t, cfg)
		clock.move(365 * 24 * time.Hour)
		l := s.Log(partition(1))
		fill(t, l, SetSynced, 0, 4, 2000)
		deleteLog(t, l, SetSynced, 16)
		clock.move(-365 * 24 * time.Hour)
		if restarted {
			closeStore(t, s)
			s = open(t, cfg)
			one(t, s.Log(partition(2)), SetSynced, 0, 1, 100)
		}
		s.cleaner.poke()
		eventually(t, "the partition is forgotten", func() bool { return !s.knows(partition(1)) })
		closeStore(t, s)
	}
}
