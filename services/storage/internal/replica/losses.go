package replica

import (
	"context"
	"fmt"
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// Losses are partitions, by the names of their topics, of which an operator accepts that
// they have lost records; no partitions stand for all of a topic.
type Losses map[string][]int32

// acceptLosses lets those partitions that an operator has named go on with what is left
// of them, unless another node leads: from that one all is copied. Nobody leads them
// before it is done, and this process does so in a leader epoch of its own, so that
// consumers are told where offsets are given again. The cluster knows by its registration
// that the node has found damage.
func (r *Replicas) acceptLosses(ctx context.Context, st *store.Store, image *cluster.Image, found map[cluster.TopicID][]int32) error {
	for name, named := range r.accepted {
		accepted := 0
		t, exists := image.Topic(name)
		if !exists {
			r.logger.Warn("the loss of records was to be accepted, and the topic does not exist", "topic", name)
			continue
		}
		for i, assignment := range t.Partitions {
			index := int32(i)
			leads := assignment.Leader == cluster.NoNode || assignment.Leader == r.host.Self()
			if _, stored := slices.BinarySearch(found[t.ID], index); !stored || !r.holds(assignment) || !leads || len(named) > 0 && !slices.Contains(named, index) {
				continue
			}
			log := st.Log(store.PartitionID{Topic: t.ID, Index: index})
			failed := log.Failed()
			if failed == nil {
				continue
			}
			if err := log.AcceptLoss(ctx); err != nil {
				return fmt.Errorf("accept the loss of partition %d of topic %q: %w", index, name, err)
			}
			if err := log.Err(); err != nil {
				r.logger.Error("the loss of records cannot be accepted, as the state of the partition is damaged; delete its topic", "topic", name, "partition", index, "error", err)
				continue
			}
			accepted++
			state, _ := log.Loaded()
			r.logger.Warn("the loss of records was accepted: the partition goes on with what is left", "topic", name, "partition", index,
				"log_start", state.LogStart, "log_end", state.LogEnd, "lost", failed)
		}
		if accepted == 0 {
			r.logger.Warn("the loss of records was to be accepted, and no such partition that this node may lead has lost any", "topic", name, "partitions", named)
		}
	}
	return nil
}
