package server

import (
	"context"
	"strings"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

const (
	defaultTimeoutMs = 30_000
	maxTimeoutMs     = 300_000
)

// Append is the unary form of Produce.
func (s *Server) Append(ctx context.Context, req *storagev1.AppendRequest) (*storagev1.AppendResponse, error) {
	in := req.GetAppend()
	if in == nil {
		return nil, invalid("append is not set; say what to append")
	}
	done := make(single, 1)
	if err := s.append(ctx, in, done); err != nil {
		return nil, err
	}
	select {
	case result := <-done:
		if result.Err != nil {
			return nil, result.Err
		}
		return &storagev1.AppendResponse{Result: produceResponse(in, result)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// single is the Completion of one append.
type single chan partition.Result

func (c single) Complete(r partition.Result) { c <- r }

// append checks a request and appends what it holds. Both forms of records and
// both RPCs meet here. It blocks while the node has too many bytes in flight.
// Unless it returns an error, done learns the outcome.
func (s *Server) append(ctx context.Context, req *storagev1.ProduceRequest, done partition.Completion) error {
	now := time.Now()
	if err := checkProduce(req); err != nil {
		return err
	}
	p, err := s.replicas.Partition(ctx, req.GetTopic(), req.GetTopicId(), req.GetPartition())
	if err != nil {
		return err
	}
	batch := req.GetBatch()
	if len(batch) == 0 {
		if batch, err = buildBatch(req.GetRecords(), p.Topic(), now); err != nil {
			return err
		}
	}
	charged, err := s.host.Budget().Acquire(ctx, int64(len(batch)))
	if err != nil {
		return rpcerr.New(errorsv1.Reason_REASON_THROTTLED,
			"the request ended while it waited for room among the appends in flight on this node; nothing was appended").WithCause(err)
	}
	timeout := req.GetTimeoutMs()
	if timeout == 0 {
		timeout = defaultTimeoutMs
	}
	return p.Append(partition.Append{
		Batch:       batch,
		Acks:        req.GetAcks(),
		Deadline:    now.Add(time.Duration(timeout) * time.Millisecond),
		LeaderEpoch: leaderEpoch(req.LeaderEpoch),
		Charged:     charged,
	}, done)
}

func checkProduce(req *storagev1.ProduceRequest) error {
	switch topic := req.GetTopic(); {
	case topic == "":
		return invalid("topic is empty; name the topic")
	case strings.HasPrefix(topic, "__"):
		return errInternalTopic(topic)
	}
	if len(req.GetTopicId()) != 0 && len(req.GetTopicId()) != len(cluster.TopicID{}) {
		return invalid("topic_id has %d bytes, must have 16 or none", len(req.GetTopicId()))
	}
	switch req.GetAcks() {
	case logv1.Acks_ACKS_UNSPECIFIED, logv1.Acks_ACKS_NONE, logv1.Acks_ACKS_LEADER, logv1.Acks_ACKS_ALL:
	default:
		return invalid("acks is %d, must be one of ACKS_NONE, ACKS_LEADER and ACKS_ALL", req.GetAcks())
	}
	if ms := req.GetTimeoutMs(); ms < 0 || ms > maxTimeoutMs {
		return invalid("timeout_ms is %d, must be 1 to %d, or 0 for %d", ms, maxTimeoutMs, defaultTimeoutMs)
	}
	if err := checkEpoch("leader_epoch", req.LeaderEpoch); err != nil {
		return err
	}
	switch batch, records := len(req.GetBatch()) > 0, len(req.GetRecords()) > 0; {
	case batch && records:
		return invalid("batch and records are both set; send one of them")
	case !batch && !records:
		return invalid("neither batch nor records is set; send one of them")
	}
	return nil
}

func checkEpoch(field string, epoch *int32) error {
	if epoch != nil && *epoch < 0 {
		return invalid("%s is %d, must be 0 or more, or unset", field, *epoch)
	}
	return nil
}

// leaderEpoch returns an optional leader epoch of a request.
func leaderEpoch(epoch *int32) cluster.LeaderEpoch {
	if epoch == nil {
		return rules.NoEpoch
	}
	return cluster.LeaderEpoch(*epoch)
}

func produceResponse(req *storagev1.ProduceRequest, r partition.Result) *storagev1.ProduceResponse {
	return &storagev1.ProduceResponse{
		RequestId:      req.GetRequestId(),
		Topic:          req.GetTopic(),
		Partition:      req.GetPartition(),
		BaseOffset:     r.BaseOffset,
		AppendTimeMs:   r.AppendTime,
		LogStartOffset: r.LogStart,
		LeaderEpoch:    int32(r.LeaderEpoch),
		Duplicate:      r.Duplicate,
		RecordCount:    r.Records,
	}
}

func invalid(format string, args ...any) error {
	return rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST, format, args...)
}

func errInternalTopic(topic string) error {
	return rpcerr.New(errorsv1.Reason_REASON_INTERNAL_TOPIC,
		"topic %q is the cluster's own and not for clients to write; theirs have names that do not begin with \"__\"", topic)
}
