package rules

import (
	"cmp"
	"iter"
	"math"
	"slices"
)

// RememberedBatches is how many batches of a producer a partition remembers: the
// five that a producer may have in flight, so that each of them can be repeated
// (KIP-98), and the one before. A truncation may cut all that were in flight, and a
// partition that remembered nothing of the producer then would refuse the very
// batches that are sent again, since they do not begin with sequence 0.
const RememberedBatches = 6

// DefaultProducersPerPartition is how many producers a partition remembers
// unless told otherwise. Ten thousand clients, the most that a node is built
// for, may write one partition without pushing each other out; at about 250
// bytes each they cost a partition 2.5 MB at worst.
const DefaultProducersPerPartition = 10_000

// ProducerBatch is a batch that a retry may repeat.
type ProducerBatch struct {
	BaseSequence, LastSequence int32
	BaseOffset                 int64
	// AppendTime is the append time that the first answer named, in milliseconds
	// since the Unix epoch, or -1.
	AppendTime int64
}

// ProducerState is what a partition remembers of one producer.
type ProducerState struct {
	ID    int64
	Epoch int16
	// Batches holds at most [RememberedBatches], oldest first.
	Batches []ProducerBatch
	// LastTimestamp is the greatest timestamp of the last batch, in milliseconds
	// since the Unix epoch.
	LastTimestamp int64
}

// ProducerAppend is what the header of a batch says about its producer.
type ProducerAppend struct {
	ID                         int64
	Epoch                      int16
	BaseSequence, LastSequence int32
}

// ProducerOutcome is what becomes of a batch of an idempotent producer.
type ProducerOutcome int

// The outcomes.
const (
	// ProducerAppends: the batch is the next one.
	ProducerAppends ProducerOutcome = iota
	// ProducerDuplicate: the batch was appended before.
	ProducerDuplicate
	// ProducerOutOfOrder: a batch is missing before this one.
	ProducerOutOfOrder
	// ProducerFenced: a newer epoch of the producer has appended.
	ProducerFenced
	// ProducerUnknown: the producer is not remembered, and this is not its first
	// batch.
	ProducerUnknown
)

// ProducerVerdict is the answer of [Producers.Check].
type ProducerVerdict struct {
	Outcome ProducerOutcome
	// Original is the batch as it was appended, with ProducerDuplicate.
	Original ProducerBatch
	// ExpectedSequence is the sequence number that would have been accepted, with
	// ProducerOutOfOrder.
	ExpectedSequence int32
	// CurrentEpoch is the epoch that has appended, with ProducerFenced.
	CurrentEpoch int16
}

// lastOffset is the offset of the batch's last record.
func (b ProducerBatch) lastOffset() int64 {
	return b.BaseOffset + int64((b.LastSequence-b.BaseSequence)&math.MaxInt32)
}

// NextSequence returns the sequence number after one; they wrap from 2^31-1 to 0.
func NextSequence(sequence int32) int32 {
	if sequence == math.MaxInt32 {
		return 0
	}
	return sequence + 1
}

// Producers is what a partition remembers of its idempotent producers (KIP-98).
// It is a function of the log: only batches that were appended change it, so
// every replica remembers, and forgets, the same. Beyond its limit it forgets
// the producer whose last batch is the oldest. Not safe for concurrent use.
type Producers struct {
	limit int
	byID  map[int64]*producer
	// oldest and newest end a list in the order of last batches.
	oldest, newest *producer
}

type producer struct {
	id            int64
	lastTimestamp int64
	older, newer  *producer
	batches       [RememberedBatches]ProducerBatch
	epoch         int16
	count         uint8
}

// NewProducers returns an empty memory for at most limit producers, 1 or more.
func NewProducers(limit int) *Producers {
	return &Producers{limit: max(1, limit), byID: make(map[int64]*producer)}
}

// RestoreProducers returns a memory with these states in any order. When they
// are more than the limit the oldest are left out; their ids are returned.
func RestoreProducers(limit int, states []ProducerState) (restored *Producers, forgotten []int64) {
	restored = NewProducers(limit)
	states = slices.Clone(states)
	slices.SortFunc(states, func(a, b ProducerState) int {
		return cmp.Compare(a.lastOffset(), b.lastOffset())
	})
	for len(states) > restored.limit || (len(states) > 0 && len(states[0].Batches) == 0) {
		forgotten = append(forgotten, states[0].ID)
		states = states[1:]
	}
	for _, state := range states {
		p := &producer{id: state.ID, epoch: state.Epoch, lastTimestamp: state.LastTimestamp}
		kept := state.Batches[max(0, len(state.Batches)-RememberedBatches):]
		p.count = uint8(copy(p.batches[:], kept))
		restored.byID[p.id] = p
		restored.pushNewest(p)
	}
	return restored, forgotten
}

func (s ProducerState) lastOffset() int64 {
	if len(s.Batches) == 0 {
		return -1
	}
	return s.Batches[len(s.Batches)-1].BaseOffset
}

// Len returns how many producers are remembered.
func (p *Producers) Len() int { return len(p.byID) }

// All returns what is remembered, the producer whose last batch is the oldest first.
// The batches are valid until the next [Producers.Record].
func (p *Producers) All() iter.Seq[ProducerState] {
	return func(yield func(ProducerState) bool) {
		for k := p.oldest; k != nil; k = k.newer {
			if !yield(k.state()) {
				return
			}
		}
	}
}

// Check says what becomes of a batch. It changes nothing: an append is told by
// [Producers.Record].
func (p *Producers) Check(a ProducerAppend) ProducerVerdict {
	known, ok := p.byID[a.ID]
	switch {
	case !ok && a.BaseSequence != 0:
		return ProducerVerdict{Outcome: ProducerUnknown}
	case !ok:
		return ProducerVerdict{Outcome: ProducerAppends}
	case a.Epoch < known.epoch:
		return ProducerVerdict{Outcome: ProducerFenced, CurrentEpoch: known.epoch}
	case a.Epoch > known.epoch && a.BaseSequence != 0:
		return ProducerVerdict{Outcome: ProducerOutOfOrder, ExpectedSequence: 0}
	case a.Epoch > known.epoch:
		return ProducerVerdict{Outcome: ProducerAppends}
	}
	remembered := known.batches[:known.count]
	for _, batch := range slices.Backward(remembered) {
		if batch.BaseSequence == a.BaseSequence && batch.LastSequence == a.LastSequence {
			return ProducerVerdict{Outcome: ProducerDuplicate, Original: batch}
		}
	}
	if expected := NextSequence(remembered[len(remembered)-1].LastSequence); a.BaseSequence != expected {
		return ProducerVerdict{Outcome: ProducerOutOfOrder, ExpectedSequence: expected}
	}
	return ProducerVerdict{Outcome: ProducerAppends}
}

// Record remembers a batch that [Producers.Check] let pass and that was
// appended. It returns the producer's state, whose batches are valid until the
// next Record, and the id of the producer that it forgot to make room, if any.
func (p *Producers) Record(a ProducerAppend, baseOffset, appendTime, timestamp int64) (state ProducerState, forgotten int64, forgot bool) {
	known, ok := p.byID[a.ID]
	switch {
	case ok:
		p.unlink(known)
	case len(p.byID) >= p.limit:
		// The forgotten one's memory serves the new one.
		known = p.oldest
		forgotten, forgot = known.id, true
		p.unlink(known)
		delete(p.byID, forgotten)
		*known = producer{id: a.ID}
		p.byID[a.ID] = known
	default:
		known = &producer{id: a.ID}
		p.byID[a.ID] = known
	}
	if a.Epoch != known.epoch {
		known.epoch, known.count = a.Epoch, 0
	}
	if known.count == RememberedBatches {
		copy(known.batches[:], known.batches[1:])
		known.count--
	}
	known.batches[known.count] = ProducerBatch{
		BaseSequence: a.BaseSequence, LastSequence: a.LastSequence, BaseOffset: baseOffset, AppendTime: appendTime,
	}
	known.count++
	known.lastTimestamp = timestamp
	p.pushNewest(known)
	return known.state(), forgotten, forgot
}

// TruncateEnd forgets every batch with a record at or above an offset. It returns the states
// that changed and the ids of producers of which nothing is left: these count
// as unknown from then on.
func (p *Producers) TruncateEnd(offset int64) (changed []ProducerState, removed []int64) {
	for known := p.newest; known != nil; {
		older := known.older
		kept := known.count
		for kept > 0 && known.batches[kept-1].lastOffset() >= offset {
			kept--
		}
		switch {
		case kept == 0:
			p.unlink(known)
			delete(p.byID, known.id)
			removed = append(removed, known.id)
		case kept < known.count:
			known.count = kept
			changed = append(changed, known.state())
		}
		known = older
	}
	if len(changed) > 0 {
		p.reorder()
	}
	return changed, removed
}

func (k *producer) state() ProducerState {
	return ProducerState{ID: k.id, Epoch: k.epoch, Batches: k.batches[:k.count], LastTimestamp: k.lastTimestamp}
}

func (p *Producers) pushNewest(k *producer) {
	k.older, k.newer = p.newest, nil
	if p.newest != nil {
		p.newest.newer = k
	} else {
		p.oldest = k
	}
	p.newest = k
}

func (p *Producers) unlink(k *producer) {
	if k.older != nil {
		k.older.newer = k.newer
	} else {
		p.oldest = k.newer
	}
	if k.newer != nil {
		k.newer.older = k.older
	} else {
		p.newest = k.older
	}
	k.older, k.newer = nil, nil
}

// reorder restores the list's order after last batches were taken back.
func (p *Producers) reorder() {
	all := make([]*producer, 0, len(p.byID))
	for k := p.oldest; k != nil; k = k.newer {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *producer) int {
		return cmp.Compare(a.batches[a.count-1].BaseOffset, b.batches[b.count-1].BaseOffset)
	})
	p.oldest, p.newest = nil, nil
	for _, k := range all {
		p.pushNewest(k)
	}
}
