package replica

import (
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// ByID returns a partition for other nodes, which know topics by their ids. It does
// not wait for what this node is about to learn of the cluster: whoever asks tries
// again. The errors are *rpcerr.Error.
func (r *Replicas) ByID(topic cluster.TopicID, index int32) (*partition.Partition, error) {
	p, applied, err := r.held(topic, index)
	switch {
	case err != nil:
		return nil, err
	case p == nil && applied == 0:
		return nil, errStarting()
	case p == nil:
		return nil, rpcerr.New(errorsv1.Reason_REASON_NOT_LEADER,
			"this node holds no replica of partition %d of topic %s as far as it knows; wait for the state of the cluster", index, topic)
	}
	return p, nil
}
