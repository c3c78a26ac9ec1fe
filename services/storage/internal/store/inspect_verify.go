package store

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
)

// verifyEntries verifies all records of a volume, and the batches and the time
// index of the spans in it.
func (i *inspector) verifyEntries(v *InspectedVolume, in entries) error {
	if err := i.verifyRecords(v, in); err != nil {
		return err
	}
	for _, sp := range i.spans[v.Number] {
		if sp.in.Deleted || sp.end <= sp.in.LogStart {
			continue
		}
		s := spanVerifier{inspector: i, volume: v, held: sp, next: max(sp.first, sp.in.LogStart), newest: math.MinInt64}
		if err := s.run(in); err != nil {
			return err
		}
	}
	return nil
}

// verifyRecords verifies all keys, and the values but for batches, also those that
// newer ones stand for.
func (i *inspector) verifyRecords(v *InspectedVolume, in entries) error {
	var failed error
	holes := i.mayHaveHoles(v)
	err := in.each(nil, nil, func(e entry) bool {
		k, id, offset, err := parseKey(e.Key())
		switch {
		case bytes.HasPrefix(e.Key(), []byte("!badger!")):
			return true
		case err != nil:
			i.damaged(Damage{Volume: v.Number, File: volumeFileOf(v, ""), Reason: err.Error()})
			return true
		case k == kindBatch:
			return true
		}
		if failed = i.ctx.Err(); failed != nil {
			return false
		}
		if err = verifyRecord(k, e); err == nil || holes {
			return true
		}
		d := Damage{Volume: v.Number, Partition: &id}
		switch k {
		case kindState:
			d.Reason = "its state record is damaged"
		case kindProgress:
			d.Reason = "its progress record is damaged"
		case kindProducer:
			d.Reason = fmt.Sprintf("the record of producer %d is damaged", offset)
		case kindTime:
			d.Offset, d.Reason = offset, "its time index is damaged"
		case kindMark:
			d.Partition, d.Reason = nil, "the mark of a transaction is damaged"
		}
		failed = i.damagedAt(v, d, err)
		return failed == nil
	})
	return errors.Join(err, failed)
}

// damagedAt adds damage that has a cause. It returns the cause if that is about the
// process or the machine.
func (i *inspector) damagedAt(v *InspectedVolume, d Damage, cause error) error {
	if transient(cause) {
		return cause
	}
	var found *ErrDamagedVolume
	switch {
	case errors.As(cause, &found):
		d.File = volumeFileOf(v, found.File)
		d.Reason += ": " + found.Reason
	case cause != nil:
		d.Reason += ": " + cause.Error()
	}
	i.damaged(d)
	return nil
}

// verifyRecord verifies the value of a record that is not a batch.
func verifyRecord(k kind, e entry) error {
	switch k {
	case kindState:
		return readRecord(e, new(diskv1.PartitionState))
	case kindProgress:
		return readRecord(e, new(diskv1.PartitionProgress))
	case kindProducer:
		return readRecord(e, new(diskv1.ProducerState))
	case kindTime:
		return e.Value(func(value []byte) error { _, err := parseTimestamp(e.Key(), value); return err })
	}
	return e.Value(func(value []byte) error { _, err := unseal(e.Key(), value); return err })
}

// indexed is an entry of the time index: the batches of its span before offset are
// not newer than before.
type indexed struct{ offset, before int64 }

// spanVerifier verifies one span.
type spanVerifier struct {
	*inspector
	volume *InspectedVolume
	held   heldSpan
	// next is where the next batch must begin.
	next int64
	// newest is the greatest timestamp so far.
	newest int64
	index  []indexed
	// damagedBefore says that the batch before next is damaged, and reported.
	damagedBefore bool
	// over says that the volume may have holes, and that here is one.
	over bool
}

func (s *spanVerifier) report(offset int64, reason string, cause error) error {
	if s.mayHaveHoles(s.volume) && !transient(cause) {
		s.over = true
		return nil
	}
	return s.damagedAt(s.volume, Damage{Volume: s.volume.Number, Partition: &s.held.id, Offset: offset, Reason: reason}, cause)
}

func (s *spanVerifier) run(in entries) error {
	sp := s.held
	prefix := appendPartitionKey(nil, kindTime, sp.id)
	err := in.each(prefix, appendOffsetKey(nil, kindTime, sp.id, sp.first), func(e entry) bool {
		_, _, offset, err := parseKey(e.Key())
		if err != nil || offset >= sp.end {
			return false
		}
		// What is damaged was reported with all records.
		_ = e.Value(func(value []byte) error {
			before, err := parseTimestamp(e.Key(), value)
			if err == nil {
				s.index = append(s.index, indexed{offset: offset, before: before})
			}
			return err
		})
		return true
	})
	if err != nil {
		return err
	}
	var failed error
	prefix = appendPartitionKey(nil, kindBatch, sp.id)
	follows := false
	err = in.each(prefix, appendOffsetKey(nil, kindBatch, sp.id, s.next), func(e entry) bool {
		_, _, last, err := parseKey(e.Key())
		if err != nil || last >= sp.end || s.over {
			return false
		}
		failed = s.batch(e, last, follows)
		follows = true
		return failed == nil
	})
	switch {
	case err != nil || failed != nil:
		return errors.Join(err, failed)
	case s.over:
		return nil
	case s.next < sp.end && !sp.sparse:
		return s.report(s.next, fmt.Sprintf("its span ends at %d, but there is no batch", sp.end), nil)
	}
	return s.checkIndex(sp.end)
}

// batch verifies the batch with a last offset.
func (s *spanVerifier) batch(e entry, last int64, follows bool) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	v := view{span: s.held.span, end: s.held.end, epochs: s.held.in.Epochs}
	var wrong string
	var cause error
	var base, newest int64
	err := e.Value(func(value []byte) error {
		header, reason, err := v.verify(value, last, s.next, follows)
		wrong, cause, base, newest = reason, err, header.BaseOffset, header.MaxTimestamp
		return s.read(len(value))
	})
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if err != nil {
		wrong, cause = "a batch cannot be read", err
	}
	if wrong == "" && newest > s.held.maxTimestamp {
		wrong = fmt.Sprintf("a batch has the timestamp %d, its span up to %d", newest, s.held.maxTimestamp)
	}
	at := s.next
	s.next = last + 1
	if wrong != "" {
		if s.damagedBefore {
			return nil
		}
		s.damagedBefore = true
		return s.report(at, wrong, cause)
	}
	s.damagedBefore = false
	if err := s.checkIndex(base); err != nil {
		return err
	}
	s.newest = max(s.newest, newest)
	return nil
}

// checkIndex compares the entries of the time index up to an offset with the
// batches before.
func (s *spanVerifier) checkIndex(offset int64) error {
	for len(s.index) > 0 && s.index[0].offset <= offset {
		entry := s.index[0]
		s.index = s.index[1:]
		if s.newest <= entry.before {
			continue
		}
		reason := fmt.Sprintf("its time index says that nothing before is newer than %d, but there is %d", entry.before, s.newest)
		if err := s.report(entry.offset, reason, nil); err != nil {
			return err
		}
	}
	return nil
}
