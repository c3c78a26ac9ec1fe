package offsets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// What was surely not appended is refused, everything that may have been is doubtful.
func TestAppendOutcome(t *testing.T) {
	of := func(reason errorsv1.Reason) error { return rpcerr.Connect(rpcerr.New(reason, "x")) }
	for _, test := range []struct {
		err  error
		want rules.Outcome
	}{
		{of(errorsv1.Reason_REASON_COORDINATOR_FENCED), rules.Fenced},
		{of(errorsv1.Reason_REASON_NOT_LEADER), rules.Refused},
		{of(errorsv1.Reason_REASON_FENCED_LEADER_EPOCH), rules.Refused},
		{of(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS), rules.Refused},
		{of(errorsv1.Reason_REASON_DISK_FULL), rules.Refused},
		{of(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND), rules.Doubtful},
		{of(errorsv1.Reason_REASON_TIMED_OUT), rules.Doubtful},
		// A leader that goes away says so of what it has appended, too.
		{of(errorsv1.Reason_REASON_DRAINING), rules.Doubtful},
		{of(errorsv1.Reason_REASON_TOPIC_NOT_FOUND), rules.Doubtful},
		{of(errorsv1.Reason_REASON_STORAGE_FAILED), rules.Doubtful},
		{of(errorsv1.Reason_REASON_INTERNAL), rules.Doubtful},
		{errors.New("the connection broke"), rules.Doubtful},
		{context.DeadlineExceeded, rules.Doubtful},
		{fmt.Errorf("call: %w", &net.OpError{Op: "read", Err: errors.New("reset")}), rules.Doubtful},
	} {
		if got := appendOutcome(test.err); got != test.want {
			t.Errorf("%v: %v, want %v", test.err, got, test.want)
		}
	}
}

// TestUnreachedLeaderHasAppendedNothing: a leader that is gone costs no reload while
// another is elected.
func TestUnreachedLeaderHasAppendedNothing(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	pool := transport.NewPool(transport.Options{})
	defer pool.Close()
	client := peerv1connect.NewFencedAppendServiceClient(rpc.NewClient(pool.Transport(address, transport.Control), nil))
	_, err = client.FencedAppend(t.Context(), &peerv1.FencedAppendRequest{})
	if got := appendOutcome(err); got != rules.Refused {
		t.Errorf("%v: %v, want %v", err, got, rules.Refused)
	}
}

// checker is a leader that answers checks when it is told to.
type checker struct {
	peerv1connect.UnimplementedFencedAppendServiceHandler
	mu    sync.Mutex
	sizes []int
	delay time.Duration
}

func (c *checker) CheckFence(_ context.Context, req *peerv1.CheckFenceRequest) (*peerv1.CheckFenceResponse, error) {
	time.Sleep(c.delay)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sizes = append(c.sizes, len(req.GetFences()))
	res := &peerv1.CheckFenceResponse{}
	for _, f := range req.GetFences() {
		result := &peerv1.FenceResult{}
		if f.GetPartition()%2 == 1 {
			result.Failure = rpcerr.AsFailure(rpcerr.New(errorsv1.Reason_REASON_COORDINATOR_FENCED, "fenced"))
		}
		res.Results = append(res.Results, result)
	}
	return res, nil
}

// Checks that come while one is under way go together, each gets its own answer, and
// one that is given up holds up nobody.
func TestChecksGoTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &checker{delay: time.Second}
		server := rpc.NewServer(rpc.ServerOptions{})
		peerv1connect.RegisterFencedAppendServiceHandler(server, c)
		node := &storageNode{fenced: peerv1connect.NewFencedAppendServiceClient(connect.NewClient(rpc.InProcess(server)))}
		var asking sync.WaitGroup
		ask := func(ctx context.Context, partition int32) {
			asking.Go(func() {
				err := node.check(ctx, &peerv1.Fence{Partition: partition})
				switch {
				case ctx != t.Context():
				case partition%2 == 0 && err != nil, partition%2 == 1 && rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_COORDINATOR_FENCED:
					t.Errorf("partition %d: %v", partition, err)
				}
			})
			synctest.Wait()
		}
		ask(t.Context(), 0)
		impatient, giveUp := context.WithCancel(t.Context())
		ask(impatient, 1)
		for p := range int32(6) {
			ask(t.Context(), p+2)
		}
		giveUp()
		asking.Wait()
		if fmt.Sprint(c.sizes) != "[1 6]" {
			t.Errorf("requests of %v claims", c.sizes)
		}
		if node.fences.sending || len(node.fences.waiting) > 0 {
			t.Error("the queue is not left empty")
		}
	})
}
