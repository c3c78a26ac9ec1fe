package coordinator

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	storagepeerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	storagepeerv1connect "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

var clusterID = [16]byte{7}

func topicID(b byte) []byte { return append(make([]byte, 15), b) }

// mesh is a cluster without coordinators: one metadata node that gives the partitions
// of __consumer_offsets to whoever is live, and one storage node that leads them all.
type mesh struct {
	peerv1connect.UnimplementedNodeServiceHandler
	storagev1connect.UnimplementedLogServiceHandler

	t                      *testing.T
	view                   *clusterview.View
	metadata, public, peer connect.Transport

	mu       sync.Mutex
	snapshot *metadatav1.ClusterSnapshot
	prepared int
	logs     map[string]*fencedLog
	ends     map[string]int64 // Of the other topics, by name and partition.
	// refuse fails appends before they are carried out, lose after.
	refuse, lose func() error
	appends      int
	checks       int
	listed       int
	// leaderless fails the questions for ends of the other topics.
	leaderless bool
}

// fencedLog is a partition of __consumer_offsets.
type fencedLog struct {
	epoch   int64
	end     int64
	batches [][]byte
}

// offsetsPartitions is how many __consumer_offsets has here.
const offsetsPartitions = 4

func newMesh(t *testing.T) *mesh {
	m := &mesh{t: t, view: clusterview.New(nil, nil), logs: map[string]*fencedLog{}, ends: map[string]int64{}, snapshot: &metadatav1.ClusterSnapshot{
		ClusterId: clusterID[:], Version: 10, ControllerId: 1,
		Nodes: []*metadatav1.Node{{NodeId: 1, Role: metadatav1.NodeRole_NODE_ROLE_STORAGE, Address: "storage:1", PeerAddress: "storage:2", NodeEpoch: 5}},
	}}
	drain := rpc.NewDrain()
	t.Cleanup(drain.Begin)
	metadata, public, peer := rpc.NewServer(rpc.ServerOptions{}), rpc.NewServer(rpc.ServerOptions{}), rpc.NewServer(rpc.ServerOptions{})
	peerv1connect.RegisterNodeServiceHandler(metadata, m)
	peerv1connect.RegisterOffsetsTopicServiceHandler(metadata, m)
	metadatav1connect.RegisterClusterServiceHandler(metadata, clusterview.NewHandler(m.view, drain))
	storagev1connect.RegisterLogServiceHandler(public, m)
	storagepeerv1connect.RegisterFencedAppendServiceHandler(peer, m)
	m.metadata, m.public, m.peer = rpc.InProcess(metadata), rpc.InProcess(public), rpc.InProcess(peer)
	m.addTopic("orders", 1, 4)
	return m
}

// addTopic makes a topic that the storage node leads.
func (m *mesh) addTopic(name string, id byte, partitions int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	topic := &metadatav1.Topic{TopicId: topicID(id), Name: name, PartitionCount: partitions}
	for i := range partitions {
		topic.Partitions = append(topic.Partitions, &metadatav1.Partition{Partition: i, LeaderId: 1, LeaderEpoch: 3, Replicas: []int32{1}, Isr: []int32{1}, LastLeaderId: -1})
	}
	m.snapshot.Topics = append(m.snapshot.Topics, topic)
	m.publish()
}

// publish tells the nodes what was decided.
func (m *mesh) publish() {
	m.assign()
	m.snapshot.Version++
	image, err := cluster.FromSnapshot(proto.CloneOf(m.snapshot))
	if err != nil {
		panic(err)
	}
	m.view.Publish(image, nil)
}

// assign deals the partitions out to the coordinators that are live and stay.
func (m *mesh) assign() {
	var live []*metadatav1.Node
	for _, n := range m.snapshot.Nodes {
		if n.Role == metadatav1.NodeRole_NODE_ROLE_COORDINATOR && !n.Fenced && !n.Leaving {
			live = append(live, n)
		}
	}
	for _, topic := range m.snapshot.Topics {
		if topic.Name != cluster.OffsetsTopic {
			continue
		}
		for i, p := range topic.Partitions {
			var owner int32
			if len(live) > 0 {
				owner = live[i%len(live)].NodeId
			}
			if p.CoordinatorId != owner {
				p.CoordinatorId = owner
				p.CoordinatorEpoch++
			}
		}
	}
}

func (m *mesh) node(id int32) *metadatav1.Node {
	for _, n := range m.snapshot.Nodes {
		if n.NodeId == id {
			return n
		}
	}
	n := &metadatav1.Node{NodeId: id, Role: metadatav1.NodeRole_NODE_ROLE_COORDINATOR}
	m.snapshot.Nodes = append(m.snapshot.Nodes, n)
	return n
}

func (m *mesh) Register(_ context.Context, req *peerv1.RegisterRequest) (*peerv1.RegisterResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.node(req.GetNodeId())
	n.Fenced = true
	m.publish() // What an earlier process had is gone.
	n.Fenced, n.Leaving, n.Address, n.PeerAddress, n.NodeEpoch = false, false, req.GetAddress(), req.GetPeerAddress(), m.snapshot.Version
	m.publish()
	return &peerv1.RegisterResponse{ClusterId: clusterID[:], NodeId: n.NodeId, NodeEpoch: n.NodeEpoch, LeaseMs: 6000, Version: m.snapshot.Version}, nil
}

func (m *mesh) Heartbeat(_ context.Context, req *peerv1.HeartbeatRequest) (*peerv1.HeartbeatResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.node(req.GetNodeId()).NodeEpoch != req.GetNodeEpoch() {
		return nil, rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH, "another process has registered")
	}
	return &peerv1.HeartbeatResponse{LeaseMs: 6000}, nil
}

func (m *mesh) Leave(_ context.Context, req *peerv1.LeaveRequest) (*peerv1.LeaveResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node(req.GetNodeId()).Leaving = true
	m.publish()
	return &peerv1.LeaveResponse{Version: m.snapshot.Version}, nil
}

func (m *mesh) Deregister(_ context.Context, req *peerv1.DeregisterRequest) (*peerv1.DeregisterResponse, error) {
	m.fence(req.GetNodeId())
	return &peerv1.DeregisterResponse{}, nil
}

// fence takes a node for dead.
func (m *mesh) fence(id int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node(id).Fenced = true
	m.publish()
}

func (m *mesh) PrepareOffsetsTopic(context.Context, *peerv1.PrepareOffsetsTopicRequest) (*peerv1.PrepareOffsetsTopicResponse, error) {
	m.mu.Lock()
	m.prepared++
	_, there := m.view.Image().Topic(cluster.OffsetsTopic)
	m.mu.Unlock()
	if !there {
		m.addTopic(cluster.OffsetsTopic, 99, offsetsPartitions)
	}
	return &peerv1.PrepareOffsetsTopicResponse{Version: m.view.Image().Version}, nil
}

func (m *mesh) log(topic []byte, partition int32) *fencedLog {
	key := fmt.Sprintf("%x/%d", topic, partition)
	if m.logs[key] == nil {
		m.logs[key] = &fencedLog{}
	}
	return m.logs[key]
}

func fenced() error { return rpcerr.New(errorsv1.Reason_REASON_COORDINATOR_FENCED, "fenced") }

func (m *mesh) FencedAppend(_ context.Context, req *storagepeerv1.FencedAppendRequest) (*storagepeerv1.FencedAppendResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		if err := m.refuse(); err != nil {
			return nil, err
		}
	}
	l := m.log(req.GetTopicId(), req.GetPartition())
	first := req.GetExpectedOffset() == -1
	if req.GetCoordinatorEpoch() < l.epoch || !first && (req.GetCoordinatorEpoch() != l.epoch || req.GetExpectedOffset() != l.end) {
		return nil, fenced()
	}
	batch := slices.Clone(req.GetBatch())
	header, err := recordbatch.VerifyProduced(batch)
	if err != nil {
		return nil, err
	}
	base := l.end
	recordbatch.Assign(batch, base, 3)
	l.batches, l.end, l.epoch = append(l.batches, batch), base+int64(header.RecordCount), req.GetCoordinatorEpoch()
	m.appends++
	if m.lose != nil {
		if err := m.lose(); err != nil {
			return nil, err
		}
	}
	return &storagepeerv1.FencedAppendResponse{BaseOffset: base, HighWatermark: l.end, LeaderEpoch: 3}, nil
}

func (m *mesh) CheckFence(_ context.Context, req *storagepeerv1.CheckFenceRequest) (*storagepeerv1.CheckFenceResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checks++
	res := &storagepeerv1.CheckFenceResponse{}
	for _, f := range req.GetFences() {
		l, result := m.log(f.GetTopicId(), f.GetPartition()), &storagepeerv1.FenceResult{}
		if f.GetCoordinatorEpoch() != l.epoch || f.GetExpectedOffset() != l.end {
			result.Failure = rpcerr.AsFailure(fenced())
		}
		res.Results = append(res.Results, result)
	}
	return res, nil
}

func (m *mesh) Consume(ctx context.Context, req *storagev1.ConsumeRequest, stream storagev1connect.LogServiceConsumeServerStream) error {
	p := req.GetPartitions()[0]
	if got := p.GetStart().GetEarliest(); got == nil {
		return rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST, "only from the start here")
	}
	m.mu.Lock()
	l := m.log(p.GetTopicId(), p.GetPartition())
	batches, end := slices.Clone(l.batches), l.end
	m.mu.Unlock()
	for _, batch := range batches {
		header, err := recordbatch.Verify(batch)
		if err != nil {
			return err
		}
		if err := stream.Send(&storagev1.ConsumeResponse{Topic: p.GetTopic(), Partition: p.GetPartition(), NextOffset: header.BaseOffset + int64(header.RecordCount), HighWatermark: end, Batches: [][]byte{batch}}); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// Records have their offset as their timestamp, and the first hundred are gone.
func (m *mesh) ListOffsets(_ context.Context, req *storagev1.ListOffsetsRequest) (*storagev1.ListOffsetsResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listed++
	res := &storagev1.ListOffsetsResponse{}
	for _, p := range req.GetPartitions() {
		start, end := int64(0), m.ends[fmt.Sprintf("%s/%d", p.GetTopic(), p.GetPartition())]
		if end > 100 {
			start = 100
		}
		out := &storagev1.PartitionOffset{Topic: p.GetTopic(), Partition: p.GetPartition(), Offset: end}
		if m.leaderless {
			out.Failure = rpcerr.AsFailure(rpcerr.New(errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE, "too new"))
		}
		switch at := p.GetPosition().GetPosition().(type) {
		case *logv1.StartPosition_Earliest:
			out.Offset = start
		case *logv1.StartPosition_Time:
			out.Offset = min(max(at.Time.AsTime().UnixMilli(), start), end)
		}
		res.Partitions = append(res.Partitions, out)
	}
	return res, nil
}

func (m *mesh) setEnd(partition int32, end int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends[fmt.Sprintf("orders/%d", partition)] = end
}

// elect gives a partition of orders another leadership, with a log that ends elsewhere.
func (m *mesh) elect(partition int32, end int64) {
	m.setEnd(partition, end)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snapshot.Topics[0].Partitions[partition].LeaderEpoch++
	m.publish()
}

// gate is a transport whose calls wait while the process that makes them stands still.
type gate struct {
	connect.Transport
	closed func() <-chan struct{}
}

func (g gate) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	select {
	case <-g.closed():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return g.Transport.NewClientStream(ctx, spec)
}

// coordinatorNode is a coordinator and its clients.
type coordinatorNode struct {
	*Service
	id      int32
	groups  coordinatorv1connect.GroupServiceClient
	offsets coordinatorv1connect.OffsetServiceClient
	stop    func() error
	// registry has the metrics.
	registry *prometheus.Registry

	mu sync.Mutex
	// open is closed while the process may call others.
	open chan struct{}
}

func (n *coordinatorNode) passage() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open
}

// pause makes the calls of a node wait until resume.
func (n *coordinatorNode) pause() (resume func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	open := make(chan struct{})
	n.open = open
	return func() { close(open) }
}

// start runs a coordinator and waits until it is ready.
func (m *mesh) start(id int32, dir string, change ...func(*Config)) *coordinatorNode {
	m.t.Helper()
	config := DefaultConfig()
	config.DataDir = dir
	config.NodeID = cluster.NodeID(id)
	config.Listen, config.PeerListen = fmt.Sprintf("coordinator-%d:1", id), fmt.Sprintf("coordinator-%d:2", id)
	for _, c := range change {
		c(&config)
	}
	if err := config.Validate(); err != nil {
		m.t.Fatal(err)
	}
	measured := telemetry.Discard()
	n := &coordinatorNode{id: id, open: make(chan struct{}), registry: measured.Registry}
	close(n.open)
	pass := func(t connect.Transport) connect.Transport { return gate{t, n.passage} }
	n.Service = New(config, Deps{
		Metadata: pass(m.metadata), Telemetry: measured,
		Storage: func(string) connect.Transport { return pass(m.public) },
		Peers:   func(string) connect.Transport { return pass(m.peer) },
	})
	server, peer := rpc.NewServer(rpc.ServerOptions{}), rpc.NewServer(rpc.ServerOptions{})
	n.Register(server, peer)
	client := rpc.NewClient(rpc.InProcess(server), nil)
	n.groups, n.offsets = coordinatorv1connect.NewGroupServiceClient(client), coordinatorv1connect.NewOffsetServiceClient(client)
	ctx, cancel := context.WithCancel(context.WithoutCancel(m.t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	m.t.Cleanup(func() { _ = n.stop() })
	if err := n.Ready(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	return n
}

// memberStream is a member that joined, as its client sees it.
type memberStream struct {
	t      *testing.T
	stream coordinatorv1connect.GroupServiceJoinClientStream
	cancel context.CancelFunc
	// responses and err are guarded by mu.
	mu        sync.Mutex
	responses []*coordinatorv1.JoinResponse
	err       error
}

// join opens a stream; what comes is collected.
func (n *coordinatorNode) join(t *testing.T, req *coordinatorv1.JoinRequest) *memberStream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := n.groups.Join(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	s := &memberStream{t: t, stream: stream, cancel: cancel}
	go func() {
		for {
			res, err := stream.Receive()
			s.mu.Lock()
			if err != nil {
				s.err = err
				s.mu.Unlock()
				return
			}
			s.responses = append(s.responses, res)
			s.mu.Unlock()
		}
	}()
	return s
}

// latest returns the newest assignment, nil if there is none, and why the stream ended.
func (s *memberStream) latest() (*coordinatorv1.JoinResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.responses) == 0 {
		return nil, s.err
	}
	return s.responses[len(s.responses)-1], s.err
}

func (s *memberStream) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.responses)
}

func reason(err error) errorsv1.Reason { return rpcerr.ReasonOf(err) }
