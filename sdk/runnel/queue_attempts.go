package runnel

import (
	"math"
	"slices"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

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
	b.stray = b.stray || b.attempted && b.stream != stream
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
