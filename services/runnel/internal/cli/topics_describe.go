package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

func (p *program) topicsDescribeCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "describe [NAME]",
		Short: "Describe a topic with its partitions and settings",
		Long:  topicsDescribeHelp,
		Example: `  runnel topics describe orders
  runnel topics describe orders -o json | jq '.partitions[].latest'
  runnel topics describe orders -o json | jq '[.partitions[].size_bytes] | add'
  runnel topics describe --unhealthy`,
		ValidArgsFunction: p.completeTopic,
	}
	flags := command.Flags()
	flags.SortFlags = false
	unhealthy := flags.Bool("unhealthy", false, "show only partitions that are not well, of all topics where no NAME is given")
	command.Args = func(c *cobra.Command, args []string) error {
		if *unhealthy && len(args) == 0 {
			return nil
		}
		return arguments("NAME")(c, args)
	}
	command.RunE = func(c *cobra.Command, args []string) error {
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		if *unhealthy {
			return p.topicsUnhealthy(c.Context(), client, strings.Join(args, ""))
		}
		topic, err := p.describeTopic(c.Context(), client, args[0])
		if runnel.ReasonOf(err) == errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			return noTopic(args[0], seeTopics)
		}
		if err != nil {
			return err
		}
		topic.nodes = nodesNow(c.Context(), client)
		return p.print(topic.object(), topic.tables()...)
	}
	return command
}

// topicDetails is a described topic as -o json prints it.
type topicDetails struct {
	topicObject
	ReplicationFactor int                `json:"replication_factor"`
	Partitions        []partitionDetails `json:"partitions"`
	Settings          []settingDetails   `json:"settings"`
}

type partitionDetails struct {
	Partition      int32   `json:"partition"`
	Leader         *int32  `json:"leader"`
	LeaderEpoch    int32   `json:"leader_epoch"`
	PartitionEpoch int32   `json:"partition_epoch"`
	Replicas       []int32 `json:"replicas"`
	ISR            []int32 `json:"isr"`
	ELR            []int32 `json:"elr"`
	Earliest       *int64  `json:"earliest"`
	Latest         *int64  `json:"latest"`
	SizeBytes      *int64  `json:"size_bytes"`
	Status         string  `json:"status"`
	Error          *string `json:"error"`
}

type settingDetails struct {
	Name          string `json:"name"`
	Value         string `json:"value"`
	Default       bool   `json:"default"`
	Documentation string `json:"documentation"`
}

func (t *topicFacts) object() topicDetails {
	d := topicDetails{
		topicObject:       newTopicObject(t.Topic),
		ReplicationFactor: t.replicationFactor(),
		Partitions:        make([]partitionDetails, len(t.Replicas)),
		Settings:          make([]settingDetails, len(t.Settings)),
	}
	for i, r := range t.Replicas {
		d.Partitions[i] = partitionDetails{
			Partition:      r.Partition,
			Leader:         known(r.Leader),
			LeaderEpoch:    r.LeaderEpoch,
			PartitionEpoch: r.PartitionEpoch,
			Replicas:       append([]int32{}, r.Replicas...),
			ISR:            append([]int32{}, r.InSync...),
			ELR:            append([]int32{}, r.Eligible...),
			Earliest:       known(r.Earliest),
			Latest:         known(r.Latest),
			SizeBytes:      known(r.Bytes),
		}
		status, why := t.partitionStatus(r)
		d.Partitions[i].Status, d.Partitions[i].Error = status, optional(why)
	}
	for i, s := range t.Settings {
		d.Settings[i] = settingDetails(s)
	}
	return d
}

func (t *topicFacts) replicationFactor() int {
	factor := 0
	for _, r := range t.Replicas {
		factor = max(factor, len(r.Replicas))
	}
	return factor
}

// The states of a partition, as far as its leader and the cluster tell.
const (
	statusOK              = "ok"
	statusFailed          = "failed"
	statusNoLeader        = "no leader"
	statusNoAnswer        = "no answer"
	statusBelowMinISR     = "below min ISR"
	statusUnderReplicated = "under-replicated"
)

// partitionStatus returns the state of a partition, the worst if it has several,
// and if it is not well why.
func (t *topicFacts) partitionStatus(r runnel.PartitionDescription) (status, why string) {
	switch {
	case r.Err != nil && runnel.ReasonOf(r.Err) == errorsv1.Reason_REASON_CORRUPT_LOG:
		return statusFailed, sentence(r.Err)
	case r.Err != nil && r.Leader < 0:
		return statusNoLeader, leaderless(&r, t.nodes)
	case r.Err != nil:
		return statusNoAnswer, sentence(r.Err)
	}
	need, below := t.belowMinISR(&r)
	switch {
	case below:
		return statusBelowMinISR, fmt.Sprintf("%d in sync, min.insync.replicas=%d; %s", len(r.InSync), need, outOfSync(&r, t.nodes))
	case len(r.InSync) < len(r.Replicas):
		return statusUnderReplicated, outOfSync(&r, t.nodes)
	}
	return statusOK, ""
}

// known returns nil for a number below 0, which stands for none.
func known[T int32 | int64](n T) *T {
	if n < 0 {
		return nil
	}
	return &n
}

// numberOr returns a number as text, or a word if there is none.
func numberOr[T int32 | int64](n T, none string) string {
	if n < 0 {
		return none
	}
	return plainNumber(n)
}

// sizeOr is numberOr for bytes.
func sizeOr(n int64, none string) string {
	if n < 0 {
		return none
	}
	return byteSize(n)
}

func (t *topicFacts) tables() []*table {
	header := newTable()
	header.row("Name:", t.Name)
	header.row("Id:", t.ID)
	header.row("Partitions:", t.Partitions)
	header.row("Replication factor:", t.replicationFactor())
	if health := t.health(); health != "" {
		header.row("Health:", health)
	}

	partitions := newTable("PARTITION", "LEADER", "LEADER EPOCH", "PARTITION EPOCH", "REPLICAS", "ISR", "ELR", "EARLIEST", "LATEST", "SIZE", "STATUS")
	faults := newTable("PARTITION", "REASON")
	for _, r := range t.Replicas {
		status, why := t.partitionStatus(r)
		partitions.row(r.Partition, numberOr(r.Leader, "none"), r.LeaderEpoch, r.PartitionEpoch, nodeList(r.Replicas), nodeList(r.InSync), nodeList(r.Eligible),
			numberOr(r.Earliest, "-"), numberOr(r.Latest, "-"), sizeOr(r.Bytes, "-"), status)
		if why != "" {
			faults.row(r.Partition, strings.ReplaceAll(why, "\n", " "))
		}
	}

	settings := newTable("CONFIG", "VALUE", "SET BY")
	for _, s := range t.Settings {
		origin := "topic"
		if s.Default {
			origin = "default"
		}
		settings.row(s.Name, t.inEffect(s), origin)
	}
	if len(faults.rows) > 1 {
		return []*table{header, partitions, faults, settings}
	}
	return []*table{header, partitions, settings}
}

// inEffect is the value of a setting, with what it comes to where that differs.
func (t *topicFacts) inEffect(s runnel.Setting) string {
	factor := t.replicationFactor()
	n, err := strconv.Atoi(s.Value)
	if s.Name != rules.MinInsyncReplicas || err != nil || factor == 0 {
		return s.Value
	}
	if effective := rules.EffectiveMinInsync(n, factor); effective != n {
		return fmt.Sprintf("%d (%d in effect: replication factor %d)", n, effective, factor)
	}
	return s.Value
}

func nodeList(ids []int32) string {
	if len(ids) == 0 {
		return "none"
	}
	var list []string
	for _, id := range ids {
		list = append(list, plainNumber(id))
	}
	return strings.Join(list, ",")
}
