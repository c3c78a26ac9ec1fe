package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// compactAttempts is how often a run copies what others have moved meanwhile.
const compactAttempts = 3

// compactReadBytes is how many bytes compaction reads at a time.
const compactReadBytes = 1 << 20

// CompactOptions are the rules of one run of compaction.
type CompactOptions struct {
	// Set takes what is left.
	Set Set
	// Below bounds what is compacted: the high watermark.
	Below int64
	// Now is the time by which records are old enough and tombstones expire.
	Now time.Time
	// MinLag is how old a batch must be for compaction to touch its records.
	MinLag time.Duration
	// DeleteRetention is how long tombstones stay after what came before them is
	// gone.
	DeleteRetention time.Duration
	// MapBytes bounds the memory for keys: about 28 bytes for each.
	MapBytes int64
	// Limits bound what a batch may open to. One that opens to more stays as it is.
	Limits recordbatch.Limits
	// SpanBytes is the size up to which spans are made one, so that retention can
	// still tell old from new; 0 for no limit.
	SpanBytes int64
	// SpanAge is up to how much time between their records spans are made one; 0
	// for no limit.
	SpanAge time.Duration
}

// Compacted is what one run of compaction has done.
type Compacted struct {
	// BytesIn and BytesOut are those of the batches before and after.
	BytesIn, BytesOut int64
	// Records is the number of records that are gone.
	Records int64
	// End is the offset below which the log is no longer as it was appended.
	End int64
	// MapFull says that there were more keys than the map holds: another run has
	// more to do.
	MapFull bool
	// Progress says that the log has changed, if only by how far it is compacted.
	Progress bool
}

// Dirt is what compaction could do in a log.
type Dirt struct {
	// Bytes are those of all batches that may be compacted, Dirty of those that
	// have come since the last run. Young are those of batches besides which are
	// too young.
	Bytes, Dirty, Young int64
	// TombstonesUntil is when the last tombstone that compaction has left may go;
	// zero where there is none.
	TombstonesUntil time.Time
}

// Dirt returns what compaction could do below an offset. With a lag, what has
// come since the last run counts by spans, as far as all their records are at
// least that old. It costs little.
func (l *Log) Dirt(below int64, now time.Time, lag time.Duration) Dirt {
	youngest := now.Add(-lag).UnixMilli()
	l.mu.Lock()
	defer l.mu.Unlock()
	var d Dirt
	clean := max(l.durable.compactedTo, l.durable.LogStart)
	for _, s := range l.durable.spans {
		// Where a bound lies within a span its bytes are taken to be spread evenly.
		bytes := func(from, to int64) int64 {
			from, to = max(from, s.first), min(to, s.end)
			return int64(float64(s.bytes) * float64(max(to-from, 0)) / float64(s.end-s.first))
		}
		d.Bytes += bytes(s.first, min(clean, below))
		if lag <= 0 || s.maxTimestamp <= youngest {
			d.Dirty += bytes(clean, below)
		} else {
			d.Young += bytes(clean, below)
		}
	}
	d.Bytes += d.Dirty
	if until := l.durable.tombstonesUntil; until > 0 && clean > l.durable.LogStart {
		d.TombstonesUntil = time.UnixMilli(until)
	}
	return d
}

// Compact removes records that have a newer one of the same key, and tombstones
// whose time has come. Offsets and order of what is left stay, and so do the
// first and the last offset of each batch that is left. It returns once the
// change is durable. On an error, and where the log was truncated or its start
// moved past what is being read meanwhile, nothing has changed.
//
// Its memory is bounded by the options, whatever the number of keys. One run per
// store at a time keeps that of the process bounded.
func (l *Log) Compact(ctx context.Context, o CompactOptions) (Compacted, error) {
	c := compaction{log: l, options: o}
	if due, err := c.begin(); !due || err != nil {
		return Compacted{}, err
	}
	switch err := c.mapKeys(ctx); {
	case errors.Is(err, ErrOffsetOutOfRange):
		// The log start has overtaken it, or the log was cut. What is left is for
		// the next time.
		return Compacted{}, nil
	case err != nil:
		return Compacted{}, fmt.Errorf("note the keys of %v: %w", l.id, err)
	}
	failpoint.Hit("compact/after-map")
	if c.end == c.dirty && !c.expires() {
		return c.done, nil
	}
	l.copying.Lock()
	defer l.copying.Unlock()
	for range compactAttempts {
		from := l.snapshot(c.end, func(span) bool { return true })
		if from.cuts != c.cuts || len(from.spans) == 0 {
			break
		}
		switched, again, err := c.attempt(ctx, from)
		if err != nil {
			return Compacted{}, fmt.Errorf("compact %v: %w", l.id, err)
		}
		if switched {
			c.done.End, c.done.Progress = c.end, true
			return c.done, nil
		}
		if !again {
			break
		}
	}
	return Compacted{}, nil
}

// attempt replaces spans, and says whether it is worth to try again with those that
// there are then.
func (c *compaction) attempt(ctx context.Context, from snapshot) (switched, again bool, err error) {
	switched, err = c.replace(ctx, from)
	_, gone := errors.AsType[errVolumeGone](err)
	switch {
	case err == nil || gone:
		return switched, true, nil
	case ctx.Err() == nil && c.log.overtaken(c.cuts):
		// What was cut is gone from the active volume at once, which looks like damage.
		return false, false, nil
	default:
		return false, false, err
	}
}

// overtaken says whether the log was truncated since, or deleted.
func (l *Log) overtaken(cuts uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cuts != cuts || l.durable.Deleted
}

// replace makes the log go on with what compaction leaves of some spans. It
// reports false where they were replaced otherwise meanwhile: what was cleaned a
// moment before Log.copying was taken may still be on its way.
func (c *compaction) replace(ctx context.Context, from snapshot) (switched bool, err error) {
	c.tombstonesUntil = 0
	c.done = Compacted{MapFull: c.done.MapFull}
	o := &c.options
	copied, err := c.log.store.cleaner.copier.copySpans(ctx, o.Set, from, copyRules{filter: c.filter, spanBytes: o.SpanBytes, spanAge: o.SpanAge})
	if err != nil {
		return false, err
	}
	failpoint.Hit("compact/after-copy")
	switched, err = c.log.switchSpans(ctx, copied, func(d *durable) {
		d.compactedTo = c.mapped
		d.tombstonesUntil = c.tombstonesUntil
		// A checkpoint below would lie where there may be nothing.
		d.HighWatermark = max(d.HighWatermark, c.end)
	})
	failpoint.Hit("compact/after-switch")
	return switched, err
}

// begin takes note of the log as it is; false says that there is nothing to do.
func (c *compaction) begin() (bool, error) {
	l := c.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault != nil || l.durable.Deleted || l.durable.failed != nil {
		return false, l.fault
	}
	c.start, c.cuts = l.durable.LogStart, l.cuts
	c.dirty = max(l.durable.compactedTo, c.start)
	c.earlier = l.durable.tombstonesUntil
	c.options.Below = min(c.options.Below, l.readable)
	return len(l.durable.spans) > 0 && c.options.Below > c.start, nil
}

// expires says whether all tombstones that earlier runs have left may go.
func (c *compaction) expires() bool {
	return c.earlier > 0 && c.earlier <= c.options.Now.UnixMilli() && c.dirty > c.start
}

// compaction is one run. It has two passes: the first notes the newest offset of
// each key in what has come since the run before, as far as the map of keys goes;
// the second goes from the start of the log to there and leaves out records which
// have a newer one of their key, and tombstones whose time has come.
type compaction struct {
	log     *Log
	options CompactOptions

	// start is the log's start, cuts counts its truncations.
	start int64
	cuts  uint64
	// dirty is where the first pass begins: below it the run before has left one
	// record of a key.
	dirty int64
	// mapped is where it has ended; it may lie within a batch.
	mapped int64
	// end is where the second pass ends: with the batch that holds mapped-1.
	end  int64
	keys *keyMap
	// earlier is the latest delete horizon of what earlier runs have left,
	// tombstonesUntil of what this one leaves; 0 where there is none.
	earlier, tombstonesUntil int64
	done                     Compacted
}

// mapKeys is the first pass, from dirty on. Batches that cannot be opened are
// passed over: nothing is removed because of them, nor from them.
func (c *compaction) mapKeys(ctx context.Context) error {
	c.mapped, c.end = c.dirty, c.dirty
	c.keys = newKeyMap(c.options.MapBytes, c.options.Below-c.dirty)
	for c.end < c.options.Below {
		batches, err := c.log.Read(ctx, c.end, c.options.Below, compactReadBytes)
		if err != nil || len(batches) == 0 {
			return err
		}
		bytes := 0
		for i := range batches {
			b := &batches[i]
			bytes += len(b.Bytes)
			if b.LastOffset >= c.options.Below || !c.oldEnough(b.MaxTimestamp) {
				return nil
			}
			c.end = b.LastOffset + 1
			if full := c.mapBatch(b); full {
				c.done.MapFull = true
				return nil
			}
			c.mapped = c.end
		}
		if err := c.log.store.cleaner.copier.pacer.wait(ctx, bytes, c.log.store.lowOnSpace()); err != nil {
			return err
		}
	}
	return nil
}

// oldEnough says whether a batch may lose records.
func (c *compaction) oldEnough(timestamp int64) bool {
	return c.options.MinLag <= 0 || timestamp <= c.options.Now.Add(-c.options.MinLag).UnixMilli()
}

// mapBatch notes the keys of a batch. Where the map has become full, the first
// record that does not fit is the first that is not mapped.
func (c *compaction) mapBatch(b *Batch) (full bool) {
	header, err := recordbatch.ParseHeader(b.Bytes)
	if err != nil || header.Control() || !c.opens(b) {
		return false
	}
	for r, err := range recordbatch.Records(b.Bytes, c.options.Limits) {
		if err != nil || r.Offset < c.dirty || r.Key == nil {
			continue
		}
		if !c.keys.put(r.Key, r.Offset) {
			c.mapped = r.Offset
			return true
		}
	}
	return false
}

// opens says whether all records of a batch can be read. Producers are only
// checked for that where the topic was compacted already.
func (c *compaction) opens(b *Batch) bool {
	for _, err := range recordbatch.Records(b.Bytes, c.options.Limits) {
		if err != nil {
			return false
		}
	}
	return true
}

// filter is the second pass over one batch; nil says that nothing of it stays.
// The last batch stays though it may be empty: it tells where the log goes on.
func (c *compaction) filter(b Batch) ([]byte, error) {
	c.done.BytesIn += int64(len(b.Bytes))
	if b.LastOffset < c.start {
		return nil, nil
	}
	out := c.filterRecords(b)
	c.done.BytesOut += int64(len(out))
	return out, nil
}

func (c *compaction) filterRecords(b Batch) []byte {
	header, err := recordbatch.ParseHeader(b.Bytes)
	if err != nil || header.Control() {
		return b.Bytes
	}
	now := c.options.Now.UnixMilli()
	// What comes before a tombstone that is not mapped yet is still there.
	horizon := recordbatch.NoTimestamp
	if b.LastOffset < c.mapped {
		horizon = c.options.Now.Add(c.options.DeleteRetention).UnixMilli()
	}
	until, has := header.DeleteHorizon()
	expired := has && until <= now && c.oldEnough(header.MaxTimestamp)
	tombstones := false
	out, err := recordbatch.Filter(b.Bytes, c.options.Limits, horizon, func(r recordbatch.Record) bool {
		switch {
		case r.Offset >= c.mapped:
			return true
		case r.Key == nil:
			return false
		case c.keys.newest(r.Key) > r.Offset:
			return false
		case r.Value != nil:
			return true
		case expired:
			return false
		}
		tombstones = true
		return true
	})
	if err != nil {
		return b.Bytes
	}
	c.done.Records += int64(out.Removed)
	if until, has := out.Header.DeleteHorizon(); has && tombstones {
		c.tombstonesUntil = max(c.tombstonesUntil, until)
	}
	if out.Header.RecordCount == 0 && b.LastOffset+1 != c.end {
		return nil
	}
	return out.Batch
}
