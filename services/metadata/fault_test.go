package metadata

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/etcdtest"
)

func TestMetadataNodesAreNodes(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start().ready()
	replica := m.start().ready()
	image := n.image("both are live", func(image *cluster.Image) bool { return len(image.Nodes()) == 2 })
	for _, node := range image.Nodes() {
		if node.Role != metadatav1.NodeRole_NODE_ROLE_METADATA || node.Fenced || node.Epoch == 0 || node.Address == "" || time.Since(node.Since) > time.Minute {
			t.Errorf("node %+v", node)
		}
	}
	if image.Controller != 1 {
		t.Errorf("controller is %d", image.Controller)
	}
	replica.stop()
	n.image("the replica is fenced at once", func(image *cluster.Image) bool {
		found, _ := image.Node(2)
		return found.Fenced
	})
}

// TestRestartAfterKill starts a node over the remains of one that could not say
// goodbye: its leases are still there.
func TestRestartAfterKill(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	link := etcd.Link(t)
	killed := m.start(through(link.Endpoint()), configured(func(c *Config) { c.RequestTimeout = time.Second })).ready()
	storage := killed.storage().register(false)
	topic := killed.create(&metadatav1.CreateTopicRequest{Name: "a", Partitions: 200})
	link.Cut()
	killed.stop()
	if m.lease(1) == 0 {
		t.Fatal("the node said goodbye; the test shows nothing")
	}
	start := time.Now()
	n := m.start(in(killed.dir)).ready()
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("ready %v after a kill, with a lease of a minute", took)
	}
	if found, ok := n.view.Image().Node(1); !ok || found.Fenced || len(n.view.Image().Nodes()) != 2 {
		t.Errorf("nodes are %v", n.view.Image().Nodes())
	}
	storage.via = n
	if err := storage.heartbeat(); err != nil {
		t.Errorf("a storage node that outlived it: %v", err)
	}
	if got, _ := n.view.Image().Topic("a"); got == nil || !proto.Equal(got.Proto(), topic) {
		t.Errorf("the topic is %v", got)
	}
	n.create(&metadatav1.CreateTopicRequest{Name: "b"})
}

// TestControllerIsReplaced stops the controller in good order and kills the next
// one; calls go to the replica that stays.
func TestControllerIsReplaced(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	link := etcd.Link(t)
	first := m.start().ready()
	second := m.start(through(link.Endpoint()), configured(func(c *Config) { c.LeaseTTL, c.RequestTimeout = 4*time.Second, time.Second })).ready()
	third := m.start().ready()
	// Forwarded from the replicas to the first.
	third.storage().register(false)
	third.create(&metadatav1.CreateTopicRequest{Name: "a"})
	if !first.controller.Leading() || third.controller.Leading() {
		t.Fatal("the first is not controller")
	}
	first.stop()
	third.image("the second is controller", func(image *cluster.Image) bool { return image.Controller == 2 })
	create := func(name string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; {
			_, err := third.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: name})
			if err == nil || time.Now().After(deadline) {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			switch rpcerr.ReasonOf(err) {
			case errorsv1.Reason_REASON_NOT_CONTROLLER, errorsv1.Reason_REASON_METADATA_UNAVAILABLE:
			default:
				t.Fatal(err)
			}
		}
	}
	create("b")
	link.Cut()
	third.image("the third is controller", func(image *cluster.Image) bool { return image.Controller == 3 })
	create("c")
	if _, ok := second.view.Image().Topic("c"); ok {
		t.Fatal("the second sees what happens behind the cut")
	}

	// The superseded controller, back again, takes calls as a replica.
	link.Mend()
	second.image("it follows", func(image *cluster.Image) bool { return image.Controller == 3 })
	if _, err := second.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "c"}); rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_EXISTS {
		t.Errorf("through the superseded controller: %v", err)
	}
}

// TestForwardedCallsGoNoFurther misleads a node about who is controller.
func TestForwardedCallsGoNoFurther(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	m.start().ready()
	second, third := m.start().ready(), m.start().ready()
	mislead := func(record *catalogv1.ControllerRecord) {
		t.Helper()
		if _, err := m.raw.Do(t.Context(), catalog.Put(m.layout.Controller(), record)); err != nil {
			t.Fatal(err)
		}
		third.image("misled", func(image *cluster.Image) bool { return int32(image.Controller) == record.GetNodeId() })
	}
	create := func() error {
		_, err := third.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "a"})
		return err
	}
	mislead(&catalogv1.ControllerRecord{NodeId: 2, PeerAddress: second.config.PeerListen})
	wantReason(t, create(), errorsv1.Reason_REASON_NOT_CONTROLLER)
	mislead(&catalogv1.ControllerRecord{NodeId: 77, PeerAddress: "127.0.0.1:1"})
	if failure := wantReason(t, create(), errorsv1.Reason_REASON_METADATA_UNAVAILABLE); !strings.Contains(failure.Message, "node 77 at 127.0.0.1:1") {
		t.Errorf("a controller that does not answer: %q", failure.Message)
	}
	mislead(&catalogv1.ControllerRecord{NodeId: 3, PeerAddress: third.config.PeerListen})
	if failure := wantReason(t, create(), errorsv1.Reason_REASON_METADATA_UNAVAILABLE); !strings.Contains(failure.Message, etcd.Endpoint()) {
		t.Errorf("a term of its own that is over: %q", failure.Message)
	}
}

// TestNewControllerCleansUp plants what controllers leave behind that die in the
// middle of creating or deleting a topic.
func TestNewControllerCleansUp(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start().ready()
	storage := n.storage().register(false)
	whole := n.create(&metadatav1.CreateTopicRequest{Name: "whole", Partitions: 3})
	n.stop()

	state := func(i int) clientv3.Op {
		return m.layout.PutPartition(cluster.TopicID{1}, catalog.Partition{PartitionState: rules.NewPartition(int32(i), []cluster.NodeID{storage.id}, nil)})
	}
	halfMade, ops := m.plantOps("half-made", 2500, false)
	for i := range 100 {
		ops = append(ops, m.layout.PutPartition(halfMade, catalog.Partition{PartitionState: rules.NewPartition(int32(i*20), []cluster.NodeID{storage.id}, nil)}))
	}
	empty, emptyOps := m.plantOps("just-begun", 5, false)
	deleted := cluster.TopicID{1}
	ops = append(ops, emptyOps...)
	ops = append(ops, catalog.Put(m.layout.Deleted(deleted), &catalogv1.DeletedTopicRecord{Name: "half-deleted", Deleted: timestamppb.Now()}), state(0), state(1700))
	forgotten := cluster.TopicID{2}
	ops = append(ops, catalog.Put(m.layout.Deleted(forgotten), &catalogv1.DeletedTopicRecord{Name: "long-gone", Deleted: timestamppb.New(time.Now().Add(-1000 * time.Hour))}))
	if _, err := m.raw.Txn(t.Context()).Then(ops...).Commit(); err != nil {
		t.Fatal(err)
	}

	n = m.start(in(n.dir)).ready()
	if _, ok := n.view.Image().Topic("half-made"); ok {
		t.Error("a half-made topic is visible")
	}
	if !n.view.Image().Deleted(deleted) {
		t.Error("a deletion was forgotten")
	}
	for name, id := range map[string]cluster.TopicID{"half-made": halfMade, "just-begun": empty, "half-deleted": deleted} {
		for _, key := range []string{m.layout.Topic(id), strings.TrimSuffix(m.layout.Partition(id, 0), "0000000000"), m.layout.Name(name)} {
			left, err := m.raw.Get(t.Context(), key, clientv3.WithPrefix())
			if err != nil || len(left.Kvs) != 0 {
				t.Errorf("%s: %d keys are left under %s, %v", name, len(left.Kvs), key, err)
			}
		}
	}
	if left, err := m.raw.Get(t.Context(), m.layout.Deleted(forgotten)); err != nil || len(left.Kvs) != 0 {
		t.Errorf("a deletion of long ago is kept: %v, %v", left, err)
	}
	if kept, err := m.raw.Get(t.Context(), m.layout.Deleted(deleted)); err != nil || len(kept.Kvs) != 1 {
		t.Errorf("a recent deletion is not kept: %v, %v", kept, err)
	}
	if got, ok := n.view.Image().Topic("whole"); !ok || !slices.Equal(got.ID[:], whole.GetTopicId()) || len(got.Partitions) != 3 {
		t.Errorf("a topic that was whole is %v", got)
	}
	storage.via = n
	storage.register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "half-made"})
}

// TestWithoutEtcd stops etcd under a running node, and starts it again.
func TestWithoutEtcd(t *testing.T) {
	t.Parallel()
	server := etcdtest.New(t)
	link := server.Link(t)
	n := newMesh(t, server).start(through(link.Endpoint()), configured(func(c *Config) {
		c.RequestTimeout = 500 * time.Millisecond
	})).ready()
	storage := n.storage().register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "a"})
	version := n.view.Image().Version
	// etcd waits for its watchers when it stops.
	link.Cut()
	server.Stop()
	for name, call := range map[string]func() error{
		"CreateTopic": func() error {
			_, err := n.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "b"})
			return err
		},
		"DeleteTopic": func() error {
			_, err := n.topics.DeleteTopic(t.Context(), &metadatav1.DeleteTopicRequest{Name: "a"})
			return err
		},
		"Register": func() error {
			_, err := n.nodes.Register(t.Context(), storage.request(false))
			return err
		},
		"Heartbeat": storage.heartbeat,
	} {
		failure := wantReason(t, call(), errorsv1.Reason_REASON_METADATA_UNAVAILABLE)
		if !strings.Contains(failure.Message, link.Endpoint()) {
			t.Errorf("%s fails with %q, which does not name etcd", name, failure.Message)
		}
	}
	if _, err := n.topics.DescribeTopic(t.Context(), &metadatav1.DescribeTopicRequest{Name: "a"}); err != nil {
		t.Errorf("DescribeTopic: %v", err)
	}
	got, err := n.clusters.GetCluster(t.Context(), &metadatav1.GetClusterRequest{})
	if err != nil || got.GetCluster().GetVersion() < version {
		t.Errorf("GetCluster: %v, %v", got, err)
	}
	if err := n.Ready(t.Context()); err != nil {
		t.Errorf("Ready: %v", err)
	}

	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	link.Mend()
	for deadline := time.Now().Add(20 * time.Second); ; {
		err := storage.heartbeat()
		if err == nil {
			_, err = n.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "b"})
		}
		if err == nil || rpcerr.ReasonOf(err) == errorsv1.Reason_REASON_TOPIC_EXISTS {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("20 s after etcd has come back: %v", err)
		}
	}
	if err := storage.heartbeat(); err != nil {
		t.Errorf("the storage node has to register again: %v", err)
	}
}

// TestCompactionDuringAWatch cuts a replica off, changes and compacts what it
// would have to read, and mends the cut.
func TestCompactionDuringAWatch(t *testing.T) {
	t.Parallel()
	server := etcdtest.New(t)
	m := newMesh(t, server)
	n := m.start().ready()
	link := server.Link(t)
	replica := m.start(through(link.Endpoint())).ready()
	n.storage().register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "before"})
	replica.image("it follows", func(image *cluster.Image) bool {
		_, ok := image.Topic("before")
		return ok
	})
	link.Cut()
	behind := replica.view.Image()
	for i := range 5 {
		n.create(&metadatav1.CreateTopicRequest{Name: fmt.Sprint("during", i)})
	}
	if _, err := n.topics.DeleteTopic(t.Context(), &metadatav1.DeleteTopicRequest{Name: "before"}); err != nil {
		t.Fatal(err)
	}
	now, err := m.raw.Get(t.Context(), m.layout.Cluster())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.raw.Compact(t.Context(), now.Header.GetRevision(), clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if replica.view.Image() != behind {
		t.Fatal("the cut does not hold; the test shows nothing")
	}
	watch, err := replica.clusters.WatchCluster(t.Context(), &metadatav1.WatchClusterRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	link.Mend()
	target := n.view.Image()
	caughtUp := replica.at(target.Version)
	if !proto.Equal(caughtUp.Snapshot(), n.at(caughtUp.Version).Snapshot()) {
		t.Errorf("the replica shows %v, the controller %v", caughtUp.Snapshot(), n.view.Image().Snapshot())
	}
	// Its watchers are taken along, and never back.
	var image *cluster.Image
	for image == nil || image.Version < target.Version {
		response, err := watch.Receive()
		if err != nil {
			t.Fatal(err)
		}
		before := image
		if s := response.GetSnapshot(); s != nil {
			image, err = cluster.FromSnapshot(s)
		} else {
			image, err = image.Apply(response.GetDelta())
		}
		if err != nil {
			t.Fatal(err)
		}
		if before != nil && image.Version <= before.Version {
			t.Errorf("a watcher goes from version %d to %d", before.Version, image.Version)
		}
	}
	n.create(&metadatav1.CreateTopicRequest{Name: "after"})
	replica.image("it follows again", func(image *cluster.Image) bool {
		_, ok := image.Topic("after")
		return ok
	})
}

// TestReplicasAgreeOnVersions compares a node that followed every change with one
// that has just listed the state: after all kinds of changes both must show the
// same under the same version, or else a watcher would wait at one of them for
// what the other has.
func TestReplicasAgreeOnVersions(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start().ready()
	storage := n.storage().register(false)
	other := n.storage().register(false)
	compare := func(after string) {
		t.Helper()
		followed := n.view.Image()
		listed := m.lister().Snapshot()
		if want := followed.Snapshot(); !proto.Equal(listed, want) {
			t.Errorf("after %s: listing shows\n%v\nfollowing shows\n%v", after, listed, want)
		}
	}
	compare("registrations")
	n.create(&metadatav1.CreateTopicRequest{Name: "small", ReplicationFactor: 1})
	compare("a small topic")
	n.create(&metadatav1.CreateTopicRequest{Name: "large", Partitions: 300, ReplicationFactor: 1})
	compare("a large topic")
	if _, err := n.nodes.AllocateProducerIds(t.Context(), storage.producerIDs()); err != nil {
		t.Fatal(err)
	}
	compare("producer ids")
	if _, err := n.topics.DeleteTopic(t.Context(), &metadatav1.DeleteTopicRequest{Name: "large"}); err != nil {
		t.Fatal(err)
	}
	compare("a deletion")
	storage.register(false)
	n.at(storage.version)
	compare("a registration")
	if err := other.deregister(); err != nil {
		t.Fatal(err)
	}
	compare("a deregistration")
	m.expire(storage.id)
	n.image("fenced", func(image *cluster.Image) bool {
		found, _ := image.Node(storage.id)
		return found.Fenced
	})
	compare("a fence")
	if err := storage.heartbeat(); err != nil {
		t.Fatal(err)
	}
	n.image("live", func(image *cluster.Image) bool {
		found, _ := image.Node(storage.id)
		return !found.Fenced && partition(t, image, "small", 0).Leader != cluster.NoNode
	})
	compare("the end of a fence")
}

// lister returns the image of a catalog that has just listed the state, which
// stands still.
func (m *mesh) lister() *cluster.Image {
	m.t.Helper()
	view, stop := m.follow(m.raw)
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	image, err := view.WaitVersion(ctx, 1)
	if err != nil {
		m.t.Fatal(err)
	}
	return image
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start(configured(func(c *Config) { c.NodeID = 7 })).ready()
	id := n.view.Image().ClusterID
	if _, ok := n.view.Image().Node(7); !ok {
		t.Fatalf("nodes are %v", n.view.Image().Nodes())
	}
	file := filepath.Join(n.dir, "metadata", "node.json")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), cluster.TopicID(id).String()) {
		t.Errorf("the directory holds %s", raw)
	}
	refused := func(name, says string, other *mesh, options ...option) {
		t.Helper()
		s := other.start(options...)
		<-s.done
		s.stopped = true
		if s.err == nil || !strings.Contains(s.err.Error(), says) {
			t.Errorf("%s: Run returned %v, which does not say %q", name, s.err, says)
		}
		if err := s.Ready(t.Context()); err == nil || !errors.Is(err, s.err) {
			t.Errorf("%s: Ready returned %v", name, err)
		}
	}
	refused("directory in use", fmt.Sprintf("is in use by process %d", os.Getpid()), m, in(n.dir))
	n.stop()
	refused("another node id", "belongs to node 7, not to node 8", m, in(n.dir), configured(func(c *Config) { c.NodeID = 8 }))
	refused("etcd without a cluster", "restore etcd from a backup", newMesh(t, etcd), in(n.dir))
	foreign := newMesh(t, etcd)
	foreign.start().ready().stop()
	refused("another cluster", "belongs to cluster "+cluster.TopicID(id).String(), foreign, in(n.dir))
	m.start(configured(func(c *Config) { c.NodeID = 9 })).ready()
	refused("a number that is taken", "runs at", m, configured(func(c *Config) { c.NodeID = 9 }))
	for name, damage := range map[string]struct{ content, says string }{
		"newer format":  {`{"formatVersion": 9, "directoryId": "7d444840-9dc0-11d1-b245-5ffdce74fad2"}`, "has format 9, this release knows 1"},
		"no json":       {`{`, "cannot be read"},
		"empty":         {``, "cannot be read"},
		"no directory":  {`{"formatVersion": 1}`, "is damaged"},
		"bad cluster":   {`{"formatVersion": 1, "clusterId": "x", "directoryId": "7d444840-9dc0-11d1-b245-5ffdce74fad2"}`, "is damaged"},
		"negative node": {`{"formatVersion": 1, "nodeId": -1, "directoryId": "7d444840-9dc0-11d1-b245-5ffdce74fad2"}`, "is damaged"},
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "metadata"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "metadata", "node.json"), []byte(damage.content), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(name, damage.says, m, in(dir))
	}
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	again := m.start(in(n.dir)).ready()
	if found, ok := again.view.Image().Node(7); !ok || found.Fenced {
		t.Errorf("node 7 is %+v", found)
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	c := DefaultConfig()
	c.PeerListen = ""
	if err := c.Validate(); err != nil {
		t.Errorf("without a peer address: %v", err)
	}
	err := Config{Listen: ":7070", PeerListen: "x", NodeID: -1, Prefix: "runnel", LeaseTTL: 2500 * time.Millisecond, BalanceInterval: time.Millisecond}.Validate()
	for _, key := range []string{"DataDir", "Advertise", "AdvertisePeer", "NodeID", "Prefix", "LeaseTTL", "RequestTimeout", "RelistInterval", "MaxPartitionsPerTopic", "MaxPartitions", "MaxReplicationFactor", "BalanceInterval", "BalanceMoves", "MaxNodes", "DeletedTopicRetention"} {
		if err == nil || !strings.Contains(err.Error(), key+" ") && !strings.Contains(err.Error(), "set "+key) {
			t.Errorf("%v does not name %s", err, key)
		}
	}
}

// TestInterruptedCreationLeavesNothing takes the term from a controller that is in
// the middle of creating a topic.
func TestInterruptedCreationLeavesNothing(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start().ready()
	storage := n.storage().register(false)
	created := m.raw.Watch(t.Context(), m.layout.Prefix()+"topics/", clientv3.WithPrefix())
	done := make(chan error, 1)
	go func() {
		_, err := n.topics.CreateTopic(context.Background(), &metadatav1.CreateTopicRequest{Name: "large", Partitions: 10_000})
		done <- err
	}()
	<-created
	if _, err := m.raw.Delete(t.Context(), m.layout.Election()+"/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_NOT_CONTROLLER {
		t.Fatalf("the creation ends with %v", err)
	}
	// The next term, of the same node, has cleaned up before it takes calls.
	for deadline := time.Now().Add(20 * time.Second); ; {
		_, err := n.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "large", Partitions: 2})
		if err == nil {
			break
		}
		if reason := rpcerr.ReasonOf(err); reason != errorsv1.Reason_REASON_NOT_CONTROLLER && reason != errorsv1.Reason_REASON_METADATA_UNAVAILABLE || time.Now().After(deadline) {
			t.Fatal(err)
		}
		if err := storage.heartbeat(); err != nil {
			t.Fatal(err)
		}
	}
	left, err := m.raw.Get(t.Context(), m.layout.Prefix()+"partitions/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || left.Count != 2 {
		t.Errorf("%d partitions are there, %v", left.Count, err)
	}
	if topic, ok := n.view.Image().Topic("large"); !ok || len(topic.Partitions) != 2 || len(n.view.Image().Topics()) != 1 {
		t.Errorf("topics are %v", n.view.Image().Topics())
	}
}
