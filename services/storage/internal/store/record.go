package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// State is what a partition is besides its batches.
type State struct {
	// LogStart is the first offset that readers may see.
	LogStart int64
	// LogEnd is the offset of the next record.
	LogEnd int64
	// HighWatermark is a checkpoint that may lag; never a truncation point.
	HighWatermark int64
	// Epochs are the leader epochs of the log in ascending order. The slice is
	// shared and never changed.
	Epochs []EpochStart
	// CoordinatorEpoch is the highest that has appended; 0 where none has.
	CoordinatorEpoch int64
	// Deleted says that nothing of the partition may be read again.
	Deleted bool
}

// EpochStart is the first offset of a leader epoch.
type EpochStart = rules.EpochStart

// Producer is what a partition remembers of an idempotent producer.
type Producer struct {
	ID    int64
	Epoch int16
	// Batches are the last ones, at most 5, oldest first.
	Batches []ProducerBatch
	// LastTimestamp is the greatest of its last batch, in milliseconds since the
	// Unix epoch.
	LastTimestamp int64
}

// ProducerBatch is a batch that a retry may repeat.
type ProducerBatch struct {
	BaseSequence, LastSequence int32
	BaseOffset                 int64
	// AppendTime is what the first answer named, in milliseconds since the Unix
	// epoch, or -1.
	AppendTime int64
}

// span is a stretch of a log in one volume.
type span struct {
	volume uint64
	first  int64
	// end is the offset after the last.
	end int64
	// maxTimestamp is at least that of every record in it, in milliseconds since
	// the Unix epoch; after a truncation it may be greater.
	maxTimestamp int64
	// bytes are those of its batches.
	bytes int64
	// sparse says that batches may be missing in it, which compaction has removed,
	// here or in the log that this one is a copy of.
	sparse bool
}

// truncation voids what producer records of lower generations say of batches at
// or above offset.
type truncation struct {
	generation uint64
	offset     int64
}

// maxTruncations bounds what a state record remembers of truncations.
const maxTruncations = 16

// addTruncation returns the list with one more, which replaces those at or above
// its offset. Where there are too many, the two oldest become one that voids all
// that either does: it may make a log forget batches of producers which have not
// written since.
func addTruncation(list []truncation, t truncation) []truncation {
	for len(list) > 0 && list[len(list)-1].offset >= t.offset {
		list = list[:len(list)-1]
	}
	list = append(slices.Clip(list), t)
	if len(list) > maxTruncations {
		list[1].offset = list[0].offset
		list = list[1:]
	}
	return list
}

// validBelow returns the offset below which a producer record of a generation
// still holds.
func validBelow(list []truncation, generation uint64) int64 {
	for _, t := range list {
		if t.generation > generation {
			return t.offset
		}
	}
	return math.MaxInt64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumBytes is the size of the checksum that begins each value but those of
// batches, which have their own.
const sumBytes = 4

// seal writes the checksum of key and value into the first bytes of the value.
// Badger verifies neither by default.
func seal(key, value []byte) {
	binary.BigEndian.PutUint32(value, sum(key, value))
}

// unseal checks a value against its key and returns it without the checksum.
func unseal(key, value []byte) ([]byte, error) {
	if len(value) < sumBytes {
		return nil, fmt.Errorf("value has %d bytes, too few for its checksum", len(value))
	}
	if got, want := binary.BigEndian.Uint32(value), sum(key, value); got != want {
		return nil, fmt.Errorf("checksum is %08x, must be %08x", got, want)
	}
	return value[sumBytes:], nil
}

func sum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value[sumBytes:])
}

// appendMessage appends a sealed message to buf and returns buf and the value.
func appendMessage(buf, key []byte, m proto.Message) ([]byte, []byte) {
	start := len(buf)
	buf = append(buf, 0, 0, 0, 0)
	buf, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(buf, m)
	if err != nil {
		// Only a string that is not UTF-8 or a missing required field can do that,
		// and these messages have neither.
		panic(fmt.Sprintf("store: encode %T: %v", m, err))
	}
	value := buf[start:len(buf):len(buf)]
	seal(key, value)
	return buf, value
}

func parseMessage(key, value []byte, m proto.Message) error {
	body, err := unseal(key, value)
	if err != nil {
		return err
	}
	return proto.Unmarshal(body, m)
}

// mark returns the entry to put into a transaction that otherwise only deletes.
func mark() (key, value []byte) {
	key, value = appendPartitionKey(nil, kindMark, PartitionID{}), make([]byte, sumBytes)
	seal(key, value)
	return key, value
}

// appendTimestamp appends the sealed value of an entry of the time index.
func appendTimestamp(buf, key []byte, timestamp int64) ([]byte, []byte) {
	start := len(buf)
	buf = append(buf, 0, 0, 0, 0)
	buf = binary.BigEndian.AppendUint64(buf, uint64(timestamp))
	value := buf[start:len(buf):len(buf)]
	seal(key, value)
	return buf, value
}

func parseTimestamp(key, value []byte) (int64, error) {
	body, err := unseal(key, value)
	if err != nil {
		return 0, err
	}
	if len(body) != 8 {
		return 0, fmt.Errorf("entry of the time index has %d bytes instead of 8", len(body))
	}
	return int64(binary.BigEndian.Uint64(body)), nil
}

// durable is a partition's state record with what the store adds to it.
type durable struct {
	State
	generation  uint64
	spans       []span
	truncations []truncation
	// compactedTo is the offset below which compaction has left at most one record
	// of a key.
	compactedTo int64
	// tombstonesUntil is the time from which on compaction may remove every
	// tombstone that it has left, in milliseconds since the Unix epoch; 0 where it
	// has left none.
	tombstonesUntil int64
	// deletedAt is when the partition was deleted, in milliseconds since the Unix
	// epoch; 0 where it was not, or before that was recorded.
	deletedAt int64
	// failed is why the partition can no longer be trusted; nil while it can. It is
	// replaced, never changed.
	failed *failure
	// moved says that newer records may be in another set.
	moved bool
}

// failure says what was lost of a partition.
type failure struct {
	reason string
	// volume is the one that was lost or damaged; 0 where it is not known.
	volume uint64
	// logEndUnknown says that the log may have had more records than the state
	// says.
	logEndUnknown bool
	// lostTo is the offset after the last record that is known to be lost.
	lostTo int64
}

func (d *durable) message() *diskv1.PartitionState {
	m := &diskv1.PartitionState{
		Generation:       d.generation,
		LogStartOffset:   d.LogStart,
		LogEndOffset:     d.LogEnd,
		HighWatermark:    d.HighWatermark,
		CoordinatorEpoch: d.CoordinatorEpoch,
		Deleted:          d.Deleted,

		CompactedToOffset: d.compactedTo,
		TombstonesUntilMs: d.tombstonesUntil,
		DeletedAtMs:       d.deletedAt,
		Moved:             d.moved,
	}
	if f := d.failed; f != nil {
		m.Failed = &diskv1.PartitionFailure{Reason: f.reason, Volume: f.volume, LogEndUnknown: f.logEndUnknown, LostToOffset: f.lostTo}
	}
	for _, e := range d.Epochs {
		m.Epochs = append(m.Epochs, &diskv1.EpochStart{LeaderEpoch: int32(e.Epoch), StartOffset: e.StartOffset})
	}
	for _, s := range d.spans {
		m.Spans = append(m.Spans, &diskv1.Span{
			Volume: s.volume, FirstOffset: s.first, EndOffset: s.end, MaxTimestampMs: s.maxTimestamp, Bytes: s.bytes,
			Sparse: s.sparse,
		})
	}
	for _, t := range d.truncations {
		m.Truncations = append(m.Truncations, &diskv1.Truncation{Generation: t.generation, Offset: t.offset})
	}
	return m
}

// progress fills m with what an append changes; d continues the state record of
// that generation.
func (d *durable) progress(m *diskv1.PartitionProgress, stateGeneration uint64) {
	m.Generation = d.generation
	m.StateGeneration = stateGeneration
	m.LogStartOffset = d.LogStart
	m.LogEndOffset = d.LogEnd
	m.HighWatermark = d.HighWatermark
	m.CoordinatorEpoch = d.CoordinatorEpoch
	m.SpanMaxTimestampMs, m.SpanBytes = 0, 0
	if n := len(d.spans); n > 0 {
		m.SpanMaxTimestampMs, m.SpanBytes = d.spans[n-1].maxTimestamp, d.spans[n-1].bytes
	}
}

func parseState(m *diskv1.PartitionState) *durable {
	d := &durable{
		State: State{
			LogStart:         m.GetLogStartOffset(),
			LogEnd:           m.GetLogEndOffset(),
			HighWatermark:    m.GetHighWatermark(),
			CoordinatorEpoch: m.GetCoordinatorEpoch(),
			Deleted:          m.GetDeleted(),
		},
		generation:  m.GetGeneration(),
		compactedTo: m.GetCompactedToOffset(),

		tombstonesUntil: m.GetTombstonesUntilMs(),
		deletedAt:       m.GetDeletedAtMs(),
	}
	d.moved = m.GetMoved()
	if f := m.GetFailed(); f != nil {
		d.failed = &failure{reason: f.GetReason(), volume: f.GetVolume(), logEndUnknown: f.GetLogEndUnknown(), lostTo: f.GetLostToOffset()}
	}
	for _, e := range m.GetEpochs() {
		d.Epochs = append(d.Epochs, EpochStart{Epoch: cluster.LeaderEpoch(e.GetLeaderEpoch()), StartOffset: e.GetStartOffset()})
	}
	for _, s := range m.GetSpans() {
		d.spans = append(d.spans, span{
			volume: s.GetVolume(), first: s.GetFirstOffset(), end: s.GetEndOffset(), maxTimestamp: s.GetMaxTimestampMs(), bytes: s.GetBytes(),
			sparse: s.GetSparse(),
		})
	}
	for _, t := range m.GetTruncations() {
		d.truncations = append(d.truncations, truncation{generation: t.GetGeneration(), offset: t.GetOffset()})
	}
	return d
}

// advance applies a progress record that names the state record d was read from.
func (d *durable) advance(m *diskv1.PartitionProgress) {
	d.generation = m.GetGeneration()
	d.LogStart = m.GetLogStartOffset()
	d.LogEnd = m.GetLogEndOffset()
	d.HighWatermark = m.GetHighWatermark()
	d.CoordinatorEpoch = m.GetCoordinatorEpoch()
	if n := len(d.spans); n > 0 {
		d.spans[n-1].end = m.GetLogEndOffset()
		d.spans[n-1].maxTimestamp = m.GetSpanMaxTimestampMs()
		d.spans[n-1].bytes = m.GetSpanBytes()
	}
}

// check says what contradicts itself in a state record.
func (d *durable) check() error {
	if d.LogStart < 0 || d.LogStart > d.LogEnd {
		return fmt.Errorf("log start %d does not lie between 0 and the log end %d", d.LogStart, d.LogEnd)
	}
	if d.Deleted || d.LogStart == d.LogEnd && len(d.spans) == 0 {
		return nil
	}
	if len(d.spans) == 0 {
		return errors.New("no span holds its records")
	}
	for i, s := range d.spans {
		if s.first >= s.end {
			return fmt.Errorf("the span from %d to %d is empty", s.first, s.end)
		}
		if i > 0 && d.spans[i-1].end != s.first {
			return fmt.Errorf("the span before %d ends at %d", s.first, d.spans[i-1].end)
		}
	}
	if first := d.spans[0].first; first > d.LogStart {
		return fmt.Errorf("the first span begins at %d, behind the log start %d", first, d.LogStart)
	}
	if end := d.spans[len(d.spans)-1].end; end != d.LogEnd {
		return fmt.Errorf("the last span ends at %d, the log at %d", end, d.LogEnd)
	}
	return nil
}

func producerMessage(p *Producer, generation uint64) *diskv1.ProducerState {
	m := &diskv1.ProducerState{
		Generation:      generation,
		ProducerEpoch:   int32(p.Epoch),
		LastTimestampMs: p.LastTimestamp,
		Batches:         make([]*diskv1.ProducerBatch, len(p.Batches)),
	}
	for i, b := range p.Batches {
		m.Batches[i] = &diskv1.ProducerBatch{
			BaseSequence: b.BaseSequence, LastSequence: b.LastSequence, BaseOffset: b.BaseOffset, AppendTimeMs: b.AppendTime,
		}
	}
	return m
}

// parseProducer reads a producer as far as it was not voided: without batches at
// or above the offset below which it holds.
func parseProducer(id int64, m *diskv1.ProducerState, below int64) Producer {
	p := Producer{ID: id, Epoch: int16(m.GetProducerEpoch()), LastTimestamp: m.GetLastTimestampMs()}
	for _, b := range m.GetBatches() {
		if b.GetBaseOffset() >= below {
			break
		}
		p.Batches = append(p.Batches, ProducerBatch{
			BaseSequence: b.GetBaseSequence(), LastSequence: b.GetLastSequence(), BaseOffset: b.GetBaseOffset(), AppendTime: b.GetAppendTimeMs(),
		})
	}
	return p
}
