package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const partitionsHelp = `Choose leaders of partitions.`

const electLeaderHelp = `Elect leaders of partitions.

With --preferred the first replica of each partition leads it again, where it is
live and in sync. Nothing is lost. The cluster does the same by itself now and then.

With --unclean a partition that is offline gets a leader although no replica that
is known to hold all its records is live. What the new leader lacks is lost for
good, even if the others come back later, and so are records that consumers have
read already. So first try to start the nodes that are down: "runnel cluster
describe" shows them. Without --yes it is only said who would lead.
Partitions that have a leader keep it.

--topic orders means all partitions of a topic, --topic orders:0,3 some of them;
without --topic it is all partitions of all topics. The exit code is 1 if a leader
could not be elected, and without --yes if one would have been.

With -o json the outcome is an array of objects with the fields topic, partition,
previous_leader, leader (null for none), leader_epoch, unclean, and error (null
where there is none): of all partitions that were named by their numbers, and of
the others those whose leader changed or could not be elected.`

func (p *program) partitionsCommand() *cobra.Command {
	return commandGroup("partitions", "Choose leaders of partitions", partitionsHelp,
		`  runnel partitions elect-leader --preferred`, p.electLeaderCommand())
}

func (p *program) electLeaderCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "elect-leader --preferred|--unclean",
		Short: "Elect leaders of partitions",
		Long:  electLeaderHelp,
		Example: `  runnel partitions elect-leader --preferred
  runnel partitions elect-leader --preferred --topic orders --topic payments:0,3
  runnel partitions elect-leader --unclean --topic orders:2 --yes`,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := command.Flags()
	flags.SortFlags = false
	preferred := flags.Bool("preferred", false, "elect the first replica of each partition, if it is in sync")
	unclean := flags.Bool("unclean", false, "elect any live replica of offline partitions, which may lose records")
	topics := newTopicsFlag(flags, "elect leaders of the partitions of topic T, or of some; may be repeated (default: all topics)")
	p.completeTopicFlag(command, "topic")
	yes := flags.Bool("yes", false, "with --unclean: do it, whatever is lost")
	command.RunE = func(c *cobra.Command, _ []string) error {
		switch {
		case *preferred == *unclean:
			return usagef("give either --preferred or --unclean")
		case *yes && *preferred:
			return usagef("--yes is for --unclean only: --preferred loses nothing")
		}
		if err := checkTopics(topics.values); err != nil {
			return err
		}
		spec := runnel.ElectionSpec{Unclean: *unclean, ValidateOnly: *unclean && !*yes, Topics: make(map[string][]int32)}
		for _, t := range topics.values {
			spec.Topics[t.topic] = t.partitions
		}
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		return p.electLeaders(c.Context(), client, spec)
	}
	return command
}

// electionObject is the outcome for a partition as -o json prints it.
type electionObject struct {
	Topic          string  `json:"topic"`
	Partition      int32   `json:"partition"`
	PreviousLeader *int32  `json:"previous_leader"`
	Leader         *int32  `json:"leader"`
	LeaderEpoch    int32   `json:"leader_epoch"`
	Unclean        bool    `json:"unclean"`
	Error          *string `json:"error"`
}

func (p *program) electLeaders(ctx context.Context, client *runnel.Client, spec runnel.ElectionSpec) error {
	var elections []runnel.LeaderElection
	// It may be done twice: whoever leads then is left in place.
	err := p.persist(ctx, func(ctx context.Context) (err error) {
		elections, err = client.Admin().ElectLeaders(ctx, spec)
		return err
	})
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
		for _, name := range slices.Sorted(maps.Keys(spec.Topics)) {
			if strings.Contains(sentence(err), strconv.Quote(name)) {
				return noTopic(name, seeTopics)
			}
		}
	}
	if err != nil {
		return unknownOutcome(err, "which leaders were elected; look with \"runnel topics describe --unhealthy\"")
	}
	return p.printElections(spec, elections, holders(ctx, client, elections))
}

// holders returns the nodes that are not live and whose start would spare the
// unclean elections, in ascending order; none where the cluster does not tell.
func holders(ctx context.Context, client *runnel.Client, elections []runnel.LeaderElection) []int32 {
	var ids []int32
	var nodes []runnel.Node
	described := make(map[string]*topicFacts)
	for _, e := range elections {
		if !e.Unclean {
			continue
		}
		topic, known := described[e.Topic]
		if !known {
			topic = glance(ctx, client, e.Topic)
			described[e.Topic] = topic
		}
		if topic == nil || int(e.Partition) >= len(topic.Replicas) {
			continue
		}
		if nodes == nil {
			nodes = nodesNow(ctx, client)
		}
		ids = append(ids, toStart(&topic.Replicas[e.Partition], nodes)...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// printElections prints the outcome, and returns an error if it is not what was
// asked for. missing are the nodes whose start would spare unclean elections.
func (p *program) printElections(spec runnel.ElectionSpec, elections []runnel.LeaderElection, missing []int32) error {
	objects := make([]electionObject, len(elections))
	t := newTable("TOPIC", "PARTITION", "BEFORE", "LEADER", "EPOCH", "OUTCOME")
	failed, unclean := 0, 0
	for i, e := range elections {
		objects[i] = electionObject{
			Topic: e.Topic, Partition: e.Partition, PreviousLeader: known(e.PreviousLeader), Leader: known(e.Leader), LeaderEpoch: e.LeaderEpoch, Unclean: e.Unclean,
		}
		outcome := "elected"
		switch {
		case e.Err != nil:
			failed++
			outcome = strings.ReplaceAll(sentence(e.Err), "\n", " ")
			objects[i].Error = &outcome
		case e.Leader == e.PreviousLeader:
			outcome = "unchanged"
		case spec.ValidateOnly && e.Unclean:
			outcome = "would be elected, and may lack records"
		case spec.ValidateOnly:
			outcome = "would be elected"
		case e.Unclean:
			outcome = "elected, and may lack records"
		}
		if e.Unclean {
			unclean++
		}
		t.row(e.Topic, e.Partition, numberOr(e.PreviousLeader, "none"), numberOr(e.Leader, "none"), e.LeaderEpoch, outcome)
	}
	if len(elections) == 0 {
		t = newTable()
		t.row(nothingToElect(spec))
	}
	if err := p.print(objects, t); err != nil {
		return err
	}
	switch {
	case spec.ValidateOnly && unclean > 0:
		start := "start those nodes first"
		if len(missing) > 0 {
			start = fmt.Sprintf("start those nodes first (%s)", nodeList(missing))
		}
		return failf("nothing was elected: records that were acknowledged may be lost for good in %s, even if the nodes that hold them come back; %s, or give --yes to go on",
			plural(int64(unclean), "partition"), start)
	case failed > 0:
		return failf("%s without the leader that was asked for", plural(int64(failed), "partition")+" left")
	}
	return nil
}

func nothingToElect(spec runnel.ElectionSpec) string {
	if spec.Unclean {
		return "nothing to elect: every partition has a leader"
	}
	return "nothing to elect: every partition is led by its preferred replica"
}
