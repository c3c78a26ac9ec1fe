package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	metapeerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memoryLog is a log of the store whose commits come from a goroutine of their own,
// as the store's do, unless the test holds them back.
type memoryLog struct {
	mu      sync.Mutex
	changed *sync.Cond
	state   store.State
	batches []store.Batch
	queue   []func(error)
	held    bool
	closed  bool
}

func newMemoryLog() *memoryLog {
	l := &memoryLog{}
	l.changed = sync.NewCond(&l.mu)
	return l
}

// run commits until the log is closed.
func (l *memoryLog) run() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for len(l.queue) == 0 || l.held {
			if l.closed {
				return
			}
			l.changed.Wait()
		}
		done := l.queue[0]
		l.queue = l.queue[1:]
		l.mu.Unlock()
		done(nil)
		l.mu.Lock()
	}
}

// hold keeps commits back, or lets them go.
func (l *memoryLog) hold(held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = held
	l.changed.Broadcast()
}

func (l *memoryLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changed.Broadcast()
}

func (l *memoryLog) Loaded() (store.State, store.PackedProducers) { return l.state, "" }

func (l *memoryLog) Admit(int) error { return nil }

func (l *memoryLog) Append(a store.Append, done func(error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches = append(l.batches, a.Batches...)
	l.state = a.State
	l.queue = append(l.queue, done)
	l.changed.Broadcast()
}

func (l *memoryLog) Read(_ context.Context, offset, endOffset int64, maxBytes int) ([]store.Batch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []store.Batch
	size := 0
	for _, b := range l.batches {
		if b.LastOffset < offset {
			continue
		}
		if len(out) == 0 && b.BaseOffset > offset && offset < l.state.LogStart {
			return nil, store.ErrOffsetOutOfRange
		}
		if b.BaseOffset >= endOffset || (len(out) > 0 && size+len(b.Bytes) > maxBytes) {
			break
		}
		out = append(out, b)
		size += len(b.Bytes)
	}
	return out, nil
}

func (l *memoryLog) OffsetForTime(context.Context, int64, int64) (*store.Batch, error) {
	return nil, nil
}

func (l *memoryLog) Truncate(_ context.Context, offset int64, state store.State) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := offset
	for _, b := range l.batches {
		if b.LastOffset >= offset {
			end = min(end, b.BaseOffset)
		}
	}
	l.batches = slices.DeleteFunc(l.batches, func(b store.Batch) bool { return b.LastOffset >= offset })
	l.state = state
	return end, nil
}

func (l *memoryLog) Restart(_ context.Context, _ store.Set, state store.State) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches, l.state = nil, state
	return nil
}

// removeBelow forgets the batches that lie below an offset as a whole, as retention
// does.
func (l *memoryLog) removeBelow(offset int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches = slices.DeleteFunc(l.batches, func(b store.Batch) bool { return b.LastOffset < offset })
}

func (l *memoryLog) Spans(list []store.Span) []store.Span { return list }

func (l *memoryLog) Compact(context.Context, store.CompactOptions) (store.Compacted, error) {
	return store.Compacted{}, nil
}

func (l *memoryLog) Dirt(int64, time.Time, time.Duration) store.Dirt { return store.Dirt{} }

func (l *memoryLog) Err() error { return nil }

func (l *memoryLog) Failed() error { return nil }

// size is how many bytes of batches the log has been given.
func (l *memoryLog) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, b := range l.batches {
		n += len(b.Bytes)
	}
	return n
}

// content has the offsets and values of the log.
func (l *memoryLog) content(t testing.TB) []string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, b := range l.batches {
		header, err := recordbatch.Verify(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		records, err := recordbatch.Decode(b.Bytes, recordbatch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			out = append(out, fmt.Sprintf("%d/%d:%s", header.LeaderEpoch, r.Offset, r.Value))
		}
	}
	return out
}

// network carries the streams between nodes, and can break.
type network struct {
	mu      sync.Mutex
	servers map[string]connect.Transport
	cut     map[string]bool
	streams map[string][]context.CancelFunc
	// sent counts the messages in both directions.
	sent int
}

type networkTransport struct {
	network *network
	address string
}

var errCut = errors.New("the network is cut")

func (n *networkTransport) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	n.network.mu.Lock()
	defer n.network.mu.Unlock()
	to := n.network.servers[n.address]
	if n.network.cut[n.address] || to == nil {
		return nil, errCut
	}
	ctx, cancel := context.WithCancel(ctx)
	n.network.streams[n.address] = append(n.network.streams[n.address], cancel)
	stream, err := to.NewClientStream(ctx, spec)
	return &countedStream{ClientStream: stream, network: n.network}, err
}

// countedStream counts messages.
type countedStream struct {
	connect.ClientStream
	network *network
}

func (s *countedStream) Send(msg any) error {
	s.network.count()
	return s.ClientStream.Send(msg)
}

func (s *countedStream) Receive(msg any) error {
	err := s.ClientStream.Receive(msg)
	s.network.count()
	return err
}

func (n *network) count() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent++
}

func (n *network) messages() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent
}

// setCut breaks all streams to an address and refuses new ones, or heals it.
func (n *network) setCut(address string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[address] = cut
	if cut {
		for _, cancel := range n.streams[address] {
			cancel()
		}
		n.streams[address] = nil
	}
}

// node is a storage node without its public face.
type node struct {
	t          *testing.T
	id         cluster.NodeID
	epoch      cluster.NodeEpoch
	view       *clusterview.View
	host       *partition.Host
	proposer   *Proposer
	server     *Server
	drain      *rpc.Drain
	metrics    *Metrics
	mu         sync.Mutex
	partitions map[ID]*partition.Partition
	logs       map[ID]*memoryLog
	stop       func()
}

func (n *node) ByID(topic cluster.TopicID, index int32) (*partition.Partition, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.partitions[ID{topic, index}]; p != nil {
		return p, nil
	}
	return nil, rpcerr.New(errorsv1.Reason_REASON_NOT_LEADER, "not here")
}

func (n *node) WaitApplied(context.Context, int64) error { return nil }

func address(id cluster.NodeID) string { return fmt.Sprintf("node-%d:7081", id) }

// mesh is some nodes and what the cluster agrees on, which the test decides.
type mesh struct {
	t       *testing.T
	network *network
	nodes   map[cluster.NodeID]*node

	mu sync.Mutex
	// image is what the cluster has agreed on.
	image *metadatav1.ClusterSnapshot
	// alter answers ISR changes, with the mutex held.
	alter func(*metapeerv1.AlterPartitionRequest) (*metapeerv1.AlterPartitionResponse, error)
	// asked are the requests that came.
	asked []*metapeerv1.AlterPartitionRequest
}

var topicID = cluster.TopicID{7}

func start(t *testing.T, partitions int, ids ...cluster.NodeID) *mesh {
	t.Helper()
	return startWith(t, DefaultConfig(), partitions, ids...)
}

func startWith(t *testing.T, config Config, partitions int, ids ...cluster.NodeID) *mesh {
	t.Helper()
	return startTopic(t, config, "orders", partitions, ids...)
}

func startTopic(t *testing.T, config Config, name string, partitions int, ids ...cluster.NodeID) *mesh {
	t.Helper()
	m := &mesh{
		t:       t,
		network: &network{servers: map[string]connect.Transport{}, cut: map[string]bool{}, streams: map[string][]context.CancelFunc{}},
		nodes:   map[cluster.NodeID]*node{},
		image:   &metadatav1.ClusterSnapshot{ClusterId: make([]byte, 16), Version: 1},
	}
	topic := &metadatav1.Topic{TopicId: topicID[:], Name: name, PartitionCount: int32(partitions), Config: map[string]string{"min.insync.replicas": "1"}}
	for i := range partitions {
		p := &metadatav1.Partition{Partition: int32(i), LeaderId: int32(ids[0]), LastLeaderId: -1}
		for _, id := range ids {
			p.Replicas, p.Isr = append(p.Replicas, int32(id)), append(p.Isr, int32(id))
		}
		topic.Partitions = append(topic.Partitions, p)
	}
	m.image.Topics = []*metadatav1.Topic{topic}
	for _, id := range ids {
		m.image.Nodes = append(m.image.Nodes, &metadatav1.Node{NodeId: int32(id), NodeEpoch: 10, PeerAddress: address(id)})
	}
	for _, id := range ids {
		m.startNode(id, 10, config)
	}
	t.Cleanup(m.stop)
	m.publish()
	return m
}

// startNode starts a process of a node. It keeps the logs of the one before.
func (m *mesh) startNode(id cluster.NodeID, epoch cluster.NodeEpoch, config Config) {
	logger := slog.New(slog.DiscardHandler)
	n := &node{
		t: m.t, id: id, epoch: epoch, view: clusterview.New(logger, nil), drain: rpc.NewDrain(),
		partitions: map[ID]*partition.Partition{}, logs: map[ID]*memoryLog{},
	}
	n.host = partition.NewHost(partition.DefaultConfig(), address, nil)
	n.host.SetSelf(id)
	parsed, err := rules.ParseTopicConfig(m.image.Topics[0].Config)
	if err != nil {
		m.t.Fatal(err)
	}
	topic := partition.NewTopic(topicID, m.image.Topics[0].Name, parsed)
	var commits sync.WaitGroup
	for i := range m.image.Topics[0].Partitions {
		at := ID{topicID, int32(i)}
		n.logs[at] = newMemoryLog()
		if before := m.nodes[id]; before != nil {
			n.logs[at].state, n.logs[at].batches = before.logs[at].state, before.logs[at].batches
		}
		n.partitions[at] = partition.New(n.host, topic, int32(i), n.logs[at])
		commits.Go(n.logs[at].run)
	}
	n.metrics = NewMetrics(prometheus.NewRegistry(), func() int { return UnderReplicated(n.view, id) })
	n.proposer = NewProposer(config, n.view, proposals{m}, n.host.Proposing, logger, n.metrics)
	nodeEpoch := func(other cluster.NodeID) (cluster.NodeEpoch, bool) {
		if image := n.view.Image(); image != nil {
			if known, ok := image.Node(other); ok {
				return known.Epoch, true
			}
		}
		return 0, false
	}
	n.server = NewServer(config, n, nodeEpoch, n.proposer, n.drain, logger, n.metrics)
	rpcServer := rpc.NewServer(rpc.ServerOptions{})
	peerv1connect.RegisterReplicationServiceHandler(rpcServer, n.server)
	m.network.mu.Lock()
	m.network.servers[address(id)] = rpc.InProcess(rpcServer)
	m.network.mu.Unlock()
	followers := NewFollowers(n.view, n, func(to string) connect.Transport { return &networkTransport{m.network, to} }, logger, n.metrics)

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = n.host.Run(ctx) })
	running.Go(func() { _ = n.proposer.Run(ctx, id, epoch) })
	running.Go(func() { _ = followers.Run(ctx, id, epoch, 0) })
	n.stop = sync.OnceFunc(func() {
		m.network.mu.Lock()
		delete(m.network.servers, address(id))
		m.network.mu.Unlock()
		n.drain.Begin()
		if err := n.server.Wait(context.Background()); err != nil {
			m.t.Error(err)
		}
		cancel()
		running.Wait()
		for _, p := range n.partitions {
			p.Close()
		}
		for _, l := range n.logs {
			l.hold(false)
			l.close()
		}
		commits.Wait()
	})
	m.nodes[id] = n
}

func (m *mesh) stop() {
	for _, n := range m.nodes {
		n.stop()
	}
}

// publish makes all nodes know what the cluster has agreed on: first their
// partitions, then whoever follows the view.
func (m *mesh) publish() {
	m.t.Helper()
	m.agree(func() {})
	for _, n := range m.nodes {
		m.publishTo(n)
	}
}

func (m *mesh) imageOf() *cluster.Image {
	m.t.Helper()
	m.mu.Lock()
	snapshot := proto.CloneOf(m.image)
	m.mu.Unlock()
	image, err := cluster.FromSnapshot(snapshot)
	if err != nil {
		m.t.Fatal(err)
	}
	return image
}

func (m *mesh) publishTo(n *node) {
	m.t.Helper()
	image := m.imageOf()
	topic, _ := image.TopicByID(topicID)
	for id, p := range n.partitions {
		if err := p.Apply(topic.Partitions[id.Index]); err != nil {
			m.t.Fatal(err)
		}
	}
	n.view.Publish(image, nil)
}

// agree changes what the cluster agrees on, and tells nobody.
func (m *mesh) agree(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	m.image.Version++
}

// choose elects a leader, and tells nobody.
func (m *mesh) choose(index int32, leader cluster.NodeID) {
	m.agree(func() {
		p := m.image.Topics[0].Partitions[index]
		p.LeaderId = int32(leader)
		p.LeaderEpoch++
		p.PartitionEpoch++
	})
}

// elect changes the leader of a partition, in the next leader epoch.
func (m *mesh) elect(index int32, leader cluster.NodeID) {
	m.t.Helper()
	m.choose(index, leader)
	m.publish()
}

// setISR changes the ISR of a partition.
func (m *mesh) setISR(index int32, members ...int32) {
	m.t.Helper()
	m.agree(func() {
		p := m.image.Topics[0].Partitions[index]
		p.Isr = members
		p.PartitionEpoch++
	})
	m.publish()
}

func nodeID(id int) cluster.NodeID { return cluster.NodeID(id) }

// highWatermark is the one that the node believes in.
func (m *mesh) highWatermark(id int, index int32) int64 {
	return m.partition(nodeID(id), index).HighWatermark()
}

func (m *mesh) partition(id cluster.NodeID, index int32) *partition.Partition {
	return m.nodes[id].partitions[ID{topicID, index}]
}

func (m *mesh) log(id cluster.NodeID, index int32) *memoryLog {
	return m.nodes[id].logs[ID{topicID, index}]
}

// result is a Completion that a test looks at.
type result chan partition.Result

func (r result) Complete(x partition.Result) { r <- x }

// append appends a batch at a node and returns the outcome to come.
func (m *mesh) append(id cluster.NodeID, index int32, acks logv1.Acks, values ...string) result {
	m.t.Helper()
	out := make(result, 1)
	if err := m.partition(id, index).Append(partition.Append{
		Batch: m.batch(values...), Acks: acks, Deadline: time.Now().Add(time.Hour), LeaderEpoch: rules.NoEpoch,
	}, out); err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *mesh) batch(values ...string) []byte {
	m.t.Helper()
	var b recordbatch.Builder
	for _, v := range values {
		if err := b.Append(nil, []byte(v), nil, 1000); err != nil {
			m.t.Fatal(err)
		}
	}
	batch, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		m.t.Fatal(err)
	}
	return batch
}

// acknowledged waits for the outcome of an append.
func (m *mesh) acknowledged(r result) partition.Result {
	m.t.Helper()
	select {
	case out := <-r:
		if out.Err != nil {
			m.t.Fatalf("append failed: %v", out.Err)
		}
		return out
	case <-time.After(time.Minute):
		m.t.Fatal("not acknowledged")
		return partition.Result{}
	}
}

// converged waits until everything has come to rest, and checks that the logs of a
// partition are the same.
func (m *mesh) converged(index int32, want ...string) {
	m.t.Helper()
	time.Sleep(3 * time.Second) // Of the bubble's time.
	synctest.Wait()
	for id := range m.nodes {
		if got := m.log(id, index).content(m.t); !slices.Equal(got, want) {
			m.t.Errorf("node %d has %v, want %v", id, got, want)
		}
	}
}

// proposals is the metadata service.
type proposals struct{ *mesh }

func (p proposals) AlterPartition(_ context.Context, req *metapeerv1.AlterPartitionRequest) (*metapeerv1.AlterPartitionResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, req)
	if p.alter == nil {
		return nil, errCut
	}
	return p.alter(req)
}
