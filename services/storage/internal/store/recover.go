package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// recovery collects what the volumes know of the partitions.
type recovery struct {
	partitions map[PartitionID]*recoveredPartition
}

// recoveredPartition is the newest of what was found of a partition.
type recoveredPartition struct {
	durable *durable
	// home is the set of stateVolume; stateVolume and stateGeneration say which state
	// record it is from.
	home                         Set
	stateVolume, stateGeneration uint64
	// stateBytes are those of that record, and stateVolumes all that have one.
	stateBytes   int64
	stateVolumes []uint64
	// fault is set where the newest record is damaged: an older one must not hold
	// in its place.
	fault     error
	producers map[int64]*diskv1.ProducerState
}

func (r *recovery) partition(id PartitionID) *recoveredPartition {
	p := r.partitions[id]
	if p == nil {
		p = &recoveredPartition{producers: make(map[int64]*diskv1.ProducerState)}
		r.partitions[id] = p
	}
	return p
}

// recover finds the volumes, repairs those that were not closed in good order,
// and reads what they know of the partitions.
func (s *Store) recover() error {
	if err := s.volumes.scan(); err != nil {
		return err
	}
	expected, last, err := s.directory.expected()
	if err != nil {
		return err
	}
	s.volumes.reserve(last)
	if err := s.volumes.miss(expected); err != nil {
		return err
	}
	// What is there and not listed is listed with the next change at the latest.
	if err := s.volumes.list(); err != nil && !noRoom(err) {
		return err
	}
	s.clean = s.directory.readClean(s.volumes.numbers())
	if !s.clean {
		rebooted, err := s.directory.otherBoot(s.cfg.BootID)
		if err != nil {
			return err
		}
		s.rebooted = rebooted
	}
	unlisted, err := s.volumes.unlisted()
	if err != nil {
		return err
	}
	if !s.clean || unlisted {
		// A marker that is about other volumes must not come true later; nor one from
		// before a volume without checksums is opened for writing to verify it.
		if err := s.beginWriting(); err != nil {
			return err
		}
	}
	if need := s.repairSpace(); need > 0 {
		end := time.Now().Add(openPatience)
		if err := s.disk.await(need, func() bool { return time.Now().After(end) }); err != nil {
			return fmt.Errorf("repair what an unclean stop has left: %w", err)
		}
	}
	r := &recovery{partitions: make(map[PartitionID]*recoveredPartition)}
	for _, set := range allSets {
		list := s.volumes.ofSet(set)
		for _, v := range list {
			if v.sealed || s.clean {
				continue
			}
			err := s.volumes.activate(v)
			if IsDamagedVolume(err) {
				if _, err := s.volumes.condemn(v, err); err != nil {
					return err
				}
				continue
			}
			if err != nil {
				return err
			}
			s.recovered[v.number] = true
			failpoint.Hit("start/after-activate")
		}
		if err := s.readSet(r, list); err != nil {
			return err
		}
	}
	for _, v := range s.volumes.copies() {
		if v.sealed {
			continue
		}
		err := s.volumes.check(v)
		if IsDamagedVolume(err) {
			_, err = s.volumes.condemn(v, err)
		}
		if err != nil {
			return err
		}
	}
	s.restore(r)
	s.failing = s.findLosses()
	failpoint.Hit("start/after-restore")
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.finishRecovery(); err != nil {
		return err
	}
	if !s.clean {
		if err := s.directory.recordBoot(s.cfg.BootID); err != nil {
			return err
		}
	}
	failpoint.Hit("start/after-recovery")
	return nil
}

// readSet reads the records of a set's volumes, of which the newest comes first.
// Since one goroutine wrote them in turn, a partition's state record in one is
// newer than those in all that follow, which are therefore not even read. A
// producer's record need not be: removing volumes carries old ones over.
func (s *Store) readSet(r *recovery, list []*volume) error {
	states := make(map[PartitionID]bool)
	for _, v := range list {
		if !s.volumes.has(v.number) {
			continue
		}
		opened, err := s.volumes.acquire(context.Background(), v.number)
		if IsDamagedVolume(err) {
			if _, err := s.volumes.condemn(v, err); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		err = s.volumes.read(opened, func() error {
			txn := opened.db.NewTransactionAt(math.MaxUint64, false)
			defer txn.Discard()
			return r.readVolume(stored{txn}, v.number, v.set, states, s.mayHaveHoles(v))
		})
		s.volumes.release(opened)
		if IsDamagedVolume(err) && v.sealed {
			_, err = s.volumes.condemn(v, err)
		}
		if err != nil {
			return fmt.Errorf("read volume %d: %w", v.number, err)
		}
	}
	return nil
}

// readVolume reads the records of a volume of a set. states are the partitions of
// which a newer volume of the set has the state, and become those of this one too.
// Where a volume may have holes a damaged record was lost, and an older one holds.
// Nothing of a volume is taken that cannot be read to its end.
func (r *recovery) readVolume(in entries, number uint64, set Set, states map[PartitionID]bool, holes bool) error {
	found := make(map[PartitionID]*recoveredPartition)
	var stored []PartitionID
	err := eachRecord(in, kindState, func(id PartitionID, _ int64, e entry) {
		stored = append(stored, id)
		if states[id] {
			return
		}
		var m diskv1.PartitionState
		p := &recoveredPartition{home: set, stateVolume: number}
		err := e.Value(func(value []byte) error {
			p.stateBytes = stateBytes(len(value))
			return parseMessage(e.Key(), value, &m)
		})
		if err != nil && holes {
			return
		}
		found[id] = p
		if err != nil {
			p.fault = fmt.Errorf("its state record is damaged: %w", err)
			return
		}
		p.durable, p.stateGeneration = parseState(&m), m.GetGeneration()
	})
	if err != nil {
		return err
	}
	err = eachRecord(in, kindProgress, func(id PartitionID, _ int64, e entry) {
		p := found[id]
		if p == nil || p.fault != nil {
			return
		}
		var m diskv1.PartitionProgress
		if err := readRecord(e, &m); err != nil {
			p.fault = fmt.Errorf("its progress record is damaged: %w", err)
		} else if m.GetStateGeneration() == p.stateGeneration {
			p.durable.advance(&m)
		}
	})
	if err != nil {
		return err
	}
	type producer struct {
		of    PartitionID
		id    int64
		state *diskv1.ProducerState
		err   error
	}
	var producers []producer
	err = eachRecord(in, kindProducer, func(id PartitionID, producerID int64, e entry) {
		m := new(diskv1.ProducerState)
		producers = append(producers, producer{of: id, id: producerID, state: m, err: readRecord(e, m)})
	})
	if err != nil {
		return err
	}
	for _, id := range stored {
		known := r.partition(id)
		known.stateVolumes = append(known.stateVolumes, number)
	}
	for id, p := range found {
		states[id] = true
		r.partition(id).take(p)
	}
	for _, m := range producers {
		if m.err != nil && holes {
			continue
		}
		p := r.partition(m.of)
		if m.err != nil {
			p.fault = fmt.Errorf("the record of producer %d is damaged: %w", m.id, m.err)
			p.stateVolume = cmp.Or(p.stateVolume, number)
		} else if old := p.producers[m.id]; old == nil || old.GetGeneration() < m.state.GetGeneration() {
			p.producers[m.id] = m.state
		}
	}
	return nil
}

// take keeps the newer of two states of a partition.
func (p *recoveredPartition) take(o *recoveredPartition) {
	// Nothing undoes a deletion, nor does it need anything else to be sound.
	deleted := o.fault == nil && o.durable.Deleted
	switch {
	case p.fault != nil && !deleted:
	case o.fault != nil:
		p.fault, p.stateVolume = o.fault, o.stateVolume
	case p.fault != nil || p.durable == nil || p.durable.generation < o.durable.generation:
		p.fault = nil
		p.durable, p.home, p.stateVolume = o.durable, o.home, o.stateVolume
		p.stateGeneration, p.stateBytes = o.stateGeneration, o.stateBytes
	}
}

// remembered returns the producers whose records hold, in the order of their ids.
func (p *recoveredPartition) remembered() []Producer {
	var out []Producer
	for id, m := range p.producers {
		if m.GetRemoved() {
			continue
		}
		producer := parseProducer(id, m, validBelow(p.durable.truncations, m.GetGeneration()))
		if len(producer.Batches) > 0 {
			out = append(out, producer)
		}
	}
	slices.SortFunc(out, func(a, b Producer) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// restore makes the logs from what was found.
func (s *Store) restore(r *recovery) {
	for id, p := range r.partitions {
		if s.rebooted && p.fault == nil && p.durable == nil {
			// A set that is not synced has lost all else.
			continue
		}
		if p.durable != nil {
			for _, sp := range p.durable.spans {
				// It may be gone without a trace.
				s.volumes.reserve(sp.volume)
			}
		}
		l := newLog(s, id)
		l.known = true
		s.logs[id] = l
		l.stateVolumes = slices.Clip(p.stateVolumes)
		if p.durable != nil && p.durable.Deleted {
			p.fault = nil
		}
		if p.fault == nil && p.durable == nil && s.Unsettled() {
			// Its state was in what was lost.
			p.durable = &durable{failed: &failure{reason: "its state was lost with a volume that was found damaged", logEndUnknown: true}}
		}
		if p.fault == nil && p.durable == nil {
			p.fault = errors.New("there are producers, but no state record")
		}
		if p.fault == nil {
			if err := p.durable.check(); err != nil {
				p.fault = fmt.Errorf("its state record contradicts itself: %w", err)
			}
		}
		if p.fault != nil {
			s.condemn(l, p.stateVolume, 0, p.fault)
			continue
		}
		l.durable = *p.durable
		l.home, l.stateVolume, l.stateGeneration, l.stateBytes = p.home, p.stateVolume, p.stateGeneration, l.durable.needed(p.stateBytes)
		s.volumes.account(use{volume: l.stateVolume, records: l.stateBytes})
		if l.durable.Deleted {
			l.doomed = true
			s.cleaner.doom(l)
		}
		l.start, l.next, l.readable = l.durable.LogStart, l.durable.LogEnd, l.durable.LogEnd
		for _, sp := range l.durable.spans {
			s.volumes.account(use{volume: sp.volume, spans: 1, bytes: sp.bytes})
		}
		if l.durable.Deleted {
			continue
		}
		l.producers = PackProducers(p.remembered())
	}
}

// condemn makes a log unusable.
func (s *Store) condemn(l *Log, volume uint64, offset int64, cause error) {
	err := &ErrCorrupt{Partition: l.id, Volume: volume, Offset: offset, Reason: "what the disk holds of the partition contradicts itself", Cause: cause}
	l.fault = err
	s.metrics.corrupt.Inc()
	s.failures.add(1)
	s.cfg.Logger.Error("a partition is damaged", "partition", l.id, "error", err)
}

// finishRecovery checks the volumes that were being written, and seals all but
// the newest of each set.
func (s *Store) finishRecovery() error {
	if err := s.sealCopies(); err != nil {
		return err
	}
	for _, set := range allSets {
		for i, v := range s.volumes.ofSet(set) {
			if v.sealed {
				continue
			}
			if s.recovered[v.number] {
				if err := s.checkRecovered(v); err != nil {
					return err
				}
			}
			switch {
			case i > 0 && s.recovered[v.number]:
				if err := s.volumes.retire(v); err != nil {
					return err
				}
				s.scrub.seal(v)
				delete(s.recovered, v.number)
				failpoint.Hit("start/after-seal")
			case i > 0:
				s.scrub.seal(v)
			case s.recovered[v.number]:
				if err := s.removeStaged(v); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// sealCopies seals the volumes that took copies: which of them are still needed
// was in the memory of the process before. Unused ones go.
func (s *Store) sealCopies() error {
	for _, v := range s.volumes.copies() {
		var err error
		switch {
		case v.sealed:
		case v.space.spans.Load() == 0:
			if err = s.beginWriting(); err == nil {
				err = s.removeAtOnce(v)
			}
		case s.clean:
			s.scrub.seal(v)
		default:
			if err = s.volumes.activate(v); err == nil {
				err = s.checkRecovered(v)
			}
			if err == nil {
				err = s.volumes.retire(v)
			}
			if err == nil {
				s.scrub.seal(v)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkRecovered looks at a volume that is open for writing because it was not
// closed in good order.
func (s *Store) checkRecovered(v *volume) error {
	return s.volumes.read(v, func() error {
		s.checkTails(v)
		measureVolume(v)
		return nil
	})
}

// measureVolume counts what a volume holds that was not closed in good order.
// What has been written over or deleted before does not show any more.
func measureVolume(v *volume) {
	txn := v.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{})
	defer it.Close()
	var total int64
	for it.Rewind(); it.Valid(); it.Next() {
		total += int64(valueBytes(it.Item()))
		if k := it.Item().Key(); kind(k[0]) != kindBatch {
			total += int64(len(k))
		}
	}
	v.space.written.Store(total)
}

// checkTails compares the log ends with what a volume holds that was being
// written when the process died. State and batches were one transaction: where
// they differ, the disk has lost something, and the log has failed. Where it ends
// is certain all the same: its state says so.
func (s *Store) checkTails(v *volume) {
	txn := v.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{byte(kindBatch)}})
	defer it.Close()
	for _, id := range slices.SortedFunc(maps.Keys(s.logs), comparePartitions) {
		l := s.logs[id]
		n := len(l.durable.spans)
		if l.fault != nil || l.durable.Deleted || n == 0 || l.durable.spans[n-1].volume != v.number || l.durable.spans[n-1].sparse {
			continue
		}
		last := l.durable.LogEnd - 1
		key := appendOffsetKey(nil, kindBatch, id, last)
		it.Seek(key)
		if !it.Valid() || !slices.Equal(it.Item().Key(), key) {
			s.failTail(l, v.number, fmt.Errorf("the log ends at %d, but no batch does", l.durable.LogEnd))
			continue
		}
		err := it.Item().Value(func(value []byte) error {
			header, err := recordbatch.Verify(value)
			if err == nil && (header.Size() != len(value) || header.LastOffset() != last) {
				err = fmt.Errorf("it says that it has %d bytes and ends at %d", header.Size(), header.LastOffset())
			}
			return err
		})
		if err != nil {
			s.failTail(l, v.number, fmt.Errorf("the last batch is damaged: %w", err))
		}
	}
}

// failTail makes a log fail that has lost its last batch. That is recorded once the
// store is open.
func (s *Store) failTail(l *Log, volume uint64, cause error) {
	first := l.durable.failed == nil
	f := failure{volume: volume, lostTo: l.durable.LogEnd, reason: fmt.Sprintf("volume %d has lost something: %v", volume, cause)}
	if !l.addFailureLocked(f) {
		return
	}
	s.metrics.corrupt.Inc()
	if first {
		s.noteFailed(l, f)
	}
	s.failing = append(s.failing, l)
}

// removeStaged deletes batches beyond the log ends from a volume that goes on to
// be written: of an append that was staged, and never became part of its log.
func (s *Store) removeStaged(v *volume) error {
	for {
		keys, err := s.stagedKeys(v, limitsOf(v.db, &s.cfg).deletes())
		if err != nil || len(keys) == 0 {
			return err
		}
		txn := v.db.NewTransactionAt(math.MaxUint64, true)
		for _, key := range keys {
			if err := txn.Delete(key); err != nil {
				txn.Discard()
				return fmt.Errorf("remove staged batches: %w", err)
			}
		}
		if err := txn.Set(mark()); err != nil {
			txn.Discard()
			return fmt.Errorf("remove staged batches: %w", err)
		}
		failpoint.Hit("start/before-remove-staged")
		if err := txn.CommitAt(v.db.MaxVersion()+1, nil); err != nil {
			return fmt.Errorf("remove staged batches: %w", err)
		}
		failpoint.Hit("start/after-remove-staged")
		s.cfg.Logger.Info("removed batches of appends that were never finished", "volume", v.number, "batches", len(keys))
	}
}

// stagedKeys returns keys of batches beyond the log ends.
func (s *Store) stagedKeys(v *volume, limit int) (keys [][]byte, err error) {
	err = s.volumes.read(v, func() error {
		keys, err = s.findStaged(v, limit)
		return err
	})
	return keys, err
}

func (s *Store) findStaged(v *volume, limit int) (keys [][]byte, err error) {
	txn := v.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{byte(kindBatch)}})
	defer it.Close()
	it.Rewind()
	for it.Valid() && len(keys) < limit {
		_, id, last, err := parseKey(it.Item().Key())
		if err != nil {
			return nil, err
		}
		end := int64(0)
		if l := s.logs[id]; l != nil {
			end = l.durable.LogEnd
			if l.fault != nil {
				// Its log end is not known.
				end = math.MaxInt64
			}
		}
		switch {
		case last >= end:
			keys = append(keys, it.Item().KeyCopy(nil))
			it.Next()
		case end == math.MaxInt64:
			it.Seek(append(appendOffsetKey(nil, kindBatch, id, end), 0))
		default:
			it.Seek(appendOffsetKey(nil, kindBatch, id, end))
		}
	}
	return keys, nil
}

func comparePartitions(a, b PartitionID) int {
	return cmp.Or(slices.Compare(a.Topic[:], b.Topic[:]), cmp.Compare(a.Index, b.Index))
}
