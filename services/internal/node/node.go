// Package node is a process of a role that does not talk to etcd, as the metadata
// service knows it: it registers, renews its lease, gives away what it has before it
// stops, and deregisters.
//
// Epochs decide who a node is; the lease only tells others whom to count on. So a
// node whose heartbeats are not answered goes on, and stops only when it is told that
// another process has taken its place.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

const (
	// registerWithin bounds one attempt: the controller moves all that an earlier
	// process of the node had before it answers.
	registerWithin   = 30 * time.Second
	deregisterWithin = 2 * time.Second
	minRetryDelay    = 50 * time.Millisecond
	maxRetryDelay    = 2 * time.Second
	// minHeartbeat keeps a senseless lease from flooding the metadata service.
	minHeartbeat = 50 * time.Millisecond
	// leaveWithin bounds one attempt to leave.
	leaveWithin = 5 * time.Second
	// leaveAgain is how long the node waits before it asks again for what was not
	// possible: another node has become able meanwhile, or one that has just
	// disappeared is not fenced yet.
	leaveAgain = 100 * time.Millisecond
)

// Process is who registers.
type Process struct {
	Role metadatav1.NodeRole
	// NodeID is the number that the operator has given, 0 for none.
	NodeID cluster.NodeID
	// Directory names the data directory in errors, and Identity is what it holds.
	Directory string
	Identity  datadir.Identity
	// Record writes the identity that the metadata service has confirmed into the data
	// directory.
	Record func(clusterID [16]byte, id cluster.NodeID) error
	// Address is where clients reach the process, PeerAddress where other services do;
	// empty where they do not.
	Address, PeerAddress string
	// BootID, Clean and Damaged are for nodes that keep records.
	BootID         string
	Clean, Damaged bool
}

// Node is this process as the metadata service knows it.
type Node struct {
	// ID, Epoch and Version, the cluster's at the registration, are immutable. The node
	// acts on no older version: what it has there an earlier process had.
	ID      cluster.NodeID
	Epoch   cluster.NodeEpoch
	Version int64

	client peerv1connect.NodeServiceClient
	logger *slog.Logger
	// lease is owned by Heartbeat.
	lease time.Duration
}

// Register announces the process and has the data directory record who it is. It
// tries until the metadata service answers, refuses for good, or ctx ends.
func Register(ctx context.Context, client peerv1connect.NodeServiceClient, p Process, logger *slog.Logger) (*Node, error) {
	id := p.NodeID
	if known := p.Identity.NodeID; known != 0 {
		if id != 0 && id != known {
			return nil, fmt.Errorf("data directory %s belongs to node %d, not to node %d: start the node with its own directory, or without a node id", p.Directory, known, id)
		}
		id = known
	}
	req := &peerv1.RegisterRequest{
		NodeId:      int32(id),
		Role:        p.Role,
		Address:     p.Address,
		PeerAddress: p.PeerAddress,
		DirectoryId: p.Identity.DirectoryID[:],
		BootId:      p.BootID,
		Clean:       p.Clean,
		Damaged:     p.Damaged,
	}
	if p.Identity.Known() {
		req.ClusterId = p.Identity.ClusterID[:]
	}
	var res *peerv1.RegisterResponse
	err := retry(ctx, func() error {
		attempt, cancel := context.WithTimeout(ctx, registerWithin)
		defer cancel()
		var err error
		res, err = client.Register(attempt, req)
		return err
	}, func(err error) {
		logger.Warn("the node cannot register; it goes on trying", "error", err)
	})
	if err != nil {
		return nil, fmt.Errorf("register node: %w", err)
	}
	var clusterID [16]byte
	if len(res.GetClusterId()) != len(clusterID) || res.GetNodeId() < 1 {
		return nil, fmt.Errorf("register node: the metadata service answered with a cluster id of %d bytes and node id %d", len(res.GetClusterId()), res.GetNodeId())
	}
	copy(clusterID[:], res.GetClusterId())
	n := &Node{
		ID:      cluster.NodeID(res.GetNodeId()),
		Epoch:   cluster.NodeEpoch(res.GetNodeEpoch()),
		Version: res.GetVersion(),
		client:  client,
		logger:  logger,
		lease:   milliseconds(res.GetLeaseMs()),
	}
	if err := p.Record(clusterID, n.ID); err != nil {
		return nil, fmt.Errorf("record the node's identity: %w", err)
	}
	return n, nil
}

// Heartbeat renews the lease until ctx ends. That the metadata service does not
// answer is no reason to stop. The error says that another process has taken the
// node's place. It is called once.
func (n *Node) Heartbeat(ctx context.Context) error {
	every := func() time.Duration { return max(n.lease/3, minHeartbeat) }
	timer := time.NewTimer(every())
	defer timer.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		attempt, cancel := context.WithTimeout(ctx, every())
		res, err := n.client.Heartbeat(attempt, &peerv1.HeartbeatRequest{NodeId: int32(n.ID), NodeEpoch: int64(n.Epoch)})
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if failing {
				n.logger.Info("heartbeats are answered again")
			}
			failing = false
			n.lease = milliseconds(res.GetLeaseMs())
			timer.Reset(every())
		case rpcerr.ReasonOf(err) == errorsv1.Reason_REASON_STALE_NODE_EPOCH:
			return fmt.Errorf("another process has registered as node %d, and this one stops: give each process a node id and a data directory of its own: %w", n.ID, err)
		default:
			if !failing {
				n.logger.Warn("heartbeats are not answered; the node goes on", "error", err)
			}
			failing = true
			timer.Reset(min(every(), maxRetryDelay))
		}
	}
}

// Leave asks that others get what the node has until remaining, which counts what
// others could have, is 0, or ctx ends. It waits after each answer until applied has
// returned for the cluster's version that shows the moves. It returns whether there
// was anything to move.
func (n *Node) Leave(ctx context.Context, remaining func() int, applied func(ctx context.Context, version int64) error) (moved bool) {
	failing := false
	for remaining() > 0 {
		moved = true
		attempt, cancel := context.WithTimeout(ctx, leaveWithin)
		res, err := n.client.Leave(attempt, &peerv1.LeaveRequest{NodeId: int32(n.ID), NodeEpoch: int64(n.Epoch)})
		cancel()
		switch {
		case err == nil:
			if applied(ctx, res.GetVersion()) != nil || remaining() == 0 {
				return true
			}
		case final(err) || connect.CodeOf(err) == connect.CodeUnimplemented:
			n.logger.Warn("the node cannot give away what it has", "error", err)
			return true
		case !failing:
			failing = true
			n.logger.Warn("the node cannot give away what it has; it goes on trying", "error", err)
		}
		select {
		case <-ctx.Done():
			return true
		case <-time.After(leaveAgain):
		}
	}
	return moved
}

// Deregister spares others the wait for the lease to run out.
func (n *Node) Deregister(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, deregisterWithin)
	defer cancel()
	if _, err := n.client.Deregister(ctx, &peerv1.DeregisterRequest{NodeId: int32(n.ID), NodeEpoch: int64(n.Epoch)}); err != nil {
		n.logger.Info("the node could not deregister; its lease runs out instead", "error", err)
	}
}

// maxAddress is above what a host name of 255 bytes and a port take.
const maxAddress = 300

// CheckReachable says why others cannot come to an address; nil if they can.
func CheckReachable(address string) error {
	if len(address) > maxAddress {
		return errors.New("it is too long")
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("it must look like host:port")
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		return errors.New("it names no host")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("its port must be 1 to 65535")
	}
	return nil
}

// retry calls attempt, with growing pauses, until it succeeds, fails for good, or
// ctx ends. report is told of the first failure.
func retry(ctx context.Context, attempt func() error, report func(error)) error {
	delay := minRetryDelay
	for first := true; ; first = false {
		err := attempt()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case final(err):
			return err
		case first:
			report(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, maxRetryDelay)
	}
}

// final says that the same request will be refused again.
func final(err error) bool {
	e, ok := rpcerr.Parse(err)
	if !ok {
		return false
	}
	switch e.Reason {
	case errorsv1.Reason_REASON_NODE_MISMATCH,
		errorsv1.Reason_REASON_INVALID_REQUEST,
		errorsv1.Reason_REASON_LIMIT_REACHED,
		errorsv1.Reason_REASON_STALE_NODE_EPOCH:
		return true
	default:
		return false
	}
}

func milliseconds(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
}
