package runnel

import (
	"context"
	"maps"
	"slices"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
)

// ElectionSpec says which leaders to elect.
type ElectionSpec struct {
	// Unclean elects a live replica as leader of each partition that is offline,
	// although it may lack acknowledged records, which are lost for good then.
	// Otherwise the preferred replicas, the first of each partition, are elected
	// where they are live and in sync; that loses nothing.
	Unclean bool
	// Topics holds the partitions to elect leaders of by topic, none for all of a
	// topic; empty means all partitions of all topics.
	Topics map[string][]int32
	// ValidateOnly asks only what would be elected.
	ValidateOnly bool
}

// LeaderElection is the outcome of an election for one partition.
type LeaderElection struct {
	TopicPartition
	// PreviousLeader led before, and Leader leads now, or would with ValidateOnly; -1
	// stands for none. Where they are the same there was nothing to elect.
	PreviousLeader, Leader int32
	LeaderEpoch            int32
	// Unclean says that Leader may lack acknowledged records.
	Unclean bool
	// Err says why the leader that the election is for could not be elected.
	Err error
}

// ElectLeaders elects leaders, for each partition by itself. It returns the
// outcome for the partitions that the spec names by their numbers, and of the
// others for those whose leader changed or could not be elected. An unknown topic
// or partition fails the whole call, and nothing is elected.
func (a *Admin) ElectLeaders(ctx context.Context, spec ElectionSpec) ([]LeaderElection, error) {
	request := &metadatav1.ElectLeadersRequest{Type: metadatav1.ElectionType_ELECTION_TYPE_PREFERRED, ValidateOnly: spec.ValidateOnly}
	if spec.Unclean {
		request.Type = metadatav1.ElectionType_ELECTION_TYPE_UNCLEAN
	}
	for _, topic := range slices.Sorted(maps.Keys(spec.Topics)) {
		request.Topics = append(request.Topics, &metadatav1.TopicPartitions{Topic: topic, Partitions: spec.Topics[topic]})
	}
	var elections []LeaderElection
	err := a.metadata(ctx, IsRetriable, func(ctx context.Context, address string, client metadatav1connect.TopicServiceClient) error {
		response, err := within(ctx, changeTimeout, address, client.ElectLeaders, request)
		if err != nil {
			return err
		}
		elections = make([]LeaderElection, len(response.GetElections()))
		for i, e := range response.GetElections() {
			elections[i] = LeaderElection{
				TopicPartition: TopicPartition{Topic: e.GetTopic(), Partition: e.GetPartition()},
				PreviousLeader: e.GetPreviousLeaderId(), Leader: e.GetLeaderId(), LeaderEpoch: e.GetLeaderEpoch(), Unclean: e.GetUnclean(),
			}
			if failure := e.GetFailure(); failure != nil {
				elections[i].Err = failureError(failure)
			}
		}
		return nil
	})
	return elections, err
}
