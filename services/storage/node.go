package storage

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

const (
	// registerWithin bounds one attempt: the controller elects leaders for all
	// partitions of the node before it answers.
	registerWithin   = 30 * time.Second
	deregisterWithin = 2 * time.Second
	minRetryDelay    = 50 * time.Millisecond
	maxRetryDelay    = 2 * time.Second
	// minHeartbeat keeps a senseless lease from flooding the metadata service.
	minHeartbeat = 50 * time.Millisecond
)

// node is this process as the metadata service knows it.
type node struct {
	service *Service
	id      cluster.NodeID
	epoch   cluster.NodeEpoch
	version int64
	lease   time.Duration
}

func (n *node) epochOrZero() int64 {
	if n == nil {
		return 0
	}
	return int64(n.epoch)
}

// register announces the process and records in the data directory who it is. It
// tries until the metadata service answers or ctx ends.
func (s *Service) register(ctx context.Context, st *store.Store, boot string) (*node, error) {
	identity := st.Identity()
	id := s.config.NodeID
	if identity.NodeID != 0 {
		if id != 0 && id != identity.NodeID {
			return nil, fmt.Errorf("data directory %s belongs to node %d, not to node %d: start the node with its own directory, or without a node id", s.config.DataDir, identity.NodeID, id)
		}
		id = identity.NodeID
	}
	req := &peerv1.RegisterRequest{
		NodeId:      int32(id),
		Role:        metadatav1.NodeRole_NODE_ROLE_STORAGE,
		Address:     s.config.address(),
		PeerAddress: s.config.peerAddress(),
		DirectoryId: identity.DirectoryID[:],
		BootId:      boot,
		Clean:       st.Clean(),
		Damaged:     st.Damaged(),
	}
	if identity.Known() {
		req.ClusterId = identity.ClusterID[:]
	}
	s.status.SetPhase("it waits for the metadata service to register it")
	var res *peerv1.RegisterResponse
	err := retry(ctx, func() error {
		attempt, cancel := context.WithTimeout(ctx, registerWithin)
		defer cancel()
		var err error
		res, err = s.nodes.Register(attempt, req)
		return err
	}, func(err error) {
		s.logger.Warn("the node cannot register; it goes on trying", "error", err)
	})
	if err != nil {
		return nil, fmt.Errorf("register node: %w", err)
	}
	var clusterID [16]byte
	if len(res.GetClusterId()) != len(clusterID) || res.GetNodeId() < 1 {
		return nil, fmt.Errorf("register node: the metadata service answered with a cluster id of %d bytes and node id %d", len(res.GetClusterId()), res.GetNodeId())
	}
	copy(clusterID[:], res.GetClusterId())
	n := &node{
		service: s,
		id:      cluster.NodeID(res.GetNodeId()),
		epoch:   cluster.NodeEpoch(res.GetNodeEpoch()),
		version: res.GetVersion(),
		lease:   milliseconds(res.GetLeaseMs()),
	}
	if err := st.SetIdentity(clusterID, n.id); err != nil {
		return nil, fmt.Errorf("record the node's identity: %w", err)
	}
	s.host.SetSelf(n.id)
	return n, nil
}

// heartbeat renews the lease until ctx ends. That the metadata service does not
// answer is no reason to stop: epochs decide who leads, leases only tell others
// whom to elect. The error says that another process has taken the node's place.
func (n *node) heartbeat(ctx context.Context) error {
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
		res, err := n.service.nodes.Heartbeat(attempt, &peerv1.HeartbeatRequest{NodeId: int32(n.id), NodeEpoch: int64(n.epoch)})
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if failing {
				n.service.logger.Info("heartbeats are answered again")
			}
			failing = false
			n.lease = milliseconds(res.GetLeaseMs())
			timer.Reset(every())
		case rpcerr.ReasonOf(err) == errorsv1.Reason_REASON_STALE_NODE_EPOCH:
			return fmt.Errorf("another process has registered as node %d, and this one stops: give each process a node id and a data directory of its own: %w", n.id, err)
		default:
			if !failing {
				n.service.logger.Warn("heartbeats are not answered; the node leads on", "error", err)
			}
			failing = true
			timer.Reset(min(every(), maxRetryDelay))
		}
	}
}

// allocate asks for a block of producer ids.
func (n *node) allocate(ctx context.Context) (*peerv1.AllocateProducerIdsResponse, error) {
	return n.service.nodes.AllocateProducerIds(ctx, &peerv1.AllocateProducerIdsRequest{NodeId: int32(n.id), NodeEpoch: int64(n.epoch)})
}

// deregister spares others the wait for the lease to run out.
func (n *node) deregister(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, deregisterWithin)
	defer cancel()
	if _, err := n.service.nodes.Deregister(ctx, &peerv1.DeregisterRequest{NodeId: int32(n.id), NodeEpoch: int64(n.epoch)}); err != nil {
		n.service.logger.Info("the node could not deregister; its lease runs out instead", "error", err)
	}
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
		case <-time.After(delay/2 + mathrand.N(delay/2)):
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

// bootID names the kernel's boot: while it is the same, the page cache has kept
// what an earlier process wrote. Where the system does not tell, every process
// has one of its own, and nothing is taken for granted.
func bootID() string {
	if raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		if id := strings.TrimSpace(string(raw)); id != "" {
			return id
		}
	}
	return "process-" + rand.Text()
}
