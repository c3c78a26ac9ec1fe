package store

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// Batch is one record batch as it lies on disk. Its fields say what its header
// does.
type Batch struct {
	Bytes      []byte
	BaseOffset int64
	LastOffset int64
	// MaxTimestamp is the greatest of its records, in milliseconds since the Unix
	// epoch.
	MaxTimestamp int64
}

// Append is what a partition adds to its log in one step: all of it is there
// after a crash, or nothing.
type Append struct {
	// Set takes the batches. When it changes, Append waits for the appends to the
	// set before.
	Set Set
	// Batches follow each other and the log's end. Their bytes must not change any
	// more. Without batches only state is written.
	Batches []Batch
	// Gaps says that offsets may be missing before and between the batches: they are
	// copied from a log that was compacted.
	Gaps bool
	// State is as it is after these batches.
	State State
	// Producers are those whose state changes, at most 4096 with RemovedProducers.
	Producers []Producer
	// SpanBytes and SpanAge are how large and how old a span becomes before the next
	// one begins; 0 stands for any. The smaller they are, the larger the state.
	SpanBytes int64
	SpanAge   time.Duration
	// RemovedProducers are the ids of producers to forget.
	RemovedProducers []int64
}

// Log is the log of one partition. Append and Truncate must not be called
// concurrently, all other methods may.
type Log struct {
	store *Store
	id    PartitionID

	// copying is held by who copies spans of the log, before all other locks but
	// that of the copier, and during I/O.
	copying sync.Mutex

	// mu guards the fields below. The commit goroutine of the set that has appends
	// pending changes the committed ones; there is one such set at a time.
	mu sync.Mutex
	// settled tells that nothing is pending any more; nil before somebody waits.
	settled *sync.Cond
	// fault is why the log cannot be used; nil otherwise.
	fault error
	// producers are as found when the store was opened, until the first append.
	producers PackedProducers

	// set takes the appends; empty before the first of this process.
	set Set
	// pending counts the operations that wait for their outcome.
	pending int
	// start and next are the log's start and end after all that is queued.
	start, next int64

	// durable is the state after the latest group that was put together.
	durable durable
	// stateVolume holds the state record of stateGeneration, which progress
	// records may continue; 0 where there is none.
	stateVolume uint64
	// home is the set of that volume; empty where there is none.
	home            Set
	stateGeneration uint64
	// stateBytes are those of that record, see [space].
	stateBytes int64
	// stateVolumes are those in which the partition has a state record, and may
	// have producers.
	stateVolumes []uint64
	// unindexed counts the bytes of batches since the latest entry of the time
	// index.
	unindexed int64
	// spanSince is when the last span began, as the configured clock tells it, in
	// nanoseconds since the Unix epoch; 0 for nobody knows.
	spanSince int64
	// readable is the offset after the last batch that is committed.
	readable int64
	// cuts counts truncations, for readers to notice one that they raced with.
	cuts uint64
	// group is the number of the last group with operations of this log, and
	// grouped says that it is being written; both are the commit goroutine's.
	group   uint64
	grouped bool
	// known says that a state record of the partition was written, and rewrite that
	// spans or epochs have changed since.
	known, rewrite bool
	// doomed says that the cleaner has the log, which is deleted, and forgotten that
	// the disk knows nothing of it any more: it must never be written again.
	doomed, forgotten bool
}

func newLog(s *Store, id PartitionID) *Log {
	return &Log{store: s, id: id}
}

// ID returns the partition that the log belongs to.
func (l *Log) ID() PartitionID { return l.id }

// Err returns why the log cannot be used: an [*ErrCorrupt] if what was found on
// disk contradicts itself, else nil. Appends and reads of such a log fail with
// the same error.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

// Loaded returns the state, which is as it is on disk while nothing is pending, and
// the producers as found when the store was opened; without producers after the
// first append. The epochs are the caller's to read, not to change.
func (l *Log) Loaded() (State, PackedProducers) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable.State, l.producers
}

// Admit says whether the disk has room for that many bytes of batches: if not,
// with an error that wraps [ErrDiskFull] or [ErrFewFiles]. What was admitted is appended, if need
// be once there is room.
func (l *Log) Admit(bytes int) error { return l.store.disk.admit(int64(bytes)) }

// Append queues an append and returns. done is called once, from a goroutine of
// the store and in the order of the calls, when the append is as durable as its
// set says or has failed; it must not block, nor call Append or Truncate, nor
// wait for somebody who does. An error that wraps [ErrInvalidAppend] concerns
// this append only, one that is an [*ErrCorrupt] this log only; after any other
// the store takes no more.
//
// Append blocks while the set's queue is full, and while appends to another set
// are pending.
func (l *Log) Append(a Append, done func(error)) {
	op := &operation{kind: appendBatches, log: l, append: a, done: done}
	if !a.Set.valid() {
		// Some set has to call done in its turn.
		op.err = fmt.Errorf("%w: unknown set %q", ErrInvalidAppend, a.Set)
		op.append.Set = SetSynced
	}
	l.mu.Lock()
	l.producers = ""
	l.awaitSetLocked(op.append.Set)
	if op.err == nil && l.home != "" && l.home != op.append.Set && !l.durable.moved && !l.forgotten {
		l.leaveLocked()
		l.awaitSetLocked(op.append.Set)
	}
	l.set = op.append.Set
	l.pending++
	if op.err == nil {
		op.err = l.admitLocked(&a)
	}
	if op.err == nil {
		op.follows = l.next
		l.start, l.next = a.State.LogStart, a.State.LogEnd
		op.measure(len(l.durable.spans))
	}
	l.mu.Unlock()
	l.store.sets[op.append.Set].push(op)
}

// awaitSetLocked waits for the operations that are pending in another set.
func (l *Log) awaitSetLocked(set Set) {
	for l.set != set && l.pending > 0 {
		l.settleLocked()
	}
}

// settleLocked waits until nothing is pending for a moment.
func (l *Log) settleLocked() {
	if l.settled == nil {
		l.settled = sync.NewCond(&l.mu)
	}
	l.settled.Wait()
}

// leaveLocked records in the set of the newest state record that later ones are
// in another: else it would come back if the volume with these were lost.
func (l *Log) leaveLocked() {
	l.set = l.home
	l.mu.Unlock()
	left := make(chan struct{})
	// An error is the store's, and the append's too.
	l.change(change{apply: func(_ *writer, l *Log) (bool, error) {
		l.durable.moved, l.rewrite = true, true
		return true, nil
	}}, func(error) { close(left) })
	<-left
	l.mu.Lock()
}

// admitLocked says why an append must not be written.
func (l *Log) admitLocked(a *Append) error {
	if l.forgotten {
		return l.forgottenError()
	}
	if l.fault != nil && (l.durable.Deleted || !a.State.Deleted || len(a.Batches) > 0) {
		return l.fault
	}
	if len(a.Batches) > 0 {
		if err := l.failedLocked(); err != nil {
			return err
		}
	}
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("%w: %v: %s", ErrInvalidAppend, l.id, fmt.Sprintf(format, args...))
	}
	if n := len(a.Producers) + len(a.RemovedProducers); n > maxProducers {
		return invalid("%d producers change; at most %d may", n, maxProducers)
	}
	if s := a.State; s.LogStart < l.start || s.LogStart > s.LogEnd {
		return invalid("log start %d does not lie between %d, where it was, and the log end %d", s.LogStart, l.start, s.LogEnd)
	}
	if len(a.Batches) == 0 {
		if a.State.LogEnd != l.next {
			return invalid("log end %d without batches, expected %d", a.State.LogEnd, l.next)
		}
		return nil
	}
	next := l.next
	for i := range a.Batches {
		b := &a.Batches[i]
		if b.BaseOffset != next && (!a.Gaps || b.BaseOffset < next) || b.LastOffset < b.BaseOffset || b.LastOffset == math.MaxInt64 {
			return invalid("a batch has the offsets %d to %d, expected %d", b.BaseOffset, b.LastOffset, next)
		}
		if limit := int(l.store.cfg.valueLogBytes / 2); len(b.Bytes) == 0 || len(b.Bytes) > limit {
			return invalid("the batch at %d has %d bytes, must be 1 to %d", b.BaseOffset, len(b.Bytes), limit)
		}
		next = b.LastOffset + 1
	}
	if a.State.LogEnd != next {
		return invalid("log end is %d, but the batches end at %d", a.State.LogEnd, next)
	}
	return nil
}

func (l *Log) forgottenError() error {
	return fmt.Errorf("%w: %v was deleted, and the log of a partition of that name is another one now", ErrInvalidAppend, l.id)
}

// followsLocked refuses what does not follow the log: the caller went on although
// a truncation was refused, or did not wait for its outcome.
func (l *Log) followsLocked(o *operation) error {
	if len(o.append.Batches) > 0 && o.follows != l.durable.LogEnd {
		return fmt.Errorf("%w: %v: batches are to follow a log that ends at %d, it ends at %d", ErrInvalidAppend, l.id, o.follows, l.durable.LogEnd)
	}
	return nil
}

// complete tells that an operation has its outcome.
func (l *Log) complete() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending--
	if l.pending > 0 {
		return
	}
	if l.settled != nil {
		l.settled.Broadcast()
	}
	if l.doomed && !l.forgotten {
		// The cleaner leaves alone what is busy.
		l.store.cleaner.poke()
	}
}

// Truncate cuts off what is at or above offset, and the whole of the batch that
// offset lies in. It returns the log's end once that is as durable as the set of
// the latest append says. What producers did in the batches that are cut is
// forgotten, as [Log.Loaded] shows after a restart.
//
// state is as it is afterwards, with offset for its log end; where the end
// becomes a lower one, high watermark and epochs follow it. The log start never
// goes back: where it lies in the batch that is cut, the log is empty from then
// on, and ends at its start.
//
// Readers lose sight of what is cut at once. When ctx ends early, the log may or
// may not be truncated later.
func (l *Log) Truncate(ctx context.Context, offset int64, state State) (end int64, err error) {
	return l.cut(ctx, &operation{kind: truncateLog, log: l, offset: offset}, state)
}

// Restart drops all that the log has, in one step: it begins anew, empty, at the
// offset that state has for log start and log end, which may lie anywhere. What
// producers did is forgotten, and what was lost of the log counts no more. It
// waits as [Log.Truncate] does. set is where a log is recorded that nothing was
// written to yet.
func (l *Log) Restart(ctx context.Context, set Set, state State) error {
	_, err := l.cut(ctx, &operation{kind: truncateLog, log: l, restart: true, append: Append{Set: set}}, state)
	return err
}

func (l *Log) cut(ctx context.Context, o *operation, state State) (end int64, err error) {
	offset := o.offset
	l.mu.Lock()
	l.producers = ""
	for l.pending > 0 {
		l.settleLocked()
	}
	admit := l.admitTruncateLocked
	if o.restart {
		admit = l.admitRestartLocked
	}
	if err := admit(offset, state); err != nil {
		l.mu.Unlock()
		return 0, err
	}
	switch {
	case l.set != "":
	case l.home == "" && o.restart:
		l.set = o.append.Set
	default:
		l.set = l.homeLocked()
	}
	own := l.set
	// One transaction cannot delete in two volumes. Where a cut reaches into the
	// active volume of another set, that one is sealed: nothing will be appended
	// behind what then stays there.
	var others []Set
	for _, s := range l.durable.spans {
		if s.end <= offset {
			continue
		}
		if set, active := l.store.activeSet(s.volume); active && set != own && !slices.Contains(others, set) {
			others = append(others, set)
		}
	}
	l.pending++
	l.mu.Unlock()

	for _, set := range others {
		if err := l.store.sets[set].roll(ctx); err != nil {
			l.mu.Lock()
			l.start, l.next = l.durable.LogStart, l.durable.LogEnd
			l.mu.Unlock()
			l.complete()
			return 0, err
		}
		failpoint.Hit("truncate/after-other-set")
	}
	outcome := make(chan error, 1)
	o.append, o.done = Append{Set: own, State: state}, func(err error) { outcome <- err }
	l.store.sets[own].push(o)
	select {
	case err := <-outcome:
		return o.append.State.LogEnd, err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (l *Log) admitTruncateLocked(offset int64, state State) error {
	if l.forgotten {
		return l.forgottenError()
	}
	if l.fault != nil {
		return l.fault
	}
	if offset > l.next || state.LogEnd != offset || state.LogStart < l.start || state.LogStart > offset {
		return fmt.Errorf("%w: %v: truncate at %d with log start %d and log end %d; the log begins at %d and ends at %d",
			ErrInvalidAppend, l.id, offset, state.LogStart, state.LogEnd, l.start, l.next)
	}
	l.start, l.next = state.LogStart, offset
	return nil
}

func (l *Log) admitRestartLocked(_ int64, state State) error {
	if l.fault != nil {
		return l.fault
	}
	if state.LogStart < 0 || state.LogStart != state.LogEnd || state.Deleted {
		return fmt.Errorf("%w: %v: begin anew with log start %d and log end %d", ErrInvalidAppend, l.id, state.LogStart, state.LogEnd)
	}
	l.start, l.next = state.LogStart, state.LogEnd
	return nil
}

// extendLocked returns the span that a batch goes to: the last one if it is in the
// same volume and may still grow, else a new one. A gap before the batch belongs to
// its span, which is sparse then; what is appended without gaps is kept out of such
// spans, so that the loss of a batch can be told there.
func (l *Log) extendLocked(v *volume, a *Append, b *Batch) *span {
	spans, follows := l.durable.spans, l.durable.LogEnd
	if n := len(spans); n > 0 {
		last := &spans[n-1]
		follows = last.end
		fits := last.sparse && a.Gaps || !last.sparse && b.BaseOffset == follows
		if last.volume == v.number && fits && !l.splitsLocked(a, last) {
			return last
		}
	}
	l.spanSince = 0
	if a.SpanAge > 0 {
		l.spanSince = l.store.cfg.Now().UnixNano()
	}
	v.space.spans.Add(1)
	l.durable.spans = append(spans, span{volume: v.number, first: follows, end: follows, maxTimestamp: b.MaxTimestamp, sparse: b.BaseOffset > follows})
	l.rewrite = true
	l.unindexed = 0
	return &l.durable.spans[len(spans)]
}

// setStateLocked takes over the state of an append, drops the spans below its
// log start, and returns what that frees.
func (l *Log) setStateLocked(s State) []use {
	if s.Deleted && !l.durable.Deleted {
		l.deleteLocked()
	}
	if s.Deleted != l.durable.Deleted || !sameEpochs(s.Epochs, l.durable.Epochs) {
		l.rewrite = true
	}
	l.durable.State = s
	if l.durable.moved {
		l.durable.moved, l.rewrite = false, true
	}
	l.healLocked()
	dead := 0
	for dead < len(l.durable.spans) && l.durable.spans[dead].end <= s.LogStart {
		dead++
	}
	return l.dropLocked(0, dead)
}

// deleteLocked begins the quarantine of a partition that is being deleted. What is
// wrong with it does not matter any more.
func (l *Log) deleteLocked() {
	l.durable.deletedAt = l.store.cfg.Now().UnixMilli()
	if l.durable.failed != nil {
		l.durable.failed = nil
		l.store.failures.add(-1)
	}
	if l.fault != nil {
		l.store.failures.add(-1)
		// Its newest record, which may be the damaged one, is not known.
		l.durable.generation = max(l.durable.generation, unknownGeneration)
	}
}

// unknownGeneration is above all that a state record gets by and by.
const unknownGeneration = 1 << 62

// dropLocked drops the spans from i up to j, and returns what that frees.
func (l *Log) dropLocked(i, j int) []use {
	if i == j {
		return nil
	}
	uses := make([]use, 0, j-i)
	for _, s := range l.durable.spans[i:j] {
		uses = append(uses, use{volume: s.volume, spans: -1, bytes: -s.bytes})
	}
	l.durable.spans = slices.Delete(l.durable.spans, i, j)
	l.rewrite = true
	return uses
}

// sameEpochs compares tables that are never changed, only replaced.
func sameEpochs(a, b []EpochStart) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

// endAt is the state of a log whose end becomes a lower one.
func (s State) endAt(end int64) State {
	if end == s.LogEnd {
		return s
	}
	s.LogEnd = end
	s.HighWatermark = min(s.HighWatermark, end)
	n := len(s.Epochs)
	for n > 0 && s.Epochs[n-1].StartOffset >= end {
		n--
	}
	s.Epochs = s.Epochs[:n:n]
	return s
}

// cutLocked shortens and drops spans, and returns what the dropped ones free.
func (l *Log) cutLocked(offset int64) []use {
	spans := l.durable.spans
	n := len(spans)
	for n > 0 && spans[n-1].first >= offset {
		n--
	}
	uses := l.dropLocked(n, len(spans))
	if n > 0 && spans[n-1].end > offset {
		spans[n-1].end = offset
	}
	l.durable.compactedTo = min(l.durable.compactedTo, offset)
	l.readable = min(l.readable, offset)
	l.cuts++
	l.rewrite = true
	l.unindexed = 0
	return uses
}
