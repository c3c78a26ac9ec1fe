package server

import (
	"context"

	"connectrpc.com/connect/v2"

	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/controller"
)

const maxChanges = 1000

// MaxISR is how many members an ISR may have, so that a change of it fits into one
// transaction.
const MaxISR = 50

// AlterPartition implements peerv1connect.PartitionServiceHandler.
func (s *Server) AlterPartition(ctx context.Context, req *peerv1.AlterPartitionRequest) (*peerv1.AlterPartitionResponse, error) {
	proposals, err := proposalsOf(req)
	if err != nil {
		return nil, err
	}
	return decide(ctx, s,
		func(ctx context.Context) (*peerv1.AlterPartitionResponse, error) {
			results, version, err := s.o.Controller.AlterPartitions(ctx, cluster.NodeID(req.GetNodeId()), cluster.NodeEpoch(req.GetNodeEpoch()), proposals)
			if err != nil {
				return nil, err
			}
			response := &peerv1.AlterPartitionResponse{Version: version}
			for _, r := range results {
				response.Results = append(response.Results, &peerv1.PartitionChangeResult{Accepted: r.Accepted, Partition: r.Partition})
			}
			return response, nil
		},
		func(ctx context.Context, client *connect.Client) (*peerv1.AlterPartitionResponse, error) {
			return peerv1connect.NewPartitionServiceClient(client).AlterPartition(ctx, req)
		})
}

func proposalsOf(req *peerv1.AlterPartitionRequest) ([]controller.PartitionProposal, error) {
	if len(req.GetChanges()) > maxChanges {
		return nil, invalid("%d changes are too many for one request: send at most %d", len(req.GetChanges()), maxChanges)
	}
	proposals := make([]controller.PartitionProposal, len(req.GetChanges()))
	for i, change := range req.GetChanges() {
		topic, err := parseID("topic_id", change.GetTopicId())
		if err != nil {
			return nil, err
		}
		if len(change.GetIsr()) > MaxISR {
			return nil, invalid("an ISR of %d members is too large: it may have %d", len(change.GetIsr()), MaxISR)
		}
		proposals[i] = controller.PartitionProposal{Topic: topic, Partition: change.GetPartition(), ISRProposal: rules.ISRProposal{
			Leader:         cluster.NodeID(req.GetNodeId()),
			LeaderEpoch:    cluster.LeaderEpoch(change.GetLeaderEpoch()),
			PartitionEpoch: cluster.PartitionEpoch(change.GetPartitionEpoch()),
			Withdraws:      change.GetWithdraws(),
		}}
		for _, member := range change.GetIsr() {
			proposals[i].ISR = append(proposals[i].ISR, rules.ISRMember{Node: cluster.NodeID(member.GetNodeId()), Epoch: cluster.NodeEpoch(member.GetNodeEpoch())})
		}
	}
	return proposals, nil
}
