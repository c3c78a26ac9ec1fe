package cli

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

func (p *program) benchProduce(command *cobra.Command, client *runnel.Client, o *benchOptions) (*meter, error) {
	topic, _, err := p.openBenchTopic(command.Context(), client, o)
	if err != nil {
		return nil, err
	}
	return p.sendPayloads(command.Context(), client, o, topic, o.records.value)
}

// sendPayloads sends so many records and measures their acknowledgements. An
// interrupt ends it early, without an error.
func (p *program) sendPayloads(ctx context.Context, client *runnel.Client, o *benchOptions, topic *topicFacts, records int64) (*meter, error) {
	producer, err := o.producer(client)
	if err != nil {
		return nil, err
	}
	values := newPayloads(int(o.recordSize.value))
	var first atomic.Pointer[error]

	start := time.Now()
	m := newMeter(start)
	stopReports := p.reporter(m, "sent", func() error { return producer.HeldUp(topic.Name) })
	pace := newSchedule(start, o.rate.value)
	for i := range records {
		began, err := pace.wait(ctx, i)
		if err != nil || first.Load() != nil {
			break
		}
		value := values.take()
		done := func(_ runnel.Ack, err error) {
			if err != nil {
				first.CompareAndSwap(nil, &err)
				m.fail()
				return
			}
			m.done(len(value), began, time.Now())
		}
		if err := producer.Send(ctx, runnel.Record{Topic: topic.Name, Value: value}, done); err != nil {
			if ctx.Err() == nil {
				done(runnel.Ack{}, err)
			}
			break
		}
	}
	_ = producer.Close() // what failed has been counted by the callbacks
	stopReports()
	if err := first.Load(); err != nil {
		return m, m.failures(*err)
	}
	return m, nil
}
