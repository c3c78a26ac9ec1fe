package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

func partitionsOf(topic string, partitions ...int32) []runnel.TopicPartition {
	var all []runnel.TopicPartition
	for _, p := range partitions {
		all = append(all, runnel.TopicPartition{Topic: topic, Partition: p})
	}
	return all
}

func TestPrintGroup(t *testing.T) {
	at := func(partition int32) runnel.TopicPartition {
		return runnel.TopicPartition{Topic: "orders", Partition: partition}
	}
	group := &groupFacts{runnel.GroupDescription{
		ID: "billing", State: runnel.GroupReconciling, Epoch: 9, Assignor: "sticky", Coordinator: 3, CoordinatorAddress: "c:1",
		Members: []runnel.GroupMember{
			{ID: "m1", ClientID: "runnel", Host: "10.0.0.1", Epoch: 8, Topics: []string{"orders"}, TopicPattern: "pay.*", Assignor: "sticky",
				Assigned: append(partitionsOf("orders", 0, 2), partitionsOf("payments", 1)...), Revoking: partitionsOf("orders", 2), Idle: 1234 * time.Millisecond},
			{ID: "m2\n", InstanceID: "i", Epoch: 9, Topics: []string{"orders"}, Awaited: partitionsOf("orders", 2), Fenced: true},
			{ID: "m3", Epoch: 9, Topics: []string{"orders"}},
		},
		Partitions: []runnel.GroupPartition{
			{TopicPartition: at(0), Committed: 5, End: 9, Lag: 4, Member: "m1", Metadata: "x", CommittedAt: time.UnixMilli(1500)},
			{TopicPartition: at(1), Committed: 7, End: -1, Lag: -1, Err: &runnel.Error{Reason: errorsv1.Reason_REASON_NO_LEADER, Message: "orders-1 has no leader"}},
			{TopicPartition: at(2), Committed: -1, End: 3, Lag: -1, Member: "m1"},
		},
	}}
	p, stdout := printing(t, outputTable)
	if err := p.print(nil, group.partitionTables()...); err != nil {
		t.Fatal(err)
	}
	const header = "Group:        billing\nState:        reconciling\nCoordinator:  3 (c:1)\nAssignor:     sticky\n" +
		"Members:      3 (1 idle: fewer partitions than members)\nLag:          4\n\n"
	want := header +
		"TOPIC   PARTITION  CURRENT-OFFSET  LOG-END-OFFSET  LAG  MEMBER  HOST      CLIENT-ID\n" +
		"orders  0          5               9               4    m1      10.0.0.1  runnel\n" +
		"orders  1          7               -               -    -       -         -\n" +
		"orders  2          -               3               -    m1      10.0.0.1  runnel\n" +
		"-       -          -               -               -    \"m2\\n\"  -         -\n" +
		"-       -          -               -               -    m3      -         -\n\n" +
		"TOPIC   PARTITION  REASON\norders  1          orders-1 has no leader\n"
	if stdout.String() != want {
		t.Errorf("prints\n%swant\n%s", stdout.String(), want)
	}
	stdout.Reset()
	if err := p.print(nil, group.header(), group.memberTable()); err != nil {
		t.Fatal(err)
	}
	want = header +
		"MEMBER  INSTANCE  HOST      CLIENT-ID  EPOCH  HEARD           SUBSCRIBED      ASSIGNED                 REVOKING  AWAITED\n" +
		"m1      -         10.0.0.1  runnel     8      1.2s ago        orders,/pay.*/  orders:0,2 payments:1    orders:2  -\n" +
		"\"m2\\n\"  i         -         -          9      0s ago, fenced  orders          -                        -         orders:2\n" +
		"m3      -         -         -          9      0s ago          orders          -                        -         -\n"
	if squeeze(stdout.String()) != squeeze(want) {
		t.Errorf("prints\n%swant\n%s", stdout.String(), want)
	}

	p, stdout = printing(t, outputJSON)
	if err := p.print(group.object()); err != nil {
		t.Fatal(err)
	}
	var object groupDetails
	if err := json.Unmarshal(stdout.Bytes(), &object); err != nil {
		t.Fatal(err)
	}
	if object.Group != "billing" || object.State != "reconciling" || *object.Lag != 4 || len(object.Partitions) != 3 || len(object.Members) != 3 {
		t.Fatalf("prints %s", stdout)
	}
	first, second, third := object.Partitions[0], object.Partitions[1], object.Partitions[2]
	if *first.CurrentOffset != 5 || *first.LogEndOffset != 9 || *first.Lag != 4 || *first.Member != "m1" || *first.Host != "10.0.0.1" || *first.ClientID != "runnel" ||
		*first.Metadata != "x" || *first.CommittedAt != "1970-01-01T00:00:01.500Z" || first.Error != nil {
		t.Errorf("partition 0 in %s", stdout)
	}
	if *second.Error != "orders-1 has no leader" || second.LogEndOffset != nil || second.Lag != nil || second.Member != nil || third.CurrentOffset != nil || third.CommittedAt != nil {
		t.Errorf("partitions 1 and 2 in %s", stdout)
	}
	if m := object.Members[0]; len(m.Assigned) != 2 || m.Assigned[0].Topic != "orders" || len(m.Assigned[0].Partitions) != 2 || m.IdleMS != 1234 || *m.TopicPattern != "pay.*" || m.InstanceID != nil || m.Awaited == nil {
		t.Errorf("member 0 in %s", stdout)
	}
}

// squeeze removes what aligns columns.
func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

func TestPrintPlan(t *testing.T) {
	at := func(partition int32) runnel.TopicPartition {
		return runnel.TopicPartition{Topic: "t", Partition: partition}
	}
	moved := []runnel.PlannedOffset{
		{TopicPartition: at(0), Old: 5, New: 9, Clamped: true, Target: 12, Start: 2, End: 9},
		{TopicPartition: at(1), Old: 3, New: 2, Clamped: true, Target: -4, Start: 2, End: 9, Lag: 7},
		{TopicPartition: at(2), Old: -1, New: 4, Start: 2, End: 9, Lag: 5},
		{TopicPartition: at(3), Old: 4, New: 4, Start: 2, End: 9, Lag: 5},
	}
	const table = "TOPIC  PARTITION  OLD-OFFSET  NEW-OFFSET  LAG  NOTE\n" +
		"t      0          5           9           0    clamped: 12 lies beyond the end of the log\n" +
		"t      1          3           2           7    clamped: -4 lies before the first record of the log\n" +
		"t      2          -           4           5    -\n" +
		"t      3          4           4           5    unchanged\n"
	failed := []runnel.PlannedOffset{{TopicPartition: at(0), Old: 5, New: -1, Err: &runnel.Error{Reason: errorsv1.Reason_REASON_NO_LEADER, Message: "t-0 has no leader"}}}
	for _, test := range []struct {
		name         string
		plan         runnel.ResetPlan
		execute      bool
		says, failed string
	}{
		{"plan", runnel.ResetPlan{Offsets: moved}, false, table + "nothing was moved: this is the plan, and --execute carries it out while the group has no members\n", ""},
		{"executed", runnel.ResetPlan{Offsets: moved, Executed: true}, true, table + "moved: group \"g\" goes on at the new offsets\n", ""},
		{"failed", runnel.ResetPlan{Offsets: failed}, true,
			"TOPIC  PARTITION  OLD-OFFSET  NEW-OFFSET  LAG  NOTE\nt      0          5           -           -    t-0 has no leader\n",
			"nothing was moved: the offset of a partition cannot be, for the reason in its line"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, stdout := printing(t, outputTable)
			err := p.printPlan("g", test.plan, test.execute, false)
			if err == nil && test.failed != "" || err != nil && sentence(err) != test.failed {
				t.Errorf("ends with %v, want %q", err, test.failed)
			}
			if stdout.String() != test.says {
				t.Errorf("prints\n%swant\n%s", stdout.String(), test.says)
			}
		})
	}

	p, stdout := printing(t, outputJSON)
	if err := p.printPlan("g", runnel.ResetPlan{Offsets: append(moved, failed...)}, false, false); err == nil {
		t.Error("a plan that fails succeeds")
	}
	var object resetObject
	if err := json.Unmarshal(bytes.TrimSpace(stdout.Bytes()), &object); err != nil || object.Group != "g" || object.Executed || len(object.Offsets) != 5 {
		t.Fatalf("prints %s", stdout)
	}
	if o := object.Offsets[1]; *o.OldOffset != 3 || *o.NewOffset != 2 || *o.ClampedFrom != -4 || *o.LogStartOffset != 2 || *o.LogEndOffset != 9 || *o.Lag != 7 || o.Error != nil {
		t.Errorf("offset 1 in %s", stdout)
	}
	if o := object.Offsets[4]; o.NewOffset != nil || o.Lag != nil || *o.Error != "t-0 has no leader" || object.Offsets[2].OldOffset != nil || object.Offsets[2].ClampedFrom != nil {
		t.Errorf("offsets 2 and 4 in %s", stdout)
	}
}
