package cluster

import (
	"testing"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
)

// TestMurmur2 holds the hash against the values in Apache Kafka's own
// UtilsTest.testMurmur2.
func TestMurmur2(t *testing.T) {
	golden := map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	}
	for key, want := range golden {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
		for partitions := 1; partitions < 20; partitions++ {
			if got, want := PartitionForKey([]byte(key), partitions), (want&0x7fffffff)%int32(partitions); got != want {
				t.Errorf("key %q of %d partitions: %d, want %d", key, partitions, got, want)
			}
		}
	}
}

// TestGroupPartition: a group's coordinator is found by the hash of its id, and by
// the coordinator that the newest delta names.
func TestGroupPartition(t *testing.T) {
	image := mustImage(t, &metadatav1.ClusterSnapshot{ClusterId: id(9), Version: 1})
	if _, _, ok := image.GroupPartition("foobar"); ok {
		t.Error("a group has a partition in a cluster without the topic")
	}
	offsets := topic(1, OffsetsTopic, partition(0, 1, 0), partition(1, 1, 0), partition(2, 1, 0))
	for i, p := range offsets.GetPartitions() {
		p.CoordinatorId, p.CoordinatorEpoch = int32(10+i), 7
	}
	image, err := image.Apply(&metadatav1.ClusterDelta{PreviousVersion: 1, Version: 2, Topics: []*metadatav1.Topic{offsets}})
	if err != nil {
		t.Fatal(err)
	}
	// murmur2("foobar") is -790332482, as Apache Kafka's tests have it.
	const hash = -790332482 & 0x7fffffff
	found, p, ok := image.GroupPartition("foobar")
	if !ok || found.Name != OffsetsTopic || p.Index != hash%3 || p.Coordinator != NodeID(10+hash%3) || p.CoordinatorEpoch != 7 {
		t.Fatalf("group foobar: %+v, %t", p, ok)
	}
	none := partition(p.Index, 1, 0)
	none.CoordinatorEpoch = 8
	image, err = image.Apply(&metadatav1.ClusterDelta{PreviousVersion: 2, Version: 3, Topics: []*metadatav1.Topic{
		{TopicId: id(1), Name: OffsetsTopic, PartitionCount: 3, Partitions: []*metadatav1.Partition{none}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, p, _ = image.GroupPartition("foobar"); p.Coordinator != NoNode || p.CoordinatorEpoch != 8 {
		t.Errorf("after its coordinator has gone: %+v", p)
	}
	wire := p.Proto()
	if wire.GetCoordinatorId() != 0 || wire.GetCoordinatorEpoch() != 8 {
		t.Errorf("on the wire: %v", wire)
	}
	if again := mustImage(t, image.Snapshot()); again.Topics()[0].Partitions[0].Coordinator != image.Topics()[0].Partitions[0].Coordinator {
		t.Error("the snapshot loses coordinators")
	}
}
