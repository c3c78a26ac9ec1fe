package runnel

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// sink is a cluster of one node that swallows batches, and sends one batch over
// and over to consumers: what is left is the cost of the SDK and of HTTP/2.
type sink struct {
	storagev1connect.UnimplementedLogServiceHandler
	metadatav1connect.UnimplementedClusterServiceHandler
	address    string
	partitions int32
	// batch is what consumers get.
	batch   []byte
	records int64
}

func (s *sink) GetCluster(context.Context, *metadatav1.GetClusterRequest) (*metadatav1.GetClusterResponse, error) {
	topic := &metadatav1.Topic{TopicId: make([]byte, 16), Name: "t", PartitionCount: s.partitions}
	for i := range s.partitions {
		topic.Partitions = append(topic.Partitions, &metadatav1.Partition{Partition: i, LeaderId: 1})
	}
	return &metadatav1.GetClusterResponse{Cluster: &metadatav1.ClusterSnapshot{
		ClusterId: make([]byte, 16), Version: 1, ControllerId: 1, Topics: []*metadatav1.Topic{topic},
		Nodes: []*metadatav1.Node{{NodeId: 1, Role: metadatav1.NodeRole_NODE_ROLE_STORAGE, Address: s.address}},
	}}, nil
}

func (s *sink) InitProducer(context.Context, *storagev1.InitProducerRequest) (*storagev1.InitProducerResponse, error) {
	return &storagev1.InitProducerResponse{ProducerId: 1}, nil
}

func (s *sink) Produce(_ context.Context, stream storagev1connect.LogServiceProduceServerStream) error {
	var offset int64
	for {
		request, err := stream.Receive()
		if err != nil {
			return nil
		}
		h, err := recordbatch.ParseHeader(request.GetBatch())
		if err != nil {
			return err
		}
		response := &storagev1.ProduceResponse{
			RequestId: request.GetRequestId(), Topic: request.GetTopic(), Partition: request.GetPartition(), BaseOffset: offset, AppendTimeMs: -1,
		}
		offset += int64(h.RecordCount)
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

func (s *sink) Consume(ctx context.Context, request *storagev1.ConsumeRequest, stream storagev1connect.LogServiceConsumeServerStream) error {
	offset := request.GetPartitions()[0].GetStart().GetOffset()
	for ctx.Err() == nil {
		response := &storagev1.ConsumeResponse{Topic: "t"}
		for range max(1, (1<<20)/len(s.batch)) {
			batch := slices.Clone(s.batch)
			recordbatch.Assign(batch, offset, 0)
			offset += s.records
			response.Batches = append(response.Batches, batch)
		}
		response.NextOffset, response.HighWatermark = offset, offset
		if err := stream.Send(response); err != nil {
			return err
		}
	}
	return nil
}

// startSink serves over HTTP/2 on the loopback interface, and returns a client.
func startSink(b *testing.B, s *sink) *Client {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s.address = listener.Addr().String()
	server := connect.NewServer()
	storagev1connect.RegisterLogServiceHandler(server, s)
	metadatav1connect.RegisterClusterServiceHandler(server, s)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server, connecthttp.WithCodecs(transport.Codec(), connectproto.NewJSONCodec()), connecthttp.WithCompressors())
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	web := &http.Server{Handler: mux, Protocols: &protocols, HTTP2: transport.ServerHTTP2()}
	var wait sync.WaitGroup
	wait.Go(func() { _ = web.Serve(listener) })
	client, err := NewClient(s.address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = client.Close()
		_ = web.Close()
		wait.Wait()
	})
	return client
}

func BenchmarkProduce(b *testing.B) {
	for _, size := range []int{100, 1024} {
		for _, batch := range []int{64 << 10, 256 << 10, 1 << 20} {
			for _, callback := range []bool{false, true} {
				b.Run(fmt.Sprintf("record=%d/batch=%dKiB/callback=%v", size, batch>>10, callback), func(b *testing.B) {
					benchmarkProduce(b, size, 1, callback, WithBatchBytes(batch))
				})
			}
		}
	}
	b.Run("record=100/keyed/partitions=16", func(b *testing.B) { benchmarkProduce(b, 100, 16, false) })
	for _, c := range []Compression{Snappy, LZ4, Zstd, Gzip} {
		b.Run("record=100/compression="+c.String(), func(b *testing.B) { benchmarkProduce(b, 100, 1, false, WithCompression(c)) })
	}
}

func benchmarkProduce(b *testing.B, size int, partitions int32, callback bool, options ...ProducerOption) {
	client := startSink(b, &sink{partitions: partitions})
	p, err := client.NewProducer(options...)
	if err != nil {
		b.Fatal(err)
	}
	value := make([]byte, size)
	for i := range value {
		value[i] = byte(i * 131 >> 3)
	}
	var done func(Ack, error)
	if callback {
		done = func(_ Ack, err error) {
			if err != nil {
				b.Error(err)
			}
		}
	}
	ctx := context.Background()
	key := make([]byte, 8)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	for i := range b.N {
		r := Record{Topic: "t", Value: value}
		if partitions > 1 {
			key[0], key[1] = byte(i), byte(i>>8)
			r.Key = key
		}
		if err := p.Send(ctx, r, done); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/record")
}

// cpuTime returns the CPU time of the process, client and server: unlike the
// time on the wall it hardly depends on what else the machine does.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkLatency sends at a fixed rate and reports how long acknowledgements
// take.
func BenchmarkLatency(b *testing.B) {
	const rate = 10_000
	client := startSink(b, &sink{partitions: 1})
	p, err := client.NewProducer()
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	value := make([]byte, 100)
	if _, err := p.SendSync(ctx, Record{Topic: "t"}); err != nil {
		b.Fatal(err)
	}
	took := make([]time.Duration, b.N)
	b.ResetTimer()
	start := time.Now()
	for i := range b.N {
		due := start.Add(time.Duration(i) * time.Second / rate)
		for time.Until(due) > 0 {
			time.Sleep(time.Until(due))
		}
		if err := p.Send(ctx, Record{Topic: "t", Value: value}, func(_ Ack, err error) {
			if err != nil {
				b.Error(err)
			}
			took[i] = time.Since(due)
		}); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-us")
}

func BenchmarkConsume(b *testing.B) {
	for _, size := range []int{100, 1024} {
		for codec := NoCompression; codec <= Zstd; codec++ {
			if codec == Gzip {
				continue
			}
			b.Run(fmt.Sprintf("record=%d/compression=%v", size, codec), func(b *testing.B) { benchmarkConsume(b, size, codec) })
		}
	}
}

func benchmarkConsume(b *testing.B, size int, codec Compression) {
	var builder recordbatch.Builder
	value := make([]byte, size)
	for i := range value {
		value[i] = byte(i * 131 >> 3)
	}
	s := &sink{partitions: 1}
	for builder.EncodedSize() < 64<<10 {
		if err := builder.Append(nil, value, nil, 1000); err != nil {
			b.Fatal(err)
		}
		s.records++
	}
	var err error
	if s.batch, err = builder.Build(recordbatch.WithoutProducer(codec)); err != nil {
		b.Fatal(err)
	}
	client := startSink(b, s)
	c, err := client.NewConsumer()
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	if err := c.Assign(ctx, At("t", 0, Offset(0))); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	seen, bytes := 0, 0
	for seen < b.N {
		records, err := c.Poll(ctx)
		if err != nil {
			b.Fatal(err)
		}
		for r := range records.All() {
			bytes += len(r.Value)
		}
		seen += records.Len()
	}
	b.StopTimer()
	if bytes != seen*size {
		b.Errorf("%d bytes in %d records", bytes, seen)
	}
	b.ReportMetric(float64(seen)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(seen), "cpu-ns/record")
}
