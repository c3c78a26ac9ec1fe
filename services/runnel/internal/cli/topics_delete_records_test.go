package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

func TestDeleteRecords(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "3")
	for partition := range 3 {
		succeed(t, "a\nb\nc\nd\n", "produce", topic, "--partition", fmt.Sprint(partition))
	}
	got := succeed(t, "", "topics", "delete-records", topic, "--before", "1:end", "--before", "0:3")
	if want := "PARTITION  EARLIEST\n1          4\n0          3\n"; got.stdout != want || got.stderr != "" {
		t.Errorf("says %q and %q, want %q", got.stdout, got.stderr, want)
	}
	if rest := succeed(t, "", "consume", topic, "--from-beginning", "--exit-at-end", "--print-partition", "--print-offset", "--partition", "0", "--partition", "1"); rest.stdout != "Partition:0\tOffset:3\td\n" {
		t.Errorf("partitions 0 and 1 still hold %q", rest.stdout)
	}
	if rest := succeed(t, "", "consume", topic, "--from-beginning", "--exit-at-end", "--partition", "2"); rest.stdout != "a\nb\nc\nd\n" {
		t.Errorf("partition 2 was not named, and holds %q", rest.stdout)
	}
	// The start never goes back.
	var object deletionObject
	if err := json.Unmarshal([]byte(succeed(t, "", "topics", "delete-records", topic, "--before", "0:1", "-o", "json").stdout), &object); err != nil {
		t.Fatal(err)
	}
	if len(object.Partitions) != 1 || object.Topic != topic || object.Partitions[0].Earliest == nil || *object.Partitions[0].Earliest != 3 || object.Partitions[0].Error != nil {
		t.Errorf("the object is %+v", object)
	}
	// One mistake, and nothing is deleted anywhere.
	if got := runnelCommand(t, "", "topics", "delete-records", topic, "--before", "2:end", "--before", "1:5"); got.code != exitFailure {
		t.Errorf("an offset beyond the end: exit code %d", got.code)
	}
	if rest := succeed(t, "", "consume", topic, "--from-beginning", "--exit-at-end", "--partition", "2"); rest.stdout != "a\nb\nc\nd\n" {
		t.Errorf("after a refused command partition 2 holds %q", rest.stdout)
	}
}

// TestPrintDeletions: what was deleted is shown beside what was not.
func TestPrintDeletions(t *testing.T) {
	refused := &runnel.Error{Reason: errorsv1.Reason_REASON_DISK_FULL, Message: "the disk is full"}
	starts := []runnel.PartitionOffset{
		{TopicPartition: runnel.TopicPartition{Topic: "t", Partition: 0}, Offset: 7},
		{TopicPartition: runnel.TopicPartition{Topic: "t", Partition: 4}, Offset: -1, Err: refused},
	}
	for _, test := range []struct {
		output, want string
		starts       []runnel.PartitionOffset
	}{
		{outputTable, "PARTITION  EARLIEST\n0          7\n4          -\n", starts},
		{outputTable, "", starts[1:]},
		{outputJSON, "{\n  \"topic\": \"t\",\n  \"partitions\": [\n    {\n      \"partition\": 4,\n      \"earliest\": null,\n      \"error\": \"the disk is full\"\n    }\n  ]\n}\n", starts[1:]},
	} {
		var stdout, stderr bytes.Buffer
		p := newProgram(Environment{Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" }})
		p.rootCommand()
		p.output.value = test.output
		if err := p.printDeletions("t", test.starts); !errors.Is(err, errReported) {
			t.Errorf("returns %v", err)
		}
		if want := "runnel: the records of partition 4 of topic \"t\" were not deleted: the disk is full; the same command may be repeated\n"; stderr.String() != want {
			t.Errorf("stderr is %s", stderr.String())
		}
		if stdout.String() != test.want {
			t.Errorf("stdout is %q", stdout.String())
		}
	}
}
