package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// printing returns a program that prints in a form, and what it prints.
func printing(t *testing.T, form string) (*program, *bytes.Buffer) {
	t.Helper()
	var stdout bytes.Buffer
	p := newProgram(Environment{Program: "runnel", Stdout: &stdout, Stderr: &stdout, Getenv: func(string) string { return "" }})
	p.rootCommand()
	if err := p.output.Set(form); err != nil {
		t.Fatal(err)
	}
	return p, &stdout
}

func TestElectLeader(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "2")
	for _, test := range []struct{ args, want string }{
		{"--preferred --topic " + topic, "nothing to elect: every partition is led by its preferred replica\n"},
		{"--unclean --topic " + topic, "nothing to elect: every partition has a leader\n"},
		{"--unclean --yes --topic " + topic, "nothing to elect: every partition has a leader\n"},
		{"--preferred -o json --topic " + topic, "[]\n"},
	} {
		got := succeed(t, "", append([]string{"partitions", "elect-leader"}, strings.Fields(test.args)...)...)
		if got.stdout != test.want || got.stderr != "" {
			t.Errorf("%s says %q and %q", test.args, got.stdout, got.stderr)
		}
	}
	named := succeed(t, "", "partitions", "elect-leader", "--preferred", "--topic", topic+":1,0", "-o", "json")
	var objects []electionObject
	if err := json.Unmarshal([]byte(named.stdout), &objects); err != nil || len(objects) != 2 || objects[0].Partition != 0 || objects[1].Error != nil || *objects[1].Leader != *objects[1].PreviousLeader {
		t.Errorf("%v: %s", err, named.stdout)
	}
	for args, want := range map[string]string{
		topic + "-no":  "topic \"" + topic + "-no\" does not exist; " + seeTopics,
		topic + ":0,2": "topic \"" + topic + "\" has no partition 2: it has 2, from 0; nothing was elected",
	} {
		got := runnelCommand(t, "", "partitions", "elect-leader", "--unclean", "--yes", "--topic", args)
		if got.code != exitFailure || got.stdout != "" || !strings.Contains(got.stderr, want) {
			t.Errorf("--topic %s: exit code %d, %q, %q", args, got.code, got.stdout, got.stderr)
		}
	}
}

// TestPrintElections: what may be lost is said before it is, and failures end the
// command with one.
func TestPrintElections(t *testing.T) {
	at := func(partition int32) runnel.TopicPartition {
		return runnel.TopicPartition{Topic: "t", Partition: partition}
	}
	refused := &runnel.Error{Reason: errorsv1.Reason_REASON_NO_LEADER, Message: "none of its replicas is live"}
	for _, test := range []struct {
		name      string
		spec      runnel.ElectionSpec
		elections []runnel.LeaderElection
		missing   []int32
		table     string
		says      string
	}{
		{
			"unclean without --yes", runnel.ElectionSpec{Unclean: true, ValidateOnly: true},
			[]runnel.LeaderElection{{TopicPartition: at(3), PreviousLeader: -1, Leader: 2, LeaderEpoch: 5, Unclean: true}, {TopicPartition: at(4), PreviousLeader: -1, Leader: 2, LeaderEpoch: 5}},
			[]int32{4, 7},
			"t      3          none    2       5      would be elected, and may lack records\nt      4          none    2       5      would be elected\n",
			"nothing was elected: records that were acknowledged may be lost for good in 1 partition, even if the nodes that hold them come back; start those nodes first (4,7), or give --yes to go on",
		},
		{
			"unclean", runnel.ElectionSpec{Unclean: true},
			[]runnel.LeaderElection{{TopicPartition: at(3), PreviousLeader: -1, Leader: 2, LeaderEpoch: 5, Unclean: true}},
			nil,
			"t      3          none    2       5      elected, and may lack records\n", "",
		},
		{
			"preferred", runnel.ElectionSpec{},
			[]runnel.LeaderElection{{TopicPartition: at(0), PreviousLeader: 3, Leader: 2, LeaderEpoch: 5}, {TopicPartition: at(1), PreviousLeader: 2, Leader: 2, LeaderEpoch: 1}},
			nil,
			"t      0          3       2       5      elected\nt      1          2       2       1      unchanged\n", "",
		},
		{
			"failed", runnel.ElectionSpec{},
			[]runnel.LeaderElection{{TopicPartition: at(0), PreviousLeader: -1, Leader: -1, LeaderEpoch: 5, Err: refused}},
			nil,
			"t      0          none    none    5      none of its replicas is live\n", "1 partition left without the leader that was asked for",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, stdout := printing(t, outputTable)
			err := p.printElections(test.spec, test.elections, test.missing)
			if err == nil && test.says != "" || err != nil && sentence(err) != test.says {
				t.Errorf("ends with %v, want %q", err, test.says)
			}
			if want := "TOPIC  PARTITION  BEFORE  LEADER  EPOCH  OUTCOME\n" + test.table; stdout.String() != want {
				t.Errorf("prints\n%swant\n%s", stdout.String(), want)
			}
		})
	}
}

func TestDescribeUnhealthy(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "2")
	if got := succeed(t, "", "topics", "describe", topic, "--unhealthy"); got.stdout != "all is well: 2 partitions of 1 topic\n" || got.stderr != "" {
		t.Errorf("says %q and %q", got.stdout, got.stderr)
	}
	if got := succeed(t, "", "topics", "describe", topic, "--unhealthy", "-o", "json"); got.stdout != "[]\n" {
		t.Errorf("says %q", got.stdout)
	}
	if got := runnelCommand(t, "", "topics", "describe", topic+"-no", "--unhealthy"); got.code != exitFailure || !strings.Contains(got.stderr, "does not exist") {
		t.Errorf("a topic that does not exist: exit code %d, %q", got.code, got.stderr)
	}
	if got := succeed(t, "", "topics", "describe", "--unhealthy"); !strings.HasPrefix(got.stdout, "all is well: ") {
		t.Errorf("of all topics: %q", got.stdout)
	}

	facts := func(name, minISR string, partitions ...runnel.PartitionDescription) *topicFacts {
		return &topicFacts{TopicDescription: runnel.TopicDescription{
			Topic: runnel.Topic{Name: name, Partitions: len(partitions)}, Replicas: partitions,
			Settings: []runnel.Setting{{Name: "min.insync.replicas", Value: minISR}},
		}}
	}
	all := []int32{1, 2, 3}
	topics := []*topicFacts{
		facts("a", "2",
			runnel.PartitionDescription{Partition: 0, Leader: 1, Replicas: all, InSync: all},
			runnel.PartitionDescription{Partition: 1, Leader: 1, Replicas: all, InSync: []int32{1, 3}},
			runnel.PartitionDescription{Partition: 2, Leader: 1, Replicas: all, InSync: []int32{1}, Eligible: []int32{2}},
			runnel.PartitionDescription{Partition: 3, Leader: -1, Replicas: all, Eligible: []int32{2}, Earliest: -1, Latest: -1, Err: &runnel.Error{Reason: errorsv1.Reason_REASON_NO_LEADER, Message: "a-3 has no leader"}}),
		// No more are needed than there are.
		facts("b", "7", runnel.PartitionDescription{Partition: 0, Leader: 2, Replicas: []int32{2}, InSync: []int32{2}}),
	}
	topics[0].nodes = []runnel.Node{{ID: 1}, {ID: 2, Fenced: true, Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}, {ID: 3}}
	p, stdout := printing(t, outputTable)
	if err := p.printUnhealthy(topics); !errors.Is(err, errReported) {
		t.Errorf("ends with %v", err)
	}
	want := "TOPIC  PARTITION  LEADER  REPLICAS  ISR   ELR   STATUS            REASON\n" +
		"a      1          1       1,2,3     1,3   none  under-replicated  node 2 is fenced since 2026-01-02T03:04:05Z\n" +
		"a      2          1       1,2,3     1     2     below min ISR     1 in sync, min.insync.replicas=2; node 2 is fenced since 2026-01-02T03:04:05Z; node 3 is live and has not caught up\n" +
		"a      3          none    1,2,3     none  2     no leader         start node 2 (ELR): that one holds all that was acknowledged, and leads at once\n"
	if stdout.String() != want {
		t.Errorf("prints\n%swant\n%s", stdout.String(), want)
	}
	p, stdout = printing(t, outputJSON)
	if err := p.printUnhealthy(topics); !errors.Is(err, errReported) {
		t.Errorf("ends with %v", err)
	}
	var objects []unhealthyPartition
	if err := json.Unmarshal(stdout.Bytes(), &objects); err != nil || len(objects) != 3 || objects[1].Topic != "a" || objects[1].Status != statusBelowMinISR || objects[1].ELR[0] != 2 || objects[2].Leader != nil {
		t.Errorf("%v: %s", err, stdout)
	}
	if health := topics[0].health(); health != "3 of 4 partitions not well: 1 no leader, 1 below min ISR, 1 under-replicated" {
		t.Errorf("health is %q", health)
	}
	if health := topics[1].health(); health != "" {
		t.Errorf("health is %q", health)
	}
}
