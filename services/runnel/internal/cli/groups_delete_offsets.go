package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const groupsDeleteOffsetsHelp = `Delete offsets of a consumer group. There is no way back.

--topic orders means all partitions of a topic, --topic orders:0,3 some of them. A
topic that a member of the group is subscribed to keeps its offsets: the command is
refused. A member that reads such a partition later begins as for the first time.

With -o json an object with the fields group and deleted (topic, partition, offset:
what the group had) is printed.`

// deletedOffsets is the outcome as -o json prints it.
type deletedOffsets struct {
	Group   string          `json:"group"`
	Deleted []deletedOffset `json:"deleted"`
}

type deletedOffset struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

func (p *program) groupsDeleteOffsetsCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "delete-offsets GROUP --topic T[:P,...]",
		Short: "Delete offsets of a consumer group",
		Long:  groupsDeleteOffsetsHelp,
		Example: `  runnel groups delete-offsets billing --topic orders
  runnel groups delete-offsets billing --topic orders:0,3 --topic payments`,
		Args:              arguments("GROUP"),
		ValidArgsFunction: p.completeGroup,
	}
	flags := command.Flags()
	flags.SortFlags = false
	topics := newTopicsFlag(flags, "delete the offsets of the partitions of topic T, or of some; may be repeated")
	p.completeTopicFlag(command, "topic")
	command.RunE = func(c *cobra.Command, args []string) error {
		if len(topics.values) == 0 {
			return usagef("--topic is needed, such as --topic orders or --topic orders:0,3")
		}
		if err := checkTopics(topics.values); err != nil {
			return err
		}
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		return p.groupsDeleteOffsets(c.Context(), client, args[0], topics.values)
	}
	return command
}

func (p *program) groupsDeleteOffsets(ctx context.Context, client *runnel.Client, group string, topics []topicPartitions) error {
	partitions := make(map[string][]int32)
	for _, t := range topics {
		partitions[t.topic] = t.partitions
	}
	var deleted []runnel.GroupOffset
	err := p.persistIf(ctx, passesWithoutEffect, func(ctx context.Context) (err error) {
		deleted, err = client.Admin().DeleteOffsets(ctx, group, partitions)
		return err
	})
	if err != nil {
		return unknownOutcome(groupError(group, err), fmt.Sprintf("whether the offsets were deleted; look with \"runnel groups describe %s\"", shellWord(group)))
	}
	object := deletedOffsets{Group: group, Deleted: make([]deletedOffset, len(deleted))}
	t := newTable("TOPIC", "PARTITION", "OFFSET")
	for i, d := range deleted {
		object.Deleted[i] = deletedOffset{Topic: d.Topic, Partition: d.Partition, Offset: d.Offset}
		t.row(d.Topic, d.Partition, d.Offset)
	}
	if len(deleted) == 0 {
		t = newTable()
		t.row("nothing to delete: the group has no such offset")
	}
	return p.print(object, t)
}
