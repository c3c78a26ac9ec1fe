package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// TestDescribeFaults: a partition that is not well is shown beside the others,
// with the reason.
func TestDescribeFaults(t *testing.T) {
	corrupt := &runnel.Error{Reason: errorsv1.Reason_REASON_CORRUPT_LOG, Message: "t-1 is damaged from offset 7 on"}
	facts := &topicFacts{TopicDescription: runnel.TopicDescription{
		Topic: runnel.Topic{Name: "t", Partitions: 4},
		Replicas: []runnel.PartitionDescription{
			{Partition: 0, Leader: 2, PartitionEpoch: 9, Replicas: []int32{2}, InSync: []int32{2}, Latest: 5, Bytes: 1536},
			// Both questions, for the earliest and the latest offset, have failed.
			{Partition: 1, Leader: 2, Replicas: []int32{2}, InSync: []int32{2}, Earliest: -1, Latest: -1, Bytes: -1, Err: errors.Join(corrupt, corrupt)},
			{Partition: 2, Leader: -1, Replicas: []int32{3}, Earliest: -1, Latest: -1, Bytes: -1, Err: &runnel.Error{Reason: errorsv1.Reason_REASON_NO_LEADER, Message: "t-2 has no leader"}},
			{Partition: 3, Leader: 2, Replicas: []int32{2}, InSync: []int32{2}, Earliest: -1, Latest: -1, Bytes: -1, Err: errors.New("connection\nrefused")},
		},
	}}
	var text bytes.Buffer
	for _, table := range facts.tables() {
		if err := table.writeTo(&text); err != nil {
			t.Fatal(err)
		}
	}
	for _, lines := range []string{
		"0          2       0             9                2         2     none  0         5       1.5 KiB  ok\n" +
			"1          2       0             0                2         2     none  -         -       -        failed\n" +
			"2          none    0             0                3         none  none  -         -       -        no leader\n" +
			"3          2       0             0                2         2     none  -         -       -        no answer\n",
		"Health:              3 of 4 partitions not well: 1 no leader, 1 failed, 1 no answer\n",
		"PARTITION  REASON\n1          t-1 is damaged from offset 7 on\n2          start node 3\n3          connection refused\n",
	} {
		if !strings.Contains(text.String(), lines) {
			t.Errorf("no\n%sin\n%s", lines, text.String())
		}
	}
	encoded, err := json.Marshal(facts.object().Partitions)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"latest":5,"size_bytes":1536,"status":"ok","error":null}`, `"latest":null,"size_bytes":null,"status":"failed","error":"t-1 is damaged from offset 7 on"}`,
		`"leader":null,"leader_epoch":0,"partition_epoch":0,"replicas":[3],"isr":[],"elr":[],"earliest":null,"latest":null,"size_bytes":null,"status":"no leader","error":"start node 3"}`,
	} {
		if !strings.Contains(string(encoded), want) {
			t.Errorf("no %s in %s", want, encoded)
		}
	}
	facts.Replicas = facts.Replicas[:1]
	if len(facts.tables()) != 3 {
		t.Error("there is a table of faults although nothing is wrong")
	}
}
