package store

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxSuspects bounds the damaged batches that wait to be followed up; of more
	// the next read tells again.
	maxSuspects = 256
	// sealStep is how many bytes are read at a time before a volume is sealed; after
	// each the reader rests for as long as it took, to leave the machine to others.
	sealStep = 4 << 20
)

// suspect is a batch that does not pass its checks.
type suspect struct {
	log   *Log
	fault *ErrCorrupt
	// again does once more what met it.
	again func(context.Context) error
}

// scrubber is the goroutine that reads whole volumes: to record their checksums
// when they are sealed, at once when somebody meets damage there, and now and
// then to see whether they are still what was written.
type scrubber struct {
	store *Store
	// wake tells of work; it is never closed.
	wake chan struct{}
	stop context.CancelFunc
	done sync.WaitGroup

	// unrecorded counts the state records on their way that say of losses.
	unrecorded atomic.Int64

	mu    sync.Mutex
	seals []*volume
	// doubts are sealed volumes that could not be read; each comes once.
	doubts   []*volume
	suspects []suspect
}

func newScrubber(s *Store) *scrubber { return &scrubber{store: s, wake: make(chan struct{}, 1)} }

func (c *scrubber) start() {
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.done.Go(func() { c.run(ctx) })
}

// close waits until nothing is read any more; what is not sealed yet will be by
// the next process.
func (c *scrubber) close() {
	if c.stop != nil {
		c.stop()
	}
	c.done.Wait()
}

// poke tells the goroutine that there may be something to do.
func (c *scrubber) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// seal has a volume sealed that was closed after its last write.
func (c *scrubber) seal(v *volume) {
	c.store.volumes.mu.Lock()
	v.retired = true
	c.store.volumes.mu.Unlock()
	c.mu.Lock()
	c.seals = append(c.seals, v)
	c.mu.Unlock()
	c.poke()
}

// suspect has damage followed up that somebody met.
func (c *scrubber) suspect(s suspect) {
	c.mu.Lock()
	if len(c.suspects) < maxSuspects {
		c.suspects = append(c.suspects, s)
	}
	c.mu.Unlock()
	c.poke()
}

// doubt has a sealed volume verified that could not be read.
func (c *scrubber) doubt(v *volume) {
	c.mu.Lock()
	c.doubts = append(c.doubts, v)
	c.mu.Unlock()
	c.poke()
}

func (c *scrubber) run(ctx context.Context) {
	cfg := &c.store.cfg
	timer := time.NewTimer(cfg.ScrubEvery)
	if cfg.ScrubBytes == 0 {
		timer.Stop()
	}
	defer timer.Stop()
	for {
		c.urgent(ctx)
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
			started := time.Now()
			if !c.round(ctx) {
				return
			}
			took := time.Since(started)
			c.store.metrics.scrubTook.Set(took.Seconds())
			c.store.metrics.scrubEnded.SetToCurrentTime()
			timer.Reset(max(cfg.ScrubEvery-took, cfg.ScrubEvery/16))
		}
	}
}

// urgent does what does not wait for its turn.
func (c *scrubber) urgent(ctx context.Context) {
	for ctx.Err() == nil {
		c.mu.Lock()
		seals, suspects, doubts := c.seals, c.suspects, c.doubts
		c.seals, c.suspects, c.doubts = nil, nil, nil
		c.mu.Unlock()
		if c.unrecorded.Load() == 0 {
			if err := c.store.volumes.settle(); err != nil {
				c.store.cfg.Logger.Warn("what was set aside is looked at again by the next start", "error", err)
			}
		}
		if len(seals)+len(suspects)+len(doubts) == 0 {
			return
		}
		for _, v := range doubts {
			if err := c.verify(ctx, v, nil); IsDamagedVolume(err) {
				c.store.condemnLive(v, err)
			} else if ctx.Err() == nil {
				c.store.cfg.Logger.Warn("a volume could not be read, but what it holds is sound; it stays open until the process ends", "volume", v.number, "error", err)
			}
		}
		for _, s := range suspects {
			c.follow(ctx, s)
		}
		for _, v := range seals {
			err := c.store.volumes.seal(v, restful(ctx))
			switch {
			case err == nil || ctx.Err() != nil:
			case IsDamagedVolume(err):
				// To stop would help nobody: the next start would come to the same place.
				c.store.condemnLive(v, err)
			default:
				c.store.fail(err)
				return
			}
		}
	}
}

// restful is the pace of sealing.
func restful(ctx context.Context) pace {
	bytes, since := 0, time.Now()
	return func(n int) error {
		if bytes += n; bytes < sealStep {
			return nil
		}
		err := sleep(ctx, time.Since(since))
		bytes, since = 0, time.Now()
		return err
	}
}

// sleep returns after a while, or with [ErrClosed] when the store closes.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ErrClosed
	}
}

// follow verifies the volume that a batch was found damaged in, if it is sealed,
// and sets it aside where it is not what was written. Else, or if that is not the
// end of it, the batch is lost once it is damaged at a second look too: the first
// one may have been of a machine that had run out of something.
func (c *scrubber) follow(ctx context.Context, s suspect) {
	if v := c.store.volumes.sealed(s.fault.Volume); v != nil {
		if err := c.verify(ctx, v, nil); IsDamagedVolume(err) {
			c.store.condemnLive(v, err)
		}
	}
	err := s.again(ctx)
	var f *ErrCorrupt
	if errors.As(err, &f) {
		c.store.failLog(s.log, failure{reason: f.Error(), volume: f.Volume, lostTo: max(f.Next, f.Offset+1)})
		c.store.rollDamaged(f.Volume)
		return
	}
	if ctx.Err() != nil {
		return
	}
	c.store.cfg.Logger.Warn("a batch could not be read, but is not lost", "partition", s.log.id, "offset", s.fault.Offset,
		"volume", s.fault.Volume, "reason", s.fault.Error(), "now", err)
}

// rollDamaged has a volume sealed that is open for writing and has a damaged batch. The
// next start would open it for writing again, for which Badger cuts the last value log at
// the damage: all of the volume would have to be set aside. One that is sealed is only
// read, and has lost no more than that batch.
func (s *Store) rollDamaged(volume uint64) {
	for _, name := range allSets {
		q := s.sets[name]
		q.mu.Lock()
		written := q.active == volume
		q.mu.Unlock()
		if written {
			q.rollSoon(&operation{kind: rollVolume, force: true, offset: int64(volume)})
		}
	}
}

// round verifies all sealed volumes once; false when the store closes.
func (c *scrubber) round(ctx context.Context) bool {
	began, read := time.Now(), int64(0)
	limit := c.store.cfg.ScrubBytes
	wait := func(n int) error {
		c.store.metrics.scrubbed.Add(float64(n))
		read += int64(n)
		due := time.Duration(float64(read) / float64(limit) * float64(time.Second))
		if err := sleep(ctx, due-time.Since(began)); err != nil {
			return err
		}
		before := time.Now()
		c.urgent(ctx)
		began = began.Add(time.Since(before))
		return ctx.Err()
	}
	for _, number := range c.store.volumes.numbers() {
		v := c.store.volumes.sealed(number)
		if v == nil {
			continue
		}
		if err := c.verify(ctx, v, wait); IsDamagedVolume(err) {
			c.store.condemnLive(v, err)
		} else if err != nil && ctx.Err() == nil {
			c.store.cfg.Logger.Warn("a volume could not be verified", "volume", number, "error", err)
		}
		if ctx.Err() != nil {
			return false
		}
	}
	return true
}

// verify compares all files of a sealed volume with their checksums. A volume that
// has none, because an older release sealed it or because the list is damaged,
// gets them if its value logs, which nobody else verifies, are sound.
func (c *scrubber) verify(ctx context.Context, v *volume, wait pace) error {
	list, err := readChecksums(v.path)
	if err != nil {
		return err
	}
	if complete(list) {
		err = verifyFiles(ctx, v.path, list, true, wait)
	} else if err = verifyValueLogs(v.path, false); err == nil {
		if list, err = sumFiles(v.path, false, wait); err == nil {
			err = writeChecksums(v.path, list)
		}
	}
	if err != nil && c.store.volumes.sealed(v.number) != v {
		// It was removed meanwhile.
		return nil
	}
	return err
}

// tablesSound is how long the tables of a volume count as sound once they were
// compared with their checksums.
const tablesSound = 10 * time.Minute

// tableCheck is when the tables of a volume were compared last; mu is held meanwhile.
type tableCheck struct {
	mu   sync.Mutex
	last time.Time
}

// checkTables compares the tables of a sealed volume with their checksums, unless
// that was done a while ago. Badger takes a damaged block for the end of a table and
// tells nobody. In a span without gaps a batch is missed; a sparse one would lose what
// lies behind, for its readers, and for good once it is copied and its volume removed.
// A volume that is not sealed has no checksums yet; its tables have just been written.
func (s *Store) checkTables(v *volume) error {
	if s.volumes.sealed(v.number) != v {
		return nil
	}
	c := &v.tables
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.last.IsZero() && time.Since(c.last) < tablesSound {
		return nil
	}
	list, err := readChecksums(v.path)
	if err != nil {
		return err
	}
	for _, f := range list.GetFiles() {
		if filepath.Ext(f.GetName()) != ".sst" {
			continue
		}
		if err := verifyFile(v.path, f, false, nil); err != nil {
			return err
		}
	}
	c.last = time.Now()
	return nil
}

// sealed returns a volume that is sealed, or nil.
func (r *volumes) sealed(number uint64) *volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.byNumber[number]; v != nil && v.sealed {
		return v
	}
	return nil
}

// unsealed returns a volume that is not sealed, or nil.
func (r *volumes) unsealed(number uint64) *volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.byNumber[number]; v != nil && !v.sealed {
		return v
	}
	return nil
}

// condemnLive sets a sealed volume aside that was found damaged while the store is
// open. What the store knows of partitions it holds in memory, so that nothing is
// lost but batches.
func (s *Store) condemnLive(v *volume, cause error) {
	c, err := s.volumes.condemn(v, cause)
	if err != nil {
		s.cfg.Logger.Error("a volume is damaged, but could not be set aside", "volume", v.number, "cause", cause, "error", err)
		return
	}
	if c == nil {
		return
	}
	s.mu.Lock()
	logs := make([]*Log, 0, len(s.logs))
	for _, l := range s.logs {
		logs = append(logs, l)
	}
	s.mu.Unlock()
	for _, l := range logs {
		l.mu.Lock()
		f, lost := s.lossOf(l)
		stored := l.stateVolume == v.number && l.fault == nil
		l.mu.Unlock()
		switch {
		case lost:
			s.failLog(l, f)
		case stored:
			s.rewriteState(l)
		}
	}
	c.known.Store(true)
	s.scrub.poke()
}

// noteCorruption counts errors that mean damage, and has it followed up with
// another look, at what again reads.
func (l *Log) noteCorruption(err error, again func(context.Context) error) {
	var corrupt *ErrCorrupt
	if !errors.As(err, &corrupt) {
		return
	}
	l.store.metrics.corrupt.Inc()
	if v := l.store.volumes.unsealed(corrupt.Volume); v != nil && corrupt.file {
		l.store.volumes.suspect(v, corrupt.Error())
	}
	if corrupt.Volume != 0 && l.Err() == nil {
		l.store.scrub.suspect(suspect{log: l, fault: corrupt, again: again})
	}
}
