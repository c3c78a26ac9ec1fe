package store

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// copyChunk is about how many bytes are read before they are written; a reader's
// place is held meanwhile.
const copyChunk = 1 << 20

// batchFilter says what takes the place of a batch in a copy: the batch's own
// bytes, others with the same base and last offset, or nil where it is left out.
type batchFilter func(Batch) ([]byte, error)

// copyRules say what becomes of batches and spans in a copy. The zero value
// changes neither.
type copyRules struct {
	// filter makes the copies sparse, and one span of all that are copied.
	filter batchFilter
	// With a filter a span ends after spanBytes, and after spanAge between the
	// timestamps of its batches; 0 for never.
	spanBytes int64
	spanAge   time.Duration
}

// copied is a stretch of a log that was copied, ready for [Log.switchSpans].
type copied struct {
	log *Log
	// cuts is that of the log when the spans were taken.
	cuts uint64
	// from are the spans that were copied, with the bytes that were read; the last
	// may be the beginning of one that goes on.
	from []span
	// to are the copies. Together they cover the same offsets. They count as used,
	// so that their volumes stay, until they are switched or released.
	to []span

	// destinations have them.
	destinations []*destination
}

// release gives up what was copied.
func (c *copied) release() {
	c.log.store.volumes.account(released(c.to)...)
	c.to = nil
}

// released returns what is no longer used without some spans.
func released(spans []span) []use {
	uses := make([]use, len(spans))
	for i, s := range spans {
		uses[i] = use{volume: s.volume, spans: -1, bytes: -s.bytes}
	}
	return uses
}

// copier writes copies of batches. For each set one volume takes them, whoever
// makes them, so that there are few; when it is full, the next one does.
type copier struct {
	store *Store
	pacer *pacer

	// mu is taken before all other locks, and held while a volume is written.
	mu     sync.Mutex
	open   map[Set]*destination
	closed bool
}

// destination is a volume that takes copies. copier.mu guards it.
type destination struct {
	opened
	version uint64
	limits  transactionLimits
	bytes   int64
	// taken has the offsets for which it may have batches, by partition. Others of
	// the same offsets must not come to lie beside them.
	taken map[PartitionID][]offsets

	// What is not committed yet, and what that takes of a transaction.
	txn  *badger.Txn
	cost cost
	// err is why what was not committed is lost; nothing more is written then.
	err error
}

// offsets are those from first up to end.
type offsets struct{ first, end int64 }

// takes says whether a span may lie in the volume.
func (d *destination) takes(id PartitionID, s offsets) bool {
	return !slices.ContainsFunc(d.taken[id], func(t offsets) bool { return t.first < s.end && s.first < t.end })
}

// take records that one does.
func (d *destination) take(id PartitionID, s offsets) {
	list := d.taken[id]
	if n := len(list); n > 0 && list[n-1].end == s.first {
		list[n-1].end = s.end
		return
	}
	d.taken[id] = append(list, s)
}

func newCopier(s *Store) *copier {
	return &copier{store: s, pacer: newPacer(s.cfg.CleaningRate), open: make(map[Set]*destination)}
}

// copySpans copies spans of a log that follow each other, and returns once the
// copies are on the disk. Batches are verified on the way. Nothing of the log
// changes before [Log.switchSpans]. in says which set the copies belong to.
//
// Without a filter all batches are copied as they are, and each span becomes one
// of its own or, where its volume became full, several. With one, the spans are
// merged and marked as sparse.
//
// The caller holds Log.copying from before it took the spans until it has
// switched them. On an error nothing has to be released.
func (c *copier) copySpans(ctx context.Context, in Set, from snapshot, rules copyRules) (*copied, error) {
	out, err := c.write(ctx, in, from, rules)
	if err != nil {
		return nil, err
	}
	if err := c.flush(out); err != nil {
		out.release()
		return nil, err
	}
	return out, nil
}

// snapshot are spans of a log as they were at one time.
type snapshot struct {
	log *Log
	// spans are in ascending order; the last may be cut.
	spans  []span
	epochs []EpochStart
	cuts   uint64
}

// snapshot returns the spans that admit accepts. Those that hold offset end, or
// what follows it, are cut there or left out; end must be where a batch begins.
func (l *Log) snapshot(end int64, admit func(span) bool) snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := snapshot{log: l, epochs: l.durable.Epochs, cuts: l.cuts}
	end = min(end, l.readable)
	for _, sp := range l.durable.spans {
		if sp.end = min(sp.end, end); sp.first < sp.end && admit(sp) {
			s.spans = append(s.spans, sp)
		}
	}
	return s
}

// write is copySpans without the final flush.
func (c *copier) write(ctx context.Context, in Set, from snapshot, rules copyRules) (_ *copied, err error) {
	out := &copied{log: from.log, cuts: from.cuts}
	defer func() {
		if err != nil {
			out.release()
		}
	}()
	var sources []uint64
	for _, s := range from.spans {
		sources = append(sources, s.volume)
	}
	job := copyJob{copied: out, copyRules: rules, set: in, sources: sources}
	for i, s := range from.spans {
		if rules.filter == nil || i == 0 {
			job.next, job.open, job.sparse = offsets{s.first, s.end}, false, s.sparse || rules.filter != nil
			if rules.filter != nil {
				job.next.end = from.spans[len(from.spans)-1].end
			}
		}
		read, err := c.copySpan(ctx, &job, s, from.epochs)
		if err != nil {
			return nil, err
		}
		s.bytes = read
		out.from = append(out.from, s)
		if rules.filter == nil || i == len(from.spans)-1 {
			if err := c.end(&job, s.end); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// copySpan copies one span and returns the bytes that it read.
func (c *copier) copySpan(ctx context.Context, job *copyJob, s span, epochs []EpochStart) (int64, error) {
	var read int64
	v := view{span: s, end: s.end, epochs: epochs}
	for offset := s.first; offset < s.end; {
		room := copyChunk
		batches, _, err := c.store.readSpan(ctx, job.log.id, v, nil, offset, s.end, &room)
		if err != nil {
			job.log.noteCorruption(err, func(ctx context.Context) error {
				_, err := job.log.readStable(ctx, offset, offset+1, 1)
				return err
			})
			return 0, err
		}
		if len(batches) == 0 {
			// Compaction has left nothing behind this offset.
			break
		}
		offset = batches[len(batches)-1].LastOffset + 1
		chunk := 0
		kept := batches[:0]
		for _, b := range batches {
			chunk += len(b.Bytes)
			if job.filter != nil {
				if b.Bytes, err = job.filter(b); err != nil {
					return 0, err
				}
				if b.Bytes == nil {
					continue
				}
				header, err := recordbatch.ParseHeader(b.Bytes)
				if err != nil {
					return 0, fmt.Errorf("copy the batch at %d of %v: %w", b.BaseOffset, job.log.id, err)
				}
				b.MaxTimestamp = header.MaxTimestamp
			}
			kept = append(kept, b)
		}
		read += int64(chunk)
		if err := c.put(job, kept); err != nil {
			return 0, err
		}
		if err := c.pacer.wait(ctx, chunk, c.store.lowOnSpace()); err != nil {
			return 0, err
		}
	}
	return read, nil
}

// copyJob is what one call of copySpans keeps.
type copyJob struct {
	*copied
	copyRules
	set     Set
	sources []uint64
	sparse  bool

	// open says that the last of to goes on; else next is what the next one covers,
	// or at least begins with.
	open      bool
	next      offsets
	unindexed int64
	// begun is the timestamp of the first batch of the span.
	begun int64
}

// full says whether a span should end before a batch.
func (j *copyJob) full(s *span, b *Batch) bool {
	if j.filter == nil {
		return false
	}
	apart := b.MaxTimestamp - j.begun
	return j.spanBytes > 0 && s.bytes >= j.spanBytes || j.spanAge > 0 && max(apart, -apart) > j.spanAge.Milliseconds()
}

// end closes the span that a job is making at an offset. One without batches,
// which only a sparse one can be, lies in some volume too.
func (c *copier) end(job *copyJob, offset int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !job.open {
		d, err := c.admit(job)
		if err != nil {
			return err
		}
		job.extend(d, math.MinInt64)
	}
	job.to[len(job.to)-1].end = offset
	job.open = false
	return nil
}

// extend returns the span that takes what comes next, which has that timestamp.
func (j *copyJob) extend(d *destination, timestamp int64) *span {
	if !j.open {
		j.to = append(j.to, span{volume: d.volume.number, first: j.next.first, end: j.next.first, maxTimestamp: timestamp, sparse: j.sparse})
		d.take(j.log.id, j.next)
		j.open, j.unindexed, j.begun = true, 0, timestamp
		d.volume.space.spans.Add(1)
	}
	return &j.to[len(j.to)-1]
}

// rest are the offsets that are still to come.
func (j *copyJob) rest() offsets {
	if j.open {
		return offsets{j.to[len(j.to)-1].end, j.next.end}
	}
	return j.next
}

// put adds batches to the destination of a job.
func (c *copier) put(job *copyJob, batches []Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range batches {
		b := &batches[i]
		d, err := c.admit(job)
		if err != nil {
			return err
		}
		if err := c.putBatch(job, d, b); err != nil {
			return err
		}
	}
	return nil
}

// admit returns the volume that takes a job's next batch; mu is held. If it is
// another one than before, a new span begins there.
func (c *copier) admit(job *copyJob) (*destination, error) {
	if c.closed {
		return nil, ErrClosed
	}
	if err := c.store.failure(); err != nil {
		return nil, err
	}
	d := c.open[job.set]
	goesOn := d != nil && job.open && job.to[len(job.to)-1].volume == d.volume.number
	if d != nil && (d.err != nil || d.bytes >= c.store.cfg.VolumeBytes || slices.Contains(job.sources, d.volume.number) ||
		!goesOn && !d.takes(job.log.id, job.rest())) {
		if err := c.seal(d); err != nil {
			return nil, err
		}
		d = nil
	}
	if d == nil {
		next, err := c.create(job.set)
		if err != nil {
			return nil, err
		}
		d = next
	}
	if !slices.Contains(job.destinations, d) {
		job.destinations = append(job.destinations, d)
	}
	return d, nil
}

func (c *copier) create(set Set) (*destination, error) {
	if err := c.store.beginWriting(); err != nil {
		return nil, c.store.fail(err)
	}
	if err := c.store.disk.has(c.store.openSpace(nil)); err != nil {
		return nil, err
	}
	failpoint.Hit("clean/before-create")
	v, err := c.store.volumes.create(set, true)
	if noRoom(err) {
		return nil, err
	}
	if err != nil {
		return nil, c.store.fail(err)
	}
	files, err := watchLogFiles(v.path, true, &c.store.cfg, c.store.disk, v.db.MaxVersion())
	if err != nil {
		return nil, c.store.fail(fmt.Errorf("create volume %d: %w", v.number, err))
	}
	d := &destination{
		opened: opened{volume: v, files: files}, version: v.db.MaxVersion(), limits: limitsOf(v.db, &c.store.cfg),
		taken: make(map[PartitionID][]offsets),
	}
	c.open[set] = d
	return d, nil
}

// putBatch adds a batch, and makes or extends the span that it belongs to; mu is
// held.
func (c *copier) putBatch(job *copyJob, d *destination, b *Batch) error {
	number := d.volume.number
	if job.open {
		if last := &job.to[len(job.to)-1]; last.volume != number || job.full(last, b) {
			job.next.first = b.BaseOffset
			last.end, job.open = b.BaseOffset, false
		}
	}
	var n cost
	n.addEntry(offsetKeyBytes, len(b.Bytes))
	n.addEntry(offsetKeyBytes, sumBytes+8)
	total := d.cost
	total.add(n)
	if d.txn != nil && (!d.limits.admit(total) || total.values > int64(c.store.cfg.GroupBytes)) {
		if err := c.commit(d); err != nil {
			return err
		}
		total = n
	}
	if d.txn == nil {
		d.txn = d.volume.db.NewTransactionAt(math.MaxUint64, true)
	}
	s := job.extend(d, b.MaxTimestamp)
	if job.unindexed >= 1<<timeIndexShift {
		key := appendOffsetKey(nil, kindTime, job.log.id, b.BaseOffset)
		_, value := appendTimestamp(nil, key, s.maxTimestamp)
		if err := d.txn.Set(key, value); err != nil {
			return c.lost(d, fmt.Errorf("put together a transaction: %w", err))
		}
		job.unindexed = 0
	}
	if err := d.txn.Set(appendOffsetKey(nil, kindBatch, job.log.id, b.LastOffset), b.Bytes); err != nil {
		return c.lost(d, fmt.Errorf("put together a transaction: %w", err))
	}
	d.cost = total
	size := int64(len(b.Bytes))
	job.unindexed += size
	s.end = b.LastOffset + 1
	s.maxTimestamp = max(s.maxTimestamp, b.MaxTimestamp)
	s.bytes += size
	d.bytes += size
	d.volume.space.live.Add(size)
	d.volume.space.written.Add(size)
	return nil
}

// commit makes what a destination was given durable; mu is held.
func (c *copier) commit(d *destination) error {
	if d.err != nil || d.txn == nil {
		return d.err
	}
	failpoint.Hit("clean/before-commit")
	keys := d.cost.size + d.cost.entries*memEntry
	if _, err := d.files.prepare(d.cost.values, keys); err != nil {
		if !noRoom(err) {
			err = c.store.fail(err)
		}
		return c.lost(d, err)
	}
	d.version++
	if err := d.txn.CommitAt(d.version, nil); err != nil {
		return c.lost(d, c.store.fail(fmt.Errorf("commit to volume %d: %w", d.volume.number, err)))
	}
	values := d.cost.values
	d.txn, d.cost = nil, cost{}
	// Badger may have reported an error on the way that it does not return.
	if err := c.store.failure(); err != nil {
		return c.lost(d, err)
	}
	if _, err := d.files.committed(values, keys); err != nil {
		return c.lost(d, c.store.fail(fmt.Errorf("commit to volume %d: %w", d.volume.number, err)))
	}
	return nil
}

// lost makes all copies fail that a destination has not committed; mu is held.
func (c *copier) lost(d *destination, err error) error {
	d.err = err
	if d.txn != nil {
		d.txn.Discard()
		d.txn = nil
	}
	return err
}

// flush makes copies durable.
func (c *copier) flush(copies ...*copied) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range copies {
		for _, d := range one.destinations {
			if err := c.commit(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// seal closes a destination for good; mu is held.
func (c *copier) seal(d *destination) error {
	for set, open := range c.open {
		if open == d {
			delete(c.open, set)
		}
	}
	// Whoever waits for what is lost asks for it on its own.
	_ = c.commit(d)
	d.files.close()
	if err := c.store.failure(); err != nil {
		return err
	}
	failpoint.Hit("clean/before-seal")
	if err := c.store.volumes.retire(d.volume); err != nil {
		return c.store.fail(err)
	}
	c.store.scrub.seal(d.volume)
	return nil
}

// sealUnused closes destinations that have become nearly useless, so that they
// can be cleaned like others.
func (c *copier) sealUnused() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.open {
		s := &d.volume.space
		if s.spans.Load() == 0 || d.bytes >= c.store.cfg.VolumeBytes/4 && s.needed() < s.size()/2 {
			if err := c.seal(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// close gives the destinations up to whoever closes all volumes. What has not
// been flushed is lost.
func (c *copier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, d := range c.open {
		_ = c.lost(d, ErrClosed)
		d.files.close()
	}
	clear(c.open)
}

// switchSpans makes a log go on with copies in place of what was copied, and
// returns whether it did: it does not where the log was truncated since, or has
// lost or replaced some of those spans in another way than by its log start
// moving on. The copies are released then. adjust, which may be nil, changes the
// state in the same step; the log's mu is held.
func (l *Log) switchSpans(ctx context.Context, c *copied, adjust func(*durable)) (bool, error) {
	type outcome struct {
		switched bool
		err      error
	}
	result := make(chan outcome, 1)
	l.switchLater(c, adjust, func(switched bool, err error) { result <- outcome{switched, err} })
	select {
	case o := <-result:
		return o.switched, o.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// switchLater is switchSpans for those who do not wait.
func (l *Log) switchLater(c *copied, adjust func(*durable), done func(bool, error)) {
	switched := false
	l.change(change{
		spans: len(c.to),
		apply: func(w *writer, l *Log) (bool, error) {
			failpoint.Hit("clean/before-switch")
			uses, ok := l.replaceLocked(c)
			w.uses = append(w.uses, uses...)
			if !ok {
				return false, nil
			}
			switched = true
			if adjust != nil {
				adjust(&l.durable)
			}
			return true, nil
		},
	}, func(err error) { done(switched && err == nil, err) })
}

// replaceLocked replaces spans by their copies if they are still those that were
// copied, and returns what that frees.
func (l *Log) replaceLocked(c *copied) ([]use, bool) {
	spans := l.durable.spans
	from, to := c.from, c.to
	c.to = nil
	if l.cuts != c.cuts || len(spans) == 0 {
		return released(to), false
	}
	// What has been dropped meanwhile needs no copy.
	for len(from) > 0 && from[0].end <= spans[0].first {
		from = from[1:]
	}
	if len(from) == 0 {
		return released(to), false
	}
	if slices.ContainsFunc(to, func(s span) bool { return !l.store.volumes.has(s.volume) }) {
		// They were found damaged meanwhile.
		return released(to), false
	}
	at := slices.IndexFunc(spans, func(s span) bool { return s.first == from[0].first })
	if at < 0 || at+len(from) > len(spans) {
		return released(to), false
	}
	for i, f := range from {
		s := spans[at+i]
		whole := s.end == f.end || i == len(from)-1 && s.end > f.end
		if s.volume != f.volume || s.first != f.first || !whole {
			return released(to), false
		}
	}
	var uses []use
	for len(to) > 0 && to[0].end <= max(from[0].first, l.durable.LogStart) {
		uses = append(uses, released(to[:1])...)
		to = to[1:]
	}
	next := slices.Concat(spans[:at], to)
	for i, f := range from {
		s := spans[at+i]
		if s.end == f.end {
			uses = append(uses, use{volume: s.volume, spans: -1, bytes: -s.bytes})
			continue
		}
		uses = append(uses, use{volume: s.volume, bytes: -f.bytes})
		s.first, s.bytes = f.end, max(s.bytes-f.bytes, 0)
		next = append(next, s)
	}
	l.durable.spans = append(next, spans[at+len(from):]...)
	l.rewrite = true
	return uses, true
}

// pacer holds back who copies, so that others get their share of the disk.
type pacer struct {
	// rate is in bytes per second.
	rate int64

	mu sync.Mutex
	// next is when the next bytes may be copied.
	next time.Time
}

func newPacer(rate int64) *pacer { return &pacer{rate: rate} }

// wait returns when bytes that were copied have had their time, or with the error
// of ctx.
func (p *pacer) wait(ctx context.Context, bytes int, urgent bool) error {
	if err := ctx.Err(); err != nil || urgent {
		return err
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	delay := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(float64(bytes) / float64(p.rate) * float64(time.Second)))
	p.mu.Unlock()
	if delay <= 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
