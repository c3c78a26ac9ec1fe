package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const benchHelp = `Measure a running cluster, in the manner of Kafka's performance tools.

The records have no key, spread over the partitions of the topic, and their
values are about half compressible. Interim results go to the standard error
every 5 seconds, the outcome to the standard output. 1 MB is 1,000,000 bytes of
values. The topic is created if it does not exist, and keeps its records; delete
it with "runnel topics delete".

With -o json the outcome is an object with the fields benchmark, topic, records,
failed, bytes, seconds, records_per_second, megabytes_per_second and, for produce
and latency, latency_ms with avg, p50, p95, p99, p99_9 and max.`

const benchProduceHelp = `Send records as fast as possible, or with --rate so many per second.

The latency is that of the acknowledgement. It counts from the call that sends
the record, or with --rate from the time at which the record was due, so that a
stall is seen by all records that it held up.

At full speed, without --rate, the latency is queueing: most of it is the time
that a record waits in the full buffer of the producer. Give --rate to measure
how fast the cluster answers.`

const benchConsumeHelp = `Read records from the beginning of a topic as fast as possible.

A topic that does not exist is created and filled with --records records first;
that is what the flags about producing are for. One that exists is read as it is,
up to its present end.`

const benchLatencyHelp = `Measure the time from sending a record to reading it.

Without --rate a record is sent when the one before it has been read. With --rate
the records are sent at that pace, whatever becomes of those before, and the
latency counts from the time at which a record was due.`

// benchDefaultTopic is used by all benchmarks, so that consume finds what
// produce has sent.
const benchDefaultTopic = "runnel-bench"

// maxBenchRecordBytes is far above what any topic takes.
const maxBenchRecordBytes = 1 << 30

// benchOptions are the flags of the benchmarks.
type benchOptions struct {
	topic       string
	records     *parsed[int64]
	recordSize  *parsed[int64]
	partitions  *parsed[int64]
	acks        *parsed[string]
	compression *parsed[string]
	linger      *parsed[time.Duration]
	batchBytes  *parsed[int64]
	rate        *parsed[float64]
}

func (p *program) benchCommand() *cobra.Command {
	return commandGroup("bench", "Measure throughput and latency", benchHelp,
		`  runnel bench produce --record-size 1024 --acks leader
  runnel bench produce --rate 10000 --records 100000
  runnel bench consume
  runnel bench latency --rate 1000 --records 20000 -o json`,
		p.benchmark("produce", "Measure sending", benchProduceHelp, "1000000", "100",
			`  runnel bench produce --records 5000000 --record-size 100 --compression lz4
  runnel bench produce --topic load --partitions 6 --rate 50000`, p.benchProduce),
		p.benchmark("consume", "Measure reading", benchConsumeHelp, "1000000", "100",
			`  runnel bench consume
  runnel bench consume --topic load --records 500000`, p.benchConsume),
		p.benchmark("latency", "Measure the time from sending to reading", benchLatencyHelp, "10000", "100",
			`  runnel bench latency
  runnel bench latency --rate 10000 --records 100000 --acks leader`, p.benchLatency),
	)
}

type benchmarkFunc func(*cobra.Command, *runnel.Client, *benchOptions) (*meter, error)

func (p *program) benchmark(name, short, long, records, recordSize, example string, run benchmarkFunc) *cobra.Command {
	o := &benchOptions{}
	command := &cobra.Command{
		Use:     name,
		Short:   short,
		Long:    long,
		Example: example,
		Args:    arguments(),
	}
	flags := command.Flags()
	flags.SortFlags = false
	textFlag(flags, &o.topic, "topic", "T", benchDefaultTopic, "topic to use")
	o.records = newFlag(flags, "records", "", "N", records, "how many records", integerBetween(1, 1e15))
	o.recordSize = newFlag(flags, "record-size", "", "B", recordSize, "bytes of a record's value", integerBetween(1, maxBenchRecordBytes))
	o.partitions = newFlag(flags, "partitions", "", "P", "1", "partitions of the topic, if it is created", integerBetween(1, maxPartition))
	o.acks = acksFlag(command)
	o.compression = compressionFlag(command)
	o.linger = newFlag(flags, "linger", "", "D", "", "wait so long for more records before a batch is sent (default: while an earlier one is under way)", durationBetween(0, maxLinger))
	o.batchBytes = newFlag(flags, "batch-bytes", "", "B", "", "send a batch when it has so many bytes (default 262144)", integerBetween(1, maxBatchBytes))
	o.rate = newFlag(flags, "rate", "", "R", "", "records per second to send (default: as fast as possible)", decimalBetween(0.001, 1e9))
	if err := command.RegisterFlagCompletionFunc("topic", p.completeTopic); err != nil {
		panic(err)
	}
	command.RunE = func(c *cobra.Command, _ []string) error {
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		measured, err := run(c, client, o)
		if measured == nil {
			return err
		}
		report := measured.report(name, o.topic)
		return errors.Join(p.print(report, report.table()), err)
	}
	return command
}

// producer returns a producer with the settings of the flags.
func (o *benchOptions) producer(client *runnel.Client) (*runnel.Producer, error) {
	var more []runnel.ProducerOption
	if o.linger.text != "" {
		more = append(more, runnel.WithLinger(o.linger.value))
	}
	if o.batchBytes.text != "" {
		more = append(more, runnel.WithBatchBytes(int(o.batchBytes.value)))
	}
	options, err := producerOptions(o.acks.value, o.compression.value, more...)
	if err != nil {
		return nil, err
	}
	return client.NewProducer(options...)
}

// openBenchTopic returns the topic, and whether it was created for this run.
func (p *program) openBenchTopic(ctx context.Context, client *runnel.Client, o *benchOptions) (topic *topicFacts, created bool, err error) {
	topic, err = p.describeTopic(ctx, client, o.topic)
	if runnel.ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
		return topic, false, err
	}
	topic, err = p.createTopic(ctx, client, runnel.TopicSpec{Name: o.topic, Partitions: int32(o.partitions.value)})
	return topic, true, err
}

// reporter writes interim results until stop is called, which waits for it. why
// tells what holds the records up, as [runnel.Producer.HeldUp] does; it may be nil.
func (p *program) reporter(m *meter, verb string, why func() error) (stop func()) {
	stopping, done := make(chan struct{}), make(chan struct{}) // closed by stop and by the goroutine
	go func() {
		defer close(done)
		ticks := time.NewTicker(meterWindow)
		defer ticks.Stop()
		for {
			select {
			case now := <-ticks.C:
				p.notef("%s", m.interim(verb, now, why))
			case <-stopping:
				return
			}
		}
	}()
	return func() {
		close(stopping)
		<-done
	}
}

// failures is the error of a benchmark of whose records some failed.
func (m *meter) failures(first error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == 0 {
		return nil
	}
	return failf("%s of %d failed, the first because: %s", plural(m.failed, "record"), m.records+m.failed, sentence(first))
}

// plural counts things.
func plural(n int64, thing string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", thing)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
