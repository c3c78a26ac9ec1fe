package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const produceHelp = `Send each line of the standard input as a record.

A line ends at a line feed, which is not part of the record; every other byte
is, also a carriage return. A last line without a line feed is a record too, and
an empty line is a record with an empty value.

With --key-separator a line is a key and a value, split where the separator
first occurs; a line without it has no key. The separator is taken as it is: in
most shells a tab is $'\t'. Records with the same key go to the same partition.

With --null-value a value that is exactly this text becomes null, which is not
the same as empty: on a topic with cleanup.policy=compact a null value deletes
its key. Without the flag no value is null.

A topic that does not exist is created as by "runnel topics create" without flags
before the input is read, also if that turns out to be empty; --no-create prevents
it. Mind that its number of replicas depends on the nodes that are live then.

A line that the topic does not take, such as one above its max.message.bytes or
one without a key for a compacted topic, is reported with its number and left
out; the others are sent, and the exit code is 1. At the end a line on the
standard error counts records, bytes, seconds and failures; with -o json it is
an object with just these fields. Ctrl-C stops reading and sends what was read; a
second one gives up what has not been acknowledged.

Properties (--property):
`

const produceExample = `  echo "hello world" | runnel produce greetings
  runnel produce web-log --compression zstd < access.log
  printf 'ann:book\nbob:pen\n' | runnel produce orders --key-separator :
  echo 'ann:NULL' | runnel produce profiles --key-separator : --null-value NULL
  tail -F app.log | runnel produce app --acks leader --property linger.ms=50`

// maxPartition is the highest number that a partition can have.
const maxPartition = 1<<31 - 1

// maxHeaderKeyBytes is what the record format has room for.
const maxHeaderKeyBytes = 32767

// produceOptions are the flags of produce.
type produceOptions struct {
	separator string
	// null is the text of a null value; nil if there is none.
	null        *parsed[[]byte]
	headers     *parsedList[runnel.Header]
	acks        *parsed[string]
	compression *parsed[string]
	partition   *parsed[int64]
	properties  *parsedList[runnel.ProducerOption]
	noCreate    bool
}

func (p *program) produceCommand() *cobra.Command {
	var o produceOptions
	command := &cobra.Command{
		Use:               "produce TOPIC",
		Short:             "Send the lines of the standard input",
		Long:              produceHelp + propertyHelp(),
		Example:           produceExample,
		GroupID:           groupUse,
		Args:              arguments("TOPIC"),
		ValidArgsFunction: p.completeTopic,
	}
	flags := command.Flags()
	flags.SortFlags = false
	textFlag(flags, &o.separator, "key-separator", "SEP", "", "what stands between key and value of a line")
	o.null = newFlag(flags, "null-value", "", "TEXT", "", "a value that is exactly this text becomes null",
		func(text string) ([]byte, error) { return []byte(text), nil })
	o.headers = newListFlag(flags, "header", "k=v", "header of every record; may be repeated", parseHeader)
	o.acks = acksFlag(command)
	o.compression = compressionFlag(command)
	o.partition = newFlag(flags, "partition", "", "P", "", "send to this partition, whatever the key", integerBetween(0, maxPartition))
	o.properties = newListFlag(flags, "property", "k=v", "setting of the producer, see above; may be repeated", parseProperty)
	flags.BoolVar(&o.noCreate, "no-create", false, "fail if the topic does not exist")
	completeWords(command, "property", propertyNames(), "=")

	command.RunE = func(c *cobra.Command, args []string) error {
		if c.Flags().Changed("key-separator") && o.separator == "" {
			return usagef("--key-separator is empty")
		}
		return p.produce(c, args[0], &o)
	}
	return command
}

func acksFlag(command *cobra.Command) *parsed[string] {
	return choiceFlag(command, command.Flags(), "acks", "", runnel.AcksAll.String(),
		"when a record counts as sent: at once, when its leader has it, or when all in-sync replicas have it",
		runnel.AcksNone.String(), runnel.AcksLeader.String(), runnel.AcksAll.String())
}

func compressionFlag(command *cobra.Command) *parsed[string] {
	var names []string
	for c := runnel.NoCompression; c <= runnel.Zstd; c++ {
		names = append(names, c.String())
	}
	return choiceFlag(command, command.Flags(), "compression", "", runnel.NoCompression.String(), "how batches are compressed", names...)
}

func parseHeader(text string) (runnel.Header, error) {
	h, err := parsePair(text)
	if err != nil {
		return runnel.Header{}, err
	}
	if len(h.key) > maxHeaderKeyBytes {
		return runnel.Header{}, fmt.Errorf("must have a key of at most %d bytes", maxHeaderKeyBytes)
	}
	return runnel.Header{Key: h.key, Value: []byte(h.value)}, nil
}

// producerOptions returns the options that acks, compression and further
// settings stand for. The words have been checked when they were parsed.
func producerOptions(acks, compression string, more ...runnel.ProducerOption) ([]runnel.ProducerOption, error) {
	a, err := runnel.ParseAcks(acks)
	if err != nil {
		return nil, err
	}
	c, err := runnel.ParseCompression(compression)
	if err != nil {
		return nil, err
	}
	return append([]runnel.ProducerOption{runnel.WithAcks(a), runnel.WithCompression(c)}, more...), nil
}

func (p *program) produce(command *cobra.Command, topicName string, o *produceOptions) error {
	ctx := command.Context()
	client, err := p.connect(command)
	if err != nil {
		return err
	}
	defer client.Close()
	options, err := producerOptions(o.acks.value, o.compression.value, o.properties.values...)
	if err != nil {
		return err
	}
	producer, err := client.NewProducer(options...)
	if err != nil {
		return usagef("%v", err)
	}
	topic, err := p.openTopic(ctx, client, topicName, !o.noCreate)
	if err != nil {
		return err
	}
	record, err := o.template(topic)
	if err != nil {
		return err
	}

	sending, giveUp := context.WithCancel(ctx)
	defer giveUp()
	progress := p.newProgress()
	counts := &tally{giveUp: giveUp, complain: func(format string, args ...any) {
		progress.clear()
		p.complain(format, args...)
	}}
	if isTerminal(p.Stdin) && isTerminal(p.Stderr) {
		p.notef("each line that you type is a record; Ctrl-D ends")
	}
	stopWatching := counts.watch(context.WithoutCancel(ctx), func(ctx context.Context) string {
		return heldUp(producer.HeldUp(topicName), func() string { return obstacle(ctx, client, topicName) })
	})
	began := time.Now()
	stopWaiting := counts.afterInterrupt(ctx)
	undo := beforeExit(ctx, func() {
		if open, _ := counts.open(); open > 0 {
			counts.complain("given up: it is not known whether %s arrived", plural(open, "record"))
		}
		p.notef("%s", counts.summary(time.Since(began)).in(p.output.value))
	})
	inputErr := o.send(sending, producer, record, newLineReader(p.Stdin, topic.maxMessageBytes()+len(o.separator)), counts, progress)

	// Interrupted or not, what was read is sent; a second interrupt ends the
	// process. What did not arrive has been counted by the callbacks.
	_ = producer.Close()
	stopWaiting()
	undo()
	stopWatching()
	progress.clear()
	result := counts.summary(time.Since(began))
	p.notef("%s", result.in(p.output.value))
	switch {
	case result.Failures > 0:
		return errReported
	case inputErr != nil && !errors.Is(inputErr, context.Canceled):
		return failf("cannot read the standard input: %v", inputErr)
	case inputErr != nil && !isTerminal(p.Stdin):
		// A script must not take a part of its input for the whole.
		return failf("interrupted before the end of the input: the records counted above were sent, the rest was not")
	}
	return nil
}

// template returns what all records have in common.
func (o *produceOptions) template(topic *topicFacts) (runnel.Record, error) {
	record := runnel.Record{Topic: topic.Name, Headers: o.headers.values}
	if o.partition.text != "" {
		if err := topic.checkPartition(o.partition.value); err != nil {
			return record, err
		}
		record.Partition = runnel.OnPartition(int32(o.partition.value))
	}
	return record, nil
}

// send sends the lines until their end, and returns why it stopped before: the
// input's error or that of ctx.
func (o *produceOptions) send(ctx context.Context, producer *runnel.Producer, record runnel.Record, lines *lineReader, counts *tally, progress *progress) error {
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	separator := []byte(o.separator)
	batches := readBatches(reading, lines)
	for {
		batch := receive(ctx, batches)
		for _, line := range batch.lines {
			if counts.gaveUp.Load() {
				return context.Canceled
			}
			counts.take()
			if line.err != nil {
				counts.failed(line.number, line.err)
				continue
			}
			record.Key, record.Value = nil, line.text
			if key, value, found := cutKey(line.text, separator); found {
				record.Key, record.Value = key, value
			}
			if o.null.value != nil && bytes.Equal(record.Value, o.null.value) {
				record.Value = nil
			}
			size := len(record.Key) + len(record.Value)
			// A Send that waits for room must not lose the line to an interrupt.
			err := producer.Send(context.WithoutCancel(ctx), record, func(_ runnel.Ack, err error) {
				if err != nil {
					counts.failed(line.number, err)
					return
				}
				counts.sent(size)
			})
			if err != nil {
				counts.failed(line.number, err)
			}
		}
		progress.add(batch.bytes)
		switch {
		case errors.Is(batch.err, io.EOF):
			return nil
		case batch.err != nil:
			return batch.err
		}
	}
}

// cutKey splits a line at the first separator; an empty one splits nothing.
func cutKey(line, separator []byte) (key, value []byte, found bool) {
	if len(separator) == 0 {
		return nil, line, false
	}
	return bytes.Cut(line, separator)
}
