package node

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

var clusterID = [16]byte{1, 2, 3}

// registry answers as the metadata service does; the errors come first.
type registry struct {
	peerv1connect.UnimplementedNodeServiceHandler
	errs      []error
	requests  []*peerv1.RegisterRequest
	beats     int
	leaves    int
	remaining int
}

func (r *registry) next() error {
	if len(r.errs) == 0 {
		return nil
	}
	err := r.errs[0]
	r.errs = r.errs[1:]
	return err
}

func (r *registry) Register(_ context.Context, req *peerv1.RegisterRequest) (*peerv1.RegisterResponse, error) {
	r.requests = append(r.requests, req)
	if err := r.next(); err != nil {
		return nil, err
	}
	return &peerv1.RegisterResponse{ClusterId: clusterID[:], NodeId: 7, NodeEpoch: 70, LeaseMs: 6000, Version: 700}, nil
}

func (r *registry) Heartbeat(context.Context, *peerv1.HeartbeatRequest) (*peerv1.HeartbeatResponse, error) {
	r.beats++
	if err := r.next(); err != nil {
		return nil, err
	}
	return &peerv1.HeartbeatResponse{LeaseMs: 3000}, nil
}

func (r *registry) Leave(context.Context, *peerv1.LeaveRequest) (*peerv1.LeaveResponse, error) {
	r.leaves++
	if err := r.next(); err != nil {
		return nil, err
	}
	r.remaining--
	return &peerv1.LeaveResponse{Version: 701}, nil
}

func (r *registry) client() peerv1connect.NodeServiceClient {
	server := rpc.NewServer(rpc.ServerOptions{})
	peerv1connect.RegisterNodeServiceHandler(server, r)
	return peerv1connect.NewNodeServiceClient(rpc.NewClient(rpc.InProcess(server), nil))
}

func unavailable() error {
	return rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "not yet")
}

func stale() error {
	return rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH, "another one")
}

func (r *registry) register(t *testing.T, p Process) (*Node, datadir.Identity, error) {
	t.Helper()
	recorded := p.Identity
	p.Directory = "/data"
	p.Role = metadatav1.NodeRole_NODE_ROLE_COORDINATOR
	p.Record = func(clusterID [16]byte, id cluster.NodeID) error {
		recorded.ClusterID, recorded.NodeID = clusterID, id
		return nil
	}
	n, err := Register(t.Context(), r.client(), p, slog.New(slog.DiscardHandler))
	return n, recorded, err
}

func TestRegister(t *testing.T) {
	known := datadir.Identity{ClusterID: clusterID, NodeID: 7, DirectoryID: [16]byte{9}}
	for _, test := range []struct {
		name     string
		process  Process
		errs     []error
		asked    int32
		attempts int
		want     string
	}{
		{"new", Process{}, nil, 0, 1, ""},
		{"with a number", Process{NodeID: 7}, nil, 7, 1, ""},
		{"again", Process{Identity: known}, nil, 7, 1, ""},
		{"again with its number", Process{NodeID: 7, Identity: known}, nil, 7, 1, ""},
		{"with another's directory", Process{NodeID: 8, Identity: known}, nil, 0, 0, "belongs to node 7, not to node 8"},
		{"too early", Process{}, []error{unavailable(), unavailable()}, 0, 3, ""},
		{"refused for good", Process{}, []error{rpcerr.New(errorsv1.Reason_REASON_NODE_MISMATCH, "other cluster")}, 0, 1, "other cluster"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &registry{errs: test.errs}
				n, recorded, err := r.register(t, test.process)
				if len(r.requests) != test.attempts {
					t.Errorf("%d attempts, want %d", len(r.requests), test.attempts)
				}
				if test.want != "" {
					if err == nil || !strings.Contains(err.Error(), test.want) {
						t.Errorf("%v, want %q", err, test.want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if n.ID != 7 || n.Epoch != 70 || n.Version != 700 || recorded.NodeID != 7 || recorded.ClusterID != clusterID {
					t.Errorf("%+v, recorded %+v", n, recorded)
				}
				if got := r.requests[0].GetNodeId(); got != test.asked {
					t.Errorf("asked for node id %d, want %d", got, test.asked)
				}
			})
		})
	}
}

// Heartbeats go by the lease, are repeated when nobody answers, and end when
// another process has the node's place.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &registry{}
		n, _, err := r.register(t, Process{})
		if err != nil {
			t.Fatal(err)
		}
		r.errs = []error{unavailable(), errors.New("broken"), nil, stale()}
		began := time.Now()
		if err := n.Heartbeat(t.Context()); err == nil || !strings.Contains(err.Error(), "another process has registered as node 7") {
			t.Errorf("%v", err)
		}
		// 2 s by the first lease, as much after each failure, 1 s by the second lease.
		if took := time.Since(began); r.beats != 4 || took != 7*time.Second {
			t.Errorf("%d heartbeats in %v", r.beats, took)
		}
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &registry{}
		n, _, err := r.register(t, Process{})
		if err != nil {
			t.Fatal(err)
		}
		applied := int64(0)
		leave := func() bool {
			return n.Leave(t.Context(), func() int { return r.remaining }, func(_ context.Context, version int64) error {
				applied = version
				return nil
			})
		}
		if leave() || r.leaves != 0 {
			t.Errorf("who has nothing asked %d times", r.leaves)
		}
		r.remaining, r.errs = 2, []error{unavailable(), nil, nil}
		if !leave() || r.leaves != 3 || applied != 701 {
			t.Errorf("asked %d times, waited for version %d", r.leaves, applied)
		}
		r.remaining, r.errs = 2, []error{stale()}
		if !leave() || r.leaves != 4 {
			t.Errorf("asked %d times although that is refused for good", r.leaves)
		}
	})
}
