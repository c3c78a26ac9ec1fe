package runnel

import (
	"context"
	"sync"
	"time"
)

// maxUndelivered bounds the callbacks that are due but have not run: a program
// whose callbacks are slower than the cluster is slowed down by its receivers
// reading no more answers.
const maxUndelivered = 1 << 20

// callback is a record whose sender wants to hear of it. Records without one
// leave no trace but in the batch's count.
type callback struct {
	done func(Ack, error)
	// index of the record in its batch; -1 if it was left out.
	index     int32
	timestamp int64
}

// callbackSize is what a callback counts in the producer's memory.
const callbackSize = 24

// verdict is what became of all records of a batch.
type verdict struct {
	baseOffset int64
	// appendTime is the timestamp that the server gave the records, or -1.
	appendTime int64
	err        error
}

// deliveries runs the callbacks of a producer in one goroutine, in the order in
// which batches were settled, which is that of their partitions.
type deliveries struct {
	mu sync.Mutex
	// due holds settled batches in order. Guarded by mu.
	due []delivery
	// undelivered counts the callbacks in due and those that are running.
	// Guarded by mu.
	undelivered int
	// room is closed and replaced when undelivered falls. Guarded by mu.
	room chan struct{}
	// wake holds a token while due may have become non-empty.
	wake chan struct{}
	// ended is closed by run when it returns.
	ended chan struct{}
}

type delivery struct {
	batch *batch
	verdict
	// barrier is closed instead when it is not nil.
	barrier chan struct{}
}

func newDeliveries() *deliveries {
	return &deliveries{room: make(chan struct{}), wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// push never blocks: callers hold the lock of the batch's partition, which
// keeps the order.
func (d *deliveries) push(next delivery) {
	d.mu.Lock()
	d.due = append(d.due, next)
	if next.batch != nil {
		d.undelivered += len(next.batch.callbacks)
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// throttle waits until there is room for more callbacks or ctx ends.
func (d *deliveries) throttle(ctx context.Context) {
	for {
		d.mu.Lock()
		full, room := d.undelivered > maxUndelivered, d.room
		d.mu.Unlock()
		if !full {
			return
		}
		select {
		case <-room:
		case <-ctx.Done():
			return
		}
	}
}

// run delivers until ctx has ended and nothing is due.
func (d *deliveries) run(ctx context.Context) {
	defer close(d.ended)
	var batches []delivery
	for {
		d.mu.Lock()
		batches, d.due = d.due, batches[:0]
		d.mu.Unlock()
		for i := range batches {
			d.deliver(&batches[i])
		}
		if len(batches) > 0 {
			clear(batches)
			continue
		}
		select {
		case <-d.wake:
		case <-ctx.Done():
			d.mu.Lock()
			empty := len(d.due) == 0
			d.mu.Unlock()
			if empty {
				return
			}
		}
	}
}

func (d *deliveries) deliver(next *delivery) {
	if next.barrier != nil {
		close(next.barrier)
		return
	}
	b := next.batch
	ack := Ack{Topic: b.queue.topic.name, Partition: b.queue.partition, Offset: -1}
	for i := range b.callbacks {
		c := &b.callbacks[i]
		ack.Offset = -1
		ack.Timestamp = time.UnixMilli(c.timestamp)
		if c.index < 0 {
			c.done(ack, b.omitted)
			continue
		}
		if next.baseOffset >= 0 {
			ack.Offset = next.baseOffset + int64(c.index)
		}
		if next.appendTime >= 0 {
			ack.Timestamp = time.UnixMilli(next.appendTime)
		}
		c.done(ack, next.err)
	}
	count := len(b.callbacks)
	if next.err == nil {
		b.queue.recycle(b)
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	d.undelivered -= count
	if count > 0 && d.undelivered <= maxUndelivered && d.undelivered+count > maxUndelivered {
		close(d.room)
		d.room = make(chan struct{})
	}
}
