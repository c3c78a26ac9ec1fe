package cli

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// A value of the latency benchmark begins with the number of the run and that
// of the record in it, so that the reader knows which record it is and passes
// over those of others.
const (
	runNumberBytes    = 8
	recordNumberBytes = 8
	minLatencyRecord  = runNumberBytes + recordNumberBytes
)

// arrivalPatience is how long a record may take from its acknowledgement to the
// reader, or from the sender to anywhere, before the benchmark gives up.
const arrivalPatience = 30 * time.Second

var errNoArrival = errors.New("no arrival")

func (p *program) benchLatency(command *cobra.Command, client *runnel.Client, o *benchOptions) (*meter, error) {
	if o.recordSize.value < minLatencyRecord {
		return nil, usagef("--record-size must be at least %d for this benchmark: the records carry a number", minLatencyRecord)
	}
	ctx, giveUp := context.WithCancelCause(command.Context())
	defer giveUp(nil)
	topic, _, err := p.openBenchTopic(ctx, client, o)
	if err != nil {
		return nil, err
	}
	consumer, err := client.NewConsumer()
	if err != nil {
		return nil, err
	}
	defer consumer.Close()
	if err := assign(ctx, consumer, []runnel.Assignment{runnel.AtAll(topic.Name, runnel.Latest())}); err != nil {
		return nil, err
	}
	producer, err := o.producer(client)
	if err != nil {
		return nil, err
	}

	start := time.Now()
	run := &latencyRun{
		number:   rand.Uint64(),
		records:  o.records.value,
		meter:    newMeter(start),
		pace:     newSchedule(start, o.rate.value),
		arrivals: make(chan struct{}, 1),
	}
	stopReports := p.reporter(run.meter, "read", func() error { return producer.HeldUp(topic.Name) })
	received := make(chan error, 1) // never closed: it takes the reader's one result
	go func() {
		err := run.receive(ctx, consumer)
		giveUp(err)
		received <- err
	}()
	sendErr := run.send(ctx, producer, topic.Name, newPayloads(int(o.recordSize.value)), giveUp)
	if sendErr != nil {
		giveUp(sendErr)
	}
	receiveErr := <-received
	if receiveErr == nil {
		// A record may arrive before its acknowledgement does.
		_ = producer.Close() // what failed has been counted by the callbacks
	} else {
		producer.Abort()
	}
	stopReports()

	switch {
	case command.Context().Err() != nil, receiveErr == nil:
		return run.meter, nil
	case sendErr != nil && !errors.Is(sendErr, context.Canceled):
		return run.meter, sendErr
	}
	return run.meter, context.Cause(ctx)
}

// latencyRun is one run of the latency benchmark. Sender and reader share it.
type latencyRun struct {
	number  uint64
	records int64
	meter   *meter
	pace    schedule
	// sentAt is when the latest record was sent, in nanoseconds since the start;
	// for the closed loop, which has one under way at a time.
	sentAt atomic.Int64
	// arrivals tells the sender of the closed loop that its record was read.
	arrivals chan struct{}
}

// send sends the records, in a closed loop one after another. It returns the
// cause of ctx if that ends it.
func (l *latencyRun) send(ctx context.Context, producer *runnel.Producer, topic string, values *payloads, giveUp context.CancelCauseFunc) error {
	value := make([]byte, values.size)
	for i := range l.records {
		sent, err := l.pace.wait(ctx, i)
		if err != nil {
			return context.Cause(ctx)
		}
		copy(value, values.take())
		binary.BigEndian.PutUint64(value, l.number)
		binary.BigEndian.PutUint64(value[runNumberBytes:], uint64(i))
		l.sentAt.Store(int64(sent.Sub(l.pace.start)))
		err = producer.Send(ctx, runnel.Record{Topic: topic, Value: value}, func(_ runnel.Ack, err error) {
			if err != nil {
				l.meter.fail()
				giveUp(err)
			}
		})
		if err != nil {
			return err
		}
		if l.pace.open() {
			continue
		}
		select {
		case <-l.arrivals:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// receive measures the records of this run until all have arrived.
func (l *latencyRun) receive(ctx context.Context, consumer *runnel.Consumer) error {
	for left := l.records; left > 0; {
		polled, err := l.poll(ctx, consumer)
		if err != nil {
			return err
		}
		now := time.Now()
		for r := range polled.All() {
			if len(r.Value) < minLatencyRecord || binary.BigEndian.Uint64(r.Value) != l.number {
				continue
			}
			left--
			l.meter.done(len(r.Value), l.began(int64(binary.BigEndian.Uint64(r.Value[runNumberBytes:]))), now)
			select {
			case l.arrivals <- struct{}{}:
			default:
				// Nobody waits: the loop is open.
			}
		}
	}
	return nil
}

func (l *latencyRun) began(record int64) time.Time {
	if l.pace.open() {
		return l.pace.due(record)
	}
	return l.pace.start.Add(time.Duration(l.sentAt.Load()))
}

func (l *latencyRun) poll(ctx context.Context, consumer *runnel.Consumer) (runnel.Records, error) {
	patience := arrivalPatience
	if l.pace.open() {
		// The next record may not be due yet.
		patience += time.Duration(float64(time.Second) / l.pace.rate)
	}
	limited, cancel := context.WithTimeoutCause(ctx, patience, errNoArrival)
	defer cancel()
	polled, err := consumer.Poll(limited)
	if errors.Is(err, errNoArrival) {
		return polled, failf("no record has arrived for %v; the cluster may be overloaded or down", patience)
	}
	return polled, err
}
