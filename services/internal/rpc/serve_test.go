package rpc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/grpcreflect/v2"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/reflect/protoreflect"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

func appendTo(topic string) *storagev1.AppendRequest {
	return &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{Topic: topic}}
}

func TestErrorsReachTheClientAsAuthored(t *testing.T) {
	s := startServer(t, nil)
	client := s.client(t)

	_, err := client.Append(t.Context(), appendTo("not-leader"))
	failure, ok := rpcerr.Parse(err)
	if !ok || connect.CodeOf(err) != connect.CodeFailedPrecondition || failure.Reason != errorsv1.Reason_REASON_NOT_LEADER {
		t.Fatalf("%v, %+v", err, failure)
	}
	if d, ok := failure.Detail.(*errorsv1.NotLeader); !ok || d.GetLeaderAddress() != "h:1" {
		t.Errorf("detail %v", failure.Detail)
	}

	for topic, secret := range map[string]string{"panic": "secret of the panic", "unforeseen": "secret of the disk"} {
		_, err := client.Append(t.Context(), appendTo(topic))
		if connect.CodeOf(err) != connect.CodeInternal || strings.Contains(err.Error(), "secret") {
			t.Fatalf("%s: %v", topic, err)
		}
		failure, ok := rpcerr.Parse(err)
		if !ok || failure.Reason != errorsv1.Reason_REASON_INTERNAL {
			t.Fatalf("%s: %+v", topic, failure)
		}
		incident := failure.Message[strings.LastIndexByte(failure.Message, ' ')+1:]
		var line string
		for l := range strings.Lines(s.logs.String()) {
			if strings.Contains(l, "incident="+incident) {
				line = l
			}
		}
		if !strings.Contains(line, secret) || !strings.Contains(line, "procedure=/runnel.storage.v1.LogService/Append") {
			t.Errorf("%s: log line of incident %s: %q", topic, incident, line)
		}
	}
	// The process lives.
	if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
		t.Error(err)
	}
}

func TestDrainReleasesStreams(t *testing.T) {
	s := startServer(t, nil)
	client := s.client(t)
	produce, err := client.Produce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := produce.Send(&storagev1.ProduceRequest{RequestId: 7}); err != nil {
		t.Fatal(err)
	}
	if r, err := produce.Receive(); err != nil || r.GetRequestId() != 7 {
		t.Fatal(r, err)
	}
	consume, err := client.Consume(t.Context(), &storagev1.ConsumeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := consume.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	pool := transport.NewPool(transport.Options{})
	defer pool.Close()
	reflection := grpcreflect.NewClient(connect.NewClient(pool.Transport(s.address, transport.Control))).NewStream(t.Context())
	if _, err := reflection.ListServices(); err != nil {
		t.Fatal(err)
	}
	watch := watchHealth(t, pool.Transport(s.address, transport.Control), "")

	begin := time.Now()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("the drain took %s", took)
	}
	_, err = produce.Receive()
	wantDraining(t, "produce", err)
	_, err = consume.Receive()
	wantDraining(t, "consume", err)
	for {
		response := &grpc_health_v1.HealthCheckResponse{}
		if err := watch.Receive(response); err != nil {
			wantDraining(t, "watch", err)
			break
		}
	}
	if _, err := client.Append(t.Context(), appendTo("ok")); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("call after the stop: %v", err)
	}
}

func wantDraining(t *testing.T, what string, err error) {
	t.Helper()
	failure, ok := rpcerr.Parse(err)
	if connect.CodeOf(err) != connect.CodeUnavailable || !ok || failure.Reason != errorsv1.Reason_REASON_DRAINING {
		t.Errorf("%s ended with %v", what, err)
	}
}

// A client that does not read keeps its handler in Send.
func TestStalledClientDoesNotHoldUpTheDrain(t *testing.T) {
	s := startServer(t, nil)
	client := s.client(t)
	stream, err := client.Consume(t.Context(), &storagev1.ConsumeRequest{AsText: true})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > sendGrace+2*time.Second {
		t.Errorf("the stop took %s", took)
	}
	if strings.Contains(s.logs.String(), "cut off") {
		t.Error("the connection was cut off")
	}
	for err == nil {
		_, err = stream.Receive()
	}
	if errors.Is(err, io.EOF) {
		t.Error("the stream looks complete")
	}
}

func TestStuckHandlerIsCutOffAfterGrace(t *testing.T) {
	s := startServer(t, func(o *ServeOptions) {
		o.Grace = 50 * time.Millisecond
		o.Drain = NewDrain() // Not the one that the handlers watch.
	})
	stream, err := s.client(t).Consume(t.Context(), &storagev1.ConsumeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// Neither an idle connection nor one that has never sent anything holds up a stop.
func TestIdleConnectionsDoNotDelayTheStop(t *testing.T) {
	s := startServer(t, nil)
	client := s.client(t)
	if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	eventually(t, "both are open", func() bool { return gauge(t, s, "runnel_rpc_connections") == 2 })
	begin := time.Now()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 500*time.Millisecond {
		t.Errorf("the stop took %s", took)
	}
}

// A call that is being answered is not idle.
func TestRunningCallsEndInPeace(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s := startServer(t, func(o *ServeOptions) {
		o.Handlers["/slow"] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(entered)
			<-release
			_, _ = io.WriteString(w, "done")
		})
	})
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h := &http.Transport{Protocols: protocols}
	defer h.CloseIdleConnections()
	answer := make(chan string, 1)
	go func() {
		response, err := (&http.Client{Transport: h}).Get("http://" + s.address + "/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		answer <- string(body)
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	select {
	case err := <-stopped:
		t.Fatalf("stopped in the middle of a call: %v", err)
	case <-time.After(4 * lastWords):
	}
	close(release)
	if got := <-answer; got != "done" {
		t.Errorf("answer %q", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestReflectionShowsOnlyWhatIsServed(t *testing.T) {
	s := startServer(t, nil)
	pool := transport.NewPool(transport.Options{})
	defer pool.Close()
	stream := grpcreflect.NewClient(connect.NewClient(pool.Transport(s.address, transport.Control))).NewStream(t.Context())
	defer stream.Close()
	names, err := stream.ListServices()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range names {
		got = append(got, string(n))
	}
	want := []string{"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", "runnel.storage.v1.LogService"}
	if !slices.Equal(got, want) {
		t.Errorf("services %v, want %v", got, want)
	}
	for _, symbol := range want {
		files, err := stream.FileContainingSymbol(protoreflect.FullName(symbol))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: %v", symbol, err)
		}
	}
	// The message of a dependency, and of a file that is compiled in but not served.
	if _, err := stream.FileContainingSymbol("runnel.errors.v1.Failure"); err != nil {
		t.Errorf("dependency: %v", err)
	}
	if _, err := stream.FileContainingSymbol("google.protobuf.FileDescriptorSet"); err == nil {
		t.Error("a file that no service needs is shown")
	}

	// The older version, which grpcurl falls back to.
	alpha := connect.NewClient(pool.Transport(s.address, transport.Control))
	raw, err := alpha.CallClientStream(t.Context(), connect.Spec{StreamType: connect.StreamTypeBidi, Procedure: "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"})
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Send(&grpc_health_v1.HealthCheckRequest{Service: "x"}); err != nil {
		t.Fatal(err)
	}
	// Field 1 of the request is the host, so it carries no question.
	if err := raw.Receive(&grpc_health_v1.HealthCheckResponse{}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("v1alpha: %v", err)
	}
	_ = raw.Close()
}

func TestHealth(t *testing.T) {
	s := startServer(t, nil)
	pool := transport.NewPool(transport.Options{})
	defer pool.Close()
	target := pool.Transport(s.address, transport.Control)
	check := func(service string) (grpc_health_v1.HealthCheckResponse_ServingStatus, error) {
		response := &grpc_health_v1.HealthCheckResponse{}
		err := connect.NewClient(target).CallUnary(t.Context(), healthSpec("Check", connect.StreamTypeUnary), &grpc_health_v1.HealthCheckRequest{Service: service}, response)
		return response.GetStatus(), err
	}
	if status, err := check(""); err != nil || status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("at first: %s, %v", status, err)
	}
	if _, err := check("nobody"); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("unknown service: %v", err)
	}
	watch := watchHealth(t, target, storagev1connect.LogServiceName)
	if got := receiveHealth(t, watch); got != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("watch begins with %s", got)
	}
	s.health.SetServing(storagev1connect.LogServiceName, true)
	if got := receiveHealth(t, watch); got != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("watch goes on with %s", got)
	}
	list := &grpc_health_v1.HealthListResponse{}
	if err := connect.NewClient(target).CallUnary(t.Context(), healthSpec("List", connect.StreamTypeUnary), &grpc_health_v1.HealthListRequest{}, list); err != nil {
		t.Fatal(err)
	}
	if len(list.GetStatuses()) != 2 || list.GetStatuses()[storagev1connect.LogServiceName].GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("list %v", list.GetStatuses())
	}

	if code, _ := get(t, s.address, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("readyz %d before", code)
	}
	s.health.SetServing("", true)
	if code, _ := get(t, s.address, "/readyz"); code != http.StatusOK {
		t.Errorf("readyz %d after", code)
	}
	if code, _ := get(t, s.address, "/healthz"); code != http.StatusOK {
		t.Errorf("healthz %d", code)
	}
}

func watchHealth(t *testing.T, target connect.Transport, service string) connect.ClientStream {
	t.Helper()
	stream, err := connect.NewClient(target).CallServerStream(t.Context(), healthSpec("Watch", connect.StreamTypeServer), &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.Close() })
	return stream
}

func receiveHealth(t *testing.T, stream connect.ClientStream) grpc_health_v1.HealthCheckResponse_ServingStatus {
	t.Helper()
	response := &grpc_health_v1.HealthCheckResponse{}
	if err := stream.Receive(response); err != nil {
		t.Fatal(err)
	}
	return response.GetStatus()
}

func get(t *testing.T, address, path string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// post sends one request over HTTP/1.1, as curl does.
func post(t *testing.T, address, procedure, contentType string, body []byte, header map[string]string) (*http.Response, []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+procedure, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	for k, v := range header {
		request.Header.Set(k, v)
	}
	transport := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, answer
}

func TestHTTP1WithJSON(t *testing.T) {
	s := startServer(t, nil)
	response, body := post(t, s.address, storagev1connect.LogServiceAppendProcedure, "application/json",
		[]byte(`{"append":{"topic":"t","batch":"AAAA"}}`), map[string]string{"Accept-Encoding": "gzip"})
	var answer struct {
		Result struct{ Topic, BaseOffset string }
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Result.Topic != "t" || answer.Result.BaseOffset != "3" {
		t.Errorf("unary: %s %q %v", response.Status, body, err)
	}
	if enc := response.Header.Get("Content-Encoding"); enc != "" {
		t.Errorf("unary response is encoded: %s", enc)
	}

	response, body = post(t, s.address, storagev1connect.LogServiceConsumeProcedure, "application/connect+json",
		envelope([]byte(`{"stopAtEnd":true}`)), map[string]string{"Connect-Accept-Encoding": "gzip"})
	if enc := response.Header.Get("Connect-Content-Encoding"); enc != "" {
		t.Errorf("stream is encoded: %s", enc)
	}
	messages := envelopes(t, body)
	if len(messages) != 3 || !strings.Contains(messages[1], `"nextOffset":"1"`) || messages[2] != "{}" {
		t.Errorf("server stream: %s, %d messages", response.Status, len(messages))
	}

	// The errors, in the form that Connect clients read.
	response, body = post(t, s.address, storagev1connect.LogServiceAppendProcedure, "application/json", []byte(`{"append":{"topic":"not-leader"}}`), nil)
	if response.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), `"failed_precondition"`) || !strings.Contains(string(body), "REASON_NOT_LEADER") {
		t.Errorf("error: %s %s", response.Status, body)
	}
	response, body = post(t, s.address, storagev1connect.LogServiceAppendProcedure, "application/json", []byte(`{"nonsense`), nil)
	if response.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), `"invalid_argument"`) {
		t.Errorf("malformed: %s %s", response.Status, body)
	}
}

func envelope(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

func envelopes(t *testing.T, body []byte) []string {
	t.Helper()
	var out []string
	for len(body) > 0 {
		if len(body) < 5 || len(body) < 5+int(binary.BigEndian.Uint32(body[1:])) {
			t.Fatalf("cut off: %q", body)
		}
		end := 5 + int(binary.BigEndian.Uint32(body[1:]))
		out = append(out, string(body[5:end]))
		body = body[end:]
	}
	return out
}

func TestBidiOverHTTP1SaysWhatToDo(t *testing.T) {
	s := startServer(t, nil)
	for _, contentType := range []string{"application/connect+json", "application/connect+proto", "application/json", "application/grpc-web+proto", "text/plain"} {
		response, body := post(t, s.address, storagev1connect.LogServiceProduceProcedure, contentType, envelope([]byte(`{}`)), nil)
		text := string(body) + response.Header.Get("Grpc-Message")
		if !strings.Contains(text, "HTTP/2") {
			t.Errorf("%s: %s %q %v", contentType, response.Status, body, response.Header)
		}
	}
	if code, body := get(t, s.address, storagev1connect.LogServiceProduceProcedure); code < 400 || !strings.Contains(body, "HTTP/2") {
		t.Errorf("GET: %d %q", code, body)
	}
}

func TestNothingIsCompressedForGRPCEither(t *testing.T) {
	s := startServer(t, nil)
	// A client that offers gzip, as every other gRPC and Connect client does.
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h := &http.Transport{Protocols: protocols, DisableCompression: true}
	defer h.CloseIdleConnections()
	var encodings []string
	spy := doer(func(r *http.Request) (*http.Response, error) {
		response, err := h.RoundTrip(r)
		if err == nil {
			encodings = append(encodings, r.Header.Get("Grpc-Accept-Encoding")+">"+response.Header.Get("Grpc-Encoding"))
		}
		return response, err
	})
	client := storagev1connect.NewLogServiceClient(connect.NewClient(connecthttp.NewTransport(spy, "http://"+s.address, connecthttp.WithGRPC())))
	stream, err := client.Consume(t.Context(), &storagev1.ConsumeRequest{StopAtEnd: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := stream.Receive(); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
	}
	if !slices.Equal(encodings, []string{"gzip>"}) {
		t.Errorf("encodings %q", encodings)
	}
}

type doer func(*http.Request) (*http.Response, error)

func (d doer) Do(r *http.Request) (*http.Response, error) { return d(r) }

func TestOversizeMessages(t *testing.T) {
	s := startServer(t, nil)
	client := s.client(t)
	big := make([]byte, transport.MaxMessageBytes+1)

	// A client of ours refuses to send it.
	if _, err := client.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{Batch: big}}); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("our client: %v", err)
	}
	// One of others is refused by the server, unary and in a stream.
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h := &http.Transport{Protocols: protocols}
	defer h.CloseIdleConnections()
	foreign := storagev1connect.NewLogServiceClient(connect.NewClient(connecthttp.NewTransport(doer(h.RoundTrip), "http://"+s.address)))
	_, err := foreign.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{Batch: big}})
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("unary: %v", err)
	}
	stream, err := foreign.Produce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	_ = stream.Send(&storagev1.ProduceRequest{Batch: big})
	if _, err := stream.Receive(); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("stream: %v", err)
	}
	// A body without end over HTTP/1.1 is cut off instead of read on.
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nTransfer-Encoding: chunked\r\n\r\n", storagev1connect.LogServiceAppendProcedure)
	chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", 1<<20, make([]byte, 1<<20))
	var sent int64
	for sent < 4*transport.MaxMessageBytes {
		n, err := conn.Write(chunk)
		sent += int64(n)
		if err != nil {
			break
		}
	}
	if sent >= 4*transport.MaxMessageBytes {
		t.Errorf("the server read on for %d bytes", sent)
	}
	if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
		t.Error(err)
	}
}

func TestThousandIdleStreamsOfOneClient(t *testing.T) {
	s := startServer(t, nil)
	client := s.client(t)
	const streams = 1000
	for range streams {
		stream, err := client.Consume(t.Context(), &storagev1.ConsumeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = stream.Close() })
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
		t.Errorf("beside %d streams: %v", streams, err)
	}
	if n := gauge(t, s, "runnel_rpc_connections"); n != 1 {
		t.Errorf("%v connections", n)
	}
	if n := gauge(t, s, "runnel_rpc_in_flight"); n != streams {
		t.Errorf("%v calls in flight", n)
	}
	begin := time.Now()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("draining them took %s", took)
	}
}

// gauge sums a metric over its labels.
func gauge(t *testing.T, s *testServer, name string) float64 {
	t.Helper()
	families, err := s.telemetry.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func TestRandomBytesOnThePort(t *testing.T) {
	s := startServer(t, nil)
	client := s.client(t)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 50 {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		junk := make([]byte, 1+random.IntN(4096))
		for j := range junk {
			junk[j] = byte(random.Uint32())
		}
		switch i % 3 {
		case 1:
			junk = append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), junk...)
		case 2:
			junk = append([]byte("POST "+storagev1connect.LogServiceProduceProcedure+" HTTP/1.1\r\n"), junk...)
		}
		_, _ = conn.Write(junk)
		_ = conn.Close()
	}
	// Half a header, left open: closed by the server, or by us at its stop.
	half, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	_, _ = io.WriteString(half, "POST / HTTP/1.1\r\nHost: x\r\nX-Half: ")
	if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
		t.Errorf("after junk: %v", err)
	}
	eventually(t, "the junk connections are closed", func() bool { return gauge(t, s, "runnel_rpc_connections") <= 2 })
	if n := gauge(t, s, "runnel_rpc_in_flight"); n != 0 {
		t.Errorf("%v calls in flight", n)
	}
}

func TestHalfHeadersAreTimedOut(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the header timeout")
	}
	t.Parallel()
	s := startServer(t, nil)
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-Half: ")
	_ = conn.SetReadDeadline(time.Now().Add(2 * readHeaderTimeout))
	if _, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
		_, err = io.Copy(io.Discard, conn)
		if err != nil {
			t.Errorf("still open: %v", err)
		}
	} else if !errors.Is(err, io.EOF) {
		t.Errorf("still open: %v", err)
	}
}

func TestConnectionLimit(t *testing.T) {
	s := startServer(t, func(o *ServeOptions) { o.MaxConnections = 2 })
	var conns []net.Conn
	for range 2 {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	eventually(t, "both are open", func() bool { return gauge(t, s, "runnel_rpc_connections") == 2 })
	third, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a connection beyond the limit is served")
	}
	if n := gauge(t, s, "runnel_rpc_connections_refused_total"); n != 1 {
		t.Errorf("%v refused", n)
	}
	_ = conns[0].Close()
	eventually(t, "a closed one makes room", func() bool {
		_, err := s.client(t).Append(t.Context(), appendTo("ok"))
		return err == nil
	})
}

func TestMetricsOfRPCs(t *testing.T) {
	s := startServer(t, nil)
	client := s.client(t)
	if _, err := client.Append(t.Context(), appendTo("ok")); err != nil {
		t.Fatal(err)
	}
	_, _ = client.Append(t.Context(), appendTo("unforeseen"))
	stream, err := client.Consume(t.Context(), &storagev1.ConsumeRequest{StopAtEnd: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := stream.Receive(); err != nil {
			break
		}
	}
	eventually(t, "all have ended", func() bool { return gauge(t, s, "runnel_rpc_finished_total") == 3 })
	code, body := get(t, s.address, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("metrics %d: %s", code, body)
	}
	for _, line := range []string{
		`runnel_rpc_started_total{procedure="/runnel.storage.v1.LogService/Append"} 2`,
		`runnel_rpc_finished_total{code="internal",procedure="/runnel.storage.v1.LogService/Append"} 1`,
		`runnel_rpc_finished_total{code="ok",procedure="/runnel.storage.v1.LogService/Append"} 1`,
		`runnel_rpc_finished_total{code="ok",procedure="/runnel.storage.v1.LogService/Consume"} 1`,
		`runnel_rpc_in_flight{procedure="/runnel.storage.v1.LogService/Append"} 0`,
		`runnel_rpc_unary_seconds_count{code="ok",procedure="/runnel.storage.v1.LogService/Append"} 1`,
	} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if strings.Contains(body, `runnel_rpc_unary_seconds_count{code="ok",procedure="/runnel.storage.v1.LogService/Consume"`) {
		t.Error("the histogram has streams")
	}
}

func TestUnknownProcedure(t *testing.T) {
	s := startServer(t, nil)
	response, body := post(t, s.address, "/runnel.storage.v1.LogService/Nope", "application/json", []byte("{}"), nil)
	if response.StatusCode != http.StatusNotImplemented || !strings.Contains(string(body), "unimplemented") {
		t.Errorf("%s %s", response.Status, body)
	}
	if response, _ := post(t, s.address, "/nobody.v1.Nothing/Nope", "application/json", []byte("{}"), nil); response.StatusCode != http.StatusNotFound {
		t.Errorf("%s", response.Status)
	}
}

func TestServeReportsAFailedListener(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	if err := Serve(t.Context(), ServeOptions{Listener: listener, Server: NewServer(ServerOptions{})}); err == nil {
		t.Error("no error")
	}
	if err := Serve(context.Background(), ServeOptions{}); err == nil {
		t.Error("no error without a listener")
	}
}
