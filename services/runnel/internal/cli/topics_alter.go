package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

const topicsAlterHelp = `Change settings of a topic while it is in use.

--config gives a setting a value, --unset takes one back to its default; all other
settings stay. Either everything is changed or, if one value is not legal,
nothing. "runnel topics describe" shows the settings, --help of "runnel topics
create" says what they do.

The change is in effect a moment later, without a restart. What it means for
records that are there already: retention and compaction go by the new settings;
durability, max.message.bytes and message.timestamp.type are about records that
are appended from now on. Mind that a shorter retention deletes for good, and
that cleanup.policy=compact deletes records without a key and refuses new ones.

With -o json the topic is printed as an object with the fields name, id,
partition_count and config (the settings that were given to the topic).`

func (p *program) topicsAlterCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "alter NAME",
		Short: "Change settings of a topic",
		Long:  topicsAlterHelp,
		Example: `  runnel topics alter orders --config retention.ms=86400000
  runnel topics alter orders --config cleanup.policy=compact --unset retention.ms`,
		Args:              arguments("NAME"),
		ValidArgsFunction: p.completeTopic,
	}
	flags := command.Flags()
	flags.SortFlags = false
	config := newListFlag(flags, "config", "key=value", "setting to give a value; may be repeated", parsePair)
	unset := newListFlag(flags, "unset", "key", "setting to take back to its default; may be repeated", parseSettingName)
	completeWords(command, "config", topicSettings(), "=")
	completeWords(command, "unset", topicSettings(), "")
	command.RunE = func(c *cobra.Command, args []string) error {
		settings, err := settingsMap(config.values)
		if err != nil {
			return err
		}
		if len(settings)+len(unset.values) == 0 {
			return usagef("give a setting to change, such as --config retention.ms=86400000 or --unset retention.ms")
		}
		for _, name := range unset.values {
			if _, both := settings[name]; both {
				return usagef("--config and --unset contradict each other about %s: give only one of them", name)
			}
		}
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		return p.topicsAlter(c.Context(), client, runnel.TopicChange{Name: args[0], Config: settings, Unset: unset.values})
	}
	return command
}

func parseSettingName(text string) (string, error) {
	if text == "" {
		return "", fmt.Errorf("must be the name of a setting, such as %s", rules.RetentionMs)
	}
	return text, nil
}

func (p *program) topicsAlter(ctx context.Context, client *runnel.Client, change runnel.TopicChange) error {
	var topic runnel.Topic
	// The change may be made twice: it says what the settings are to be.
	err := p.persist(ctx, func(ctx context.Context) (err error) {
		topic, err = client.Admin().AlterTopic(ctx, change)
		return err
	})
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
		return noTopic(change.Name, seeTopics)
	}
	if err != nil {
		return unknownOutcome(err, fmt.Sprintf("whether topic %q was altered; look with \"runnel topics describe %s\"", change.Name, shellWord(change.Name)))
	}
	t := newTable()
	t.row(fmt.Sprintf("altered topic %q, which now has %s", topic.Name, ownSettings(topic.Config)))
	if err := p.print(newTopicObject(topic), t); err != nil {
		return err
	}
	if _, changed := change.Config[rules.MinInsyncReplicas]; changed {
		if facts := glance(ctx, client, topic.Name); facts != nil && facts.minISRWarning() != "" {
			p.notef("warning: %s", facts.minISRWarning())
		}
	}
	return nil
}

// ownSettings says which settings a topic has of its own.
func ownSettings(config map[string]string) string {
	if len(config) == 0 {
		return "the defaults of all settings"
	}
	return configText(config)
}
