package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
)

// pumps is a log service that keeps nothing: Produce answers each request without
// its batch, Consume sends batches for as long as anyone reads.
type pumps struct {
	storagev1connect.UnimplementedLogServiceHandler
}

func (pumps) Produce(_ context.Context, stream storagev1connect.LogServiceProduceServerStream) error {
	for {
		request, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&storagev1.ProduceResponse{RequestId: request.GetRequestId(), BaseOffset: int64(len(request.GetBatch()))}); err != nil {
			return err
		}
	}
}

func (pumps) Consume(_ context.Context, request *storagev1.ConsumeRequest, stream storagev1connect.LogServiceConsumeServerStream) error {
	batch := make([]byte, request.GetMaxResponseBytes())
	for {
		if err := stream.Send(&storagev1.ConsumeResponse{Topic: "t", Batches: [][]byte{batch}}); err != nil {
			return err
		}
	}
}

func (pumps) Append(_ context.Context, request *storagev1.AppendRequest) (*storagev1.AppendResponse, error) {
	return &storagev1.AppendResponse{Result: &storagev1.ProduceResponse{BaseOffset: int64(len(request.GetAppend().GetBatch()))}}, nil
}

// serve runs a server with the settings that ours have and returns its address.
func serve(tb testing.TB) string { return serveHandler(tb, pumps{}) }

func serveHandler(tb testing.TB, service storagev1connect.LogServiceHandler) string {
	tb.Helper()
	server := connect.NewServer()
	storagev1connect.RegisterLogServiceHandler(server, service)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server, connecthttp.WithCodecs(Codec()), connecthttp.WithCompressors(), connecthttp.WithReadMaxBytes(MaxMessageBytes))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	srv := &http.Server{Handler: mux, HTTP2: ServerHTTP2(), Protocols: new(http.Protocols), ReadHeaderTimeout: 5 * time.Second}
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(listener)
	}()
	tb.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return listener.Addr().String()
}

func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// reportCPU adds the CPU time of the whole process, client and server, which
// unlike the elapsed time says something on a machine that is busy otherwise.
func reportCPU(b *testing.B) {
	begin := cpuTime(b)
	b.Cleanup(func() { b.ReportMetric(float64(cpuTime(b)-begin)/float64(b.N), "cpu-ns/op") })
}

// inFlight is how many requests a benchmark sends ahead, as a producer does.
const inFlight = 8

func pumpUp(b *testing.B, client storagev1connect.LogServiceClient, size int) {
	stream, err := client.Produce(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer stream.Close()
	tokens := make(chan struct{}, inFlight)
	done := make(chan error, 1)
	total := b.N
	go func() {
		for range total {
			if _, err := stream.Receive(); err != nil {
				done <- err
				return
			}
			<-tokens
		}
		done <- nil
	}()
	batch := make([]byte, size)
	for i := range total {
		select {
		case tokens <- struct{}{}:
		case err := <-done:
			b.Fatal(err)
		}
		if err := stream.Send(&storagev1.ProduceRequest{RequestId: uint64(i), Topic: "t", Batch: batch}); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func pumpDown(b *testing.B, client storagev1connect.LogServiceClient, size int) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	stream, err := client.Consume(ctx, &storagev1.ConsumeRequest{MaxResponseBytes: int32(size)})
	if err != nil {
		b.Fatal(err)
	}
	defer stream.Close()
	for range b.N {
		if _, err := stream.Receive(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20} {
		for name, pump := range map[string]func(*testing.B, storagev1connect.LogServiceClient, int){"up": pumpUp, "down": pumpDown} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				address := serve(b)
				pool := NewPool(Options{})
				b.Cleanup(pool.Close)
				class := Produce
				if name == "down" {
					class = Consume
				}
				client := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(address, class)))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				reportCPU(b)
				b.ResetTimer()
				pump(b, client, size)
			})
		}
	}
}
