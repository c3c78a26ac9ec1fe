// Package server answers the RPCs of a metadata node.
//
// Any node takes any call. Reads are answered from the node's own view, with or
// without etcd. What only the controller may decide goes to the controller: to the
// one in this process, or to another node's by the same RPC on its peer address.
// Heartbeats are in between: every node renews leases on its own.
package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/node"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/controller"
	"github.com/runnel-mesh/runnel/services/metadata/internal/election"
)

// forwardedHeader marks a call that a fellow metadata node has forwarded. It is
// forwarded no further, so that two nodes which take each other for controller do
// not play ping-pong.
const forwardedHeader = "Runnel-Forwarded"

// Options is what a [Server] works with.
type Options struct {
	Client     *clientv3.Client
	Layout     catalog.Layout
	Catalog    *catalog.Catalog
	Controller *controller.Controller
	View       *clusterview.View
	// PeerAddress is this node's own; empty if it has none.
	PeerAddress string
	// Dial returns a transport to the peer address of a fellow metadata node.
	Dial      func(address string) connect.Transport
	Logger    *slog.Logger
	Telemetry *telemetry.Telemetry
	// LeaseTTL is how long a node's lease lasts, whole seconds.
	LeaseTTL time.Duration
	// RequestTimeout bounds each request to etcd.
	RequestTimeout time.Duration
	// ShowTimeout bounds how long a call waits until the view of this node shows
	// what the controller has done.
	ShowTimeout time.Duration
}

// Server implements TopicService, NodeService, PartitionService and
// OffsetsTopicService. All methods may be called concurrently.
type Server struct {
	o Options
}

// New returns a server.
func New(o Options) *Server { return &Server{o: o} }

// Mount registers TopicService on public, and on peer NodeService,
// PartitionService, OffsetsTopicService and, for fellow metadata nodes, TopicService.
func (s *Server) Mount(public, peer *connect.Server) {
	metadatav1connect.RegisterTopicServiceHandler(public, s)
	metadatav1connect.RegisterTopicServiceHandler(peer, s)
	peerv1connect.RegisterNodeServiceHandler(peer, s)
	peerv1connect.RegisterPartitionServiceHandler(peer, s)
	peerv1connect.RegisterOffsetsTopicServiceHandler(peer, s)
}

// decide has a call answered by the controller: by local if it is in this process,
// and otherwise by remote with a client of the node that it runs on.
func decide[Response any](ctx context.Context, s *Server, local func(context.Context) (Response, error), remote func(context.Context, *connect.Client) (Response, error)) (Response, error) {
	if s.o.Controller.Leading() {
		response, err := local(ctx)
		return response, s.failure(ctx, err)
	}
	var none Response
	if info, ok := connect.CallInfoForServerContext(ctx); ok && info.RequestHeader().Get(forwardedHeader) != "" {
		return none, controller.ErrNotController()
	}
	var to catalog.Controller
	s.o.Catalog.Read(func(state *catalog.State) { to = state.Controller })
	if to.Node == cluster.NoNode || to.PeerAddress == "" || to.PeerAddress == s.o.PeerAddress {
		// The last one is gone, or was this very node until it lost its lease.
		return none, rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE,
			"there is no controller that this metadata node can reach: it waits for one to be elected through %s; try again", EtcdName(s.o.Client))
	}
	ctx, info := connect.NewClientContext(ctx)
	info.RequestHeader().Set(forwardedHeader, "1")
	response, err := remote(ctx, rpc.NewClient(s.o.Dial(to.PeerAddress), s.o.Telemetry))
	if err == nil {
		return response, nil
	}
	if _, authored := rpcerr.Parse(err); !authored && connect.CodeOf(err) == connect.CodeUnavailable {
		return none, rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE,
			"the controller, metadata node %d at %s, cannot be reached; another is elected if it stays away; try again", to.Node, to.PeerAddress).WithCause(err)
	}
	return none, err
}

// failure makes what a client may see of an error of the controller or of etcd.
func (s *Server) failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if own, ok := errors.AsType[*rpcerr.Error](err); ok {
		return own
	}
	unavailable := func(format string, args ...any) error {
		return rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, format, args...).WithCause(err)
	}
	var fromEtcd rpctypes.EtcdError
	_, isStatus := status.FromError(err)
	switch {
	case ctx.Err() != nil:
		return err
	case errors.Is(err, election.ErrSuperseded):
		return rpcerr.New(errorsv1.Reason_REASON_NOT_CONTROLLER, "this metadata node is controller no more, and nothing was changed: another one takes over; try again").WithCause(err)
	case errors.Is(err, election.ErrConflict):
		return unavailable("the state of the cluster kept changing, and nothing was changed: try again")
	case errors.Is(err, rpctypes.ErrNoSpace):
		return unavailable("%s is out of space and refuses writes: compact and defragment it or raise its quota, and disarm its alarm", EtcdName(s.o.Client))
	case errors.As(err, &fromEtcd), isStatus, errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return unavailable("%s does not answer, so the state of the cluster cannot be changed; whether this change was made is unknown; try again when etcd is back", EtcdName(s.o.Client))
	default:
		return err
	}
}

// EtcdName says in a sentence which etcd a client reaches.
func EtcdName(client *clientv3.Client) string {
	endpoints := client.Endpoints()
	if len(endpoints) == 0 {
		return "the etcd of this process"
	}
	return "etcd at " + strings.Join(endpoints, ", ")
}

// image returns what this node knows of the cluster.
func (s *Server) image() (*cluster.Image, error) {
	if image := s.o.View.Image(); image != nil {
		return image, nil
	}
	return nil, rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE,
		"this metadata node has not read the state of the cluster yet: it cannot reach %s; try again", EtcdName(s.o.Client))
}

// show waits until the view of this node meets a condition.
func (s *Server) show(ctx context.Context, what string, condition func(*cluster.Image) bool) error {
	limited, cancel := context.WithTimeout(ctx, s.o.ShowTimeout)
	defer cancel()
	if _, err := s.o.View.Await(limited, condition); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return rpcerr.New(errorsv1.Reason_REASON_TIMED_OUT, "%s, but this metadata node does not show it after %v: it lags behind %s", what, s.o.ShowTimeout, EtcdName(s.o.Client))
	}
	return nil
}

func invalid(format string, args ...any) error {
	return rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST, format, args...)
}

// parseID reads 16 bytes that name something.
func parseID(what string, raw []byte) ([16]byte, error) {
	if len(raw) != 16 {
		return [16]byte{}, invalid("%s has %d bytes: it must have 16", what, len(raw))
	}
	return [16]byte(raw), nil
}

// checkAddress refuses what is no host:port.
func checkAddress(what, address string) error {
	if err := node.CheckReachable(address); err != nil {
		return invalid("%s %q cannot be used: %s", what, address, err)
	}
	return nil
}

var (
	_ metadatav1connect.TopicServiceHandler    = (*Server)(nil)
	_ peerv1connect.NodeServiceHandler         = (*Server)(nil)
	_ peerv1connect.PartitionServiceHandler    = (*Server)(nil)
	_ peerv1connect.OffsetsTopicServiceHandler = (*Server)(nil)
)
