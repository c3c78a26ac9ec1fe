// Package groups drives the rules of consumer groups: one goroutine for each
// partition of __consumer_offsets that this node coordinates, which brings requests
// and the outcomes of I/O to a [rules.Shard] and carries out what comes of them.
//
// What a shard says holds for as long as nobody has taken the partition over, which
// this process cannot know if it was stopped in between. So everything that goes out
// carries the time at which it was last certain, and is refused where it leaves if that
// is longer ago than [rules.Config.Confidence].
package groups

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// Log is the log of the partitions of [cluster.OffsetsTopic]. Its methods are called
// concurrently, block until there is an outcome, and end soon after ctx does. Errors say
// why an outcome is not [rules.Done].
type Log interface {
	// Append carries out a fenced append; end is the offset after the batch.
	Append(ctx context.Context, p rules.Partition, a *rules.Append) (outcome rules.Outcome, end int64, err error)
	// Check asks whether a fence holds.
	Check(ctx context.Context, p rules.Partition, c *rules.Check) (rules.Outcome, error)
	// Load reads the log from its start up to end and delivers it in pieces, in its order.
	Load(ctx context.Context, p rules.Partition, end int64, deliver func([]rules.Record)) (rules.Outcome, error)
}

// Host has the shards of a node.
type Host struct {
	config  rules.Config
	log     Log
	view    *clusterview.View
	logger  *slog.Logger
	metrics *metrics
	tickets atomic.Uint64

	mu sync.Mutex
	// shards are those of the partitions that the node coordinates, or did.
	shards map[rules.Partition]*shard
	// topic is that of the shards, zero before there is one.
	topic cluster.TopicID
	// stopped says that there will be no more shards.
	stopped bool
	// applied is the version of the newest image that was acted on; changed is closed
	// and replaced with it.
	applied int64
	changed chan struct{}

	// The rest belongs to Run.
	topics  *topics
	running sync.WaitGroup
}

// NewHost returns a host without shards. registerer may be nil.
func NewHost(config rules.Config, log Log, view *clusterview.View, logger *slog.Logger, registerer prometheus.Registerer) *Host {
	h := &Host{
		config: config, log: log, view: view, logger: logger,
		shards: make(map[rules.Partition]*shard), changed: make(chan struct{}), topics: newTopics(nil),
	}
	h.metrics = newMetrics(h, registerer)
	return h
}

// Run coordinates what the cluster gives to a process of a node, until ctx ends.
// Images below a version are ignored: what they say of this node is about a process
// before this one. It returns once all shards have ended; everything that waited is
// refused then. It is called once.
func (h *Host) Run(ctx context.Context, self cluster.NodeID, from int64) error {
	subscription := h.view.Subscribe()
	defer subscription.Close()
	defer h.running.Wait()
	defer h.stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-subscription.C:
		}
		if image := subscription.Image(); image.Version >= from {
			h.apply(ctx, self, image)
		}
	}
}

// apply acts on an image.
func (h *Host) apply(ctx context.Context, self cluster.NodeID, image *cluster.Image) {
	if next := newTopics(image); !next.equal(h.topics) {
		h.topics = next
	}
	owned := make(map[rules.Partition]rules.CoordinatorEpoch)
	topic, ok := image.Topic(cluster.OffsetsTopic)
	if ok {
		for i := range topic.Partitions {
			if p := &topic.Partitions[i]; p.Coordinator == self && p.CoordinatorEpoch > 0 {
				owned[rules.Partition{Topic: topic.ID, Index: p.Index}] = p.CoordinatorEpoch
			}
		}
	}
	h.mu.Lock()
	if ok {
		h.topic = topic.ID
	}
	for id := range owned {
		if h.shards[id] == nil {
			s := newShard(h, id, self)
			h.shards[id] = s
			h.running.Go(func() { s.run(ctx) })
		}
	}
	shards := maps.Clone(h.shards)
	h.mu.Unlock()
	for id, s := range shards {
		// That of a partition that is another's now stays: partitions come back, and it
		// costs nothing.
		s.assign(assignment{epoch: owned[id], topics: h.topics})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.applied = image.Version
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Host) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
}

// WaitApplied returns once all shards have acted on an image of that version or a
// later one, or with the error of ctx.
func (h *Host) WaitApplied(ctx context.Context, version int64) error {
	for {
		h.mu.Lock()
		applied, changed := h.applied, h.changed
		h.mu.Unlock()
		if applied >= version {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errNotHere refuses a request for a partition that the node does not coordinate.
var errNotHere = &rules.Refusal{Reason: errorsv1.Reason_REASON_NOT_COORDINATOR, Message: "this node does not coordinate the group; ask the cluster who does"}

// errStopping refuses a request that has come too late.
var errStopping = &rules.Refusal{Reason: errorsv1.Reason_REASON_DRAINING, Message: "this coordinator is shutting down; ask the cluster for the group's next one and try again"}

// shard returns the shard of a partition of [cluster.OffsetsTopic].
func (h *Host) shard(index int32) (*shard, *rules.Refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return nil, errStopping
	}
	s := h.shards[rules.Partition{Topic: h.topic, Index: index}]
	if s == nil {
		return nil, errNotHere
	}
	return s, nil
}

// all returns the shards in no order.
func (h *Host) all() []*shard {
	h.mu.Lock()
	defer h.mu.Unlock()
	shards := make([]*shard, 0, len(h.shards))
	for _, s := range h.shards {
		shards = append(shards, s)
	}
	return shards
}

// Do submits a request to a partition of [cluster.OffsetsTopic] and returns the answer, or the
// error of ctx, or a *[rules.Refusal].
func (h *Host) Do(ctx context.Context, index int32, request rules.Request) (any, error) {
	s, refusal := h.shard(index)
	if refusal != nil {
		return nil, refusal
	}
	return s.do(ctx, request)
}

// Join submits a Join and returns its stream, on which it is answered; the caller
// closes it.
func (h *Host) Join(ctx context.Context, index int32, join *rules.Join) (*Stream, error) {
	s, refusal := h.shard(index)
	if refusal != nil {
		return nil, refusal
	}
	return s.join(ctx, join)
}

// Serving returns the partitions that can be asked, in no order, and how many others
// the node coordinates that are still loading.
func (h *Host) Serving() (serving []int32, loading int) {
	for _, s := range h.all() {
		switch s.state.Load() {
		case shardServing:
			serving = append(serving, s.partition.Index)
		case shardLoading:
			loading++
		}
	}
	return serving, loading
}

// Offsets returns committed offsets, at most limit, and how many there are, for
// metrics: nobody is asked whether they are the newest.
func (h *Host) Offsets(ctx context.Context, limit int) (records []*rules.OffsetRecord, total int) {
	shards := h.all()
	slices.SortFunc(shards, func(a, b *shard) int { return cmp.Compare(a.partition.Index, b.partition.Index) })
	for _, s := range shards {
		if s.state.Load() != shardServing {
			continue
		}
		found, count, err := s.offsets(ctx, limit-len(records))
		if err != nil {
			break
		}
		records, total = append(records, found...), total+count
	}
	return records, total
}

// stale refuses what was certain too long ago to be said.
func stale(certain time.Time) *rules.Refusal {
	return &rules.Refusal{
		Reason:  errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE,
		Message: "this coordinator has not heard for " + time.Since(certain).Round(time.Millisecond).String() + " that the group is still its own; try again, or ask the cluster who coordinates it",
	}
}
