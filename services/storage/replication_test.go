package storage

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// controller is a metadata service that decides by the rules, without etcd and
// without leases: who registers is live until it deregisters.
type controller struct {
	peerv1connect.UnimplementedNodeServiceHandler
	view      *clusterview.View
	transport connect.Transport

	mu        sync.Mutex
	snapshot  *metadatav1.ClusterSnapshot
	nodes     rules.Nodes
	partition rules.PartitionState
	// leave is called before a node's wish to leave is granted, which it may refuse;
	// nil grants.
	leave func(context.Context, cluster.NodeID) error
}

var twoInSync = rules.TopicTraits{Synced: true, MinInsyncReplicas: 2}

func newController(t *testing.T, ids ...int32) *controller {
	topicID := uuid.New()
	c := &controller{view: clusterview.New(nil), nodes: rules.Nodes{}, snapshot: &metadatav1.ClusterSnapshot{
		ClusterId: clusterID[:], Version: 1, ControllerId: 9,
		Topics: []*metadatav1.Topic{{TopicId: topicID[:], Name: "orders", PartitionCount: 1, Config: map[string]string{"min.insync.replicas": "2"}}},
	}}
	c.partition.Leader, c.partition.LastLeader = cluster.NoNode, cluster.NodeID(ids[0])
	for _, id := range ids {
		c.partition.Replicas = append(c.partition.Replicas, cluster.NodeID(id))
		c.partition.Epochs = append(c.partition.Epochs, 0)
	}
	c.partition.ISR = slices.Clone(c.partition.Replicas)
	server, drain := rpc.NewServer(rpc.ServerOptions{}), rpc.NewDrain()
	t.Cleanup(drain.Begin)
	peerv1connect.RegisterNodeServiceHandler(server, c)
	peerv1connect.RegisterPartitionServiceHandler(server, c)
	metadatav1connect.RegisterClusterServiceHandler(server, clusterview.NewHandler(c.view, drain))
	c.transport = rpc.InProcess(server)
	c.publish()
	return c
}

// publish tells the nodes what was decided; the mutex is held, or nobody else there.
func (c *controller) publish() {
	c.snapshot.Version++
	c.snapshot.Topics[0].Partitions = []*metadatav1.Partition{c.partition.Proto()}
	image, err := cluster.FromSnapshot(proto.CloneOf(c.snapshot))
	if err != nil {
		panic(err)
	}
	c.view.Publish(image, nil)
}

func (c *controller) Register(_ context.Context, req *peerv1.RegisterRequest) (*peerv1.RegisterResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	epoch := c.snapshot.Version + 1
	var history rules.History // Nothing was ever lost.
	if _, again := c.nodes[cluster.NodeID(req.GetNodeId())]; again && !req.GetClean() {
		history.CleanSince = cluster.NodeEpoch(epoch)
	}
	c.set(req.GetNodeId(), rules.NodeState{Epoch: cluster.NodeEpoch(epoch), Live: true, History: history}, req)
	return &peerv1.RegisterResponse{ClusterId: clusterID[:], NodeId: req.GetNodeId(), NodeEpoch: epoch, LeaseMs: 60_000, Version: c.snapshot.Version}, nil
}

// set changes a node, and what follows from that.
func (c *controller) set(id int32, state rules.NodeState, req *peerv1.RegisterRequest) {
	c.nodes[cluster.NodeID(id)] = state
	i := slices.IndexFunc(c.snapshot.Nodes, func(n *metadatav1.Node) bool { return n.NodeId == id })
	if i < 0 {
		i = len(c.snapshot.Nodes)
		c.snapshot.Nodes = append(c.snapshot.Nodes, &metadatav1.Node{NodeId: id})
	}
	n := c.snapshot.Nodes[i]
	n.NodeEpoch, n.Fenced, n.Leaving = int64(state.Epoch), !state.Live, state.Leaving
	if req != nil {
		n.Address, n.PeerAddress = req.GetAddress(), req.GetPeerAddress()
	}
	c.partition, _ = rules.Elect(c.partition, c.nodes, twoInSync)
	c.publish()
}

func (c *controller) Heartbeat(context.Context, *peerv1.HeartbeatRequest) (*peerv1.HeartbeatResponse, error) {
	return &peerv1.HeartbeatResponse{LeaseMs: 60_000}, nil
}

func (c *controller) setLeave(leave func(context.Context, cluster.NodeID) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave = leave
}

func (c *controller) Leave(ctx context.Context, req *peerv1.LeaveRequest) (*peerv1.LeaveResponse, error) {
	c.mu.Lock()
	leave := c.leave
	c.mu.Unlock()
	if leave != nil {
		if err := leave(ctx, cluster.NodeID(req.GetNodeId())); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.nodes[cluster.NodeID(req.GetNodeId())]
	state.Leaving = true
	c.set(req.GetNodeId(), state, nil)
	res := &peerv1.LeaveResponse{Version: c.snapshot.Version}
	if c.partition.Leader == cluster.NodeID(req.GetNodeId()) {
		res.Remaining = 1
	}
	return res, nil
}

func (c *controller) Deregister(_ context.Context, req *peerv1.DeregisterRequest) (*peerv1.DeregisterResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.nodes[cluster.NodeID(req.GetNodeId())]
	state.Live = false
	c.set(req.GetNodeId(), state, nil)
	return &peerv1.DeregisterResponse{}, nil
}

func (c *controller) AlterPartition(_ context.Context, req *peerv1.AlterPartitionRequest) (*peerv1.AlterPartitionResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := &peerv1.AlterPartitionResponse{}
	for _, change := range req.GetChanges() {
		proposal := rules.ISRProposal{
			Leader: cluster.NodeID(req.GetNodeId()), LeaderEpoch: cluster.LeaderEpoch(change.GetLeaderEpoch()), PartitionEpoch: cluster.PartitionEpoch(change.GetPartitionEpoch()),
		}
		for _, m := range change.GetIsr() {
			proposal.ISR = append(proposal.ISR, rules.ISRMember{Node: cluster.NodeID(m.GetNodeId()), Epoch: cluster.NodeEpoch(m.GetNodeEpoch())})
		}
		next, err := rules.ProposeISR(c.partition, proposal, c.nodes, twoInSync)
		c.partition = next
		res.Results = append(res.Results, &peerv1.PartitionChangeResult{Accepted: err == nil, Partition: next.Proto()})
	}
	c.publish()
	res.Version = c.snapshot.Version
	return res, nil
}

// await waits until the partition meets a condition.
func (c *controller) await(t *testing.T, condition func(cluster.Partition) bool) cluster.Partition {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	image, err := c.view.Await(ctx, func(image *cluster.Image) bool {
		topic, _ := image.Topic("orders")
		return condition(topic.Partitions[0])
	})
	if err != nil {
		topic, _ := c.view.Image().Topic("orders")
		t.Fatalf("the partition stays %+v", topic.Partitions[0])
	}
	topic, _ := image.Topic("orders")
	return topic.Partitions[0]
}

// replicaSet is some storage nodes in one process.
type replicaSet struct {
	t          *testing.T
	controller *controller
	dirs       map[int32]string

	mu    sync.Mutex
	peers map[string]connect.Transport
	nodes map[int32]*running
}

func peerAddress(id int32) string { return fmt.Sprintf("127.0.0.1:%d", 7100+id) }

func newReplicaSet(t *testing.T, ids ...int32) *replicaSet {
	t.Helper()
	r := &replicaSet{
		t: t, controller: newController(t, ids...), peers: map[string]connect.Transport{}, nodes: map[int32]*running{}, dirs: map[int32]string{},
	}
	for _, id := range ids {
		r.dirs[id] = t.TempDir()
	}
	return r
}

func (r *replicaSet) start(id int32, change ...func(*Config)) {
	r.t.Helper()
	config := DefaultConfig()
	config.DataDir, config.NodeID = r.dirs[id], cluster.NodeID(id)
	config.AdvertisePeer = peerAddress(id)
	config.ReplicaLag = 2 * time.Second
	for _, f := range change {
		f(&config)
	}
	if err := config.Validate(); err != nil {
		r.t.Fatal(err)
	}
	s := New(config, Deps{Metadata: r.controller.transport, Peers: r.peer, Logger: slog.New(slog.DiscardHandler)})
	public, peer := rpc.NewServer(rpc.ServerOptions{}), rpc.NewServer(rpc.ServerOptions{})
	s.Register(public, peer)
	ctx, cancel := context.WithCancel(context.Background())
	n := &running{t: r.t, service: s, public: rpc.InProcess(public), cancel: cancel, done: make(chan error, 1)}
	n.client = storagev1connect.NewLogServiceClient(connect.NewClient(n.public))
	r.mu.Lock()
	r.peers[peerAddress(id)] = rpc.InProcess(peer)
	r.nodes[id] = n
	r.mu.Unlock()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		n.done <- s.Run(ctx)
	}()
	r.t.Cleanup(func() {
		cancel()
		<-stopped
	})
	n.ready()
}

func (r *replicaSet) peer(address string) connect.Transport {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.peers[address]
}

// stop stops a node in good order.
func (r *replicaSet) stop(id int32) {
	r.t.Helper()
	r.nodes[id].cancel()
	if err := r.nodes[id].ends(); err != nil {
		r.t.Fatal(err)
	}
}

// produce appends a record, acknowledged by all, at whoever leads.
func (r *replicaSet) produce(value string) {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		leader := r.controller.await(r.t, func(p cluster.Partition) bool { return p.Leader != cluster.NoNode }).Leader
		_, err := r.nodes[int32(leader)].client.Append(r.t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
			Topic: "orders", Acks: logv1.Acks_ACKS_ALL, Records: []*logv1.Record{{ValueText: &value}},
		}})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%q: %v", value, err)
		}
	}
}

// read returns all values below the high watermark of the leader.
func (r *replicaSet) read() []string {
	r.t.Helper()
	leader := r.controller.await(r.t, func(p cluster.Partition) bool { return p.Leader != cluster.NoNode }).Leader
	stream, err := r.nodes[int32(leader)].client.Consume(r.t.Context(), &storagev1.ConsumeRequest{
		Partitions: []*storagev1.PartitionStart{{Topic: "orders", Start: &logv1.StartPosition{Position: &logv1.StartPosition_Offset{Offset: 0}}}}, StopAtEnd: true,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for {
		res, err := stream.Receive()
		if err != nil {
			return out
		}
		if res.GetFailure() != nil {
			r.t.Fatal(res.GetFailure())
		}
		for _, record := range res.GetRecords() {
			out = append(out, string(record.GetValue()))
		}
	}
}

// Three nodes with real stores: records are acknowledged by all that are in sync,
// each of them may lead next, and one that comes back catches up and rejoins.
func TestReplicates(t *testing.T) {
	t.Parallel()
	r := newReplicaSet(t, 1, 2, 3)
	for id := range int32(3) {
		r.start(id + 1)
	}
	inSync := func(n int) func(cluster.Partition) bool {
		return func(p cluster.Partition) bool { return p.Leader != cluster.NoNode && len(p.ISR) == n }
	}
	r.controller.await(t, inSync(3))
	var want []string
	produce := func(n int) {
		t.Helper()
		for range n {
			value := fmt.Sprint(len(want))
			r.produce(value)
			want = append(want, value)
		}
	}
	produce(20)
	for range 4 {
		leader := int32(r.controller.await(t, inSync(3)).Leader)
		r.stop(leader)
		next := r.controller.await(t, inSync(2))
		if int32(next.Leader) == leader {
			t.Fatalf("node %d leads though it has stopped", leader)
		}
		produce(10)
		if got := r.read(); !slices.Equal(got, want) {
			t.Fatalf("node %d leads with %v, want %v", next.Leader, got, want)
		}
		r.start(leader)
		r.controller.await(t, inSync(3))
		produce(5)
	}
	if got := r.read(); !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}
