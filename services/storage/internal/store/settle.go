package store

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// bootFile names, in the store's directory, the kernel's boot under which volumes
// were last written.
const bootFile = "boot"

// otherBoot says whether the directory was last written under another boot of
// the kernel: what sets that do not sync had not written to the disk is lost
// then. Where nobody knows, it is not, and what is missing counts as damage.
func (d *directory) otherBoot(id string) (bool, error) {
	raw, err := os.ReadFile(d.Path(bootFile))
	if transient(err) {
		return false, err
	}
	if err != nil {
		return false, nil
	}
	before := strings.TrimSpace(string(raw))
	return before != "" && id != "" && before != id, nil
}

// recordBoot says under which boot volumes are written from now on. What an
// earlier one has left must be repaired by then.
func (d *directory) recordBoot(id string) error {
	raw, err := os.ReadFile(d.Path(bootFile))
	if err == nil && strings.TrimSpace(string(raw)) == id {
		return nil
	}
	if err := datadir.Replace(d.Path(bootFile), []byte(id+"\n")); err != nil {
		return fmt.Errorf("record the boot: %w", err)
	}
	return nil
}

// mayHaveHoles says whether a crash of the machine may have taken something from
// the midst of a volume.
func (s *Store) mayHaveHoles(v *volume) bool {
	return s.rebooted && !v.sealed && !v.set.synced()
}

// settle ends the logs in which a crash of the machine has left a hole right
// before it: of a volume that is not synced the kernel writes any page before any
// other. What is left is a beginning of the log, as a replica that has just begun
// to follow has it.
func (s *Store) settle() error {
	for _, set := range allSets {
		list := s.volumes.ofSet(set)
		if len(list) == 0 || !s.mayHaveHoles(list[0]) || !s.recovered[list[0].number] {
			continue
		}
		for _, id := range slices.SortedFunc(maps.Keys(s.logs), comparePartitions) {
			l := s.logs[id]
			if l.fault != nil {
				continue
			}
			for i := range l.durable.spans {
				sp := l.durable.spans[i]
				at := slices.IndexFunc(list, func(v *volume) bool { return v.number == sp.volume })
				if at < 0 || !s.mayHaveHoles(list[at]) {
					continue
				}
				var end, bytes int64
				err := s.volumes.read(list[at], func() error {
					end, bytes = intactTo(list[at].db, id, sp, max(sp.first, l.durable.LogStart))
					return nil
				})
				if err != nil {
					return err
				}
				if end >= sp.end {
					continue
				}
				if err := s.endAt(l, list[0], end, bytes); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// intactTo returns how far a span can be read from an offset on, and the bytes of
// the batches up to there.
func intactTo(db *badger.DB, id PartitionID, sp span, from int64) (end, bytes int64) {
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, kindBatch, id)})
	defer it.Close()
	end = from
	for it.Seek(appendOffsetKey(nil, kindBatch, id, from)); it.Valid() && end < sp.end; it.Next() {
		_, _, last, err := parseKey(it.Item().Key())
		if err != nil {
			return end, bytes
		}
		err = it.Item().Value(func(value []byte) error {
			header, err := recordbatch.Verify(value)
			if err == nil && (header.LastOffset() != last || last >= sp.end || header.BaseOffset > end || header.BaseOffset < end && end > from) {
				err = errors.New("a batch is missing")
			}
			if err == nil {
				bytes += int64(len(value))
			}
			return err
		})
		if err != nil {
			return end, bytes
		}
		end = last + 1
	}
	return end, bytes
}

// endAt cuts a log at an offset while the store is being opened, and records that
// in a volume of the log's set that is open for writing. bytes are those of the
// batches that stay in the last span. The batches' keys are removed with those of
// unfinished appends.
func (s *Store) endAt(l *Log, v *volume, offset, bytes int64) error {
	d := &l.durable
	before := d.LogEnd
	s.volumes.account(released(d.spans)...)
	l.cutLocked(offset)
	if n := len(d.spans); n > 0 && d.spans[n-1].end == offset {
		d.spans[n-1].bytes = min(d.spans[n-1].bytes, bytes)
	}
	l.setStateLocked(d.State.endAt(offset))
	for _, sp := range d.spans {
		s.volumes.account(use{volume: sp.volume, spans: 1, bytes: sp.bytes})
	}
	d.generation++
	d.truncations = addTruncation(d.truncations, truncation{generation: d.generation, offset: offset})

	txn := v.db.NewTransactionAt(math.MaxUint64, true)
	defer txn.Discard()
	var stale [][]byte
	err := s.volumes.read(v, func() error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, kindTime, l.id)})
		defer it.Close()
		for it.Seek(appendOffsetKey(nil, kindTime, l.id, offset)); it.Valid(); it.Next() {
			stale = append(stale, it.Item().KeyCopy(nil))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range stale {
		if err := txn.Delete(key); err != nil {
			return fmt.Errorf("end the log of %v at %d: %w", l.id, offset, err)
		}
	}
	key := appendPartitionKey(nil, kindState, l.id)
	_, value := appendMessage(nil, key, d.message())
	if err := txn.Set(key, value); err != nil {
		return fmt.Errorf("end the log of %v at %d: %w", l.id, offset, err)
	}
	if err := txn.CommitAt(v.db.MaxVersion()+1, nil); err != nil {
		return fmt.Errorf("end the log of %v at %d: %w", l.id, offset, err)
	}
	n := d.needed(stateBytes(len(value)))
	s.volumes.account(use{volume: l.stateVolume, records: -l.stateBytes}, use{volume: v.number, records: n})
	l.home, l.stateVolume, l.stateGeneration, l.stateBytes, l.rewrite = v.set, v.number, d.generation, n, false
	if !slices.Contains(l.stateVolumes, v.number) {
		l.stateVolumes = append(l.stateVolumes, v.number)
	}
	l.start, l.next, l.readable = d.LogStart, d.LogEnd, d.LogEnd
	producers := l.producers.Unpack()
	for i := range producers {
		p := &producers[i]
		p.Batches = slices.DeleteFunc(p.Batches, func(b ProducerBatch) bool { return b.BaseOffset >= offset })
	}
	l.producers = PackProducers(slices.DeleteFunc(producers, func(p Producer) bool { return len(p.Batches) == 0 }))
	s.metrics.shortened.Inc()
	s.cfg.Logger.Warn("the machine has crashed, and a partition that is not synced has lost its last records",
		"partition", l.id, "log_end", offset, "log_end_before", before)
	return nil
}
