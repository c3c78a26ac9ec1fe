package partition

import (
	"context"
	"errors"
	"fmt"
	"slices"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// Bounds are the offsets that a leader lets readers see.
type Bounds struct {
	// LogStart is the first offset that the partition holds.
	LogStart int64
	// HighWatermark is the offset after the last one that may be read.
	HighWatermark int64
	// LeaderEpoch is the present one.
	LeaderEpoch cluster.LeaderEpoch
}

// Fetch is what a reader asks for.
type Fetch struct {
	// Offset is the reader's position.
	Offset int64
	// End bounds the batches: none that holds it or anything above is returned.
	End int64
	// MaxBytes is the size at which to stop; a single batch may exceed it.
	MaxBytes int
	// LeaderEpoch is the one that the reader believes current, or
	// [rules.NoEpoch].
	LeaderEpoch cluster.LeaderEpoch
}

// Fetched is what a reader gets.
type Fetched struct {
	Bounds
	// Batches are in the order of their offsets; the first may begin below the
	// position, or behind it where compaction has removed what was there. They are
	// shared and must not be changed. Empty when there is nothing up to the bound.
	Batches [][]byte
	// NextOffset is the reader's next position.
	NextOffset int64
	// Stored says that the batches come from the store, not from memory.
	Stored bool
}

// Bounds returns the offsets that readers see, if this node leads in the leader
// epoch that the caller believes current. While the high watermark lies below
// the start of the leader's epoch, the leader does not know yet what earlier
// leaders have let readers see: the answer is OFFSET_NOT_AVAILABLE.
func (p *Partition) Bounds(believed cluster.LeaderEpoch) (Bounds, error) {
	p.lock()
	defer p.mu.Unlock()
	if err := p.servesLocked(believed); err != nil {
		return Bounds{}, err
	}
	if p.replica.HighWatermark() < p.replica.EpochStart() {
		return Bounds{}, p.notAvailableLocked()
	}
	return p.boundsLocked(), nil
}

func (p *Partition) boundsLocked() Bounds {
	return Bounds{LogStart: p.replica.StartWritten(), HighWatermark: p.replica.HighWatermark(), LeaderEpoch: p.replica.Epoch()}
}

// Read returns batches below the high watermark: from memory if they are among
// those appended last, else from the store.
func (p *Partition) Read(ctx context.Context, f Fetch) (Fetched, error) {
	p.lock()
	if err := p.readableLocked(f.Offset, f.LeaderEpoch); err != nil {
		p.mu.Unlock()
		return Fetched{}, err
	}
	out := Fetched{Bounds: p.boundsLocked(), NextOffset: f.Offset}
	tail := &p.tail
	p.mu.Unlock()
	end := min(f.End, out.HighWatermark)
	if f.Offset >= end {
		return out, nil
	}
	if batches, next, ok := p.host.tails.read(tail, f.Offset, end, f.MaxBytes); ok {
		p.host.metrics.tailHits.Inc()
		out.Batches, out.NextOffset = batches, next
		return out, nil
	}
	p.host.metrics.tailMisses.Inc()
	batches, err := p.log.Read(ctx, f.Offset, end, f.MaxBytes)
	if err != nil {
		return Fetched{}, p.readError(ctx, f.Offset, err)
	}
	out.Stored = true
	out.Batches = make([][]byte, 0, len(batches))
	for _, b := range batches {
		if b.LastOffset >= end {
			break
		}
		out.Batches = append(out.Batches, b.Bytes)
		out.NextOffset = b.LastOffset + 1
	}
	switch {
	case len(out.Batches) > 0:
	case len(batches) > 0:
		return Fetched{}, p.readError(ctx, f.Offset, errBound)
	default:
		// Compaction has removed what there was.
		out.NextOffset = end
	}
	return out, nil
}

// Recheck returns what was fetched a while ago as Read would do now: with the
// present bounds, or with the error that the offset meets by now. It reads nothing.
func (p *Partition) Recheck(f Fetch, fetched Fetched) (Fetched, error) {
	p.lock()
	defer p.mu.Unlock()
	if err := p.readableLocked(f.Offset, f.LeaderEpoch); err != nil {
		return Fetched{}, err
	}
	fetched.Bounds = p.boundsLocked()
	return fetched, nil
}

// errBound says that the high watermark does not lie where a batch begins.
var errBound = errors.New("the batch there reaches beyond the high watermark")

// readableLocked says whether a reader may read on at an offset.
func (p *Partition) readableLocked(offset int64, believed cluster.LeaderEpoch) error {
	if err := p.servesLocked(believed); err != nil {
		return err
	}
	if offset > p.replica.HighWatermark() && p.replica.HighWatermark() < p.replica.EpochStart() {
		return p.notAvailableLocked()
	}
	if offset < p.replica.StartWritten() || offset > p.replica.HighWatermark() {
		return p.outOfRangeLocked(offset)
	}
	return nil
}

// CheckPosition says whether a reader may begin at an offset, and whether the
// last record that it has read, of an epoch or [rules.NoEpoch], is still in the
// log (KIP-320); REASON_LOG_TRUNCATED says that it is not.
func (p *Partition) CheckPosition(offset int64, lastRead, believed cluster.LeaderEpoch) error {
	p.lock()
	defer p.mu.Unlock()
	if err := p.servesLocked(believed); err != nil {
		return err
	}
	if epoch, end, diverges := p.replica.Epochs().Diverges(lastRead, offset, p.replica.LogEnd()); diverges {
		return p.truncatedLocked(offset, lastRead, epoch, end)
	}
	return p.readableLocked(offset, believed)
}

// EpochAt returns the leader epoch of the record at an offset, or that of the
// present leader at the high watermark.
func (p *Partition) EpochAt(offset int64) cluster.LeaderEpoch {
	p.lock()
	defer p.mu.Unlock()
	if offset >= p.replica.HighWatermark() {
		return p.replica.Epoch()
	}
	return p.replica.Epochs().At(offset)
}

// Size returns the bytes of the batches that the log consists of.
func (p *Partition) Size() (bytes int64) {
	for _, s := range p.log.Spans(nil) {
		bytes += s.Bytes
	}
	return bytes
}

// RecordAt is a record that was found by its time.
type RecordAt struct {
	Offset int64
	// Timestamp is in milliseconds since the Unix epoch.
	Timestamp int64
	// Found is false when there is none; Offset is then the high watermark.
	Found bool
}

// FindTime returns the first readable record whose timestamp is at or after one
// in milliseconds since the Unix epoch.
func (p *Partition) FindTime(ctx context.Context, timestamp int64, believed cluster.LeaderEpoch) (RecordAt, error) {
	bounds, err := p.Bounds(believed)
	if err != nil {
		return RecordAt{}, err
	}
	batch, err := p.log.OffsetForTime(ctx, timestamp, bounds.HighWatermark)
	if err != nil {
		return RecordAt{}, p.readError(ctx, bounds.LogStart, err)
	}
	if batch == nil || batch.LastOffset >= bounds.HighWatermark {
		return RecordAt{Offset: bounds.HighWatermark}, nil
	}
	// The record may lie below the log start, or the header may promise one that
	// is not there: then the search goes on behind the batch.
	found, err := p.findIn(batch.Bytes, timestamp, bounds.LogStart)
	for next := batch.LastOffset + 1; err == nil && !found.Found; {
		var f Fetched
		f, err = p.Read(ctx, Fetch{Offset: max(next, bounds.LogStart), End: bounds.HighWatermark, MaxBytes: 1, LeaderEpoch: believed})
		if err != nil {
			break
		}
		if len(f.Batches) == 0 {
			return RecordAt{Offset: bounds.HighWatermark}, nil
		}
		found, err = p.findIn(f.Batches[0], timestamp, bounds.LogStart)
		next = f.NextOffset
	}
	return found, err
}

// findIn looks for a record in a batch.
func (p *Partition) findIn(batch []byte, timestamp, logStart int64) (RecordAt, error) {
	header, err := recordbatch.ParseHeader(batch)
	if err != nil {
		return RecordAt{}, p.unreadable(logStart, err)
	}
	if header.MaxTimestamp < timestamp {
		return RecordAt{}, nil
	}
	for record, err := range recordbatch.Records(batch, p.host.config.Decoding) {
		if err != nil {
			// The batch cannot be opened: what can be said is that the record is in it.
			return RecordAt{Offset: max(header.BaseOffset, logStart), Timestamp: header.MaxTimestamp, Found: true}, nil
		}
		if record.Timestamp >= timestamp && record.Offset >= logStart {
			return RecordAt{Offset: record.Offset, Timestamp: record.Timestamp, Found: true}, nil
		}
	}
	return RecordAt{}, nil
}

// Await asks for ready to be told of slot once there is something to do for a
// reader at an offset: records, or the end of this leadership. It reports false,
// and ready is not told, when there is already. Each call is for one telling.
func (p *Partition) Await(ready *Ready, slot int, offset int64, believed cluster.LeaderEpoch) bool {
	p.lock()
	defer p.mu.Unlock()
	if offset < p.replica.HighWatermark() || p.servesLocked(believed) != nil {
		return false
	}
	n := p.newsLocked()
	n.readers = append(n.readers, armedReader{ready: ready, slot: slot})
	return true
}

// Forget takes back what ready asked for.
func (p *Partition) Forget(ready *Ready) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awake == nil {
		return
	}
	if n := p.news; n != nil {
		from := func(a armedReader) bool { return a.ready == ready }
		n.readers, n.followers = slices.DeleteFunc(n.readers, from), slices.DeleteFunc(n.followers, from)
	}
}

func (p *Partition) notAvailableLocked() error {
	return rpcerr.New(errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE,
		"the leader of %s has just been elected and does not know its high watermark yet; try again", p.name())
}

func (p *Partition) outOfRangeLocked(offset int64) error {
	return rpcerr.New(errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE,
		"offset %d of %s is outside of what can be read, %d to %d; reset the position to one of these", offset, p.name(), p.replica.StartWritten(), p.replica.HighWatermark()).
		WithDetail(p.rangeDetailLocked(offset))
}

// truncatedLocked says that the log parts from what a reader has read: of the
// epochs up to that of its last record the log has the largest, which ends at end.
func (p *Partition) truncatedLocked(offset int64, lastRead, epoch cluster.LeaderEpoch, end int64) error {
	where := fmt.Sprintf("below offset %d", offset)
	remedy := "reset the position"
	if end < offset {
		where = fmt.Sprintf("from offset %d on", end)
		remedy = "go on there, or reset the position"
	}
	return rpcerr.New(errorsv1.Reason_REASON_LOG_TRUNCATED,
		"%s was truncated: records %s that were read before are no longer in it, such as that of leader epoch %d before offset %d; %s",
		p.name(), where, lastRead, offset, remedy).WithDetail(&errorsv1.LogTruncated{
		Topic: p.topic.Name, Partition: p.index, Offset: offset, LastReadEpoch: int32(lastRead), Epoch: int32(epoch), EndOffset: end,
	})
}

func (p *Partition) rangeDetailLocked(offset int64) *errorsv1.OffsetOutOfRange {
	return &errorsv1.OffsetOutOfRange{
		Topic: p.topic.Name, Partition: p.index, Offset: offset, EarliestOffset: p.replica.StartWritten(), LatestOffset: p.replica.HighWatermark(),
	}
}

// readError turns an error of the store into one for readers.
func (p *Partition) readError(ctx context.Context, offset int64, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, store.ErrClosed):
		return p.closing()
	case errors.Is(err, store.ErrOffsetOutOfRange):
		// The log start has moved meanwhile.
		p.lock()
		defer p.mu.Unlock()
		return p.outOfRangeLocked(offset)
	}
	if _, corrupt := errors.AsType[*store.ErrCorrupt](err); corrupt || errors.Is(err, errBound) {
		return p.unreadable(offset, err)
	}
	return rpcerr.New(errorsv1.Reason_REASON_STORAGE_FAILED, "the store of this node cannot read %s at offset %d; see its log", p.name(), offset).WithCause(err)
}
