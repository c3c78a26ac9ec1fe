package offsets

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

// Dial returns the transport to an address. It must not block.
type Dial func(address string) connect.Transport

// Leaders reaches the leaders of partitions as the view tells them. Its methods may be
// called concurrently.
type Leaders struct {
	view *clusterview.View
	// public and peers dial the address for clients and that for peers.
	public, peers Dial
	logger        *slog.Logger
	tel           *telemetry.Telemetry

	mu    sync.Mutex
	nodes map[cluster.NodeID]*storageNode

	// ends are those of which commits need not ask.
	ends knownEnds
}

// storageNode is what is known of how to reach a node. It is immutable, but for who waits
// for it.
type storageNode struct {
	address, peerAddress string
	log                  storagev1connect.LogServiceClient
	fenced               peerv1connect.FencedAppendServiceClient
	fences               line[*peerv1.Fence]
	ends                 line[*endQuestion]
}

// NewLeaders returns the leaders that the view shows. tel may be nil.
func NewLeaders(view *clusterview.View, public, peers Dial, logger *slog.Logger, tel *telemetry.Telemetry) *Leaders {
	return &Leaders{view: view, public: public, peers: peers, logger: logger, tel: tel, nodes: make(map[cluster.NodeID]*storageNode)}
}

// of returns the leader of a partition, or an error of reason NO_LEADER or
// TOPIC_NOT_FOUND.
func (l *Leaders) of(topic *cluster.Topic, index int32) (*storageNode, *cluster.Partition, error) {
	if index < 0 || int(index) >= len(topic.Partitions) {
		return nil, nil, rpcerr.New(errorsv1.Reason_REASON_PARTITION_NOT_FOUND, "topic %q has no partition %d, it has 0 to %d", topic.Name, index, len(topic.Partitions)-1)
	}
	p := &topic.Partitions[index]
	node, err := l.node(p.Leader)
	if err != nil {
		return nil, nil, rpcerr.New(errorsv1.Reason_REASON_NO_LEADER, "partition %d of topic %q has no leader that can be reached at the moment; try again later", index, topic.Name).WithCause(err)
	}
	return node, p, nil
}

// ofID is of for a topic by its id.
func (l *Leaders) ofID(p rules.Partition) (*storageNode, *cluster.Topic, *cluster.Partition, error) {
	image := l.view.Image()
	if image == nil {
		return nil, nil, nil, rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "this node does not know the cluster yet; try again")
	}
	topic, ok := image.TopicByID(p.Topic)
	if !ok {
		return nil, nil, nil, rpcerr.New(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "there is no topic of id %s; try again if it was just created", p.Topic)
	}
	node, state, err := l.of(topic, p.Index)
	return node, topic, state, err
}

// node returns how to reach a node.
func (l *Leaders) node(id cluster.NodeID) (*storageNode, error) {
	image := l.view.Image()
	if image == nil {
		return nil, fmt.Errorf("the cluster is not known")
	}
	n, ok := image.Node(id)
	if !ok {
		return nil, fmt.Errorf("node %d is not known", id)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.nodes[id]
	if known == nil || known.address != n.Address || known.peerAddress != n.PeerAddress {
		known = &storageNode{
			address:     n.Address,
			peerAddress: n.PeerAddress,
			log:         storagev1connect.NewLogServiceClient(rpc.NewClient(l.public(n.Address), l.tel)),
			fenced:      peerv1connect.NewFencedAppendServiceClient(rpc.NewClient(l.peers(n.PeerAddress), l.tel)),
		}
		// One entry per node id: nodes are few, and their ids are not used up.
		l.nodes[id] = known
	}
	return known, nil
}

// Load reads a partition from its start up to end and delivers its records in pieces,
// in their order. err says why it could not, with [rules.Refused].
func (l *Leaders) Load(ctx context.Context, p rules.Partition, end int64, deliver func([]rules.Record)) (rules.Outcome, error) {
	unknown, err := load(ctx, p, end, func() (leader, error) {
		node, topic, state, err := l.ofID(p)
		if err != nil {
			return leader{}, err
		}
		return leader{log: node.log, topic: topic.Name, epoch: state.LeaderEpoch}, nil
	}, deliver)
	if unknown > 0 {
		l.logger.Warn("records of consumer groups are of a kind that this version does not know: a newer one has written them, and takes them into account again", "partition", p.Index, "records", unknown)
	}
	if err != nil {
		return rules.Refused, err
	}
	return rules.Done, nil
}
