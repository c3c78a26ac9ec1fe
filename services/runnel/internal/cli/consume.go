package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const consumeHelp = `Print the records of a topic, each value exactly as it was produced and a line
feed.

Without a flag about the position it begins at the end of the topic and prints
what comes in from then on. --offset says where to begin in single partitions;
the others begin at the end. Records of one partition come in order, those of
several as they come.

It ends with Ctrl-C, after --max-records, when no record has come for --timeout,
or with --exit-at-end at what was the end of the topic when it began.

The --print flags put more in front of the value, always in this order:
timestamp, partition, offset, headers, key. They look as in Kafka's console
consumer: CreateTime:1700000000000, Partition:0, Offset:42, name:value,name:value
or NO_HEADERS, and the key. --key-separator stands behind each. A null key or
value is printed as null.

` + groupHelp + `

With -o json each record is an object on a line of its own, with the fields topic,
partition, offset, timestamp (RFC 3339, UTC; null if there is none), timestamp_ms,
headers (an array of key and value, in order), key and value. A key or value is a
string, or null; if it is not valid UTF-8 it is in base64, and key_encoding or
value_encoding (also in a header) is "base64".

The groups themselves are kept in the topic __consumer_offsets. --decode prints what
its records mean, each as an object with a field kind: fence (a coordinator takes
a partition over, and an older one writes there no more), group, member or offset, and
deleted where the record removes it.
With -o json that is the field record, after topic, partition, offset and
timestamp_ms.`

const consumeExample = `  runnel consume orders
  runnel consume orders --from-beginning --exit-at-end > orders.txt
  runnel consume orders --from-beginning --print-key --key-separator : --max-records 10
  runnel consume orders --offset 0:1500 --partition 0 --print-offset
  runnel consume orders --from-time 2026-11-23T08:00:00Z --timeout 5s -o json | jq .value
  runnel consume orders --group billing --from-beginning
  runnel consume __consumer_offsets --from-beginning --exit-at-end --decode
  runnel consume orders --group billing --instance-id billing-1 --delivery at-most-once`

// outputBufferBytes is how much is written to the standard output at once while
// records come faster than that.
const outputBufferBytes = 256 << 10

// defaultPrintSeparator stands behind what the --print flags print.
const defaultPrintSeparator = "\t"

// consumeOptions are the flags of consume.
type consumeOptions struct {
	fromBeginning bool
	offsets       *parsedList[partitionOffset]
	fromTime      *parsed[time.Time]
	partitions    *parsedList[int64]
	maxRecords    *parsed[int64]
	timeout       *parsed[time.Duration]
	exitAtEnd     bool

	printKey, printHeaders, printPartition, printOffset, printTimestamp bool

	separator string

	group *groupOptions
	// decode prints what records of the offsets topic mean.
	decode bool
}

func (p *program) consumeCommand() *cobra.Command {
	o, command := newConsumeCommand(p)
	command.RunE = func(c *cobra.Command, args []string) error {
		if err := o.check(); err != nil {
			return err
		}
		if o.decode && args[0] != cluster.OffsetsTopic {
			return usagef("--decode is for the topic %s only", cluster.OffsetsTopic)
		}
		if o.group.name.text != "" {
			return p.consumeInGroup(c, args[0], o)
		}
		return p.consume(c, args[0], o)
	}
	return command
}

func newConsumeCommand(p *program) (*consumeOptions, *cobra.Command) {
	o := &consumeOptions{}
	command := &cobra.Command{
		Use:               "consume TOPIC",
		Short:             "Print the records of a topic",
		Long:              consumeHelp,
		Example:           consumeExample,
		GroupID:           groupUse,
		Args:              arguments("TOPIC"),
		ValidArgsFunction: p.completeTopic,
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.BoolVar(&o.fromBeginning, "from-beginning", false, "begin with the first record that there is")
	o.offsets = newListFlag(flags, "offset", "P:OFFSET", "begin in partition P at OFFSET; may be repeated", parsePartitionOffset)
	o.fromTime = newFlag(flags, "from-time", "", "RFC3339", "", "begin with the first record of this time or later, such as 2026-11-23T08:00:00Z", parseTime)
	o.partitions = newListFlag(flags, "partition", "P", "read only this partition; may be repeated", integerBetween(0, maxPartition))
	o.maxRecords = newFlag(flags, "max-records", "", "N", "", "end after N records", integerBetween(1, math.MaxInt64))
	o.timeout = newFlag(flags, "timeout", "", "D", "", "end, with success, when no record has come for so long, such as 10s", durationBetween(time.Millisecond, maxConsumeTimeout))
	flags.BoolVar(&o.exitAtEnd, "exit-at-end", false, "end at what was the end of the topic when the command began")
	o.group = newGroupOptions(command, flags)
	flags.BoolVar(&o.decode, "decode", false, "with the topic "+cluster.OffsetsTopic+": print what its records mean, as JSON")
	flags.BoolVar(&o.printKey, "print-key", false, "print the key")
	textFlag(flags, &o.separator, "key-separator", "SEP", defaultPrintSeparator, "print this behind the key and the other printed parts")
	flags.Lookup("key-separator").DefValue = "a tab"
	flags.BoolVar(&o.printHeaders, "print-headers", false, "print the headers")
	flags.BoolVar(&o.printPartition, "print-partition", false, "print the partition")
	flags.BoolVar(&o.printOffset, "print-offset", false, "print the offset")
	flags.BoolVar(&o.printTimestamp, "print-timestamp", false, "print the timestamp, in milliseconds since 1970")
	return o, command
}

// maxConsumeTimeout keeps the arithmetic of time from overflowing.
const maxConsumeTimeout = 365 * 24 * time.Hour

func (p *program) consume(command *cobra.Command, name string, o *consumeOptions) error {
	ctx := command.Context()
	client, err := p.connect(command)
	if err != nil {
		return err
	}
	defer client.Close()
	topic, err := p.describeTopic(ctx, client, name)
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
		return noTopicToRead(name)
	}
	if err != nil {
		return err
	}
	assignments, err := o.assignments(topic)
	if err != nil {
		return err
	}
	var incomplete error
	for _, r := range topic.Replicas {
		switch {
		case r.Err == nil || !o.reads(r.Partition):
		case runnel.ReasonOf(r.Err) == errorsv1.Reason_REASON_CORRUPT_LOG:
			incomplete = failf("records of topic %q are missing: %s", name, sentence(r.Err))
		default:
			p.notef("partition %d of topic %q cannot be read for now: %s; waiting up to %v", r.Partition, name, sentence(r.Err), assignPatience)
		}
	}
	consumer, err := client.NewConsumer(runnel.WithReset(runnel.ResetNone))
	if err != nil {
		return err
	}
	if err := assign(ctx, consumer, assignments); err != nil {
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			return o.unassigned(ctx, client, name, err)
		}
		return err
	}
	if o.waitsAtEnd() && isTerminal(p.Stdout) && isTerminal(p.Stderr) {
		p.notef("waiting for new records; --from-beginning prints those that are there, Ctrl-C ends")
	}
	out := bufio.NewWriterSize(p.Stdout, outputBufferBytes)
	watched, stopWatching := whileRead(ctx, p.Stdout)
	defer stopWatching()
	if err := o.copy(watched, consumer, o.records(p, out, topic), out.Flush); err != nil {
		return o.ending(err)
	}
	// A script must not take what is left for the whole.
	return incomplete
}

// noTopicToRead says that the topic does not exist, and how it comes to.
func noTopicToRead(name string) error {
	return noTopic(name, "create it with \"runnel topics create %[1]s\", or by sending a record with \"runnel produce %[1]s\"", shellWord(name))
}

// records returns the writer of records in the form that was asked for.
func (o *consumeOptions) records(p *program, out *bufio.Writer, topic *topicFacts) recordWriter {
	switch {
	case p.output.value == outputJSON && o.decode:
		return newDecodedLines(out)
	case p.output.value == outputJSON:
		return newJSONRecords(out)
	case o.decode:
		return decodedText{o.textRecords(out, topic)}
	}
	return o.textRecords(out, topic)
}

// ending is what the error means with which reading has ended.
func (o *consumeOptions) ending(err error) error {
	switch {
	case !errors.Is(err, context.Canceled):
		return err
	case o.exitAtEnd || o.maxRecords.text != "":
		// A script must not take a part of the output for the whole.
		return failf("interrupted before the end: records that were asked for are missing")
	}
	// An interrupt is how one stops following a topic.
	return nil
}

// assignPatience bounds how long a partition may take to say where it begins or
// ends: longer than an election.
const assignPatience = 30 * time.Second

// assign makes the consumer read, from positions that are fixed when it
// returns.
func assign(ctx context.Context, consumer *runnel.Consumer, assignments []runnel.Assignment) error {
	limited, cancel := context.WithTimeout(ctx, assignPatience)
	defer cancel()
	return consumer.Assign(limited, assignments...)
}

// unassigned says why reading could not begin in time, as far as the cluster tells.
func (o *consumeOptions) unassigned(ctx context.Context, client *runnel.Client, name string, cause error) error {
	limited, cancel := context.WithTimeout(ctx, obstaclePatience)
	defer cancel()
	topic, err := client.Admin().DescribeTopic(limited, name)
	if err != nil {
		return cause
	}
	return o.unreadable(topic, nodesNow(limited, client), cause)
}

func (o *consumeOptions) unreadable(topic runnel.TopicDescription, nodes []runnel.Node, cause error) error {
	// What is left of a damaged partition can be read.
	topic.Replicas = slices.DeleteFunc(topic.Replicas, func(r runnel.PartitionDescription) bool {
		return !o.reads(r.Partition) || runnel.ReasonOf(r.Err) == errorsv1.Reason_REASON_CORRUPT_LOG
	})
	if why := obstacleIn(topic, nodes); why != "" {
		return &failure{message: fmt.Sprintf("cannot be read after %v: %s", assignPatience, why), cause: cause}
	}
	return cause
}

// textRecords returns the writer that the --print flags ask for.
func (o *consumeOptions) textRecords(out *bufio.Writer, topic *topicFacts) *textRecords {
	t := &textRecords{
		out:       out,
		separator: []byte(o.separator),
		partition: o.printPartition,
		offset:    o.printOffset,
		headers:   o.printHeaders,
		key:       o.printKey,
	}
	if o.printTimestamp {
		t.timestamp = topic.setting("message.timestamp.type")
		if t.timestamp == "" {
			t.timestamp = "CreateTime"
		}
	}
	return t
}

// errIdle ends a poll that has waited for --timeout.
var errIdle = errors.New("no record for a while")

// copy writes records until one of the bounds is reached, which is no error.
func (o *consumeOptions) copy(ctx context.Context, consumer *runnel.Consumer, records recordWriter, flush func() error) error {
	left := int64(math.MaxInt64)
	if o.maxRecords.text != "" {
		left = o.maxRecords.value
	}
	for left > 0 {
		polled, err := o.poll(ctx, consumer)
		switch {
		case errors.Is(err, runnel.ErrEnd), errors.Is(err, errIdle):
			return nil
		case err != nil:
			return err
		}
		for r := range polled.All() {
			if left == 0 {
				break
			}
			left--
			if err := records.write(&r); err != nil {
				return outputError(err)
			}
		}
		if err := flush(); err != nil {
			return outputError(err)
		}
	}
	return nil
}

func (o *consumeOptions) poll(ctx context.Context, consumer *runnel.Consumer) (runnel.Records, error) {
	if o.timeout.text == "" {
		return consumer.Poll(ctx)
	}
	limited, cancel := context.WithTimeoutCause(ctx, o.timeout.value, errIdle)
	defer cancel()
	return consumer.Poll(limited)
}
