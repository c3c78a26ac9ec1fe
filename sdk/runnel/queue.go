package runnel

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

const (
	// memoryQuantum is what a growing batch takes from the producer's memory at
	// a time, so that most records touch no shared counter.
	memoryQuantum = 4 << 10
	// maxSpareBatches is how many settled batches a partition keeps for reuse,
	// maxSpareCallbacks how large a list of callbacks such a batch may have.
	maxSpareBatches   = maxInFlight + 1
	maxSpareCallbacks = 4096
)

// identity is what servers know an idempotent producer by. Identities are
// compared by their pointers.
type identity struct {
	id    int64
	epoch int16
}

// batch is a run of records of one partition that travels as one.
type batch struct {
	// queue never changes: answers to attempts of earlier lives find it.
	queue *partitionQueue
	batchState
}

// batchState is guarded by the queue's mu, but for two phases: while
// queue.building is set, builder and encoded belong to the sender that encodes;
// once the batch is settled, callbacks and omitted belong to the deliveries.
type batchState struct {
	builder recordbatch.Builder
	// encoded is the batch as sent, nil before. It is never written to again:
	// transports may still read it.
	encoded   []byte
	callbacks []callback
	// count is how many records are in the batch.
	count int32
	// omitted is why the callbacks whose index is below 0 have no record in the
	// batch any more, omissions how many those are.
	omitted   error
	omissions int
	// reserved is what the batch holds of the producer's memory, in bytes.
	reserved int64
	// created is when the first record came.
	created time.Time

	// identity and sequence are given when the batch is first sent, and stay
	// with it unless it is known not to have been appended.
	identity *identity
	sequence int32
	// encodedFor is the identity in encoded.
	encodedFor *identity
	// attempt is the request id of the attempt under way, 0 if there is none.
	// Answers to any other are void.
	attempt uint64
	sentAt  time.Time
	stream  *produceStream
	// attempted: it was sent. doubtful: an attempt ended without an answer, or
	// with one that leaves open whether the batch was appended.
	attempted, doubtful bool
	// settled is closed when the batch is acknowledged or has failed; nil until
	// someone waits for it.
	settled chan struct{}
}

// partitionQueue holds the records of one partition on their way to its leader:
// an open batch that takes records, sealed ones that wait, and a window of those
// under way, each older than the one before. Batches leave at the old end only,
// and what goes back comes back in order: that is what keeps order over
// failures.
//
// # Idempotence
//
// A batch under way has (producer id, epoch, sequence). Servers append a
// sequence once, and only after the one before. So any batch may be sent again,
// and a window that is sent again from its oldest batch loses, doubles and
// reorders nothing.
//
// When a batch is given up (its topic refuses it, or its time is over) its
// sequences may be missing for good, and nothing behind it is ever accepted
// under this epoch. Then the queue raises the epoch and counts from 0 (KIP-360),
// which also fences requests of the old epoch that are still on some way. It may
// do so only if nothing it sends again could have been appended before:
//
//   - The batch was refused and is not doubtful: nothing behind it was appended
//     or ever will be, since servers leave no gap. Renew at once.
//   - It is doubtful: keep the epoch. If it was appended, what is behind goes
//     on. If not, the server says OUT_OF_ORDER_SEQUENCE and expects a sequence
//     that was given up, which shows that nothing behind was appended: renew.
//   - UNKNOWN_PRODUCER for a batch that is not doubtful: the server has forgotten
//     an idle producer. The batch was not appended: renew. Likewise when nothing
//     was ever acknowledged under the epoch: then its very first sequences were
//     given up, and the server has never heard of it. Otherwise nobody can tell
//     any more: a doubtful batch fails with its outcome unknown.
//   - OUT_OF_ORDER_SEQUENCE for any other reason: the server lacks batches that it
//     acknowledged, or has more than was sent. With AcksLeader the former is
//     within the promise, and the queue renews. With AcksAll it is not: what was
//     sent fails, so that somebody looks.
//
// Lock order: the producer's mu, mu, then those of senders, deliveries, memory
// and loss.
type partitionQueue struct {
	producer  *Producer
	topic     *producerTopic
	partition int32

	// led tells partitioners whether the partition has a leader.
	led atomic.Bool

	mu sync.Mutex
	// refusal is why no more records are taken; nil while they are.
	refusal error
	open    *batch
	// expected is how large the next batch is likely to become, in bytes.
	expected int
	// sealed waits to be sent: batches that come back first, then new ones.
	sealed []*batch
	window []*batch
	spare  []*batch
	// building is set while a sender encodes a batch that it has taken.
	building bool

	// sender reaches the leader; nil while there is none.
	sender *sender
	epoch  cluster.LeaderEpoch
	// scheduled says that the queue is in the sender's list of ready queues,
	// alarm when the sender's clock is going to put it there, zero for never.
	scheduled bool
	alarm     time.Time
	// retryAt is when to send again after a failure, pause how that grows.
	retryAt time.Time
	pause   backoff
	// lastErr is the failure that made batches come back last.
	lastErr error

	// identity is nil before the first batch, and when its epochs are used up;
	// then renounced is the one not to be used again.
	identity, renounced *identity
	nextSequence        int32
	// gap is the first sequence under this identity that was given up in doubt;
	// -1 if none was, or a later one was acknowledged.
	gap int32
	// known says that a server has acknowledged something under this identity.
	known bool
}

func newPartitionQueue(p *Producer, t *producerTopic, partition int32) *partitionQueue {
	return &partitionQueue{producer: p, topic: t, partition: partition, gap: -1}
}

func (q *partitionQueue) name() TopicPartition {
	return TopicPartition{Topic: q.topic.name, Partition: q.partition}
}

// add puts a record into the open batch. size is the most that it adds to a
// batch, and credit what the caller has taken from the producer's memory for it.
// If that is not enough add returns how much is missing. When it returns that or
// an error the record is not in, and the credit is still the caller's.
func (q *partitionQueue) add(r *Record, ms int64, size int, now time.Time, done func(Ack, error), credit int64) (missing int64, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refusal != nil {
		return 0, q.refusal
	}
	b := q.open
	if b != nil && b.builder.EncodedSize()+size > q.topic.batchBytes() {
		q.seal()
		q.wake(now)
		b = nil
	}
	need := int64(size) - credit
	if done != nil {
		need += callbackSize
	}
	if b != nil {
		need += int64(b.builder.EncodedSize()+callbackSize*len(b.callbacks)) - b.reserved
	} else {
		need += recordbatch.HeaderSize
	}
	var taken int64
	if need > 0 {
		taken = max(need, memoryQuantum)
		if !q.producer.memory.tryAcquire(taken) {
			taken = need
			if !q.producer.memory.tryAcquire(taken) {
				return need, nil
			}
		}
	}
	fresh := b == nil
	if fresh {
		b = q.newBatch()
	}
	if err := b.builder.Append(r.Key, r.Value, r.Headers, ms); err != nil {
		if fresh {
			q.spare = append(q.spare, b)
		}
		q.producer.memory.release(taken)
		return 0, newError(errorsv1.Reason_REASON_INVALID_REQUEST, "record for %s: %v", q.name(), err)
	}
	b.reserved += credit + taken
	if done != nil {
		b.callbacks = append(b.callbacks, callback{done: done, index: b.count, timestamp: ms})
	}
	b.count++
	if fresh {
		b.created = now
		q.open = b
		q.wake(now)
	}
	return 0, nil
}

func (q *partitionQueue) newBatch() *batch {
	var b *batch
	if n := len(q.spare); n > 0 {
		b = q.spare[n-1]
		q.spare = q.spare[:n-1]
	} else {
		b = &batch{queue: q}
	}
	if q.producer.config.compression == NoCompression && b.builder.NumRecords() == 0 && q.expected > 0 {
		// The buffer becomes the batch as sent: allocate it once.
		b.builder.ResetTo(make([]byte, 0, q.expected))
	}
	return b
}

// recycle takes back a batch that was acknowledged and whose callbacks have run.
func (q *partitionQueue) recycle(b *batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.recycleLocked(b)
}

func (q *partitionQueue) recycleLocked(b *batch) {
	if len(q.spare) >= maxSpareBatches {
		return
	}
	clear(b.callbacks)
	if cap(b.callbacks) > maxSpareCallbacks {
		b.callbacks = nil
	}
	b.batchState = batchState{builder: b.builder, callbacks: b.callbacks[:0]}
	q.spare = append(q.spare, b)
}

// seal closes the open batch to more records.
func (q *partitionQueue) seal() {
	// The next is likely to become about as large; a full one has its exact size.
	size := q.open.builder.EncodedSize()
	q.expected = size + size/8
	if full := q.topic.batchBytes(); q.expected > full*3/4 {
		q.expected = full
	}
	q.sealed = append(q.sealed, q.open)
	q.open = nil
	q.producer.sealed.Add(1)
}

// sealOpen seals the open batch if there is one.
func (q *partitionQueue) sealOpen(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open != nil {
		q.seal()
		q.wake(now)
	}
}

// flush makes everything in the queue due and returns a channel that is closed
// once all of it is settled; nil if the queue is empty.
func (q *partitionQueue) flush(now time.Time) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open != nil {
		q.seal()
		q.wake(now)
	}
	var last *batch
	switch {
	case len(q.sealed) > 0:
		last = q.sealed[len(q.sealed)-1]
	case len(q.window) > 0:
		last = q.window[len(q.window)-1]
	default:
		return nil
	}
	if last.settled == nil {
		last.settled = make(chan struct{})
	}
	return last.settled
}

// due returns when the queue can send its next batch; never, if something else
// must happen first.
func (q *partitionQueue) due(now time.Time) (at time.Time, ok bool) {
	window := q.producer.config.window()
	if q.pause.failures > 0 {
		// Feel the way: what is behind a batch that is refused is refused too.
		window = 1
	}
	switch {
	case len(q.window) >= window:
		return time.Time{}, false
	case len(q.sealed) > 0:
		at = now
	case q.open == nil:
		return time.Time{}, false
	case q.producer.config.adaptive && len(q.window) == 0:
		at = now
	default:
		at = q.open.created.Add(q.producer.config.linger)
	}
	if at.Before(q.retryAt) {
		at = q.retryAt
	}
	return at, true
}

// wake tells the sender when there is something to send. To be called after
// everything that may bring that moment closer.
func (q *partitionQueue) wake(now time.Time) {
	if q.sender == nil || q.scheduled || q.building {
		return
	}
	at, ok := q.due(now)
	switch {
	case !ok:
	case !at.After(now):
		q.scheduled = true
		q.sender.push(q)
	case q.alarm.IsZero() || at.Before(q.alarm):
		q.alarm = at
		q.sender.pushAt(q, at)
	}
}

// ring is called by a sender when the time for which it was told about the
// queue has come.
func (q *partitionQueue) ring(s *sender, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sender != s || now.Before(q.alarm) {
		return
	}
	q.alarm = time.Time{}
	q.wake(now)
}

// attempt is one sending of a batch. It carries what its sender needs to know of
// the batch, which goes on changing.
type attempt struct {
	batch *batch
	// id is the request id.
	id       uint64
	identity *identity
	sequence int32
}

// take moves the next batch into the window for its sender s to encode and send.
// The attempt is without batch if there is none to send at this moment; identity
// must be supplied first, by identified, if needsIdentity says so.
func (q *partitionQueue) take(s *sender, now time.Time) (a attempt, needsIdentity bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sender != s {
		return attempt{}, false
	}
	q.scheduled = false
	if at, ok := q.due(now); !ok || q.building || at.After(now) {
		q.wake(now)
		return attempt{}, false
	}
	if len(q.sealed) == 0 {
		q.seal()
	}
	b := q.sealed[0]
	if b.identity == nil && q.producer.config.idempotent() {
		if q.identity == nil {
			return attempt{}, true
		}
		b.identity, b.sequence = q.identity, q.nextSequence
		q.nextSequence = nextSequence(q.nextSequence, b.count)
	}
	q.sealed = slices.Delete(q.sealed, 0, 1)
	q.window = append(q.window, b)
	q.building = true
	b.attempt = q.producer.attempts.Add(1)
	b.sentAt = now
	b.stream = nil
	return attempt{batch: b, id: b.attempt, identity: b.identity, sequence: b.sequence}, false
}

// nextSequence returns the sequence after count records from sequence on:
// sequences wrap from 2^31-1 to 0.
func nextSequence(sequence, count int32) int32 {
	return int32((uint32(sequence) + uint32(count)) & math.MaxInt32)
}

// identified supplies the identity that take asked for. Without one, for the
// reason err, the queue pauses.
func (q *partitionQueue) identified(s *sender, id *identity, err error, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sender != s {
		return
	}
	if err != nil {
		q.lastErr = err
		q.retryAt = now.Add(q.pause.next())
	} else if q.identity == nil {
		q.identity, q.renounced = id, nil
		q.nextSequence, q.gap, q.known = 0, -1, false
	}
	q.wake(now)
}

// neededIdentity returns the identity that take asks to be replaced.
func (q *partitionQueue) neededIdentity() *identity {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.renounced
}

// encode returns the bytes of a batch that its sender has just taken. It runs
// without the lock: building keeps others away from builder and encoded.
func (a attempt) encode(compression Compression) ([]byte, error) {
	b := a.batch
	if b.encoded != nil && b.encodedFor == a.identity {
		return b.encoded, nil
	}
	options := recordbatch.WithoutProducer(compression)
	if a.identity != nil {
		options.ProducerID, options.ProducerEpoch, options.BaseSequence = a.identity.id, a.identity.epoch, a.sequence
	}
	if b.encoded == nil {
		return b.builder.Build(options)
	}
	// The identity has changed since: build the batch anew from its records.
	var builder recordbatch.Builder
	for r, err := range recordbatch.Records(b.encoded, recordbatch.Limits{}) {
		if err == nil {
			err = builder.Append(r.Key, r.Value, r.Headers, r.Timestamp)
		}
		if err != nil {
			return nil, err
		}
	}
	return builder.Build(options)
}

// launch ends the encoding of a batch and reports whether to send it: not if it
// has come back meanwhile, because the batches before it have.
func (q *partitionQueue) launch(a attempt, encoded []byte, err error, stream *produceStream, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.building = false
	defer q.wake(now)
	b := a.batch
	if err == nil {
		b.encoded, b.encodedFor = encoded, a.identity
	}
	if b.attempt != a.id {
		return false
	}
	if err != nil {
		q.give(b, newError(errorsv1.Reason_REASON_CORRUPT_BATCH, "building a batch for %s: %v", q.name(), err), now)
		return false
	}
	b.stream = stream
	b.attempted = true
	return true
}

// unacknowledged settles a batch that was sent with AcksNone.
func (q *partitionQueue) unacknowledged(a attempt, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if b := a.batch; b.attempt == a.id {
		q.acknowledge(b, verdict{baseOffset: -1, appendTime: -1}, now)
	}
}

// acknowledge settles the oldest batch of the window well.
func (q *partitionQueue) acknowledge(b *batch, v verdict, now time.Time) {
	q.pause.reset()
	q.lastErr = nil
	q.retryAt = time.Time{}
	if b.identity == q.identity {
		q.known, q.gap = true, -1
	}
	q.window = slices.Delete(q.window, 0, 1)
	q.settle(b, v)
	q.wake(now)
}

// settle hands a batch that has left the queue to the deliveries.
func (q *partitionQueue) settle(b *batch, v verdict) {
	b.attempt = 0
	q.producer.sealed.Add(-1)
	q.producer.memory.release(b.reserved)
	b.reserved = 0
	if v.err != nil {
		if silent := int(b.count) - (len(b.callbacks) - b.omissions); silent > 0 {
			q.producer.loss.add(silent, v.err)
		}
	}
	// Flush adds its barrier behind the callbacks as soon as the batch is settled,
	// so they must be due by then; and a batch without callbacks is recycled, so its
	// channel is taken before.
	settled := b.settled
	if len(b.callbacks) > 0 {
		q.producer.deliveries.push(delivery{batch: b, verdict: v})
	} else if v.err == nil {
		q.recycleLocked(b)
	}
	if settled != nil {
		close(settled)
	}
}

// errUnlawful says that a server answered the requests of a partition in another
// order than it got them, which it must not.
var errUnlawful = errors.New("answers come out of order")

// answer takes the server's answer to an attempt. An error says that the stream
// must end; if it is an [*Error], that the producer must.
func (q *partitionQueue) answer(b *batch, response *storagev1.ProduceResponse, now time.Time) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if b.attempt != response.GetRequestId() {
		return nil
	}
	if q.window[0] != b {
		return errUnlawful
	}
	failure := response.GetFailure()
	if failure == nil {
		q.acknowledge(b, verdict{baseOffset: response.GetBaseOffset(), appendTime: response.GetAppendTimeMs()}, now)
		return nil
	}
	err := failureError(failure)
	switch failure.GetReason() {
	case errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE:
		q.outOfOrder(b, err, now)
		return nil
	case errorsv1.Reason_REASON_PRODUCER_FENCED:
		q.give(b, err, now)
		return err
	case errorsv1.Reason_REASON_KEY_REQUIRED:
		if q.omitKeyless(b, now) {
			return nil
		}
	case errorsv1.Reason_REASON_UNKNOWN_PRODUCER:
		if b.identity != nil && (!b.doubtful || !q.known) {
			q.renew()
			q.comeBack(err, false, now)
			return nil
		}
		if b.doubtful {
			err = err.withOutcome(unknown)
		}
		q.give(b, err, now)
		return nil
	}
	switch err.outcome {
	case refused:
		q.comeBack(err, false, now)
	case unknown:
		if b.identity == nil {
			b.doubtful = true
			q.give(b, err, now)
		} else {
			q.comeBack(err, true, now)
		}
	case fatal:
		if b.doubtful {
			err = err.withOutcome(unknown)
		}
		q.give(b, err, now)
	}
	return nil
}

// outOfOrder judges the refusal of the oldest batch under way because of its
// sequence; see the type's comment.
func (q *partitionQueue) outOfOrder(b *batch, err *Error, now time.Time) {
	detail := err.failure.GetOutOfOrderSequence()
	behind := detail != nil && b.identity != nil && before(detail.GetExpectedSequence(), b.sequence)
	gaveUp := behind && q.gap >= 0 && !before(detail.GetExpectedSequence(), q.gap)
	switch {
	case gaveUp:
		q.renew()
		q.comeBack(err, false, now)
	case behind && q.producer.config.acks == AcksLeader:
		q.producer.client.config.Logger.Warn("records that the leader had acknowledged are gone", "partition", q.name(), "error", err)
		q.renew()
		q.comeBack(err, false, now)
	default:
		if !behind {
			err = err.withOutcome(unknown)
		}
		for b := q.oldest(); b != nil && b.identity != nil; b = q.oldest() {
			q.remove(b, err)
		}
		q.renew()
		q.wake(now)
	}
}

// before reports whether sequence a comes before b, over the wrap: the two are
// never half of all sequences apart.
func before(a, b int32) bool { return a != b && (uint32(b)-uint32(a))&math.MaxInt32 < 1<<30 }

// lost takes an attempt back whose stream has ended. sent says whether the
// server may have seen it.
func (q *partitionQueue) lost(b *batch, id uint64, err error, sent bool, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if b.attempt != id {
		return
	}
	if sent && b.identity == nil {
		b.doubtful = true
		q.give(b, newError(errorsv1.Reason_REASON_TIMED_OUT, "records for %s were sent, but no answer came: %v", q.name(), err), now)
		return
	}
	q.comeBack(err, sent, now)
}

// comeBack puts the window back to the front of what waits, to be sent again in
// order after a pause if err is not nil. doubt says that the server may have
// taken any of it. It may in any case have taken, or be about to take, what was
// sent behind the oldest: those answers are not awaited, and a server may get to
// see the request only when it has the oldest from another stream.
func (q *partitionQueue) comeBack(err error, doubt bool, now time.Time) {
	for i, b := range q.window {
		b.attempt = 0
		if b.attempted && (doubt || i > 0) && b.identity == q.identity {
			b.doubtful = true
		}
	}
	q.sealed = slices.Insert(q.sealed, 0, q.window...)
	clear(q.window)
	q.window = q.window[:0]
	if err != nil {
		q.lastErr = err
		q.retryAt = now.Add(q.pause.next())
	}
	q.wake(now)
}

// renew raises the epoch: what is not settled is numbered anew when it is sent
// next. Callers make sure that none of it was appended.
func (q *partitionQueue) renew() {
	old := q.identity
	if old == nil {
		return
	}
	q.identity = &identity{id: old.id, epoch: old.epoch + 1}
	if old.epoch == math.MaxInt16 {
		q.renounced, q.identity = old, nil
	}
	q.nextSequence, q.gap, q.known = 0, -1, false
	for _, b := range q.window {
		b.identity, b.doubtful = nil, false
	}
	for _, b := range q.sealed {
		b.identity, b.doubtful = nil, false
	}
}

// give gives a batch of the window up.
func (q *partitionQueue) give(b *batch, err error, now time.Time) {
	q.remove(b, err)
	if b.identity != nil && q.identity == b.identity {
		if !b.doubtful {
			q.renew()
			q.comeBack(nil, false, now)
		} else {
			q.leaveGap(b)
		}
	}
	q.wake(now)
}

// omitKeyless takes the records without a key out of the oldest batch of the
// window, which was refused because of them, so that the others are sent again in
// their order. The callbacks of those that are out run with the others', which
// keeps the order of callbacks too. It reports false, and changes nothing, when
// none would be left or none is without a key; or when the batch is doubtful: it
// may have been appended as it was, before the topic came to need keys.
func (q *partitionQueue) omitKeyless(b *batch, now time.Time) bool {
	if b.doubtful {
		return false
	}
	var rest recordbatch.Builder
	// indexes has the record's place in the rest for each one of the batch.
	indexes := make([]int32, 0, b.count)
	kept := int32(0)
	for r, err := range recordbatch.Records(b.encoded, recordbatch.Limits{}) {
		if err == nil && r.Key != nil {
			err = rest.Append(r.Key, r.Value, r.Headers, r.Timestamp)
		}
		switch {
		case err != nil:
			return false
		case r.Key == nil:
			indexes = append(indexes, -1)
		default:
			indexes = append(indexes, kept)
			kept++
		}
	}
	if kept == 0 || kept == b.count {
		return false
	}
	omitted := newError(errorsv1.Reason_REASON_KEY_REQUIRED,
		"record for %s has no key, which cleanup.policy=compact needs; give every record a key", q.name())
	for i := range b.callbacks {
		c := &b.callbacks[i]
		if c.index = indexes[c.index]; c.index < 0 {
			b.omissions++
		}
	}
	b.omitted = omitted
	if silent := int(b.count-kept) - b.omissions; silent > 0 {
		q.producer.loss.add(silent, omitted)
	}
	b.count = kept
	// Transports may still read the old bytes, which share the old builder's buffer.
	b.builder, b.encoded, b.encodedFor = rest, nil, nil
	if b.identity != nil && b.identity == q.identity {
		// As when a batch is given up: nothing behind it was appended, and fewer
		// records need other sequences.
		q.renew()
	}
	q.comeBack(nil, false, now)
	return true
}

// leaveGap notes that the sequences of a batch may be missing for good.
func (q *partitionQueue) leaveGap(b *batch) {
	if q.gap < 0 {
		q.gap = b.sequence
	}
	if len(q.window) == 0 && (len(q.sealed) == 0 || q.sealed[0].identity == nil) {
		// Nothing behind it was ever sent.
		q.renew()
	}
}

// remove fails a batch of the queue.
func (q *partitionQueue) remove(b *batch, err error) {
	same := func(other *batch) bool { return other == b }
	q.window = slices.DeleteFunc(q.window, same)
	q.sealed = slices.DeleteFunc(q.sealed, same)
	q.settle(b, verdict{baseOffset: -1, appendTime: -1, err: err})
}

// expire fails what is older than the delivery timeout, and returns the stream
// that the oldest attempt waits on if it has been waiting for longer than a
// server may take.
func (q *partitionQueue) expire(now time.Time) (stuck *produceStream) {
	q.mu.Lock()
	defer q.mu.Unlock()
	timeout := q.producer.config.deliveryTimeout
	for {
		b := q.oldest()
		if b == nil {
			return nil
		}
		if now.Sub(b.created) < timeout || q.building {
			if b.attempt != 0 && now.Sub(b.sentAt) > q.producer.config.answerTimeout() {
				return b.stream
			}
			return nil
		}
		if b == q.open {
			q.seal()
		}
		if b.attempt != 0 && b.attempted {
			b.doubtful = true
		}
		q.give(b, expired(q.name(), timeout, b.doubtful, q.obstacle()), now)
	}
}

// obstacle returns what made batches come back last, or that there is nobody to
// send them to; nil if neither is so.
func (q *partitionQueue) obstacle() error {
	if q.sender == nil && q.lastErr == nil {
		return newError(errorsv1.Reason_REASON_NO_LEADER, "the partition has no leader")
	}
	return q.lastErr
}

// heldUp returns why the queue's records wait, and since when its oldest do; nil
// if there are none or nothing is known.
func (q *partitionQueue) heldUp() (since time.Time, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.oldest()
	if b == nil {
		return time.Time{}, nil
	}
	return b.created, q.obstacle()
}

func (q *partitionQueue) oldest() *batch {
	switch {
	case len(q.window) > 0:
		return q.window[0]
	case len(q.sealed) > 0:
		return q.sealed[0]
	}
	return q.open
}

// follow sends what comes to the leader of a newer epoch, or nobody while there
// is none.
func (q *partitionQueue) follow(s *sender, epoch cluster.LeaderEpoch, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if epoch < q.epoch || epoch == q.epoch && (q.sender == s || s == nil) {
		return
	}
	q.epoch = epoch
	q.led.Store(s != nil)
	if q.sender == s {
		return
	}
	q.sender = s
	q.scheduled, q.alarm = false, time.Time{}
	q.retryAt = time.Time{}
	if q.producer.config.idempotent() {
		// What the old leader has not answered is asked of the new one: if it was
		// replicated, its sequence is known there.
		q.comeBack(nil, true, now)
		return
	}
	q.wake(now)
}

// refuse fails everything in the queue and takes no more, for the reason err.
func (q *partitionQueue) refuse(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refusal == nil {
		q.refusal = err
	}
	if q.open != nil {
		q.seal()
	}
	for b := q.oldest(); b != nil; b = q.oldest() {
		verdict := err
		if b.doubtful || b.attempt != 0 && b.attempted {
			verdict = doubt(q.name(), err)
		}
		q.remove(b, verdict)
	}
}

// shut takes no more records, for the reason err; those at hand are delivered.
func (q *partitionQueue) shut(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refusal == nil {
		q.refusal = err
	}
}

// doubt is the verdict on records that were sent when err ended the wait for an
// answer.
func doubt(tp TopicPartition, err error) error {
	return &Error{
		Reason:  ReasonOf(err),
		Message: fmt.Sprintf("records for %s were sent, but no answer was awaited: %v", tp, err),
		outcome: unknown,
		cause:   err,
	}
}

// address returns where the queue's leader is reached, "" if it has none.
func (q *partitionQueue) address() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sender == nil {
		return ""
	}
	return q.sender.address
}
