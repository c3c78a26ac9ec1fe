package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const groupsDescribeHelp = `Describe a consumer group: its partitions, how far it has come in each, and its
members.

CURRENT-OFFSET is the offset that the group has committed, which is that of the next
record to read; LOG-END-OFFSET is where the partition ends, and LAG how many records
lie between the two. A partition that no member has is shown without a MEMBER, and a
member that has no partition without a TOPIC: it is idle where there are more
members than partitions. What is not known is "-", and the reasons stand below.

With --members the members are shown instead: ASSIGNED is what each reads, REVOKING
what it was told to give up and has not given up yet, AWAITED what it is to have and
others have yet to give up, and HEARD when its last heartbeat came.

With -o json the group is an object with the fields group, state, epoch, assignor,
coordinator, coordinator_address, lag (of all partitions), partitions (topic,
partition, current_offset, log_end_offset, lag, member, host, client_id, metadata,
committed_at, error; null where there is none or it is not known) and members
(member, instance_id, client_id, host, epoch, topics, topic_pattern, assignor,
assigned, revoking, awaited, idle_ms, fenced), with --members or without.`

func (p *program) groupsDescribeCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "describe GROUP",
		Short: "Describe a consumer group with its offsets, lag and members",
		Long:  groupsDescribeHelp,
		Example: `  runnel groups describe billing
  runnel groups describe billing --members
  runnel groups describe billing -o json | jq .lag`,
		Args:              arguments("GROUP"),
		ValidArgsFunction: p.completeGroup,
	}
	flags := command.Flags()
	flags.SortFlags = false
	members := flags.Bool("members", false, "show the members with what they have")
	command.RunE = func(c *cobra.Command, args []string) error {
		client, err := p.connect(c)
		if err != nil {
			return err
		}
		defer client.Close()
		group, err := p.describeGroup(c.Context(), client, args[0])
		if err != nil {
			return groupError(args[0], err)
		}
		tables := group.partitionTables()
		if *members {
			tables = []*table{group.header(), group.memberTable()}
		}
		return p.print(group.object(), tables...)
	}
	return command
}

func (p *program) describeGroup(ctx context.Context, client *runnel.Client, name string) (*groupFacts, error) {
	var group groupFacts
	err := p.persist(ctx, func(ctx context.Context) (err error) {
		group.GroupDescription, err = client.Admin().DescribeGroup(ctx, name)
		return err
	})
	return &group, err
}

// groupFacts is a group as it is shown.
type groupFacts struct{ runnel.GroupDescription }

// groupDetails is a described group as -o json prints it.
type groupDetails struct {
	Group              string           `json:"group"`
	State              string           `json:"state"`
	Epoch              int64            `json:"epoch"`
	Assignor           *string          `json:"assignor"`
	Coordinator        int32            `json:"coordinator"`
	CoordinatorAddress string           `json:"coordinator_address"`
	Lag                *int64           `json:"lag"`
	Partitions         []groupPartition `json:"partitions"`
	Members            []groupMember    `json:"members"`
}

type groupPartition struct {
	Topic         string  `json:"topic"`
	Partition     int32   `json:"partition"`
	CurrentOffset *int64  `json:"current_offset"`
	LogEndOffset  *int64  `json:"log_end_offset"`
	Lag           *int64  `json:"lag"`
	Member        *string `json:"member"`
	Host          *string `json:"host"`
	ClientID      *string `json:"client_id"`
	Metadata      *string `json:"metadata"`
	CommittedAt   *string `json:"committed_at"`
	Error         *string `json:"error"`
}

type groupMember struct {
	Member       string             `json:"member"`
	InstanceID   *string            `json:"instance_id"`
	ClientID     *string            `json:"client_id"`
	Host         *string            `json:"host"`
	Epoch        int64              `json:"epoch"`
	Topics       []string           `json:"topics"`
	TopicPattern *string            `json:"topic_pattern"`
	Assignor     string             `json:"assignor"`
	Assigned     []partitionsObject `json:"assigned"`
	Revoking     []partitionsObject `json:"revoking"`
	Awaited      []partitionsObject `json:"awaited"`
	IdleMS       int64              `json:"idle_ms"`
	Fenced       bool               `json:"fenced"`
}

// partitionsObject is partitions of one topic.
type partitionsObject struct {
	Topic      string  `json:"topic"`
	Partitions []int32 `json:"partitions"`
}

// byTopic gathers partitions, which are in order, by their topics.
func byTopic(partitions []runnel.TopicPartition) []partitionsObject {
	objects := []partitionsObject{}
	for _, p := range partitions {
		if n := len(objects); n == 0 || objects[n-1].Topic != p.Topic {
			objects = append(objects, partitionsObject{Topic: p.Topic})
		}
		last := &objects[len(objects)-1]
		last.Partitions = append(last.Partitions, p.Partition)
	}
	return objects
}

// topicsText names partitions as --topic takes them.
func topicsText(partitions []runnel.TopicPartition) string {
	var topics []string
	for _, o := range byTopic(partitions) {
		topics = append(topics, o.Topic+":"+nodeList(o.Partitions))
	}
	return textOr(strings.Join(topics, " "), "-")
}

// textOr returns a text that programs have chosen as one cell of a table, or a word if
// it is empty.
func textOr(text, none string) string {
	if text == "" {
		return none
	}
	return cell(text)
}

// cell quotes a text that would break a table or be mistaken for no text.
func cell(text string) string {
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	if text == "-" || strings.ContainsFunc(text, unprintable) {
		return strconv.Quote(text)
	}
	return text
}

// member returns the member of that name; nil for none.
func (g *groupFacts) member(id string) *runnel.GroupMember {
	for i := range g.Members {
		if g.Members[i].ID == id {
			return &g.Members[i]
		}
	}
	return nil
}

// lag is that of all partitions in which it is known; -1 if there is none such.
func (g *groupFacts) lag() int64 {
	lag := int64(-1)
	for _, p := range g.Partitions {
		if p.Lag >= 0 {
			lag = max(lag, 0) + p.Lag
		}
	}
	return lag
}

func (g *groupFacts) object() groupDetails {
	d := groupDetails{
		Group: g.ID, State: g.State.String(), Epoch: g.Epoch, Assignor: optional(g.Assignor), Coordinator: g.Coordinator, CoordinatorAddress: g.CoordinatorAddress,
		Lag: known(g.lag()), Partitions: make([]groupPartition, len(g.Partitions)), Members: make([]groupMember, len(g.Members)),
	}
	for i, p := range g.Partitions {
		o := groupPartition{
			Topic: p.Topic, Partition: p.Partition, CurrentOffset: known(p.Committed), LogEndOffset: known(p.End), Lag: known(p.Lag),
			Member: optional(p.Member), Metadata: optional(p.Metadata),
		}
		if m := g.member(p.Member); m != nil {
			o.Host, o.ClientID = optional(m.Host), optional(m.ClientID)
		}
		if !p.CommittedAt.IsZero() {
			o.CommittedAt = optional(p.CommittedAt.UTC().Format(jsonTimestamp))
		}
		if p.Err != nil {
			o.Error = optional(sentence(p.Err))
		}
		d.Partitions[i] = o
	}
	for i, m := range g.Members {
		d.Members[i] = groupMember{
			Member: m.ID, InstanceID: optional(m.InstanceID), ClientID: optional(m.ClientID), Host: optional(m.Host), Epoch: m.Epoch,
			Topics: append([]string{}, m.Topics...), TopicPattern: optional(m.TopicPattern), Assignor: m.Assignor,
			Assigned: byTopic(m.Assigned), Revoking: byTopic(m.Revoking), Awaited: byTopic(m.Awaited), IdleMS: m.Idle.Milliseconds(), Fenced: m.Fenced,
		}
	}
	return d
}

func (g *groupFacts) header() *table {
	t := newTable()
	t.row("Group:", cell(g.ID))
	t.row("State:", g.State)
	t.row("Coordinator:", fmt.Sprintf("%d (%s)", g.Coordinator, g.CoordinatorAddress))
	if g.Assignor != "" {
		t.row("Assignor:", g.Assignor)
	}
	t.row("Members:", g.membersText())
	t.row("Lag:", numberOr(g.lag(), "-"))
	return t
}

// membersText says how many members there are, and how many of them have nothing.
func (g *groupFacts) membersText() string {
	idle := 0
	for _, m := range g.Members {
		if len(m.Assigned) == 0 && len(m.Awaited) == 0 {
			idle++
		}
	}
	text := plainNumber(int64(len(g.Members)))
	if idle > 0 {
		text += fmt.Sprintf(" (%d idle: fewer partitions than members)", idle)
	}
	return text
}

func (g *groupFacts) partitionTables() []*table {
	t := newTable("TOPIC", "PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET", "LAG", "MEMBER", "HOST", "CLIENT-ID")
	faults := newTable("TOPIC", "PARTITION", "REASON")
	for _, p := range g.Partitions {
		host, client := "", ""
		if m := g.member(p.Member); m != nil {
			host, client = m.Host, m.ClientID
		}
		t.row(p.Topic, p.Partition, numberOr(p.Committed, "-"), numberOr(p.End, "-"), numberOr(p.Lag, "-"), textOr(p.Member, "-"), textOr(host, "-"), textOr(client, "-"))
		if p.Err != nil {
			faults.row(p.Topic, p.Partition, strings.ReplaceAll(sentence(p.Err), "\n", " "))
		}
	}
	for _, m := range g.Members {
		if len(m.Assigned) == 0 {
			t.row("-", "-", "-", "-", "-", cell(m.ID), textOr(m.Host, "-"), textOr(m.ClientID, "-"))
		}
	}
	if len(faults.rows) > 1 {
		return []*table{g.header(), t, faults}
	}
	return []*table{g.header(), t}
}

func (g *groupFacts) memberTable() *table {
	t := newTable("MEMBER", "INSTANCE", "HOST", "CLIENT-ID", "EPOCH", "HEARD", "SUBSCRIBED", "ASSIGNED", "REVOKING", "AWAITED")
	for _, m := range g.Members {
		heard := m.Idle.Round(100*time.Millisecond).String() + " ago"
		if m.Fenced {
			heard += ", fenced"
		}
		subscribed := strings.Join(m.Topics, ",")
		if m.TopicPattern != "" {
			subscribed = strings.TrimPrefix(subscribed+",/"+m.TopicPattern+"/", ",")
		}
		t.row(cell(m.ID), textOr(m.InstanceID, "-"), textOr(m.Host, "-"), textOr(m.ClientID, "-"), m.Epoch, heard, textOr(subscribed, "-"),
			topicsText(m.Assigned), topicsText(m.Revoking), topicsText(m.Awaited))
	}
	return t
}
