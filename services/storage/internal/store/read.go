package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/dgraph-io/badger/v4"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// view is what a reader needs of one span.
type view struct {
	span
	// end is the offset after the last batch of the span that is readable.
	end    int64
	epochs []EpochStart
	// cuts tells whether the log has been truncated since.
	cuts uint64
}

// viewAt returns the span that holds an offset; false at the end of the log.
func (l *Log) viewAt(offset int64) (view, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault != nil {
		return view{}, false, l.fault
	}
	spans := l.durable.spans
	i := sort.Search(len(spans), func(i int) bool { return spans[i].end > offset })
	v := view{epochs: l.durable.Epochs, cuts: l.cuts}
	switch {
	case offset >= l.readable && offset >= l.durable.LogStart:
		return v, false, nil
	case i == len(spans) || spans[i].first > offset || l.durable.Deleted:
		return v, false, l.outOfRangeLocked(offset)
	}
	v.span, v.end = spans[i], min(spans[i].end, l.readable)
	return v, true, nil
}

func (l *Log) outOfRangeLocked(offset int64) error {
	return fmt.Errorf("%w: offset %d of %v, which has %d to %d", ErrOffsetOutOfRange, offset, l.id, l.durable.LogStart, l.readable)
}

// truncatedSince says whether the log was truncated after a view was taken; what
// was read then may belong to neither the log before nor the one after.
func (l *Log) truncatedSince(cuts uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cuts != cuts
}

// movedSince says whether a reader failed because a volume is gone that the log
// does not need any more.
func (l *Log) movedSince(err error) bool {
	var gone errVolumeGone
	if !errors.As(err, &gone) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !slices.ContainsFunc(l.durable.spans, func(s span) bool { return s.volume == uint64(gone) })
}

// Read returns the batch that holds offset and those that follow, as far as they
// begin below endOffset and together have at most maxBytes; at least one batch
// if there is any. None is returned where offset is the log's end, and where
// compaction has left nothing before endOffset: else the first batch that is left
// behind offset comes in place of the one that held it. The bytes are the caller's
// own. Each batch has been verified: against its checksum, its key and the leader
// epochs of the log.
//
// The errors are [ErrOffsetOutOfRange], [*ErrCorrupt], [ErrClosed] and those of
// ctx. Batches before a damaged one are returned without it.
func (l *Log) Read(ctx context.Context, offset, endOffset int64, maxBytes int) ([]Batch, error) {
	batches, err := l.readStable(ctx, offset, endOffset, maxBytes)
	l.noteCorruption(err, func(ctx context.Context) error {
		_, err := l.readStable(ctx, offset, endOffset, maxBytes)
		return err
	})
	return batches, err
}

// readStable reads until the log is not truncated meanwhile.
func (l *Log) readStable(ctx context.Context, offset, endOffset int64, maxBytes int) ([]Batch, error) {
	for {
		batches, cuts, err := l.read(ctx, offset, endOffset, maxBytes)
		if !l.truncatedSince(cuts) && !l.movedSince(err) {
			return batches, err
		}
	}
}

func (l *Log) read(ctx context.Context, offset, endOffset int64, maxBytes int) (batches []Batch, cuts uint64, err error) {
	first, ok, err := l.viewAt(offset)
	for v := first; ok && err == nil && offset < min(v.end, endOffset); v, ok, err = l.viewAt(offset) {
		if v.cuts != first.cuts {
			break
		}
		var full bool
		batches, full, err = l.store.readSpan(ctx, l.id, v, batches, offset, endOffset, &maxBytes)
		if full || err != nil {
			break
		}
		offset = v.end
	}
	if len(batches) > 0 {
		// What was read is good; the reader will meet the error when it goes on.
		err = nil
	}
	return batches, first.cuts, err
}

// readSpan appends the batches of one span to a list. It reports full when there
// is no room for the next one.
func (s *Store) readSpan(ctx context.Context, id PartitionID, v view, batches []Batch, offset, endOffset int64, room *int) (_ []Batch, full bool, err error) {
	volume, err := s.acquireSpan(ctx, id, v.span, offset)
	if err != nil {
		return batches, false, err
	}
	defer s.volumes.release(volume)
	r := spanReader{view: v, store: s, id: id, batches: batches, next: offset, after: v.span.end, ahead: s.readahead.resume(id, offset)}
	defer func() { s.readahead.keep(r.ahead, r.next) }()
	if v.sparse {
		err = s.checkTables(volume)
	}
	if err == nil {
		err = s.volumes.read(volume, func() (err error) {
			full, err = r.run(ctx, volume.db, endOffset, room)
			return err
		})
	}
	if IsDamagedVolume(err) {
		err = r.corrupt(err, "its volume cannot be read")
	}
	return r.batches, full, err
}

// spanReader is what a call of readSpan has done by the time that it ends, however
// it does.
type spanReader struct {
	view
	store   *Store
	id      PartitionID
	batches []Batch
	// next is where the next batch begins, and after an offset behind it. Where not
	// even its key is known, the next span is what is left.
	next, after int64
	ahead       sequentialReader
}

func (r *spanReader) corrupt(cause error, format string, args ...any) *ErrCorrupt {
	return &ErrCorrupt{Partition: r.id, Volume: r.volume, Offset: r.next, Next: r.after, Reason: fmt.Sprintf(format, args...), Cause: cause}
}

// damagedFile is corrupt for what looks as if it were not about a value alone.
func (r *spanReader) damagedFile(cause error, format string, args ...any) error {
	err := r.corrupt(cause, format, args...)
	err.file = true
	return err
}

// run is guarded, see [volumes.read].
func (r *spanReader) run(ctx context.Context, db *badger.DB, endOffset int64, room *int) (full bool, err error) {
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, kindBatch, r.id)})
	defer it.Close()

	limit := min(r.end, endOffset)
	for it.Seek(appendOffsetKey(nil, kindBatch, r.id, r.next)); r.next < limit; it.Next() {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if !it.Valid() {
			if r.sparse {
				return false, nil
			}
			return false, r.damagedFile(nil, "the span ends at %d, but there is no batch", r.end)
		}
		item := it.Item()
		_, _, last, err := parseKey(item.Key())
		switch {
		case err != nil:
			return false, r.corrupt(err, "the key of a batch is damaged")
		case r.sparse && last >= r.end:
			// What follows is not the span's.
			return false, nil
		case valueBytes(item) > *room && len(r.batches) > 0:
			return true, nil
		}
		r.after = min(last+1, r.span.end)
		var raw []byte
		var address uintptr
		// Badger's lock on the file is held meanwhile: copy, and nothing else.
		err = item.Value(func(value []byte) error {
			if err := r.ahead.fetch(value); err != nil {
				return fmt.Errorf("read %d bytes of a mapped file: %w", len(value), err)
			}
			raw, address = bytes.Clone(value), addressOf(value)
			return nil
		})
		if err != nil {
			return false, r.damagedFile(err, "a batch cannot be read")
		}
		if len(raw) >= valueThreshold {
			if from, ask := r.ahead.advance(address, len(raw)); ask > 0 {
				adviseWillNeed(from, ask)
				r.store.metrics.readahead.Add(float64(ask))
			}
		}
		header, wrong, err := r.verify(raw, last, r.next, len(r.batches) > 0)
		if wrong != "" {
			if err == nil && !r.sparse && header.LastOffset() == last && header.BaseOffset > r.next {
				// One is missing before this one, which is whole.
				r.after = header.BaseOffset
			}
			return false, r.corrupt(err, "%s", wrong)
		}
		if header.BaseOffset >= endOffset {
			return true, nil
		}
		r.batches = append(r.batches, Batch{Bytes: raw, BaseOffset: header.BaseOffset, LastOffset: last, MaxTimestamp: header.MaxTimestamp})
		*room -= len(raw)
		r.store.metrics.readBytes.Add(float64(len(raw)))
		r.next, r.after = last+1, r.span.end
	}
	return false, nil
}

// verify says what is wrong with the bytes of a batch that lies under a last
// offset, perhaps with a cause; nothing is if that is empty. next is the offset
// at which the batch must begin, or in which it may lie if it is the first one.
func (v *view) verify(raw []byte, last, next int64, follows bool) (header recordbatch.Header, wrong string, cause error) {
	header, err := recordbatch.Verify(raw)
	switch {
	case err != nil:
		return header, "a batch is damaged", err
	case header.LastOffset() != last:
		return header, fmt.Sprintf("the batch that ends at %d says it ends at %d", last, header.LastOffset()), nil
	case header.BaseOffset > next && !v.sparse || header.BaseOffset < next && follows:
		return header, fmt.Sprintf("the next batch begins at %d", header.BaseOffset), nil
	case header.BaseOffset < v.first || last >= v.end:
		return header, fmt.Sprintf("the batch from %d to %d reaches out of its span from %d to %d", header.BaseOffset, last, v.first, v.end), nil
	}
	if epoch, ok := epochAt(v.epochs, last); ok && epoch != header.LeaderEpoch {
		return header, fmt.Sprintf("the batch names leader epoch %d, the epoch table %d", header.LeaderEpoch, epoch), nil
	}
	return header, "", nil
}

// epochAt returns the leader epoch of the batch with a last offset. A batch may
// begin before the table does, when the log start lies within it; a log whose
// owner keeps no table has none.
func epochAt(epochs []EpochStart, last int64) (int32, bool) {
	i := sort.Search(len(epochs), func(i int) bool { return epochs[i].StartOffset > last })
	if i == 0 {
		return 0, false
	}
	return int32(epochs[i-1].Epoch), true
}

// OffsetForTime returns the first batch below endOffset and not below the log
// start whose greatest timestamp is at or after one in milliseconds since the
// Unix epoch, or nil if there is none. It is verified as in [Log.Read], with the
// same errors. Which record it is, and whether there is one at all, the records
// tell.
func (l *Log) OffsetForTime(ctx context.Context, timestamp, endOffset int64) (*Batch, error) {
	offset, err := l.findTimeStable(ctx, timestamp, endOffset)
	l.noteCorruption(err, func(ctx context.Context) error {
		_, err := l.findTimeStable(ctx, timestamp, endOffset)
		return err
	})
	if err != nil || offset < 0 {
		return nil, err
	}
	batches, err := l.Read(ctx, offset, endOffset, 1)
	if err != nil || len(batches) == 0 {
		return nil, err
	}
	return &batches[0], nil
}

// findTimeStable looks until the log is not truncated meanwhile.
func (l *Log) findTimeStable(ctx context.Context, timestamp, endOffset int64) (int64, error) {
	for {
		offset, cuts, err := l.findTime(ctx, timestamp, endOffset)
		if !l.truncatedSince(cuts) && !l.movedSince(err) {
			return offset, err
		}
	}
}

// findTime returns an offset in the batch to return, or -1.
func (l *Log) findTime(ctx context.Context, timestamp, endOffset int64) (offset int64, cuts uint64, err error) {
	l.mu.Lock()
	if err := l.fault; err != nil {
		cuts := l.cuts
		l.mu.Unlock()
		return -1, cuts, err
	}
	start, cuts := l.durable.LogStart, l.cuts
	end := min(l.readable, endOffset)
	spans := slices.Clone(l.durable.spans)
	l.mu.Unlock()
	for _, s := range spans {
		if s.end <= start || s.maxTimestamp < timestamp {
			continue
		}
		if s.first >= end {
			break
		}
		found, err := l.store.findTimeInSpan(ctx, l.id, s, timestamp, start, end)
		if err != nil || found >= 0 {
			return found, cuts, err
		}
	}
	return -1, cuts, nil
}

// findTimeInSpan looks for the batch with the help of the time index: an entry
// says what the greatest timestamp of the span is before the batch that it names.
func (s *Store) findTimeInSpan(ctx context.Context, id PartitionID, in span, timestamp, start, end int64) (int64, error) {
	volume, err := s.acquireSpan(ctx, id, in, in.first)
	if err != nil {
		return -1, err
	}
	defer s.volumes.release(volume)
	found := int64(-1)
	err = s.volumes.read(volume, func() (err error) {
		found, err = searchTime(ctx, volume.db, id, in, timestamp, start, end)
		return err
	})
	if IsDamagedVolume(err) {
		return -1, &ErrCorrupt{Partition: id, Volume: in.volume, Offset: max(in.first, start), Next: in.end, Reason: "its volume cannot be read", Cause: err}
	}
	return found, err
}

// searchTime is findTimeInSpan within a volume that is open; it is guarded, see
// [volumes.read].
func searchTime(ctx context.Context, db *badger.DB, id PartitionID, in span, timestamp, start, end int64) (int64, error) {
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()

	from, err := indexedBefore(txn, id, in, timestamp)
	if err != nil {
		return -1, &ErrCorrupt{Partition: id, Volume: in.volume, Offset: in.first, Next: in.end, Reason: "the time index is damaged", Cause: err}
	}
	from = max(from, start)
	it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, kindBatch, id)})
	defer it.Close()
	for it.Seek(appendOffsetKey(nil, kindBatch, id, from)); it.Valid(); it.Next() {
		if err := ctx.Err(); err != nil {
			return -1, err
		}
		_, _, last, err := parseKey(it.Item().Key())
		if err != nil {
			return -1, &ErrCorrupt{Partition: id, Volume: in.volume, Offset: from, Next: in.end, Reason: "the key of a batch is damaged", Cause: err}
		}
		if last >= in.end {
			return -1, nil
		}
		var header recordbatch.Header
		if err := it.Item().Value(func(value []byte) (err error) { header, err = recordbatch.Verify(value); return err }); err != nil {
			return -1, &ErrCorrupt{Partition: id, Volume: in.volume, Offset: from, Next: last + 1, Reason: "a batch is damaged", Cause: err}
		}
		if header.BaseOffset >= end {
			return -1, nil
		}
		if header.MaxTimestamp >= timestamp {
			return last, nil
		}
		from = last + 1
	}
	return -1, nil
}

// indexedBefore returns an offset before which all batches of the span are
// older than a timestamp.
func indexedBefore(txn *badger.Txn, id PartitionID, in span, timestamp int64) (int64, error) {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, kindTime, id)})
	defer it.Close()
	from := in.first
	for it.Seek(appendOffsetKey(nil, kindTime, id, in.first)); it.Valid(); it.Next() {
		_, _, offset, err := parseKey(it.Item().Key())
		if err != nil {
			return 0, err
		}
		var before int64
		key := it.Item().Key()
		if err := it.Item().Value(func(value []byte) (err error) { before, err = parseTimestamp(key, value); return err }); err != nil {
			return 0, err
		}
		if offset >= in.end || before >= timestamp {
			break
		}
		from = offset
	}
	return from, nil
}

// measureCut returns where the first batch begins that a truncation cuts off
// the span that holds its offset, and how many bytes of batches it cuts off it;
// 0 where nothing of the span stays.
func (s *Store) measureCut(l *Log, offset int64) (from, freed int64, err error) {
	v, ok, err := l.viewAt(offset)
	if err != nil {
		return 0, 0, err
	}
	if !ok {
		return 0, 0, fmt.Errorf("%w: %v has nothing at %d", ErrInvalidAppend, l.id, offset)
	}
	volume, err := s.acquireSpan(context.Background(), l.id, v.span, offset)
	if err != nil {
		return 0, 0, err
	}
	defer s.volumes.release(volume)
	err = s.volumes.read(volume, func() (err error) {
		from, freed, err = v.measureCut(volume.db, l.id, offset)
		return err
	})
	if IsDamagedVolume(err) {
		err = &ErrCorrupt{Partition: l.id, Volume: v.volume, Offset: offset, Reason: "its volume cannot be read", Cause: err}
	}
	return from, freed, err
}

// measureCut is [Store.measureCut] within a volume that is open; it is guarded, see
// [volumes.read].
func (v *view) measureCut(db *badger.DB, id PartitionID, offset int64) (from, freed int64, err error) {
	corrupt := func(cause error, format string, args ...any) error {
		return &ErrCorrupt{Partition: id, Volume: v.volume, Offset: offset, Reason: fmt.Sprintf(format, args...), Cause: cause}
	}
	txn := db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: appendPartitionKey(nil, kindBatch, id)})
	defer it.Close()
	from = offset
	it.Seek(appendOffsetKey(nil, kindBatch, id, offset))
	for first := true; it.Valid(); it.Next() {
		_, _, last, err := parseKey(it.Item().Key())
		if err != nil {
			return 0, 0, corrupt(err, "the key of a batch is damaged")
		}
		if last >= v.end {
			break
		}
		if first {
			first = false
			var header recordbatch.Header
			if err := it.Item().Value(func(value []byte) (err error) { header, err = recordbatch.Verify(value); return err }); err != nil {
				return 0, 0, corrupt(err, "a batch is damaged")
			}
			if header.LastOffset() != last || header.BaseOffset < v.first {
				return 0, 0, corrupt(nil, "the batch that ends at %d says that it has the offsets %d to %d", last, header.BaseOffset, header.LastOffset())
			}
			from = min(from, header.BaseOffset)
		}
		if from == v.first {
			return from, 0, nil
		}
		freed += int64(valueBytes(it.Item()))
	}
	return from, freed, nil
}

// acquireSpan opens the volume of a span for a reader, who must release it. Where
// the volume is lost the error says at which offset the next span begins.
func (s *Store) acquireSpan(ctx context.Context, id PartitionID, in span, offset int64) (*volume, error) {
	v, err := s.volumes.acquire(ctx, in.volume)
	if IsDamagedVolume(err) {
		err = &ErrCorrupt{Partition: id, Volume: in.volume, Offset: offset, Next: in.end, Reason: "its volume is damaged", Cause: err}
	}
	return v, err
}
