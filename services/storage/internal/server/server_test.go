package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	storagepeerv1connect "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
	"github.com/runnel-mesh/runnel/services/storage/internal/replica"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const self cluster.NodeID = 1

// harness is a LogService over a real store, reached in-process, with a view of
// the cluster that the test writes.
type harness struct {
	t        testing.TB
	client   storagev1connect.LogServiceClient
	fenced   storagepeerv1connect.FencedAppendServiceClient
	server   *Server
	host     *partition.Host
	replicas *replica.Replicas
	drain    *rpc.Drain
	snapshot *metadatav1.ClusterSnapshot
	view     *clusterview.View
	// stop ends everything; it runs once, at the latest with the test.
	stop func()
	// blocks counts the blocks of producer ids that were asked for.
	blocks atomic.Int64
	// metrics has those of the host.
	metrics *prometheus.Registry
	// transport is what a client of its own is made with.
	transport connect.Transport
}

type options struct {
	dir       string
	config    Config
	partition partition.Config
	allocate  Allocate
	// front is called with the server before a client is made for it; nil stays in
	// the process.
	front func(*connect.Server) connect.Transport
}

func start(t testing.TB, change ...func(*options)) *harness {
	t.Helper()
	o := options{config: DefaultConfig(), partition: partition.DefaultConfig()}
	for _, c := range change {
		c(&o)
	}
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	config := store.DefaultConfig()
	config.Dir = o.dir
	st, err := store.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	h := &harness{
		t:       t,
		view:    clusterview.New(logger, nil),
		drain:   rpc.NewDrain(),
		metrics: prometheus.NewRegistry(),
		snapshot: &metadatav1.ClusterSnapshot{
			ClusterId: make([]byte, 16), Version: 1, ControllerId: 9,
			Nodes: []*metadatav1.Node{{NodeId: int32(self), Address: "self:7070"}, {NodeId: 2, Address: "other:7070"}},
		},
	}
	h.host = partition.NewHost(o.partition, func(id cluster.NodeID) string { return replica.Address(h.view, id) }, h.metrics)
	h.host.SetSelf(self)
	h.replicas = replica.New(h.host, h.view, logger, nil)
	ids := NewProducerIDs()
	if o.allocate == nil {
		o.allocate = func(context.Context) (*peerv1.AllocateProducerIdsResponse, error) {
			n := h.blocks.Add(1)
			return &peerv1.AllocateProducerIdsResponse{FirstProducerId: n * 1000, Count: 10}, nil
		}
	}
	h.server = New(o.config, h.host, h.replicas, ids, h.drain, logger, h.metrics)
	rpcServer := rpc.NewServer(rpc.ServerOptions{})
	storagev1connect.RegisterLogServiceHandler(rpcServer, h.server)
	if o.front == nil {
		o.front = rpc.InProcess
	}
	h.transport = o.front(rpcServer)
	h.client = storagev1connect.NewLogServiceClient(connect.NewClient(h.transport))
	peers := rpc.NewServer(rpc.ServerOptions{})
	storagepeerv1connect.RegisterFencedAppendServiceHandler(peers, NewFenced(h.host, h.replicas, logger, h.metrics))
	h.fenced = storagepeerv1connect.NewFencedAppendServiceClient(connect.NewClient(rpc.InProcess(peers)))

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 3)
	go func() { _ = h.host.Run(ctx); done <- struct{}{} }()
	go func() { _ = h.replicas.Run(ctx, st, 0); done <- struct{}{} }()
	go func() { _ = ids.Run(ctx, o.allocate); done <- struct{}{} }()
	h.stop = sync.OnceFunc(func() {
		h.drain.Begin()
		wait, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		if err := h.server.Wait(wait); err != nil {
			t.Errorf("streams are left: %v", err)
		}
		cancel()
		for range 3 {
			<-done
		}
		h.replicas.Close()
		if err := st.Close(1); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(h.stop)
	for _, _, err := ids.take(); err != nil; _, _, err = ids.take() {
		runtime.Gosched()
	}
	h.publish()
	return h
}

// publish makes the snapshot known and waits until the node acts on it.
func (h *harness) publish() {
	h.t.Helper()
	h.snapshot.Version++
	image, err := cluster.FromSnapshot(proto.CloneOf(h.snapshot))
	if err != nil {
		h.t.Fatal(err)
	}
	h.view.Publish(image, nil)
	if err := h.replicas.WaitApplied(h.t.Context(), image.Version); err != nil {
		h.t.Fatal(err)
	}
}

// create adds a topic that this node leads and returns its id.
func (h *harness) create(name string, partitions int, settings ...string) []byte {
	h.t.Helper()
	unique := uuid.New()
	id := unique[:]
	topic := &metadatav1.Topic{TopicId: id, Name: name, Config: map[string]string{}, PartitionCount: int32(partitions)}
	for i := 0; i < len(settings); i += 2 {
		topic.Config[settings[i]] = settings[i+1]
	}
	for i := range partitions {
		topic.Partitions = append(topic.Partitions, &metadatav1.Partition{
			Partition: int32(i), LeaderId: int32(self), Replicas: []int32{int32(self)}, Isr: []int32{int32(self)}, LastLeaderId: -1,
		})
	}
	h.snapshot.Topics = append(h.snapshot.Topics, topic)
	h.publish()
	return id
}

func (h *harness) topic(name string) *metadatav1.Topic {
	for _, t := range h.snapshot.Topics {
		if t.GetName() == name {
			return t
		}
	}
	h.t.Fatalf("no topic %q", name)
	return nil
}

// remove deletes a topic.
func (h *harness) remove(name string) {
	h.t.Helper()
	t := h.topic(name)
	h.snapshot.DeletedTopicIds = append(h.snapshot.DeletedTopicIds, t.GetTopicId())
	for i := range h.snapshot.Topics {
		if h.snapshot.Topics[i] == t {
			h.snapshot.Topics = append(h.snapshot.Topics[:i], h.snapshot.Topics[i+1:]...)
			break
		}
	}
	h.publish()
}

// elect gives a partition another leader; -1 leaves it without.
func (h *harness) elect(name string, index int, leader int32) {
	h.t.Helper()
	p := h.topic(name).GetPartitions()[index]
	p.LeaderId = leader
	p.LeaderEpoch++
	p.PartitionEpoch++
	h.publish()
}

// batch builds a batch of records without producer identity.
func batch(t testing.TB, values ...string) []byte {
	t.Helper()
	return build(t, recordbatch.WithoutProducer(recordbatch.None), values...)
}

func build(t testing.TB, o recordbatch.Options, values ...string) []byte {
	t.Helper()
	var b recordbatch.Builder
	for _, v := range values {
		if err := b.Append([]byte("key of "+v), []byte(v), nil, 1000); err != nil {
			t.Fatal(err)
		}
	}
	out, err := b.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// append appends by the unary call.
func (h *harness) append(topic string, index int32, values ...string) *storagev1.ProduceResponse {
	h.t.Helper()
	res, err := h.client.Append(h.t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
		Topic: topic, Partition: index, Batch: batch(h.t, values...),
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	return res.GetResult()
}

// producer is a Produce stream whose responses a goroutine collects.
type producer struct {
	t         testing.TB
	stream    storagev1connect.LogServiceProduceClientStream
	responses chan *storagev1.ProduceResponse
	end       chan error
}

func (h *harness) produce(ctx context.Context) *producer {
	h.t.Helper()
	stream, err := h.client.Produce(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	p := &producer{t: h.t, stream: stream, responses: make(chan *storagev1.ProduceResponse, 10_000), end: make(chan error, 1)}
	go func() {
		for {
			res, err := stream.Receive()
			if err != nil {
				close(p.responses)
				p.end <- err
				return
			}
			p.responses <- res
		}
	}()
	return p
}

func (p *producer) send(req *storagev1.ProduceRequest) {
	p.t.Helper()
	if err := p.stream.Send(req); err != nil {
		p.t.Fatal(err)
	}
}

func (p *producer) receive() *storagev1.ProduceResponse {
	p.t.Helper()
	select {
	case res, ok := <-p.responses:
		if !ok {
			p.t.Fatalf("the stream ended: %v", <-p.end)
		}
		return res
	case <-time.After(20 * time.Second):
		p.t.Fatal("no response")
		return nil
	}
}

// close ends the sending side and waits for the end of the stream.
func (p *producer) close() error {
	p.t.Helper()
	if err := p.stream.CloseSend(); err != nil {
		p.t.Fatal(err)
	}
	return p.wait()
}

func (p *producer) wait() error {
	p.t.Helper()
	select {
	case err := <-p.end:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	case <-time.After(20 * time.Second):
		p.t.Fatal("the stream does not end")
		return nil
	}
}

// consumer is a Consume stream that the test reads.
type consumer struct {
	t      testing.TB
	stream storagev1connect.LogServiceConsumeClientStream
	cancel context.CancelFunc
}

func (h *harness) consume(req *storagev1.ConsumeRequest) *consumer {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	stream, err := h.client.Consume(ctx, req)
	if err != nil {
		h.t.Fatal(err)
	}
	c := &consumer{t: h.t, stream: stream, cancel: cancel}
	h.t.Cleanup(c.close)
	return c
}

func (c *consumer) close() {
	c.cancel()
	_ = c.stream.Close()
}

func (c *consumer) receive() *storagev1.ConsumeResponse {
	c.t.Helper()
	stop := time.AfterFunc(20*time.Second, c.cancel)
	defer stop.Stop()
	res, err := c.stream.Receive()
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	return res
}

// end waits for the end of the stream and returns why, nil for the regular one.
func (c *consumer) end() error {
	c.t.Helper()
	stop := time.AfterFunc(20*time.Second, c.cancel)
	defer stop.Stop()
	for {
		if _, err := c.stream.Receive(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// metric returns the value of a counter or gauge.
func (h *harness) metric(name string) float64 {
	h.t.Helper()
	families, err := h.metrics.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	h.t.Fatalf("no metric %s", name)
	return 0
}

func earliest() *logv1.StartPosition {
	return &logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}}
}

func latest() *logv1.StartPosition {
	return &logv1.StartPosition{Position: &logv1.StartPosition_Latest{Latest: &logv1.Latest{}}}
}

func offset(n int64) *logv1.StartPosition {
	return &logv1.StartPosition{Position: &logv1.StartPosition_Offset{Offset: n}}
}

func from(topic string, index int32, position *logv1.StartPosition) *storagev1.PartitionStart {
	return &storagev1.PartitionStart{Topic: topic, Partition: index, Start: position}
}

func wantReason(t testing.TB, err error, reason errorsv1.Reason) *rpcerr.Error {
	t.Helper()
	e, ok := rpcerr.Parse(err)
	if !ok || e.Reason != reason {
		t.Fatalf("got %v, want %s", err, reason)
	}
	return e
}

func wantFailure(t testing.TB, f *errorsv1.Failure, reason errorsv1.Reason) {
	t.Helper()
	if f.GetReason() != reason {
		t.Fatalf("got %v, want %s", f, reason)
	}
}
