package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const (
	deliveryAtLeastOnce = "at-least-once"
	deliveryAtMostOnce  = "at-most-once"
)

const (
	// lookInterval is how often a member with --exit-at-end looks whether it is there,
	// although no record comes.
	lookInterval = 200 * time.Millisecond
	// commitPatience is how long the last commit may take: longer than a coordinator
	// takes to be replaced.
	commitPatience = 30 * time.Second
)

// groupOptions are the flags of consume that are about its group.
type groupOptions struct {
	name, instance, assignor, delivery *parsed[string]
}

func newGroupOptions(command *cobra.Command, flags *pflag.FlagSet) *groupOptions {
	return &groupOptions{
		name:     newFlag(flags, "group", "", "G", "", "share the partitions with the other members of group G, and go on where it stopped", notEmpty),
		instance: newFlag(flags, "instance-id", "", "ID", "", "with --group: be the static member ID, which keeps its partitions over a restart of up to 45s", notEmpty),
		assignor: choiceFlag(command, flags, "assignor", "", "", "with --group: how to share the partitions out (default: sticky)", "range", "roundrobin", "sticky"),
		delivery: choiceFlag(command, flags, "delivery", "", "", "with --group: what a crash may do, repeat records or lose some (default: at-least-once)", deliveryAtLeastOnce, deliveryAtMostOnce),
	}
}

func notEmpty(text string) (string, error) {
	if text == "" {
		return "", errors.New("must not be empty")
	}
	return text, nil
}

// check refuses flags that mean nothing without a group, or with one.
func (g *groupOptions) check(o *consumeOptions) error {
	for _, f := range []struct {
		name          string
		given, member bool
	}{
		{"--instance-id", g.instance.text != "", true},
		{"--assignor", g.assignor.text != "", true},
		{"--delivery", g.delivery.text != "", true},
		{"--partition", len(o.partitions.values) > 0, false},
		{"--offset", len(o.offsets.values) > 0, false},
		{"--from-time", o.fromTime.text != "", false},
	} {
		switch {
		case f.given && f.member && g.name.text == "":
			return usagef("%s is for members of a group: give --group, too", f.name)
		case f.given && !f.member && g.name.text != "":
			return usagef("%s and --group contradict each other: a group decides what its members read; \"runnel groups reset-offsets\" moves it", f.name)
		}
	}
	return nil
}

// membership is a run of consume as a member of a group. Its callbacks run in the
// goroutine that polls.
type membership struct {
	p        *program
	o        *consumeOptions
	client   *runnel.Client
	consumer *runnel.Consumer
	topic    string
	group    string

	// joined says that there has been an assignment, closing that the member leaves.
	joined, closing bool
	// missing, idle and awaiting are what the person was told last.
	missing, idle, awaiting bool
	// ends are, with --exit-at-end, the ends of the partitions that the member has, as of
	// when they came; -1 where they are not known yet.
	ends map[runnel.TopicPartition]int64
	// behind is where the member stands in the partitions of which the last poll had
	// records.
	behind map[runnel.TopicPartition]runnel.GroupOffset
}

func (p *program) consumeInGroup(command *cobra.Command, name string, o *consumeOptions) error {
	ctx := command.Context()
	client, err := p.connect(command)
	if err != nil {
		return err
	}
	defer client.Close()
	m := &membership{p: p, o: o, client: client, topic: name, group: o.group.name.value, ends: make(map[runnel.TopicPartition]int64)}
	topic, err := p.describeTopic(ctx, client, name)
	switch {
	case err == nil:
	case runnel.ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND:
		return err
	case o.exitAtEnd:
		return noTopicToRead(name)
	}
	if o.fromBeginning {
		if err := m.tellWhereItGoesOn(ctx); err != nil {
			return err
		}
	}
	if m.consumer, err = client.NewConsumer(m.options()...); err != nil {
		return usagef("%s", sentence(err))
	}
	if err := m.join(ctx); err != nil {
		return err
	}
	out := bufio.NewWriterSize(p.Stdout, outputBufferBytes)
	watched, stopWatching := whileRead(ctx, p.Stdout)
	defer stopWatching()
	err = m.copy(watched, o.records(p, out, topic), out.Flush)
	m.closing = true
	if closeErr := m.consumer.Close(); closeErr != nil && !isClosedPipe(err) {
		p.complain("how far the group has come could not be committed, and records that were printed are printed again: %s", sentence(closeErr))
		err = cmp.Or(err, errReported)
	}
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_INSTANCE_FENCED {
		err = &failure{cause: err, message: fmt.Sprintf("another process has joined group %q as instance %q and has the partitions now; give each process an --instance-id of its own",
			m.group, o.group.instance.value)}
	}
	return o.ending(err)
}

// tellWhereItGoesOn says that --from-beginning has no effect, if it has none.
func (m *membership) tellWhereItGoesOn(ctx context.Context) error {
	committed, err := m.p.committed(ctx, m.client, m.group)
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_GROUP_NOT_FOUND {
		return nil
	}
	if slices.ContainsFunc(committed, func(c runnel.GroupOffset) bool { return c.Topic == m.topic }) {
		m.p.notef("--from-beginning has no effect: group %q has read topic %q before, and goes on where it stopped; \"runnel groups reset-offsets %s --topic %s --to-earliest --execute\" moves it back while it has no members",
			m.group, m.topic, shellWord(m.group), shellWord(m.topic))
	}
	return err
}

func (m *membership) options() []runnel.ConsumerOption {
	reset := runnel.ResetLatest
	if m.o.fromBeginning {
		reset = runnel.ResetEarliest
	}
	g := m.o.group
	options := []runnel.ConsumerOption{
		runnel.WithGroup(m.group), runnel.WithReset(reset),
		runnel.WithRebalance(runnel.Rebalance{Assigned: m.assigned, Revoked: m.revoked, Lost: m.lost}),
	}
	if g.instance.text != "" {
		options = append(options, runnel.WithInstanceID(g.instance.value))
	}
	if g.assignor.text != "" {
		options = append(options, runnel.WithAssignor(g.assignor.value))
	}
	if m.atMostOnce() {
		options = append(options, runnel.WithDelivery(runnel.AtMostOnce))
	}
	return options
}

func (m *membership) atMostOnce() bool { return m.o.group.delivery.value == deliveryAtMostOnce }

// join makes the member one.
func (m *membership) join(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, assignPatience)
	defer cancel()
	err := m.consumer.Subscribe(limited, m.topic)
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	// Whoever describes the group is told why it cannot be joined.
	asked, cancel := context.WithTimeout(ctx, obstaclePatience)
	defer cancel()
	why := err
	if _, described := m.client.Admin().DescribeGroup(asked, m.group); described != nil {
		why = described
	}
	return &failure{message: fmt.Sprintf("group %q cannot be joined after %v: %s", m.group, assignPatience, sentence(why)), cause: err}
}

// assigned tells of partitions that have come, and how the member stands.
func (m *membership) assigned(_ context.Context, partitions []runnel.TopicPartition) {
	m.joined = true
	status, _ := m.consumer.GroupStatus()
	awaiting := status.Awaited > 0
	switch {
	case len(partitions) > 0:
		m.p.notef("assigned by group %q: %s%s", m.group, topicsText(partitions), awaitedText(status.Awaited))
	case awaiting && !m.awaiting:
		m.p.notef("waiting for other members of group %q to give up %s", m.group, plural(int64(status.Awaited), "partition"))
	}
	for _, tp := range partitions {
		m.ends[tp] = -1
	}
	missing := slices.Contains(status.MissingTopics, m.topic)
	if missing && !m.missing {
		m.p.notef("topic %q does not exist; waiting until somebody creates it, as with \"runnel topics create %s\"", m.topic, shellWord(m.topic))
	}
	idle := !missing && !awaiting && len(m.consumer.Assigned()) == 0
	if idle && !m.idle {
		m.p.notef("idle: group %q has more members (%d) than partitions (%d); this one reads when another leaves", m.group, status.Members, status.Partitions)
	}
	m.missing, m.idle, m.awaiting = missing, idle, awaiting
}

func awaitedText(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; %s more once other members have given them up", plainNumber(int64(n)))
}

func (m *membership) revoked(_ context.Context, partitions []runnel.TopicPartition) {
	if m.closing {
		return
	}
	m.p.notef("given up for other members of group %q: %s", m.group, topicsText(partitions))
	m.forget(partitions)
}

func (m *membership) lost(_ context.Context, partitions []runnel.TopicPartition) {
	m.p.notef("lost by this member of group %q: %s; others may be reading them, and some records twice", m.group, topicsText(partitions))
	m.forget(partitions)
}

func (m *membership) forget(partitions []runnel.TopicPartition) {
	for _, tp := range partitions {
		delete(m.ends, tp)
		delete(m.behind, tp)
	}
}

// copy writes records until one of the bounds is reached, which is no error, and
// commits what was written.
func (m *membership) copy(ctx context.Context, records recordWriter, flush func() error) error {
	left := int64(math.MaxInt64)
	if m.o.maxRecords.text != "" {
		left = m.o.maxRecords.value
	}
	last := time.Now()
	for done := false; !done; {
		polled, err := m.poll(ctx, last)
		switch {
		case errors.Is(err, errIdle):
			return m.commit(ctx)
		case errors.Is(err, errLook):
		case errors.Is(err, context.Canceled):
			return cmp.Or(m.commit(ctx), err)
		case err != nil:
			return err
		default:
			last = time.Now()
		}
		if err := m.write(polled, &left, records); err != nil {
			return outputError(err)
		}
		if err := flush(); err != nil {
			return outputError(err)
		}
		atEnd, err := m.atEnd(ctx)
		if err != nil {
			return err
		}
		done = left == 0 || atEnd
	}
	return m.commit(ctx)
}

// write writes as many records as are left to be, and notes how far that is.
func (m *membership) write(polled runnel.Records, left *int64, records recordWriter) error {
	m.behind = make(map[runnel.TopicPartition]runnel.GroupOffset)
	for r := range polled.All() {
		tp := runnel.TopicPartition{Topic: r.Topic, Partition: r.Partition}
		if *left > 0 {
			*left--
			if err := records.write(&r); err != nil {
				return err
			}
			m.behind[tp] = runnel.After(r)
		} else if _, ok := m.behind[tp]; !ok {
			m.behind[tp] = runnel.GroupOffset{TopicPartition: tp, Position: runnel.Position{Offset: r.Offset, LeaderEpoch: -1}}
		}
	}
	return nil
}

// errLook ends a poll that has waited for lookInterval.
var errLook = errors.New("time to look whether the end is reached")

// poll waits for records, but not beyond --timeout after the last one.
func (m *membership) poll(ctx context.Context, last time.Time) (runnel.Records, error) {
	wait, cause := maxConsumeTimeout, errLook
	if m.o.exitAtEnd {
		wait = lookInterval
	}
	if m.o.timeout.text != "" {
		if left := m.o.timeout.value - time.Since(last); left < wait {
			wait, cause = left, errIdle
		}
	}
	limited, cancel := context.WithTimeoutCause(ctx, wait, cause)
	defer cancel()
	return m.consumer.Poll(limited)
}

// commit records what was written of the last poll as done with: there is no further
// poll to say so. What it had beyond --max-records was not printed, and counts as not
// read even at most once.
func (m *membership) commit(ctx context.Context) error {
	if len(m.behind) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitPatience)
	defer cancel()
	if err := m.consumer.Commit(ctx, slices.Collect(maps.Values(m.behind))...); err != nil {
		return &failure{message: "what was printed last is not committed, and is printed again: " + sentence(err), cause: err}
	}
	return nil
}

// atEnd reports whether, with --exit-at-end, the member has read all partitions that it
// has and is to have up to what was their end when they came.
func (m *membership) atEnd(ctx context.Context) (bool, error) {
	switch {
	case !m.o.exitAtEnd || !m.joined:
		return false, nil
	case m.missing:
		// The coordinator may be behind, or the topic was deleted.
		if _, err := m.p.describeTopic(ctx, m.client, m.topic); runnel.ReasonOf(err) == errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			return false, noTopicToRead(m.topic)
		}
		return false, nil
	}
	if err := m.findEnds(ctx); err != nil {
		return false, err
	}
	for tp, end := range m.ends {
		position, err := m.consumer.Position(tp)
		if err != nil || end < 0 || position.Offset < end {
			return false, nil
		}
	}
	status, ok := m.consumer.GroupStatus()
	return ok && status.Awaited == 0, nil
}

// findEnds asks for the ends of partitions that have just come. What is not answered is
// asked for again by the next call.
func (m *membership) findEnds(ctx context.Context) error {
	var ends []runnel.Assignment
	for tp, end := range m.ends {
		if end < 0 {
			ends = append(ends, runnel.At(tp.Topic, tp.Partition, runnel.Latest()))
		}
	}
	if len(ends) == 0 {
		return nil
	}
	offsets, err := m.client.Admin().ListOffsets(ctx, ends...)
	for _, o := range offsets {
		if o.Err == nil {
			m.ends[o.TopicPartition] = o.Offset
		}
	}
	if err != nil && !passes(err) {
		return err
	}
	return nil
}

// groupHelp is what the help of consume says of groups.
const groupHelp = `With --group the command is a member of that group, which shares the partitions out
among its members: start it several times, and each partition is read by one of
them. It goes on where the group stopped; --from-beginning and the end of the topic
count only where the group has not been before. Partitions that come and go are told
on the standard error. How far it has come is committed every few seconds, and when
the command ends. After a crash records since the last commit are printed again;
with --delivery at-most-once, which commits before it prints, they are not, and some
may be missing. A topic that does not exist is waited for, but is an error with
--exit-at-end.`
