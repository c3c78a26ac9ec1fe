package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// completionPatience is how long a person waits for the shell before it becomes
// a nuisance.
const completionPatience = time.Second

// completeTopic offers the cluster's topics for the first argument.
func (p *program) completeTopic(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return p.complete(c, args, prefix, topicNames)
}

// completeGroup offers the cluster's groups for the first argument.
func (p *program) completeGroup(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return p.complete(c, args, prefix, func(ctx context.Context, admin *runnel.Admin) (names []string, err error) {
		groups, err := admin.ListGroups(ctx)
		for _, g := range groups {
			names = append(names, g.ID)
		}
		return names, err
	})
}

// completeTopicFlag offers the cluster's topics for a flag.
func (p *program) completeTopicFlag(command *cobra.Command, flag string) {
	completeFlagWith(command, flag, func(c *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return p.complete(c, nil, prefix, topicNames)
	})
}

func topicNames(ctx context.Context, admin *runnel.Admin) (names []string, err error) {
	topics, err := admin.ListTopics(ctx)
	for _, t := range topics {
		names = append(names, t.Name)
	}
	return names, err
}

// complete offers names for the first argument, and nothing if the cluster does not
// answer at once.
func (p *program) complete(c *cobra.Command, args []string, prefix string, list func(context.Context, *runnel.Admin) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	const nothing = cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 {
		return nil, nothing
	}
	client, err := p.connect(c)
	if err != nil {
		return nil, nothing
	}
	defer client.Close()
	parent := c.Context()
	if parent == nil {
		// Cobra has none for the flags' completions.
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionPatience)
	defer cancel()
	names, err := list(ctx, client.Admin())
	if err != nil {
		return nil, nothing
	}
	return slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, prefix) }), nothing
}

// completeWords offers the beginnings of a flag's value.
func completeWords(command *cobra.Command, flag string, words []string, suffix string) {
	var offers []string
	for _, word := range words {
		offers = append(offers, word+suffix)
	}
	completeFlagWith(command, flag, cobra.FixedCompletions(offers, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace))
}

func completeFlagWith(command *cobra.Command, flag string, complete cobra.CompletionFunc) {
	if err := command.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err)
	}
}
