package cluster

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
)

func id(b byte) []byte {
	raw := make([]byte, 16)
	raw[15] = b
	return raw
}

func topic(b byte, name string, partitions ...*metadatav1.Partition) *metadatav1.Topic {
	return &metadatav1.Topic{TopicId: id(b), Name: name, Partitions: partitions, PartitionCount: int32(len(partitions))}
}

func partition(index, leader, epoch int32) *metadatav1.Partition {
	return &metadatav1.Partition{Partition: index, LeaderId: leader, LeaderEpoch: epoch, Replicas: []int32{leader}, Isr: []int32{leader}, LastLeaderId: -1}
}

func mustImage(t *testing.T, s *metadatav1.ClusterSnapshot) *Image {
	t.Helper()
	image, err := FromSnapshot(s)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestApply(t *testing.T) {
	first := mustImage(t, &metadatav1.ClusterSnapshot{
		ClusterId: id(9), Version: 5, ControllerId: -1,
		Nodes:  []*metadatav1.Node{{NodeId: 1}, {NodeId: 2}},
		Topics: []*metadatav1.Topic{topic(1, "a", partition(0, 1, 0), partition(1, 2, 0))},
	})
	before := first.Snapshot()
	second, err := first.Apply(&metadatav1.ClusterDelta{
		PreviousVersion: 5, Version: 8, ControllerId: proto.Int32(3), RemovedNodeIds: []int32{2},
		Topics: []*metadatav1.Topic{{TopicId: id(1), Name: "a", PartitionCount: 2, Partitions: []*metadatav1.Partition{partition(1, 1, 1)}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := second.Topic("a")
	if got := a.Partitions[1]; got.Leader != 1 || got.LeaderEpoch != 1 {
		t.Errorf("the changed partition is %+v", got)
	}
	if got := a.Partitions[0]; got.Leader != 1 || got.LeaderEpoch != 0 {
		t.Errorf("the partition that the delta leaves out is %+v", got)
	}
	if _, ok := second.Node(2); ok || second.Controller != 3 || second.Version != 8 {
		t.Errorf("after the delta: %+v", second)
	}
	if !proto.Equal(before, first.Snapshot()) {
		t.Error("applying a delta has changed the image that it was applied to")
	}
}

func TestApplyRefusesGaps(t *testing.T) {
	image := mustImage(t, &metadatav1.ClusterSnapshot{ClusterId: id(9), Version: 5})
	for _, previous := range []int64{0, 4, 6} {
		if _, err := image.Apply(&metadatav1.ClusterDelta{PreviousVersion: previous, Version: 7}); !errors.Is(err, ErrVersionGap) {
			t.Errorf("a delta from version %d on an image of version 5: %v", previous, err)
		}
	}
}

// TestTopicCreatedAgain: a delta may carry the end of a topic and the beginning
// of another one of the same name.
func TestTopicCreatedAgain(t *testing.T) {
	image := mustImage(t, &metadatav1.ClusterSnapshot{ClusterId: id(9), Version: 1, Topics: []*metadatav1.Topic{topic(1, "a", partition(0, 1, 0))}})
	image, err := image.Apply(&metadatav1.ClusterDelta{PreviousVersion: 1, Version: 2, RemovedTopicIds: [][]byte{id(1)}, Topics: []*metadatav1.Topic{topic(2, "a", partition(0, 1, 0))}})
	if err != nil {
		t.Fatal(err)
	}
	a, ok := image.Topic("a")
	if !ok || a.ID != TopicID(id(2)) {
		t.Errorf("topic a is %+v", a)
	}
	if !image.Deleted(TopicID(id(1))) || image.Deleted(TopicID(id(2))) {
		t.Error("the first topic must be known as deleted, the second not")
	}
	// An image without the first topic that was not told of its deletion does not
	// take it for deleted.
	if mustImage(t, &metadatav1.ClusterSnapshot{ClusterId: id(9), Version: 1}).Deleted(TopicID(id(1))) {
		t.Error("absence was taken for deletion")
	}
}

func TestRefusesWhatCannotBe(t *testing.T) {
	for name, s := range map[string]*metadatav1.ClusterSnapshot{
		"short cluster id":       {ClusterId: []byte{1}},
		"short topic id":         {ClusterId: id(9), Topics: []*metadatav1.Topic{{TopicId: []byte{1}, Name: "a"}}},
		"partition out of range": {ClusterId: id(9), Topics: []*metadatav1.Topic{{TopicId: id(1), Name: "a", PartitionCount: 1, Partitions: []*metadatav1.Partition{partition(1, 1, 0)}}}},
		"negative partition":     {ClusterId: id(9), Topics: []*metadatav1.Topic{{TopicId: id(1), Name: "a", PartitionCount: 1, Partitions: []*metadatav1.Partition{partition(-1, 1, 0)}}}},
		"negative count":         {ClusterId: id(9), Topics: []*metadatav1.Topic{{TopicId: id(1), Name: "a", PartitionCount: -1}}},
	} {
		if _, err := FromSnapshot(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestSharing: of two images the equal topics are in memory once, and neither changes.
func TestSharing(t *testing.T) {
	snapshot := func(epoch int32) *metadatav1.ClusterSnapshot {
		return &metadatav1.ClusterSnapshot{ClusterId: id(9), Version: 5, Topics: []*metadatav1.Topic{
			topic(1, "a", partition(0, 1, 0), partition(1, 2, 0)), topic(2, "b", partition(0, 1, 0), partition(1, 1, epoch)),
		}}
	}
	one, other := mustImage(t, snapshot(3)), mustImage(t, snapshot(4))
	before := other.Snapshot()
	shared := other.Sharing(one)
	if !proto.Equal(shared.Snapshot(), before) || !proto.Equal(other.Snapshot(), before) {
		t.Error("sharing has changed an image")
	}
	for _, name := range []string{"a", "b"} {
		known, _ := one.Topic(name)
		byName, _ := shared.Topic(name)
		byID, _ := shared.TopicByID(known.ID)
		if byName != byID || (byName == known) != (name == "a") {
			t.Errorf("topic %s is shared: %t and %t", name, byName == known, byID == known)
		}
	}
	if shared.Sharing(one) != shared {
		t.Error("an image that shares all there is was copied")
	}
}

// TestFoldEqualsSnapshot: whatever the deltas, an image that followed them
// equals one that is made from the snapshot of the end.
func TestFoldEqualsSnapshot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		image, err := FromSnapshot(&metadatav1.ClusterSnapshot{ClusterId: id(9), Version: 1})
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 20).Draw(t, "deltas") {
			delta := &metadatav1.ClusterDelta{PreviousVersion: image.Version, Version: image.Version + 1}
			b := byte(rapid.IntRange(1, 4).Draw(t, "topic"))
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				if !image.Deleted(TopicID(id(b))) {
					delta.Topics = append(delta.Topics, topic(b, string('a'+rune(b)), partition(0, 1, 0), partition(1, 2, 0)))
				}
			case 1:
				delta.RemovedTopicIds = append(delta.RemovedTopicIds, id(b))
			case 2:
				delta.Nodes = append(delta.Nodes, &metadatav1.Node{NodeId: int32(b), Fenced: rapid.Bool().Draw(t, "fenced")})
			case 3:
				delta.RemovedNodeIds = append(delta.RemovedNodeIds, int32(b))
			}
			if image, err = image.Apply(delta); err != nil {
				t.Fatal(err)
			}
		}
		again, err := FromSnapshot(image.Snapshot())
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(again.Snapshot(), image.Snapshot()) {
			t.Fatalf("folded:\n%v\nfrom snapshot:\n%v", image.Snapshot(), again.Snapshot())
		}
	})
}

func FuzzImage(f *testing.F) {
	seed, err := proto.Marshal(&metadatav1.ClusterSnapshot{ClusterId: id(9), Version: 1, Topics: []*metadatav1.Topic{topic(1, "a", partition(0, 1, 0))}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, []byte{})
	f.Fuzz(func(t *testing.T, snapshot, delta []byte) {
		var s metadatav1.ClusterSnapshot
		var d metadatav1.ClusterDelta
		if proto.Unmarshal(snapshot, &s) != nil || proto.Unmarshal(delta, &d) != nil {
			return
		}
		image, err := FromSnapshot(&s)
		if err != nil {
			return
		}
		if next, err := image.Apply(&d); err == nil {
			next.Snapshot()
		}
	})
}
