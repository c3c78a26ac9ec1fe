package runnel

import (
	"time"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
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
	// stream is that of the last attempt.
	stream *produceStream
	// attempted: it was sent. doubtful: an attempt ended without an answer, or
	// with one that leaves open whether the batch was appended.
	// stray: it was sent over more than one stream under its identity, so that a
	// server may take it from an older one after it has answered the latest.
	attempted, doubtful, stray bool
	// settled is closed when the batch is acknowledged or has failed; nil until
	// someone waits for it.
	settled chan struct{}
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
