package store

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// timeIndexShift makes the distance of entries in the time index of a partition:
// 1 MiB of batches.
const timeIndexShift = 20

// opened is a volume that is open for writing, with what looks after its files.
type opened struct {
	volume *volume
	files  *logFiles
}

// writer writes the groups of a set. It belongs to the set's commit goroutine.
type writer struct {
	set   *set
	store *Store

	// opened takes the groups; its volume is nil before the first.
	opened
	// bytes are those of the batches in it, and records those of all else.
	bytes, records int64
	// version is that of the latest transaction in the volume.
	version uint64
	limits  transactionLimits

	dog watchdog

	// What one group needs, kept for the next.
	txn      *badger.Txn
	entries  []badger.Entry
	keys     []byte
	values   []byte
	touched  []*Log
	progress diskv1.PartitionProgress
	// logged and keyed are the bytes that the transaction at hand adds to the value
	// log, and at most to what Badger holds in memory; recorded are those of its
	// records, and deletes counts the keys that it deletes.
	logged, keyed, recorded int64
	deletes                 int
	// uses are what volumes hold less once it is committed.
	uses []use
}

func newWriter(s *set) writer {
	return writer{set: s, store: s.store, dog: watchdog{
		set: s.name, logger: s.store.cfg.Logger, metrics: s.metrics, stalls: &s.store.stalls, fail: func(err error) { s.store.fail(err) },
	}}
}

// close gives the volume up to whoever closes all volumes.
func (w *writer) close() {
	if w.files != nil {
		w.files.close()
	}
}

// ready sees to it that a volume takes the next group: the latest of the set, a
// new one, or the standby where the latest is full. It does not wait for a
// standby: a volume may become larger than configured.
func (w *writer) ready() error {
	if err := w.store.failure(); err != nil {
		return err
	}
	if w.volume == nil {
		if err := w.open(); err != nil {
			return w.store.fail(err)
		}
	}
	limit := w.store.cfg.VolumeBytes
	s := w.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.bytes+w.records >= limit || s.oldLocked() {
		w.replaceLocked()
	}
	if w.bytes+w.records >= limit-limit/4 && s.standby == nil && !s.wanted {
		s.wanted = true
		s.poke()
	}
	return nil
}

// open takes on the latest volume of the set if it is not sealed, or creates one.
func (w *writer) open() error {
	if err := w.store.beginWriting(); err != nil {
		return err
	}
	var next *opened
	if v := w.store.volumes.latest(w.set.name); v != nil {
		if !w.store.recovered[v.number] {
			if err := w.store.disk.await(w.store.openSpace(v), w.set.isClosing); err != nil {
				return err
			}
			if err := w.store.volumes.activate(v); err != nil {
				return err
			}
			failpoint.Hit("start/after-first-append-opens")
		}
		files, err := watchLogFiles(v.path, v.set.synced(), &w.store.cfg, w.store.disk, v.db.MaxVersion())
		if err != nil {
			return fmt.Errorf("open volume %d for writing: %w", v.number, err)
		}
		next = &opened{volume: v, files: files}
	} else {
		created, err := w.set.create()
		if err != nil {
			return err
		}
		next = created
	}
	w.set.mu.Lock()
	defer w.set.mu.Unlock()
	w.adoptLocked(next)
	return nil
}

// adoptLocked makes a volume that is open for writing the active one. The set's
// mu is held.
func (w *writer) adoptLocked(o *opened) {
	// What of it is dead batches and what records does not matter.
	w.opened, w.bytes = *o, o.volume.space.live.Load()
	w.records = max(o.volume.space.written.Load()-w.bytes, 0)
	w.version = o.volume.db.MaxVersion()
	w.limits = limitsOf(o.volume.db, &w.store.cfg)
	w.set.active = o.volume.number
	w.set.since = time.Time{}
	if w.bytes > 0 {
		w.set.since = o.volume.created
	}
}

// replaceLocked makes the standby the active volume, if there is one, and hands
// the full one over to be sealed. The set's mu is held.
func (w *writer) replaceLocked() {
	s := w.set
	if s.standby == nil {
		return
	}
	w.files.close()
	s.retired = append(s.retired, w.volume)
	s.written = writeback{}
	w.adoptLocked(s.standby)
	s.standby = nil
	s.metrics.rolls.Inc()
	s.poke()
	failpoint.Hit("roll/after-replace")
}

// execute does what a group asks for. Its error is fatal.
func (w *writer) execute(group []*operation) error {
	var err error
	switch first := group[0]; first.kind {
	case truncateLog:
		err = w.truncate(first)
	case rollVolume:
		if first.offset == 0 || first.offset == int64(w.volume.number) {
			err = w.roll(first.force)
		}
	case changeLog:
		err = w.change(group)
	default:
		err = w.append(group)
	}
	if err != nil {
		return w.store.fail(err)
	}
	return nil
}

// roll replaces the active volume if it is due, or by force: then without a
// standby if need be. An empty volume stays.
func (w *writer) roll(force bool) error {
	s := w.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.bytes+w.records == 0 || !force && !s.oldLocked() {
		return nil
	}
	if s.standby == nil && force {
		s.mu.Unlock()
		next, err := s.create()
		s.mu.Lock()
		if err != nil {
			return err
		}
		if s.standby == nil {
			s.standby = next
		} else {
			// The other goroutine was faster.
			next.files.close()
			s.retired = append(s.retired, next.volume)
		}
	}
	w.replaceLocked()
	return nil
}

// append writes appends in one transaction, with one state record for each log.
func (w *writer) append(group []*operation) error {
	bytes := 0
	if err := w.clearStale(group); err != nil {
		return err
	}
	if err := w.syncBefore(group); err != nil {
		return err
	}
	if len(group) == 1 && !w.limits.admit(group[0].total()) {
		if err := w.stage(group[0]); err != nil {
			return err
		}
	}
	w.begin(sumOf(group).entries)
	defer w.end()
	for _, o := range group {
		if o.err != nil {
			continue
		}
		if err := w.apply(o); err != nil {
			return err
		}
		for i := range o.append.Batches {
			bytes += len(o.append.Batches[i].Bytes)
		}
	}
	if err := w.finish(int64(bytes)); err != nil {
		return err
	}
	w.set.metrics.groupBytes.Observe(float64(bytes))
	w.set.metrics.groupAppends.Observe(float64(len(group)))
	return nil
}

// finish writes the state of all logs that the transaction touches, commits and
// publishes it; bytes are those of the batches in it.
func (w *writer) finish(bytes int64) error {
	for _, l := range w.touched {
		if err := w.writeState(l); err != nil {
			return err
		}
	}
	failpoint.Hit("append/before-commit")
	if err := w.commit(); err != nil {
		return err
	}
	failpoint.Hit("append/after-commit")
	w.publish(bytes)
	return nil
}

// syncBefore brings to the disk what logs have in sets that do not sync, before a
// set that does takes what follows it: after a crash of the machine a log ends
// before its first hole, whatever comes behind.
func (w *writer) syncBefore(group []*operation) error {
	if !w.set.name.synced() {
		return nil
	}
	for _, o := range group {
		if len(o.append.Batches) == 0 {
			continue
		}
		o.log.mu.Lock()
		spans := o.log.durable.spans
		last := uint64(0)
		if n := len(spans); n > 0 {
			last = spans[n-1].volume
		}
		o.log.mu.Unlock()
		if last == 0 || last == w.volume.number {
			continue
		}
		if !w.store.volumes.durable(last) {
			// It is all of them or one; logs change their set rarely, and together.
			return w.store.volumes.syncWritable()
		}
	}
	return nil
}

func sumOf(group []*operation) cost {
	var total cost
	for _, o := range group {
		total.add(o.total())
	}
	return total
}

// stage writes all batches of an append that no transaction can take, in several
// ones and without state: they are there, but in no span. The append's own
// transaction then makes them part of the log, all at once. Where the process
// dies before, they are removed when the store is opened.
func (w *writer) stage(o *operation) error {
	if o.err != nil {
		return nil
	}
	o.log.mu.Lock()
	o.err = o.log.followsLocked(o)
	o.log.mu.Unlock()
	if o.err != nil {
		return nil
	}
	var total cost
	w.begin(int64(len(o.append.Batches)))
	defer w.end()
	for i := range o.append.Batches {
		b := &o.append.Batches[i]
		var c cost
		c.addEntry(offsetKeyBytes, len(b.Bytes))
		total.add(c)
		if !w.limits.admit(total) {
			if err := w.commit(); err != nil {
				return err
			}
			failpoint.Hit("stage/after-part")
			w.end()
			w.begin(int64(len(o.append.Batches) - i))
			total = c
		}
		if err := w.putBatch(o.log.id, b); err != nil {
			return err
		}
	}
	o.batches = cost{}
	failpoint.Hit("stage/before-last-part")
	if err := w.commit(); err != nil {
		return err
	}
	failpoint.Hit("stage/after-last-part")
	return nil
}

// begin starts a transaction of at most that many entries.
func (w *writer) begin(entries int64) {
	if int64(cap(w.entries)) < entries {
		w.entries = make([]badger.Entry, 0, entries)
	}
	w.txn = w.volume.db.NewTransactionAt(math.MaxUint64, true)
}

// end gives back what the transaction needed. Badger keeps none of it.
func (w *writer) end() {
	w.txn.Discard()
	w.txn = nil
	clear(w.entries)
	w.entries = w.entries[:0]
	w.keys, w.values = w.keys[:0], w.values[:0]
	for i, l := range w.touched {
		l.grouped = false
		w.touched[i] = nil
	}
	w.touched = w.touched[:0]
	w.uses = w.uses[:0]
	w.logged, w.keyed, w.recorded, w.deletes = 0, 0, 0, 0
}

// key adds a key to the buffer of the transaction, which stays where it is when
// the buffer grows.
func (w *writer) key(k kind, id PartitionID, offset int64) []byte {
	start := len(w.keys)
	if k == kindState || k == kindProgress {
		w.keys = appendPartitionKey(w.keys, k, id)
	} else {
		w.keys = appendOffsetKey(w.keys, k, id, offset)
	}
	return w.keys[start:len(w.keys):len(w.keys)]
}

func (w *writer) put(key, value []byte) error {
	// The transaction keeps the pointer, so the slice must not move.
	w.entries = append(w.entries, badger.Entry{Key: key, Value: value})
	if kind(key[0]) != kindBatch {
		w.recorded += int64(len(key) + len(value))
	}
	var c cost
	c.addEntry(len(key), len(value))
	w.logged += c.values
	w.keyed += c.size + memEntry
	if err := w.txn.SetEntry(&w.entries[len(w.entries)-1]); err != nil {
		return fmt.Errorf("put together a transaction: %w", err)
	}
	return nil
}

func (w *writer) delete(key []byte) error {
	w.deletes++
	w.keyed += int64(len(key)) + memEntry
	if err := w.txn.Delete(key); err != nil {
		return fmt.Errorf("put together a transaction: %w", err)
	}
	return nil
}

func (w *writer) putBatch(id PartitionID, b *Batch) error {
	return w.put(w.key(kindBatch, id, b.LastOffset), b.Bytes)
}

// apply adds an append to the transaction and to its log.
func (w *writer) apply(o *operation) error {
	l := o.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.err = l.followsLocked(o); o.err != nil {
		return nil
	}
	batches := o.append.Batches
	staged := o.batches == cost{}
	for i := range batches {
		b := &batches[i]
		s := l.extendLocked(w.volume, &o.append, b)
		if l.unindexed >= 1<<timeIndexShift {
			key := w.key(kindTime, l.id, b.BaseOffset)
			var value []byte
			w.values, value = appendTimestamp(w.values, key, s.maxTimestamp)
			if err := w.put(key, value); err != nil {
				return err
			}
			l.unindexed = 0
		}
		s.end = b.LastOffset + 1
		s.maxTimestamp = max(s.maxTimestamp, b.MaxTimestamp)
		s.bytes += int64(len(b.Bytes))
		w.volume.space.live.Add(int64(len(b.Bytes)))
		l.unindexed += int64(len(b.Bytes))
		if staged {
			continue
		}
		if err := w.putBatch(l.id, b); err != nil {
			return err
		}
	}
	w.uses = append(w.uses, l.setStateLocked(o.append.State)...)
	w.touch(l)
	for i := range o.append.Producers {
		p := &o.append.Producers[i]
		if err := w.putProducer(l, p.ID, producerMessage(p, l.durable.generation)); err != nil {
			return err
		}
	}
	for _, id := range o.append.RemovedProducers {
		if err := w.putProducer(l, id, &diskv1.ProducerState{Generation: l.durable.generation, Removed: true}); err != nil {
			return err
		}
	}
	return nil
}

// putProducer writes a producer. If the group has written it before, the
// transaction keeps the later record.
func (w *writer) putProducer(l *Log, id int64, m *diskv1.ProducerState) error {
	key := w.key(kindProducer, l.id, id)
	var value []byte
	w.values, value = appendMessage(w.values, key, m)
	return w.put(key, value)
}

// writeState adds the state record of a log to the transaction: a whole one if
// the volume has none to carry on, else its progress.
func (w *writer) writeState(l *Log) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := &l.durable
	if d.moved && l.home != w.set.name {
		// It is about the set that the log has left, whatever came of the append.
		d.moved = false
	}
	var key, value []byte
	if l.rewrite || l.stateVolume != w.volume.number {
		key = w.key(kindState, l.id, 0)
		w.values, value = appendMessage(w.values, key, d.message())
		n := d.needed(stateBytes(len(value)))
		w.volume.space.records.Add(n)
		w.uses = append(w.uses, use{volume: l.stateVolume, records: -l.stateBytes})
		l.rewrite, l.stateVolume, l.stateGeneration, l.stateBytes, l.home = false, w.volume.number, d.generation, n, w.set.name
		if !slices.Contains(l.stateVolumes, w.volume.number) {
			l.stateVolumes = append(l.stateVolumes, w.volume.number)
		}
	} else {
		d.progress(&w.progress, l.stateGeneration)
		key = w.key(kindProgress, l.id, 0)
		w.values, value = appendMessage(w.values, key, &w.progress)
	}
	return w.put(key, value)
}

// commit writes the transaction, as durable as the set says.
func (w *writer) commit() error {
	if len(w.entries) == 0 && w.deletes == 0 {
		return nil
	}
	if len(w.entries) == 0 {
		// Compaction leaves nothing of deletions, and the version must last.
		if err := w.put(mark()); err != nil {
			return err
		}
	}
	w.dog.begin()
	defer w.dog.end()
	if err := w.reserve(); err != nil {
		return err
	}
	failpoint.Hit("commit/after-reserve")
	if stall := w.store.cfg.stall; stall != nil {
		stall(w.set.name)
	}
	w.version++
	started := time.Now()
	if err := w.txn.CommitAt(w.version, nil); err != nil {
		return fmt.Errorf("commit to volume %d: %w", w.volume.number, err)
	}
	// Badger may have reported an error on the way that it does not return.
	if err := w.store.failure(); err != nil {
		return err
	}
	written, err := w.files.committed(w.logged, w.keyed)
	if err != nil {
		return fmt.Errorf("commit to volume %d: %w", w.volume.number, err)
	}
	if err := w.files.floor.raise(w.files.mem.latest, w.version); err != nil {
		return fmt.Errorf("commit to volume %d: %w", w.volume.number, err)
	}
	w.set.metrics.commit.Observe(time.Since(started).Seconds())
	if written.bytes > 0 {
		w.set.flushSoon(written)
	}
	return nil
}

// reserve gives the transaction space on the disk. Where there is none it waits
// for it: what was admitted is not refused any more, as what follows it builds on
// it.
func (w *writer) reserve() error {
	for {
		need, err := w.files.prepare(w.logged, w.keyed)
		if err == nil {
			return nil
		}
		if !noRoom(err) {
			return err
		}
		w.dog.end()
		err = w.store.disk.await(need, w.set.isClosing)
		w.dog.begin()
		if err != nil {
			return err
		}
	}
}

// publish lets readers see what was committed.
func (w *writer) publish(bytes int64) {
	for _, l := range w.touched {
		l.mu.Lock()
		l.readable = l.durable.LogEnd
		l.known = true
		if l.durable.Deleted && !l.doomed {
			l.doomed = true
			w.store.cleaner.doom(l)
		}
		l.mu.Unlock()
	}
	if bytes > 0 && w.bytes == 0 {
		w.set.mu.Lock()
		w.set.since = time.Now()
		w.set.mu.Unlock()
	}
	w.bytes += bytes
	w.records += w.recorded
	w.volume.space.written.Add(bytes + w.recorded)
	w.store.volumes.account(w.uses...)
}

// truncate cuts the end off a log, or all of it. In the active volume it deletes keys, so that
// what is appended later stands alone there; sealed ones are never written, and
// what a span does not cover in them is nobody's. Of a batch that the offset lies
// in nothing stays. Where there are more keys than
// one transaction should delete, the volume is sealed first, and none is.
func (w *writer) truncate(o *operation) error {
	l := o.log
	var here, cut bool
	l.mu.Lock()
	for _, s := range l.durable.spans {
		cut = cut || s.first < o.offset && s.end > o.offset
		here = here || s.volume == w.volume.number && s.end > o.offset
	}
	l.mu.Unlock()
	// from is where the first batch begins that is cut off.
	from, freed := o.offset, int64(0)
	if cut {
		var err error
		if from, freed, err = w.store.measureCut(l, o.offset); err != nil {
			// Nothing has changed yet.
			o.err = err
			l.mu.Lock()
			l.start, l.next = l.durable.LogStart, l.durable.LogEnd
			l.mu.Unlock()
			return nil
		}
	}
	o.append.State = o.append.State.endAt(max(from, o.append.State.LogStart))
	var doomed [][]byte
	if here {
		keys, fits, err := w.store.volumes.keysFrom(w.volume, l.id, from, w.limits.deletes())
		if err != nil {
			return err
		}
		if doomed = keys; !fits {
			doomed = nil
			if err := w.roll(true); err != nil {
				return err
			}
			failpoint.Hit("truncate/after-roll")
		}
	}

	w.begin(int64(len(doomed)) + 1)
	defer w.end()
	for _, key := range doomed {
		if err := w.delete(key); err != nil {
			return err
		}
	}
	l.mu.Lock()
	w.uses = append(w.uses, l.cutLocked(from)...)
	if n := len(l.durable.spans); n > 0 {
		s := &l.durable.spans[n-1]
		s.bytes -= freed
		w.uses = append(w.uses, use{volume: s.volume, bytes: -freed})
	}
	w.uses = append(w.uses, l.setStateLocked(o.append.State)...)
	if o.restart {
		l.forgiveLocked()
	}
	if from < o.offset {
		l.next = l.durable.LogEnd
	}
	l.durable.generation++
	l.durable.truncations = addTruncation(l.durable.truncations, truncation{generation: l.durable.generation, offset: from})
	l.grouped = true
	w.touched = append(w.touched, l)
	l.mu.Unlock()
	if err := w.writeState(l); err != nil {
		return err
	}
	failpoint.Hit("truncate/before-commit")
	if err := w.commit(); err != nil {
		return err
	}
	failpoint.Hit("truncate/after-commit")
	w.publish(0)
	return nil
}

// clearStale removes what the volume holds of a log at or above the place where a
// new span of it is about to begin there. A truncation deletes such keys, but not
// those that no span named any more because the batches had been copied to another
// volume.
func (w *writer) clearStale(group []*operation) error {
	for _, o := range group {
		if len(o.append.Batches) == 0 || o.err != nil {
			continue
		}
		l, base := o.log, o.follows
		l.mu.Lock()
		spans := l.durable.spans
		n := len(spans)
		goesOn := n > 0 && spans[n-1].volume == w.volume.number && spans[n-1].end == base
		// What begins below the log's end is about to be refused.
		clean := goesOn || base < l.durable.LogEnd || len(l.durable.truncations) == 0
		l.mu.Unlock()
		if clean {
			continue
		}
		keys, fits, err := w.store.volumes.keysFrom(w.volume, l.id, base, w.limits.deletes())
		if err != nil {
			return err
		}
		if !fits {
			return w.roll(true)
		}
		if err := w.deleteAll(keys); err != nil {
			return err
		}
	}
	return nil
}

// deleteAll deletes keys in a transaction of their own.
func (w *writer) deleteAll(keys [][]byte) error {
	if len(keys) == 0 {
		return nil
	}
	w.begin(0)
	defer w.end()
	for _, key := range keys {
		if err := w.delete(key); err != nil {
			return err
		}
	}
	return w.commit()
}

// keysFrom returns the keys of a partition's batches and time index at or above
// an offset, unless there are more than a limit.
func (r *volumes) keysFrom(v *volume, id PartitionID, offset int64, limit int) (keys [][]byte, fits bool, err error) {
	err = r.read(v, func() error {
		txn := v.db.NewTransactionAt(math.MaxUint64, false)
		defer txn.Discard()
		for _, k := range []kind{kindBatch, kindTime} {
			it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, k, id)})
			for it.Seek(appendOffsetKey(nil, k, id, offset)); it.Valid() && len(keys) <= limit; it.Next() {
				keys = append(keys, it.Item().KeyCopy(nil))
			}
			it.Close()
		}
		return nil
	})
	return keys, len(keys) <= limit, err
}
