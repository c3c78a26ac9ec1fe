package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

const topicsHelp = `Create, change, list, describe and delete topics, and delete their oldest records.`

const topicsCreateHelp = `Create a topic.

Records with the same key go to the same partition and keep their order there;
partitions are what lets producers and consumers work side by side. Settings
that are not given with --config have their defaults, which "runnel topics
describe" shows.

Without --replication-factor a topic has 3 replicas of each partition, or as many as
there are live storage nodes at this moment if these are fewer. It keeps them for
good: nodes that start later get none. While nodes are down, name the factor, and
the topic is created with it or not at all.

By default records are deleted after a week. retention.ms says after how long they
are, retention.bytes how large each partition may become before its oldest go; -1
is for ever and any size. With cleanup.policy=compact the newest record of each key
stays instead, and a record without a value deletes its key; compact,delete does
both. Deletion comes in steps of about a quarter of the limit. "runnel topics
alter" changes settings later.

With -o json the topic is printed as an object with the fields name, id,
partition_count and config (the settings that were given to the topic).`

const topicsListHelp = `List all topics but those of the cluster itself, whose names begin with two
underscores; --internal lists these too.

With -o json the topics are an array of objects with the fields name, id,
partition_count and config (the settings that were given to the topic).`

const topicsDeleteHelp = `Delete a topic and all its records. There is no way back.

With -o json an object with the field deleted, the name of the topic, is printed.`

const topicsDescribeHelp = `Describe a topic: its partitions with their leaders and offsets, and its settings.

EARLIEST is the first offset that the partition holds, LATEST the one after the
last that can be read, SIZE what its records take on the leader's disk. LEADER is
a node; "none" means that the partition cannot be read or written at the moment.
ISR are the replicas that are in sync, ELR those outside of it that still hold all
that was acknowledged. Epochs only grow: one with each leader, the other with each
change of the partition.

STATUS is "ok" or the worst of these: "no leader"; "no answer"; "failed" where
records on the disk of the leader are damaged: such a partition takes no records,
and the reason says what can be done; "below min ISR" where records with acks=all
are refused, which producers repeat until their time is up, because fewer than
min.insync.replicas are in sync; "under-replicated" where a replica is not. The
reasons stand below the partitions. The exit code is 0 all the same.

With --unhealthy only partitions that are not ok are shown, without a NAME those of
all topics, and the exit code is 1 if there is any. With -o json that is an array of
objects as in partitions below, each with a field topic.

With -o json the topic is an object with the fields name, id, partition_count,
config (the settings that were given to the topic), replication_factor,
partitions (partition, leader, leader_epoch, partition_epoch, replicas, isr, elr,
earliest, latest, size_bytes, status, error; null where there is no leader, no
answer or no fault) and settings (all of them: name, value, default,
documentation).`

func (p *program) topicsCommand() *cobra.Command {
	return commandGroup("topics", "Create, change, list, describe and delete topics", topicsHelp,
		`  runnel topics create orders --partitions 3
  runnel topics list
  runnel topics describe orders`,
		p.topicsCreateCommand(), p.topicsListCommand(), p.topicsDescribeCommand(), p.topicsAlterCommand(),
		p.topicsDeleteCommand(), p.topicsDeleteRecordsCommand())
}

func (p *program) topicsCreateCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a topic",
		Long:  topicsCreateHelp,
		Example: `  runnel topics create orders
  runnel topics create orders --partitions 6 --config retention.ms=86400000
  runnel topics create payments --replication-factor 3 --config min.insync.replicas=2
  runnel topics create metrics --config durability=replicated --config max.message.bytes=4194304`,
		Args:              arguments("NAME"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := command.Flags()
	flags.SortFlags = false
	partitions := newFlag(flags, "partitions", "", "N", "", "how many partitions (default: the cluster's)", integerBetween(1, maxPartition))
	replicas := newFlag(flags, "replication-factor", "", "R", "", "on how many nodes each partition lies (default: 3, or all live ones if these are fewer)", integerBetween(1, maxPartition))
	config := newListFlag(flags, "config", "key=value", "setting of the topic; may be repeated", parsePair)
	completeWords(command, "config", topicSettings(), "=")
	command.RunE = func(c *cobra.Command, args []string) error {
		settings, err := settingsMap(config.values)
		if err != nil {
			return err
		}
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		return p.topicsCreate(c.Context(), client, runnel.TopicSpec{
			Name: args[0], Partitions: int32(partitions.value), ReplicationFactor: int32(replicas.value), Config: settings,
		})
	}
	return command
}

// topicSettings are offered by the shell; the cluster judges them.
func topicSettings() []string {
	var names []string
	for _, entry := range rules.TopicConfigEntries(nil) {
		names = append(names, entry.Name)
	}
	return names
}

func settingsMap(pairs []pair) (map[string]string, error) {
	settings := make(map[string]string, len(pairs))
	for _, s := range pairs {
		if _, twice := settings[s.key]; twice {
			return nil, usagef("--config gives %s twice", s.key)
		}
		settings[s.key] = s.value
	}
	return settings, nil
}

// topicObject is a topic as -o json prints it.
type topicObject struct {
	Name           string            `json:"name"`
	ID             string            `json:"id"`
	PartitionCount int               `json:"partition_count"`
	Config         map[string]string `json:"config"`
}

func newTopicObject(t runnel.Topic) topicObject {
	o := topicObject{Name: t.Name, ID: t.ID, PartitionCount: t.Partitions, Config: t.Config}
	if o.Config == nil {
		o.Config = map[string]string{}
	}
	return o
}

func (p *program) topicsCreate(ctx context.Context, client *runnel.Client, spec runnel.TopicSpec) error {
	var topic runnel.Topic
	err := p.persistIf(ctx, passesWithoutEffect, func(ctx context.Context) (err error) {
		topic, err = client.Admin().CreateTopic(ctx, spec)
		return err
	})
	if err != nil {
		return unknownOutcome(err, fmt.Sprintf("whether topic %q was created; look with \"runnel topics describe %s\"", spec.Name, spec.Name))
	}
	factor, facts := 0, glance(ctx, client, topic.Name)
	if facts != nil {
		factor = facts.replicationFactor()
	}
	t := newTable()
	t.row(createdText(topic, factor))
	if err := p.print(newTopicObject(topic), t); err != nil {
		return err
	}
	if facts != nil {
		p.warnCreated(ctx, client, spec, facts)
	}
	return nil
}

func (p *program) topicsListCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "list",
		Short: "List all topics",
		Long:  topicsListHelp,
		Example: `  runnel topics list
  runnel topics list --internal
  runnel topics list -o json | jq -r '.[].name'`,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	internal := command.Flags().Bool("internal", false, "list the topics of the cluster itself too")
	command.RunE = func(c *cobra.Command, _ []string) error {
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		var topics []runnel.Topic
		err = p.persist(c.Context(), func(ctx context.Context) (err error) {
			topics, err = client.Admin().ListTopics(ctx)
			return err
		})
		if err != nil {
			return err
		}
		objects, t := topicList(topics, *internal)
		return p.print(objects, t)
	}
	return command
}

// topicList leaves out what belongs to the cluster itself, unless internal is set.
func topicList(topics []runnel.Topic, internal bool) ([]topicObject, *table) {
	objects := make([]topicObject, 0, len(topics))
	t := newTable("NAME", "PARTITIONS", "ID", "CONFIG")
	for _, topic := range topics {
		if internal || !strings.HasPrefix(topic.Name, "__") {
			objects = append(objects, newTopicObject(topic))
			t.row(topic.Name, topic.Partitions, topic.ID, configText(topic.Config))
		}
	}
	return objects, t
}

// configText lists settings in one cell.
func configText(config map[string]string) string {
	var settings []string
	for _, name := range slices.Sorted(maps.Keys(config)) {
		settings = append(settings, name+"="+config[name])
	}
	if len(settings) == 0 {
		return "-"
	}
	return strings.Join(settings, " ")
}

func (p *program) topicsDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME",
		Short:             "Delete a topic and its records",
		Long:              topicsDeleteHelp,
		Example:           `  runnel topics delete orders`,
		Args:              arguments("NAME"),
		ValidArgsFunction: p.completeTopic,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := p.connect(c)
			if err != nil {
				return err
			}
			defer client.Close()
			return p.topicsDelete(c.Context(), client, args[0])
		},
	}
}

func (p *program) topicsDelete(ctx context.Context, client *runnel.Client, name string) error {
	err := p.persistIf(ctx, passesWithoutEffect, func(ctx context.Context) error {
		return client.Admin().DeleteTopic(ctx, name)
	})
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
		return noTopic(name, seeTopics)
	}
	if err != nil {
		return unknownOutcome(err, fmt.Sprintf("whether topic %q was deleted; look with \"runnel topics list\"", name))
	}
	t := newTable()
	t.row(fmt.Sprintf("deleted topic %q", name))
	return p.print(map[string]string{"deleted": name}, t)
}

// passesWithoutEffect is passes for calls that must not be repeated if they may
// have taken effect.
func passesWithoutEffect(err error) bool {
	e, ok := errors.AsType[*runnel.Error](err)
	return passes(err) && !(ok && e.OutcomeUnknown())
}

// unknownOutcome adds what is not known to an error that leaves it open.
func unknownOutcome(err error, what string) error {
	e, ok := errors.AsType[*runnel.Error](err)
	if !ok || !e.OutcomeUnknown() {
		return err
	}
	return &failure{message: fmt.Sprintf("%s: it is not known %s", sentence(err), what), cause: err}
}
