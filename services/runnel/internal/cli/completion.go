package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completionPatience is how long a person waits for the shell before it becomes
// a nuisance.
const completionPatience = time.Second

// completeTopic offers the cluster's topics for the first argument, and nothing
// if the cluster does not answer at once.
func (p *program) completeTopic(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
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
	topics, err := client.Admin().ListTopics(ctx)
	if err != nil {
		return nil, nothing
	}
	var names []string
	for _, t := range topics {
		if strings.HasPrefix(t.Name, prefix) {
			names = append(names, t.Name)
		}
	}
	return names, nothing
}

// completeWords offers the beginnings of a flag's value.
func completeWords(command *cobra.Command, flag string, words []string, suffix string) {
	var offers []string
	for _, word := range words {
		offers = append(offers, word+suffix)
	}
	complete := cobra.FixedCompletions(offers, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)
	if err := command.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err)
	}
}
