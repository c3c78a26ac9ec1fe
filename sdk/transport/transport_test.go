package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"connectrpc.com/connect/v2"
	"go.uber.org/goleak"

	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// countingDial counts the connections that are made.
type countingDial struct {
	made  atomic.Int32
	mu    sync.Mutex
	conns []net.Conn
}

func (d *countingDial) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.made.Add(1)
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		d.mu.Lock()
		d.conns = append(d.conns, conn)
		d.mu.Unlock()
	}
	return conn, err
}

func TestEachClassHasItsConnection(t *testing.T) {
	t.Parallel()
	address := serve(t)
	dial := &countingDial{}
	pool := NewPool(Options{Dial: dial.dial})
	defer pool.Close()
	for range 2 {
		for _, class := range []Class{Control, Produce, Consume, Replicate} {
			client := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(address, class)))
			if _, err := client.Append(t.Context(), &storagev1.AppendRequest{}); err != nil {
				t.Fatal(class, err)
			}
		}
	}
	if n := dial.made.Load(); n != 4 {
		t.Errorf("%d connections for 4 classes", n)
	}
	if pool.Transport(address, Produce) != pool.Transport(address, Produce) {
		t.Error("a transport is made anew for each call")
	}
}

func TestUnreachableIsUnavailable(t *testing.T) {
	t.Parallel()
	slow := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
	}
	for name, o := range map[string]Options{
		"refused":   {},
		"timed out": {DialTimeout: 10 * time.Millisecond, Dial: slow},
	} {
		pool := NewPool(o)
		client := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport("127.0.0.1:1", Control)))
		_, err := client.Append(t.Context(), &storagev1.AppendRequest{})
		if connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("%s: unary: %v", name, err)
		}
		stream, err := client.Produce(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&storagev1.ProduceRequest{})
		if _, err := stream.Receive(); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("%s: stream: %v", name, err)
		}
		_ = stream.Close()
		pool.Close()
	}
	// The caller's own end is told apart.
	pool := NewPool(Options{Dial: slow})
	defer pool.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	client := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport("127.0.0.1:1", Control)))
	if _, err := client.Append(ctx, &storagev1.AppendRequest{}); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("deadline: %v", err)
	}
}

func TestCloseCutsStreamsAndRefusesCalls(t *testing.T) {
	t.Parallel()
	address := serve(t)
	pool := NewPool(Options{})
	client := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(address, Produce)))
	stream, err := client.Produce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&storagev1.ProduceRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	pool.Close()
	pool.Close()
	if _, err := stream.Receive(); err == nil {
		t.Error("the stream lives on")
	}
	_ = stream.Close()
	for _, transport := range []connect.Transport{pool.Transport(address, Produce), pool.Transport(address, Consume)} {
		_, err := storagev1connect.NewLogServiceClient(connect.NewClient(transport)).Append(t.Context(), &storagev1.AppendRequest{})
		if connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "closed") {
			t.Errorf("call after Close: %v", err)
		}
	}
}

func TestPoolReconnects(t *testing.T) {
	t.Parallel()
	address := serve(t)
	dial := &countingDial{}
	pool := NewPool(Options{Dial: dial.dial})
	defer pool.Close()
	client := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(address, Control)))
	call := func() error {
		_, err := client.Append(t.Context(), &storagev1.AppendRequest{})
		return err
	}
	if err := call(); err != nil {
		t.Fatal(err)
	}
	dial.mu.Lock()
	_ = dial.conns[0].Close()
	dial.mu.Unlock()
	// The call that meets the break may fail, the next one does not.
	if err := call(); err != nil && call() != nil {
		t.Errorf("never again: %v", err)
	}
	pool.mu.Lock()
	n := len(pool.conns)
	pool.mu.Unlock()
	if n != 1 {
		t.Errorf("%d connections are tracked", n)
	}
}

func TestPoolIsBounded(t *testing.T) {
	t.Parallel()
	pool := NewPool(Options{})
	defer pool.Close()
	for i := range 3 * maxTargets {
		pool.Transport(fmt.Sprintf("10.0.0.1:%d", i), Control)
	}
	if n := len(pool.targets); n > maxTargets {
		t.Errorf("%d targets", n)
	}
}

// A stream whose reader stands still must not stop the others of its connection.
func TestStalledStreamsDoNotStopOthers(t *testing.T) {
	t.Parallel()
	address := serve(t)
	pool := NewPool(Options{})
	defer pool.Close()
	client := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(address, Consume)))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 20 {
		stream, err := client.Consume(ctx, &storagev1.ConsumeRequest{MaxResponseBytes: 256 << 10})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	timed, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	if _, err := client.Append(timed, &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{Batch: make([]byte, 1<<20)}}); err != nil {
		t.Errorf("beside stalled streams: %v", err)
	}
}

// Batches that come in through a stream are not touched by later messages.
func TestReceivedBatchesAreTheReceivers(t *testing.T) {
	t.Parallel()
	received := make(chan []byte, 100)
	address := serveHandler(t, recorder{received: received})
	pool := NewPool(Options{})
	defer pool.Close()
	stream, err := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(address, Produce))).Produce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		batch := make([]byte, 10_000)
		for j := range batch {
			batch[j] = byte(i)
		}
		if err := stream.Send(&storagev1.ProduceRequest{Batch: batch}); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	close(received)
	i := 0
	for batch := range received {
		if slices.ContainsFunc(batch, func(b byte) bool { return b != byte(i) }) || len(batch) != 10_000 {
			t.Fatalf("batch %d was overwritten", i)
		}
		i++
	}
	if i != 100 {
		t.Errorf("%d batches", i)
	}
}

type recorder struct {
	storagev1connect.UnimplementedLogServiceHandler
	received chan<- []byte
}

func (r recorder) Produce(_ context.Context, stream storagev1connect.LogServiceProduceServerStream) error {
	for {
		request, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.received <- request.GetBatch()
	}
}

// pipeReads returns what a body of envelopes gives to a reader of p bytes, one
// element per Read.
func pipeReads(t *testing.T, writes [][]byte, p int) [][]byte {
	t.Helper()
	reader, writer := io.Pipe()
	go func() {
		for _, w := range writes {
			if _, err := writer.Write(w); err != nil {
				return
			}
		}
		_ = writer.Close()
	}()
	body := &envelopeBody{body: reader}
	var reads [][]byte
	for {
		buf := make([]byte, p)
		n, err := body.Read(buf)
		if n > 0 {
			reads = append(reads, buf[:n])
		}
		if errors.Is(err, io.EOF) {
			return reads
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func prefix(n int) []byte { return binary.BigEndian.AppendUint32([]byte{0}, uint32(n)) }

func TestEnvelopeBodyJoinsPrefixAndMessage(t *testing.T) {
	t.Parallel()
	messages := [][]byte{[]byte("abc"), {}, make([]byte, 100), []byte("12345"), {}, {}, make([]byte, 3000), []byte("z")}
	var writes [][]byte
	var whole []byte
	for _, m := range messages {
		writes = append(writes, prefix(len(m)))
		if len(m) > 0 {
			writes = append(writes, m)
		}
		whole = append(append(whole, prefix(len(m))...), m...)
	}
	for _, size := range []int{1, 2, 4, 5, 6, 7, 64, 4096} {
		reads := pipeReads(t, writes, size)
		if got := slices.Concat(reads...); !slices.Equal(got, whole) {
			t.Fatalf("reads of %d bytes: other bytes", size)
		}
		if size == 4096 && len(reads) != len(messages) {
			t.Errorf("%d reads for %d messages", len(reads), len(messages))
		}
	}
}

func TestEnvelopeBodyNeverWaitsBeyondAMessage(t *testing.T) {
	t.Parallel()
	reader, writer := io.Pipe()
	body := &envelopeBody{body: reader}
	go func() {
		_, _ = writer.Write(prefix(3))
		_, _ = writer.Write([]byte("abc"))
		// And nothing more, like a producer that waits for its acknowledgement.
	}()
	buf := make([]byte, 4096)
	if n, err := body.Read(buf); n != 8 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	failure := errors.New("the client gave up")
	go func() {
		_, _ = writer.Write(prefix(3))
		_ = writer.CloseWithError(failure)
	}()
	if n, err := body.Read(buf); n != 5 || !errors.Is(err, failure) {
		t.Errorf("read %d, %v", n, err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzEnvelopeBody(f *testing.F) {
	f.Add(append(prefix(3), "abc"...), uint8(4))
	f.Add(append(prefix(0), prefix(1<<31)...), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		body := &envelopeBody{body: io.NopCloser(iotest.DataErrReader(strings.NewReader(string(data))))}
		random := rand.New(rand.NewPCG(uint64(len(data)), uint64(size)))
		var got []byte
		for {
			buf := make([]byte, 1+random.IntN(int(size)+1))
			n, err := body.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if string(got) != string(data) {
			t.Errorf("%x became %x", data, got)
		}
	})
}

func TestClassNames(t *testing.T) {
	t.Parallel()
	for c, want := range map[Class]string{Control: "control", Produce: "produce", Consume: "consume", Replicate: "replicate", 9: "class 9"} {
		if c.String() != want {
			t.Errorf("%q", c)
		}
	}
}
