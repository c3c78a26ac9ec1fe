package replication

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metapeerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

const (
	// lagEvery is how often the leader looks for followers that lag.
	lagEvery = time.Second
	// maxChanges is how many changes the metadata service takes at once.
	maxChanges = 1000
	// answerWithin bounds one attempt.
	answerWithin = 10 * time.Second
)

// Proposer asks for the ISR changes of the partitions that this node leads, and to be
// left out of those where it follows and has lost records, those of all partitions
// together. What is not answered is asked for again: whether it
// was granted is unknown, and until then the partition counts with both.
type Proposer struct {
	maxLag time.Duration
	view   *clusterview.View
	client peerv1connect.PartitionServiceClient
	// concerned appends the partitions that there may be something to propose for.
	concerned func([]*partition.Partition) []*partition.Partition

	logger  *slog.Logger
	metrics *Metrics
	// wake has a token when there is a proposal to send.
	wake chan struct{}
	// urged has a token when all partitions are to be looked at.
	urged chan struct{}

	mu sync.Mutex
	// waiting are the partitions with proposals that are not answered.
	waiting map[*partition.Partition]struct{}
	// resting are those that were refused since the last look for lag: what this node
	// knows of the others may be behind, and would be refused again.
	resting map[*partition.Partition]struct{}
}

// NewProposer returns a proposer. concerned appends the partitions that there may be
// something to propose for, see [partition.Host.Proposing].
func NewProposer(config Config, view *clusterview.View, client peerv1connect.PartitionServiceClient,
	concerned func([]*partition.Partition) []*partition.Partition, logger *slog.Logger, metrics *Metrics,
) *Proposer {
	return &Proposer{
		maxLag: config.MaxLag, view: view, client: client, concerned: concerned, logger: logger, metrics: metrics,
		wake:    make(chan struct{}, 1),
		urged:   make(chan struct{}, 1),
		waiting: make(map[*partition.Partition]struct{}), resting: make(map[*partition.Partition]struct{}),
	}
}

// Consider looks whether the ISR of a partition should change.
func (p *Proposer) Consider(part *partition.Partition, now time.Time) {
	p.mu.Lock()
	_, resting := p.resting[part]
	p.mu.Unlock()
	if !resting && part.Propose(now, p.maxLag, p.live) {
		p.await(part)
	}
}

// await sends the proposal of a partition.
func (p *Proposer) await(part *partition.Partition) {
	p.mu.Lock()
	p.waiting[part] = struct{}{}
	p.metrics.proposals.Set(float64(len(p.waiting)))
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// live returns the epoch of a node's process that has its lease and is not about to
// stop, as far as is known here.
func (p *Proposer) live(id cluster.NodeID) (cluster.NodeEpoch, bool) {
	image := p.view.Image()
	if image == nil {
		return 0, false
	}
	node, ok := image.Node(id)
	if !ok || node.Fenced || node.Leaving {
		return 0, false
	}
	return node.Epoch, true
}

// UnderReplicated counts the partitions that a node leads and whose ISR is smaller
// than their replicas.
func UnderReplicated(view *clusterview.View, self cluster.NodeID) int {
	image := view.Image()
	if image == nil {
		return 0
	}
	n := 0
	for _, t := range image.Topics() {
		for i := range t.Partitions {
			if p := &t.Partitions[i]; p.Leader == self && len(p.ISR) < len(p.Replicas) {
				n++
			}
		}
	}
	return n
}

// Run sends proposals, as a process of a node, until ctx ends.
func (p *Proposer) Run(ctx context.Context, self cluster.NodeID, epoch cluster.NodeEpoch) error {
	tick := time.NewTicker(lagEvery)
	defer tick.Stop()
	pause := minPause
	var retry <-chan time.Time
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.sweep()
		case <-p.urged:
			p.sweep()
		case <-p.wake:
		case <-retry:
			retry = nil
		}
		if retry != nil {
			continue
		}
		err := p.propose(ctx, self, epoch)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			pause, failing = minPause, false
			continue
		case !failing:
			// Once per outage.
			p.logger.Warn("ISR changes are not answered; they are proposed again", "error", err)
			failing = true
		}
		retry = time.After(pause)
		pause = min(2*pause, maxPause)
	}
}

// Sweep makes Run look at all partitions concerned, without waiting for its next round. It does not block.
func (p *Proposer) Sweep() {
	select {
	case p.urged <- struct{}{}:
	default:
	}
}

// sweep looks at all partitions concerned.
func (p *Proposer) sweep() {
	p.mu.Lock()
	clear(p.resting)
	p.mu.Unlock()
	now := time.Now()
	for _, part := range p.concerned(nil) {
		p.Consider(part, now)
		if _, pending := part.Proposal(); pending {
			p.await(part)
		}
	}
}

// propose sends all proposals, and returns why some of them have no answer.
func (p *Proposer) propose(ctx context.Context, self cluster.NodeID, epoch cluster.NodeEpoch) error {
	p.mu.Lock()
	parts := make([]*partition.Partition, 0, len(p.waiting))
	for part := range p.waiting {
		parts = append(parts, part)
	}
	p.mu.Unlock()
	for len(parts) > 0 {
		n := min(len(parts), maxChanges)
		if err := p.ask(ctx, self, epoch, parts[:n]); err != nil {
			return err
		}
		parts = parts[n:]
	}
	return nil
}

// ask sends the proposals of so many partitions as one request takes.
func (p *Proposer) ask(ctx context.Context, self cluster.NodeID, epoch cluster.NodeEpoch, parts []*partition.Partition) error {
	req := &metapeerv1.AlterPartitionRequest{NodeId: int32(self), NodeEpoch: int64(epoch)}
	var asked []*partition.Partition
	var proposals []rules.ISRProposal
	for _, part := range parts {
		proposal, ok := part.Proposal()
		if !ok {
			// The cluster has decided otherwise.
			p.settle(part, true)
			continue
		}
		topic := part.Topic().ID
		change := &metapeerv1.PartitionChange{
			TopicId: topic[:], Partition: part.Index(),
			LeaderEpoch: int32(proposal.LeaderEpoch), PartitionEpoch: int32(proposal.PartitionEpoch), Withdraws: proposal.Withdraws,
		}
		for _, m := range proposal.ISR {
			change.Isr = append(change.Isr, &metapeerv1.IsrMember{NodeId: int32(m.Node), NodeEpoch: int64(m.Epoch)})
		}
		req.Changes = append(req.Changes, change)
		asked, proposals = append(asked, part), append(proposals, proposal)
	}
	if len(asked) == 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	res, err := p.client.AlterPartition(limited, req)
	if err != nil {
		return err
	}
	if len(res.GetResults()) != len(asked) {
		return fmt.Errorf("%d ISR changes were answered with %d results", len(asked), len(res.GetResults()))
	}
	now := time.Now()
	for i, result := range res.GetResults() {
		if result.GetPartition() == nil {
			// The metadata service does not know the partition: its word comes otherwise.
			p.settle(asked[i], false)
			continue
		}
		current := cluster.PartitionFromProto(result.GetPartition())
		before := asked[i].Assignment()
		if err := asked[i].Answer(proposals[i], result.GetAccepted(), current, now); err != nil {
			p.logger.Error("a partition is not served", "topic", asked[i].Topic().Name, "partition", asked[i].Index(), "error", err)
		}
		p.settle(asked[i], result.GetAccepted())
		switch {
		case !result.GetAccepted():
		case len(current.ISR) < len(before.ISR):
			p.metrics.shrinks.Inc()
		case len(current.ISR) > len(before.ISR):
			p.metrics.expansions.Inc()
		}
		if !result.GetAccepted() {
			p.logger.Debug("ISR change refused", "topic", asked[i].Topic().Name, "partition", asked[i].Index(),
				"proposed", proposals[i].ISR, "isr", current.ISR, "partition_epoch", current.PartitionEpoch)
		}
	}
	return nil
}

// settle takes a partition from those that wait for an answer; one that was refused
// rests until the next look for lag. The view may have told of the outcome before the
// answer did, and of more: what was proposed since then waits on.
func (p *Proposer) settle(part *partition.Partition, accepted bool) {
	p.mu.Lock()
	delete(p.waiting, part)
	if !accepted {
		p.resting[part] = struct{}{}
	}
	p.metrics.proposals.Set(float64(len(p.waiting)))
	p.mu.Unlock()
	if !accepted {
		return
	}
	p.Consider(part, time.Now())
	// Only now: whoever proposes meanwhile makes it wait after having proposed.
	if _, pending := part.Proposal(); pending {
		p.await(part)
	}
}
