package partition

import (
	"errors"
	"fmt"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// name is how messages call the partition.
func (p *Partition) name() string {
	return fmt.Sprintf("partition %d of topic %q", p.index, p.topic.Name)
}

func (p *Partition) gone() error {
	return rpcerr.New(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "topic %q was deleted; create it, or check the name", p.topic.Name)
}

func (p *Partition) closing() error {
	return rpcerr.New(errorsv1.Reason_REASON_DRAINING, "the node that led %s is shutting down; ask the cluster for its new leader and try again", p.name())
}

func (p *Partition) failed(err error) error {
	if _, lost := errors.AsType[*store.ErrFailed](err); lost {
		return p.lost(err)
	}
	return rpcerr.New(errorsv1.Reason_REASON_STORAGE_FAILED,
		"the store of this node failed while it wrote %s; the node stops, and whether the records are kept is unknown", p.name()).WithCause(err)
}

// noRoom says that the store has refused a batch.
func (p *Partition) noRoom(err error) error {
	return rpcerr.New(errorsv1.Reason_REASON_DISK_FULL, "batch for %s refused, nothing was appended: %v", p.name(), err).WithCause(err)
}

// tooNew says that the log has records that the cluster cannot have written.
func (p *Partition) tooNew() error {
	return rpcerr.New(errorsv1.Reason_REASON_CORRUPT_LOG,
		"the log of %s has records of leader epoch %d, but the cluster is at an earlier one: its metadata is older than this node's data; restore the metadata that belongs to the data",
		p.name(), p.replica.Epochs().Latest())
}

// servesLocked returns nil if this node leads the partition in the leader epoch
// that the caller believes current; [rules.NoEpoch] skips that check.
func (p *Partition) servesLocked(believed cluster.LeaderEpoch) error {
	current := p.replica.Epoch()
	switch {
	case p.unavailable != nil:
		return p.unavailable
	case believed > current:
		return rpcerr.New(errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH,
			"leader epoch %d of %s is newer than %d, which this node knows; try again", believed, p.name(), current)
	case p.replica.Role() != rules.Leading:
		return p.notLeaderLocked()
	case believed != rules.NoEpoch && believed < current:
		return rpcerr.New(errorsv1.Reason_REASON_FENCED_LEADER_EPOCH,
			"leader epoch %d of %s is over, %d is current; refresh the view of the cluster and try again", believed, p.name(), current)
	}
	return nil
}

func (p *Partition) notLeaderLocked() error {
	assignment, _ := p.replica.Assignment()
	return NotLeader(p.topic.Name, p.index, assignment.Leader, assignment.LeaderEpoch, p.host.address)
}

// NotLeader is the error of a node that does not lead a partition. address names
// where clients reach a node, or returns the empty string.
func NotLeader(topic string, index int32, leader cluster.NodeID, epoch cluster.LeaderEpoch, address func(cluster.NodeID) string) error {
	detail := &errorsv1.NotLeader{Topic: topic, Partition: index, LeaderId: int32(leader), LeaderEpoch: max(0, int32(epoch))}
	if leader == cluster.NoNode {
		return rpcerr.New(errorsv1.Reason_REASON_NO_LEADER,
			"partition %d of topic %q has no leader at the moment; try again later", index, topic).WithDetail(detail)
	}
	where := "that node"
	if detail.LeaderAddress = address(leader); detail.LeaderAddress != "" {
		where = detail.LeaderAddress
	}
	return rpcerr.New(errorsv1.Reason_REASON_NOT_LEADER,
		"this node does not lead partition %d of topic %q, node %d does; send the request to %s", index, topic, leader, where).WithDetail(detail)
}

// refused turns the judgement of package recordbatch on a batch into an error
// for the producer.
func (p *Partition) refused(err error) error {
	reason := errorsv1.Reason_REASON_CORRUPT_BATCH
	remedy := "build it anew with a client that writes Kafka's format v2"
	switch {
	case errors.Is(err, recordbatch.ErrUnsupported):
		reason = errorsv1.Reason_REASON_UNSUPPORTED_BATCH
		remedy = "send Kafka's format v2 (magic 2) with codec none, gzip, snappy, lz4 or zstd"
	case errors.Is(err, recordbatch.ErrTooLarge):
		reason = errorsv1.Reason_REASON_RECORD_TOO_LARGE
		remedy = "send fewer or smaller records per batch"
	}
	// The text of a codec's own error stays in the server.
	text := "record batch"
	if e, ok := errors.AsType[*recordbatch.Error](err); ok {
		text = fmt.Sprintf("%s is %s, must be %s", e.Field, e.Got, e.Want)
	}
	return rpcerr.New(reason, "batch for %s refused: %s; %s", p.name(), text, remedy).WithCause(err)
}

// unreadable says that a stored batch does not pass its checks.
func (p *Partition) unreadable(offset int64, err error) error {
	where := "a later offset"
	if corrupt, ok := errors.AsType[*store.ErrCorrupt](err); ok && corrupt.Next > offset {
		where = fmt.Sprintf("offset %d", corrupt.Next)
	}
	return rpcerr.New(errorsv1.Reason_REASON_CORRUPT_LOG,
		"what is stored of %s at offset %d does not pass its checks and is not served; consume from %s to go on behind it", p.name(), offset, where).WithCause(err)
}

// Failed returns why the partition takes no more records although what is left of
// it can be read, or nil. The error is a *rpcerr.Error.
func (p *Partition) Failed() error {
	if err := p.log.Failed(); err != nil {
		return p.lost(err)
	}
	return nil
}

// lost says that something of the log is gone. Its text is for operators, who
// know of volumes.
func (p *Partition) lost(err error) error {
	failed, ok := errors.AsType[*store.ErrFailed](err)
	if !ok {
		return p.unreadable(0, err)
	}
	remedy := fmt.Sprintf("delete its records below offset %d to go on without them", failed.LostTo)
	if failed.LogEndUnknown {
		left := "nothing of it is left on this node"
		if failed.LogStart < failed.LogEnd {
			left = fmt.Sprintf("what is intact of its offsets %d to %d can be read", failed.LogStart, failed.LogEnd-1)
		}
		remedy = fmt.Sprintf("%s; restart the node with --accept-loss %s:%d to go on at offset %d", left, p.topic.Name, p.index, failed.LogEnd)
		if !p.topic.Internal() {
			remedy += ", or delete the topic and create it anew"
		}
	}
	return rpcerr.New(errorsv1.Reason_REASON_CORRUPT_LOG, "%s has lost records and takes no more: %s; %s", p.name(), failed.Reason, remedy).WithCause(err)
}
