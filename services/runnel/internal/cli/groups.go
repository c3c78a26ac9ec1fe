package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const groupsHelp = `List, describe and delete consumer groups, and move or delete their offsets.

The members of a group share the partitions of topics out among themselves; the
group remembers how far it has come in each. "runnel consume TOPIC --group GROUP"
is a member.`

const groupsListHelp = `List all consumer groups.

STATE is "empty" where a group has no members, "reconciling" while members have yet
to give up or to receive partitions, and otherwise "stable". COORDINATOR is the node
that looks after the group. The exit code is 1 if the groups of a coordinator cannot
be listed; those of the others are, all the same.

With -o json the groups are an array of objects with the fields group, state,
member_count and coordinator.`

const groupsDeleteHelp = `Delete a consumer group and all its offsets. There is no way back.

A group with members is not deleted: stop them first.

With -o json an object with the field deleted, the name of the group, is printed.`

func (p *program) groupsCommand() *cobra.Command {
	return commandGroup("groups", "Look at consumer groups, and move their offsets", groupsHelp,
		`  runnel groups list
  runnel groups describe billing
  runnel groups reset-offsets billing --topic orders --to-earliest`,
		p.groupsListCommand(), p.groupsDescribeCommand(), p.groupsResetOffsetsCommand(), p.groupsDeleteOffsetsCommand(), p.groupsDeleteCommand())
}

// groupStates are the words for the states of a group.
var groupStates = []runnel.GroupState{runnel.GroupEmpty, runnel.GroupReconciling, runnel.GroupStable}

func groupStateNames() []string {
	names := make([]string, len(groupStates))
	for i, s := range groupStates {
		names[i] = s.String()
	}
	return names
}

func parseGroupState(text string) (runnel.GroupState, error) {
	for _, s := range groupStates {
		if s.String() == text {
			return s, nil
		}
	}
	return 0, fmt.Errorf("must be %s", alternatives(groupStateNames()))
}

// groupObject is a group as -o json prints it.
type groupObject struct {
	Group       string `json:"group"`
	State       string `json:"state"`
	MemberCount int    `json:"member_count"`
	Coordinator int32  `json:"coordinator"`
}

func (p *program) groupsListCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "list",
		Short: "List all consumer groups",
		Long:  groupsListHelp,
		Example: `  runnel groups list
  runnel groups list --state empty
  runnel groups list -o json | jq -r '.[].group'`,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := command.Flags()
	flags.SortFlags = false
	states := newListFlag(flags, "state", strings.Join(groupStateNames(), "|"), "list only groups in this state; may be repeated", parseGroupState)
	completeFlagWith(command, "state", cobra.FixedCompletions(groupStateNames(), cobra.ShellCompDirectiveNoFileComp))
	command.RunE = func(c *cobra.Command, _ []string) error {
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		return p.groupsList(c.Context(), client, states.values)
	}
	return command
}

func (p *program) groupsList(ctx context.Context, client *runnel.Client, states []runnel.GroupState) error {
	var groups []runnel.Group
	listErr := p.persist(ctx, func(ctx context.Context) (err error) {
		groups, err = client.Admin().ListGroups(ctx, states...)
		return err
	})
	if listErr != nil && len(groups) == 0 {
		return listErr
	}
	objects := make([]groupObject, len(groups))
	t := newTable("GROUP", "STATE", "MEMBERS", "COORDINATOR")
	for i, g := range groups {
		objects[i] = groupObject{Group: g.ID, State: g.State.String(), MemberCount: g.Members, Coordinator: g.Coordinator}
		t.row(cell(g.ID), g.State, g.Members, g.Coordinator)
	}
	if err := p.print(objects, t); err != nil {
		return err
	}
	return listErr
}

func (p *program) groupsDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "delete GROUP",
		Short:             "Delete a consumer group and its offsets",
		Long:              groupsDeleteHelp,
		Example:           `  runnel groups delete billing`,
		Args:              arguments("GROUP"),
		ValidArgsFunction: p.completeGroup,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := p.connect(c)
			if err != nil {
				return err
			}
			defer client.Close()
			return p.groupsDelete(c.Context(), client, args[0])
		},
	}
}

func (p *program) groupsDelete(ctx context.Context, client *runnel.Client, group string) error {
	err := p.persistIf(ctx, passesWithoutEffect, func(ctx context.Context) error {
		return client.Admin().DeleteGroup(ctx, group)
	})
	if err != nil {
		return unknownOutcome(groupError(group, err), fmt.Sprintf("whether group %q was deleted; look with \"runnel groups list\"", group))
	}
	t := newTable()
	t.row(fmt.Sprintf("deleted group %q", group))
	return p.print(map[string]string{"deleted": group}, t)
}

// groupError adds the remedy to the error of a call about a group.
func groupError(group string, err error) error {
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_GROUP_NOT_FOUND {
		return &failure{message: fmt.Sprintf("group %q does not exist; \"runnel groups list\" shows those that do", group), cause: err}
	}
	return err
}
