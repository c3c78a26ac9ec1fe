package runnel

import (
	"fmt"
	"math"
	"slices"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

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
		if b.identity != nil && (!b.doubtful || !q.known && !b.stray) {
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
	case gaveUp && b.stray:
		err.Message = fmt.Sprintf("records for %s were sent behind others that were given up, and whether they are written is not known: %s", q.name(), err.Message)
		q.give(b, err.withOutcome(unknown), now)
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
	// What is before b went over the same stream, even when b itself did not.
	q.comeBack(err, sent || q.window[0] != b && !neverSent(err), now)
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
		b.identity, b.attempted, b.doubtful, b.stray = nil, false, false, false
	}
	for _, b := range q.sealed {
		b.identity, b.attempted, b.doubtful, b.stray = nil, false, false, false
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
