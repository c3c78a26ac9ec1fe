package metadata

import (
	"testing"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// prepare has the offsets topic created, and returns the image that shows it.
func (n *member) prepare() *cluster.Image {
	n.mesh.t.Helper()
	response, err := n.offsets.PrepareOffsetsTopic(n.mesh.t.Context(), &peerv1.PrepareOffsetsTopicRequest{})
	if err != nil {
		n.mesh.t.Fatal(err)
	}
	return n.at(response.GetVersion())
}

func offsetsOf(t testing.TB, image *cluster.Image) *cluster.Topic {
	t.Helper()
	return topicOf(t, image, cluster.OffsetsTopic)
}

// coordinates counts the partitions that each node coordinates.
func coordinates(t testing.TB, image *cluster.Image) map[cluster.NodeID]int {
	t.Helper()
	counts := make(map[cluster.NodeID]int)
	for _, p := range offsetsOf(t, image).Partitions {
		counts[p.Coordinator]++
	}
	return counts
}

// shares says that the nodes coordinate all partitions, none more than one above
// another.
func shares(t testing.TB, nodes ...*storage) func(*cluster.Image) bool {
	return func(image *cluster.Image) bool {
		counts, all := coordinates(t, image), len(offsetsOf(t, image).Partitions)
		for _, n := range nodes {
			if got := counts[n.id]; got < all/len(nodes) || got > (all+len(nodes)-1)/len(nodes) {
				return false
			}
		}
		return len(counts) == len(nodes)
	}
}

// epochsRise judges images one after the other: another coordinator, or another
// process of the same, has a greater coordinator epoch, and each change of a partition
// a greater partition epoch.
func epochsRise(t testing.TB) func(*cluster.Image) {
	var before *cluster.Topic
	return func(image *cluster.Image) {
		topic, ok := image.Topic(cluster.OffsetsTopic)
		if !ok {
			return
		}
		if before != nil {
			for i, was := range before.Partitions {
				is := topic.Partitions[i]
				moved := is.Coordinator != was.Coordinator && is.Coordinator != cluster.NoNode
				if moved && is.CoordinatorEpoch <= was.CoordinatorEpoch || is.CoordinatorEpoch < was.CoordinatorEpoch {
					t.Fatalf("at version %d %+v became %+v", image.Version, was, is)
				}
				if (is.Coordinator != was.Coordinator || is.CoordinatorEpoch != was.CoordinatorEpoch) && is.PartitionEpoch <= was.PartitionEpoch {
					t.Fatalf("at version %d %+v became %+v", image.Version, was, is)
				}
			}
		}
		before = topic
	}
}

// TestPrepareOffsetsTopic: whichever node is asked, the controller creates the topic
// once, and the version that it answers shows who coordinates what.
func TestPrepareOffsetsTopic(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start().ready()
	replica := m.start().ready()
	first, second := n.coordinator().register(true), n.coordinator().register(true)
	_, err := n.offsets.PrepareOffsetsTopic(t.Context(), &peerv1.PrepareOffsetsTopicRequest{})
	wantReason(t, err, errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)

	n.storage().register(true)
	n.storage().register(true)
	image := replica.prepare()
	topic := offsetsOf(t, image)
	if len(topic.Partitions) != 50 || topic.Config["cleanup.policy"] != "compact" || topic.Config["durability"] != "synced" || topic.Config["min.insync.replicas"] != "" {
		t.Errorf("%d partitions with %v", len(topic.Partitions), topic.Config)
	}
	for _, p := range topic.Partitions {
		if len(p.Replicas) != 2 || p.CoordinatorEpoch != 1 {
			t.Errorf("partition %+v", p)
		}
	}
	if !shares(t, first, second)(image) {
		t.Errorf("coordinators have %v", coordinates(t, image))
	}
	if again := offsetsOf(t, n.prepare()); again.ID != topic.ID || again.Partitions[7].CoordinatorEpoch != 1 {
		t.Errorf("asked again: %+v", again)
	}
}

// TestOffsetsTopicIsNotForClients: nobody but the cluster creates, changes or deletes
// what it keeps for itself.
func TestOffsetsTopicIsNotForClients(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	n.storage().register(true)
	create := func() error {
		_, err := n.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: cluster.OffsetsTopic})
		return err
	}
	wantReason(t, create(), errorsv1.Reason_REASON_INVALID_TOPIC_NAME)
	before := offsetsOf(t, n.prepare())
	wantReason(t, create(), errorsv1.Reason_REASON_INVALID_TOPIC_NAME)
	_, err := n.topics.AlterTopic(t.Context(), &metadatav1.AlterTopicRequest{Name: cluster.OffsetsTopic, Config: map[string]string{"retention.ms": "1"}})
	wantReason(t, err, errorsv1.Reason_REASON_INTERNAL_TOPIC)
	_, err = n.topics.DeleteTopic(t.Context(), &metadatav1.DeleteTopicRequest{Name: cluster.OffsetsTopic})
	wantReason(t, err, errorsv1.Reason_REASON_INTERNAL_TOPIC)
	if after := offsetsOf(t, n.view.Image()); after != before {
		t.Errorf("%+v became %+v", before, after)
	}
}

// TestHalfMadeOffsetsTopic: what an interrupted creation left is removed, and the next
// call creates the topic, here in several transactions.
func TestHalfMadeOffsetsTopic(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start(configured(func(c *Config) { c.OffsetsPartitions = 300 })).ready()
	n.storage().register(true)
	coordinator := n.coordinator().register(true)
	_, ops := m.plantOps(cluster.OffsetsTopic, 300, false)
	if _, err := m.raw.Txn(t.Context()).Then(ops...).Commit(); err != nil {
		t.Fatal(err)
	}
	if image := n.prepare(); coordinates(t, image)[coordinator.id] != 300 {
		t.Errorf("coordinators have %v", coordinates(t, image))
	}
}

// TestCoordinatorsShare follows the partitions over all that happens to coordinators.
func TestCoordinatorsShare(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	n.storage().register(true)
	if image := n.prepare(); coordinates(t, image)[cluster.NoNode] != 50 {
		t.Errorf("without coordinators: %v", coordinates(t, image))
	}
	seen := n.watch(epochsRise(t))
	first := n.coordinator().register(true)
	if image := n.at(first.version); !shares(t, first)(image) {
		t.Errorf("when the first was registered: %v", coordinates(t, image))
	}
	second := n.coordinator().register(true)
	n.image("who joins gets a share", shares(t, first, second))
	third := n.coordinator().register(true)
	n.image("who joins gets a share", shares(t, first, second, third))

	// The first stops in good order.
	left, err := first.leave()
	if err != nil || left.GetRemaining() != 0 {
		t.Fatalf("leave: %v, %v", left, err)
	}
	if image := n.at(left.GetVersion()); !shares(t, second, third)(image) {
		t.Errorf("when the first had left: %v", coordinates(t, image))
	}
	if err := first.deregister(); err != nil {
		t.Fatal(err)
	}
	first.register(true)
	n.image("who comes back gets a share", shares(t, first, second, third))

	// The second is killed, and is there again before its lease runs out.
	before := offsetsOf(t, n.view.Image())
	second.register(false)
	image := n.at(second.version)
	for i, p := range offsetsOf(t, image).Partitions {
		was := before.Partitions[i]
		if was.Coordinator == second.id && p.CoordinatorEpoch <= was.CoordinatorEpoch || p.Coordinator == cluster.NoNode {
			t.Errorf("its earlier process still has %+v", p)
		}
		if was.Coordinator != second.id && (p.Coordinator != was.Coordinator || p.CoordinatorEpoch != was.CoordinatorEpoch) {
			t.Errorf("%+v became %+v for nothing", was, p)
		}
	}
	n.image("who comes back gets a share", shares(t, first, second, third))

	// The third is cut off.
	n.mesh.expire(third.id)
	image = n.image("the node is fenced", func(image *cluster.Image) bool {
		found, _ := image.Node(third.id)
		return found.Fenced
	})
	if !shares(t, first, second)(image) {
		t.Errorf("when the third was fenced: %v", coordinates(t, image))
	}
	if err := third.heartbeat(); err != nil {
		t.Fatal(err)
	}
	last := n.image("who comes back gets a share", shares(t, first, second, third))
	seen(last.Version)
}

// TestLastCoordinatorKeepsWhatItHas: who leaves serves on until it stops, where nobody
// can take over; then the partitions have none.
func TestLastCoordinatorKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	n.storage().register(true)
	only := n.coordinator().register(true)
	n.prepare()
	left, err := only.leave()
	if err != nil || left.GetRemaining() != 50 {
		t.Fatalf("leave: %v, %v", left, err)
	}
	if image := n.at(left.GetVersion()); !shares(t, only)(image) {
		t.Errorf("when it had left: %v", coordinates(t, image))
	}
	if err := only.deregister(); err != nil {
		t.Fatal(err)
	}
	if got := coordinates(t, n.view.Image()); got[cluster.NoNode] != 50 {
		t.Errorf("when it had stopped: %v", got)
	}
}

// TestCoordinatorsAreNoStorageNodes: they are given no replicas, and a node does not
// change from the one to the other.
func TestCoordinatorsAreNoStorageNodes(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	node := n.storage().register(true)
	coordinator := n.coordinator().register(true)
	n.coordinator().register(true)
	if topic := n.create(&metadatav1.CreateTopicRequest{Name: "a"}); len(topic.GetPartitions()[0].GetReplicas()) != 1 {
		t.Errorf("replicas of a topic are %v", topic.GetPartitions()[0].GetReplicas())
	}
	_, err := n.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "b", ReplicationFactor: 2})
	wantReason(t, err, errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR)
	for _, p := range offsetsOf(t, n.prepare()).Partitions {
		if len(p.Replicas) != 1 || p.Replicas[0] != node.id {
			t.Fatalf("partition %+v", p)
		}
	}
	for _, changed := range []*storage{node, coordinator} {
		request := changed.request(true)
		if changed == node {
			request.Role = metadatav1.NodeRole_NODE_ROLE_COORDINATOR
		} else {
			request.Role = metadatav1.NodeRole_NODE_ROLE_STORAGE
		}
		_, err := n.nodes.Register(t.Context(), request)
		wantReason(t, err, errorsv1.Reason_REASON_NODE_MISMATCH)
	}
}

// catchUp has the leaders of the offsets topic, as an image shows it, take in what
// replicas there are, and returns whether there was anything to take in.
func catchUp(t testing.TB, image *cluster.Image, nodes ...*storage) (busy bool) {
	t.Helper()
	topic := offsetsOf(t, image)
	for _, leader := range nodes {
		request := &peerv1.AlterPartitionRequest{NodeId: int32(leader.id), NodeEpoch: int64(leader.epoch)}
		for _, p := range topic.Partitions {
			if p.Leader != leader.id || len(p.ISR) == len(p.Replicas) {
				continue
			}
			change := &peerv1.PartitionChange{TopicId: topic.ID[:], Partition: p.Index, LeaderEpoch: int32(p.LeaderEpoch), PartitionEpoch: int32(p.PartitionEpoch)}
			for _, id := range p.Replicas {
				for _, n := range nodes {
					if n.id == id {
						change.Isr = append(change.Isr, &peerv1.IsrMember{NodeId: int32(id), NodeEpoch: int64(n.epoch)})
					}
				}
			}
			request.Changes = append(request.Changes, change)
		}
		if len(request.GetChanges()) > 0 {
			if _, err := leader.via.partitions.AlterPartition(t.Context(), request); err != nil {
				t.Fatal(err)
			}
			busy = true
		}
	}
	return busy
}

// TestOffsetsTopicGrows: a topic that was created on the only storage node has three
// replicas once there are as many nodes, and serves all the while.
func TestOffsetsTopicGrows(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start(configured(func(c *Config) { c.BalanceInterval = 0 })).ready()
	nodes := []*storage{n.storage().register(true)}
	if got := offsetsOf(t, n.prepare()).Config["min.insync.replicas"]; got != "1" {
		t.Errorf("with one replica min.insync.replicas is %q", got)
	}
	var before *cluster.Topic
	seen := n.watch(func(image *cluster.Image) {
		topic := offsetsOf(t, image)
		for i, p := range topic.Partitions {
			if before != nil && len(p.Replicas) > len(before.Partitions[i].Replicas) && len(p.ISR) > len(before.Partitions[i].ISR) {
				t.Fatalf("at version %d a replica is in sync as soon as it is added: %+v", image.Version, p)
			}
		}
		before = topic
		need := 2
		if topic.Config["min.insync.replicas"] == "1" {
			need = 1
		}
		behind := make(map[cluster.NodeID]int)
		for _, p := range topic.Partitions {
			if p.Leader != nodes[0].id || p.LeaderEpoch != 0 || len(p.ISR) < min(need, len(p.Replicas)) || len(p.ELR) > 0 {
				t.Fatalf("at version %d, where %d are needed: %+v", image.Version, need, p)
			}
			for _, id := range p.Replicas {
				behind[id]++
			}
			for _, id := range p.ISR {
				behind[id]--
			}
		}
		for id, count := range behind {
			if count > 10 {
				t.Fatalf("at version %d %d replicas on node %d are to catch up at the same time", image.Version, count, id)
			}
		}
	})
	nodes = append(nodes, n.storage().register(true), n.storage().register(true), n.storage().register(true))
	grown := func(image *cluster.Image) bool {
		topic := offsetsOf(t, image)
		for _, p := range topic.Partitions {
			if len(p.ISR) < 3 {
				return false
			}
		}
		return topic.Config["min.insync.replicas"] == ""
	}
	var last *cluster.Image
	for last == nil || !grown(last) {
		last = n.image("there is something to do, or nothing any more", func(image *cluster.Image) bool {
			return last == nil || image.Version > last.Version
		})
		catchUp(t, last, nodes...)
	}
	// The leaders, and the replicas, are to be spread over all nodes.
	preferred, replicas := make(map[cluster.NodeID]int), make(map[cluster.NodeID]int)
	for _, p := range offsetsOf(t, last).Partitions {
		preferred[p.Replicas[0]]++
		for _, id := range p.Replicas {
			replicas[id]++
		}
		if len(p.Replicas) != 3 {
			t.Errorf("%+v has too many replicas", p)
		}
	}
	if len(preferred) != 4 || len(replicas) != 4 {
		t.Errorf("preferred leaders: %v; replicas: %v", preferred, replicas)
	}
	seen(last.Version)
}
