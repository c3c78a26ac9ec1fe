package offsets

import (
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

func partition(topic byte, index int32) groups.Partition {
	return groups.Partition{Topic: cluster.TopicID{15: topic}, Index: index}
}

func owned(topic byte, index int32, since groups.Epoch) groups.Owned {
	return groups.Owned{Partition: partition(topic, index), Since: since}
}

const (
	topic1 = "00000000000000000000000000000001"
	topic2 = "00000000000000000000000000000002"
)

// golden is the bytes of records of each kind. Partitions of clusters that run have
// them, and equal keys are found by them: they never change.
var golden = []struct {
	name       string
	record     groups.Record
	key, value string
}{
	{
		"fence", &groups.FenceRecord{Epoch: 7, Node: 3},
		"0a00", "0807 1003",
	},
	{
		"group", &groups.GroupRecord{
			Group: "g", Epoch: 5, TargetEpoch: 4, Assignor: groups.Sticky, Empty: 1500 * time.Millisecond,
			Target: map[groups.MemberID][]groups.Partition{
				"n": nil,
				"m": {partition(1, 0), partition(1, 300), partition(2, 1)},
			},
		},
		"1203 0a0167",
		"0805 1004 1a06737469636b79 20dc0b" +
			"2a33 0a016d 1217 0a10" + topic1 + "1203 00ac02 1215 0a10" + topic2 + "1201 01" +
			"2a03 0a016e",
	},
	{
		"group that knows topics", &groups.GroupRecord{
			Group: "g", Epoch: 5, Seen: []groups.SeenTopic{{Topic: cluster.TopicID{15: 1}, Partitions: 300}, {Topic: cluster.TopicID{15: 2}}},
		},
		"1203 0a0167", "0805 3215 0a10" + topic1 + "10ac02 3212 0a10" + topic2,
	},
	{
		"group without anything", &groups.GroupRecord{Group: "g"},
		"1203 0a0167", "",
	},
	{
		"member", &groups.MemberRecord{
			Group: "g", Member: "m", Epoch: 6, Instance: "i", ClientID: "c", ClientHost: "h",
			Subscription: groups.Subscription{Topics: []string{"a", "b"}, Pattern: "x.*"}, Assignor: groups.Range,
			SessionTimeout: 45 * time.Second, RebalanceTimeout: 5 * time.Minute,
			Assigned: []groups.Owned{owned(1, 0, 5), owned(1, 2, 6)}, Revoking: []groups.Owned{owned(2, 0, 200)}, Away: true,
		},
		"1a06 0a0167 12016d",
		"0806 120169 1a0163 220168 2a0161 2a0162 3203782e2a 3a0572616e6765 40c8df02 48e0a712" +
			"521a 0a10" + topic1 + "1202 0002 1a02 0506" +
			"5a19 0a10" + topic2 + "1201 00 1a02 c801" +
			"6001",
	},
	{
		"offset", &groups.OffsetRecord{
			Group: "g", Partition: partition(1, 300), TopicName: "orders", Offset: 128, LeaderEpoch: 0, Metadata: "x",
			Committed: time.UnixMilli(1_700_000_000_000).UTC(), Since: 7, Sequence: 300,
		},
		"2218 0a0167 1210" + topic1 + "18ac02",
		"088001 1000 1a0178 2080d095ffbc31 2a066f7264657273 3007 38ac02",
	},
	{
		"offset of partition 0 without a leader epoch", &groups.OffsetRecord{
			Group: "g", Partition: partition(1, 0), LeaderEpoch: -1, Committed: time.UnixMilli(0).UTC(),
		},
		"2215 0a0167 1210" + topic1, "",
	},
	{"tombstone of a group", &groups.Tombstone{Group: "g"}, "1203 0a0167", "null"},
	{"tombstone of a member", &groups.Tombstone{Group: "g", Member: "m"}, "1a06 0a0167 12016d", "null"},
	{
		"tombstone of an offset", &groups.Tombstone{Group: "g", Offset: &groups.Partition{Topic: cluster.TopicID{15: 1}, Index: 1}},
		"2217 0a0167 1210" + topic1 + "1801", "null",
	},
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	if text == "null" {
		return nil
	}
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldenRecords(t *testing.T) {
	t.Parallel()
	for _, test := range golden {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			key, value, err := encodeRecord(test.record)
			if err != nil {
				t.Fatal(err)
			}
			wantKey, wantValue := unhex(t, test.key), unhex(t, test.value)
			if !reflect.DeepEqual(key, wantKey) || !reflect.DeepEqual(value, wantValue) {
				t.Errorf("encoded as %x = %x, want %x = %x", key, value, wantKey, wantValue)
			}
			got, err := DecodeRecord(wantKey, wantValue)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, test.record) {
				t.Errorf("decoded as %+v, want %+v", got, test.record)
			}
		})
	}
}

func TestUnknownKinds(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{
		"no kind":                          "",
		"a kind of its own":                "2a03 0a0167",
		"a group with something more":      "1205 0a0167 1005",
		"something beside a group":         "1203 0a0167 3001",
		"a partition 0 that is spelt out":  "2217 0a0167 1210" + topic1 + "1800",
		"fields out of order":              "1a06 12016d 0a0167",
		"a kind that replaces another":     "1203 0a0167 0a00",
		"an offset of something per topic": "2219 0a0167 1210" + topic1 + "1801 2001",
	} {
		if r, err := DecodeRecord(unhex(t, key), []byte{}); !errors.Is(err, ErrUnknownKind) {
			t.Errorf("%s: decoded as %+v: %v", name, r, err)
		}
	}
}

func TestNewerValuesAreRead(t *testing.T) {
	t.Parallel()
	got, err := DecodeRecord(unhex(t, "0a00"), unhex(t, "0807 1003 a2060161"))
	if want := (&groups.FenceRecord{Epoch: 7, Node: 3}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded as %+v, want %+v: %v", got, want, err)
	}
}

func TestDamagedRecords(t *testing.T) {
	t.Parallel()
	const member = "1a06 0a0167 12016d"
	for name, test := range map[string]struct{ key, value, want string }{
		"no message":                    {"ff", "", "key"},
		"group without a name":          {"1200", "", "group"},
		"member without a name":         {"1a03 0a0167", "", "member"},
		"short topic id":                {"2206 0a0167 120101", "", "topic id"},
		"negative partition":            {"2220 0a0167 1210" + topic1 + "18ffffffffffffffffff01", "", "partition"},
		"fence that was removed":        {"0a00", "null", "fence"},
		"fence of another form":         {"0a00", "ff", "fence"},
		"group of another form":         {"1203 0a0167", "ff", `group "g"`},
		"negative time without members": {"1203 0a0167", "20ffffffffffffffffff01", "empty_ms"},
		"endless time without members":  {"1203 0a0167", "20ffffffffffffffff7f", "empty_ms"},
		"two targets of one member":     {"1203 0a0167", "2a03 0a016d 2a03 0a016d", "two targets"},
		"target with epochs":            {"1203 0a0167", "2a1d 0a016d 1218 0a10" + topic1 + "1201 00 1a0101", "epochs"},
		"member of another form":        {member, "ff", `member "m"`},
		"assigned without epochs":       {member, "5215 0a10" + topic1 + "1201 00", "epochs"},
		"revoking without a topic":      {member, "5a06 1201 00 1a0101", "topic id"},
		"assigned twice":                {member, "521a 0a10" + topic1 + "1202 0202 1a02 0506", "ascending"},
		"assigned out of order":         {member, "5218 0a10" + topic2 + "1201 00 1a0105 5218 0a10" + topic1 + "1201 00 1a0105", "ascending"},
		"assigned below partition 0":    {member, "5221 0a10" + topic1 + "120a ffffffffffffffffff01 1a0105", "partition -1"},
		"offset of another form":        {"2215 0a0167 1210" + topic1, "ff", "offset"},
	} {
		r, err := DecodeRecord(unhex(t, test.key), unhex(t, test.value))
		if err == nil || errors.Is(err, ErrUnknownKind) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: decoded as %+v: %v, want an error with %q", name, r, err, test.want)
		}
	}
}

// What could not be read back is not written.
func TestRecordsThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]groups.Record{
		"nothing":                   nil,
		"group without a name":      &groups.GroupRecord{},
		"group that is not UTF-8":   &groups.Tombstone{Group: "\xff"},
		"member that is not UTF-8":  &groups.MemberRecord{Group: "g", Member: "\xff"},
		"metadata that is not text": &groups.OffsetRecord{Group: "g", Metadata: "\xff"},
		"negative partition":        &groups.OffsetRecord{Group: "g", Partition: partition(1, -1)},
		"target out of order":       &groups.GroupRecord{Group: "g", Target: map[groups.MemberID][]groups.Partition{"m": {partition(2, 0), partition(1, 0)}}},
		"assigned twice":            &groups.MemberRecord{Group: "g", Member: "m", Assigned: []groups.Owned{owned(1, 0, 1), owned(1, 0, 1)}},
		"revoking below 0":          &groups.MemberRecord{Group: "g", Member: "m", Revoking: []groups.Owned{owned(1, -1, 1)}},
		"timeout of a year":         &groups.MemberRecord{Group: "g", Member: "m", SessionTimeout: 365 * 24 * time.Hour},
	} {
		if key, value, err := encodeRecord(r); err == nil {
			t.Errorf("%s was encoded as %x = %x", name, key, value)
		}
	}
}

// recordOf draws any record that rules can make.
func recordOf(t *rapid.T) groups.Record {
	name := rapid.StringN(1, 20, 255)
	text := rapid.StringN(0, 20, 255)
	epoch := rapid.Custom(func(t *rapid.T) groups.Epoch { return groups.Epoch(rapid.Int64().Draw(t, "epoch")) })
	timeout := rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.Int32Range(0, 1<<31-1).Draw(t, "timeout")) * time.Millisecond
	})
	one := rapid.Custom(func(t *rapid.T) groups.Partition {
		return partition(rapid.Byte().Draw(t, "topic"), rapid.Int32Range(0, 1<<31-1).Draw(t, "index"))
	})
	several := rapid.Custom(func(t *rapid.T) (partitions []groups.Owned) {
		for topic := range rapid.ByteRange(0, 4).Draw(t, "topics") {
			for index := range rapid.Int32Range(1, 4).Draw(t, "partitions") {
				partitions = append(partitions, owned(topic, index*100, epoch.Draw(t, "since")))
			}
		}
		return partitions
	})
	group := groups.GroupID(name.Draw(t, "group"))
	member := groups.MemberID(name.Draw(t, "member"))
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		return &groups.FenceRecord{Epoch: groups.CoordinatorEpoch(rapid.Int64().Draw(t, "epoch")), Node: cluster.NodeID(rapid.Int32().Draw(t, "node"))}
	case 1:
		r := &groups.GroupRecord{
			Group: group, Epoch: epoch.Draw(t, "epoch"), TargetEpoch: epoch.Draw(t, "target epoch"),
			Assignor: groups.Assignor(text.Draw(t, "assignor")), Empty: timeout.Draw(t, "empty"),
		}
		for _, id := range rapid.SliceOfDistinct(name, rapid.ID[string]).Draw(t, "members") {
			if r.Target == nil {
				r.Target = make(map[groups.MemberID][]groups.Partition)
			}
			r.Target[groups.MemberID(id)] = nil
			for _, p := range several.Draw(t, "target") {
				r.Target[groups.MemberID(id)] = append(r.Target[groups.MemberID(id)], p.Partition)
			}
		}
		return r
	case 2:
		r := &groups.MemberRecord{
			Group: group, Member: member, Epoch: epoch.Draw(t, "epoch"),
			Instance: text.Draw(t, "instance"), ClientID: text.Draw(t, "client"), ClientHost: text.Draw(t, "host"),
			Subscription: groups.Subscription{Pattern: text.Draw(t, "pattern")}, Assignor: groups.Assignor(text.Draw(t, "assignor")),
			SessionTimeout: timeout.Draw(t, "session"), RebalanceTimeout: timeout.Draw(t, "rebalance"),
			Assigned: several.Draw(t, "assigned"), Revoking: several.Draw(t, "revoking"), Away: rapid.Bool().Draw(t, "away"),
		}
		if topics := rapid.SliceOf(text).Draw(t, "topics"); len(topics) > 0 {
			r.Subscription.Topics = topics
		}
		return r
	case 3:
		return &groups.OffsetRecord{
			Group: group, Partition: one.Draw(t, "partition"), TopicName: text.Draw(t, "topic name"), Offset: rapid.Int64().Draw(t, "offset"),
			LeaderEpoch: rapid.Int32Min(-1).Draw(t, "leader epoch"), Metadata: text.Draw(t, "metadata"),
			Committed: time.UnixMilli(rapid.Int64Range(-1<<50, 1<<50).Draw(t, "committed")).UTC(),
		}
	case 4:
		return &groups.Tombstone{Group: group}
	case 5:
		return &groups.Tombstone{Group: group, Member: member}
	}
	p := one.Draw(t, "partition")
	return &groups.Tombstone{Group: group, Offset: &p}
}

func TestRecordsAreReadBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		record := recordOf(t)
		key, value, err := encodeRecord(record)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeRecord(key, value)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, record) {
			t.Fatalf("%+v was read back as %+v", record, got)
		}
	})
}

// FuzzDecodeRecord takes foreign bytes: what is read can be written, under the same key.
func FuzzDecodeRecord(f *testing.F) {
	for _, test := range golden {
		f.Add(unhex(f, test.key), unhex(f, test.value), test.value == "null")
	}
	f.Fuzz(func(t *testing.T, key, value []byte, null bool) {
		if null {
			value = nil
		} else if value == nil {
			value = []byte{}
		}
		record, err := DecodeRecord(key, value)
		if err != nil {
			return
		}
		again, written, err := encodeRecord(record)
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", record, err)
		}
		if string(again) != string(key) || (written == nil) != null {
			t.Fatalf("%x = %x was read as %+v, which is written as %x = %x", key, value, record, again, written)
		}
	})
}
