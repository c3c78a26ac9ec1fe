package rpc

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// replica is one of several equal servers.
type replica struct {
	storagev1connect.UnimplementedLogServiceHandler
	name  string
	down  atomic.Bool // Answers "unavailable".
	calls atomic.Int32
}

var errDown = rpcerr.New(errorsv1.Reason_REASON_DRAINING, "down")

func (r *replica) Append(_ context.Context, request *storagev1.AppendRequest) (*storagev1.AppendResponse, error) {
	r.calls.Add(1)
	if r.down.Load() {
		return nil, errDown
	}
	if request.GetAppend().GetTopic() == "missing" {
		return nil, rpcerr.New(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "no such topic")
	}
	return &storagev1.AppendResponse{Result: &storagev1.ProduceResponse{Topic: r.name}}, nil
}

func (r *replica) Consume(_ context.Context, request *storagev1.ConsumeRequest, stream storagev1connect.LogServiceConsumeServerStream) error {
	r.calls.Add(1)
	if r.down.Load() {
		return errDown
	}
	if err := stream.Send(&storagev1.ConsumeResponse{Topic: r.name, NextOffset: request.GetMaxRecords()}); err != nil {
		return err
	}
	if request.GetStopAtEnd() {
		return nil
	}
	return errDown // In the middle of the stream.
}

func (r *replica) Produce(_ context.Context, stream storagev1connect.LogServiceProduceServerStream) error {
	r.calls.Add(1)
	if r.down.Load() {
		return errDown
	}
	if _, err := stream.Receive(); err != nil {
		return err
	}
	return stream.Send(&storagev1.ProduceResponse{Topic: r.name})
}

func replicas(names ...string) ([]*replica, []connect.Transport) {
	var rs []*replica
	var ts []connect.Transport
	for _, name := range names {
		r := &replica{name: name}
		server := NewServer(ServerOptions{})
		storagev1connect.RegisterLogServiceHandler(server, r)
		rs = append(rs, r)
		ts = append(ts, InProcess(server))
	}
	return rs, ts
}

func TestFailoverUnary(t *testing.T) {
	t.Parallel()
	rs, ts := replicas("a", "b", "c")
	client := storagev1connect.NewLogServiceClient(connect.NewClient(Failover(ts...)))
	answeredBy := func(want string) {
		t.Helper()
		response, err := client.Append(t.Context(), appendTo("t"))
		if err != nil || response.GetResult().GetTopic() != want {
			t.Errorf("answered by %q, want %q (%v)", response.GetResult().GetTopic(), want, err)
		}
	}
	answeredBy("a")
	rs[0].down.Store(true)
	rs[1].down.Store(true)
	answeredBy("c")
	rs[0].down.Store(false)
	answeredBy("c") // The one that answered last comes first.
	if n := rs[0].calls.Load(); n != 2 {
		t.Errorf("a was called %d times", n)
	}
	rs[2].down.Store(true)
	answeredBy("a")

	rs[0].down.Store(true)
	before := rs[0].calls.Load() + rs[1].calls.Load() + rs[2].calls.Load()
	if _, err := client.Append(t.Context(), appendTo("t")); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("all down: %v", err)
	}
	if n := rs[0].calls.Load() + rs[1].calls.Load() + rs[2].calls.Load() - before; n != 3 {
		t.Errorf("tried %d times", n)
	}
}

func TestFailoverKeepsAnswers(t *testing.T) {
	t.Parallel()
	rs, ts := replicas("a", "b")
	client := storagev1connect.NewLogServiceClient(connect.NewClient(Failover(ts...)))
	if _, err := client.Append(t.Context(), appendTo("missing")); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("%v", err)
	}
	if rs[1].calls.Load() != 0 {
		t.Error("a definite answer was asked for a second time")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rs[0].down.Store(true)
	if _, err := client.Append(ctx, appendTo("t")); err == nil {
		t.Error("a cancelled call succeeded")
	}
	if rs[1].calls.Load() != 0 {
		t.Error("a cancelled call was repeated")
	}
}

func TestFailoverServerStream(t *testing.T) {
	t.Parallel()
	rs, ts := replicas("a", "b")
	rs[0].down.Store(true)
	client := storagev1connect.NewLogServiceClient(connect.NewClient(Failover(ts...)))
	stream, err := client.Consume(t.Context(), &storagev1.ConsumeRequest{MaxRecords: 7, StopAtEnd: true})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Receive(); err != nil || r.GetTopic() != "b" || r.GetNextOffset() != 7 {
		t.Errorf("%v %v", r, err)
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v", err)
	}
	_ = stream.Close()

	// Not once a response has come: the caller knows where to go on, we do not.
	rs[0].down.Store(false)
	rs[0].calls.Store(0)
	stream, err = client.Consume(t.Context(), &storagev1.ConsumeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Receive(); err != nil || r.GetTopic() != "b" {
		t.Errorf("%v %v", r, err)
	}
	if _, err := stream.Receive(); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("middle: %v", err)
	}
	if rs[0].calls.Load() != 0 {
		t.Error("a stream was repeated after a response")
	}
	_ = stream.Close()
}

func TestFailoverBidiMovesOnWithTheNextCall(t *testing.T) {
	t.Parallel()
	rs, ts := replicas("a", "b")
	rs[0].down.Store(true)
	client := storagev1connect.NewLogServiceClient(connect.NewClient(Failover(ts...)))
	for i, want := range []string{"", "b"} {
		stream, err := client.Produce(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&storagev1.ProduceRequest{})
		r, err := stream.Receive()
		if r.GetTopic() != want || (err == nil) != (want != "") {
			t.Errorf("call %d: %v %v", i, r, err)
		}
		_ = stream.Close()
	}
}

func TestFailoverOverTheNetwork(t *testing.T) {
	s := startServer(t, nil)
	pool := transport.NewPool(transport.Options{})
	t.Cleanup(pool.Close)
	// Nobody listens on the first address.
	client := storagev1connect.NewLogServiceClient(connect.NewClient(Failover(
		pool.Transport("127.0.0.1:1", transport.Control), pool.Transport(s.address, transport.Control))))
	if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
		t.Error(err)
	}
	stream, err := storagev1connect.NewLogServiceClient(connect.NewClient(Failover(
		pool.Transport("127.0.0.1:1", transport.Consume), pool.Transport(s.address, transport.Consume)))).
		Consume(t.Context(), &storagev1.ConsumeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := stream.Receive(); err != nil {
		t.Error(err)
	}
}

func TestFailoverWithoutTargets(t *testing.T) {
	t.Parallel()
	client := storagev1connect.NewLogServiceClient(connect.NewClient(Failover()))
	if _, err := client.Append(t.Context(), appendTo("t")); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("%v", err)
	}
}
