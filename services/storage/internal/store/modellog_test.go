package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// batchSpec says what a batch holds, whenever it is built.
type batchSpec struct {
	Base    int64
	Records int
	// Size is about that of all values together.
	Size  int
	Epoch cluster.LeaderEpoch
	// Time is the timestamp of the last record; each one before is a millisecond
	// older.
	Time int64
	Seed uint64
	// Keys is the number of keys from which the records have theirs; 0 for none.
	Keys int
}

func (b batchSpec) last() int64 { return b.Base + int64(b.Records) - 1 }

// record returns the key and the value of a record; tombstones have no value.
func (b batchSpec) record(i int) (key, value []byte) {
	source := rand.NewPCG(b.Seed, uint64(b.Base)<<16+uint64(i))
	if b.Keys > 0 {
		key = fmt.Appendf(nil, "key-%d", source.Uint64()%uint64(b.Keys))
		if source.Uint64()%6 == 0 {
			return key, nil
		}
	}
	value = make([]byte, max(b.Size/b.Records, 8))
	for j := 0; j+8 <= len(value); j += 8 {
		binary.LittleEndian.PutUint64(value[j:], source.Uint64())
	}
	return key, value
}

func (b batchSpec) build() Batch {
	var builder recordbatch.Builder
	for i := range b.Records {
		key, value := b.record(i)
		if err := builder.Append(key, value, nil, b.Time-int64(b.Records-1-i)); err != nil {
			panic(err)
		}
	}
	raw, err := builder.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		panic(err)
	}
	recordbatch.Assign(raw, b.Base, int32(b.Epoch))
	return Batch{Bytes: raw, BaseOffset: b.Base, LastOffset: b.last(), MaxTimestamp: b.Time}
}

// logModel is what a log must hold. Its coordinator epoch is the number of the
// latest operation, so that what a crash leaves tells which one was the last.
type logModel struct {
	ID    int
	Set   Set
	State State
	// Batches are all that were appended and not truncated, from the first one on.
	Batches   []batchSpec
	Producers map[int64]Producer
	// Cuts counts truncations: a log that has seen many may have forgotten more of
	// its producers than it had to.
	Cuts int
	// Time is the latest timestamp.
	Time int64
	// Keys is the number of different keys; 0 for a log without.
	Keys int
	// Compacted is the high watermark up to which the log may have been compacted.
	Compacted int64
}

func newLogModel(id, keys int) *logModel {
	return &logModel{ID: id, Producers: map[int64]Producer{}, Set: SetFor(true, keys > 0), Keys: keys, Time: 100}
}

// logOp is one operation on a log.
type logOp struct {
	Kind logOpKind
	Log  int
	Set  Set
	// State is as it is afterwards; of a truncation, as the caller asks for it.
	State     State
	Batches   []batchSpec
	Producers []Producer
	Removed   []int64
	SpanBytes int64
	// Keys is that of the log.
	Keys int
	// First says that the log is new, though its partition may have been deleted
	// before.
	First bool
}

type logOpKind string

const (
	// opAppend appends batches, or writes state only.
	opAppend logOpKind = "append"
	// opTruncate cuts at State.LogEnd.
	opTruncate logOpKind = "truncate"
	// opRestart begins anew, empty, at State.LogStart.
	opRestart logOpKind = "restart"
	// opDelete deletes the partition.
	opDelete logOpKind = "delete"
	// opCompact compacts up to State.HighWatermark, which was made durable before.
	// It has no number of its own: it changes nothing that a state record says.
	opCompact logOpKind = "compact"
)

// appends returns what the store is asked for.
func (o *logOp) appends() Append {
	a := Append{Set: o.Set, State: o.State, Producers: o.Producers, RemovedProducers: o.Removed, SpanBytes: o.SpanBytes}
	for _, b := range o.Batches {
		a.Batches = append(a.Batches, b.build())
	}
	return a
}

// apply does to the model what an operation does to the log.
func (m *logModel) apply(o logOp) {
	m.Set = o.Set
	switch o.Kind {
	case opCompact:
		m.Compacted = max(m.Compacted, o.State.HighWatermark)
		return
	case opTruncate:
		m.truncate(o.State)
		return
	case opRestart:
		m.State, m.Batches, m.Producers, m.Compacted = o.State, nil, map[int64]Producer{}, 0
		m.Cuts++
		return
	}
	m.State = o.State
	m.Batches = append(slices.Clip(m.Batches), o.Batches...)
	for _, b := range o.Batches {
		m.Time = max(m.Time, b.Time)
	}
	for _, p := range o.Producers {
		m.Producers[p.ID] = p
	}
	for _, id := range o.Removed {
		delete(m.Producers, id)
	}
}

// truncate cuts off what is at or above the log end of a state, batches as a
// whole.
func (m *logModel) truncate(state State) {
	from := state.LogEnd
	if i := slices.IndexFunc(m.Batches, func(b batchSpec) bool { return b.last() >= from }); i >= 0 {
		from = min(from, m.Batches[i].Base)
		m.Batches = m.Batches[:i:i]
	}
	m.State = state
	m.State.LogEnd = max(from, state.LogStart)
	m.State.HighWatermark = min(state.HighWatermark, m.State.LogEnd)
	m.State.Epochs = epochsBelow(state.Epochs, m.State.LogEnd)
	for id, p := range m.Producers {
		p.Batches = slices.DeleteFunc(slices.Clone(p.Batches), func(b ProducerBatch) bool { return b.BaseOffset >= from })
		m.Producers[id] = p
		if len(p.Batches) == 0 {
			delete(m.Producers, id)
		}
	}
	m.Cuts++
}

func epochsBelow(epochs []EpochStart, end int64) []EpochStart {
	return slices.DeleteFunc(slices.Clone(epochs), func(e EpochStart) bool { return e.StartOffset >= end })
}

// from returns the batches from the one that holds an offset on.
func (m *logModel) from(offset int64) []batchSpec {
	i := slices.IndexFunc(m.Batches, func(b batchSpec) bool { return b.last() >= offset })
	if i < 0 {
		return nil
	}
	return m.Batches[i:]
}

// picker chooses; rapid and random sources both can.
type picker interface {
	// intn returns a number from 0 to below n.
	intn(n int) int
}

// newOp returns the frame of the next operation.
func (m *logModel) newOp(kind logOpKind, serial int64) logOp {
	o := logOp{Kind: kind, Log: m.ID, Set: m.Set, State: m.State, Keys: m.Keys, First: m.State.CoordinatorEpoch == 0}
	o.State.CoordinatorEpoch = serial
	return o
}

// manyBatches are more than the tests' volumes take or delete in a transaction.
const manyBatches = 1800

// grow appends that many batches, and now and then begins an epoch, changes the
// set, moves the high watermark, and writes or removes producers.
func (m *logModel) grow(r picker, serial int64, batches int) logOp {
	o := m.newOp(opAppend, serial)
	if r.intn(10) == 0 {
		o.Set = SetFor(r.intn(2) == 0, m.Keys > 0)
	}
	end := m.State.LogEnd
	if len(o.State.Epochs) == 0 || r.intn(20) == 0 {
		next := cluster.LeaderEpoch(0)
		if n := len(o.State.Epochs); n > 0 {
			next = o.State.Epochs[n-1].Epoch + 1
		}
		o.State.Epochs = append(epochsBelow(o.State.Epochs, end), EpochStart{Epoch: next, StartOffset: end})
	}
	epoch := o.State.Epochs[len(o.State.Epochs)-1].Epoch
	at := m.Time
	for i := range batches {
		at = max(at+int64(r.intn(20))-5, 100)
		b := batchSpec{Base: end, Records: 1 + r.intn(5), Size: 20 + r.intn(200), Epoch: epoch, Time: at, Seed: uint64(serial)<<20 + uint64(i), Keys: m.Keys}
		switch {
		case batches >= manyBatches:
			b.Records, b.Size = 1, 8
		case r.intn(3) == 0:
			b.Size = 1000 + r.intn(12_000)
		}
		o.Batches = append(o.Batches, b)
		end = b.last() + 1
	}
	o.State.LogEnd = end
	switch {
	case r.intn(3) == 0:
		id, last := int64(r.intn(4)), o.Batches[len(o.Batches)-1]
		p := Producer{ID: id, LastTimestamp: last.Time, Batches: slices.Clone(m.Producers[id].Batches)}
		p.Batches = append(p.Batches, ProducerBatch{BaseSequence: int32(last.Base), LastSequence: int32(last.last()), BaseOffset: last.Base, AppendTime: -1})
		p.Batches = p.Batches[max(0, len(p.Batches)-5):]
		o.Producers = []Producer{p}
	case r.intn(10) == 0:
		o.Removed = []int64{int64(r.intn(4))}
	}
	if r.intn(4) == 0 {
		o.State.HighWatermark = end
	}
	if r.intn(2) == 0 {
		o.SpanBytes = int64(2000 + r.intn(20_000))
	}
	return o
}

// begin moves the log start, also into a batch.
func (m *logModel) begin(r picker, serial int64) logOp {
	o := m.newOp(opAppend, serial)
	o.State.LogStart += int64(r.intn(int(m.State.LogEnd-m.State.LogStart) + 1))
	o.State.HighWatermark = max(o.State.HighWatermark, o.State.LogStart)
	return o
}

// settle makes the whole log what may be compacted.
func (m *logModel) settle(serial int64) logOp {
	o := m.newOp(opAppend, serial)
	o.State.HighWatermark = o.State.LogEnd
	return o
}

// compact compacts the log up to its high watermark. Tombstones may go with the
// second run that sees them.
func (m *logModel) compact() logOp { return m.newOp(opCompact, m.State.CoordinatorEpoch) }

// cut truncates anywhere, as a rule near the log's end; not below what may have
// been compacted, which is below the high watermark. Now and then it drops all, and
// begins anew in the log that was, or behind it.
func (m *logModel) cut(r picker, serial int64) logOp {
	if r.intn(6) == 0 {
		return m.restartAt(serial, int64(r.intn(int(m.State.LogEnd)+20)))
	}
	low := max(m.State.LogStart, m.Compacted)
	if live := m.from(low); r.intn(3) > 0 && len(live) > 0 {
		low = max(low, live[max(len(live)-3, 0)].Base)
	}
	return m.cutAt(serial, low+int64(r.intn(int(m.State.LogEnd-low)+1)))
}

func (m *logModel) restartAt(serial, at int64) logOp {
	o := m.newOp(opRestart, serial)
	o.State = State{LogStart: at, LogEnd: at, HighWatermark: at, CoordinatorEpoch: serial}
	return o
}

func (m *logModel) cutAt(serial, at int64) logOp {
	o := m.newOp(opTruncate, serial)
	o.State.LogEnd = at
	o.State.HighWatermark = min(o.State.HighWatermark, at)
	o.State.Epochs = epochsBelow(o.State.Epochs, at)
	return o
}

// remove deletes the partition.
func (m *logModel) remove(serial int64) logOp {
	o := m.newOp(opDelete, serial)
	o.State.Deleted = true
	return o
}

// perform does an operation to a log; done is called as by [Log.Append].
func (o *logOp) perform(l *Log, done func(error)) {
	switch o.Kind {
	case opTruncate:
		_, err := l.Truncate(context.Background(), o.State.LogEnd, o.State)
		done(err)
	case opRestart:
		done(l.Restart(context.Background(), o.Set, o.State))
	case opCompact:
		// A map of keys that is too small for all makes several runs of it.
		_, err := l.Compact(context.Background(), CompactOptions{Set: o.Set, Below: o.State.HighWatermark, Now: time.Now(), MapBytes: 1 << 10})
		done(err)
	default:
		l.Append(o.appends(), done)
	}
}

// checkLoaded compares what a log was opened with.
func (m *logModel) checkLoaded(l *Log) error {
	if err := l.Err(); err != nil {
		return err
	}
	got, packed := l.Loaded()
	producers := packed.Unpack()
	want := m.State
	if want.Deleted {
		// It may have been forgotten.
		if !got.Deleted && (got.LogEnd > 0 || got.CoordinatorEpoch > 0 || len(producers) > 0) {
			return fmt.Errorf("loaded with %+v, which was deleted", got)
		}
		return nil
	}
	if got.Deleted {
		return errors.New("loaded as deleted")
	}
	if got.LogStart != want.LogStart || got.LogEnd != want.LogEnd || got.HighWatermark != want.HighWatermark ||
		got.CoordinatorEpoch != want.CoordinatorEpoch || !sameEpochs(got.Epochs, want.Epochs) {
		return fmt.Errorf("loaded with %+v, want %+v", got, want)
	}
	found := make(map[int64]bool)
	for _, p := range producers {
		w, ok := m.Producers[p.ID]
		found[p.ID] = true
		n := len(w.Batches)
		if m.Cuts >= maxTruncations {
			n = min(n, len(p.Batches))
		}
		if !ok || p.LastTimestamp != w.LastTimestamp || !slices.Equal(p.Batches, w.Batches[:n]) {
			return fmt.Errorf("loaded with the producer %+v, want %+v", p, w)
		}
	}
	for id, p := range m.Producers {
		if !found[id] && m.Cuts < maxTruncations {
			return fmt.Errorf("loaded without the producer %+v", p)
		}
	}
	return nil
}

// checkAll reads the whole log.
func (m *logModel) checkAll(l *Log) error {
	ctx := context.Background()
	start, end := m.State.LogStart, m.State.LogEnd
	if m.State.Deleted {
		if got, err := l.Read(ctx, start, end, 1); err == nil && len(got) > 0 {
			return errors.New("a deleted partition was read")
		}
		return nil
	}
	var got []Batch
	for offset := start; offset < end; {
		batches, err := l.Read(ctx, offset, end, 1<<20)
		if err != nil {
			return fmt.Errorf("read at %d of %d: %w", offset, end, err)
		}
		if len(batches) == 0 {
			if m.Compacted <= offset {
				return fmt.Errorf("nothing at %d, the log ends at %d", offset, end)
			}
			break
		}
		got = append(got, batches...)
		offset = batches[len(batches)-1].LastOffset + 1
	}
	if batches, err := l.Read(ctx, end, end+100, 1); err != nil || len(batches) > 0 {
		return fmt.Errorf("%d batches at the end %d, %w", len(batches), end, err)
	}
	return m.compare(got)
}

// compare says how what was read of the whole log differs from the model.
func (m *logModel) compare(got []Batch) error {
	want := m.from(m.State.LogStart)
	if m.State.LogStart == m.State.LogEnd {
		want = nil
	}
	if m.Compacted == 0 {
		built := make([]Batch, len(want))
		for i := range want {
			built[i] = want[i].build()
		}
		return sameBatches(got, built)
	}
	return m.compareCompacted(got, want)
}

// checkSpans compares the bytes that spans say they have.
func (m *logModel) checkSpans(l *Log) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, sp := range l.durable.spans {
		if sp.sparse {
			continue
		}
		var bytes int64
		for _, b := range m.Batches {
			if b.Base >= sp.first && b.last() < sp.end {
				bytes += int64(len(b.build().Bytes))
			}
		}
		if sp.bytes != bytes {
			return fmt.Errorf("the span %+v has %d bytes", sp, bytes)
		}
	}
	return nil
}

// checkTime searches for a time.
func (m *logModel) checkTime(l *Log, at int64) error {
	found, err := l.OffsetForTime(context.Background(), at, m.State.LogEnd)
	if err != nil {
		return err
	}
	if m.Compacted > 0 {
		return nil
	}
	var want *batchSpec
	for i := range m.Batches {
		if b := &m.Batches[i]; b.last() >= m.State.LogStart && b.Time >= at {
			want = b
			break
		}
	}
	if m.State.Deleted || m.State.LogStart == m.State.LogEnd {
		want = nil
	}
	switch {
	case want == nil && found != nil:
		return fmt.Errorf("found the batch at %d for time %d, want none", found.BaseOffset, at)
	case want != nil && (found == nil || found.BaseOffset != want.Base):
		return fmt.Errorf("found %+v for time %d, want the batch at %d", found, at, want.Base)
	}
	return nil
}

// compareCompacted checks what compaction may have taken records out of: what
// is there is as it was appended and in order, and everything is there that is
// the newest of its key, or above what was compacted. Tombstones may go.
func (m *logModel) compareCompacted(got []Batch, want []batchSpec) error {
	type place struct {
		batch  batchSpec
		record int
	}
	all := make(map[int64]place)
	newest := make(map[string]int64)
	for _, b := range want {
		for i := range b.Records {
			offset := b.Base + int64(i)
			all[offset] = place{b, i}
			key, _ := b.record(i)
			newest[string(key)] = offset
		}
	}
	last := int64(-1)
	seen := make(map[int64]bool)
	for _, b := range got {
		if b.BaseOffset <= last {
			return fmt.Errorf("a batch at %d follows %d", b.BaseOffset, last)
		}
		if w := all[b.LastOffset].batch; w.Records == 0 || w.Base != b.BaseOffset || w.last() != b.LastOffset {
			return fmt.Errorf("a batch from %d to %d, where %d to %d was appended", b.BaseOffset, b.LastOffset, w.Base, w.last())
		} else if b.BaseOffset >= m.Compacted && string(b.Bytes) != string(w.build().Bytes) {
			return fmt.Errorf("the batch at %d is another one", b.BaseOffset)
		}
		last = b.LastOffset
		for record, err := range recordbatch.Records(b.Bytes, recordbatch.Limits{}) {
			if err != nil {
				return err
			}
			p := all[record.Offset]
			if p.batch.Records == 0 {
				return fmt.Errorf("a record at %d, where none was appended", record.Offset)
			}
			key, value := p.batch.record(p.record)
			timestamp := p.batch.Time - int64(p.batch.Records-1-p.record)
			if string(record.Key) != string(key) || string(record.Value) != string(value) || (record.Value == nil) != (value == nil) || record.Timestamp != timestamp {
				return fmt.Errorf("the record at %d is %q of %d, want %q of %d", record.Offset, record.Key, record.Timestamp, key, timestamp)
			}
			seen[record.Offset] = true
		}
	}
	for offset, p := range all {
		key, value := p.batch.record(p.record)
		needed := offset >= m.Compacted || newest[string(key)] == offset && value != nil
		if needed && offset >= m.State.LogStart && !seen[offset] {
			return fmt.Errorf("the record at %d with key %q is missing", offset, key)
		}
	}
	return nil
}
