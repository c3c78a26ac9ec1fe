package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
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
	// published are all states of the partition that anybody was told of.
	published []cluster.Partition
	traits    rules.TopicTraits
	// leave is called before a node's wish to leave is granted, which it may refuse;
	// nil grants.
	leave func(context.Context, cluster.NodeID) error
}

var twoInSync = rules.TopicTraits{Synced: true, MinInsyncReplicas: 2}

func newController(t *testing.T, topic string, ids ...int32) *controller {
	topicID := uuid.New()
	c := &controller{view: clusterview.New(nil, nil), nodes: rules.Nodes{}, traits: twoInSync, snapshot: &metadatav1.ClusterSnapshot{
		ClusterId: clusterID[:], Version: 1, ControllerId: 9,
		Topics: []*metadatav1.Topic{{TopicId: topicID[:], Name: topic, PartitionCount: 1, Config: map[string]string{"min.insync.replicas": "2"}}},
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
	c.published = append(c.published, c.partition.Partition)
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
	c.partition, _ = rules.Elect(c.partition, c.nodes, c.traits)
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

// setLive takes the lease of a node away, or gives it back.
func (c *controller) setLive(id int32, live bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.nodes[cluster.NodeID(id)]
	state.Live = live
	c.set(id, state, nil)
}

// setMinInsync gives the topic another min.insync.replicas.
func (c *controller) setMinInsync(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.traits.MinInsyncReplicas = n
	c.snapshot.Topics[0].Config = map[string]string{rules.MinInsyncReplicas: fmt.Sprint(n)}
	c.publish()
}

// setReplica leaves the partition with one replica, before anybody has registered.
func (c *controller) setReplica(id int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.partition.Replicas, c.partition.Epochs = []cluster.NodeID{cluster.NodeID(id)}, []cluster.NodeEpoch{0}
	c.partition.ISR = slices.Clone(c.partition.Replicas)
	c.publish()
}

// grow gives the partition another replica, which is to lead it.
func (c *controller) grow(t *testing.T, id int32) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	preferred := rules.NodeLoad{ID: c.partition.Replicas[0], Leaders: 2}
	grown := rules.GrowReplicas([]rules.PartitionState{c.partition}, 3, []rules.NodeLoad{preferred, {ID: cluster.NodeID(id)}}, 1)
	if len(grown) == 0 || grown[0].Replicas[0] != cluster.NodeID(id) {
		t.Fatalf("%+v grew to %+v", c.partition, grown)
	}
	c.partition = grown[0]
	c.publish()
}

// electUnclean makes a node lead though it may lack acknowledged records.
func (c *controller) electUnclean(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	next, elected := rules.ElectUnclean(c.partition, c.nodes)
	if !elected {
		t.Fatalf("nobody can lead %+v", c.partition)
	}
	c.partition = next
	c.publish()
}

func (c *controller) AlterPartition(_ context.Context, req *peerv1.AlterPartitionRequest) (*peerv1.AlterPartitionResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := &peerv1.AlterPartitionResponse{}
	for _, change := range req.GetChanges() {
		proposal := rules.ISRProposal{
			Leader: cluster.NodeID(req.GetNodeId()), LeaderEpoch: cluster.LeaderEpoch(change.GetLeaderEpoch()), PartitionEpoch: cluster.PartitionEpoch(change.GetPartitionEpoch()),
			Withdraws: change.GetWithdraws(),
		}
		for _, m := range change.GetIsr() {
			proposal.ISR = append(proposal.ISR, rules.ISRMember{Node: cluster.NodeID(m.GetNodeId()), Epoch: cluster.NodeEpoch(m.GetNodeEpoch())})
		}
		next, err := rules.ProposeISR(c.partition, proposal, c.nodes, c.traits)
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
		return condition(image.Topics()[0].Partitions[0])
	})
	if err != nil {
		t.Fatalf("the partition stays %+v", c.view.Image().Topics()[0].Partitions[0])
	}
	return image.Topics()[0].Partitions[0]
}

// elected returns the partition as it was when a leader epoch began.
func (c *controller) elected(epoch cluster.LeaderEpoch) cluster.Partition {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.published[slices.IndexFunc(c.published, func(p cluster.Partition) bool { return p.LeaderEpoch == epoch })]
}

// replicaSet is some storage nodes in one process, with real stores.
type replicaSet struct {
	t          *testing.T
	controller *controller
	dirs       map[int32]string
	nodes      map[int32]*running

	mu    sync.Mutex
	peers map[string]connect.Transport
	// ways has the ways from each node: to the controller, with the address "", and to
	// the others.
	ways map[int32]map[string]*way
}

// way leads to a server until it is cut: then calls under way break, and others fail.
type way struct {
	to func() connect.Transport

	mu    sync.Mutex
	isCut bool
	calls []context.CancelFunc
}

var errCut = errors.New("the network is cut")

func (w *way) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isCut {
		return nil, connect.NewError(connect.CodeUnavailable, errCut.Error())
	}
	ctx, cancel := context.WithCancel(ctx)
	w.calls = append(w.calls, cancel)
	return w.to().NewClientStream(ctx, spec)
}

func (w *way) set(isCut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = isCut
	for _, cancel := range w.calls {
		cancel()
	}
	w.calls = nil
}

// newReplicaSet returns nodes that are not started.
func newReplicaSet(t *testing.T, ids ...int32) *replicaSet {
	t.Helper()
	return newReplicaSetOf(t, "orders", ids...)
}

func newReplicaSetOf(t *testing.T, topic string, ids ...int32) *replicaSet {
	t.Helper()
	r := &replicaSet{
		t: t, controller: newController(t, topic, ids...), dirs: map[int32]string{}, nodes: map[int32]*running{},
		peers: map[string]connect.Transport{}, ways: map[int32]map[string]*way{},
	}
	for _, id := range ids {
		r.dirs[id], r.ways[id] = t.TempDir(), map[string]*way{"": {to: func() connect.Transport { return r.controller.transport }}}
		for _, other := range ids {
			r.ways[id][peerAddress(other)] = &way{to: func() connect.Transport {
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.peers[peerAddress(other)]
			}}
		}
	}
	return r
}

// startReplicaSet returns three nodes that are in sync.
func startReplicaSet(t *testing.T) *replicaSet {
	t.Helper()
	r := newReplicaSet(t, 1, 2, 3)
	for id := range r.dirs {
		r.start(id)
	}
	r.inSync(3)
	return r
}

// isolate cuts a node off from the others, or heals that, and from the controller
// if asked to.
func (r *replicaSet) isolate(id int32, isCut, controller bool) {
	if controller {
		r.ways[id][""].set(isCut)
	}
	for other := range r.ways {
		r.ways[id][peerAddress(other)].set(isCut)
		r.ways[other][peerAddress(id)].set(isCut)
	}
}

// inSync waits until the partition has a leader and an ISR of so many.
func (r *replicaSet) inSync(n int) cluster.Partition {
	r.t.Helper()
	return r.controller.await(r.t, func(p cluster.Partition) bool { return p.Leader != cluster.NoNode && len(p.ISR) == n })
}

// leader returns the node that leads.
func (r *replicaSet) leader() int32 {
	r.t.Helper()
	return int32(r.controller.await(r.t, func(p cluster.Partition) bool { return p.Leader != cluster.NoNode }).Leader)
}

func publicAddress(id int32) string { return fmt.Sprintf("127.0.0.1:%d", 7200+id) }

func peerAddress(id int32) string { return fmt.Sprintf("127.0.0.1:%d", 7100+id) }

// Transport implements [runnel.Transports].
func (r *replicaSet) Transport(address string, _ transport.Class) connect.Transport {
	for id, n := range r.nodes {
		if publicAddress(id) == address {
			return n.public
		}
	}
	return rpc.Failover()
}

func (r *replicaSet) start(id int32, change ...func(*Config)) {
	r.t.Helper()
	config := DefaultConfig()
	config.DataDir, config.NodeID = r.dirs[id], cluster.NodeID(id)
	config.Advertise, config.AdvertisePeer = publicAddress(id), peerAddress(id)
	config.ReplicaLag = 2 * time.Second
	for _, f := range change {
		f(&config)
	}
	if err := config.Validate(); err != nil {
		r.t.Fatal(err)
	}
	s := New(config, Deps{
		Metadata: r.ways[id][""], Peers: func(address string) connect.Transport { return r.ways[id][address] },
		Logger: slog.New(slog.DiscardHandler),
	})
	public, peer := rpc.NewServer(rpc.ServerOptions{}), rpc.NewServer(rpc.ServerOptions{})
	s.Register(public, peer)
	ctx, cancel := context.WithCancel(context.Background())
	n := &running{t: r.t, service: s, public: rpc.InProcess(public), cancel: cancel, done: make(chan error, 1)}
	n.client = storagev1connect.NewLogServiceClient(connect.NewClient(n.public))
	r.mu.Lock()
	r.peers[peerAddress(id)] = rpc.InProcess(peer)
	r.mu.Unlock()
	r.nodes[id] = n
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

// stop stops a node in good order.
func (r *replicaSet) stop(id int32) {
	r.t.Helper()
	r.nodes[id].cancel()
	if err := r.nodes[id].ends(); err != nil {
		r.t.Fatal(err)
	}
}

// append appends a batch at a node, acknowledged within a time.
func (r *replicaSet) append(node int32, acks logv1.Acks, within time.Duration, batch []byte) (*storagev1.ProduceResponse, error) {
	r.t.Helper()
	res, err := r.nodes[node].client.Append(r.t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
		Topic: "orders", Acks: acks, TimeoutMs: int32(within.Milliseconds()), Batch: batch,
	}})
	return res.GetResult(), err
}

// batch returns a batch of an idempotent producer, or of none for id -1.
func (r *replicaSet) batch(id int64, sequence int32, values ...string) []byte {
	r.t.Helper()
	var b recordbatch.Builder
	for _, v := range values {
		if err := b.Append(nil, []byte(v), nil, 1000); err != nil {
			r.t.Fatal(err)
		}
	}
	options := recordbatch.WithoutProducer(recordbatch.None)
	if id >= 0 {
		options.ProducerID, options.ProducerEpoch, options.BaseSequence = id, 0, sequence
	}
	batch, err := b.Build(options)
	if err != nil {
		r.t.Fatal(err)
	}
	return batch
}

// produce appends a record, acknowledged by all, at whoever leads, and returns its
// offset. What is refused, as while leaders change, is tried again.
func (r *replicaSet) produce(value string) int64 {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		res, err := r.append(r.leader(), logv1.Acks_ACKS_ALL, 10*time.Second, r.batch(-1, 0, value))
		if err == nil {
			return res.GetBaseOffset()
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%q: %v", value, err)
		}
	}
}

// read returns all values that the leader shows.
func (r *replicaSet) read() []string {
	r.t.Helper()
	return r.readAt(r.leader())
}

// readAt returns all values that a node shows.
func (r *replicaSet) readAt(node int32) []string {
	r.t.Helper()
	values, err := r.readFrom(node, &storagev1.PartitionStart{Start: at(0)})
	if err != nil {
		r.t.Fatal(err)
	}
	return values
}

func at(offset int64) *logv1.StartPosition {
	return &logv1.StartPosition{Position: &logv1.StartPosition_Offset{Offset: offset}}
}

// readFrom returns the values from a position on, up to the present end. What a
// leader that has just been elected cannot tell yet is asked for again.
func (r *replicaSet) readFrom(node int32, start *storagev1.PartitionStart) (values []string, _ error) {
	r.t.Helper()
	start.Topic = "orders"
	for deadline := time.Now().Add(20 * time.Second); ; {
		stream, err := r.nodes[node].client.Consume(r.t.Context(), &storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{start}, StopAtEnd: true})
		if err != nil {
			r.t.Fatal(err)
		}
		values, err = receiveAll(stream)
		if rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE || time.Now().After(deadline) {
			return values, err
		}
	}
}

func receiveAll(stream storagev1connect.LogServiceConsumeClientStream) (values []string, _ error) {
	for {
		res, err := stream.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return values, nil
		case err != nil:
			return values, err
		case res.GetFailure() != nil:
			return values, rpcerr.FromFailure(res.GetFailure())
		}
		for _, record := range res.GetRecords() {
			values = append(values, string(record.GetValue()))
		}
	}
}

// latest returns the end of what a node shows.
func (r *replicaSet) latest(node int32) (int64, error) {
	r.t.Helper()
	res, err := r.nodes[node].client.ListOffsets(r.t.Context(), &storagev1.ListOffsetsRequest{Partitions: []*storagev1.PartitionPosition{{Topic: "orders"}}})
	if err != nil {
		r.t.Fatal(err)
	}
	got := res.GetPartitions()[0]
	if got.GetFailure() != nil {
		return 0, rpcerr.FromFailure(got.GetFailure())
	}
	return got.GetOffset(), nil
}
