package cli

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

func TestTopics(t *testing.T) {
	topic := topicName(t)
	got := succeed(t, "", "topics", "create", topic, "--partitions", "2", "--replication-factor", "1", "--config", "retention.ms=1000", "--config", "durability=replicated")
	if got.stdout != fmt.Sprintf("created topic %q with 2 partitions, replication factor 1\n", topic) || got.stderr != "" {
		t.Errorf("create says %q and %q", got.stdout, got.stderr)
	}
	var listed []topicObject
	if err := json.Unmarshal([]byte(succeed(t, "", "topics", "list", "-o", "json").stdout), &listed); err != nil {
		t.Fatal(err)
	}
	var created topicObject
	for _, o := range listed {
		if o.Name == topic {
			created = o
		}
	}
	if created.PartitionCount != 2 || created.ID == "" || fmt.Sprint(created.Config) != "map[durability:replicated retention.ms:1000]" {
		t.Errorf("the list has %+v", created)
	}
	if list := succeed(t, "", "topics", "list").stdout; !regexp.MustCompile(`(?m)^NAME +PARTITIONS +ID +CONFIG$`).MatchString(list) ||
		!regexp.MustCompile(`(?m)^`+topic+` +2 +`+created.ID+` +durability=replicated retention.ms=1000$`).MatchString(list) {
		t.Errorf("the list is\n%s", list)
	}

	succeed(t, "a\nb\n", "produce", topic, "--partition", "1")
	described := succeed(t, "", "topics", "describe", topic).stdout
	for _, line := range []string{
		`Name: +` + topic, `Id: +` + created.ID, `Partitions: +2`, `Replication factor: +1`, ``,
		`PARTITION +LEADER +LEADER EPOCH +PARTITION EPOCH +REPLICAS +ISR +ELR +EARLIEST +LATEST +SIZE +STATUS`,
		`0 +\d+ +\d+ +\d+ +\d+ +\d+ +none +0 +0 +0 bytes +ok`, `1 +\d+ +\d+ +\d+ +\d+ +\d+ +none +0 +2 +[1-9]\d+ bytes +ok`,
		`CONFIG +VALUE +SET BY`, `cleanup.policy +delete +default`, `retention.ms +1000 +topic`,
		`min.insync.replicas +2 \(1 in effect: replication factor 1\) +default`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(described) {
			t.Errorf("no line %s in\n%s", line, described)
		}
	}
	var details topicDetails
	if err := json.Unmarshal([]byte(succeed(t, "", "topics", "describe", topic, "-o", "json").stdout), &details); err != nil {
		t.Fatal(err)
	}
	if details.ID != created.ID || details.ReplicationFactor != 1 || len(details.Partitions) != 2 || *details.Partitions[1].Latest != 2 || *details.Partitions[1].SizeBytes <= 0 || len(details.Settings) < 7 {
		t.Errorf("described as %+v", details)
	}

	complete := succeed(t, "", "__complete", "produce", topic[:len(topic)-1])
	if complete.stdout != topic+"\n:4\n" {
		t.Errorf("the shell is offered %q", complete.stdout)
	}

	if got := succeed(t, "", "topics", "delete", topic, "-o", "json"); got.stdout != "{\n  \"deleted\": \""+topic+"\"\n}\n" {
		t.Errorf("delete says %q", got.stdout)
	}
	succeed(t, "", "topics", "create", topic)
	if got := succeed(t, "", "topics", "delete", topic); got.stdout != fmt.Sprintf("deleted topic %q\n", topic) {
		t.Errorf("delete says %q", got.stdout)
	}
}

func TestTopicsOfTheClusterAreHidden(t *testing.T) {
	topics := []runnel.Topic{{Name: "__consumer_offsets", Partitions: 50}, {Name: "_own"}, {Name: "orders"}}
	for internal, want := range map[bool]string{false: "_own orders", true: "__consumer_offsets _own orders"} {
		objects, text := topicList(topics, internal)
		var names []string
		for _, o := range objects {
			names = append(names, o.Name)
		}
		if got := strings.Join(names, " "); got != want || len(text.rows) != 1+len(objects) {
			t.Errorf("with internal %t the list has %s, and %d rows", internal, got, len(text.rows))
		}
	}
}

// TestCoordinatorsInTheCluster: who describes the cluster sees how groups are shared.
func TestCoordinatorsInTheCluster(t *testing.T) {
	d := runnel.ClusterDescription{OffsetsPartitions: 50, Nodes: []runnel.Node{{ID: 1, Role: "storage"}, {ID: 2, Role: "coordinator", Coordinated: 26}, {ID: 3, Role: "coordinator", Fenced: true}}}
	_, nodes := clusterTables(d)
	for i, want := range []string{"OFFSETS PARTITIONS", "-", "26 of 50", "0 of 50"} {
		if row := nodes.rows[i]; row[len(row)-1] != want {
			t.Errorf("row %d is %v, want %s", i, row, want)
		}
	}
	if o := newClusterObject(d); o.OffsetsPartitions != 50 || o.Nodes[1].Coordinated != 26 {
		t.Errorf("as an object: %+v", o)
	}
}

func TestClusterDescribe(t *testing.T) {
	text := succeed(t, "", "cluster", "describe").stdout
	for _, line := range []string{
		`Cluster: +[0-9a-f-]{36}`, `Controller: +\d+`, `NODE +ROLE +ADDRESS +EPOCH +STATE +SINCE +OFFSETS PARTITIONS`,
		`\d+ +metadata +` + clusterAddress(t) + ` +\d+ +live +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ +-`,
		`\d+ +storage +` + clusterAddress(t) + ` +\d+ +live +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ +-`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(text) {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
	var described clusterObject
	if err := json.Unmarshal([]byte(succeed(t, "", "cluster", "describe", "-o", "json").stdout), &described); err != nil {
		t.Fatal(err)
	}
	if len(described.Nodes) < 2 || described.Controller == nil || described.Nodes[0].State != "live" {
		t.Errorf("described as %+v", described)
	}
}
