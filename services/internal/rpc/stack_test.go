//go:build !race

package rpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"unsafe"

	"connectrpc.com/connect/v2"
	"go.opentelemetry.io/otel/sdk/trace"

	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

// A stream that waits costs little else than its stack. The garbage collector gives
// back half of one of 16 KiB, to which it grows as the request is read, if less than a
// quarter is in use: 4 KiB, of which 0.8 are the runtime's reserve, 0.6 those who wait
// and what is below the first handler, and 0.4 are left to the handler of the RPC.
// The race detector makes frames larger.
const maxStreamStack = 2300

// deep says how far down the stack its handler is.
type deep struct {
	storagev1connect.UnimplementedLogServiceHandler

	at chan uintptr
}

func (d deep) Consume(context.Context, *storagev1.ConsumeRequest, storagev1connect.LogServiceConsumeServerStream) error {
	d.at <- stackAddress()
	return nil
}

// growStack makes the stack so large that it need not be moved for a while.
//
//go:noinline
func growStack(i int) byte {
	var room [64 << 10]byte
	room[i] = 1
	return room[i/2]
}

//go:noinline
func stackAddress() uintptr {
	var local byte
	return uintptr(unsafe.Pointer(&local))
}

func TestStreamsHaveSmallStacks(t *testing.T) {
	t.Parallel()
	exporting := telemetry.Discard()
	exporting.TracerProvider = trace.NewTracerProvider()
	for name, tel := range map[string]*telemetry.Telemetry{"exporting": exporting, "silent": telemetry.Discard()} {
		if used := streamStack(t, tel); used < 0 || used > maxStreamStack {
			t.Errorf("%s: %d bytes of stack lie between the HTTP server and the handler of a stream, must be at most %d", name, used, maxStreamStack)
		}
	}
}

// streamStack returns how many bytes of stack lie between the HTTP server and the
// handler of a stream.
func streamStack(t *testing.T, tel *telemetry.Telemetry) int {
	t.Helper()
	server := NewServer(ServerOptions{Telemetry: tel})
	at := make(chan uintptr, 2)
	storagev1connect.RegisterLogServiceHandler(server, deep{at: at})
	mux := routes(withDefaults(ServeOptions{Server: server}))
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		growStack(int(r.ContentLength) & 1)
		at <- stackAddress()
		mux.ServeHTTP(w, r)
	}))
	web.Config.Protocols = new(http.Protocols)
	web.Config.Protocols.SetUnencryptedHTTP2(true)
	web.Start()
	defer web.Close()
	pool := transport.NewPool(transport.Options{})
	defer pool.Close()
	client := storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(web.Listener.Addr().String(), transport.Control)))
	stream, err := client.Consume(t.Context(), &storagev1.ConsumeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	// Stacks grow downwards.
	outer, inner := <-at, <-at
	return int(outer - inner)
}
