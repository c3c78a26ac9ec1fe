package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// carriedProducers bounds the producers that are carried over in one step.
const carriedProducers = 256

// remove removes sealed volumes without spans. What else they hold that somebody
// needs is written anew before: the newest state record of a partition, and the
// producers that have not written since. That, and the changes that have emptied
// the volumes, are brought to the disk whatever the set: a removal cannot be
// taken back. A volume for which that fails is left alone for a while. An error
// is the store's.
func (c *cleaner) remove(ctx context.Context, dead []*volume) error {
	if err := c.store.beginWriting(); err != nil {
		return c.store.fail(err)
	}
	numbers := make(map[uint64]bool, len(dead))
	var ready []*volume
	for _, v := range dead {
		err := c.carryOver(ctx, v)
		if ctx.Err() != nil || errors.Is(err, ErrClosed) || c.store.failure() != nil {
			return errors.Join(ctx.Err(), err, c.store.failure())
		}
		if err != nil {
			// It must not keep the others.
			c.postpone(v, fmt.Errorf("carry over what it holds: %w", err))
			continue
		}
		numbers[v.number] = true
		ready = append(ready, v)
	}
	failpoint.Hit("remove/before-sync")
	if err := c.store.volumes.syncWritable(); err != nil {
		return c.store.fail(err)
	}
	for _, v := range ready {
		gone, err := c.store.volumes.remove(v)
		if noRoom(err) {
			delete(numbers, v.number)
			c.postpone(v, err)
			continue
		}
		if err != nil {
			return c.store.fail(err)
		}
		delete(c.retries, v.number)
		c.store.metrics.removedVolumes.Inc()
		if gone == "" {
			continue
		}
		if err := c.release(ctx, gone, len(ready)); err != nil {
			// What is left of it goes when the store is opened.
			c.store.cfg.Logger.Warn("removing a volume", "path", gone, "error", err)
		}
		failpoint.Hit("remove/after-remove")
	}
	for _, l := range c.store.logsWhere(func(l *Log) bool {
		l.stateVolumes = slices.DeleteFunc(l.stateVolumes, func(n uint64) bool { return numbers[n] })
		return l.known && l.durable.Deleted && len(l.stateVolumes) == 0 && l.stateVolume != 0
	}) {
		c.store.forget(l)
	}
	return nil
}

// carryOver writes anew what a volume holds besides batches.
func (c *cleaner) carryOver(ctx context.Context, v *volume) error {
	if err := c.spares(ctx, v); err != nil || v.copies {
		return err
	}
	var faults carried
	defer faults.wait.Wait()
	now := c.store.cfg.Now()
	for _, l := range c.store.logsWhere(func(l *Log) bool {
		// Where a newer record is on its way, this one holds until that is committed.
		underWay := l.pending > 0 && slices.Contains(l.stateVolumes, v.number)
		if l.stateVolume != v.number && !underWay {
			return false
		}
		// Of a deleted partition nothing is left to be said once its only record goes.
		// Where several go, a crash in between must not leave an older one.
		return !l.buriedLocked(now) || len(l.stateVolumes) > 1
	}) {
		faults.add(l, change{apply: func(_ *writer, l *Log) (bool, error) {
			failpoint.Hit("remove/before-carry")
			return l.stateVolume == v.number, nil
		}})
	}
	if err := c.carryDepartures(ctx, v, &faults); err != nil {
		return err
	}
	if err := c.carryProducers(ctx, v, &faults); err != nil {
		return err
	}
	return faults.err()
}

// carryDepartures writes anew, in the set of a volume, the records which say there that
// a partition has moved to another set, and that older ones in the set must not hold if
// the newer ones are lost. Where there are no older ones nobody needs them.
func (c *cleaner) carryDepartures(ctx context.Context, v *volume, faults *carried) error {
	left := c.store.logsWhere(func(l *Log) bool { return c.store.departedLocked(l, v) })
	if len(left) == 0 {
		return nil
	}
	opened, err := c.store.volumes.acquire(ctx, v.number)
	if err != nil {
		return err
	}
	defer c.store.volumes.release(opened)
	for _, l := range left {
		var value []byte
		err := c.store.volumes.read(opened, func() error {
			txn := opened.db.NewTransactionAt(math.MaxUint64, false)
			defer txn.Discard()
			item, err := txn.Get(appendPartitionKey(nil, kindState, l.id))
			if err != nil {
				return err
			}
			if err := readRecord(item, new(diskv1.PartitionState)); err != nil {
				return err
			}
			value, err = item.ValueCopy(nil)
			return err
		})
		if err != nil {
			return fmt.Errorf("read the state record of %v: %w", l.id, err)
		}
		var n cost
		n.addEntry(partitionKeyBytes, len(value))
		faults.wait.Add(1)
		// It is no change of the log, whose operations are in the queue of another set.
		c.store.sets[v.set].push(&operation{kind: changeLog, cost: n, bytes: len(value), done: faults.done, change: func(w *writer, _ *Log) (bool, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if !c.store.departedLocked(l, v) {
				return false, nil
			}
			l.stateVolumes = append(l.stateVolumes, w.volume.number)
			return false, w.put(w.key(kindState, l.id, 0), value)
		}})
	}
	return nil
}

// departedLocked says that a volume has the newest state record that a partition, which
// is at home in another set, has in the set of the volume, and not the only one.
func (s *Store) departedLocked(l *Log, v *volume) bool {
	if l.home == v.set || l.durable.Deleted || !slices.Contains(l.stateVolumes, v.number) {
		return false
	}
	older := false
	for _, n := range l.stateVolumes {
		if n == v.number || !s.volumes.belongs(n, v.set) {
			continue
		}
		if n > v.number {
			return false
		}
		older = true
	}
	return older
}

// belongs says whether a volume is there and of a set.
func (r *volumes) belongs(number uint64, set Set) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.byNumber[number]
	return v != nil && v.set == set
}

// buriedLocked says whether nothing of a partition is needed any more.
func (l *Log) buriedLocked(now time.Time) bool {
	return l.durable.Deleted && len(l.durable.spans) == 0 && l.quarantineLocked(now) <= 0
}

// spares refuses a volume with batches of a partition whose state is damaged: what
// its spans are is not known. It refuses one with a state record of it, too:
// without the damaged one an older one would hold.
func (c *cleaner) spares(ctx context.Context, v *volume) error {
	unknown := c.store.logsWhere(func(l *Log) bool { return l.fault != nil && l.durable.generation == 0 })
	if len(unknown) == 0 {
		return nil
	}
	for _, l := range unknown {
		if slices.Contains(l.stateVolumes, v.number) {
			return fmt.Errorf("it has a state record of %v, whose state is damaged", l.id)
		}
	}
	opened, err := c.store.volumes.acquire(ctx, v.number)
	if err != nil {
		return err
	}
	defer c.store.volumes.release(opened)
	for _, l := range unknown {
		keys, _, err := c.store.volumes.keysFrom(opened, l.id, 0, 1)
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			return fmt.Errorf("it has batches of %v, whose state is damaged", l.id)
		}
	}
	return nil
}

// carried are changes whose outcome somebody waits for.
type carried struct {
	wait   sync.WaitGroup
	mu     sync.Mutex
	faults []error
}

func (f *carried) add(l *Log, c change) {
	f.wait.Add(1)
	l.change(c, f.done)
}

func (f *carried) done(err error) {
	f.mu.Lock()
	if err != nil && len(f.faults) < 8 {
		f.faults = append(f.faults, err)
	}
	f.mu.Unlock()
	f.wait.Done()
}

func (f *carried) err() error {
	f.wait.Wait()
	return errors.Join(f.faults...)
}

// carryProducers writes the producers of a volume anew, with the generation that
// they had: a truncation since then may have voided what they say. That one was
// removed has to stand as long as there may be an older record.
func (c *cleaner) carryProducers(ctx context.Context, v *volume, faults *carried) error {
	opened, err := c.store.volumes.acquire(ctx, v.number)
	if err != nil {
		return err
	}
	defer c.store.volumes.release(opened)
	var damage error
	var list []*diskv1.ProducerState
	var ids []int64
	var of PartitionID
	flush := func() {
		if len(ids) > 0 {
			c.carry(v, of, ids, list, faults)
		}
		ids, list = nil, nil
	}
	err = c.store.volumes.read(opened, func() error {
		txn := opened.db.NewTransactionAt(math.MaxUint64, false)
		defer txn.Discard()
		return eachRecord(stored{txn}, kindProducer, func(id PartitionID, producer int64, item entry) {
			m := new(diskv1.ProducerState)
			if err := readRecord(item, m); err != nil {
				damage = fmt.Errorf("the record of producer %d of %v is damaged: %w", producer, id, err)
				return
			}
			if id != of || len(ids) == carriedProducers {
				flush()
				of = id
			}
			ids, list = append(ids, producer), append(list, m)
		})
	})
	flush()
	return errors.Join(err, damage)
}

func (c *cleaner) carry(v *volume, id PartitionID, ids []int64, list []*diskv1.ProducerState, faults *carried) {
	c.store.mu.Lock()
	l := c.store.logs[id]
	c.store.mu.Unlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	deleted := l.durable.Deleted
	l.mu.Unlock()
	if deleted {
		return
	}
	var n cost
	for _, m := range list {
		n.addEntry(offsetKeyBytes, sumBytes+128+64*len(m.GetBatches()))
	}
	faults.add(l, change{cost: n, apply: func(w *writer, l *Log) (bool, error) {
		wrote := false
		for i, m := range list {
			there, err := w.producerGeneration(l.id, ids[i])
			if err != nil {
				return false, err
			}
			needed := !m.GetRemoved() || there > 0 || slices.ContainsFunc(l.stateVolumes, func(n uint64) bool {
				return n != v.number && n != w.volume.number
			})
			if there >= m.GetGeneration() || !needed {
				continue
			}
			if err := w.putProducer(l, ids[i], m); err != nil {
				return false, err
			}
			wrote = true
		}
		return wrote, nil
	}})
}

// producerGeneration returns the generation of the record that the active volume
// has of a producer; 0 where it has none.
func (w *writer) producerGeneration(id PartitionID, producer int64) (uint64, error) {
	var m diskv1.ProducerState
	err := w.store.volumes.read(w.volume, func() error {
		txn := w.volume.db.NewTransactionAt(math.MaxUint64, false)
		defer txn.Discard()
		item, err := txn.Get(appendOffsetKey(nil, kindProducer, id, producer))
		if err != nil {
			return err
		}
		return readRecord(item, &m)
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read producer %d of %v: %w", producer, id, err)
	}
	return m.GetGeneration(), nil
}

// durable says whether what was committed to a volume is on the disk.
func (r *volumes) durable(number uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.byNumber[number]
	return v == nil || v.sealed || v.copies || v.set.synced()
}

// syncWritable brings to the disk what was committed to volumes that do not do
// that by themselves.
func (r *volumes) syncWritable() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, number := range slices.Collect(maps.Keys(r.byNumber)) {
		v := r.byNumber[number]
		if v == nil || v.set.synced() || v.copies {
			continue
		}
		for v.mode == changing {
			// Closing syncs it.
			r.wait()
		}
		if v.mode != writable {
			continue
		}
		v.readers++
		r.mu.Unlock()
		err := syncFiles(v.path)
		r.mu.Lock()
		r.releaseLocked(v)
		if err != nil {
			return fmt.Errorf("sync volume %d: %w", v.number, err)
		}
	}
	return nil
}

// syncFiles brings the files of a directory, and their names, to the disk. Where
// one vanishes meanwhile, Badger has moved what it held to another that it has
// synced.
func syncFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := datadir.Sync(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return datadir.Sync(dir)
}

// remove takes a sealed volume away as soon as nobody reads it, for good, and
// returns the directory that is left to be removed; none if the volume was found
// damaged meanwhile. Readers that wait for it, or come later, are told that it is
// gone.
func (r *volumes) remove(v *volume) (left string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for v.mode == changing {
		r.wait()
	}
	if r.byNumber[v.number] != v {
		return "", nil
	}
	if v.mode == readOnly {
		r.closeReadOnly(v)
	}
	gone := v.path + removedSuffix
	err = r.change(v, closed, func() (*badger.DB, error) {
		if err := r.enlist(v, false); err != nil {
			return nil, err
		}
		failpoint.Hit("remove/before-rename")
		if err := os.Rename(v.path, gone); err != nil {
			return nil, err
		}
		if err := datadir.Sync(r.path); err != nil {
			return nil, err
		}
		failpoint.Hit("remove/after-rename")
		return nil, nil
	})
	if err != nil {
		return "", fmt.Errorf("remove volume %d: %w", v.number, err)
	}
	delete(r.byNumber, v.number)
	r.broadcast()
	return gone, nil
}

// removeAtOnce removes a volume and its files.
func (s *Store) removeAtOnce(v *volume) error {
	gone, err := s.volumes.remove(v)
	if err != nil || gone == "" {
		return err
	}
	if err := os.RemoveAll(gone); err != nil {
		// What is left of it goes when the store is opened the next time.
		s.cfg.Logger.Warn("removing a volume", "path", gone, "error", err)
	}
	return nil
}

const (
	// releaseStep is how much of a file is given back at a time, and releaseRate how
	// much per second. The file system tells the disk of what was freed with the
	// next commit of its journal, for which all syncs wait: a volume at once held
	// them up for 300 ms.
	releaseStep = 4 << 20
	releaseRate = 256 << 20
)

// release removes the directory of a volume a little at a time, and at once where
// space is short or ctx ends. With more volumes waiting it is that much faster, so
// that they do not pile up.
func (c *cleaner) release(ctx context.Context, dir string, waiting int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			return err
		}
		for size := info.Size(); size > 0; {
			if err := c.releasing.wait(ctx, int(min(size, releaseStep))/max(waiting, 1), c.store.lowOnSpace()); err != nil {
				return os.RemoveAll(dir)
			}
			size = max(size-releaseStep, 0)
			if err := os.Truncate(path, size); err != nil {
				return errors.Join(err, os.RemoveAll(dir))
			}
		}
	}
	return os.RemoveAll(dir)
}
