package replication

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"connectrpc.com/connect/v2"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
)

// Followers is the follower's end: one stream to each node that leads partitions
// which this node follows.
type Followers struct {
	view       *clusterview.View
	partitions Partitions
	// dial returns the transport to the peer address of a node.
	dial    func(address string) connect.Transport
	logger  *slog.Logger
	metrics *Metrics

	// The rest belongs to Run.
	self  cluster.NodeID
	epoch cluster.NodeEpoch
	// seen has the topics as they were acted on.
	seen  map[cluster.TopicID]*cluster.Topic
	links map[cluster.NodeID]*runningLink
	ended sync.WaitGroup
}

// runningLink is a link with its goroutine.
type runningLink struct {
	*link
	stop context.CancelFunc
}

// NewFollowers returns the follower's end of a node. dial returns the transport to
// the peer address of a node; it must not block.
func NewFollowers(view *clusterview.View, partitions Partitions, dial func(address string) connect.Transport, logger *slog.Logger, metrics *Metrics) *Followers {
	return &Followers{
		view: view, partitions: partitions, dial: dial, logger: logger, metrics: metrics,
		seen: make(map[cluster.TopicID]*cluster.Topic), links: make(map[cluster.NodeID]*runningLink),
	}
}

// Run follows what the cluster says until ctx ends, as a process of a node. Images
// below a version are ignored: what they say of this node is about a process
// before this one. It is called once.
func (f *Followers) Run(ctx context.Context, self cluster.NodeID, epoch cluster.NodeEpoch, from int64) error {
	f.self, f.epoch = self, epoch
	subscription := f.view.Subscribe()
	defer subscription.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer f.ended.Wait()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-subscription.C:
		}
		image := subscription.Image()
		if image.Version < from {
			continue
		}
		// The partitions first: their positions carry the leader epoch.
		if f.partitions.WaitApplied(ctx, image.Version) != nil {
			return nil
		}
		f.apply(ctx, image)
	}
}

// apply acts on what has changed since the image before.
func (f *Followers) apply(ctx context.Context, image *cluster.Image) {
	for id, before := range f.seen {
		if _, there := image.TopicByID(id); !there {
			delete(f.seen, id)
			for i := range before.Partitions {
				f.move(ctx, ID{Topic: id, Index: int32(i)}, before.Partitions[i], cluster.Partition{Leader: cluster.NoNode})
			}
		}
	}
	for _, now := range image.Topics() {
		before := f.seen[now.ID]
		if before == now {
			continue
		}
		f.seen[now.ID] = now
		for i, p := range now.Partitions {
			was := cluster.Partition{Leader: cluster.NoNode}
			if before != nil && i < len(before.Partitions) {
				was = before.Partitions[i]
			}
			f.move(ctx, ID{Topic: now.ID, Index: int32(i)}, was, p)
		}
	}
	for node, r := range f.links {
		if r.empty() {
			r.stop()
			delete(f.links, node)
		}
	}
}

// move makes a partition follow its leader after a change.
func (f *Followers) move(ctx context.Context, id ID, before, now cluster.Partition) {
	from, to := f.leaderOf(before), f.leaderOf(now)
	if from != to {
		if r := f.links[from]; r != nil {
			r.remove(id)
		}
	}
	if to == cluster.NoNode || from == to && before.LeaderEpoch == now.LeaderEpoch {
		return
	}
	p, err := f.partitions.ByID(id.Topic, id.Index)
	if err != nil {
		f.logger.Error("a partition cannot be followed", "topic_id", id.Topic.String(), "partition", id.Index, "leader", to, "error", err)
		return
	}
	f.link(ctx, to).follow(id, p, now.LeaderEpoch)
}

// leaderOf returns whom this node follows in a partition, or NoNode.
func (f *Followers) leaderOf(p cluster.Partition) cluster.NodeID {
	if p.Leader == f.self || !slices.Contains(p.Replicas, f.self) {
		return cluster.NoNode
	}
	return p.Leader
}

// link returns the link to a leader, a new one if there is none.
func (f *Followers) link(ctx context.Context, leader cluster.NodeID) *runningLink {
	if r := f.links[leader]; r != nil {
		return r
	}
	running, stop := context.WithCancel(ctx)
	r := &runningLink{stop: stop, link: newLink(f, leader)}
	f.links[leader] = r
	f.ended.Go(func() {
		defer stop()
		r.run(running, ctx)
	})
	return r
}
