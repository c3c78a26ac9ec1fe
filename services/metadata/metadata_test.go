package metadata

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/etcdtest"
)

var etcd *etcdtest.Server

func TestMain(m *testing.M) {
	os.Exit(etcdtest.Main(m, func(s *etcdtest.Server) { etcd = s }, func() error { return goleak.Find() }))
}

// mesh is the metadata nodes of one cluster, in one process.
type mesh struct {
	t      testing.TB
	etcd   *etcdtest.Server
	prefix string
	layout catalog.Layout
	// raw reads and writes etcd past the services.
	raw *clientv3.Client
	// logger gets what the nodes log.
	logger *slog.Logger

	mu    sync.Mutex
	peers map[string]connect.Transport
	ports int
}

func newMesh(t testing.TB, server *etcdtest.Server) *mesh {
	prefix := server.Prefix()
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("RUNNEL_TEST_LOG") != "" {
		logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return &mesh{
		t: t, etcd: server, prefix: prefix, layout: catalog.NewLayout(prefix), raw: server.Client(t, server.Endpoint()),
		logger: logger, peers: make(map[string]connect.Transport),
	}
}

// member is a running metadata node and clients of it.
type member struct {
	*Service
	mesh *mesh
	dir  string

	topics     metadatav1connect.TopicServiceClient
	clusters   metadatav1connect.ClusterServiceClient
	nodes      peerv1connect.NodeServiceClient
	partitions peerv1connect.PartitionServiceClient
	offsets    peerv1connect.OffsetsTopicServiceClient

	cancel  context.CancelFunc
	done    chan struct{}
	err     error
	stopped bool
}

// option changes how a node is started.
type option func(*Config, *string)

// through starts a node that reaches etcd over another endpoint.
func through(endpoint string) option { return func(_ *Config, e *string) { *e = endpoint } }

// in starts a node on a data directory that exists already.
func in(dir string) option { return func(c *Config, _ *string) { c.DataDir = dir } }

func configured(f func(*Config)) option { return func(c *Config, _ *string) { f(c) } }

// start starts a node; it is stopped when the test ends.
func (m *mesh) start(options ...option) *member {
	m.t.Helper()
	m.mu.Lock()
	m.ports++
	config, endpoint := DefaultConfig(), m.etcd.Endpoint()
	config.DataDir = m.t.TempDir()
	config.Listen, config.PeerListen = fmt.Sprintf("127.0.0.1:%d", 10000+m.ports), fmt.Sprintf("127.0.0.1:%d", 20000+m.ports)
	m.mu.Unlock()
	// No lease runs out just because the machine is busy.
	config.Prefix, config.LeaseTTL = m.prefix, time.Minute
	for _, o := range options {
		o(&config, &endpoint)
	}
	if err := config.Validate(); err != nil {
		m.t.Fatal(err)
	}
	s := New(config, Deps{Etcd: m.etcd.Client(m.t, endpoint), Dial: m.dial, Logger: m.logger})
	public, peer := rpc.NewServer(rpc.ServerOptions{Logger: m.logger}), rpc.NewServer(rpc.ServerOptions{Logger: m.logger})
	s.Register(public, peer)
	m.mu.Lock()
	m.peers[config.PeerListen] = rpc.InProcess(peer)
	m.mu.Unlock()
	clients, peers := connect.NewClient(rpc.InProcess(public)), connect.NewClient(rpc.InProcess(peer))
	ctx, cancel := context.WithCancel(context.Background())
	n := &member{
		Service: s, mesh: m, dir: config.DataDir, cancel: cancel, done: make(chan struct{}),
		topics:     metadatav1connect.NewTopicServiceClient(clients),
		clusters:   metadatav1connect.NewClusterServiceClient(clients),
		nodes:      peerv1connect.NewNodeServiceClient(peers),
		partitions: peerv1connect.NewPartitionServiceClient(peers),
		offsets:    peerv1connect.NewOffsetsTopicServiceClient(peers),
	}
	go func() {
		defer close(n.done)
		n.err = s.Run(ctx)
	}()
	m.t.Cleanup(n.stop)
	return n
}

func (m *mesh) dial(address string) connect.Transport {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t, ok := m.peers[address]; ok {
		return t
	}
	return nobody{}
}

// nobody is the transport to an address where nobody listens.
type nobody struct{}

func (nobody) NewClientStream(context.Context, connect.Spec) (connect.ClientStream, error) {
	return nil, connect.NewError(connect.CodeUnavailable, "connection refused")
}

// ready waits until the node is ready.
func (n *member) ready() *member {
	n.mesh.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := n.Ready(ctx); err != nil {
		n.mesh.t.Fatal(err)
	}
	return n
}

// stop stops the node and waits until it has.
func (n *member) stop() {
	if n.stopped {
		return
	}
	n.stopped = true
	n.cancel()
	<-n.done
	if n.err != nil {
		n.mesh.t.Errorf("Run returned %v", n.err)
	}
}

// image waits until the node's image meets a condition.
func (n *member) image(what string, condition func(*cluster.Image) bool) *cluster.Image {
	n.mesh.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	image, err := n.view.Await(ctx, condition)
	if err != nil {
		n.mesh.t.Fatalf("%s: never so; the image is %v", what, n.view.Image().Snapshot())
	}
	return image
}

// storage is what a storage node, or one of another role, tells the metadata service,
// without such a node behind it.
type storage struct {
	via       *member
	role      metadatav1.NodeRole
	directory [16]byte
	boot      string
	id        cluster.NodeID
	epoch     cluster.NodeEpoch
	version   int64
}

func (n *member) storage() *storage {
	return &storage{via: n, role: metadatav1.NodeRole_NODE_ROLE_STORAGE, directory: uuid.New(), boot: "boot"}
}

func (n *member) coordinator() *storage {
	c := n.storage()
	c.role = metadatav1.NodeRole_NODE_ROLE_COORDINATOR
	return c
}

func (s *storage) request(clean bool) *peerv1.RegisterRequest {
	return &peerv1.RegisterRequest{
		NodeId: int32(s.id), Role: s.role,
		Address: "127.0.0.1:30000", DirectoryId: s.directory[:], BootId: s.boot, Clean: clean,
	}
}

// register starts a process of the node.
func (s *storage) register(clean bool) *storage {
	t := s.via.mesh.t
	t.Helper()
	response, err := s.via.nodes.Register(context.Background(), s.request(clean))
	if err != nil {
		t.Fatal(err)
	}
	if s.id != 0 && (cluster.NodeID(response.GetNodeId()) != s.id || cluster.NodeEpoch(response.GetNodeEpoch()) <= s.epoch) {
		t.Fatalf("node %d with epoch %d registered again as %v", s.id, s.epoch, response)
	}
	s.id, s.epoch, s.version = cluster.NodeID(response.GetNodeId()), cluster.NodeEpoch(response.GetNodeEpoch()), response.GetVersion()
	return s
}

func (s *storage) heartbeat() error {
	_, err := s.via.nodes.Heartbeat(context.Background(), &peerv1.HeartbeatRequest{NodeId: int32(s.id), NodeEpoch: int64(s.epoch)})
	return err
}

func (s *storage) producerIDs() *peerv1.AllocateProducerIdsRequest {
	return &peerv1.AllocateProducerIdsRequest{NodeId: int32(s.id), NodeEpoch: int64(s.epoch)}
}

func (s *storage) deregister() error {
	_, err := s.via.nodes.Deregister(context.Background(), &peerv1.DeregisterRequest{NodeId: int32(s.id), NodeEpoch: int64(s.epoch)})
	return err
}

// follow runs a catalog of its own over a client.
func (m *mesh) follow(client *clientv3.Client) (*clusterview.View, func()) {
	view := clusterview.New(m.logger, nil)
	c := catalog.New(catalog.Options{
		Client: client, Layout: m.layout, View: view, Logger: m.logger, RelistInterval: time.Minute, RequestTimeout: 5 * time.Second,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return view, func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Error(err)
		}
	}
}

// lease returns the lease of a node's live key, 0 if there is none.
func (m *mesh) lease(id cluster.NodeID) clientv3.LeaseID {
	m.t.Helper()
	response, err := m.raw.Get(context.Background(), m.layout.Live(id))
	if err != nil {
		m.t.Fatal(err)
	}
	if len(response.Kvs) == 0 {
		return 0
	}
	return clientv3.LeaseID(response.Kvs[0].Lease)
}

// expire ends a node's lease, as the passing of its time would.
func (m *mesh) expire(id cluster.NodeID) {
	m.t.Helper()
	if _, err := m.raw.Revoke(context.Background(), m.lease(id)); err != nil {
		m.t.Fatal(err)
	}
}

func (n *member) create(req *metadatav1.CreateTopicRequest) *metadatav1.Topic {
	n.mesh.t.Helper()
	response, err := n.topics.CreateTopic(context.Background(), req)
	if err != nil {
		n.mesh.t.Fatal(err)
	}
	return response.GetTopic()
}

func wantReason(t testing.TB, err error, want errorsv1.Reason) *rpcerr.Error {
	t.Helper()
	failure, ok := rpcerr.Parse(err)
	if !ok || failure.Reason != want {
		t.Fatalf("got %v, want %v", err, want)
	}
	return failure
}

// plantOps returns what writes a topic without its partitions.
func (m *mesh) plantOps(name string, partitions int, ready bool) (cluster.TopicID, []clientv3.Op) {
	id := cluster.TopicID(uuid.New())
	record := &catalogv1.TopicRecord{Name: name, PartitionCount: int32(partitions), State: catalogv1.TopicState_TOPIC_STATE_CREATING}
	if ready {
		record.State = catalogv1.TopicState_TOPIC_STATE_READY
	}
	return id, []clientv3.Op{m.layout.PutName(name, id), catalog.Put(m.layout.Topic(id), record)}
}
