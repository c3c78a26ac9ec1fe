package server

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect/v2"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/controller"
)

const (
	maxBootID = 128
	// restoreAttempts is how often a heartbeat tries to get a lost lease back while
	// others change the node.
	restoreAttempts = 3
)

// Register implements peerv1connect.NodeServiceHandler.
func (s *Server) Register(ctx context.Context, req *peerv1.RegisterRequest) (*peerv1.RegisterResponse, error) {
	registration, err := registrationOf(req)
	if err != nil {
		return nil, err
	}
	return decide(ctx, s,
		func(ctx context.Context) (*peerv1.RegisterResponse, error) {
			r, err := s.o.Controller.Register(ctx, registration)
			if err != nil {
				return nil, err
			}
			return &peerv1.RegisterResponse{
				ClusterId: r.ClusterID[:],
				NodeId:    int32(r.Node),
				NodeEpoch: int64(r.Epoch),
				LeaseMs:   s.o.LeaseTTL.Milliseconds(),
				Version:   r.Version,
			}, nil
		},
		func(ctx context.Context, client *connect.Client) (*peerv1.RegisterResponse, error) {
			return peerv1connect.NewNodeServiceClient(client).Register(ctx, req)
		})
}

func registrationOf(req *peerv1.RegisterRequest) (controller.Registration, error) {
	r := controller.Registration{
		Node:        cluster.NodeID(req.GetNodeId()),
		Role:        req.GetRole(),
		Address:     req.GetAddress(),
		PeerAddress: req.GetPeerAddress(),
		BootID:      req.GetBootId(),
		Clean:       req.GetClean(),
		Damaged:     req.GetDamaged(),
	}
	var err error
	if len(req.GetClusterId()) > 0 {
		if r.ClusterID, err = parseID("cluster_id", req.GetClusterId()); err != nil {
			return r, err
		}
	}
	if r.DirectoryID, err = parseID("directory_id", req.GetDirectoryId()); err != nil {
		return r, err
	}
	if r.Node < 0 {
		return r, invalid("node_id is %d: use 1 or more, or 0 to have one allotted", r.Node)
	}
	switch r.Role {
	case metadatav1.NodeRole_NODE_ROLE_METADATA, metadatav1.NodeRole_NODE_ROLE_STORAGE, metadatav1.NodeRole_NODE_ROLE_COORDINATOR:
	default:
		return r, invalid("role %d is unknown: register as a metadata, storage or coordinator node", r.Role)
	}
	if err := checkAddress("address", r.Address); err != nil {
		return r, err
	}
	if r.PeerAddress != "" {
		if err := checkAddress("peer_address", r.PeerAddress); err != nil {
			return r, err
		}
	}
	if len(r.BootID) > maxBootID {
		return r, invalid("boot_id has %d bytes: it may have %d", len(r.BootID), maxBootID)
	}
	return r, nil
}

// Deregister implements peerv1connect.NodeServiceHandler.
func (s *Server) Deregister(ctx context.Context, req *peerv1.DeregisterRequest) (*peerv1.DeregisterResponse, error) {
	return decide(ctx, s,
		func(ctx context.Context) (*peerv1.DeregisterResponse, error) {
			if err := s.o.Controller.Deregister(ctx, cluster.NodeID(req.GetNodeId()), cluster.NodeEpoch(req.GetNodeEpoch())); err != nil {
				return nil, err
			}
			return &peerv1.DeregisterResponse{}, nil
		},
		func(ctx context.Context, client *connect.Client) (*peerv1.DeregisterResponse, error) {
			return peerv1connect.NewNodeServiceClient(client).Deregister(ctx, req)
		})
}

// AllocateProducerIds implements peerv1connect.NodeServiceHandler.
func (s *Server) AllocateProducerIds(ctx context.Context, req *peerv1.AllocateProducerIdsRequest) (*peerv1.AllocateProducerIdsResponse, error) {
	return decide(ctx, s,
		func(ctx context.Context) (*peerv1.AllocateProducerIdsResponse, error) {
			first, count, err := s.o.Controller.AllocateProducerIDs(ctx, cluster.NodeID(req.GetNodeId()), cluster.NodeEpoch(req.GetNodeEpoch()))
			if err != nil {
				return nil, err
			}
			return &peerv1.AllocateProducerIdsResponse{FirstProducerId: first, Count: count}, nil
		},
		func(ctx context.Context, client *connect.Client) (*peerv1.AllocateProducerIdsResponse, error) {
			return peerv1connect.NewNodeServiceClient(client).AllocateProducerIds(ctx, req)
		})
}

// Heartbeat implements peerv1connect.NodeServiceHandler. It needs no controller:
// the lease is etcd's, and what its loss means is decided when it is lost.
func (s *Server) Heartbeat(ctx context.Context, req *peerv1.HeartbeatRequest) (*peerv1.HeartbeatResponse, error) {
	id, epoch := cluster.NodeID(req.GetNodeId()), cluster.NodeEpoch(req.GetNodeEpoch())
	var node catalog.Node
	s.o.Catalog.Read(func(state *catalog.State) { node = state.Nodes[id] })
	if node.Registered() && node.Epoch > epoch {
		return nil, staleEpoch(id, epoch)
	}
	// A catalog that lags knows the node by another epoch, or not at all.
	if node.Registered() && node.Epoch == epoch && node.Lease != 0 {
		switch ttl, err := s.renew(ctx, node.Lease); {
		case err == nil:
			return s.confirm(ttl), nil
		case !errors.Is(err, rpctypes.ErrLeaseNotFound):
			return nil, s.failure(ctx, err)
		}
	}
	ttl, err := s.restore(ctx, id, epoch)
	if err != nil {
		return nil, s.failure(ctx, err)
	}
	return s.confirm(ttl), nil
}

func (s *Server) confirm(ttl time.Duration) *peerv1.HeartbeatResponse {
	return &peerv1.HeartbeatResponse{LeaseMs: ttl.Milliseconds(), Version: s.o.Catalog.Version()}
}

// renew renews a lease and returns for how long it holds from now.
func (s *Server) renew(ctx context.Context, lease clientv3.LeaseID) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
	defer cancel()
	response, err := s.o.Client.KeepAliveOnce(ctx, lease)
	if err != nil {
		return 0, err
	}
	return time.Duration(response.TTL) * time.Second, nil
}

// restore renews the lease of a process by what stands in etcd, or gives it a new
// one if it has lost it. A process that was replaced, or has said goodbye, gets
// none.
func (s *Server) restore(ctx context.Context, id cluster.NodeID, epoch cluster.NodeEpoch) (time.Duration, error) {
	layout := s.o.Layout
	for range restoreAttempts {
		limited, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
		read, err := s.o.Client.Txn(limited).Then(
			clientv3.OpGet(layout.Node(id), clientv3.WithKeysOnly()),
			clientv3.OpGet(layout.Status(id)),
			clientv3.OpGet(layout.Live(id)),
		).Commit()
		cancel()
		if err != nil {
			return 0, err
		}
		node, status, live := read.Responses[0].GetResponseRange().GetKvs(), read.Responses[1].GetResponseRange().GetKvs(), read.Responses[2].GetResponseRange().GetKvs()
		if len(node) == 0 || len(status) == 0 || node[0].ModRevision != int64(epoch) {
			return 0, staleEpoch(id, epoch)
		}
		verdict := &catalogv1.NodeStatusRecord{}
		if err := proto.Unmarshal(status[0].Value, verdict); err != nil {
			return 0, err
		}
		if verdict.GetDeregistered() {
			return 0, rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH, "the process of node %d with epoch %d has deregistered: register it again", id, epoch)
		}
		if len(live) > 0 {
			ttl, err := s.renew(ctx, clientv3.LeaseID(live[0].Lease))
			if errors.Is(err, rpctypes.ErrLeaseNotFound) {
				continue
			}
			return ttl, err
		}
		granted, err := s.grant(ctx, id, epoch, status[0].ModRevision)
		if granted || err != nil {
			return s.o.LeaseTTL, err
		}
	}
	return 0, rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "the lease of node %d kept changing; try again", id)
}

// grant gives a process a new lease, unless something about it has changed.
func (s *Server) grant(ctx context.Context, id cluster.NodeID, epoch cluster.NodeEpoch, statusRevision int64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
	defer cancel()
	layout := s.o.Layout
	lease, err := s.o.Client.Grant(ctx, int64(s.o.LeaseTTL/time.Second))
	if err != nil {
		return false, err
	}
	txn, err := s.o.Client.Txn(ctx).
		If(catalog.Unchanged(layout.Node(id), int64(epoch)), catalog.Unchanged(layout.Status(id), statusRevision), catalog.Absent(layout.Live(id))).
		Then(clientv3.OpPut(layout.Live(id), "", clientv3.WithLease(lease.ID))).
		Commit()
	if err != nil {
		return false, err
	}
	if !txn.Succeeded {
		if _, err := s.o.Client.Revoke(ctx, lease.ID); err != nil {
			s.o.Logger.Debug("a lease is left to run out", "error", err)
		}
		return false, nil
	}
	s.o.Logger.Info("node has a lease again", "node", id, "epoch", epoch)
	return true, nil
}

func staleEpoch(id cluster.NodeID, epoch cluster.NodeEpoch) error {
	return rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH, "the process of node %d with epoch %d is not the registered one: another process runs under its id, or it never registered", id, epoch)
}
