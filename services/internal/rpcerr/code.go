package rpcerr

import (
	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// Code returns the status code that goes with a reason. Generic retry layers
// repeat "unavailable" calls as they are, so only what is retriable as it is on
// this or another node may map to it; an outcome that is unknown never does.
func Code(reason errorsv1.Reason) connect.Code {
	switch reason {
	case errorsv1.Reason_REASON_UNSPECIFIED,
		errorsv1.Reason_REASON_INTERNAL,
		errorsv1.Reason_REASON_STORAGE_FAILED:
		return connect.CodeInternal
	case errorsv1.Reason_REASON_INVALID_REQUEST,
		errorsv1.Reason_REASON_INVALID_TOPIC_NAME,
		errorsv1.Reason_REASON_INVALID_PARTITIONS,
		errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR,
		errorsv1.Reason_REASON_INVALID_CONFIG,
		errorsv1.Reason_REASON_RECORD_TOO_LARGE,
		errorsv1.Reason_REASON_CORRUPT_BATCH,
		errorsv1.Reason_REASON_UNSUPPORTED_BATCH,
		errorsv1.Reason_REASON_KEY_REQUIRED,
		errorsv1.Reason_REASON_INVALID_TIMESTAMP,
		errorsv1.Reason_REASON_INVALID_GROUP_ID,
		errorsv1.Reason_REASON_INVALID_SUBSCRIPTION,
		errorsv1.Reason_REASON_METADATA_TOO_LARGE:
		return connect.CodeInvalidArgument
	case errorsv1.Reason_REASON_TOPIC_NOT_FOUND,
		errorsv1.Reason_REASON_PARTITION_NOT_FOUND,
		errorsv1.Reason_REASON_UNKNOWN_MEMBER,
		errorsv1.Reason_REASON_GROUP_NOT_FOUND:
		return connect.CodeNotFound
	case errorsv1.Reason_REASON_TOPIC_EXISTS:
		return connect.CodeAlreadyExists
	case errorsv1.Reason_REASON_INTERNAL_TOPIC:
		return connect.CodePermissionDenied
	case errorsv1.Reason_REASON_NOT_LEADER,
		errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE,
		errorsv1.Reason_REASON_PRODUCER_FENCED,
		errorsv1.Reason_REASON_UNKNOWN_PRODUCER,
		errorsv1.Reason_REASON_NODE_MISMATCH,
		errorsv1.Reason_REASON_NOT_COORDINATOR,
		errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED,
		errorsv1.Reason_REASON_GROUP_NOT_EMPTY:
		return connect.CodeFailedPrecondition
	case errorsv1.Reason_REASON_FENCED_LEADER_EPOCH,
		errorsv1.Reason_REASON_STALE_NODE_EPOCH,
		errorsv1.Reason_REASON_STALE_PARTITION_EPOCH,
		errorsv1.Reason_REASON_COORDINATOR_FENCED,
		errorsv1.Reason_REASON_MEMBER_FENCED,
		errorsv1.Reason_REASON_STALE_MEMBER_EPOCH,
		errorsv1.Reason_REASON_STALE_COMMIT,
		errorsv1.Reason_REASON_INSTANCE_FENCED:
		return connect.CodeAborted
	case errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE,
		errorsv1.Reason_REASON_LOG_TRUNCATED:
		return connect.CodeOutOfRange
	case errorsv1.Reason_REASON_NO_LEADER,
		errorsv1.Reason_REASON_PREFERRED_LEADER_NOT_AVAILABLE,
		errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH,
		errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE,
		errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS,
		errorsv1.Reason_REASON_DRAINING,
		errorsv1.Reason_REASON_METADATA_UNAVAILABLE,
		errorsv1.Reason_REASON_NOT_CONTROLLER,
		errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE:
		return connect.CodeUnavailable
	case errorsv1.Reason_REASON_THROTTLED,
		errorsv1.Reason_REASON_DISK_FULL,
		errorsv1.Reason_REASON_LIMIT_REACHED,
		errorsv1.Reason_REASON_GROUP_FULL:
		return connect.CodeResourceExhausted
	case errorsv1.Reason_REASON_TIMED_OUT,
		errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND:
		return connect.CodeDeadlineExceeded
	case errorsv1.Reason_REASON_CORRUPT_LOG:
		return connect.CodeDataLoss
	}
	return connect.CodeInternal
}
