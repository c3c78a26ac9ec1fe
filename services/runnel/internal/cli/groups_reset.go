package cli

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const groupsResetHelp = `Move the offsets of a consumer group, so that it reads some records again or passes
over some.

Without --execute nothing is moved: the plan is printed, with the offset of each
partition before and after, and the LAG that results. Exactly one flag says where
to. Where that lies outside of the log, the NOTE says so, and the offset becomes the
end of the log that is nearest: --shift-by 2 goes forward and stops at the end of
the partition, --shift-by -2 goes back and stops at its first record.

A group with members is refused, since they would commit over it: stop them first.
So is one that does not exist, unless --create is given, as to say where a group is
to begin before it first starts. A topic can be named that the group has not read.
--topic orders means all partitions of a topic, --topic orders:0,3 some of
them; --all-topics means all partitions of which the group has an offset. If one
partition cannot be moved none is, and the exit code is 1.

A file has a line topic,partition,offset for each partition, as of Kafka's tools:
--export writes the offsets after the move, --from-file reads such a file.
--shift-by 0 --export saves the present ones.

With -o json an object with the fields group, executed and offsets (topic,
partition, old_offset, new_offset, clamped_from, log_start_offset, log_end_offset,
lag, error; null where there is none) is printed.`

const groupsResetExample = `  runnel groups reset-offsets billing --topic orders --to-earliest
  runnel groups reset-offsets billing --topic orders --to-earliest --execute
  runnel groups reset-offsets billing --topic orders:0,3 --shift-by -100 --execute
  runnel groups reset-offsets billing --all-topics --to-datetime 2026-11-23T08:00:00Z
  runnel groups reset-offsets billing --all-topics --shift-by 0 --export billing.csv
  runnel groups reset-offsets billing --from-file billing.csv --execute
  runnel groups reset-offsets not-yet-started --topic orders --to-latest --create --execute`

// resetOptions are the flags of reset-offsets.
type resetOptions struct {
	topics    *parsedList[topicPartitions]
	allTopics bool

	toEarliest, toLatest bool
	toOffset, shiftBy    *parsed[int64]
	toDatetime           *parsed[time.Time]
	byDuration           *parsed[time.Duration]
	fromFile             string

	execute, create bool
	export          string
}

func (p *program) groupsResetOffsetsCommand() *cobra.Command {
	command := &cobra.Command{
		Use:               "reset-offsets GROUP",
		Short:             "Move the offsets of a consumer group, or show what that would do",
		Long:              groupsResetHelp,
		Example:           groupsResetExample,
		Args:              arguments("GROUP"),
		ValidArgsFunction: p.completeGroup,
	}
	o := newResetOptions(command.Flags())
	p.completeTopicFlag(command, "topic")
	command.RunE = func(c *cobra.Command, args []string) error {
		target, err := o.target()
		if err != nil {
			return err
		}
		if err := o.checkScope(); err != nil {
			return err
		}
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		return p.groupsResetOffsets(c.Context(), client, args[0], target, o)
	}
	return command
}

func newResetOptions(flags *pflag.FlagSet) *resetOptions {
	o := &resetOptions{}
	flags.SortFlags = false
	o.topics = newTopicsFlag(flags, "move the offsets of the partitions of topic T, or of some; may be repeated")
	flags.BoolVar(&o.allTopics, "all-topics", false, "move all offsets that the group has")
	flags.BoolVar(&o.toEarliest, "to-earliest", false, "move to the first record that there is")
	flags.BoolVar(&o.toLatest, "to-latest", false, "move to the end: what is written from then on")
	o.toOffset = newFlag(flags, "to-offset", "", "N", "", "move to offset N", integerBetween(0, math.MaxInt64))
	o.shiftBy = newFlag(flags, "shift-by", "", "N", "", "move by N records: forward, or back if N is below 0", parseShift)
	o.toDatetime = newFlag(flags, "to-datetime", "", "RFC3339", "", "move to the first record of this time or later, such as 2026-11-23T08:00:00Z", parseTime)
	o.byDuration = newFlag(flags, "by-duration", "", "D", "", "move to the first record that is younger than this, such as 36h", durationBetween(time.Millisecond, maxOffsetAge))
	textFlag(flags, &o.fromFile, "from-file", "F", "", "move what the lines topic,partition,offset of file F say")
	flags.BoolVar(&o.execute, "execute", false, "move the offsets; without, only show what would be moved")
	flags.BoolVar(&o.create, "create", false, "the group may not exist yet, and begins to with these offsets")
	textFlag(flags, &o.export, "export", "F", "", "write the offsets after the move to file F, as --from-file reads it")
	return o
}

// maxOffsetAge keeps the arithmetic of time from overflowing.
const maxOffsetAge = 100 * 365 * 24 * time.Hour

func parseShift(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("must be a whole number, such as 10, or -10 to go back")
	}
	return n, nil
}

// target returns where to move partitions; with --from-file that is in the file.
func (o *resetOptions) target() (runnel.OffsetTarget, error) {
	targets := []struct {
		flag string
		set  bool
		to   runnel.OffsetTarget
	}{
		{"--to-earliest", o.toEarliest, runnel.MoveTo(runnel.Earliest())},
		{"--to-latest", o.toLatest, runnel.MoveTo(runnel.Latest())},
		{"--to-offset", o.toOffset.text != "", runnel.MoveTo(runnel.Offset(o.toOffset.value))},
		{"--shift-by", o.shiftBy.text != "", runnel.MoveBy(o.shiftBy.value)},
		{"--to-datetime", o.toDatetime.text != "", runnel.MoveTo(runnel.Time(o.toDatetime.value))},
		{"--by-duration", o.byDuration.text != "", runnel.MoveToAge(o.byDuration.value)},
		{"--from-file", o.fromFile != "", runnel.OffsetTarget{}},
	}
	var all, given []string
	var to runnel.OffsetTarget
	for _, t := range targets {
		all = append(all, t.flag)
		if t.set {
			given = append(given, t.flag)
			to = t.to
		}
	}
	switch len(given) {
	case 0:
		return to, usagef("say where to move the offsets: %s", alternatives(all))
	case 1:
		return to, nil
	}
	return to, usagef("%s contradict each other: give only one of them", strings.Join(given, " and "))
}

// byTime reports whether the target is a time.
func (o *resetOptions) byTime() bool { return o.toDatetime.text != "" || o.byDuration.text != "" }

// checkScope refuses a command line that does not say what to move, or says so twice.
func (o *resetOptions) checkScope() error {
	named := len(o.topics.values) > 0
	switch {
	case o.fromFile != "" && (named || o.allTopics):
		return usagef("--from-file says itself which partitions to move: leave --topic and --all-topics out")
	case o.fromFile != "":
		return nil
	case named && o.allTopics:
		return usagef("--topic and --all-topics contradict each other: give only one of them")
	case !named && !o.allTopics:
		return usagef("say what to move: --topic, such as --topic orders or --topic orders:0,3, or --all-topics")
	}
	return checkTopics(o.topics.values)
}

// resets returns what to move where.
func (o *resetOptions) resets(ctx context.Context, p *program, client *runnel.Client, group string, target runnel.OffsetTarget) ([]runnel.OffsetReset, error) {
	var resets []runnel.OffsetReset
	switch {
	case o.fromFile != "":
		offsets, err := readOffsetsFile(o.fromFile)
		if err != nil {
			return nil, err
		}
		for _, at := range offsets {
			resets = append(resets, runnel.OffsetReset{Topic: at.Topic, Partitions: []int32{at.Partition}, Target: runnel.MoveTo(runnel.Offset(at.offset))})
		}
	case o.allTopics:
		committed, err := p.committed(ctx, client, group)
		if err != nil {
			return nil, err
		}
		if len(committed) == 0 {
			if _, err := p.describeGroup(ctx, client, group); err != nil {
				if o.create && runnel.ReasonOf(err) == errorsv1.Reason_REASON_GROUP_NOT_FOUND {
					return nil, failf("group %q does not exist, so that --all-topics finds no offsets; name the topics with --topic", group)
				}
				return nil, resetError(group, err)
			}
			return nil, failf("group %q has no offset; name the topics with --topic", group)
		}
		var partitions []runnel.TopicPartition
		for _, c := range committed {
			partitions = append(partitions, c.TopicPartition)
		}
		for _, t := range byTopic(partitions) {
			resets = append(resets, runnel.OffsetReset{Topic: t.Topic, Partitions: t.Partitions, Target: target})
		}
	default:
		for _, t := range o.topics.values {
			resets = append(resets, runnel.OffsetReset{Topic: t.topic, Partitions: t.partitions, Target: target})
		}
	}
	return resets, nil
}

// committed returns the offsets of a group; none if there is no such group, which is no
// error.
func (p *program) committed(ctx context.Context, client *runnel.Client, group string) (offsets []runnel.GroupOffset, err error) {
	err = p.persist(ctx, func(ctx context.Context) (err error) {
		offsets, err = client.Admin().ListCommitted(ctx, group)
		return err
	})
	return offsets, groupError(group, err)
}

func (p *program) groupsResetOffsets(ctx context.Context, client *runnel.Client, group string, target runnel.OffsetTarget, o *resetOptions) error {
	resets, err := o.resets(ctx, p, client, group, target)
	if err != nil {
		return err
	}
	var export *exportFile
	if o.export != "" {
		// Rather than after the offsets were moved.
		if export, err = createExport(o.export); err != nil {
			return err
		}
		defer export.discard()
	}
	again := passes
	if o.execute {
		again = passesWithoutEffect
	}
	var plan runnel.ResetPlan
	err = p.persistIf(ctx, again, func(ctx context.Context) (err error) {
		plan, err = client.Admin().ResetOffsets(ctx, runnel.GroupReset{Group: group, Resets: resets, Execute: o.execute, Create: o.create})
		return err
	})
	if err != nil {
		return unknownOutcome(resetError(group, err), fmt.Sprintf("whether the offsets were moved; look with \"runnel groups describe %s\"", shellWord(group)))
	}
	if err := p.printPlan(group, plan, o.execute, o.byTime()); err != nil {
		return err
	}
	if export == nil {
		return nil
	}
	offsets := make([]fileOffset, len(plan.Offsets))
	for i, planned := range plan.Offsets {
		offsets[i] = fileOffset{planned.TopicPartition, planned.New}
	}
	return export.keep(offsets)
}

// resetError adds the remedy to the error of a reset.
func resetError(group string, err error) error {
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_GROUP_NOT_FOUND {
		return &failure{message: fmt.Sprintf("group %q does not exist; \"runnel groups list\" shows those that do, and --create makes a new one", group), cause: err}
	}
	return err
}

// resetObject is a plan as -o json prints it.
type resetObject struct {
	Group    string          `json:"group"`
	Executed bool            `json:"executed"`
	Offsets  []plannedObject `json:"offsets"`
}

type plannedObject struct {
	Topic          string  `json:"topic"`
	Partition      int32   `json:"partition"`
	OldOffset      *int64  `json:"old_offset"`
	NewOffset      *int64  `json:"new_offset"`
	ClampedFrom    *int64  `json:"clamped_from"`
	LogStartOffset *int64  `json:"log_start_offset"`
	LogEndOffset   *int64  `json:"log_end_offset"`
	Lag            *int64  `json:"lag"`
	Error          *string `json:"error"`
}

// printPlan prints what was moved or would be, and returns an error if something could
// not be.
func (p *program) printPlan(group string, plan runnel.ResetPlan, execute, byTime bool) error {
	object := resetObject{Group: group, Executed: plan.Executed, Offsets: make([]plannedObject, len(plan.Offsets))}
	t := newTable("TOPIC", "PARTITION", "OLD-OFFSET", "NEW-OFFSET", "LAG", "NOTE")
	for i, o := range plan.Offsets {
		row := plannedObject{Topic: o.Topic, Partition: o.Partition, OldOffset: known(o.Old)}
		lag := "-"
		if o.Err == nil {
			row.NewOffset, row.LogStartOffset, row.LogEndOffset, row.Lag = &o.New, &o.Start, &o.End, &o.Lag
			lag = plainNumber(o.Lag)
		} else {
			row.Error = optional(sentence(o.Err))
		}
		if o.Clamped {
			row.ClampedFrom = &o.Target
		}
		object.Offsets[i] = row
		t.row(o.Topic, o.Partition, numberOr(o.Old, "-"), numberOr(o.New, "-"), lag, planNote(&o, byTime))
	}
	if err := p.print(object, t); err != nil {
		return err
	}
	failed := slices.ContainsFunc(plan.Offsets, func(o runnel.PlannedOffset) bool { return o.Err != nil })
	switch {
	case failed:
		return failf("nothing was moved: the offset of a partition cannot be, for the reason in its line")
	case execute && !plan.Executed:
		return failf("nothing was moved")
	case !execute:
		p.notef("nothing was moved: this is the plan, and --execute carries it out while the group has no members")
	default:
		p.notef("moved: group %q goes on at the new offsets", group)
	}
	return nil
}

// planNote says what is peculiar about the move of a partition.
func planNote(o *runnel.PlannedOffset, byTime bool) string {
	switch {
	case o.Err != nil:
		return strings.ReplaceAll(sentence(o.Err), "\n", " ")
	case o.Clamped && o.Target > o.End:
		return fmt.Sprintf("clamped: %d lies beyond the end of the log", o.Target)
	case o.Clamped:
		return fmt.Sprintf("clamped: %d lies before the first record of the log", o.Target)
	case byTime && o.New == o.End:
		return "no record is as young: the end of the log"
	case o.Old == o.New:
		return "unchanged"
	}
	return "-"
}
