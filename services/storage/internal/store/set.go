package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

func (s Set) valid() bool { return slices.Contains(allSets, s) }

// operationKind says what the commit goroutine has to do.
type operationKind uint8

const (
	appendBatches operationKind = iota
	changeLog
	truncateLog
	rollVolume
)

// operation is what waits in a set's queue.
type operation struct {
	kind operationKind
	// log is nil for rollVolume, and for a changeLog that is about none or several.
	log    *Log
	append Append
	// offset is where truncateLog cuts. For rollVolume, if it is not 0, it is the
	// number of the volume to replace, which may have been replaced meanwhile.
	offset int64
	// restart makes truncateLog drop all of the log, and offset is 0.
	restart bool
	// follows is the log's end before the batches of appendBatches.
	follows int64
	// change is what changeLog does.
	change func(*writer, *Log) (bool, error)
	// force makes rollVolume replace a volume that is not due.
	force bool
	done  func(error)
	// err is why the operation was refused; nothing of it is written.
	err error
	// bytes are those that count against the queue and the group.
	bytes int
	// cost is what it takes of a transaction, but for that of the batches and of
	// the state record, which a group writes once for each log.
	cost, batches, state cost
}

func (o *operation) total() cost {
	total := o.cost
	total.add(o.batches)
	total.add(o.state)
	return total
}

// measure says what an operation takes of a transaction; its log has that many
// spans.
func (o *operation) measure(spans int) {
	const (
		record    = sumBytes + 128
		perSpan   = 64
		perEpoch  = 24
		perBatch  = 64
		timestamp = sumBytes + 8
	)
	for i := range o.append.Batches {
		n := len(o.append.Batches[i].Bytes)
		o.bytes += n
		o.batches.addEntry(offsetKeyBytes, n)
	}
	for range o.bytes>>timeIndexShift + 1 {
		o.cost.addEntry(offsetKeyBytes, timestamp)
	}
	state := record + perSpan*(spans+1) + perEpoch*(len(o.append.State.Epochs)+maxTruncations)
	// It counts against both limits, as its size may end on either side.
	o.state.addEntry(partitionKeyBytes, min(state, valueThreshold-1))
	o.state.values += int64(state)
	o.bytes += record
	for i := range o.append.Producers {
		n := record + perBatch*len(o.append.Producers[i].Batches)
		o.cost.addEntry(offsetKeyBytes, n)
		o.bytes += n
	}
	for range o.append.RemovedProducers {
		o.cost.addEntry(offsetKeyBytes, record)
		o.bytes += record
	}
}

// set is a sequence of volumes with its queue and three goroutines: one commits,
// one opens the next volume before it is needed and seals what is full, and one
// sends to the disk what was written.
type set struct {
	store   *Store
	name    Set
	metrics setMetrics

	mu sync.Mutex
	// arrived tells the commit goroutine of operations and of closing.
	arrived sync.Cond
	// room tells those who wait to append that the queue has become shorter.
	room  sync.Cond
	queue []*operation
	// queued are the bytes of the queue and of the group being committed.
	queued int
	// started says that the goroutines run.
	started bool
	closing bool

	// active is the number of the volume that takes appends; 0 for none.
	active uint64
	// since is when the first append came to it; zero while it is empty.
	since time.Time
	// rolling says that a roll is queued which nobody waits for.
	rolling bool
	// wanted asks for a standby, the volume that takes over when active is full.
	wanted  bool
	standby *opened
	// retired are to be sealed.
	retired []*volume
	// written is what has to be sent to the disk.
	written writeback

	// flushes tells the third goroutine that there is something to send to the disk;
	// close closes it.
	flushes chan struct{}
	// wake tells the second goroutine that there is something to do; close closes
	// it.
	wake chan struct{}

	commits, upkeep sync.WaitGroup
	writer          writer
}

func newSet(s *Store, name Set) *set {
	q := &set{store: s, name: name, metrics: s.metrics.of(name), wake: make(chan struct{}, 1), flushes: make(chan struct{}, 1)}
	q.arrived.L, q.room.L = &q.mu, &q.mu
	q.writer = newWriter(q)
	return q
}

// push queues an operation once there is room.
func (s *set) push(o *operation) {
	s.mu.Lock()
	for s.queued > 0 && s.queued+o.bytes > s.store.cfg.QueueBytes && !s.closing {
		s.room.Wait()
	}
	if s.closing {
		s.mu.Unlock()
		// Callers may hold what done wants, so it must not be called from here.
		s.store.late.Go(func() { o.finish(ErrClosed) })
		return
	}
	if !s.started {
		s.started = true
		s.commits.Go(s.run)
		s.upkeep.Go(s.maintain)
		s.upkeep.Go(s.flush)
	}
	s.queue = append(s.queue, o)
	s.queued += o.bytes
	s.store.disk.queued.Add(int64(o.bytes))
	s.metrics.queue.Set(float64(s.queued))
	if len(s.queue) == 1 {
		s.arrived.Signal()
	}
	s.mu.Unlock()
}

// roll seals the active volume and returns once another one takes appends.
func (s *set) roll(ctx context.Context) error {
	outcome := make(chan error, 1)
	s.push(&operation{kind: rollVolume, force: true, done: func(err error) { outcome <- err }})
	select {
	case err := <-outcome:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rollSoon queues a roll that nobody waits for, unless there is one already: rolls
// have no bytes that would bound the queue.
func (s *set) rollSoon(o *operation) {
	s.mu.Lock()
	pending := s.rolling
	s.rolling = true
	s.mu.Unlock()
	if pending {
		return
	}
	o.done = func(error) {
		s.mu.Lock()
		s.rolling = false
		s.mu.Unlock()
	}
	s.push(o)
}

func (s *set) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// finish tells an operation's outcome.
func (o *operation) finish(err error) {
	if o.err != nil {
		err = o.err
	}
	o.done(err)
	if o.log != nil {
		o.log.complete()
	}
}

// close waits until everything that is queued is committed and everything that
// is retired is sealed. Nothing is taken from then on.
func (s *set) close() {
	s.mu.Lock()
	s.closing = true
	s.arrived.Broadcast()
	s.room.Broadcast()
	s.mu.Unlock()
	s.commits.Wait()
	close(s.wake)
	close(s.flushes)
	s.upkeep.Wait()
	if s.standby != nil {
		s.standby.files.close()
	}
}

// await waits for operations; false says that there will be none any more.
func (s *set) await() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 && !s.closing {
		s.arrived.Wait()
	}
	return len(s.queue) > 0
}

// take moves a group from the queue to buf: appends or changes as far as one
// transaction takes them, at least one, or one operation of another kind.
func (s *set) take(buf []*operation, limits transactionLimits) []*operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	group := s.store.groups.Add(1)
	var total cost
	bytes, n := 0, 0
	for _, o := range s.queue {
		alone := o.kind != appendBatches && o.kind != changeLog
		if n > 0 && (alone || o.kind != s.queue[0].kind) {
			break
		}
		total.add(o.cost)
		total.add(o.batches)
		if o.log != nil && o.log.group != group {
			o.log.group = group
			total.add(o.state)
		}
		bytes += o.bytes
		if n > 0 && (bytes > s.store.cfg.GroupBytes || !limits.admit(total)) {
			break
		}
		n++
		if alone {
			break
		}
	}
	buf = append(buf, s.queue[:n]...)
	clear(s.queue[:n])
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return buf
}

// run is the commit goroutine. What arrives while it commits a group becomes the
// next one.
func (s *set) run() {
	defer s.writer.close()
	var group []*operation
	for s.await() {
		err := s.writer.ready()
		group = s.take(group[:0], s.writer.limits)
		if err == nil {
			err = s.writer.execute(group)
		}
		bytes := 0
		for _, o := range group {
			o.finish(err)
			bytes += o.bytes
		}
		clear(group)
		s.mu.Lock()
		s.queued -= bytes
		s.store.disk.queued.Add(-int64(bytes))
		s.metrics.queue.Set(float64(s.queued))
		s.room.Broadcast()
		s.mu.Unlock()
	}
}

// poke tells the second goroutine that there is something to do.
func (s *set) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// maintain is the second goroutine.
func (s *set) maintain() {
	// Nobody cares whether a volume is sealed a little later than configured.
	age := time.NewTicker(max(s.store.cfg.VolumeAge/16, 100*time.Millisecond))
	defer age.Stop()
	for {
		select {
		case _, open := <-s.wake:
			if !open {
				s.sealRetired()
				return
			}
		case <-age.C:
		}
		if err := s.prepare(); err != nil {
			s.store.fail(err)
			continue
		}
		s.sealRetired()
	}
}

// prepare opens a standby if one is wanted, and has a volume replaced that is
// old enough though nobody appends.
func (s *set) prepare() error {
	s.mu.Lock()
	old := s.oldLocked()
	create := (s.wanted || old) && s.standby == nil && !s.closing && s.store.failure() == nil
	s.mu.Unlock()
	if create && !s.store.disk.ample() {
		// The commit goroutine asks again.
		s.mu.Lock()
		s.wanted = false
		s.mu.Unlock()
		return nil
	}
	if create {
		next, err := s.create()
		if noRoom(err) {
			// The set is closing.
			return nil
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.wanted = false
		// The commit goroutine may have been unable to wait. Volumes are written in
		// the order of their numbers.
		if s.standby == nil && next.volume.number > s.active {
			s.standby = next
		} else {
			next.files.close()
			s.retired = append(s.retired, next.volume)
		}
		s.mu.Unlock()
	}
	if old {
		s.rollSoon(&operation{kind: rollVolume})
	}
	return nil
}

// create makes the next volume of the set, once there is space for it.
func (s *set) create() (*opened, error) {
	var v *volume
	for v == nil {
		if err := s.store.disk.await(s.store.openSpace(nil), s.isClosing); err != nil {
			return nil, fmt.Errorf("create a volume: %w", err)
		}
		created, err := s.store.volumes.create(s.name, false)
		if err != nil && !noRoom(err) {
			return nil, err
		}
		v = created
	}
	files, err := watchLogFiles(v.path, v.set.synced(), &s.store.cfg, s.store.disk, v.db.MaxVersion())
	if err != nil {
		return nil, fmt.Errorf("create volume %d: %w", v.number, err)
	}
	return &opened{volume: v, files: files}, nil
}

// oldLocked says whether the active volume has had its time.
func (s *set) oldLocked() bool {
	return !s.since.IsZero() && time.Since(s.since) >= s.store.cfg.VolumeAge
}

// sealRetired seals what has taken its last append.
func (s *set) sealRetired() {
	s.mu.Lock()
	list := s.retired
	s.retired = nil
	s.mu.Unlock()
	for i, v := range list {
		if s.store.disk.has(s.store.cfg.memTableBytes+tableSpace) != nil {
			// Badger turns what it has in memory into a table; a later call seals it.
			s.mu.Lock()
			s.retired = append(list[i:], s.retired...)
			s.mu.Unlock()
			return
		}
		if err := s.store.volumes.retire(v); err != nil {
			s.store.fail(err)
			return
		}
		s.store.scrub.seal(v)
	}
}

// flush is the third goroutine. It sends to the disk what the commit goroutine
// has written, also while the second one seals a volume, which takes seconds.
func (s *set) flush() {
	for range s.flushes {
		s.mu.Lock()
		w := s.written
		s.written = writeback{}
		s.mu.Unlock()
		w.start()
	}
}

// flushSoon hands a part of a file to the third goroutine.
func (s *set) flushSoon(w writeback) {
	s.mu.Lock()
	s.written = s.written.with(w)
	s.mu.Unlock()
	select {
	case s.flushes <- struct{}{}:
	default:
	}
}
