package metadata

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// unbalanced keeps leaderships where a test puts them.
func unbalanced(c *Config) { c.BalanceInterval = 0 }

func (s *storage) leave() (*peerv1.LeaveResponse, error) {
	return s.via.nodes.Leave(context.Background(), &peerv1.LeaveRequest{NodeId: int32(s.id), NodeEpoch: int64(s.epoch)})
}

// agree makes the leader of partitions of a topic, as an image shows them, propose
// an ISR, and returns the version that shows it.
func (s *storage) agree(image *cluster.Image, topic string, isr ...*storage) int64 {
	t := s.via.mesh.t
	t.Helper()
	found, _ := image.Topic(topic)
	request := &peerv1.AlterPartitionRequest{NodeId: int32(s.id), NodeEpoch: int64(s.epoch)}
	for _, p := range found.Partitions {
		if p.Leader != s.id {
			continue
		}
		change := &peerv1.PartitionChange{TopicId: found.ID[:], Partition: p.Index, LeaderEpoch: int32(p.LeaderEpoch), PartitionEpoch: int32(p.PartitionEpoch)}
		for _, member := range isr {
			epoch := int64(member.epoch)
			if slices.Contains(p.ISR, member.id) {
				epoch = -1
			}
			change.Isr = append(change.Isr, &peerv1.IsrMember{NodeId: int32(member.id), NodeEpoch: epoch})
		}
		request.Changes = append(request.Changes, change)
	}
	response, err := s.via.partitions.AlterPartition(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range response.GetResults() {
		if !r.GetAccepted() {
			t.Fatalf("change %d is refused: %v", i, r)
		}
	}
	return response.GetVersion()
}

func (n *member) shows(topic string) *cluster.Image {
	n.mesh.t.Helper()
	return n.image("there is topic "+topic, func(image *cluster.Image) bool {
		_, ok := image.Topic(topic)
		return ok
	})
}

func (n *member) elect(req *metadatav1.ElectLeadersRequest) *metadatav1.ElectLeadersResponse {
	n.mesh.t.Helper()
	response, err := n.topics.ElectLeaders(n.mesh.t.Context(), req)
	if err != nil {
		n.mesh.t.Fatal(err)
	}
	return response
}

// watch folds what a node sends from now on and has each image judged. The
// function that it returns waits until the images have come to a version.
func (n *member) watch(judge func(*cluster.Image)) func(version int64) {
	n.mesh.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	stream, err := n.clusters.WatchCluster(ctx, &metadatav1.WatchClusterRequest{})
	if err != nil {
		n.mesh.t.Fatal(err)
	}
	n.mesh.t.Cleanup(func() {
		cancel()
		stream.Close()
	})
	var image *cluster.Image
	next := func() {
		n.mesh.t.Helper()
		update, err := stream.Receive()
		if err == nil && update.GetSnapshot() != nil {
			image, err = cluster.FromSnapshot(update.GetSnapshot())
		} else if err == nil {
			image, err = image.Apply(update.GetDelta())
		}
		if err != nil {
			n.mesh.t.Fatal(err)
		}
		judge(image)
	}
	next()
	return func(version int64) {
		n.mesh.t.Helper()
		for image.Version < version {
			next()
		}
	}
}

// TestLeaveMovesLeaderships: 1,000 leaderships move in well under five seconds,
// none of them by way of no leader, and what nobody else has stays.
func TestLeaveMovesLeaderships(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start(configured(unbalanced)).ready()
	a, b, c := n.storage().register(false), n.storage().register(false), n.storage().register(false)
	m.plant("shared", 1000, a, b, c)
	m.plant("alone", 3, a)
	n.shows("shared")
	n.shows("alone")
	seen := n.watch(func(image *cluster.Image) {
		for _, p := range topicOf(t, image, "shared").Partitions {
			if p.Leader == cluster.NoNode {
				t.Fatalf("at version %d nobody leads partition %d", image.Version, p.Index)
			}
		}
	})
	began := time.Now()
	left, err := a.leave()
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if left.GetRemaining() != 3 {
		t.Errorf("answered with %v", left)
	}
	seen(left.GetVersion())
	image := n.at(left.GetVersion())
	if node, _ := image.Node(a.id); !node.Leaving || node.Fenced {
		t.Errorf("the node is %+v", node)
	}
	for _, p := range topicOf(t, image, "shared").Partitions {
		if p.Leader != b.id || p.LeaderEpoch != 1 || !slices.Equal(p.ISR, []cluster.NodeID{a.id, b.id, c.id}) || len(p.ELR) != 0 {
			t.Fatalf("partition %d is %+v", p.Index, p)
		}
	}
	for _, p := range topicOf(t, image, "alone").Partitions {
		if p.Leader != a.id || p.LeaderEpoch != 0 {
			t.Errorf("a partition that nobody else has is %+v", p)
		}
	}
	// It says so again, and nothing changes.
	again, err := a.leave()
	if err != nil || again.GetRemaining() != 3 || n.at(again.GetVersion()).Version != image.Version {
		t.Errorf("the second time: %v, %v", again, err)
	}
	// A new topic stays away from it.
	created := n.create(&metadatav1.CreateTopicRequest{Name: "new", Partitions: 10, ReplicationFactor: 1})
	for _, p := range created.GetPartitions() {
		if p.GetLeaderId() == int32(a.id) {
			t.Errorf("a partition of a new topic is given to it: %v", p)
		}
	}
	a.epoch--
	_, err = a.leave()
	wantReason(t, err, errorsv1.Reason_REASON_STALE_NODE_EPOCH)
}

// TestLeaveAvoidsLostLeases: what a node gives away does not go to one that has just
// lost its lease; and where there is no other it stays, until that one is back.
func TestLeaveAvoidsLostLeases(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start(configured(unbalanced)).ready()
	a, b, c := n.storage().register(false), n.storage().register(false), n.storage().register(false)
	m.plant("three", 3, a, b, c)
	m.plant("two", 3, a, b)
	n.shows("three")
	n.shows("two")
	// So many at once that nobody is fenced for now.
	var lost []clientv3.Op
	for _, s := range []*storage{b, n.storage().register(false), n.storage().register(false), n.storage().register(false)} {
		lost = append(lost, clientv3.OpDelete(m.layout.Live(s.id)))
	}
	if _, err := m.raw.Txn(t.Context()).Then(lost...).Commit(); err != nil {
		t.Fatal(err)
	}
	left, err := a.leave()
	if err != nil || left.GetRemaining() != 3 {
		t.Fatalf("%v, %v", left, err)
	}
	image := n.at(left.GetVersion())
	if node, _ := image.Node(b.id); node.Fenced {
		t.Fatal("it is fenced, which is not what the test is about")
	}
	for i := range 3 {
		if p := partition(t, image, "three", i); p.Leader != c.id || len(p.ISR) != 3 {
			t.Errorf("partition %d of three replicas is %+v", i, p)
		}
		if p := partition(t, image, "two", i); p.Leader != a.id || len(p.ISR) != 2 {
			t.Errorf("partition %d of two replicas is %+v", i, p)
		}
	}
	if err := b.heartbeat(); err != nil {
		t.Fatal(err)
	}
	n.image("the one that is back leads", func(image *cluster.Image) bool {
		return partition(t, image, "two", 0).Leader == b.id && partition(t, image, "two", 2).Leader == b.id
	})
}

// TestLeaveIsRemembered: the word stands until the next registration, whatever
// becomes of lease and controller meanwhile.
func TestLeaveIsRemembered(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	first := m.start(configured(unbalanced)).ready()
	second := m.start(configured(unbalanced)).ready()
	a, b := first.storage().register(false), first.storage().register(false)
	m.plant("shared", 5, a, b)
	second.shows("shared")
	a.via, b.via = second, second
	// Forwarded to the controller.
	left, err := a.leave()
	if err != nil || left.GetRemaining() != 0 {
		t.Fatalf("%v, %v", left, err)
	}
	first.stop()
	second.image("the second is controller", func(image *cluster.Image) bool { return image.Controller == 2 })
	m.expire(a.id)
	second.image("fenced", func(image *cluster.Image) bool { node, _ := image.Node(a.id); return node.Fenced })
	if err := a.heartbeat(); err != nil {
		t.Fatal(err)
	}
	back := second.image("live", func(image *cluster.Image) bool { node, _ := image.Node(a.id); return !node.Fenced })
	if node, _ := back.Node(a.id); !node.Leaving {
		t.Errorf("back with its lease the node is %+v", node)
	}
	elected := second.elect(&metadatav1.ElectLeadersRequest{Type: metadatav1.ElectionType_ELECTION_TYPE_PREFERRED})
	for _, e := range elected.GetElections() {
		if e.GetLeaderId() != int32(b.id) || !strings.Contains(e.GetFailure().GetMessage(), "is about to stop") {
			t.Errorf("elected: %v", e)
		}
	}
	if len(elected.GetElections()) != 5 {
		t.Errorf("elections are %v", elected)
	}
	if err := a.deregister(); err != nil {
		t.Fatal(err)
	}
	a.register(true)
	if node, _ := second.at(a.version).Node(a.id); node.Leaving || node.Fenced {
		t.Errorf("the next process is %+v", node)
	}
}

func topicOf(t testing.TB, image *cluster.Image, name string) *cluster.Topic {
	t.Helper()
	topic, ok := image.Topic(name)
	if !ok {
		t.Fatalf("version %d has no topic %q", image.Version, name)
	}
	return topic
}

func TestElectPreferredLeaders(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start(configured(unbalanced)).ready()
	a, b := n.storage().register(false), n.storage().register(false)
	n.mesh.plant("t", 300, a, b)
	n.mesh.plant("other", 1, a, b)
	n.shows("t")
	n.shows("other")
	preferred := &metadatav1.ElectLeadersRequest{Type: metadatav1.ElectionType_ELECTION_TYPE_PREFERRED}
	if got := n.elect(preferred); len(got.GetElections()) != 0 {
		t.Errorf("where all is well: %v", got)
	}
	n.mesh.expire(a.id)
	n.image("fenced", func(image *cluster.Image) bool { node, _ := image.Node(a.id); return node.Fenced })
	for _, want := range []struct {
		says string
		then func()
	}{
		{"node 2 is not live", func() {
			if err := a.heartbeat(); err != nil {
				t.Fatal(err)
			}
			n.image("live", func(image *cluster.Image) bool { node, _ := image.Node(a.id); return !node.Fenced })
		}},
		{"node 2 is not in sync; try again once the ISR, which is 3, has it", func() { n.at(b.agree(n.view.Image(), "t", a, b)) }},
	} {
		got := n.elect(&metadatav1.ElectLeadersRequest{Type: preferred.Type, Topics: []*metadatav1.TopicPartitions{{Topic: "t", Partitions: []int32{7}}}}).GetElections()
		if len(got) != 1 || got[0].GetFailure().GetReason() != errorsv1.Reason_REASON_PREFERRED_LEADER_NOT_AVAILABLE ||
			!strings.Contains(got[0].GetFailure().GetMessage(), want.says) || got[0].GetLeaderId() != int32(b.id) || got[0].GetPreviousLeaderId() != int32(b.id) {
			t.Errorf("got %v, want %q", got, want.says)
		}
		want.then()
	}
	before := n.view.Image()
	checked := n.elect(&metadatav1.ElectLeadersRequest{Type: preferred.Type, ValidateOnly: true})
	// The other topic's ISR has not taken the node back.
	if len(checked.GetElections()) != 301 || checked.GetVersion() != 0 || n.view.Image() != before {
		t.Errorf("a check answers with %d elections, version %d", len(checked.GetElections()), checked.GetVersion())
	}
	got := n.elect(&metadatav1.ElectLeadersRequest{Type: preferred.Type, Topics: []*metadatav1.TopicPartitions{{Topic: "t"}}})
	if len(got.GetElections()) != 300 {
		t.Fatalf("%d elections", len(got.GetElections()))
	}
	image := n.view.Image()
	if image.Version < got.GetVersion() {
		t.Errorf("the node shows version %d, not %d", image.Version, got.GetVersion())
	}
	for i, e := range got.GetElections() {
		p := partition(t, image, "t", i)
		if e.GetPartition() != int32(i) || e.GetLeaderId() != int32(a.id) || e.GetPreviousLeaderId() != int32(b.id) || e.GetFailure() != nil || e.GetUnclean() ||
			p.Leader != a.id || int32(p.LeaderEpoch) != e.GetLeaderEpoch() || p.LeaderEpoch != 2 || len(p.ISR) != 2 {
			t.Fatalf("election %v leads to %+v", e, p)
		}
	}
	if p := partition(t, image, "other", 0); p.Leader != b.id {
		t.Errorf("a topic that was not named has %+v", p)
	}
}

func TestElectUncleanLeaders(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start(configured(unbalanced)).ready()
	a, b := n.storage().register(false), n.storage().register(false)
	n.mesh.plant("t", 200, a, b)
	n.mesh.plant("led", 1, b)
	n.shows("led")
	// What a acknowledges from here on b does not have: unclean, it leaves the ELR.
	n.at(a.agree(n.shows("t"), "t", a))
	b.register(false)
	unclean := &metadatav1.ElectLeadersRequest{Type: metadatav1.ElectionType_ELECTION_TYPE_UNCLEAN}
	if got := n.elect(unclean); len(got.GetElections()) != 0 {
		t.Errorf("where all have leaders: %v", got)
	}
	if err := a.deregister(); err != nil {
		t.Fatal(err)
	}
	before := n.view.Image()
	if p := partition(t, before, "t", 0); p.Leader != cluster.NoNode {
		t.Fatalf("not offline: %+v", p)
	}
	preferred := n.elect(&metadatav1.ElectLeadersRequest{Type: metadatav1.ElectionType_ELECTION_TYPE_PREFERRED})
	if len(preferred.GetElections()) != 200 || preferred.GetElections()[0].GetFailure() == nil || preferred.GetElections()[0].GetLeaderId() != -1 {
		t.Errorf("preferred elections of offline partitions: %v", preferred)
	}
	for _, only := range []bool{true, false} {
		unclean.ValidateOnly = only
		got := n.elect(unclean).GetElections()
		if len(got) != 200 {
			t.Fatalf("%d elections", len(got))
		}
		for i, e := range got {
			if e.GetPartition() != int32(i) || e.GetLeaderId() != int32(b.id) || e.GetPreviousLeaderId() != -1 || !e.GetUnclean() || e.GetFailure() != nil {
				t.Fatalf("election %v", e)
			}
		}
		p := partition(t, n.view.Image(), "t", 199)
		if elected := p.Leader == b.id && slices.Equal(p.ISR, []cluster.NodeID{b.id}) && !slices.Contains(p.ELR, a.id); elected == only {
			t.Errorf("with validate_only %t partition 199 is %+v", only, p)
		}
	}
	if got := n.elect(unclean).GetElections(); len(got) != 0 {
		t.Errorf("the second time: %v", got)
	}
	// The old leader has what the new one has not, and is no leader any more.
	a.register(true)
	if p := partition(t, n.at(a.version), "t", 0); p.Leader != b.id || slices.Contains(p.ISR, a.id) {
		t.Errorf("after the return of the old leader %+v", p)
	}
	for _, s := range []*storage{a, b} {
		if err := s.deregister(); err != nil {
			t.Fatal(err)
		}
	}
	got := n.elect(&metadatav1.ElectLeadersRequest{Type: unclean.Type, Topics: []*metadatav1.TopicPartitions{{Topic: "t", Partitions: []int32{1}}}}).GetElections()
	if len(got) != 1 || got[0].GetFailure().GetReason() != errorsv1.Reason_REASON_NO_LEADER || !strings.Contains(got[0].GetFailure().GetMessage(), "start one of the nodes 2, 3") {
		t.Errorf("with nobody live: %v", got)
	}
	got = n.elect(&metadatav1.ElectLeadersRequest{Type: metadatav1.ElectionType_ELECTION_TYPE_PREFERRED, Topics: []*metadatav1.TopicPartitions{{Topic: "t", Partitions: []int32{1}}}}).GetElections()
	if len(got) != 1 || got[0].GetFailure().GetReason() != errorsv1.Reason_REASON_NO_LEADER || !strings.Contains(got[0].GetFailure().GetMessage(), "partition 1 of topic \"t\" has no leader: start node 3, which leads at once then") {
		t.Errorf("of the preferred replica with nobody live: %v", got)
	}
}

func TestElectLeadersRefuses(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start(configured(unbalanced)).ready()
	n.storage().register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "a", Partitions: 2})
	const preferred = metadatav1.ElectionType_ELECTION_TYPE_PREFERRED
	topics := func(topics ...*metadatav1.TopicPartitions) *metadatav1.ElectLeadersRequest {
		return &metadatav1.ElectLeadersRequest{Type: preferred, Topics: topics}
	}
	for _, test := range []struct {
		name string
		req  *metadatav1.ElectLeadersRequest
		want errorsv1.Reason
		says string
	}{
		{"no type", &metadatav1.ElectLeadersRequest{}, errorsv1.Reason_REASON_INVALID_REQUEST, "ELECTION_TYPE_PREFERRED"},
		{"no such topic", topics(&metadatav1.TopicPartitions{Topic: "a"}, &metadatav1.TopicPartitions{Topic: "b"}), errorsv1.Reason_REASON_TOPIC_NOT_FOUND, `"b"`},
		{"no such partition", topics(&metadatav1.TopicPartitions{Topic: "a", Partitions: []int32{0, 2}}), errorsv1.Reason_REASON_PARTITION_NOT_FOUND, "has no partition 2: it has 2"},
		{"negative partition", topics(&metadatav1.TopicPartitions{Topic: "a", Partitions: []int32{-1}}), errorsv1.Reason_REASON_PARTITION_NOT_FOUND, "has no partition -1"},
		{"topic twice", topics(&metadatav1.TopicPartitions{Topic: "a"}, &metadatav1.TopicPartitions{Topic: "a"}), errorsv1.Reason_REASON_INVALID_REQUEST, "twice"},
		{"partition twice", topics(&metadatav1.TopicPartitions{Topic: "a", Partitions: []int32{1, 1}}), errorsv1.Reason_REASON_INVALID_REQUEST, "twice"},
		{"too many topics", topics(make([]*metadatav1.TopicPartitions, 1001)...), errorsv1.Reason_REASON_INVALID_REQUEST, "at most 1000"},
		{"too many partitions", topics(&metadatav1.TopicPartitions{Topic: "a", Partitions: make([]int32, 100_001)}), errorsv1.Reason_REASON_INVALID_REQUEST, "100000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := n.topics.ElectLeaders(t.Context(), test.req)
			if failure := wantReason(t, err, test.want); !strings.Contains(failure.Message, test.says) {
				t.Errorf("refused with %q, which does not say %q", failure.Message, test.says)
			}
		})
	}
}

// TestLeadershipGoesBack: the controller gives leaderships back by itself, so many
// at a time, and not before the preferred replica has been in the ISR for a while.
func TestLeadershipGoesBack(t *testing.T) {
	t.Parallel()
	const interval, moves = 500 * time.Millisecond, 150
	n := newMesh(t, etcd).start(configured(func(c *Config) { c.BalanceInterval, c.BalanceMoves = interval, moves })).ready()
	a, b := n.storage().register(false), n.storage().register(false)
	n.mesh.plant("t", 400, a, b)
	n.shows("t")
	n.mesh.expire(a.id)
	n.image("fenced", func(image *cluster.Image) bool { node, _ := image.Node(a.id); return node.Fenced })
	if err := a.heartbeat(); err != nil {
		t.Fatal(err)
	}
	live := n.image("live", func(image *cluster.Image) bool { node, _ := image.Node(a.id); return !node.Fenced })
	led := func(image *cluster.Image) (count int) {
		for _, p := range topicOf(t, image, "t").Partitions {
			if p.Leader == a.id {
				count++
			}
		}
		return count
	}
	began := time.Now()
	joined := b.agree(live, "t", a, b)
	if count := led(n.at(joined)); count != 0 {
		t.Fatalf("it leads %d at once", count)
	}
	n.image("some are back", func(image *cluster.Image) bool { return led(image) > 0 })
	if waited := time.Since(began); waited < interval {
		t.Errorf("leadership goes back after %v", waited)
	}
	// One look finds them, and it takes three more to move all.
	all := n.image("all are back", func(image *cluster.Image) bool { return led(image) == 400 })
	if waited := time.Since(began); waited < 3*interval {
		t.Errorf("all are back after %v", waited)
	}
	for _, p := range topicOf(t, all, "t").Partitions {
		if len(p.ISR) != 2 || p.LeaderEpoch != 2 {
			t.Fatalf("partition %+v", p)
		}
	}
}

// TestLowerMinInsyncEmptiesTheELR: no leader hears of a lower min.insync.replicas
// while the ELR still counts on the higher one.
func TestLowerMinInsyncEmptiesTheELR(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start(configured(unbalanced)).ready()
	a, b, c := n.storage().register(false), n.storage().register(false), n.storage().register(false)
	n.mesh.plant("t", 300, a, b, c)
	n.at(a.agree(n.shows("t"), "t", a))
	if p := partition(t, n.view.Image(), "t", 5); !slices.Equal(p.ELR, []cluster.NodeID{b.id, c.id}) {
		t.Fatalf("the ELR of %+v is not what the test is about", p)
	}
	seen := n.watch(func(image *cluster.Image) {
		topic := topicOf(t, image, "t")
		for _, p := range topic.Partitions {
			if topic.Config["min.insync.replicas"] == "1" && len(p.ELR) != 0 {
				t.Fatalf("version %d has the setting and partition %+v", image.Version, p)
			}
		}
	})
	altered := n.alter(&metadatav1.AlterTopicRequest{Name: "t", Config: map[string]string{"min.insync.replicas": "1"}})
	seen(altered.GetVersion())
	for _, p := range altered.GetTopic().GetPartitions() {
		if len(p.GetElr()) != 0 || p.GetPartitionEpoch() != 2 || p.GetLeaderEpoch() != 0 || !slices.Equal(p.GetIsr(), []int32{int32(a.id)}) {
			t.Fatalf("altered to %v", p)
		}
	}
	// Nothing is known of those that left while they were not needed.
	raised := n.alter(&metadatav1.AlterTopicRequest{Name: "t", Config: map[string]string{"min.insync.replicas": "3"}})
	for _, p := range topicOf(t, n.at(raised.GetVersion()), "t").Partitions {
		if len(p.ELR) != 0 || len(p.ISR) != 1 || p.Leader != a.id {
			t.Fatalf("raised to %+v", p)
		}
	}
}

func TestReplicationFactorOfNewTopics(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start(configured(func(c *Config) { c.MaxReplicationFactor = 3 })).ready()
	for live := 1; live <= 4; live++ {
		n.storage().register(false)
		name := fmt.Sprint("of-", live)
		n.create(&metadatav1.CreateTopicRequest{Name: name, Partitions: 12})
		described, err := n.topics.DescribeTopic(t.Context(), &metadatav1.DescribeTopicRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		led, held := map[int32]int{}, map[int32]int{}
		for _, p := range described.GetTopic().GetPartitions() {
			if len(p.GetReplicas()) != min(live, 3) || !slices.Equal(p.GetIsr(), p.GetReplicas()) || len(p.GetElr()) != 0 || p.GetLeaderId() != p.GetReplicas()[0] {
				t.Fatalf("with %d nodes: %v", live, p)
			}
			led[p.GetLeaderId()]++
			for _, id := range p.GetReplicas() {
				held[id]++
			}
		}
		if live == 1 && (len(led) != 1 || len(held) != 1) {
			t.Errorf("with one node: %v lead, %v hold", led, held)
		}
	}
	_, err := n.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "wide", ReplicationFactor: 4})
	if failure := wantReason(t, err, errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR); failure.Message != "replication factor 4 is above what the metadata service allows: use at most 3" {
		t.Errorf("refused with %q", failure.Message)
	}
}
