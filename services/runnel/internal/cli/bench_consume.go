package cli

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

func (p *program) benchConsume(command *cobra.Command, client *runnel.Client, o *benchOptions) (*meter, error) {
	ctx := command.Context()
	topic, created, err := p.openBenchTopic(ctx, client, o)
	if err != nil {
		return nil, err
	}
	if created {
		p.notef("sending %s to read", plural(o.records.value, "record"))
		if _, err := p.sendPayloads(ctx, client, o, topic, o.records.value); err != nil || ctx.Err() != nil {
			return nil, errors.Join(err, ctx.Err())
		}
	}
	consumer, err := client.NewConsumer()
	if err != nil {
		return nil, err
	}
	defer consumer.Close()

	start := time.Now()
	m := newMeter(start)
	stopReports := p.reporter(m, "read", nil)
	defer stopReports()
	if err := assign(ctx, consumer, []runnel.Assignment{runnel.AtAll(topic.Name, runnel.Earliest()).UntilEnd()}); err != nil {
		return nil, err
	}
	for left := o.records.value; left > 0; {
		polled, err := consumer.Poll(ctx)
		switch {
		case errors.Is(err, runnel.ErrEnd):
			p.notef("the topic ends %s short of --records", plural(left, "record"))
			return m, nil
		case ctx.Err() != nil:
			return m, nil
		case err != nil:
			return m, err
		}
		var records, bytes int64
		for r := range polled.All() {
			if records == left {
				break
			}
			records++
			bytes += int64(len(r.Value))
		}
		left -= records
		m.received(records, bytes, time.Now())
	}
	return m, nil
}
