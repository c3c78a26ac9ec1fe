package controller

import (
	"context"
	"errors"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/election"
)

// never is how long the controller waits for what does not happen by itself.
const never = time.Hour

// partitionKey names a partition.
type partitionKey struct {
	topic cluster.TopicID
	index int32
}

// balancer decides when leaderships go back to preferred replicas: every interval
// it looks at all partitions, and those are due that looked the same at the look
// before. A replica that comes and goes is left alone until it stays.
type balancer struct {
	// interval is 0 for never. At most moves are due at a time.
	interval time.Duration
	moves    int
	// looked is when the last look was.
	looked time.Time
	// unbalanced is what was found then: partitions whose preferred replica could lead
	// and does not, each at its revision.
	unbalanced map[partitionKey]int64
}

// reset forgets what was found; the first look is an interval from now.
func (b *balancer) reset(now time.Time) { b.looked, b.unbalanced = now, nil }

// wait returns after how long the next look is, 0 for now.
func (b *balancer) wait(now time.Time) time.Duration {
	if b.interval == 0 {
		return never
	}
	return max(0, b.looked.Add(b.interval).Sub(now))
}

// look returns the partitions whose leadership is to go back now, in the order of
// topics and partitions.
func (b *balancer) look(s *catalog.State, now time.Time) (due []partitionChange) {
	b.looked = now
	nodes := leasedNodes(s)
	found := make(map[partitionKey]int64)
	for id := range s.Topics {
		partitions, _ := s.Ready(id)
		for i := range partitions {
			p := &partitions[i]
			next, changed := rules.Prefer(p.PartitionState, nodes)
			if !changed {
				continue
			}
			key := partitionKey{id, p.Index}
			found[key] = p.Revision
			if b.unbalanced[key] == p.Revision {
				due = append(due, partitionChange{topic: id, Partition: catalog.Partition{PartitionState: next, Revision: p.Revision}})
			}
		}
	}
	b.unbalanced = found
	sortChanges(due)
	return due[:min(len(due), b.moves)]
}

// balance gives leaderships back to preferred replicas where that is due. It
// returns after how long to look again.
func (c *Controller) balance(ctx context.Context, now time.Time) (time.Duration, error) {
	if wait := c.balancer.wait(now); wait > 0 {
		return wait, nil
	}
	if now.Before(c.pause) {
		// Who is live is not known for sure.
		c.balancer.reset(now)
		return c.balancer.wait(now), nil
	}
	var due []partitionChange
	var promotions []*promotion
	c.o.Catalog.Read(func(s *catalog.State) {
		due = c.balancer.look(s, now)
		for _, change := range due {
			if len(promotions) == 0 || promotions[len(promotions)-1].full() {
				promotions = append(promotions, newPromotion(c.o.Layout))
			}
			promotions[len(promotions)-1].add(s, change)
		}
	})
	if len(due) == 0 {
		return c.balancer.wait(now), nil
	}
	err := c.commitAll(ctx, func(yield func(transaction) bool) {
		for _, p := range promotions {
			if !yield(p.transaction) {
				return
			}
		}
	})
	switch {
	case errors.Is(err, election.ErrConflict):
		// A lease was lost meanwhile. The next round sees what is left to do.
	case err != nil:
		return 0, err
	default:
		c.metrics.elections.Add(float64(len(due)))
		c.metrics.balanced.Add(float64(len(due)))
		c.o.Logger.Info("leaderships went back to preferred replicas", "partitions", len(due), "unbalanced", len(c.balancer.unbalanced))
	}
	return c.balancer.wait(now), nil
}
