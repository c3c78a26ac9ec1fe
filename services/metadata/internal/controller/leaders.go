package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/election"
)

// Leave takes note that the process of a node is about to stop, and moves what it
// leads or coordinates as far as that can go. It returns how many partitions stay, and
// the version of the image that shows the moves.
func (c *Controller) Leave(ctx context.Context, id cluster.NodeID, epoch cluster.NodeEpoch) (remaining int, version int64, _ error) {
	if err := c.begin(ctx); err != nil {
		return 0, 0, err
	}
	defer c.end()
	err := c.retry(ctx, func() error {
		if err := c.catchUp(ctx); err != nil {
			return err
		}
		var node catalog.Node
		var stale error
		c.o.Catalog.Read(func(s *catalog.State) { stale, node = current(s, id, epoch), s.Nodes[id] })
		if stale != nil || node.Status.GetLeaving() {
			return stale
		}
		layout := c.o.Layout
		status := proto.CloneOf(node.Status)
		status.Leaving = true
		_, err := c.commit(ctx,
			[]clientv3.Cmp{catalog.Unchanged(layout.Node(id), int64(epoch)), catalog.Unchanged(layout.Status(id), node.StatusRevision)},
			catalog.Put(layout.Status(id), status))
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	if err := c.elect(ctx); err != nil {
		return 0, 0, err
	}
	if version, err = c.version(ctx); err != nil {
		return 0, 0, err
	}
	c.o.Catalog.Read(func(s *catalog.State) {
		for topic := range s.Topics {
			partitions, _ := s.Ready(topic)
			for i := range partitions {
				if partitions[i].Leader == id || partitions[i].Coordinator == id {
					remaining++
				}
			}
		}
	})
	c.o.Logger.Info("node is about to stop", "node", id, "epoch", epoch, "partitions_left", remaining)
	return remaining, version, nil
}

// LeaderElection is what an operator asks for.
type LeaderElection struct {
	// Unclean elects leaders that may lack acknowledged records, where no other is
	// live. Otherwise the preferred replicas are elected, where they are in sync.
	Unclean bool
	// Topics holds the partitions by topic, none for all of a topic; it is empty for
	// all topics.
	Topics map[string][]int32
	// ValidateOnly changes nothing.
	ValidateOnly bool
}

// Elected is the outcome for a partition.
type Elected struct {
	Topic string
	// Before led until now, NoNode if nobody did; After is the partition since then.
	Before cluster.NodeID
	After  cluster.Partition
	// Unclean says that the leader may lack acknowledged records.
	Unclean bool
	// Failure says why the leader that was asked for could not be elected; nil where
	// it leads.
	Failure *rpcerr.Error
}

// target is a partition that is to get a leader.
type target struct {
	partitionKey
	name string
	// chosen says that the operator named it by its number.
	chosen bool
}

// ElectLeaders elects leaders, for each partition by itself, and returns the
// outcome for those that were named by their number, whose leader changed, or
// whose election failed; and the version of the image that shows it, 0 if it was
// only to be validated. With an error some leaders may have been elected.
//
// Others have their turn between the transactions: what the operator asks for may
// concern every partition of the cluster.
func (c *Controller) ElectLeaders(ctx context.Context, request LeaderElection) ([]Elected, int64, error) {
	targets, err := c.targets(ctx, request)
	if err != nil {
		return nil, 0, err
	}
	var outcome []Elected
	var version int64
	for len(targets) > 0 {
		n, elected, shown, err := c.electSome(ctx, request, targets)
		if err != nil {
			return nil, 0, fmt.Errorf("elect leaders: %w", err)
		}
		targets, outcome, version = targets[n:], append(outcome, elected...), shown
	}
	return outcome, version, nil
}

// targets returns the partitions that a request names, in the order of topics and
// partitions.
func (c *Controller) targets(ctx context.Context, request LeaderElection) (targets []target, unknown error) {
	if err := c.begin(ctx); err != nil {
		return nil, err
	}
	defer c.end()
	c.o.Catalog.Read(func(s *catalog.State) {
		names := slices.Sorted(maps.Keys(request.Topics))
		if len(names) == 0 {
			names = slices.Sorted(maps.Keys(s.Names))
		}
		for _, name := range names {
			id := s.Names[name]
			partitions, ready := s.Ready(id)
			chosen := slices.Sorted(slices.Values(request.Topics[name]))
			switch {
			case !ready && len(request.Topics) > 0:
				unknown = TopicNotFound(name)
				return
			case len(chosen) == 0:
				for i := range partitions {
					targets = append(targets, target{partitionKey{id, int32(i)}, name, false})
				}
				continue
			}
			for _, index := range chosen {
				if index < 0 || int(index) >= len(partitions) {
					unknown = rpcerr.New(errorsv1.Reason_REASON_PARTITION_NOT_FOUND, "topic %q has no partition %d: it has %d, from 0; nothing was elected", name, index, len(partitions))
					return
				}
				targets = append(targets, target{partitionKey{id, index}, name, true})
			}
		}
	})
	if unknown != nil {
		return nil, unknown
	}
	return targets, nil
}

// electSome elects leaders for as many of the targets as fit into a transaction.
// It returns how many it has dealt with, what there is to tell about them, and the
// version that shows it.
func (c *Controller) electSome(ctx context.Context, request LeaderElection, targets []target) (dealt int, outcome []Elected, version int64, _ error) {
	if err := c.begin(ctx); err != nil {
		return 0, nil, 0, err
	}
	defer c.end()
	err := c.retry(ctx, func() error {
		if err := c.catchUp(ctx); err != nil {
			return err
		}
		dealt, outcome = 0, nil
		p := newPromotion(c.o.Layout)
		c.o.Catalog.Read(func(s *catalog.State) {
			nodes := leasedNodes(s)
			for _, t := range targets {
				if p.full() {
					break
				}
				dealt++
				partitions, ready := s.Ready(t.topic)
				if !ready {
					// Deleted since the call began.
					continue
				}
				before := partitions[t.index]
				next, e := electOne(t.name, before.PartitionState, nodes, traitsOf(s.Topics[t.topic]), request.Unclean)
				if t.chosen || e.Failure != nil || e.Before != e.After.Leader {
					outcome = append(outcome, e)
				}
				if e.Before != e.After.Leader && !request.ValidateOnly {
					p.add(s, partitionChange{topic: t.topic, Partition: catalog.Partition{PartitionState: next, Revision: before.Revision}})
				}
			}
		})
		if len(p.ops) == 0 {
			return nil
		}
		_, err := c.commit(ctx, p.comparisons, p.ops...)
		return err
	})
	if err != nil {
		return 0, nil, 0, err
	}
	if !request.ValidateOnly {
		c.report(request, outcome)
		if version, err = c.version(ctx); err != nil {
			return 0, nil, 0, err
		}
	}
	return dealt, outcome, version, nil
}

// report writes down what was elected. What an unclean election may have lost is
// looked for in the log one day.
func (c *Controller) report(request LeaderElection, outcome []Elected) {
	for _, e := range outcome {
		if e.Before == e.After.Leader {
			continue
		}
		c.metrics.elections.Inc()
		if e.Unclean {
			c.metrics.unclean.Inc()
			c.o.Logger.Warn("unclean election by an operator: records that were acknowledged may be lost", "topic", e.Topic, "partition", e.After.Index, "leader", e.After.Leader, "leader_epoch", e.After.LeaderEpoch)
			continue
		}
		c.o.Logger.Info("leader elected by an operator", "topic", e.Topic, "partition", e.After.Index, "leader", e.After.Leader, "before", e.Before, "unclean_allowed", request.Unclean)
	}
}

// electOne elects the leader of one partition.
func electOne(topic string, before rules.PartitionState, nodes rules.Nodes, traits rules.TopicTraits, unclean bool) (rules.PartitionState, Elected) {
	e := Elected{Topic: topic, Before: before.Leader, After: before.Partition}
	if unclean {
		if before.Leader != cluster.NoNode {
			return before, e
		}
		if next, _ := rules.Elect(before, nodes, traits); next.Leader != cluster.NoNode {
			// It came back a moment ago.
			e.After = next.Partition
			return next, e
		}
		next, elected := rules.ElectUnclean(before, nodes)
		if !elected {
			e.Failure = rpcerr.New(errorsv1.Reason_REASON_NO_LEADER, "partition %d of topic %q stays without a leader: none of its replicas is live; start one of the nodes %s", before.Index, topic, list(before.Replicas))
			return before, e
		}
		e.After, e.Unclean = next.Partition, true
		return next, e
	}
	preferred := before.Replicas[0]
	if before.Leader == preferred {
		return before, e
	}
	if next, changed := rules.Prefer(before, nodes); changed {
		e.After = next.Partition
		return next, e
	}
	if before.Leader == cluster.NoNode {
		e.Failure = rpcerr.New(errorsv1.Reason_REASON_NO_LEADER, "partition %d of topic %q has no leader: %s", before.Index, topic, wayBack(before, nodes))
		return before, e
	}
	e.Failure = rpcerr.New(errorsv1.Reason_REASON_PREFERRED_LEADER_NOT_AVAILABLE, "partition %d of topic %q cannot be led by its preferred replica: node %d %s", before.Index, topic, preferred, whyNot(before, preferred, nodes))
	return before, e
}

// wayBack says how a partition without a leader gets one.
func wayBack(p rules.PartitionState, nodes rules.Nodes) string {
	may := slices.Concat(p.ISR, p.ELR)
	if len(may) == 0 && p.LastLeader != cluster.NoNode {
		may = []cluster.NodeID{p.LastLeader}
	}
	away := slices.DeleteFunc(may, func(id cluster.NodeID) bool { return nodes[id].Live && !nodes[id].Leaving })
	if len(away) == 0 {
		return "no live node is known to hold all that was acknowledged; start other nodes of its replicas, or accept the loss with an unclean election"
	}
	if len(away) == 1 {
		return fmt.Sprintf("start node %d, which leads at once then", away[0])
	}
	return fmt.Sprintf("start one of the nodes %s, which leads at once then", list(away))
}

// whyNot says what keeps a replica from leading, and the remedy.
func whyNot(p rules.PartitionState, id cluster.NodeID, nodes rules.Nodes) string {
	switch node := nodes[id]; {
	case !node.Live:
		return "is not live; start it, and try again once it has caught up"
	case node.Leaving:
		return "is about to stop; try again after its restart"
	case !slices.Contains(p.ISR, id):
		return fmt.Sprintf("is not in sync; try again once the ISR, which is %s, has it", list(p.ISR))
	default:
		return "is not ready yet; try again"
	}
}

func list(ids []cluster.NodeID) string {
	if len(ids) == 0 {
		return "empty"
	}
	var texts []string
	for _, id := range ids {
		texts = append(texts, fmt.Sprint(id))
	}
	return strings.Join(texts, ", ")
}

// promotion is a transaction that gives partitions to leaders, each of which has
// its lease and is the process that was chosen.
type promotion struct {
	layout catalog.Layout
	transaction
	leaders map[cluster.NodeID]struct{}
}

func newPromotion(layout catalog.Layout) *promotion {
	return &promotion{layout: layout, leaders: make(map[cluster.NodeID]struct{})}
}

// full says that there may be no room for another partition: it takes a
// comparison, and its leader two.
func (p *promotion) full() bool {
	return len(p.comparisons)+3 > election.MaxComparisons || len(p.ops)+1 > election.MaxOps
}

func (p *promotion) add(s *catalog.State, change partitionChange) {
	p.comparisons = append(p.comparisons, catalog.Unchanged(p.layout.Partition(change.topic, change.Index), change.Revision))
	p.ops = append(p.ops, p.layout.PutPartition(change.topic, change.Partition))
	leader := change.Leader
	if _, known := p.leaders[leader]; known {
		return
	}
	p.leaders[leader] = struct{}{}
	p.comparisons = append(p.comparisons, catalog.Present(p.layout.Live(leader)), catalog.Unchanged(p.layout.Node(leader), int64(s.Nodes[leader].Epoch)))
}
