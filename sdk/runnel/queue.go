package runnel

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
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
//     that was given up, which shows that nothing behind was appended so far:
//     renew, if the batch went over one stream only, whose requests are taken in
//     order. If it went over others too, their requests may yet be taken, before
//     the new epoch is heard of, and the batch would stand twice: it fails with
//     its outcome unknown, and what is behind is judged by its own answers.
//   - UNKNOWN_PRODUCER for a batch that is not doubtful: the server has forgotten
//     an idle producer. The batch was not appended: renew. Likewise when nothing
//     was ever acknowledged under the epoch: then its very first sequences were
//     given up, and the server has never heard of it; again, if the batch went
//     over one stream only. Otherwise nobody can tell any more: a doubtful batch
//     fails with its outcome unknown.
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

// errUnlawful says that a server answered the requests of a partition in another
// order than it got them, which it must not.
var errUnlawful = errors.New("answers come out of order")

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

// address returns where the queue's leader is reached, "" if it has none.
func (q *partitionQueue) address() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sender == nil {
		return ""
	}
	return q.sender.address
}
