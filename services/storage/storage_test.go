package storage

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"go.uber.org/goleak"
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
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

func TestMain(m *testing.M) {
	if runAsNode() {
		return
	}
	goleak.VerifyTestMain(m)
}

// metadata is a metadata service whose answers the test decides. It has one topic,
// "orders", which every node that registers leads in the next epoch.
type metadata struct {
	peerv1connect.UnimplementedNodeServiceHandler
	view      *clusterview.View
	drain     *rpc.Drain
	transport connect.Transport

	mu         sync.Mutex
	snapshot   *metadatav1.ClusterSnapshot
	epoch      int64
	registered []*peerv1.RegisterRequest
	left       []*peerv1.DeregisterRequest
	// refuse answers every call of the named method.
	refuse map[string]error
	beat   chan struct{}
}

var clusterID = uuid.MustParse("11111111-2222-3333-4444-555555555555")

func newMetadata(t *testing.T) *metadata {
	m := startMetadata()
	t.Cleanup(m.drain.Begin)
	return m
}

func startMetadata() *metadata {
	topicID := uuid.New()
	m := &metadata{
		view:   clusterview.New(nil, nil),
		drain:  rpc.NewDrain(),
		refuse: map[string]error{},
		beat:   make(chan struct{}, 1000),
		snapshot: &metadatav1.ClusterSnapshot{
			ClusterId: clusterID[:], Version: 10, ControllerId: 9,
			Topics: []*metadatav1.Topic{{
				TopicId: topicID[:], Name: "orders", PartitionCount: 1,
				Partitions: []*metadatav1.Partition{{LeaderId: -1, Replicas: []int32{4}, Isr: []int32{4}, LastLeaderId: 4}},
			}},
		},
	}
	server := rpc.NewServer(rpc.ServerOptions{})
	peerv1connect.RegisterNodeServiceHandler(server, m)
	metadatav1connect.RegisterClusterServiceHandler(server, clusterview.NewHandler(m.view, m.drain))
	m.transport = rpc.InProcess(server)
	m.publish()
	return m
}

func (m *metadata) publish() {
	m.snapshot.Version++
	image, err := cluster.FromSnapshot(proto.CloneOf(m.snapshot))
	if err != nil {
		panic(err)
	}
	m.view.Publish(image, nil)
}

func (m *metadata) setRefuse(method string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse[method] = err
}

func (m *metadata) Register(_ context.Context, req *peerv1.RegisterRequest) (*peerv1.RegisterResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.registered = append(m.registered, req)
	if err := m.refuse["Register"]; err != nil {
		return nil, err
	}
	m.epoch += 7
	p := m.snapshot.GetTopics()[0].GetPartitions()[0]
	p.LeaderId = 4
	p.LeaderEpoch++
	p.PartitionEpoch++
	m.publish()
	return &peerv1.RegisterResponse{ClusterId: clusterID[:], NodeId: 4, NodeEpoch: m.epoch, LeaseMs: 200, Version: m.snapshot.GetVersion()}, nil
}

func (m *metadata) Heartbeat(_ context.Context, req *peerv1.HeartbeatRequest) (*peerv1.HeartbeatResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.beat <- struct{}{}
	if err := m.refuse["Heartbeat"]; err != nil {
		return nil, err
	}
	if req.GetNodeId() != 4 || req.GetNodeEpoch() != m.epoch {
		return nil, rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH, "epoch %d is over", req.GetNodeEpoch())
	}
	return &peerv1.HeartbeatResponse{LeaseMs: 200, Version: m.snapshot.GetVersion()}, nil
}

func (m *metadata) Deregister(_ context.Context, req *peerv1.DeregisterRequest) (*peerv1.DeregisterResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left = append(m.left, req)
	return &peerv1.DeregisterResponse{}, nil
}

func (m *metadata) AllocateProducerIds(context.Context, *peerv1.AllocateProducerIdsRequest) (*peerv1.AllocateProducerIdsResponse, error) {
	return &peerv1.AllocateProducerIdsResponse{FirstProducerId: 1000, Count: 1000}, nil
}

// running is a service in its process.
type running struct {
	t       *testing.T
	service *Service
	public  connect.Transport
	client  storagev1connect.LogServiceClient
	cancel  context.CancelFunc
	done    chan error
}

func run(t *testing.T, m *metadata, change ...func(*Config)) *running {
	t.Helper()
	config := DefaultConfig()
	config.DataDir = t.TempDir()
	config.Grace = 20 * time.Second
	for _, c := range change {
		c(&config)
	}
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	s := New(config, Deps{Metadata: m.transport, Logger: slog.New(slog.DiscardHandler)})
	public, peer := rpc.NewServer(rpc.ServerOptions{}), rpc.NewServer(rpc.ServerOptions{})
	s.Register(public, peer)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, service: s, public: rpc.InProcess(public), cancel: cancel, done: make(chan error, 1)}
	r.client = storagev1connect.NewLogServiceClient(connect.NewClient(r.public))
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.done <- s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-stopped
	})
	return r
}

func (r *running) ready() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	if err := r.service.Ready(ctx); err != nil {
		r.t.Fatal(err)
	}
}

// ends waits for Run to return.
func (r *running) ends() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(20 * time.Second):
		r.t.Fatal("Run does not return")
		return nil
	}
}

func (r *running) append() (*storagev1.ProduceResponse, error) {
	value := "v"
	res, err := r.client.Append(r.t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
		Topic: "orders", Records: []*logv1.Record{{ValueText: &value}},
	}})
	return res.GetResult(), err
}

func TestLife(t *testing.T) {
	t.Parallel()
	m := newMetadata(t)
	dir := t.TempDir()
	r := run(t, m, func(c *Config) { c.DataDir, c.Advertise = dir, "log-4:7070" })
	r.ready()
	if res, err := r.append(); err != nil || res.GetBaseOffset() != 0 || res.GetLeaderEpoch() != 1 {
		t.Fatalf("append: %v, %v", res, err)
	}
	known, err := metadatav1connect.NewClusterServiceClient(connect.NewClient(r.public)).GetCluster(t.Context(), &metadatav1.GetClusterRequest{})
	if err != nil || len(known.GetCluster().GetTopics()) != 1 {
		t.Errorf("cluster as the node knows it: %v, %v", known, err)
	}
	<-m.beat
	if res, err := r.client.InitProducer(t.Context(), &storagev1.InitProducerRequest{}); err != nil || res.GetProducerId() < 1000 {
		t.Errorf("producer id: %v, %v", res, err)
	}
	first := m.registered[0]
	if first.GetAddress() != "log-4:7070" || first.GetPeerAddress() != DefaultConfig().PeerListen || first.GetNodeId() != 0 || len(first.GetClusterId()) != 0 ||
		len(first.GetDirectoryId()) != 16 || first.GetBootId() == "" || first.GetClean() || first.GetRole() != metadatav1.NodeRole_NODE_ROLE_STORAGE {
		t.Errorf("first registration %v", first)
	}
	stream, err := r.client.Consume(t.Context(), &storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{{Topic: "orders"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	r.cancel()
	if _, err := stream.Receive(); rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_DRAINING {
		t.Errorf("stream ended with %v", err)
	}
	if err := r.ends(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	if len(m.left) != 1 || m.left[0].GetNodeId() != 4 || m.left[0].GetNodeEpoch() != 7 {
		t.Errorf("deregistered %v", m.left)
	}
	if err := r.service.Ready(t.Context()); err == nil {
		t.Error("ready although it has stopped")
	}

	r = run(t, m, func(c *Config) { c.DataDir = dir })
	r.ready()
	second := m.registered[1]
	if second.GetNodeId() != 4 || string(second.GetClusterId()) != string(clusterID[:]) || !second.GetClean() ||
		string(second.GetDirectoryId()) != string(first.GetDirectoryId()) || second.GetBootId() != first.GetBootId() {
		t.Errorf("second registration %v", second)
	}
	if res, err := r.append(); err != nil || res.GetBaseOffset() != 1 || res.GetLeaderEpoch() != 2 {
		t.Errorf("append after the restart: %v, %v", res, err)
	}
}

func TestWaitsForMetadata(t *testing.T) {
	t.Parallel()
	m := newMetadata(t)
	m.setRefuse("Register", rpcerr.New(errorsv1.Reason_REASON_NOT_CONTROLLER, "there is none"))
	r := run(t, m)
	soon, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := r.service.Ready(soon); err == nil || !strings.Contains(err.Error(), "register") {
		t.Errorf("ready without metadata: %v", err)
	}
	if _, err := r.append(); rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_NO_LEADER {
		t.Errorf("append before the start: %v", err)
	}
	m.setRefuse("Register", nil)
	r.ready()
	if _, err := r.append(); err != nil {
		t.Error(err)
	}
}

func TestStopsWhileItWaits(t *testing.T) {
	t.Parallel()
	m := newMetadata(t)
	m.setRefuse("Register", rpcerr.New(errorsv1.Reason_REASON_NOT_CONTROLLER, "there is none"))
	r := run(t, m)
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_ = r.service.Ready(soon)
	r.cancel()
	if err := r.ends(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	if len(m.left) != 0 {
		t.Error("deregistered without being registered")
	}
}

func TestRefusedForGood(t *testing.T) {
	t.Parallel()
	m := newMetadata(t)
	m.setRefuse("Register", rpcerr.New(errorsv1.Reason_REASON_NODE_MISMATCH, "the directory belongs to another cluster"))
	err := run(t, m).ends()
	if err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("ended with %v", err)
	}
	if len(m.registered) != 1 {
		t.Errorf("%d attempts", len(m.registered))
	}
}

func TestDirectoryOfAnotherNode(t *testing.T) {
	t.Parallel()
	m := newMetadata(t)
	dir := t.TempDir()
	r := run(t, m, func(c *Config) { c.DataDir = dir })
	r.ready()
	r.cancel()
	if err := r.ends(); err != nil {
		t.Fatal(err)
	}
	err := run(t, m, func(c *Config) { c.DataDir, c.NodeID = dir, 5 }).ends()
	if err == nil || !strings.Contains(err.Error(), "belongs to node 4") {
		t.Errorf("ended with %v", err)
	}
	if err := run(t, m, func(c *Config) { c.DataDir = dir + "/x\x00" }).ends(); err == nil {
		t.Error("opened a directory that cannot be")
	}
}

func TestAnotherProcessTakesOver(t *testing.T) {
	t.Parallel()
	m := newMetadata(t)
	r := run(t, m)
	r.ready()
	m.mu.Lock()
	m.epoch += 7
	m.mu.Unlock()
	err := r.ends()
	if err == nil || !strings.Contains(err.Error(), "another process has registered as node 4") {
		t.Errorf("ended with %v", err)
	}
	if e, ok := errors.AsType[*connect.Error](err); !ok || e.Code() != connect.CodeAborted {
		t.Errorf("the cause is lost: %v", err)
	}
}

// Leases only detect: a leader that is not heard goes on.
func TestLeadsWithoutHeartbeats(t *testing.T) {
	t.Parallel()
	m := newMetadata(t)
	r := run(t, m)
	r.ready()
	m.setRefuse("Heartbeat", rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "etcd is away"))
	// Several leases long.
	for range 12 {
		<-m.beat
	}
	if _, err := r.append(); err != nil {
		t.Errorf("append without a lease: %v", err)
	}
	r.cancel()
	if err := r.ends(); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

// Where another service has its ClusterService on the public port, it stays.
func TestRegisterBesideAnotherService(t *testing.T) {
	t.Parallel()
	m := newMetadata(t)
	s := New(DefaultConfig(), Deps{Metadata: m.transport})
	public := rpc.NewServer(rpc.ServerOptions{})
	metadatav1connect.RegisterClusterServiceHandler(public, clusterview.NewHandler(m.view, m.drain))
	s.Register(public, rpc.NewServer(rpc.ServerOptions{}))
	known, err := metadatav1connect.NewClusterServiceClient(connect.NewClient(rpc.InProcess(public))).GetCluster(t.Context(), &metadatav1.GetClusterRequest{})
	if err != nil || known.GetCluster().GetVersion() != m.snapshot.GetVersion() {
		t.Errorf("%v, %v", known, err)
	}
	s.Drain()
	s.Drain()
	soon, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Ready(soon); err == nil || !strings.Contains(err.Error(), "not been started") {
		t.Errorf("ready before Run: %v", err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	bad := Config{Listen: ":7070", PeerListen: "nonsense", NodeID: -1, Grace: -1, TailBytes: -1, MaxTimestampAhead: -1, OpenedBytes: 1 << 30, ReplicaStreamBytes: -1}
	err := bad.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, fault := range []string{
		"DataDir", `":7070"`, `"nonsense"`, "NodeID", "Grace", "VolumeBytes", "VolumeAge", "MaxOpenSealed", "GroupBytes", "TailBytes",
		"InFlightBytes", "ProducersPerPartition", "MaxTimestampAhead", "OpenedBytes", "KeyMapBytes", "CompactEvery", "StreamRequests", "Streams",
		"CleaningRate", "RetentionEvery", "ReplicaLag", "ReplicaWindowBytes",
	} {
		if !strings.Contains(err.Error(), fault) {
			t.Errorf("%s is not among the faults", fault)
		}
	}
	for address, ok := range map[string]bool{
		"127.0.0.1:1": true, "[::1]:65535": true, "log-1.example:7070": true,
		"": false, "7070": false, "0.0.0.0:7070": false, "[::]:7070": false, "host:0": false, "host:65536": false, "host:x": false,
	} {
		config := DefaultConfig()
		config.Listen = address
		if got := config.Validate() == nil; got != ok {
			t.Errorf("address %q: accepted %t, want %t", address, got, ok)
		}
		if config.Advertise = "log-1:7070"; config.Validate() != nil {
			t.Errorf("address %q is refused although another is advertised", address)
		}
	}
}
