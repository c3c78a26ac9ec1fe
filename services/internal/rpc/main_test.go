package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"go.uber.org/goleak"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logService is a handler of the shape that the storage service has.
type logService struct {
	storagev1connect.UnimplementedLogServiceHandler
	drain *Drain
}

// Produce echoes: a receiving child, and the handler's own goroutine sends and
// leaves.
func (s *logService) Produce(ctx context.Context, stream storagev1connect.LogServiceProduceServerStream) error {
	type received struct {
		request *storagev1.ProduceRequest
		err     error
	}
	requests := make(chan received)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			request, err := stream.Receive()
			select {
			case requests <- received{request, err}:
			case <-done:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		select {
		case r := <-requests:
			if errors.Is(r.err, io.EOF) {
				return nil
			}
			if r.err != nil {
				return r.err
			}
			if err := stream.Send(&storagev1.ProduceResponse{RequestId: r.request.GetRequestId(), Topic: r.request.GetTopic()}); err != nil {
				return err
			}
		case <-s.drain.C():
			return s.drain.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Append fails in the way that the topic says.
func (s *logService) Append(_ context.Context, request *storagev1.AppendRequest) (*storagev1.AppendResponse, error) {
	switch topic := request.GetAppend().GetTopic(); topic {
	case "panic":
		panic("secret of the panic")
	case "unforeseen":
		return nil, errors.New("secret of the disk")
	case "not-leader":
		return nil, rpcerr.New(errorsv1.Reason_REASON_NOT_LEADER, "node 2 leads it").
			WithDetail(&errorsv1.NotLeader{Topic: topic, LeaderId: 2, LeaderAddress: "h:1"})
	case "draining":
		return nil, s.drain.Err()
	default:
		return &storagev1.AppendResponse{Result: &storagev1.ProduceResponse{Topic: topic, BaseOffset: int64(len(request.GetAppend().GetBatch()))}}, nil
	}
}

// Consume sends two responses and then waits.
func (s *logService) Consume(ctx context.Context, request *storagev1.ConsumeRequest, stream storagev1connect.LogServiceConsumeServerStream) error {
	for i := range 2 {
		if err := stream.Send(&storagev1.ConsumeResponse{Topic: "t", NextOffset: int64(i), Batches: [][]byte{bytes.Repeat([]byte{'x'}, 10_000)}}); err != nil {
			return err
		}
	}
	if request.GetStopAtEnd() {
		return nil
	}
	for request.GetAsText() { // Never asks about the drain.
		if err := stream.Send(&storagev1.ConsumeResponse{Batches: [][]byte{make([]byte, 100_000)}}); err != nil {
			return err
		}
	}
	select {
	case <-s.drain.C():
		return s.drain.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// testServer is a server on a loopback port.
type testServer struct {
	address   string
	drain     *Drain
	health    *Health
	telemetry *telemetry.Telemetry
	logs      *syncBuffer
	stop      func() error // Ends the server and waits for it.
}

// syncBuffer is a buffer that several goroutines may write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func startServer(t *testing.T, change func(*ServeOptions)) *testServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{
		address:   listener.Addr().String(),
		drain:     NewDrain(),
		health:    NewHealth(storagev1connect.LogServiceName),
		telemetry: telemetry.Discard(),
		logs:      &syncBuffer{},
	}
	logger := slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	server := NewServer(ServerOptions{Logger: logger, Telemetry: s.telemetry})
	storagev1connect.RegisterLogServiceHandler(server, &logService{drain: s.drain})
	options := ServeOptions{
		Listener: listener, Server: server, Drain: s.drain, Grace: 5 * time.Second,
		Health: s.health, Reflection: true, Logger: logger, Telemetry: s.telemetry,
		Handlers: map[string]http.Handler{"/metrics": s.telemetry.MetricsHandler()},
	}
	if change != nil {
		change(&options)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, options) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func (s *testServer) client(t *testing.T) storagev1connect.LogServiceClient {
	t.Helper()
	pool := transport.NewPool(transport.Options{})
	t.Cleanup(pool.Close)
	return storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(s.address, transport.Produce)))
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(5 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never happened: %s", what)
		}
	}
}
