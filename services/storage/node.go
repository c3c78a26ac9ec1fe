package storage

import (
	"context"
	"crypto/rand"
	"os"
	"strings"

	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/services/internal/node"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// register announces the process and records in the data directory who it is. It
// tries until the metadata service answers or ctx ends.
func (s *Service) register(ctx context.Context, st *store.Store, boot string) (*node.Node, error) {
	s.status.SetPhase("it waits for the metadata service to register it")
	n, err := node.Register(ctx, s.nodes, node.Process{
		Role:        metadatav1.NodeRole_NODE_ROLE_STORAGE,
		NodeID:      s.config.NodeID,
		Directory:   s.config.DataDir,
		Identity:    st.Identity(),
		Record:      st.SetIdentity,
		Address:     s.config.address(),
		PeerAddress: s.config.peerAddress(),
		BootID:      boot,
		Clean:       st.Clean(),
		Damaged:     st.Damaged(),
	}, s.logger)
	if err == nil {
		s.host.SetSelf(n.ID)
	}
	return n, err
}

// allocate returns how to ask for a block of producer ids.
func (s *Service) allocate(n *node.Node) func(ctx context.Context) (*peerv1.AllocateProducerIdsResponse, error) {
	return func(ctx context.Context) (*peerv1.AllocateProducerIdsResponse, error) {
		return s.nodes.AllocateProducerIds(ctx, &peerv1.AllocateProducerIdsRequest{NodeId: int32(n.ID), NodeEpoch: int64(n.Epoch)})
	}
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
