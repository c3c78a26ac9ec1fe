package replica

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const self cluster.NodeID = 1

type node struct {
	t        *testing.T
	host     *partition.Host
	metrics  *prometheus.Registry
	store    *store.Store
	view     *clusterview.View
	replicas *Replicas
	snapshot *metadatav1.ClusterSnapshot
	stop     func()
}

// startNode follows a view from a version on. It publishes nothing.
func startNode(t *testing.T, dir string, from int64) *node {
	t.Helper()
	config := store.DefaultConfig()
	config.Dir = dir
	st, err := store.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	n := &node{
		t: t, store: st, view: clusterview.New(logger, nil),
		snapshot: &metadatav1.ClusterSnapshot{ClusterId: make([]byte, 16), Nodes: []*metadatav1.Node{{NodeId: 2, Address: "other:7070"}}},
	}
	n.metrics = prometheus.NewRegistry()
	partitions := partition.DefaultConfig()
	partitions.RetentionEvery = 20 * time.Millisecond
	n.host = partition.NewHost(partitions, func(id cluster.NodeID) string { return Address(n.view, id) }, n.metrics)
	n.host.SetSelf(self)
	n.replicas = New(n.host, n.view, logger, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.replicas.Run(ctx, st, from) }()
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.replicas.Close()
		if err := st.Close(1); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(n.stop)
	return n
}

// publish makes the snapshot known under a version.
func (n *node) publish(version int64) {
	n.t.Helper()
	n.snapshot.Version = version
	image, err := cluster.FromSnapshot(proto.CloneOf(n.snapshot))
	if err != nil {
		n.t.Fatal(err)
	}
	n.view.Publish(image, nil)
}

// act publishes and waits until the node has acted.
func (n *node) act(version int64) {
	n.t.Helper()
	n.publish(version)
	if err := n.replicas.WaitApplied(n.t.Context(), version); err != nil {
		n.t.Fatal(err)
	}
}

func newTopic(name string, leaders ...int32) *metadatav1.Topic {
	id := uuid.New()
	t := &metadatav1.Topic{TopicId: id[:], Name: name, Config: map[string]string{}}
	addPartitions(t, leaders...)
	return t
}

func addPartitions(t *metadatav1.Topic, leaders ...int32) {
	for _, leader := range leaders {
		t.Partitions = append(t.Partitions, &metadatav1.Partition{
			Partition: t.PartitionCount, LeaderId: leader, Replicas: []int32{leader}, Isr: []int32{leader}, LastLeaderId: -1,
		})
		t.PartitionCount++
	}
}

func (n *node) partition(name string, index int32) (*partition.Partition, error) {
	return n.replicas.Partition(n.t.Context(), name, nil, index)
}

func (n *node) mustHave(name string, index int32, role rules.Role) *partition.Partition {
	n.t.Helper()
	p, err := n.partition(name, index)
	if err != nil {
		n.t.Fatal(err)
	}
	if got, _ := p.Role(); got != role {
		n.t.Fatalf("partition %d of %s: %s, want %s", index, name, got, role)
	}
	return p
}

func wantReason(t *testing.T, err error, reason errorsv1.Reason) {
	t.Helper()
	if rpcerr.ReasonOf(err) != reason {
		t.Fatalf("got %v, want %s", err, reason)
	}
}

type outcome chan partition.Result

func (o outcome) Complete(r partition.Result) { o <- r }

func batch(t *testing.T) []byte {
	t.Helper()
	var b recordbatch.Builder
	if err := b.Append(nil, []byte("v"), nil, 1); err != nil {
		t.Fatal(err)
	}
	out, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func write(t *testing.T, p *partition.Partition) partition.Result {
	t.Helper()
	done := make(outcome, 1)
	if err := p.Append(partition.Append{
		Batch: batch(t), Acks: logv1.Acks_ACKS_ALL, Deadline: time.Now().Add(time.Minute), LeaderEpoch: rules.NoEpoch,
	}, done); err != nil {
		t.Fatal(err)
	}
	return <-done
}

func TestRolesFollowTheCluster(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir(), 0)
	_, err := n.partition("orders", 0)
	wantReason(t, err, errorsv1.Reason_REASON_NO_LEADER)

	topic := newTopic("orders", 1, 2)
	topic.Partitions[1].Replicas = []int32{2, 1}
	topic.Partitions[1].Isr = []int32{2, 1}
	n.snapshot.Topics = []*metadatav1.Topic{topic, newTopic("elsewhere", 2)}
	n.act(1)
	leader := n.mustHave("orders", 0, rules.Leading)
	n.mustHave("orders", 1, rules.Following)
	_, err = n.partition("elsewhere", 0)
	wantReason(t, err, errorsv1.Reason_REASON_NOT_LEADER)
	_, err = n.partition("orders", 2)
	wantReason(t, err, errorsv1.Reason_REASON_PARTITION_NOT_FOUND)
	_, err = n.partition("nowhere", 0)
	wantReason(t, err, errorsv1.Reason_REASON_TOPIC_NOT_FOUND)

	topic.Partitions[0].LeaderId, topic.Partitions[0].LeaderEpoch, topic.Partitions[0].PartitionEpoch = -1, 1, 1
	topic.Partitions[1].LeaderId, topic.Partitions[1].LeaderEpoch, topic.Partitions[1].PartitionEpoch = 1, 1, 1
	addPartitions(topic, 1)
	n.act(2)
	if n.mustHave("orders", 0, rules.Offline) != leader {
		t.Error("another object stands for the same partition")
	}
	n.mustHave("orders", 1, rules.Leading)
	n.mustHave("orders", 2, rules.Leading)
}

// A request that comes right after the topic does finds it.
func TestRequestsWaitForTheViewToBeActedOn(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir(), 0)
	n.act(1)
	for version := int64(2); version < 50; version++ {
		n.snapshot.Topics = append(n.snapshot.Topics, newTopic(uuid.NewString(), 1))
		n.publish(version)
		if _, err := n.partition(n.snapshot.Topics[len(n.snapshot.Topics)-1].GetName(), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// What the cluster said of an earlier process of the node must not be acted on.
func TestOldVersionsAreIgnored(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir(), 5)
	topic := newTopic("orders", 1)
	n.snapshot.Topics = []*metadatav1.Topic{topic}
	n.publish(4)
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := n.replicas.WaitApplied(soon, 4); err == nil {
		t.Error("acted on an old version")
	}
	_, err := n.partition("orders", 0)
	wantReason(t, err, errorsv1.Reason_REASON_NO_LEADER)
	topic.Partitions[0].LeaderEpoch = 1
	n.act(5)
	if _, epoch := n.mustHave("orders", 0, rules.Leading).Role(); epoch != 1 {
		t.Errorf("leads in epoch %d, want 1", epoch)
	}
}

func TestSettingsFollowTheCluster(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir(), 0)
	topic := newTopic("orders", 1)
	n.snapshot.Topics = []*metadatav1.Topic{topic}
	n.act(1)
	p := n.mustHave("orders", 0, rules.Leading)
	topic.Config[rules.MaxMessageBytes] = "5000"
	n.act(2)
	if got := p.Topic().Config().MaxMessageBytes; got != 5000 {
		t.Errorf("max.message.bytes is %d", got)
	}
	// A setting of a later release leaves the others, and the partition served; but
	// then nothing is removed.
	topic.Config["future.setting"] = "1"
	n.act(3)
	write(t, n.mustHave("orders", 0, rules.Leading))
	if got := p.Topic().Config(); got.MaxMessageBytes != 5000 || got.RetentionMs != rules.Unlimited {
		t.Errorf("beside an unknown setting: %+v", got)
	}
}

// Partitions are deleted when the cluster says so, and only then: not because a
// topic, or the node's part in it, is missing in an image.
func TestDeletionIsExplicit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := startNode(t, dir, 0)
	kept, deleted, later := newTopic("kept", 1), newTopic("deleted", 1), newTopic("later", 1)
	n.snapshot.Topics = []*metadatav1.Topic{kept, deleted, later}
	n.act(1)
	for _, name := range []string{"kept", "deleted", "later"} {
		write(t, n.mustHave(name, 0, rules.Leading))
	}
	gone := n.mustHave("deleted", 0, rules.Leading)
	n.snapshot.Topics = nil
	n.snapshot.DeletedTopicIds = [][]byte{deleted.GetTopicId()}
	n.act(2)
	_, err := gone.Bounds(rules.NoEpoch)
	wantReason(t, err, errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	n.stop()

	states := func(n *node) map[string]bool {
		out := map[string]bool{}
		for _, topic := range []*metadatav1.Topic{kept, deleted, later} {
			state, _ := n.store.Log(store.PartitionID{Topic: cluster.TopicID(topic.GetTopicId())}).Loaded()
			out[topic.GetName()] = state.Deleted
		}
		return out
	}
	// The second deletion happens while the node is down.
	n = startNode(t, dir, 0)
	if got := states(n); got["kept"] || !got["deleted"] || got["later"] {
		t.Fatalf("deleted after the first image: %v", got)
	}
	n.snapshot.DeletedTopicIds = [][]byte{deleted.GetTopicId(), later.GetTopicId()}
	n.act(3)
	n.stop()
	n = startNode(t, dir, 0)
	if got := states(n); got["kept"] || !got["deleted"] || !got["later"] {
		t.Fatalf("deleted after the second image: %v", got)
	}
	// The topic that was missing for a while is as it was.
	kept.Partitions[0].LeaderEpoch = 1
	n.snapshot.Topics = []*metadatav1.Topic{kept}
	n.act(4)
	if r := write(t, n.mustHave("kept", 0, rules.Leading)); r.BaseOffset != 1 {
		t.Errorf("append to the topic that was missing: %+v", r)
	}
}

// After the loss of a volume, which may have held all that was known of them,
// partitions that the cluster has given to this node take no records though the
// store knows nothing of them; those of other nodes, and new ones, are not
// concerned.
func TestUnknownPartitionsFailAfterALoss(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := startNode(t, dir, 0)
	topic := newTopic("orders", 1, 1)
	n.snapshot.Topics = []*metadatav1.Topic{topic}
	n.act(1)
	write(t, n.mustHave("orders", 0, rules.Leading))
	n.stop()
	volumes, err := filepath.Glob(filepath.Join(dir, "volumes", "*-000001"))
	if err != nil || len(volumes) != 1 {
		t.Fatalf("the volumes are %v, %v", volumes, err)
	}
	if err := os.RemoveAll(volumes[0]); err != nil {
		t.Fatal(err)
	}
	// What failed has failed for good: the second start finds all settled.
	for version := int64(2); version < 4; version++ {
		n = startNode(t, dir, 0)
		for _, p := range topic.Partitions {
			p.LeaderEpoch++
		}
		n.snapshot.Topics = []*metadatav1.Topic{topic}
		n.act(version)
		for index := range int32(2) {
			err := n.mustHave("orders", index, rules.Leading).Append(partition.Append{
				Batch: batch(t), Acks: logv1.Acks_ACKS_ALL, Deadline: time.Now().Add(time.Minute), LeaderEpoch: rules.NoEpoch,
			}, make(outcome, 1))
			wantReason(t, err, errorsv1.Reason_REASON_CORRUPT_LOG)
		}
		fresh := newTopic(fmt.Sprint("fresh-", version), 1)
		n.snapshot.Topics = append(n.snapshot.Topics, fresh)
		n.act(version + 10)
		write(t, n.mustHave(fresh.GetName(), 0, rules.Leading))
		n.stop()
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := startNode(t, dir, 0)
	topic := newTopic("orders", 1)
	n.snapshot.Topics = []*metadatav1.Topic{topic}
	n.act(1)
	p := n.mustHave("orders", 0, rules.Leading)
	write(t, p)
	n.stop()
	_, err := n.partition("orders", 0)
	wantReason(t, err, errorsv1.Reason_REASON_DRAINING)
	_, err = p.Bounds(rules.NoEpoch)
	wantReason(t, err, errorsv1.Reason_REASON_DRAINING)
	wantReason(t, n.replicas.WaitApplied(t.Context(), 9), errorsv1.Reason_REASON_DRAINING)
	n = startNode(t, dir, 0)
	state, _ := n.store.Log(store.PartitionID{Topic: cluster.TopicID(topic.GetTopicId())}).Loaded()
	if state.HighWatermark != 1 {
		t.Errorf("high watermark %d after a stop in good order, want 1", state.HighWatermark)
	}
}
