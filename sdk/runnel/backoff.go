package runnel

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff yields growing pauses. The zero value is ready; it belongs to whoever
// guards it.
type backoff struct{ failures int }

const (
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
)

// next returns how long to pause after one more failure: 10 ms, doubled with
// each up to 1 s, and anything between half and all of it so that many clients
// do not come back at once.
func (b *backoff) next() time.Duration {
	pause := lastPause
	if b.failures < 7 {
		pause = min(firstPause<<b.failures, lastPause)
	}
	b.failures++
	return pause/2 + rand.N(pause/2+1)
}

func (b *backoff) reset() { b.failures = 0 }

// sleep waits for d, or for the end of ctx, whose cause it then returns.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
