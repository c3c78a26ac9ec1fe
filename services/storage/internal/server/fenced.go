package server

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

const (
	// fencedAppendWithin and checkFenceWithin bound the wait for followers.
	fencedAppendWithin = 30 * time.Second
	checkFenceWithin   = 5 * time.Second
	// maxFences bounds the claims of a request, and maxChecks those of the node that are
	// not answered yet.
	maxFences = 1000
	maxChecks = 100_000
)

// Partitions finds the partitions that this node holds.
type Partitions interface {
	// ByID returns a partition, whatever this node is to it. The error is a
	// *rpcerr.Error.
	ByID(topic cluster.TopicID, index int32) (*partition.Partition, error)
}

// Fenced is the handler of FencedAppendService: what coordinators ask of the leaders of
// the partitions that they write.
type Fenced struct {
	host       *partition.Host
	partitions Partitions
	logger     *slog.Logger
	// waiting counts the claims that are not answered yet.
	waiting atomic.Int64

	appends, checks *prometheus.CounterVec
}

var _ peerv1connect.FencedAppendServiceHandler = (*Fenced)(nil)

// NewFenced returns the handler. registerer may be nil.
func NewFenced(host *partition.Host, partitions Partitions, logger *slog.Logger, registerer prometheus.Registerer) *Fenced {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "runnel_storage_" + name, Help: help}, []string{"outcome"})
	}
	f := &Fenced{
		host: host, partitions: partitions, logger: logger,
		appends: counter("fenced_appends_total", "Appends of coordinators, by outcome: done, or the reason of the failure in lower case."),
		checks:  counter("fence_checks_total", "Claims of coordinators that were checked, by outcome: done, or the reason of the failure in lower case."),
	}
	f.appends.WithLabelValues(outcome(nil))
	f.checks.WithLabelValues(outcome(nil))
	if registerer != nil {
		registerer.MustRegister(f.appends, f.checks, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "runnel_storage_fence_checks_waiting", Help: "Claims of coordinators that wait for followers to confirm them.",
		}, func() float64 { return float64(f.waiting.Load()) }))
	}
	return f
}

// outcome is how metrics call the outcome of an RPC.
func outcome(err error) string {
	if err == nil {
		return "done"
	}
	return strings.ToLower(strings.TrimPrefix(rpcerr.ReasonOf(err).String(), "REASON_"))
}

// FencedAppend implements peerv1connect.FencedAppendServiceHandler.
func (f *Fenced) FencedAppend(ctx context.Context, req *peerv1.FencedAppendRequest) (*peerv1.FencedAppendResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, fencedAppendWithin)
	defer cancel()
	result, err := f.append(ctx, req)
	f.appends.WithLabelValues(outcome(err)).Inc()
	if err != nil {
		return nil, err
	}
	return &peerv1.FencedAppendResponse{BaseOffset: result.BaseOffset, HighWatermark: result.HighWatermark, LeaderEpoch: int32(result.LeaderEpoch)}, nil
}

func (f *Fenced) append(ctx context.Context, req *peerv1.FencedAppendRequest) (partition.Result, error) {
	claim := rules.Claim{Epoch: cluster.CoordinatorEpoch(req.GetCoordinatorEpoch()), Expected: req.GetExpectedOffset()}
	switch {
	case req.GetLeaderEpoch() < 0:
		return partition.Result{}, invalid("leader_epoch is %d, must be 0 or more", req.GetLeaderEpoch())
	case claim.Expected < rules.AnyOffset:
		return partition.Result{}, invalid("expected_offset is %d, must be 0 or more, or -1 for the first append of an epoch", claim.Expected)
	case len(req.GetBatch()) == 0:
		return partition.Result{}, invalid("batch is not set; say what to append")
	}
	p, err := f.find(req.GetTopicId(), req.GetPartition(), claim)
	if err != nil {
		return partition.Result{}, err
	}
	charged, err := f.host.Budget().Acquire(ctx, int64(len(req.GetBatch())))
	if err != nil {
		return partition.Result{}, rpcerr.New(errorsv1.Reason_REASON_THROTTLED,
			"the request ended while it waited for room among the appends in flight on this node; nothing was appended").WithCause(err)
	}
	deadline, _ := ctx.Deadline()
	done := make(single, 1)
	err = p.Append(partition.Append{
		Batch: req.GetBatch(), Claim: &claim, Deadline: deadline, LeaderEpoch: cluster.LeaderEpoch(req.GetLeaderEpoch()), Charged: charged,
	}, done)
	if err != nil {
		return partition.Result{}, err
	}
	select {
	case result := <-done:
		return result, result.Err
	case <-ctx.Done():
		return partition.Result{}, ctx.Err()
	}
}

// find returns the partition that a claim is about.
func (f *Fenced) find(topic []byte, index int32, claim rules.Claim) (*partition.Partition, error) {
	id, err := cluster.ParseTopicID(topic)
	switch {
	case err != nil:
		return nil, invalid("topic_id has %d bytes, must have 16", len(topic))
	case index < 0:
		return nil, invalid("partition is %d, must be 0 or more", index)
	case claim.Epoch < 1:
		return nil, invalid("coordinator_epoch is %d, must be 1 or more", claim.Epoch)
	}
	return f.partitions.ByID(id, index)
}

// CheckFence implements peerv1connect.FencedAppendServiceHandler. All claims wait
// together: the followers are asked about all of them at once.
func (f *Fenced) CheckFence(ctx context.Context, req *peerv1.CheckFenceRequest) (*peerv1.CheckFenceResponse, error) {
	n := len(req.GetFences())
	if n == 0 || n > maxFences {
		return nil, invalid("fences has %d entries, must have 1 to %d", n, maxFences)
	}
	defer f.waiting.Add(-int64(n))
	if f.waiting.Add(int64(n)) > maxChecks {
		return nil, rpcerr.New(errorsv1.Reason_REASON_THROTTLED, "this node has %d claims to check, which is as many as it takes; try again later", maxChecks)
	}
	ctx, cancel := context.WithTimeout(ctx, checkFenceWithin)
	defer cancel()
	checks := make([]*partition.FenceCheck, n)
	errs := make([]error, n)
	for i, fence := range req.GetFences() {
		checks[i], errs[i] = f.begin(fence)
	}
	res := &peerv1.CheckFenceResponse{Results: make([]*peerv1.FenceResult, n)}
	for i, c := range checks {
		if c != nil {
			errs[i] = c.Wait(ctx)
		}
		res.Results[i] = &peerv1.FenceResult{Failure: failureOf(ctx, f.logger, errs[i])}
		f.checks.WithLabelValues(outcome(errs[i])).Inc()
	}
	return res, nil
}

// begin begins one check.
func (f *Fenced) begin(fence *peerv1.Fence) (*partition.FenceCheck, error) {
	claim := rules.Claim{Epoch: cluster.CoordinatorEpoch(fence.GetCoordinatorEpoch()), Expected: fence.GetExpectedOffset()}
	if claim.Expected < 0 {
		return nil, invalid("expected_offset is %d, must be 0 or more", claim.Expected)
	}
	p, err := f.find(fence.GetTopicId(), fence.GetPartition(), claim)
	if err != nil {
		return nil, err
	}
	return p.BeginCheck(claim)
}
