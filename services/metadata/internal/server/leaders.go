package server

import (
	"context"

	"connectrpc.com/connect/v2"

	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/metadata/internal/controller"
)

const (
	// maxElectionTopics and maxElectionPartitions bound what an election names.
	maxElectionTopics     = 1000
	maxElectionPartitions = 100_000
)

// Leave implements peerv1connect.NodeServiceHandler.
func (s *Server) Leave(ctx context.Context, req *peerv1.LeaveRequest) (*peerv1.LeaveResponse, error) {
	return decide(ctx, s,
		func(ctx context.Context) (*peerv1.LeaveResponse, error) {
			remaining, version, err := s.o.Controller.Leave(ctx, cluster.NodeID(req.GetNodeId()), cluster.NodeEpoch(req.GetNodeEpoch()))
			if err != nil {
				return nil, err
			}
			return &peerv1.LeaveResponse{Remaining: int32(remaining), Version: version}, nil
		},
		func(ctx context.Context, client *connect.Client) (*peerv1.LeaveResponse, error) {
			return peerv1connect.NewNodeServiceClient(client).Leave(ctx, req)
		})
}

// ElectLeaders implements metadatav1connect.TopicServiceHandler.
func (s *Server) ElectLeaders(ctx context.Context, req *metadatav1.ElectLeadersRequest) (*metadatav1.ElectLeadersResponse, error) {
	request, err := electionOf(req)
	if err != nil {
		return nil, err
	}
	response, err := decide(ctx, s,
		func(ctx context.Context) (*metadatav1.ElectLeadersResponse, error) {
			outcome, version, err := s.o.Controller.ElectLeaders(ctx, request)
			if err != nil {
				return nil, err
			}
			response := &metadatav1.ElectLeadersResponse{Version: version}
			for i := range outcome {
				response.Elections = append(response.Elections, electionProto(&outcome[i]))
			}
			return response, nil
		},
		func(ctx context.Context, client *connect.Client) (*metadatav1.ElectLeadersResponse, error) {
			return metadatav1connect.NewTopicServiceClient(client).ElectLeaders(ctx, req)
		})
	if err != nil || req.GetValidateOnly() {
		return response, err
	}
	err = s.show(ctx, "leaders were elected", func(image *cluster.Image) bool { return image.Version >= response.GetVersion() })
	if err != nil {
		return nil, err
	}
	return response, nil
}

func electionOf(req *metadatav1.ElectLeadersRequest) (controller.LeaderElection, error) {
	e := controller.LeaderElection{ValidateOnly: req.GetValidateOnly(), Topics: make(map[string][]int32, len(req.GetTopics()))}
	switch req.GetType() {
	case metadatav1.ElectionType_ELECTION_TYPE_PREFERRED:
	case metadatav1.ElectionType_ELECTION_TYPE_UNCLEAN:
		e.Unclean = true
	default:
		return e, invalid("type is %d: elect preferred leaders with ELECTION_TYPE_PREFERRED, or for offline partitions any live replica with ELECTION_TYPE_UNCLEAN", req.GetType())
	}
	if len(req.GetTopics()) > maxElectionTopics {
		return e, invalid("%d topics are too many for one request: name at most %d, or none for all", len(req.GetTopics()), maxElectionTopics)
	}
	total := 0
	for _, t := range req.GetTopics() {
		if _, twice := e.Topics[t.GetTopic()]; twice {
			return e, invalid("topic %q is named twice: name it once, with all its partitions", t.GetTopic())
		}
		if total += len(t.GetPartitions()); total > maxElectionPartitions {
			return e, invalid("more than %d partitions are too many for one request: name a topic without partitions for all of them", maxElectionPartitions)
		}
		seen := make(map[int32]struct{}, len(t.GetPartitions()))
		for _, p := range t.GetPartitions() {
			if _, twice := seen[p]; twice {
				return e, invalid("partition %d of topic %q is named twice: name it once", p, t.GetTopic())
			}
			seen[p] = struct{}{}
		}
		e.Topics[t.GetTopic()] = t.GetPartitions()
	}
	return e, nil
}

func electionProto(e *controller.Elected) *metadatav1.LeaderElection {
	out := &metadatav1.LeaderElection{
		Topic:            e.Topic,
		Partition:        e.After.Index,
		PreviousLeaderId: int32(e.Before),
		LeaderId:         int32(e.After.Leader),
		LeaderEpoch:      int32(e.After.LeaderEpoch),
		Unclean:          e.Unclean,
	}
	if e.Failure != nil {
		out.Failure = e.Failure.Failure()
	}
	return out
}
