package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const topicsDeleteRecordsHelp = `Delete the oldest records of a topic. There is no way back.

--before 1:5000 removes all records of partition 1 before offset 5000, and
--before 1:end all that can be read now. Partitions that are not named keep their
records. Readers no longer find the records at once; their space on the disk is
given back later, in pieces: a piece of which a record stays counts as needed.
The offsets of the records that stay do not change.

EARLIEST is the first offset that a partition holds afterwards. It only moves
forward: an offset below it deletes nothing.

With -o json an object with the fields topic and partitions (partition, earliest,
error; earliest is null where error says why nothing was deleted) is printed.`

func (p *program) topicsDeleteRecordsCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "delete-records NAME --before P:OFFSET",
		Short: "Delete the oldest records of partitions",
		Long:  topicsDeleteRecordsHelp,
		Example: `  runnel topics delete-records orders --before 0:1500
  runnel topics delete-records orders --before 0:1500 --before 1:end`,
		Args:              arguments("NAME"),
		ValidArgsFunction: p.completeTopic,
	}
	flags := command.Flags()
	flags.SortFlags = false
	before := newListFlag(flags, "before", "P:OFFSET|P:end", "delete what partition P holds before this offset, or all of it; may be repeated", parseDeletion)
	command.RunE = func(c *cobra.Command, args []string) error {
		deletions := before.values
		if err := checkDeletions(deletions); err != nil {
			return err
		}
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		return p.topicsDeleteRecords(c.Context(), client, args[0], deletions)
	}
	return command
}

// deletionEnd as the offset of a deletion stands for the high watermark.
const deletionEnd = -1

// deletion is the value of --before.
type deletion partitionOffset

func parseDeletion(text string) (deletion, error) {
	if number, isEnd := strings.CutSuffix(text, ":end"); isEnd {
		if p, err := strconv.ParseInt(number, 10, 32); err == nil && p >= 0 {
			return deletion{p, deletionEnd}, nil
		}
	}
	at, err := parsePartitionOffset(text)
	if err != nil {
		return deletion{}, fmt.Errorf("must look like P:OFFSET, two numbers from 0, or like P:end, such as 0:1500 or 0:end")
	}
	return deletion(at), nil
}

// checkDeletions refuses a command line that does not say what to delete.
func checkDeletions(deletions []deletion) error {
	if len(deletions) == 0 {
		return usagef("--before is needed, such as --before 0:1500 or --before 0:end")
	}
	seen := make(map[int64]bool)
	for _, d := range deletions {
		if seen[d.partition] {
			return usagef("--before gives two offsets for partition %d", d.partition)
		}
		seen[d.partition] = true
	}
	return nil
}

// start is where the records that stay begin.
func (d deletion) start() runnel.Start {
	if d.offset == deletionEnd {
		return runnel.Latest()
	}
	return runnel.Offset(d.offset)
}

// deletionObject is the outcome as -o json prints it.
type deletionObject struct {
	Topic      string              `json:"topic"`
	Partitions []deletionPartition `json:"partitions"`
}

type deletionPartition struct {
	Partition int32   `json:"partition"`
	Earliest  *int64  `json:"earliest"`
	Error     *string `json:"error"`
}

// topicsDeleteRecords looks at all partitions before it deletes from any, so that
// a mistake in the command line deletes nothing.
func (p *program) topicsDeleteRecords(ctx context.Context, client *runnel.Client, name string, deletions []deletion) error {
	topic, err := p.describeTopic(ctx, client, name)
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
		return noTopic(name, seeTopics)
	}
	if err != nil {
		return err
	}
	var before []runnel.Assignment
	for _, d := range deletions {
		if err := topic.checkPartition(d.partition); err != nil {
			return err
		}
		if err := topic.checkDeletion(d); err != nil {
			return err
		}
		before = append(before, runnel.At(name, int32(d.partition), d.start()))
	}
	var starts []runnel.PartitionOffset
	err = p.persist(ctx, func(ctx context.Context) (err error) {
		starts, err = client.Admin().DeleteRecords(ctx, before...)
		return err
	})
	if err != nil {
		return err
	}
	return p.printDeletions(name, starts)
}

// checkDeletion refuses an offset that the partition has not come to.
func (t *topicFacts) checkDeletion(d deletion) error {
	for _, r := range t.Replicas {
		if int64(r.Partition) == d.partition && r.Latest >= 0 && d.offset > r.Latest {
			return failf("partition %d of topic %q cannot lose its records before offset %d: its end is %d, and nothing was deleted; give an offset up to that, or %d:end",
				d.partition, t.Name, d.offset, r.Latest, d.partition)
		}
	}
	return nil
}

// perhaps tells an outcome that is not known.
func perhaps(err error) string {
	if e, ok := errors.AsType[*runnel.Error](err); ok && e.OutcomeUnknown() {
		return ", or it is not known that they were"
	}
	return ""
}

// printDeletions shows the new starts, and complains of each partition that kept
// its records.
func (p *program) printDeletions(name string, starts []runnel.PartitionOffset) error {
	object := deletionObject{Topic: name, Partitions: make([]deletionPartition, len(starts))}
	t := newTable("PARTITION", "EARLIEST")
	failures := 0
	for i, s := range starts {
		object.Partitions[i] = deletionPartition{Partition: s.Partition, Earliest: known(s.Offset)}
		if s.Err != nil {
			failures++
			why := sentence(s.Err)
			object.Partitions[i].Earliest, object.Partitions[i].Error = nil, &why
			p.complain("the records of partition %d of topic %q were not deleted%s: %s; the same command may be repeated", s.Partition, name, perhaps(s.Err), why)
			t.row(s.Partition, "-")
			continue
		}
		t.row(s.Partition, s.Offset)
	}
	if failures < len(starts) || p.output.value == outputJSON {
		if err := p.print(object, t); err != nil {
			return err
		}
	}
	if failures > 0 {
		return errReported
	}
	return nil
}
