package offsets

import (
	"context"
	"errors"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// appendWithin bounds an append: a leader that does not answer for so long leaves it
// in doubt, and the partition is loaded anew.
const appendWithin = 10 * time.Second

// Append carries a fenced append out. end is the offset after the batch, with
// [rules.Done]; err says why it is not done, for the log.
func (l *Leaders) Append(ctx context.Context, p rules.Partition, a *rules.Append) (outcome rules.Outcome, end int64, err error) {
	node, _, state, err := l.ofID(p)
	if err != nil {
		return rules.Refused, 0, err
	}
	batch, err := Encode(a.Records, time.Now())
	if err != nil {
		return rules.Refused, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, appendWithin)
	defer cancel()
	res, err := node.fenced.FencedAppend(ctx, &peerv1.FencedAppendRequest{
		TopicId:          p.Topic[:],
		Partition:        p.Index,
		LeaderEpoch:      int32(state.LeaderEpoch),
		CoordinatorEpoch: int64(a.Epoch),
		ExpectedOffset:   a.Expected,
		Batch:            batch,
	})
	if err != nil {
		return appendOutcome(err), 0, err
	}
	return rules.Done, res.GetBaseOffset() + int64(len(a.Records)), nil
}

// appendOutcome says what is known of an append that failed. What a leader refuses
// before it appends, and what never reached one, surely was not appended. A reason that
// a leader may also give for an append that it has taken and can no longer acknowledge
// leaves it in doubt, as everything does that is not known here.
func appendOutcome(err error) rules.Outcome {
	e, authored := rpcerr.Parse(err)
	if !authored {
		if _, unreached := errors.AsType[*transport.DialError](err); unreached {
			return rules.Refused
		}
		return rules.Doubtful
	}
	switch e.Reason {
	case errorsv1.Reason_REASON_COORDINATOR_FENCED:
		return rules.Fenced
	case errorsv1.Reason_REASON_NOT_LEADER,
		errorsv1.Reason_REASON_NO_LEADER,
		errorsv1.Reason_REASON_FENCED_LEADER_EPOCH,
		errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH,
		errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS,
		errorsv1.Reason_REASON_PARTITION_NOT_FOUND,
		errorsv1.Reason_REASON_INVALID_REQUEST,
		errorsv1.Reason_REASON_RECORD_TOO_LARGE,
		errorsv1.Reason_REASON_CORRUPT_BATCH,
		errorsv1.Reason_REASON_UNSUPPORTED_BATCH,
		errorsv1.Reason_REASON_KEY_REQUIRED,
		errorsv1.Reason_REASON_INVALID_TIMESTAMP,
		errorsv1.Reason_REASON_THROTTLED,
		errorsv1.Reason_REASON_DISK_FULL:
		return rules.Refused
	default:
		return rules.Doubtful
	}
}
