package store

import (
	"context"
	"math"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// doom hands the log of a deleted partition over to the cleaner.
func (c *cleaner) doom(l *Log) {
	c.mu.Lock()
	if _, known := c.graveyard[l]; !known {
		c.graveyard[l] = time.Now()
	}
	c.mu.Unlock()
	c.poke()
}

func (c *cleaner) graves() []*Log {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*Log, 0, len(c.graveyard))
	for l := range c.graveyard {
		out = append(out, l)
	}
	return out
}

// bury drops the spans of deleted partitions whose quarantine is over. A
// partition without spans is forgotten once there is no state record of it any
// more: an older one would bring it back. Those in sealed volumes go with these;
// when all that is left lies in the active volume, its keys are deleted there.
func (c *cleaner) bury(ctx context.Context) error {
	now := c.store.cfg.Now()
	var drops carried
	defer drops.wait.Wait()
	for _, l := range c.graves() {
		l.mu.Lock()
		over := l.quarantineLocked(now) <= 0
		spans := len(l.durable.spans)
		active := c.store.isActive(l.stateVolumes)
		idle := l.pending == 0
		l.mu.Unlock()
		switch {
		case spans > 0 && over:
			drops.add(l, change{apply: func(w *writer, l *Log) (bool, error) {
				failpoint.Hit("bury/before-drop")
				w.uses = append(w.uses, l.dropLocked(0, len(l.durable.spans))...)
				return true, nil
			}})
		case over && active && idle:
			if err := c.erase(ctx, l); err != nil {
				return err
			}
		}
	}
	return drops.err()
}

// quarantineLocked returns for how long a deleted partition stays at least. The
// clock may have been put back since the deletion: then what counts is for how long
// this process has known of it.
func (l *Log) quarantineLocked(now time.Time) time.Duration {
	left := time.UnixMilli(l.durable.deletedAt).Add(l.store.cfg.Quarantine).Sub(now)
	c := l.store.cleaner
	c.mu.Lock()
	since, known := c.graveyard[l]
	c.mu.Unlock()
	if known {
		left = min(left, l.store.cfg.Quarantine-time.Since(since))
	}
	return left
}

// isActive says whether these are the active volume of one set and no other.
func (s *Store) isActive(volumes []uint64) bool {
	if len(volumes) != 1 {
		return false
	}
	_, active := s.activeSet(volumes[0])
	return active
}

const (
	// erasedKeys bounds the keys that are erased in one step.
	erasedKeys = 1024
	// erasingSteps bounds the steps of one pass, between which there is other work.
	erasingSteps = 64
)

// erase deletes the keys of a deleted partition in the volume that alone has any,
// if it is still the active one of the log's set, and forgets the partition then.
// Batches go too: the partition may be created anew, and these would come to lie
// between its own.
func (c *cleaner) erase(ctx context.Context, l *Log) error {
	for range erasingSteps {
		more, erased := false, false
		var n cost
		for range erasedKeys + 2 {
			n.addEntry(offsetKeyBytes, 0)
		}
		err := l.changeSync(ctx, change{cost: n, apply: func(w *writer, l *Log) (bool, error) {
			if len(l.durable.spans) > 0 || len(l.stateVolumes) != 1 || l.stateVolumes[0] != w.volume.number {
				return false, nil
			}
			failpoint.Hit("bury/before-erase")
			// Anything without a state record would be damage, so that goes last.
			keys, fits, err := c.store.volumes.keysOf(w.volume, l.id, min(erasedKeys, w.limits.deletes()))
			if err != nil {
				return false, err
			}
			if more = !fits; fits {
				keys = append(keys, appendPartitionKey(nil, kindProgress, l.id), appendPartitionKey(nil, kindState, l.id))
				w.uses = append(w.uses, use{volume: l.stateVolume, records: -l.stateBytes})
				erased = true
			}
			for _, key := range keys {
				if err := w.delete(key); err != nil {
					return false, err
				}
			}
			return false, nil
		}})
		if err != nil || !more {
			if err == nil && erased {
				c.store.forget(l)
			}
			return err
		}
	}
	c.poke()
	return nil
}

// keysOf returns the keys of a partition's producers, time index and batches, up
// to a limit; fits says that these are all.
func (r *volumes) keysOf(v *volume, id PartitionID, limit int) (keys [][]byte, fits bool, err error) {
	err = r.read(v, func() error {
		txn := v.db.NewTransactionAt(math.MaxUint64, false)
		defer txn.Discard()
		for _, k := range []kind{kindProducer, kindTime, kindBatch} {
			it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, k, id)})
			for it.Rewind(); it.Valid() && len(keys) <= limit; it.Next() {
				keys = append(keys, it.Item().KeyCopy(nil))
			}
			it.Close()
		}
		return nil
	})
	if len(keys) > limit {
		return keys[:limit], false, err
	}
	return keys, true, err
}

// forget removes the log of a deleted partition of which the disk knows nothing
// any more. Who still has it can do nothing with it.
func (s *Store) forget(l *Log) {
	l.mu.Lock()
	l.known, l.forgotten = false, true
	l.stateVolume, l.stateBytes, l.stateVolumes = 0, 0, nil
	l.mu.Unlock()
	s.mu.Lock()
	if s.logs[l.id] == l {
		delete(s.logs, l.id)
	}
	s.mu.Unlock()
	s.cleaner.mu.Lock()
	delete(s.cleaner.graveyard, l)
	s.cleaner.mu.Unlock()
}
