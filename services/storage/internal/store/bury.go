package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// doom hands the log of a deleted partition over to the cleaner.
func (c *cleaner) doom(l *Log) {
	c.mu.Lock()
	c.graveyard[l] = true
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

// quarantineLocked returns for how long a deleted partition stays at least.
func (l *Log) quarantineLocked(now time.Time) time.Duration {
	return time.UnixMilli(l.durable.deletedAt).Add(l.store.cfg.Quarantine).Sub(now)
}

// isActive says whether these are the active volume of one set and no other.
func (s *Store) isActive(volumes []uint64) bool {
	if len(volumes) != 1 {
		return false
	}
	_, active := s.activeSet(volumes[0])
	return active
}

// erasedProducers bounds the producers that are erased in one step.
const erasedProducers = 512

// erase deletes the keys of a deleted partition in the volume that alone has any,
// if it is still the active one of the log's set, and forgets the partition then.
func (c *cleaner) erase(ctx context.Context, l *Log) error {
	for {
		more, erased := false, false
		var n cost
		for range erasedProducers + 2 {
			n.addEntry(offsetKeyBytes, 0)
		}
		err := l.changeSync(ctx, change{cost: n, apply: func(w *writer, l *Log) (bool, error) {
			if len(l.durable.spans) > 0 || len(l.stateVolumes) != 1 || l.stateVolumes[0] != w.volume.number {
				return false, nil
			}
			failpoint.Hit("bury/before-erase")
			// Producers without a state record would be damage, so that goes last.
			keys, fits := producerKeys(w.volume.db, l.id, min(erasedProducers, w.limits.deletes()))
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
}

func producerKeys(db *badger.DB, id PartitionID, limit int) (keys [][]byte, fits bool) {
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, kindProducer, id)})
	defer it.Close()
	for it.Rewind(); it.Valid() && len(keys) < limit; it.Next() {
		keys = append(keys, it.Item().KeyCopy(nil))
	}
	return keys, !it.Valid()
}

// forget removes the log of a deleted partition of which the disk knows nothing
// any more. Who still has it can do nothing with it.
func (s *Store) forget(l *Log) {
	l.mu.Lock()
	l.known = false
	l.stateVolume, l.stateBytes, l.stateVolumes = 0, 0, nil
	if l.fault == nil {
		l.fault = fmt.Errorf("%w: %v was deleted", ErrInvalidAppend, l.id)
	}
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
