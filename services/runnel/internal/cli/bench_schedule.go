package cli

import (
	"context"
	"time"
)

// schedule says when each record is due. It is an open loop: a late answer does
// not put off the records after it, and their latency counts from when they
// were due. A closed loop would leave out just those records that a stall would
// have delayed (coordinated omission).
type schedule struct {
	start time.Time
	// rate is in records per second; 0 means as fast as possible.
	rate float64
}

// newSchedule starts a schedule of so many records per second; 0 means as fast
// as possible.
func newSchedule(start time.Time, rate float64) schedule {
	return schedule{start: start, rate: rate}
}

func (s schedule) open() bool { return s.rate > 0 }

// due returns when record i, from 0, is to be sent.
func (s schedule) due(i int64) time.Time {
	return s.start.Add(time.Duration(float64(i) / s.rate * float64(time.Second)))
}

// wait returns the time from which the latency of record i counts: in an open
// loop when it was due, after having waited for that time; otherwise now.
func (s schedule) wait(ctx context.Context, i int64) (time.Time, error) {
	if !s.open() {
		return time.Now(), ctx.Err()
	}
	due := s.due(i)
	early := time.Until(due)
	if early <= 0 {
		return due, ctx.Err()
	}
	timer := time.NewTimer(early)
	defer timer.Stop()
	select {
	case <-timer.C:
		return due, nil
	case <-ctx.Done():
		return due, ctx.Err()
	}
}
