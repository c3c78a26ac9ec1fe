package runnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"connectrpc.com/connect/v2/connectproto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// fakeCluster is a cluster in memory that keeps the rules of the public API:
// sequences, epochs, offsets, routing. Its replication is perfect: whoever leads
// a partition has all of it. Scripts make it fail.
type fakeCluster struct {
	// onProduce decides about each request before it is handled; nil lets all
	// pass. Set it before use.
	onProduce func(node *fakeNode, request *storagev1.ProduceRequest) fault
	// onConsume may change each response; nil lets all pass.
	onConsume func(node *fakeNode, response *storagev1.ConsumeResponse)

	mu           sync.Mutex
	id           [16]byte
	version      int64
	changed      chan struct{}
	nodes        []*fakeNode
	topics       map[string]*fakeTopic
	deleted      [][]byte
	nextTopic    byte
	nextProducer int64
	// produced counts the requests of Produce, opened the streams of Consume.
	produced, opened int
}

// fault is what a script does to a request.
type fault struct {
	// failure is answered; the batch is appended nevertheless if appended is set.
	failure  *errorsv1.Failure
	appended bool
	// cut breaks all connections to the node afterwards, without an answer.
	cut bool
	// wait is received from first.
	wait <-chan struct{}
	// delay passes first.
	delay time.Duration
}

type fakeNode struct {
	cluster *fakeCluster
	id      int32
	role    metadatav1.NodeRole
	address string
	server  *connect.Server

	// Guarded by the cluster's mu.
	down  bool
	calls map[*fakeStream]struct{}
}

type fakeTopic struct {
	id         [16]byte
	name       string
	config     map[string]string
	partitions []*fakePartition
}

type fakePartition struct {
	leader    int32
	epoch     int32
	batches   [][]byte
	start     int64
	end       int64
	producers map[int64]*fakeProducer

	// coordinator is a node, or 0.
	coordinator      int32
	coordinatorEpoch int64
}

type fakeProducer struct {
	epoch  int16
	next   int32
	recent []fakeAppend
}

type fakeAppend struct {
	first, last int32
	offset      int64
}

// newFakeCluster has one metadata node, "meta:1", and so many storage nodes,
// "store-2:1" and so on.
func newFakeCluster(stores int) *fakeCluster {
	c := &fakeCluster{
		id:      [16]byte{1},
		version: 1,
		changed: make(chan struct{}),
		topics:  make(map[string]*fakeTopic),
	}
	for i := range stores + 1 {
		n := &fakeNode{
			cluster: c,
			id:      int32(i + 1),
			role:    metadatav1.NodeRole_NODE_ROLE_STORAGE,
			address: fmt.Sprintf("store-%d:1", i+1),
			server:  connect.NewServer(),
			calls:   make(map[*fakeStream]struct{}),
		}
		metadatav1connect.RegisterClusterServiceHandler(n.server, fakeClusterService{n})
		if i == 0 {
			n.role, n.address = metadatav1.NodeRole_NODE_ROLE_METADATA, "meta:1"
			metadatav1connect.RegisterTopicServiceHandler(n.server, fakeTopicService{node: n})
		} else {
			storagev1connect.RegisterLogServiceHandler(n.server, fakeLogService{node: n})
		}
		c.nodes = append(c.nodes, n)
	}
	return c
}

// client returns a client of the cluster that is closed with the test.
func (c *fakeCluster) client(t testing.TB) *Client {
	t.Helper()
	client, err := Config{Bootstrap: []string{"meta:1"}, Transports: c}.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error("closing the client:", err)
		}
	})
	return client
}

func (c *fakeCluster) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.changedLocked()
}

func (c *fakeCluster) changedLocked() {
	c.version++
	close(c.changed)
	c.changed = make(chan struct{})
}

// appendedLocked wakes readers without a new version.
func (c *fakeCluster) appendedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *fakeCluster) createTopic(name string, partitions int) *fakeTopic {
	var t *fakeTopic
	c.change(func() { t = c.createLocked(name, partitions, nil) })
	return t
}

func (c *fakeCluster) createLocked(name string, partitions int, config map[string]string) *fakeTopic {
	c.nextTopic++
	t := &fakeTopic{id: [16]byte{0xff, c.nextTopic}, name: name, config: config}
	var stores []*fakeNode
	for _, n := range c.nodes {
		if n.role == metadatav1.NodeRole_NODE_ROLE_STORAGE {
			stores = append(stores, n)
		}
	}
	for i := range partitions {
		t.partitions = append(t.partitions, &fakePartition{leader: stores[i%len(stores)].id, producers: make(map[int64]*fakeProducer)})
	}
	c.topics[name] = t
	return t
}

func (c *fakeCluster) deleteTopic(name string) {
	c.change(func() {
		if t := c.topics[name]; t != nil {
			c.deleted = append(c.deleted, t.id[:])
			delete(c.topics, name)
		}
	})
}

// moveLeader makes another node lead a partition and tells watchers if announce
// is set.
func (c *fakeCluster) moveLeader(topic string, partition int, leader int32, announce bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.topics[topic].partitions[partition]
	p.leader = leader
	p.epoch++
	if announce {
		c.changedLocked()
	} else {
		c.appendedLocked()
	}
}

func (c *fakeCluster) node(id int32) *fakeNode { return c.nodes[id-1] }

// setDown cuts a node off, or brings it back.
func (n *fakeNode) setDown(down bool) {
	n.cluster.mu.Lock()
	n.down = down
	n.cluster.mu.Unlock()
	if down {
		n.cut()
	}
}

// cut breaks all connections to the node.
func (n *fakeNode) cut() {
	n.cluster.mu.Lock()
	calls := slices.Collect(maps.Keys(n.calls))
	n.cluster.mu.Unlock()
	for _, call := range calls {
		call.cut()
	}
}

// records returns what a partition holds.
func (c *fakeCluster) records(t testing.TB, topic string, partition int) []recordbatch.Record {
	t.Helper()
	c.mu.Lock()
	batches := slices.Clone(c.topics[topic].partitions[partition].batches)
	c.mu.Unlock()
	var all []recordbatch.Record
	for _, b := range batches {
		if _, err := recordbatch.Verify(b); err != nil {
			t.Fatal("stored batch:", err)
		}
		records, err := recordbatch.Decode(b, recordbatch.Limits{})
		if err != nil {
			t.Fatal("stored batch:", err)
		}
		all = append(all, records...)
	}
	return all
}

// fill appends values to a partition, one batch per call.
func (c *fakeCluster) fill(t testing.TB, topic string, partition int, codec recordbatch.Codec, values ...string) {
	t.Helper()
	var b recordbatch.Builder
	for _, v := range values {
		if err := b.Append(nil, []byte(v), nil, 1000); err != nil {
			t.Fatal(err)
		}
	}
	batch, err := b.Build(recordbatch.WithoutProducer(codec))
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.topics[topic].partitions[partition].append(batch, int64(len(values)))
	c.appendedLocked()
}

// epochBefore returns the epoch of the record before an offset, or -1.
func (p *fakePartition) epochBefore(offset int64) int32 {
	for _, b := range slices.Backward(p.batches) {
		if h, _ := recordbatch.ParseHeader(b); h.BaseOffset < offset {
			return h.LeaderEpoch
		}
	}
	return -1
}

// truncate cuts the log off at an offset where a batch begins, under a new leader
// epoch.
func (c *fakeCluster) truncate(topic string, partition int, offset int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.topics[topic].partitions[partition]
	p.epoch++
	p.end = offset
	p.batches = slices.DeleteFunc(p.batches, func(b []byte) bool {
		h, _ := recordbatch.ParseHeader(b)
		return h.BaseOffset >= offset
	})
	c.changedLocked()
}

// parts says whether the log lacks the record of an epoch before an offset, and
// the largest epoch up to that one with its end (KIP-320).
func (p *fakePartition) parts(offset int64, lastRead int32) (epoch int32, end int64, parts bool) {
	epoch, end = -1, p.start
	for _, b := range p.batches {
		if h, _ := recordbatch.ParseHeader(b); h.LeaderEpoch <= lastRead {
			epoch, end = h.LeaderEpoch, h.LastOffset()+1
		}
	}
	return epoch, end, end < offset || epoch >= 0 && epoch < lastRead
}

func (p *fakePartition) append(batch []byte, records int64) int64 {
	batch = slices.Clone(batch)
	offset := p.end
	recordbatch.Assign(batch, offset, p.epoch)
	p.batches = append(p.batches, batch)
	p.end += records
	return offset
}

// Transport implements Transports.
func (c *fakeCluster) Transport(address string, _ transport.Class) connect.Transport {
	for _, n := range c.nodes {
		if n.address == address {
			return n
		}
	}
	return nowhere{address}
}

type nowhere struct{ address string }

func (n nowhere) NewClientStream(_ context.Context, spec connect.Spec) (connect.ClientStream, error) {
	return &unreachable{address: n.address, bidi: spec.StreamType&connect.StreamTypeClient != 0}, nil
}

// unreachable is a call to where nobody listens. As over HTTP, that shows when
// the answer is received.
type unreachable struct {
	address string
	bidi    bool
}

func (u *unreachable) SendHeaders() error { return nil }
func (u *unreachable) CloseSend() error   { return nil }
func (u *unreachable) Close() error       { return nil }
func (u *unreachable) Receive(any) error  { return refusedConnection(u.address) }

func (u *unreachable) Send(any) error {
	if u.bidi {
		return io.EOF
	}
	return nil
}

func refusedConnection(address string) error {
	dial := &transport.DialError{Cause: &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("%s: %w", address, syscall.ECONNREFUSED)}}
	return connect.NewError(connect.CodeUnavailable, dial.Error()).WithCause(dial).WithRemote()
}

// NewClientStream implements connect.Transport.
func (n *fakeNode) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	if n.down {
		return nowhere{n.address}.NewClientStream(ctx, spec)
	}
	ctx, cancel := context.WithCancel(ctx)
	inner, err := connectinprocess.New(n.server).NewClientStream(ctx, spec)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &fakeStream{ClientStream: inner, node: n, stream: spec.StreamType != connect.StreamTypeUnary, cancel: cancel, broken: make(chan struct{})}
	n.calls[s] = struct{}{}
	context.AfterFunc(ctx, func() {
		n.cluster.mu.Lock()
		defer n.cluster.mu.Unlock()
		delete(n.calls, s)
	})
	return s, nil
}

// fakeStream is a stream over a connection that can break.
type fakeStream struct {
	connect.ClientStream
	node   *fakeNode
	stream bool
	cancel context.CancelFunc
	once   sync.Once
	broken chan struct{}
}

func (s *fakeStream) cut() {
	s.once.Do(func() {
		close(s.broken)
		s.cancel()
	})
}

func (s *fakeStream) Receive(msg any) error {
	err := s.ClientStream.Receive(msg)
	if err == nil {
		return nil
	}
	defer s.cancel()
	select {
	case <-s.broken:
		return connect.NewError(connect.CodeUnavailable, "connection reset").WithRemote()
	default:
		return err
	}
}

func (s *fakeStream) Send(msg any) error {
	err := s.ClientStream.Send(msg)
	if err != nil {
		return io.EOF
	}
	return nil
}

func (s *fakeStream) Close() error {
	defer s.cancel()
	return s.ClientStream.Close()
}

// statusError is what a server answers to a failed call.
func statusError(f *errorsv1.Failure) error {
	detail, err := connectproto.NewErrorDetail(f)
	if err != nil {
		panic(err)
	}
	return connect.NewError(connect.CodeFailedPrecondition, f.GetMessage()).WithDetail(detail)
}

func failureOf(reason errorsv1.Reason) *errorsv1.Failure {
	return &errorsv1.Failure{Reason: reason, Message: "the fake says " + strings.ToLower(reason.String())}
}

type fakeClusterService struct{ node *fakeNode }

func (s fakeClusterService) GetCluster(_ context.Context, request *metadatav1.GetClusterRequest) (*metadatav1.GetClusterResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	snapshot := c.snapshotLocked()
	if request.GetExcludeTopics() {
		snapshot.Topics = nil
	}
	return &metadatav1.GetClusterResponse{Cluster: snapshot}, nil
}

func (s fakeClusterService) WatchCluster(ctx context.Context, request *metadatav1.WatchClusterRequest, stream metadatav1connect.ClusterServiceWatchClusterServerStream) error {
	c := s.node.cluster
	var sent int64
	for {
		c.mu.Lock()
		snapshot, changed := c.snapshotLocked(), c.changed
		deleted := slices.Clone(c.deleted)
		c.mu.Unlock()
		response := &metadatav1.WatchClusterResponse{}
		switch {
		case snapshot.Version == sent || snapshot.Version < request.GetKnownVersion():
			response = nil
		case sent == 0:
			response.Update = &metadatav1.WatchClusterResponse_Snapshot{Snapshot: snapshot}
		default:
			response.Update = &metadatav1.WatchClusterResponse_Delta{Delta: &metadatav1.ClusterDelta{
				PreviousVersion: sent, Version: snapshot.Version,
				Nodes: snapshot.Nodes, Topics: snapshot.Topics, RemovedTopicIds: deleted,
			}}
		}
		if response != nil {
			if err := stream.Send(response); err != nil {
				return err
			}
			sent = snapshot.Version
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *fakeCluster) snapshotLocked() *metadatav1.ClusterSnapshot {
	s := &metadatav1.ClusterSnapshot{ClusterId: slices.Clone(c.id[:]), Version: c.version, ControllerId: 1, DeletedTopicIds: slices.Clone(c.deleted)}
	for _, n := range c.nodes {
		s.Nodes = append(s.Nodes, &metadatav1.Node{NodeId: n.id, Role: n.role, Address: n.address, NodeEpoch: 1})
	}
	for _, name := range slices.Sorted(maps.Keys(c.topics)) {
		s.Topics = append(s.Topics, c.topics[name].proto())
	}
	return s
}

func (t *fakeTopic) proto() *metadatav1.Topic {
	out := &metadatav1.Topic{TopicId: slices.Clone(t.id[:]), Name: t.name, Config: maps.Clone(t.config), PartitionCount: int32(len(t.partitions))}
	for i, p := range t.partitions {
		out.Partitions = append(out.Partitions, &metadatav1.Partition{
			Partition: int32(i), LeaderId: p.leader, LeaderEpoch: p.epoch, PartitionEpoch: p.epoch,
			Replicas: []int32{2}, Isr: []int32{2}, LastLeaderId: -1,
			CoordinatorId: p.coordinator, CoordinatorEpoch: p.coordinatorEpoch,
		})
	}
	return out
}

type fakeTopicService struct{ node *fakeNode }

func (s fakeTopicService) CreateTopic(_ context.Context, request *metadatav1.CreateTopicRequest) (*metadatav1.CreateTopicResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.topics[request.GetName()] != nil {
		return nil, statusError(&errorsv1.Failure{Reason: errorsv1.Reason_REASON_TOPIC_EXISTS, Message: fmt.Sprintf("topic %q exists", request.GetName())})
	}
	t := c.createLocked(request.GetName(), max(1, int(request.GetPartitions())), request.GetConfig())
	c.changedLocked()
	return &metadatav1.CreateTopicResponse{Topic: t.proto()}, nil
}

func (s fakeTopicService) AlterTopic(_ context.Context, request *metadatav1.AlterTopicRequest) (*metadatav1.AlterTopicResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[request.GetName()]
	if t == nil {
		return nil, statusError(failureOf(errorsv1.Reason_REASON_TOPIC_NOT_FOUND))
	}
	after := t.proto()
	after.Config = maps.Clone(after.GetConfig())
	maps.Copy(after.Config, request.GetConfig())
	for _, name := range request.GetUnset() {
		delete(after.Config, name)
	}
	if !request.GetValidateOnly() {
		t.config = after.Config
		c.changedLocked()
	}
	return &metadatav1.AlterTopicResponse{Topic: after}, nil
}

// ElectLeaders moves leaderships to node 2, where the partitions are, or says what
// it would do.
func (s fakeTopicService) ElectLeaders(_ context.Context, request *metadatav1.ElectLeadersRequest) (*metadatav1.ElectLeadersResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	response := &metadatav1.ElectLeadersResponse{}
	unclean := request.GetType() == metadatav1.ElectionType_ELECTION_TYPE_UNCLEAN
	for _, named := range request.GetTopics() {
		t := c.topics[named.GetTopic()]
		if t == nil {
			return nil, statusError(failureOf(errorsv1.Reason_REASON_TOPIC_NOT_FOUND))
		}
		for _, i := range named.GetPartitions() {
			p := t.partitions[i]
			e := &metadatav1.LeaderElection{Topic: named.GetTopic(), Partition: i, PreviousLeaderId: p.leader, LeaderId: p.leader, LeaderEpoch: p.epoch, Unclean: unclean}
			switch {
			case p.leader == -1 && !unclean:
				e.Failure = failureOf(errorsv1.Reason_REASON_PREFERRED_LEADER_NOT_AVAILABLE)
			case request.GetValidateOnly():
				e.LeaderId = 2
			default:
				e.LeaderId = 2
				p.leader = 2
			}
			response.Elections = append(response.Elections, e)
		}
	}
	c.changedLocked()
	return response, nil
}

func (s fakeTopicService) DeleteTopic(_ context.Context, request *metadatav1.DeleteTopicRequest) (*metadatav1.DeleteTopicResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	known := c.topics[request.GetName()] != nil
	c.mu.Unlock()
	if !known {
		return nil, statusError(failureOf(errorsv1.Reason_REASON_TOPIC_NOT_FOUND))
	}
	c.deleteTopic(request.GetName())
	return &metadatav1.DeleteTopicResponse{}, nil
}

func (s fakeTopicService) ListTopics(_ context.Context, request *metadatav1.ListTopicsRequest) (*metadatav1.ListTopicsResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	// One topic per page, so that paging is put to the test.
	for _, name := range slices.Sorted(maps.Keys(c.topics)) {
		if name > request.GetPageToken() {
			page := &metadatav1.ListTopicsResponse{Topics: []*metadatav1.Topic{c.topics[name].proto()}}
			page.Topics[0].Partitions = nil
			if slices.Max(slices.Collect(maps.Keys(c.topics))) != name {
				page.NextPageToken = name
			}
			return page, nil
		}
	}
	return &metadatav1.ListTopicsResponse{}, nil
}

func (s fakeTopicService) DescribeTopic(_ context.Context, request *metadatav1.DescribeTopicRequest) (*metadatav1.DescribeTopicResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[request.GetName()]
	if t == nil {
		return nil, statusError(failureOf(errorsv1.Reason_REASON_TOPIC_NOT_FOUND))
	}
	return &metadatav1.DescribeTopicResponse{Topic: t.proto(), Config: []*metadatav1.ConfigEntry{{Name: "retention.ms", Value: "1", IsDefault: true, Documentation: "d"}}}, nil
}

type fakeLogService struct {
	storagev1connect.UnimplementedLogServiceHandler
	node *fakeNode
}

func (s fakeLogService) InitProducer(context.Context, *storagev1.InitProducerRequest) (*storagev1.InitProducerResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextProducer++
	return &storagev1.InitProducerResponse{ProducerId: c.nextProducer}, nil
}

func (s fakeLogService) Produce(ctx context.Context, stream storagev1connect.LogServiceProduceServerStream) error {
	type received struct {
		request *storagev1.ProduceRequest
		err     error
	}
	requests := make(chan received, 100)
	go func() {
		for {
			request, err := stream.Receive()
			select {
			case requests <- received{request, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		var next received
		select {
		case next = <-requests:
		case <-ctx.Done():
			return ctx.Err()
		}
		if errors.Is(next.err, io.EOF) {
			return nil
		}
		if next.err != nil {
			return next.err
		}
		response := s.produce(ctx, next.request)
		if response == nil {
			go s.node.cut()
			<-ctx.Done()
			return ctx.Err()
		}
		if next.request.GetAcks() == logv1.Acks_ACKS_NONE && response.GetFailure() == nil {
			continue
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

// produce returns the response, or nil if the connection is to be cut.
func (s fakeLogService) produce(ctx context.Context, request *storagev1.ProduceRequest) *storagev1.ProduceResponse {
	c := s.node.cluster
	var f fault
	if c.onProduce != nil {
		f = c.onProduce(s.node, request)
	}
	if f.delay > 0 {
		_ = sleep(ctx, f.delay)
	}
	if f.wait != nil {
		select {
		case <-f.wait:
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.produced++
	response := &storagev1.ProduceResponse{
		RequestId: request.GetRequestId(), Topic: request.GetTopic(), Partition: request.GetPartition(), BaseOffset: -1, AppendTimeMs: -1,
	}
	if f.failure == nil && !f.cut || f.appended {
		s.appendLocked(request, response)
	}
	if f.cut {
		return nil
	}
	if f.failure != nil {
		response.Failure = f.failure
	}
	return response
}

func (s fakeLogService) appendLocked(request *storagev1.ProduceRequest, response *storagev1.ProduceResponse) {
	c := s.node.cluster
	t, p, failure := s.partitionLocked(request.GetTopic(), request.GetPartition(), request.GetTopicId())
	if failure != nil {
		response.Failure = failure
		return
	}
	h, err := recordbatch.VerifyProduced(request.GetBatch())
	if err != nil {
		response.Failure = &errorsv1.Failure{Reason: errorsv1.Reason_REASON_CORRUPT_BATCH, Message: err.Error()}
		return
	}
	if t.config["cleanup.policy"] == "compact" {
		for r, err := range recordbatch.Records(request.GetBatch(), recordbatch.Limits{}) {
			if err != nil || r.Key == nil {
				response.Failure = failureOf(errorsv1.Reason_REASON_KEY_REQUIRED)
				return
			}
		}
	}
	response.LeaderEpoch = p.epoch
	if h.Idempotent() {
		state := p.producers[h.ProducerID]
		if state == nil {
			if h.BaseSequence != 0 {
				response.Failure = failureOf(errorsv1.Reason_REASON_UNKNOWN_PRODUCER)
				return
			}
			state = &fakeProducer{epoch: h.ProducerEpoch}
			p.producers[h.ProducerID] = state
		}
		if h.ProducerEpoch < state.epoch {
			response.Failure = failureOf(errorsv1.Reason_REASON_PRODUCER_FENCED)
			return
		}
		expected := state.next
		if h.ProducerEpoch > state.epoch {
			expected = 0
			if h.BaseSequence == 0 {
				*state = fakeProducer{epoch: h.ProducerEpoch}
			}
		}
		for _, a := range state.recent {
			if h.ProducerEpoch == state.epoch && a.first == h.BaseSequence && a.last == h.LastSequence() {
				response.BaseOffset, response.RecordCount, response.Duplicate = a.offset, h.RecordCount, true
				return
			}
		}
		if h.BaseSequence != expected {
			response.Failure = failureOf(errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE)
			response.Failure.Detail = &errorsv1.Failure_OutOfOrderSequence{OutOfOrderSequence: &errorsv1.OutOfOrderSequence{
				ProducerId: h.ProducerID, ExpectedSequence: expected, ReceivedSequence: h.BaseSequence,
			}}
			return
		}
		state.next = nextSequence(h.LastSequence(), 1)
		state.recent = append(state.recent, fakeAppend{first: h.BaseSequence, last: h.LastSequence(), offset: p.end})
		if len(state.recent) > 5 {
			state.recent = state.recent[1:]
		}
	}
	response.BaseOffset = p.append(request.GetBatch(), int64(h.RecordCount))
	response.RecordCount = h.RecordCount
	c.appendedLocked()
}

func (s fakeLogService) partitionLocked(topic string, partition int32, id []byte) (*fakeTopic, *fakePartition, *errorsv1.Failure) {
	c := s.node.cluster
	t := c.topics[topic]
	if t == nil || len(id) > 0 && string(id) != string(t.id[:]) {
		return nil, nil, failureOf(errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	}
	if partition < 0 || int(partition) >= len(t.partitions) {
		return nil, nil, failureOf(errorsv1.Reason_REASON_PARTITION_NOT_FOUND)
	}
	p := t.partitions[partition]
	if p.leader != s.node.id {
		failure := failureOf(errorsv1.Reason_REASON_NOT_LEADER)
		detail := &errorsv1.NotLeader{Topic: topic, Partition: partition, LeaderId: p.leader, LeaderEpoch: p.epoch}
		if p.leader > 0 {
			detail.LeaderAddress = c.node(p.leader).address
		} else {
			failure.Reason = errorsv1.Reason_REASON_NO_LEADER
		}
		failure.Detail = &errorsv1.Failure_NotLeader{NotLeader: detail}
		return nil, nil, failure
	}
	return t, p, nil
}

func (s fakeLogService) ListOffsets(_ context.Context, request *storagev1.ListOffsetsRequest) (*storagev1.ListOffsetsResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	response := &storagev1.ListOffsetsResponse{}
	for _, position := range request.GetPartitions() {
		o := &storagev1.PartitionOffset{Topic: position.GetTopic(), Partition: position.GetPartition(), Offset: -1}
		response.Partitions = append(response.Partitions, o)
		_, p, failure := s.partitionLocked(position.GetTopic(), position.GetPartition(), nil)
		if failure != nil {
			o.Failure = failure
			continue
		}
		o.LeaderEpoch = p.epoch
		switch at := position.GetPosition().GetPosition().(type) {
		case *logv1.StartPosition_Earliest:
			o.Offset = p.start
		case *logv1.StartPosition_Offset:
			o.Offset = at.Offset
		case *logv1.StartPosition_Time:
			o.Offset = p.end
			for _, b := range slices.Backward(p.batches) {
				h, _ := recordbatch.ParseHeader(b)
				if h.MaxTimestamp >= at.Time.AsTime().UnixMilli() {
					o.Offset = max(h.BaseOffset, p.start)
				}
			}
		default:
			o.Offset = p.end
		}
		if before := p.epochBefore(o.Offset); before >= 0 {
			o.PrecedingEpoch = &before
		}
	}
	return response, nil
}

func (s fakeLogService) DeleteRecords(_ context.Context, request *storagev1.DeleteRecordsRequest) (*storagev1.DeleteRecordsResponse, error) {
	c := s.node.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	response := &storagev1.DeleteRecordsResponse{}
	for _, position := range request.GetPartitions() {
		o := &storagev1.PartitionOffset{Topic: position.GetTopic(), Partition: position.GetPartition(), Offset: -1}
		response.Partitions = append(response.Partitions, o)
		_, p, failure := s.partitionLocked(position.GetTopic(), position.GetPartition(), nil)
		if failure != nil {
			o.Failure = failure
			continue
		}
		to := p.end
		if at, ok := position.GetPosition().GetPosition().(*logv1.StartPosition_Offset); ok {
			to = at.Offset
		}
		p.deleteBefore(to)
		o.Offset = p.start
	}
	return response, nil
}

func (p *fakePartition) deleteBefore(offset int64) {
	p.start = max(p.start, offset)
	p.batches = slices.DeleteFunc(p.batches, func(b []byte) bool {
		h, _ := recordbatch.ParseHeader(b)
		return h.LastOffset() < p.start
	})
}

// fakeReader is a partition of a stream.
type fakeReader struct {
	*storagev1.PartitionStart
	next int64
	// checked says that the position was compared with the log.
	checked, done bool
}

// truncated says, of a position that is compared for the first time, whether the
// log parts from what was read.
func (r *fakeReader) truncated(p *fakePartition) bool {
	first := !r.checked
	r.checked = true
	if !first || r.LastReadEpoch == nil {
		return false
	}
	_, _, parts := p.parts(r.next, r.GetLastReadEpoch())
	return parts
}

func (s fakeLogService) Consume(ctx context.Context, request *storagev1.ConsumeRequest, stream storagev1connect.LogServiceConsumeServerStream) error {
	c := s.node.cluster
	var readers []*fakeReader
	for _, start := range request.GetPartitions() {
		readers = append(readers, &fakeReader{PartitionStart: start, next: start.GetStart().GetOffset()})
	}
	c.mu.Lock()
	c.opened++
	c.mu.Unlock()
	for {
		var responses []*storagev1.ConsumeResponse
		c.mu.Lock()
		changed := c.changed
		for _, r := range readers {
			if r.done {
				continue
			}
			response := &storagev1.ConsumeResponse{Topic: r.GetTopic(), Partition: r.GetPartition(), NextOffset: r.next}
			_, p, failure := s.partitionLocked(r.GetTopic(), r.GetPartition(), r.GetTopicId())
			switch {
			case failure != nil:
			case r.LeaderEpoch != nil && r.GetLeaderEpoch() < p.epoch:
				failure = failureOf(errorsv1.Reason_REASON_FENCED_LEADER_EPOCH)
			case r.LeaderEpoch != nil && r.GetLeaderEpoch() > p.epoch:
				failure = failureOf(errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH)
			case r.truncated(p):
				epoch, end, _ := p.parts(r.next, r.GetLastReadEpoch())
				failure = failureOf(errorsv1.Reason_REASON_LOG_TRUNCATED)
				failure.Detail = &errorsv1.Failure_LogTruncated{LogTruncated: &errorsv1.LogTruncated{
					Offset: r.next, LastReadEpoch: r.GetLastReadEpoch(), Epoch: epoch, EndOffset: end,
				}}
			case r.next < p.start || r.next > p.end:
				failure = failureOf(errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE)
				failure.Detail = &errorsv1.Failure_OffsetOutOfRange{OffsetOutOfRange: &errorsv1.OffsetOutOfRange{
					Offset: r.next, EarliestOffset: p.start, LatestOffset: p.end,
				}}
			}
			if failure != nil {
				response.Failure, r.done = failure, true
				responses = append(responses, response)
				continue
			}
			response.HighWatermark, response.LogStartOffset, response.LeaderEpoch = p.end, p.start, p.epoch
			size := 0
			for _, b := range p.batches {
				h, _ := recordbatch.ParseHeader(b)
				if h.LastOffset() < r.next {
					continue
				}
				if size > 0 && size+len(b) > int(request.GetMaxResponseBytes()) {
					break
				}
				response.Batches = append(response.Batches, b)
				size += len(b)
				r.next = h.LastOffset() + 1
			}
			if size > 0 {
				response.NextOffset = r.next
				responses = append(responses, response)
			}
		}
		c.mu.Unlock()
		for _, response := range responses {
			if c.onConsume != nil {
				c.onConsume(s.node, response)
			}
			if err := stream.Send(response); err != nil {
				return err
			}
		}
		if len(responses) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
