package controller

import (
	"context"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/election"
)

// partitionChange is the next state of a partition and the revision of the one
// that it follows.
type partitionChange struct {
	topic cluster.TopicID
	catalog.Partition
	// moved says that it gets another coordinator.
	moved bool
}

// elections returns what has to change in all partitions for these nodes: leaders,
// ISRs, ELRs, coordinators.
func elections(s *catalog.State, nodes rules.Nodes) []partitionChange {
	var changes []partitionChange
	for id, topic := range s.Topics {
		changes = append(changes, topicElections(s, id, traitsOf(topic), nodes)...)
	}
	changes = assignments(s, nodes, 0, changes)
	sortChanges(changes)
	return changes
}

// topicElections returns what has to change in the partitions of a topic with
// these traits.
func topicElections(s *catalog.State, id cluster.TopicID, traits rules.TopicTraits, nodes rules.Nodes) []partitionChange {
	partitions, ready := s.Ready(id)
	if !ready {
		return nil
	}
	var changes []partitionChange
	for i := range partitions {
		if next, changed := rules.Elect(partitions[i].PartitionState, nodes, traits); changed {
			changes = append(changes, partitionChange{topic: id, Partition: catalog.Partition{PartitionState: next, Revision: partitions[i].Revision}})
		}
	}
	return changes
}

// sortChanges puts changes in the order of topics and partitions: transactions of
// one topic and in order are easier on those who watch.
func sortChanges(changes []partitionChange) {
	slices.SortFunc(changes, func(a, b partitionChange) int {
		if by := slices.Compare(a.topic[:], b.topic[:]); by != 0 {
			return by
		}
		return int(a.Index) - int(b.Index)
	})
}

// traitsOf returns what elections depend on. Settings that a newer release may
// have stored count as those that promise least.
func traitsOf(t catalog.Topic) rules.TopicTraits {
	config, err := rules.ParseTopicConfig(t.Record.GetConfig())
	if err != nil {
		return rules.TopicTraits{MinInsyncReplicas: 1}
	}
	return config.Traits()
}

// ruleNodes returns what elections depend on in all nodes.
func ruleNodes(s *catalog.State) rules.Nodes {
	nodes := make(rules.Nodes, len(s.Nodes))
	for id, n := range s.Nodes {
		if n.Registered() {
			nodes[id] = n.State()
		}
	}
	return nodes
}

// leasedNodes is ruleNodes with those dead that have just lost their leases, fenced
// or not: none of them is to be given anything.
func leasedNodes(s *catalog.State) rules.Nodes {
	nodes := ruleNodes(s)
	for _, n := range s.Nodes {
		if n.Registered() && !n.Leased() {
			nodes = without(nodes, n)
		}
	}
	return nodes
}

// elect brings all partitions in line with the nodes as the catalog shows them.
func (c *Controller) elect(ctx context.Context) error {
	return c.retry(ctx, func() error {
		if err := c.catchUp(ctx); err != nil {
			return err
		}
		var changes []partitionChange
		var nodesChanged int64
		c.o.Catalog.Read(func(s *catalog.State) {
			changes, nodesChanged = elections(s, ruleNodes(s)), s.NodesChanged
		})
		if err := c.write(ctx, changes, nil, nil); err != nil {
			return err
		}
		c.judged = nodesChanged
		return nil
	})
}

// write stores changed partitions in as many transactions as it takes, each of
// them with the comparisons, and last does the operations in the same transaction
// as the last partitions, once all others are stored.
func (c *Controller) write(ctx context.Context, changes []partitionChange, comparisons []clientv3.Cmp, last []clientv3.Op) error {
	room := min(election.MaxOps, election.MaxComparisons-len(comparisons))
	next := func(n int) transaction {
		t := transaction{comparisons: slices.Clone(comparisons), ops: make([]clientv3.Op, 0, n+len(last))}
		for _, change := range changes[:n] {
			t.comparisons = append(t.comparisons, catalog.Unchanged(c.o.Layout.Partition(change.topic, change.Index), change.Revision))
			t.ops = append(t.ops, c.o.Layout.PutPartition(change.topic, change.Partition))
			if change.moved {
				c.metrics.coordinatorMoves.Inc()
			}
		}
		changes = changes[n:]
		c.metrics.elections.Add(float64(n))
		return t
	}
	err := c.commitAll(ctx, func(yield func(transaction) bool) {
		for len(changes) > room || len(changes)+len(last) > election.MaxOps {
			if !yield(next(min(len(changes), room))) {
				return
			}
		}
	})
	if err != nil || len(changes)+len(last) == 0 {
		return err
	}
	final := next(len(changes))
	_, err = c.commit(ctx, final.comparisons, append(final.ops, last...)...)
	return err
}

// PartitionProposal is an ISR that a leader asks for, or the wish of a follower not to
// be in it.
type PartitionProposal struct {
	Topic     cluster.TopicID
	Partition int32
	rules.ISRProposal
}

// PartitionResult is the answer to a proposal. Partition is nil if there is none.
type PartitionResult struct {
	Accepted  bool
	Partition *metadatav1.Partition
}

// AlterPartitions makes those of the proposals of a node's process that are
// legal, each for itself, and returns the outcome in their order, with the cluster
// version at which it holds.
func (c *Controller) AlterPartitions(ctx context.Context, node cluster.NodeID, epoch cluster.NodeEpoch, proposals []PartitionProposal) ([]PartitionResult, int64, error) {
	if err := c.begin(ctx); err != nil {
		return nil, 0, err
	}
	defer c.end()
	results := make([]PartitionResult, len(proposals))
	for from := 0; from < len(proposals); {
		n := 0
		err := c.retry(ctx, func() error {
			if err := c.catchUp(ctx); err != nil {
				return err
			}
			var err error
			n, err = c.alter(ctx, node, epoch, proposals[from:], results[from:])
			return err
		})
		if err != nil {
			return nil, 0, err
		}
		from += n
	}
	version, err := c.version(ctx)
	return results, version, err
}

// alter makes as many of the proposals as fit into one transaction, and returns
// how many it has dealt with.
func (c *Controller) alter(ctx context.Context, node cluster.NodeID, epoch cluster.NodeEpoch, proposals []PartitionProposal, results []PartitionResult) (int, error) {
	layout := c.o.Layout
	var comparisons []clientv3.Cmp
	var ops []clientv3.Op
	dealt := 0
	var stale error
	c.o.Catalog.Read(func(s *catalog.State) {
		if stale = current(s, node, epoch); stale != nil {
			return
		}
		nodes := leasedNodes(s)
		// One partition is never proposed twice in a transaction.
		proposed := make(map[string]bool)
		for i, p := range proposals {
			key := layout.Partition(p.Topic, p.Partition)
			// Room for the partition and two comparisons for each member.
			if len(comparisons)+1+2*len(p.ISR) > election.MaxComparisons && dealt > 0 || proposed[key] {
				break
			}
			dealt++
			partitions, ready := s.Ready(p.Topic)
			if !ready || p.Partition < 0 || int(p.Partition) >= len(partitions) {
				results[i] = PartitionResult{}
				continue
			}
			before := partitions[p.Partition]
			next, err := rules.ProposeISR(before.PartitionState, p.ISRProposal, nodes, traitsOf(s.Topics[p.Topic]))
			results[i] = PartitionResult{Accepted: err == nil, Partition: next.Proto()}
			if err != nil {
				c.o.Logger.Debug("ISR refused", "topic", p.Topic, "partition", p.Partition, "proposer", node, "reason", err)
				continue
			}
			if next.PartitionEpoch == before.PartitionEpoch {
				continue
			}
			proposed[key] = true
			comparisons = append(comparisons, catalog.Unchanged(key, before.Revision))
			ops = append(ops, layout.PutPartition(p.Topic, catalog.Partition{PartitionState: next}))
			for _, id := range next.ISR {
				if slices.Contains(before.ISR, id) {
					continue
				}
				// The added process is still the registered one and has its lease.
				comparisons = append(comparisons, catalog.Unchanged(layout.Node(id), int64(s.Nodes[id].Epoch)), catalog.Present(layout.Live(id)))
			}
		}
	})
	if stale != nil {
		return 0, stale
	}
	if len(ops) > 0 {
		if _, err := c.commit(ctx, comparisons, ops...); err != nil {
			return 0, err
		}
		c.metrics.elections.Add(float64(len(ops)))
	}
	return dealt, nil
}

// current refuses the process of a node that is not its latest.
func current(s *catalog.State, id cluster.NodeID, epoch cluster.NodeEpoch) error {
	n := s.Nodes[id]
	switch {
	case !n.Registered():
		return rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH, "node %d is not registered: register it again", id)
	case n.Epoch != epoch:
		return rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH, "node %d has epoch %d, not %d: another process runs under its id", id, n.Epoch, epoch)
	}
	return nil
}

// AllocateProducerIDs returns the first of a block of producer ids for a storage
// node. No id is handed out twice: if it is unknown whether the block was written,
// it is lost.
func (c *Controller) AllocateProducerIDs(ctx context.Context, node cluster.NodeID, epoch cluster.NodeEpoch) (first int64, count int32, _ error) {
	if err := c.begin(ctx); err != nil {
		return 0, 0, err
	}
	defer c.end()
	err := c.retry(ctx, func() error {
		if err := c.catchUp(ctx); err != nil {
			return err
		}
		var counter catalog.Counter
		var stale error
		c.o.Catalog.Read(func(s *catalog.State) {
			stale, counter = current(s, node, epoch), s.ProducerCounter
		})
		if stale != nil {
			return stale
		}
		next, overflow := addProducerIDs(counter.Next, c.o.ProducerIDs)
		if overflow {
			return rpcerr.New(errorsv1.Reason_REASON_LIMIT_REACHED, "all producer ids are used")
		}
		key := c.o.Layout.ProducerCounter()
		_, err := c.commit(ctx, []clientv3.Cmp{catalog.Unchanged(key, counter.Revision)}, counterOp(key, next))
		first, count = counter.Next, c.o.ProducerIDs
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	return first, count, nil
}

func addProducerIDs(next int64, block int32) (_ int64, overflow bool) {
	sum := next + int64(block)
	return sum, sum < next
}
