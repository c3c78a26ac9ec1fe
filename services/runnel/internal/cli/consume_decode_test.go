package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/log/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

func TestDecode(t *testing.T) {
	id := bytes.Repeat([]byte{0xab}, 16)
	const uuid = "abababab-abab-abab-abab-abababababab"
	key := func(k *logv1.RecordKey) []byte { return marshalled(t, k) }
	group := key(&logv1.RecordKey{Key: &logv1.RecordKey_Group{Group: &logv1.GroupKey{Group: "g"}}})
	member := key(&logv1.RecordKey{Key: &logv1.RecordKey_Member{Member: &logv1.MemberKey{Group: "g", MemberId: "m"}}})
	offset := key(&logv1.RecordKey{Key: &logv1.RecordKey_Offset{Offset: &logv1.OffsetKey{Group: "g", TopicId: id, Partition: 3}}})
	for _, test := range []struct {
		name       string
		key, value []byte
		want       string
	}{
		{"fence", key(&logv1.RecordKey{Key: &logv1.RecordKey_Fence{Fence: &logv1.FenceKey{}}}), marshalled(t, &logv1.FenceValue{CoordinatorEpoch: 7, NodeId: 3}),
			`{"kind":"fence","coordinator":3,"coordinator_epoch":7,"meaning":"node 3 coordinates the groups of this partition from here on"}`},
		{"group", group, marshalled(t, &logv1.GroupValue{Epoch: 5, TargetEpoch: 4, Assignor: "sticky", EmptyMs: 9, Target: []*logv1.TargetAssignment{
			{MemberId: "m", Partitions: []*logv1.PartitionSet{{TopicId: id, Partitions: []int32{0, 2}}}}}}),
			`{"kind":"group","group":"g","epoch":5,"target_epoch":4,"assignor":"sticky","empty_ms":9,"target":[{"member":"m","partitions":[{"topic_id":"` + uuid + `","partitions":[0,2]}]}]}`},
		{"member", member, marshalled(t, &logv1.MemberValue{Epoch: 5, ClientId: "c", ClientHost: "h", Topics: []string{"t"}, SessionTimeoutMs: 45000,
			Assigned: []*logv1.PartitionSet{{TopicId: id, Partitions: []int32{1, 2}, Epochs: []int64{4, 5}}}}),
			`{"kind":"member","group":"g","member":"m","client_id":"c","client_host":"h","epoch":5,"topics":["t"],"session_timeout_ms":45000,"assigned":[{"topic_id":"` + uuid + `","partitions":[1,2]}]}`},
		{"offset", offset, marshalled(t, &logv1.OffsetValue{Offset: 0, LeaderEpoch: proto.Int32(0), Metadata: "x", CommittedAtMs: 1500, Topic: "<t>", SinceEpoch: 3, CommitSequence: 9}),
			`{"kind":"offset","group":"g","topic":"<t>","topic_id":"` + uuid + `","partition":3,"offset":0,"leader_epoch":0,"metadata":"x","committed_at":"1970-01-01T00:00:01.5Z","since_epoch":3,"commit_sequence":9}`},
		{"group deleted", group, nil, `{"kind":"group","deleted":true,"group":"g"}`},
		{"member deleted", member, nil, `{"kind":"member","deleted":true,"group":"g","member":"m"}`},
		{"offset deleted", offset, nil, `{"kind":"offset","deleted":true,"group":"g","topic_id":"` + uuid + `","partition":3}`},
		{"nonsense", []byte("nonsense"), []byte("x"), `{"kind":"unknown","error":"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			record := &runnel.ConsumedRecord{Topic: "__consumer_offsets", Partition: 4, Offset: 8, Timestamp: time.UnixMilli(99), Key: test.key, Value: test.value}
			var text, lines bytes.Buffer
			if err := (decodedText{&textRecords{out: &text, offset: true, separator: []byte(" ")}}).write(record); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(text.String(), "Offset:8 "+test.want) || !strings.HasSuffix(text.String(), "}\n") {
				t.Errorf("prints %swant %s", text.String(), test.want)
			}
			if err := newDecodedLines(&lines).write(record); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(lines.String(), `{"topic":"__consumer_offsets","partition":4,"offset":8,"timestamp_ms":99,"record":`+test.want) {
				t.Errorf("with -o json prints %s", lines.String())
			}
		})
	}
}

func marshalled(t *testing.T, m proto.Message) []byte {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
