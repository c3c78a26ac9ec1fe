package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

const (
	// smallVolumes of a set, each below VolumeBytes/smallFraction, are merged.
	smallVolumes  = 8
	smallFraction = 8
	// retryFirst is how long a volume is left alone that could not be cleaned; the
	// time doubles with each failure up to retryMost.
	retryFirst = time.Second
	retryMost  = 10 * time.Minute
	// copiesTogether bounds the copies that are made durable together.
	copiesTogether = 1024
)

// cleaner gives disk space back. Its goroutine removes sealed volumes that nobody
// needs any more, see [cleaner.remove]; empties those of which less than half is
// needed, and very small ones, by copying the rest; and forgets partitions that
// were deleted, see [cleaner.bury].
type cleaner struct {
	store  *Store
	copier *copier
	// releasing paces the removal of files.
	releasing *pacer

	// wake tells of work.
	wake chan struct{}
	done sync.WaitGroup
	stop context.CancelFunc

	// retries are the volumes that could not be cleaned. They belong to the
	// goroutine.
	retries map[uint64]retry

	// mu guards graveyard, the logs of partitions that are deleted and not
	// forgotten yet, with since when the process knows. It is taken after Log.mu.
	mu        sync.Mutex
	graveyard map[*Log]time.Time
}

type retry struct {
	at    time.Time
	delay time.Duration
}

func newCleaner(s *Store) *cleaner {
	return &cleaner{
		store: s, copier: newCopier(s), releasing: newPacer(releaseRate), wake: make(chan struct{}, 1), stop: func() {},
		retries: make(map[uint64]retry), graveyard: make(map[*Log]time.Time),
	}
}

// start starts the goroutine.
func (c *cleaner) start() {
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	c.poke()
	c.done.Go(func() { c.run(ctx) })
}

// close waits for the goroutine. What it was about to copy stays where it is.
func (c *cleaner) close() {
	c.stop()
	c.done.Wait()
	c.copier.close()
}

// poke tells the goroutine that there may be work.
func (c *cleaner) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cleaner) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		for c.pass(ctx) {
		}
		if ctx.Err() != nil || c.store.failure() != nil {
			return
		}
		timer.Reset(c.patience())
	}
}

// patience is how long the goroutine may sleep if nobody wakes it.
func (c *cleaner) patience() time.Duration {
	// Nobody tells that space has become tight.
	wait := time.Minute
	for _, r := range c.retries {
		wait = min(wait, time.Until(r.at))
	}
	now := c.store.cfg.Now()
	for _, l := range c.graves() {
		l.mu.Lock()
		if left := l.quarantineLocked(now); left > 0 {
			wait = min(wait, left)
		}
		l.mu.Unlock()
	}
	return max(wait, 10*time.Millisecond)
}

// pass does what there is to do, and reports whether there may be more.
func (c *cleaner) pass(ctx context.Context) bool {
	if ctx.Err() != nil || c.store.failure() != nil {
		return false
	}
	if err := c.bury(ctx); err != nil {
		return false
	}
	if err := c.copier.sealUnused(); err != nil {
		return false
	}
	c.rollUnused()
	dead, victims := c.choose(c.retries)
	if len(dead) == 0 && len(victims) == 0 {
		return false
	}
	started := time.Now()
	defer func() { c.store.metrics.cleaningSeconds.Add(time.Since(started).Seconds()) }()
	if len(dead) == 0 {
		c.store.metrics.cleanings.Inc()
		for _, v := range victims {
			err := c.empty(ctx, v)
			if err == nil && v.space.spans.Load() == 0 {
				dead = append(dead, v)
				continue
			}
			if ctx.Err() != nil || errors.Is(err, ErrClosed) || c.store.failure() != nil {
				return false
			}
			c.postpone(v, err)
		}
	}
	if len(dead) == 0 {
		return true
	}
	return c.remove(ctx, dead) == nil
}

// postpone leaves a volume alone for a while.
func (c *cleaner) postpone(v *volume, err error) {
	r := c.retries[v.number]
	r.delay = min(max(2*r.delay, retryFirst), retryMost)
	r.at = time.Now().Add(r.delay)
	c.retries[v.number] = r
	if err != nil {
		c.store.cfg.Logger.Warn("a volume could not be cleaned; it is tried again", "volume", v.number, "in", r.delay, "error", err)
	}
}

// rollUnused replaces active volumes of which nearly nothing is needed, such as
// after a deletion, if they are large: they are cleaned once they are sealed. Where
// space is tight it is enough that they are due for cleaning, and give back more
// than the next volume takes.
func (c *cleaner) rollUnused() {
	tight, fresh := c.store.disk.tight(), c.store.openSpace(nil)
	for _, name := range allSets {
		set := c.store.sets[name]
		set.mu.Lock()
		active := set.active
		set.mu.Unlock()
		var due bool
		c.store.volumes.mu.Lock()
		if v := c.store.volumes.byNumber[active]; v != nil && !v.sealed {
			size, needed := v.space.size(), v.space.needed()
			due = size >= c.store.cfg.VolumeBytes/2 && needed < size/8 || tight && 2*needed < size && size-needed > fresh
		}
		c.store.volumes.mu.Unlock()
		// The commit goroutine must not wait for space that others give back behind it.
		if due && c.store.disk.has(fresh) == nil {
			// It counts only for the volume that it is about.
			set.rollSoon(&operation{kind: rollVolume, force: true, offset: int64(active)})
		}
	}
}

// choose returns the sealed volumes that can be removed as they are and, if there
// are none, those to be emptied: one of which less than half is needed, the one
// with the smallest part first, or many that are small. Some wait to be tried
// again, and those of sets that can afford to wait wait until less is left to copy.
func (c *cleaner) choose(retries map[uint64]retry) (dead, victims []*volume) {
	r := c.store.volumes
	now := time.Now()
	var emptiest *volume
	var part float64
	small := make(map[Set][]*volume)
	spare := c.store.disk.spare()
	r.mu.Lock()
	defer r.mu.Unlock()
	due := c.dueLocked(spare)
	for _, v := range r.byNumber {
		if !v.sealed || retries[v.number].at.After(now) {
			continue
		}
		size, needed := v.space.size(), v.space.needed()
		switch {
		// Many state records are worth their place: writing them anew would fill the
		// next volume with them, and then the one after it.
		case v.space.spans.Load() == 0 && (2*needed <= size || needed <= c.store.cfg.VolumeBytes/smallFraction):
			dead = append(dead, v)
		case 2*needed < size && due[v.set]:
			if p := float64(needed) / float64(size); emptiest == nil || p < part {
				emptiest, part = v, p
			}
		}
		if size < c.store.cfg.VolumeBytes/smallFraction {
			small[v.set] = append(small[v.set], v)
		}
	}
	if len(dead) > 0 || emptiest == nil {
		for _, list := range small {
			if len(dead) == 0 && len(list) >= smallVolumes {
				slices.SortFunc(list, func(a, b *volume) int { return cmp.Compare(a.number, b.number) })
				return nil, list
			}
		}
		return dead, nil
	}
	return nil, []*volume{emptiest}
}

// dueLocked returns the sets whose volumes are emptied now; volumes.mu is held.
// What retention drops soon need not be copied before. So a set waits while its dead
// bytes are fewer than its live ones by a volume, which is about what retention drops
// at once, and those of all sets fewer than what the disk can spare. A set takes
// twice its live bytes and a volume at most, as if none waited.
func (c *cleaner) dueLocked(spare int64) map[Set]bool {
	type bytes struct{ live, dead int64 }
	sets := make(map[Set]bytes)
	dead := int64(0)
	for _, v := range c.store.volumes.byNumber {
		b := sets[v.set]
		needed := v.space.needed()
		b.live += needed
		b.dead += v.space.size() - needed
		dead += v.space.size() - needed
		sets[v.set] = b
	}
	due := make(map[Set]bool)
	for set, b := range sets {
		due[set] = dead >= spare || b.dead > b.live-c.store.cfg.VolumeBytes
	}
	return due
}

// empty copies what spans name in a volume, and lets the logs go on with the
// copies.
func (c *cleaner) empty(ctx context.Context, v *volume) error {
	failpoint.Hit("clean/begin")
	var switches sync.WaitGroup
	defer switches.Wait()
	var waiting []*copied
	bytes := int64(0)
	// Copies of many logs are made durable together.
	flush := func() error {
		if err := c.copier.flush(waiting...); err != nil {
			for _, one := range waiting {
				one.release()
			}
			waiting, bytes = nil, 0
			return err
		}
		failpoint.Hit("clean/after-copy")
		for _, one := range waiting {
			c.store.metrics.cleanedBytes.Add(float64(spanBytes(one.to)))
			switches.Add(1)
			one.log.switchLater(one, nil, func(bool, error) { switches.Done() })
		}
		waiting, bytes = nil, 0
		return nil
	}
	for _, l := range c.store.logsWhere(func(l *Log) bool {
		return slices.ContainsFunc(l.durable.spans, func(s span) bool { return s.volume == v.number })
	}) {
		if !l.copying.TryLock() {
			// It is being compacted, which may take a while and may do the same.
			continue
		}
		all := l.snapshot(maxOffset, func(s span) bool { return s.volume == v.number })
		var err error
		for from := all; len(all.spans) > 0 && err == nil; from = all {
			n := adjacent(all.spans)
			from.spans, all.spans = all.spans[:n], all.spans[n:]
			var one *copied
			if one, err = c.copier.write(ctx, v.set, from, copyRules{}); err == nil {
				waiting = append(waiting, one)
				bytes += spanBytes(one.to)
			}
		}
		l.copying.Unlock()
		if err != nil {
			return errors.Join(err, flush())
		}
		if bytes >= int64(c.store.cfg.GroupBytes) || len(waiting) >= copiesTogether {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// adjacent returns how many of some spans follow each other.
func adjacent(spans []span) int {
	n := min(len(spans), 1)
	for n > 0 && n < len(spans) && spans[n].first == spans[n-1].end {
		n++
	}
	return n
}

func spanBytes(spans []span) int64 {
	var total int64
	for _, s := range spans {
		total += s.bytes
	}
	return total
}

// logsWhere returns the logs that a condition holds for; their mu is held.
func (s *Store) logsWhere(holds func(*Log) bool) []*Log {
	s.mu.Lock()
	all := make([]*Log, 0, len(s.logs))
	for _, l := range s.logs {
		all = append(all, l)
	}
	s.mu.Unlock()
	return slices.DeleteFunc(all, func(l *Log) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !holds(l)
	})
}
