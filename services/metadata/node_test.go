package metadata

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// partition returns a partition of a topic as an image shows it.
func partition(t testing.TB, image *cluster.Image, topic string, index int) cluster.Partition {
	t.Helper()
	found, ok := image.Topic(topic)
	if !ok || index >= len(found.Partitions) {
		t.Fatalf("the image has no partition %d of topic %q", index, topic)
	}
	return found.Partitions[index]
}

// at returns the node's image, which is not older than a version.
func (n *member) at(version int64) *cluster.Image {
	n.mesh.t.Helper()
	return n.image("version", func(image *cluster.Image) bool { return image.Version >= version })
}

func TestRegistrationIsANewLeadership(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	node := n.storage().register(false)
	other := n.storage().register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "a", Partitions: 400})
	before := n.view.Image()

	first := node.epoch
	node.register(true)
	image := n.at(node.version)
	if got, _ := image.Node(node.id); got.Epoch != node.epoch || got.Fenced || node.epoch <= first {
		t.Errorf("registered again as %+v", got)
	}
	for i := range 400 {
		was, is := partition(t, before, "a", i), partition(t, image, "a", i)
		raised := is.LeaderEpoch - was.LeaderEpoch
		if is.Leader != was.Leader || is.Leader == node.id && raised != 1 || is.Leader == other.id && raised != 0 {
			t.Errorf("partition %d went from %+v to %+v", i, was, is)
		}
	}
	if err := node.heartbeat(); err != nil {
		t.Errorf("the new process: %v", err)
	}
	node.epoch = first
	wantReason(t, node.heartbeat(), errorsv1.Reason_REASON_STALE_NODE_EPOCH)
	wantReason(t, node.deregister(), errorsv1.Reason_REASON_STALE_NODE_EPOCH)
}

// TestVersionOfRegistrationShowsNoDeadLeaderships registers a node again and again:
// at the version that it is answered, all of many transactions later, no
// leadership of an earlier process is left.
func TestVersionOfRegistrationShowsNoDeadLeaderships(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	node := n.storage().register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "a", Partitions: 500})
	for range 3 {
		before := n.view.Image()
		node.register(false)
		image := n.at(node.version)
		for i := range 500 {
			if was, is := partition(t, before, "a", i), partition(t, image, "a", i); is.LeaderEpoch == was.LeaderEpoch || is.Leader != node.id {
				t.Fatalf("partition %d is %+v at version %d", i, is, image.Version)
			}
		}
	}
}

func TestLastLeader(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		// restart changes the node before it registers again.
		restart  func(*storage)
		clean    bool
		expired  bool
		synced   bool
		returned bool
	}{
		{"killed", func(*storage) {}, false, false, true, true},
		{"killed, lease lost", func(*storage) {}, false, true, true, true},
		{"power loss", func(s *storage) { s.boot = "other" }, false, false, true, false},
		{"power loss, lease lost", func(s *storage) { s.boot = "other" }, false, true, true, false},
		{"boot unknown", func(s *storage) { s.boot = "" }, false, false, true, false},
		{"clean, then another boot", func(s *storage) { s.boot = "other" }, true, true, true, true},
		{"new disk", func(s *storage) { s.directory = [16]byte{7} }, false, true, false, false},
		{"power loss, then a clean restart", func(s *storage) { s.boot = "other"; s.register(false) }, true, false, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := newMesh(t, etcd).start().ready()
			node := n.storage().register(false)
			n.create(&metadatav1.CreateTopicRequest{Name: "synced"})
			n.create(&metadatav1.CreateTopicRequest{Name: "replicated", Config: map[string]string{"durability": "replicated"}})
			if test.expired {
				n.mesh.expire(node.id)
				n.image("the node is fenced", func(image *cluster.Image) bool {
					found, _ := image.Node(node.id)
					return found.Fenced
				})
			}
			test.restart(node)
			node.register(test.clean)
			image := n.at(node.version)
			for topic, want := range map[string]bool{"synced": test.synced, "replicated": test.returned} {
				p := partition(t, image, topic, 0)
				switch {
				case want && (p.Leader != node.id || !slices.Equal(p.ISR, []cluster.NodeID{node.id}) || p.LastLeader != cluster.NoNode):
					t.Errorf("%s is offline: %+v", topic, p)
				case !want && (p.Leader != cluster.NoNode || p.LastLeader != node.id || len(p.ISR)+len(p.ELR) != 0):
					t.Errorf("%s came back without its records: %+v", topic, p)
				}
			}
		})
	}
}

func TestDeregister(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	node := n.storage().register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "a", Partitions: 300, ReplicationFactor: 1})
	if err := node.deregister(); err != nil {
		t.Fatal(err)
	}
	// Done when it is answered.
	image := n.view.Image()
	if found, _ := image.Node(node.id); !found.Fenced {
		t.Errorf("the node is %+v", found)
	}
	for i := range 300 {
		if p := partition(t, image, "a", i); p.Leader != cluster.NoNode || p.LastLeader != node.id || p.LeaderEpoch != 1 || !slices.Equal(p.ELR, []cluster.NodeID{node.id}) {
			t.Fatalf("partition %d is %+v", i, p)
		}
	}
	if n.mesh.lease(node.id) != 0 {
		t.Error("its lease is left")
	}
	// A heartbeat that was under way does not bring it back.
	wantReason(t, node.heartbeat(), errorsv1.Reason_REASON_STALE_NODE_EPOCH)
	if err := node.deregister(); err != nil {
		t.Errorf("again: %v", err)
	}
	_, err := n.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "b"})
	wantReason(t, err, errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR)
	node.register(true)
	if p := partition(t, n.at(node.version), "a", 0); p.Leader != node.id || p.LeaderEpoch != 2 {
		t.Errorf("after its return partition 0 is %+v", p)
	}
}

func TestLostLeaseFencesAndItsReturnUnfences(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	node, other := n.storage().register(false), n.storage().register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "a", Partitions: 2, ReplicationFactor: 1})
	n.mesh.plant("shared", 1, node, other)
	led := partition(t, n.image("planted", func(image *cluster.Image) bool {
		_, ok := image.Topic("shared")
		return ok
	}), "shared", 0)

	n.mesh.expire(node.id)
	fenced := n.image("the node is fenced", func(image *cluster.Image) bool {
		found, _ := image.Node(node.id)
		return found.Fenced
	})
	// In the very version that shows it as fenced it leads nothing.
	for _, topic := range fenced.Topics() {
		for _, p := range topic.Partitions {
			if p.Leader == node.id || slices.Contains(p.ISR, node.id) {
				t.Errorf("fenced, and yet in %+v of %s", p, topic.Name)
			}
		}
	}
	if p := partition(t, fenced, "shared", 0); p.Leader != other.id || p.LeaderEpoch != led.LeaderEpoch+1 || !slices.Equal(p.ELR, []cluster.NodeID{node.id}) {
		t.Errorf("the shared partition is %+v", p)
	}
	since, _ := fenced.Node(node.id)

	if err := node.heartbeat(); err != nil {
		t.Fatal(err)
	}
	back := n.image("the node is live", func(image *cluster.Image) bool {
		found, _ := image.Node(node.id)
		return !found.Fenced && partition(t, image, "a", 0).Leader != cluster.NoNode
	})
	found, _ := back.Node(node.id)
	if found.Epoch != node.epoch {
		t.Errorf("epoch went from %d to %d", node.epoch, found.Epoch)
	}
	if !found.Since.After(since.Since) {
		t.Errorf("live since %v, fenced since %v", found.Since, since.Since)
	}
	own := 0
	for i := range 2 {
		if partition(t, back, "a", i).Leader == node.id {
			own++
		}
	}
	if own != 1 {
		t.Errorf("the node leads %d of its partitions again", own)
	}
}

// TestHeartbeatRenewsTheLease lets a lease run down, renews it through another
// metadata node than the controller, and then lets it run out.
func TestHeartbeatRenewsTheLease(t *testing.T) {
	t.Parallel()
	const ttl = 5
	m := newMesh(t, etcd)
	n := m.start(configured(func(c *Config) { c.LeaseTTL = ttl * time.Second })).ready()
	replica := m.start().ready()
	node := n.storage().register(false)
	lease := m.lease(node.id)
	left := func() int64 {
		t.Helper()
		response, err := m.raw.TimeToLive(t.Context(), lease)
		if err != nil {
			t.Fatal(err)
		}
		return response.TTL
	}
	for tick := time.Tick(50 * time.Millisecond); left() > ttl-3; {
		<-tick
	}
	node.via = replica
	response, err := replica.nodes.Heartbeat(t.Context(), &peerv1.HeartbeatRequest{NodeId: int32(node.id), NodeEpoch: int64(node.epoch)})
	if err != nil || response.GetLeaseMs() != ttl*1000 || response.GetVersion() == 0 {
		t.Fatalf("heartbeat: %v, %v", response, err)
	}
	if got := left(); got <= ttl-3 {
		t.Errorf("the lease lasts %d s after a heartbeat", got)
	}
	n.image("the node is fenced", func(image *cluster.Image) bool {
		found, _ := image.Node(node.id)
		return found.Fenced
	})
}

// TestMassLossPausesElections takes the leases of most nodes at once, and lets the
// nodes be heard one by one, later than a single node would be fenced.
func TestMassLossPausesElections(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	nodes := []*storage{n.storage().register(false), n.storage().register(false), n.storage().register(false)}
	n.create(&metadatav1.CreateTopicRequest{Name: "a", Partitions: 3, ReplicationFactor: 1})
	before := n.view.Image()
	// In one transaction, or else a busy machine could fence the first before the
	// second falls.
	l := n.mesh.layout
	lost, err := n.mesh.raw.Txn(t.Context()).Then(clientv3.OpDelete(l.Live(nodes[0].id)), clientv3.OpDelete(l.Live(nodes[1].id)), clientv3.OpDelete(l.Live(nodes[2].id))).Commit()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.catalog.WaitRevision(t.Context(), lost.Header.GetRevision()); err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		<-time.After(2 * settle)
		if err := node.heartbeat(); err != nil {
			t.Fatal(err)
		}
	}
	if after := n.view.Image(); after != before {
		t.Errorf("the image went from\n%v\nto\n%v", before.Snapshot(), after.Snapshot())
	}
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start(configured(func(c *Config) { c.MaxNodes = 3 })).ready()
	node := n.storage().register(false)
	metadataNode := n.view.Image().Controller
	for _, test := range []struct {
		name   string
		change func(*peerv1.RegisterRequest)
		want   errorsv1.Reason
		says   string
	}{
		{"no directory", func(r *peerv1.RegisterRequest) { r.DirectoryId = nil }, errorsv1.Reason_REASON_INVALID_REQUEST, "directory_id"},
		{"short cluster id", func(r *peerv1.RegisterRequest) { r.ClusterId = []byte{1} }, errorsv1.Reason_REASON_INVALID_REQUEST, "cluster_id"},
		{"negative id", func(r *peerv1.RegisterRequest) { r.NodeId = -2 }, errorsv1.Reason_REASON_INVALID_REQUEST, "node_id"},
		{"no role", func(r *peerv1.RegisterRequest) { r.Role = 0 }, errorsv1.Reason_REASON_INVALID_REQUEST, "role"},
		{"unknown role", func(r *peerv1.RegisterRequest) { r.Role = 99 }, errorsv1.Reason_REASON_INVALID_REQUEST, "role"},
		{"no address", func(r *peerv1.RegisterRequest) { r.Address = "" }, errorsv1.Reason_REASON_INVALID_REQUEST, "host:port"},
		{"unusable address", func(r *peerv1.RegisterRequest) { r.Address = "0.0.0.0:1" }, errorsv1.Reason_REASON_INVALID_REQUEST, "names no host"},
		{"port 0", func(r *peerv1.RegisterRequest) { r.PeerAddress = "a:0" }, errorsv1.Reason_REASON_INVALID_REQUEST, "1 to 65535"},
		{"long boot id", func(r *peerv1.RegisterRequest) { r.BootId = strings.Repeat("x", 200) }, errorsv1.Reason_REASON_INVALID_REQUEST, "boot_id"},
		{"other cluster", func(r *peerv1.RegisterRequest) {
			r.ClusterId = make([]byte, 15, 16)
			r.ClusterId = append(r.ClusterId, 1)
		}, errorsv1.Reason_REASON_NODE_MISMATCH, "belongs to cluster"},
		{"directory of another node", func(r *peerv1.RegisterRequest) { r.NodeId = int32(node.id) + 5 }, errorsv1.Reason_REASON_NODE_MISMATCH, "belongs to node"},
		{"id of a live node", func(r *peerv1.RegisterRequest) { r.NodeId, r.DirectoryId = int32(node.id), make([]byte, 16) }, errorsv1.Reason_REASON_NODE_MISMATCH, "runs at"},
		{"id of another role", func(r *peerv1.RegisterRequest) {
			r.NodeId, r.DirectoryId = int32(metadataNode), make([]byte, 16)
		}, errorsv1.Reason_REASON_NODE_MISMATCH, "metadata node"},
	} {
		t.Run(test.name, func(t *testing.T) {
			req := node.request(false)
			test.change(req)
			_, err := n.nodes.Register(t.Context(), req)
			if failure := wantReason(t, err, test.want); !strings.Contains(failure.Message, test.says) {
				t.Errorf("refused with %q, which does not say %q", failure.Message, test.says)
			}
		})
	}
	if err := node.heartbeat(); err != nil {
		t.Errorf("a refused registration disturbs the node: %v", err)
	}
	// Who lost the answer to its registration gets the same id.
	id := node.id
	node.id, node.epoch = 0, 0
	if node.register(false); node.id != id {
		t.Errorf("a directory of node %d registered as node %d", id, node.id)
	}
	n.storage().register(false)
	_, err := n.nodes.Register(t.Context(), n.storage().request(false))
	wantReason(t, err, errorsv1.Reason_REASON_LIMIT_REACHED)
}

func TestChosenNodeIDsAreNotAllotted(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	first := n.storage().register(false)
	chosen := n.storage()
	req := chosen.request(false)
	req.NodeId = int32(first.id) + 1
	if response, err := n.nodes.Register(t.Context(), req); err != nil || response.GetNodeId() != req.GetNodeId() {
		t.Fatalf("chosen id %d: %v, %v", req.GetNodeId(), response, err)
	}
	if third := n.storage().register(false); third.id != first.id+2 {
		t.Errorf("nodes %d, %d (chosen) and %d", first.id, req.GetNodeId(), third.id)
	}
}

func TestAlterPartition(t *testing.T) {
	t.Parallel()
	n := newMesh(t, etcd).start().ready()
	a, b, c := n.storage().register(false), n.storage().register(false), n.storage().register(false)
	id := n.mesh.plant("t", 300, a, b, c)
	n.image("planted", func(image *cluster.Image) bool {
		_, ok := image.Topic("t")
		return ok
	})
	alter := func(by *storage, changes ...*peerv1.PartitionChange) *peerv1.AlterPartitionResponse {
		t.Helper()
		response, err := n.partitions.AlterPartition(t.Context(), &peerv1.AlterPartitionRequest{NodeId: int32(by.id), NodeEpoch: int64(by.epoch), Changes: changes})
		if err != nil {
			t.Fatal(err)
		}
		if len(response.GetResults()) != len(changes) || response.GetVersion() > n.view.Image().Version {
			t.Fatalf("%d changes are answered with %d results at version %d", len(changes), len(response.GetResults()), response.GetVersion())
		}
		return response
	}
	change := func(index int32, leaderEpoch, partitionEpoch int32, isr ...*peerv1.IsrMember) *peerv1.PartitionChange {
		return &peerv1.PartitionChange{TopicId: id[:], Partition: index, LeaderEpoch: leaderEpoch, PartitionEpoch: partitionEpoch, Isr: isr}
	}
	stays := func(s *storage) *peerv1.IsrMember { return &peerv1.IsrMember{NodeId: int32(s.id), NodeEpoch: -1} }
	joins := func(s *storage) *peerv1.IsrMember {
		return &peerv1.IsrMember{NodeId: int32(s.id), NodeEpoch: int64(s.epoch)}
	}

	// All partitions in one request take several transactions.
	var shrinks []*peerv1.PartitionChange
	for i := range int32(300) {
		shrinks = append(shrinks, change(i, 0, 0, stays(a)))
	}
	response := alter(a, shrinks...)
	for i, r := range response.GetResults() {
		if !r.GetAccepted() || len(r.GetPartition().GetIsr()) != 1 || r.GetPartition().GetPartitionEpoch() != 1 || r.GetPartition().GetLeaderEpoch() != 0 {
			t.Fatalf("shrinking partition %d: %v", i, r)
		}
	}
	if p := partition(t, n.at(response.GetVersion()), "t", 299); !slices.Equal(p.ISR, []cluster.NodeID{a.id}) || !slices.Equal(p.ELR, []cluster.NodeID{b.id, c.id}) {
		t.Errorf("the image shows %+v", p)
	}
	mixed := alter(a,
		change(0, 0, 1, stays(a), joins(b)),
		change(0, 0, 1, stays(a), joins(c)), // Based on what the first has changed.
		change(1, 0, 0, stays(a), joins(b)), // Stale.
		change(2, 9, 1, stays(a), joins(b)), // Of another leadership.
		change(1000, 0, 0, stays(a)),
		&peerv1.PartitionChange{TopicId: make([]byte, 16), Isr: []*peerv1.IsrMember{stays(a)}},
		change(3, 0, 1, stays(a), joins(b)),
	).GetResults()
	for i, want := range []bool{true, false, false, false, false, false, true} {
		if mixed[i].GetAccepted() != want {
			t.Errorf("change %d: %v", i, mixed[i])
		}
		if has := mixed[i].GetPartition() != nil; has == (i == 4 || i == 5) {
			t.Errorf("change %d shows partition %v", i, mixed[i].GetPartition())
		}
	}
	// KIP-841: not without a lease, even before the controller has fenced the node.
	n.mesh.expire(c.id)
	if r := alter(a, change(4, 0, 1, stays(a), joins(c))).GetResults()[0]; r.GetAccepted() {
		t.Errorf("a node without a lease joins: %v", r)
	}
	// KIP-903: not a process that has been replaced.
	old := joins(b)
	b.register(true)
	if r := alter(a, change(5, 0, 1, stays(a), old)).GetResults()[0]; r.GetAccepted() {
		t.Errorf("an earlier process joins: %v", r)
	}
	if r := alter(b, change(6, 0, 1, stays(b))).GetResults()[0]; r.GetAccepted() {
		t.Errorf("a follower proposes: %v", r)
	}

	_, err := n.partitions.AlterPartition(t.Context(), &peerv1.AlterPartitionRequest{NodeId: int32(a.id), NodeEpoch: int64(a.epoch) - 1, Changes: shrinks[:1]})
	wantReason(t, err, errorsv1.Reason_REASON_STALE_NODE_EPOCH)
	_, err = n.partitions.AlterPartition(t.Context(), &peerv1.AlterPartitionRequest{NodeId: int32(a.id), NodeEpoch: int64(a.epoch), Changes: make([]*peerv1.PartitionChange, 1001)})
	wantReason(t, err, errorsv1.Reason_REASON_INVALID_REQUEST)
	_, err = n.partitions.AlterPartition(t.Context(), &peerv1.AlterPartitionRequest{NodeId: int32(a.id), NodeEpoch: int64(a.epoch), Changes: []*peerv1.PartitionChange{{TopicId: []byte{1}}}})
	wantReason(t, err, errorsv1.Reason_REASON_INVALID_REQUEST)
}

// TestProducerIDsAreUnique allocates over two metadata nodes at once, and goes on
// after a change of controller.
func TestProducerIDsAreUnique(t *testing.T) {
	t.Parallel()
	m := newMesh(t, etcd)
	n := m.start().ready()
	replica := m.start().ready()
	node := n.storage().register(false)
	var mu sync.Mutex
	seen := map[int64]bool{}
	allocate := func(via *member) {
		response, err := via.nodes.AllocateProducerIds(t.Context(), node.producerIDs())
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if response.GetCount() != 1000 || response.GetFirstProducerId()%1000 != 0 || response.GetFirstProducerId() < 0 || seen[response.GetFirstProducerId()] {
			t.Errorf("got %v", response)
		}
		seen[response.GetFirstProducerId()] = true
	}
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() { allocate(n) })
		wait.Go(func() { allocate(replica) })
	}
	wait.Wait()
	n.stop()
	for tick, deadline := time.Tick(10*time.Millisecond), time.Now().Add(20*time.Second); !replica.controller.Leading(); <-tick {
		if time.Now().After(deadline) {
			t.Fatal("the replica does not become controller")
		}
	}
	allocate(replica)
	if len(seen) != 41 {
		t.Errorf("%d blocks", len(seen))
	}
	node.epoch--
	_, err := replica.nodes.AllocateProducerIds(t.Context(), node.producerIDs())
	wantReason(t, err, errorsv1.Reason_REASON_STALE_NODE_EPOCH)
}
