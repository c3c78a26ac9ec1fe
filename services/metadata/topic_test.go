package metadata

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
)

func TestTopicLifecycle(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	node := n.storage().register(false)
	ctx := t.Context()

	checked, err := n.topics.CreateTopic(ctx, &metadatav1.CreateTopicRequest{Name: "orders", Partitions: 3, ValidateOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := checked.GetTopic(); len(got.GetTopicId()) != 0 || got.GetPartitionCount() != 3 || len(got.GetPartitions()) != 3 {
		t.Errorf("validation returns %v", got)
	}
	if _, err := n.topics.DescribeTopic(ctx, &metadatav1.DescribeTopicRequest{Name: "orders"}); err == nil {
		t.Fatal("validation has created the topic")
	}

	created := n.create(&metadatav1.CreateTopicRequest{Name: "orders", Partitions: 3, Config: map[string]string{"retention.ms": "1000"}})
	// Usable through this node at once.
	described, err := n.topics.DescribeTopic(ctx, &metadatav1.DescribeTopicRequest{Name: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(described.GetTopic(), created) {
		t.Errorf("created as %v, described as %v", created, described.GetTopic())
	}
	for i, p := range created.GetPartitions() {
		want := &metadatav1.Partition{Partition: int32(i), LeaderId: int32(node.id), Replicas: []int32{int32(node.id)}, Isr: []int32{int32(node.id)}, LastLeaderId: -1}
		if !proto.Equal(p, want) {
			t.Errorf("partition %d is %v", i, p)
		}
	}
	var names []string
	for _, e := range described.GetConfig() {
		names = append(names, e.GetName())
		if own := e.GetName() == "retention.ms"; e.GetIsDefault() == own || own && e.GetValue() != "1000" || e.GetDocumentation() == "" {
			t.Errorf("setting %v", e)
		}
	}
	if !slices.IsSorted(names) || len(names) != len(rules.TopicConfigEntries(nil)) {
		t.Errorf("settings are %v", names)
	}
	_, err = n.topics.CreateTopic(ctx, &metadatav1.CreateTopicRequest{Name: "orders"})
	wantReason(t, err, errorsv1.Reason_REASON_TOPIC_EXISTS)

	if _, err := n.topics.DeleteTopic(ctx, &metadatav1.DeleteTopicRequest{Name: "orders"}); err != nil {
		t.Fatal(err)
	}
	_, err = n.topics.DescribeTopic(ctx, &metadatav1.DescribeTopicRequest{Name: "orders"})
	wantReason(t, err, errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	_, err = n.topics.DeleteTopic(ctx, &metadatav1.DeleteTopicRequest{Name: "orders"})
	wantReason(t, err, errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	if !n.view.Image().Deleted(cluster.TopicID(created.GetTopicId())) {
		t.Error("the deletion is not in the image")
	}
	// Nothing of it stays in etcd but the record of its deletion.
	kept, err := n.mesh.raw.Get(ctx, n.mesh.layout.Partition(cluster.TopicID(created.GetTopicId()), 0))
	if err != nil || len(kept.Kvs) != 0 {
		t.Errorf("partitions are left: %v, %v", kept, err)
	}
	if again := n.create(&metadatav1.CreateTopicRequest{Name: "orders"}); string(again.GetTopicId()) == string(created.GetTopicId()) {
		t.Error("a topic that is created again has the same id")
	}
}

func TestCreateTopicRefuses(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start(configured(func(c *Config) { c.MaxPartitions = 20 })).ready()
	_, err := n.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "a"})
	if failure := wantReason(t, err, errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR); !strings.Contains(failure.Message, "there are 0") {
		t.Errorf("without storage nodes: %q", failure.Message)
	}
	n.storage().register(false)
	for _, test := range []struct {
		name string
		req  *metadatav1.CreateTopicRequest
		want errorsv1.Reason
		says string
	}{
		{"no name", &metadatav1.CreateTopicRequest{}, errorsv1.Reason_REASON_INVALID_TOPIC_NAME, "needs a name"},
		{"dot", &metadatav1.CreateTopicRequest{Name: "."}, errorsv1.Reason_REASON_INVALID_TOPIC_NAME, `"."`},
		{"long name", &metadatav1.CreateTopicRequest{Name: strings.Repeat("x", 250)}, errorsv1.Reason_REASON_INVALID_TOPIC_NAME, "250 bytes"},
		{"slash", &metadatav1.CreateTopicRequest{Name: "a/b"}, errorsv1.Reason_REASON_INVALID_TOPIC_NAME, "a-z, A-Z"},
		{"internal", &metadatav1.CreateTopicRequest{Name: "__offsets"}, errorsv1.Reason_REASON_INVALID_TOPIC_NAME, "reserved"},
		{"negative partitions", &metadatav1.CreateTopicRequest{Name: "a", Partitions: -1}, errorsv1.Reason_REASON_INVALID_PARTITIONS, "1 to 10000"},
		{"too many partitions", &metadatav1.CreateTopicRequest{Name: "a", Partitions: 10_001}, errorsv1.Reason_REASON_INVALID_PARTITIONS, "1 to 10000"},
		{"negative factor", &metadatav1.CreateTopicRequest{Name: "a", ReplicationFactor: -1}, errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR, "use 1 to"},
		{"factor above live nodes", &metadatav1.CreateTopicRequest{Name: "a", ReplicationFactor: 2}, errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR, "above the number of live storage nodes, which is 1"},
		{"unknown setting", &metadatav1.CreateTopicRequest{Name: "a", Config: map[string]string{"x": "1"}}, errorsv1.Reason_REASON_INVALID_CONFIG, "retention.ms"},
		{"senseless setting", &metadatav1.CreateTopicRequest{Name: "a", Config: map[string]string{"retention.ms": "-5"}}, errorsv1.Reason_REASON_INVALID_CONFIG, "or -1 for no limit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, only := range []bool{true, false} {
				test.req.ValidateOnly = only
				_, err := n.topics.CreateTopic(t.Context(), test.req)
				if failure := wantReason(t, err, test.want); !strings.Contains(failure.Message, test.says) {
					t.Errorf("refused with %q, which does not say %q", failure.Message, test.says)
				}
			}
		})
	}
	n.create(&metadatav1.CreateTopicRequest{Name: "fits", Partitions: 15})
	n.create(&metadatav1.CreateTopicRequest{Name: "fits-exactly", Partitions: 5})
	_, err = n.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "a"})
	if failure := wantReason(t, err, errorsv1.Reason_REASON_LIMIT_REACHED); !strings.Contains(failure.Message, "has 20 partitions and may have 20") {
		t.Errorf("above the cluster's limit: %q", failure.Message)
	}
	_, err = n.topics.DeleteTopic(t.Context(), &metadatav1.DeleteTopicRequest{Name: "__offsets"})
	wantReason(t, err, errorsv1.Reason_REASON_INTERNAL_TOPIC)
}

// alter changes settings through a node, and returns what they are then.
func (n *member) alter(req *metadatav1.AlterTopicRequest) *metadatav1.AlterTopicResponse {
	n.mesh.t.Helper()
	response, err := n.topics.AlterTopic(n.mesh.t.Context(), req)
	if err != nil {
		n.mesh.t.Fatal(err)
	}
	return response
}

func TestAlterTopic(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	first, second := m.start().ready(), m.start().ready()
	first.storage().register(false)
	created := first.create(&metadatav1.CreateTopicRequest{Name: "orders", Partitions: 3, Config: map[string]string{"retention.ms": "1000", "durability": "replicated"}})
	last := first.view.Image().Version
	// One of the two forwards.
	for i, n := range []*member{first, second} {
		value := fmt.Sprint(5000 + i)
		// Nothing else writes here: a view that is up to date stays at its version.
		before := n.at(last).Version
		checked := n.alter(&metadatav1.AlterTopicRequest{Name: "orders", Config: map[string]string{"retention.ms": value}, ValidateOnly: true})
		if got := checked.GetTopic().GetConfig(); got["retention.ms"] != value || checked.GetVersion() != 0 || n.view.Image().Version != before {
			t.Errorf("validation returns %v and leads from version %d to %d", checked, before, n.view.Image().Version)
		}
		altered := n.alter(&metadatav1.AlterTopicRequest{Name: "orders", Config: map[string]string{"retention.ms": value, "retention.bytes": "7"}, Unset: []string{"durability"}})
		want := proto.CloneOf(created)
		want.Config = map[string]string{"retention.ms": value, "retention.bytes": "7"}
		if !proto.Equal(altered.GetTopic(), want) || altered.GetVersion() <= before {
			t.Errorf("altered to %v after version %d, want %v", altered, before, want)
		}
		last = altered.GetVersion()
		// This node shows it at once, and in the same words.
		described, err := n.topics.DescribeTopic(t.Context(), &metadatav1.DescribeTopicRequest{Name: "orders"})
		if err != nil || !proto.Equal(described.GetTopic(), want) {
			t.Errorf("described as %v, %v", described.GetTopic(), err)
		}
		// To say it again changes nothing.
		again := n.alter(&metadatav1.AlterTopicRequest{Name: "orders", Config: map[string]string{"retention.ms": value}})
		if !proto.Equal(again.GetTopic(), want) || again.GetVersion() != altered.GetVersion() {
			t.Errorf("the second time altered to %v", again)
		}
	}
	// What stands in etcd is what a node that comes later reads.
	third := m.start().ready()
	if topic, _ := third.view.Image().Topic("orders"); topic == nil || topic.Config["retention.ms"] != "5001" || len(topic.Config) != 2 || len(topic.Partitions) != 3 {
		t.Errorf("a new node finds %+v", topic)
	}
}

func TestAlterTopicRefuses(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	n.storage().register(false)
	created := n.create(&metadatav1.CreateTopicRequest{Name: "a", Config: map[string]string{"retention.ms": "5"}})
	config := func(pairs ...string) map[string]string {
		m := make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	for _, test := range []struct {
		name string
		req  *metadatav1.AlterTopicRequest
		want errorsv1.Reason
		says string
	}{
		{"no such topic", &metadatav1.AlterTopicRequest{Name: "b", Config: config("retention.ms", "6")}, errorsv1.Reason_REASON_TOPIC_NOT_FOUND, `"b"`},
		{"no name", &metadatav1.AlterTopicRequest{Config: config("retention.ms", "6")}, errorsv1.Reason_REASON_TOPIC_NOT_FOUND, `""`},
		{"internal", &metadatav1.AlterTopicRequest{Name: "__offsets", Config: config("retention.ms", "6")}, errorsv1.Reason_REASON_INTERNAL_TOPIC, "__offsets"},
		{"nothing to change", &metadatav1.AlterTopicRequest{Name: "a"}, errorsv1.Reason_REASON_INVALID_CONFIG, "names no setting"},
		{"unknown setting", &metadatav1.AlterTopicRequest{Name: "a", Config: config("retention.ms", "6", "x", "1")}, errorsv1.Reason_REASON_INVALID_CONFIG, "retention.ms"},
		{"senseless setting", &metadatav1.AlterTopicRequest{Name: "a", Config: config("retention.ms", "0")}, errorsv1.Reason_REASON_INVALID_CONFIG, "or -1 for no limit"},
		{"set and unset", &metadatav1.AlterTopicRequest{Name: "a", Config: config("retention.ms", "6"), Unset: []string{"retention.ms"}}, errorsv1.Reason_REASON_INVALID_CONFIG, "both"},
		{"unset unknown", &metadatav1.AlterTopicRequest{Name: "a", Unset: []string{"x"}}, errorsv1.Reason_REASON_INVALID_CONFIG, "cannot be unset"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, only := range []bool{true, false} {
				test.req.ValidateOnly = only
				_, err := n.topics.AlterTopic(t.Context(), test.req)
				if failure := wantReason(t, err, test.want); !strings.Contains(failure.Message, test.says) {
					t.Errorf("refused with %q, which does not say %q", failure.Message, test.says)
				}
			}
		})
	}
	if described, err := n.topics.DescribeTopic(t.Context(), &metadatav1.DescribeTopicRequest{Name: "a"}); err != nil || !proto.Equal(described.GetTopic(), created) {
		t.Errorf("after refusals the topic is %v, %v", described.GetTopic(), err)
	}
	if _, err := n.topics.DeleteTopic(t.Context(), &metadatav1.DeleteTopicRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	_, err := n.topics.AlterTopic(t.Context(), &metadatav1.AlterTopicRequest{Name: "a", Config: config("retention.ms", "6")})
	wantReason(t, err, errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
}

// TestAlterTopicTogether: changes of different settings at the same time, through
// different nodes and past them, all hold.
func TestAlterTopicTogether(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	members := []*member{m.start().ready(), m.start().ready()}
	members[0].storage().register(false)
	topic := members[0].create(&metadatav1.CreateTopicRequest{Name: "a"})
	settings := map[string]string{"retention.ms": "5", "retention.bytes": "6", "max.message.bytes": "777", "min.insync.replicas": "3", "durability": "replicated"}
	errs := make(chan error, len(settings))
	turn := 0
	for name, value := range settings {
		n := members[turn%2]
		turn++
		go func() {
			_, err := n.topics.AlterTopic(t.Context(), &metadatav1.AlterTopicRequest{Name: "a", Config: map[string]string{name: value}})
			errs <- err
		}()
	}
	for range settings {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	members[0].image("all settings", func(image *cluster.Image) bool {
		now, _ := image.Topic("a")
		return maps.Equal(now.Config, settings)
	})
	// Somebody counts up in etcd, past the controller. No count may be lost to a
	// change that goes by what it read before.
	const counts = 60
	key := m.layout.Topic(cluster.TopicID(topic.GetTopicId()))
	done := make(chan error, 1)
	go func() { done <- m.countUp(t.Context(), key, counts) }()
	var err error
	for i, counting := 0, true; counting; i++ {
		select {
		case err = <-done:
			counting = false
		default:
			_, failed := members[i%2].topics.AlterTopic(t.Context(), &metadatav1.AlterTopicRequest{Name: "a", Config: map[string]string{"retention.bytes": fmt.Sprint(i + 1)}})
			if failed != nil {
				// Whoever always comes second is told to try again.
				wantReason(t, failed, errorsv1.Reason_REASON_METADATA_UNAVAILABLE)
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	altered := members[0].alter(&metadatav1.AlterTopicRequest{Name: "a", Unset: []string{"retention.bytes"}})
	if got := altered.GetTopic().GetConfig()["retention.ms"]; got != fmt.Sprint(5+counts) {
		t.Errorf("%d counts from 5 lead to %s", counts, got)
	}
}

// countUp adds 1 to retention.ms in a topic's record so many times.
func (m *mesh) countUp(ctx context.Context, key string, times int) error {
	for n := 0; n < times; {
		found, err := m.raw.Get(ctx, key)
		if err != nil {
			return err
		}
		record := &catalogv1.TopicRecord{}
		if err := proto.Unmarshal(found.Kvs[0].Value, record); err != nil {
			return err
		}
		value, err := strconv.Atoi(record.GetConfig()["retention.ms"])
		if err != nil {
			return err
		}
		record.Config["retention.ms"] = strconv.Itoa(value + 1)
		response, err := m.raw.Txn(ctx).If(catalog.Unchanged(key, found.Kvs[0].ModRevision)).Then(catalog.Put(key, record)).Commit()
		if err != nil {
			return err
		}
		if response.Succeeded {
			n++
		}
	}
	return nil
}

func TestListTopics(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	n.storage().register(false)
	var want []string
	for i := range 7 {
		want = append(want, fmt.Sprint("topic", i))
		n.create(&metadatav1.CreateTopicRequest{Name: want[i], Partitions: 2})
	}
	var got []string
	req := &metadatav1.ListTopicsRequest{PageSize: 3}
	for pages := 1; ; pages++ {
		page, err := n.topics.ListTopics(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, topic := range page.GetTopics() {
			got = append(got, topic.GetName())
			if topic.GetPartitionCount() != 2 || len(topic.GetPartitions()) != 0 {
				t.Errorf("listed as %v", topic)
			}
		}
		if pages == 1 {
			// What the next page begins after may be gone by then.
			if _, err := n.topics.DeleteTopic(t.Context(), &metadatav1.DeleteTopicRequest{Name: "topic2"}); err != nil {
				t.Fatal(err)
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %v", got)
	}
	for _, bad := range []*metadatav1.ListTopicsRequest{{PageSize: -1}, {PageSize: 1001}, {PageToken: strings.Repeat("x", 250)}} {
		_, err := n.topics.ListTopics(t.Context(), bad)
		wantReason(t, err, errorsv1.Reason_REASON_INVALID_REQUEST)
	}
}

// TestLargeTopicAppearsWhole creates a topic that takes many transactions, under
// the eyes of a watcher.
func TestLargeTopicAppearsWhole(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	for range 3 {
		n.storage().register(false)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := n.clusters.WatchCluster(ctx, &metadatav1.WatchClusterRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	if _, err := watch.Receive(); err != nil {
		t.Fatal(err)
	}
	topic := n.create(&metadatav1.CreateTopicRequest{Name: "large", Partitions: 1000})
	response, err := watch.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if delta := response.GetDelta(); len(delta.GetTopics()) != 1 || len(delta.GetTopics()[0].GetPartitions()) != 1000 || len(delta.GetNodes()) != 0 {
		t.Fatalf("the first that is seen of it are %d topics", len(delta.GetTopics()))
	}
	led := map[int32]int{}
	for _, p := range topic.GetPartitions() {
		led[p.GetLeaderId()]++
	}
	for id, count := range led {
		if count < 333 || count > 334 {
			t.Errorf("node %d leads %d partitions", id, count)
		}
	}
}

// TestChangeSendsADelta watches a cluster of some size over the RPC, and weighs
// what it is sent for one change.
func TestChangeSendsADelta(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	node := n.storage().register(false)
	for i := range 20 {
		n.create(&metadatav1.CreateTopicRequest{Name: fmt.Sprint("topic", i), Partitions: 100})
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := n.clusters.WatchCluster(ctx, &metadatav1.WatchClusterRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	receive := func() *metadatav1.WatchClusterResponse {
		t.Helper()
		response, err := watch.Receive()
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	first := receive()
	if len(first.GetSnapshot().GetTopics()) != 20 || proto.Size(first) < 20*100*10 {
		t.Fatalf("the snapshot has %d topics and %d bytes", len(first.GetSnapshot().GetTopics()), proto.Size(first))
	}
	image, err := cluster.FromSnapshot(first.GetSnapshot())
	if err != nil {
		t.Fatal(err)
	}
	delta := func(what string) *metadatav1.ClusterDelta {
		t.Helper()
		response := receive()
		if response.GetDelta() == nil {
			t.Fatalf("%s sends %v", what, response)
		}
		if size := proto.Size(response); size > 200 {
			t.Errorf("%s sends %d bytes", what, size)
		}
		if image, err = image.Apply(response.GetDelta()); err != nil {
			t.Fatal(err)
		}
		return response.GetDelta()
	}
	n.create(&metadatav1.CreateTopicRequest{Name: "another"})
	if d := delta("a new topic"); len(d.GetTopics()) != 1 || d.GetTopics()[0].GetName() != "another" || len(d.GetNodes()) != 0 {
		t.Errorf("a new topic sends %v", d)
	}
	n.alter(&metadatav1.AlterTopicRequest{Name: "topic8", Config: map[string]string{"retention.ms": "5"}})
	if d := delta("a changed setting"); len(d.GetTopics()) != 1 || d.GetTopics()[0].GetConfig()["retention.ms"] != "5" || len(d.GetTopics()[0].GetPartitions()) != 0 {
		t.Errorf("a changed setting sends %v", d)
	}
	if topic, _ := image.Topic("topic8"); len(topic.Partitions) != 100 || topic.Partitions[99].Leader != node.id {
		t.Errorf("a changed setting leaves %+v", topic)
	}
	if _, err := n.topics.DeleteTopic(t.Context(), &metadatav1.DeleteTopicRequest{Name: "topic7"}); err != nil {
		t.Fatal(err)
	}
	if d := delta("a deletion"); len(d.GetRemovedTopicIds()) != 1 || len(d.GetTopics()) != 0 {
		t.Errorf("a deletion sends %v", d)
	}
	n.mesh.plant("planted", 1, node)
	delta("a planted topic")
	if !proto.Equal(image.Snapshot(), n.view.Image().Snapshot()) {
		t.Error("the deltas lead to another image")
	}
}

// plant writes a topic whose partitions have replicas on the nodes, as the
// controller would if it could.
func (m *mesh) plant(name string, partitions int, nodes ...*storage) cluster.TopicID {
	m.t.Helper()
	ids, states := []cluster.NodeID(nil), rules.Nodes{}
	for _, n := range nodes {
		ids = append(ids, n.id)
		states[n.id] = rules.NodeState{Epoch: n.epoch, Live: true}
	}
	id, first := m.plantOps(name, partitions, true)
	var ops []clientv3.Op
	for i := range partitions {
		ops = append(ops, m.layout.PutPartition(id, catalog.Partition{PartitionState: rules.NewPartition(int32(i), ids, states)}))
	}
	// Partitions without a topic would be swept up, and a topic is not seen before it
	// has all of them.
	for _, batch := range append([][]clientv3.Op{first}, slices.Collect(slices.Chunk(ops, 100))...) {
		if _, err := m.raw.Txn(context.Background()).Then(batch...).Commit(); err != nil {
			m.t.Fatal(err)
		}
	}
	return id
}
