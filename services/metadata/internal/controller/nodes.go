package controller

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/election"
)

// nodesPerTransaction is how many nodes are judged together: each takes two
// comparisons, and the rest is for partitions.
const nodesPerTransaction = 16

// Registration is what a process says of itself when it starts.
type Registration struct {
	// ClusterID is all zeros if the data directory belongs to no cluster yet.
	ClusterID [16]byte
	// Node is 0 if the data directory belongs to no node yet.
	Node        cluster.NodeID
	Role        metadatav1.NodeRole
	Address     string
	PeerAddress string
	DirectoryID [16]byte
	// BootID may be empty if it is unknown.
	BootID string
	// Clean says that the process before this one stopped in good order.
	Clean bool
	// Damaged says that the process may lack what earlier ones have acknowledged.
	Damaged bool
}

// Registered is what a process learns when it has registered.
type Registered struct {
	ClusterID [16]byte
	Node      cluster.NodeID
	Epoch     cluster.NodeEpoch
	// Version shows the node as live, and no partition led by an earlier process of
	// the node.
	Version int64
}

// Register admits a process. A process of the same node that went before is fenced
// by it: its epoch, its lease and its leaderships are gone when Register returns.
func (c *Controller) Register(ctx context.Context, r Registration) (Registered, error) {
	if err := c.begin(ctx); err != nil {
		return Registered{}, err
	}
	defer c.end()
	lease, err := c.grant(ctx)
	if err != nil {
		return Registered{}, err
	}
	var registered Registered
	var previous clientv3.LeaseID
	err = c.retry(ctx, func() error {
		if err := c.catchUp(ctx); err != nil {
			return err
		}
		var err error
		registered, previous, err = c.admit(ctx, r, lease)
		return err
	})
	if err != nil {
		c.revoke(ctx, lease)
		return Registered{}, err
	}
	delete(c.lost, registered.Node)
	if previous != 0 {
		// It holds no key any more; a late heartbeat of the earlier process fails.
		c.revoke(ctx, previous)
	}
	if err := c.elect(ctx); err != nil {
		return Registered{}, err
	}
	if registered.Version, err = c.version(ctx); err != nil {
		return Registered{}, err
	}
	c.o.Logger.Info("node registered", "node", registered.Node, "role", r.Role, "address", r.Address, "epoch", registered.Epoch, "clean", r.Clean, "damaged", r.Damaged)
	return registered, nil
}

// admit writes the registration. It returns the lease of the process before.
func (c *Controller) admit(ctx context.Context, r Registration, lease clientv3.LeaseID) (Registered, clientv3.LeaseID, error) {
	var registered Registered
	var before catalog.Node
	var counter catalog.Counter
	var refused error
	c.o.Catalog.Read(func(s *catalog.State) {
		registered.ClusterID, counter = s.ClusterID, s.NodeCounter
		registered.Node, refused = identify(s, r, c.o.Limits)
		before = s.Nodes[registered.Node]
	})
	if refused != nil {
		return Registered{}, 0, refused
	}
	record := &catalogv1.NodeRecord{
		Role: r.Role, Address: r.Address, PeerAddress: r.PeerAddress, DirectoryId: r.DirectoryID[:], BootId: r.BootID,
	}
	if before.Record != nil {
		history := before.History().After(before.Epoch, rules.Restart{
			Clean:         r.Clean,
			Damaged:       r.Damaged,
			SameBoot:      r.BootID != "" && r.BootID == before.Record.GetBootId(),
			SameDirectory: slices.Equal(before.Record.GetDirectoryId(), r.DirectoryID[:]),
		})
		record.CleanSince, record.CachedSince = int64(history.CleanSince), int64(history.CachedSince)
		record.DirectorySince, record.IntactSince = int64(history.DirectorySince), int64(history.IntactSince)
	}
	layout, id := c.o.Layout, registered.Node
	comparisons := []clientv3.Cmp{
		catalog.Unchanged(layout.Node(id), int64(before.Epoch)),
		catalog.Unchanged(layout.NodeCounter(), counter.Revision),
	}
	ops := []clientv3.Op{
		catalog.Put(layout.Node(id), record),
		catalog.Put(layout.Status(id), &catalogv1.NodeStatusRecord{Since: timestamppb.Now()}),
		clientv3.OpPut(layout.Live(id), "", clientv3.WithLease(lease)),
	}
	if int64(id) >= counter.Next && r.Node == 0 {
		ops = append(ops, counterOp(layout.NodeCounter(), int64(id)+1))
	}
	revision, err := c.commit(ctx, comparisons, ops...)
	if err != nil {
		return Registered{}, 0, err
	}
	registered.Epoch = cluster.NodeEpoch(revision)
	return registered, before.Lease, nil
}

// identify returns the id under which a process may register, or why it may not.
func identify(s *catalog.State, r Registration, limits Limits) (cluster.NodeID, error) {
	mismatch := func(format string, args ...any) (cluster.NodeID, error) {
		return 0, rpcerr.New(errorsv1.Reason_REASON_NODE_MISMATCH, format, args...)
	}
	directory := cluster.TopicID(r.DirectoryID)
	if r.ClusterID != [16]byte{} && r.ClusterID != s.ClusterID {
		return mismatch("the data directory belongs to cluster %s, this is cluster %s: start the node with the addresses of its own cluster, or with an empty data directory",
			cluster.TopicID(r.ClusterID), cluster.TopicID(s.ClusterID))
	}
	owner := cluster.NodeID(0)
	for id, n := range s.Nodes {
		if n.Record != nil && slices.Equal(n.Record.GetDirectoryId(), r.DirectoryID[:]) {
			owner = id
		}
	}
	id := r.Node
	switch {
	case owner != 0 && id != 0 && owner != id:
		return mismatch("data directory %s belongs to node %d, not to node %d: start it as node %d, or use an empty data directory", directory, owner, id, owner)
	case owner != 0:
		// Also of a process that died before it could record the id it was given.
		id = owner
	case id == 0:
		for id = cluster.NodeID(max(1, s.NodeCounter.Next)); s.Nodes[id].Record != nil; id++ {
			if id == math.MaxInt32 {
				return 0, rpcerr.New(errorsv1.Reason_REASON_LIMIT_REACHED, "all node ids are used")
			}
		}
	}
	n := s.Nodes[id]
	switch {
	case n.Record == nil && len(s.Nodes) >= limits.Nodes:
		return 0, rpcerr.New(errorsv1.Reason_REASON_LIMIT_REACHED, "the cluster has %d nodes, which is its limit: raise the limit of nodes of the metadata service", len(s.Nodes))
	case n.Record == nil:
		return id, nil
	case n.Record.GetRole() != r.Role:
		return mismatch("node %d is registered as %s, not as %s: use another node id", id, roleName(n.Record.GetRole()), roleName(r.Role))
	case owner == 0 && n.Live():
		return mismatch("node %d runs at %s with another data directory: use another node id, or stop that node first", id, n.Record.GetAddress())
	}
	// A node that is down may come back with a new directory, as after the loss of a
	// disk. What its replicas held is gone, and elections know it.
	return id, nil
}

func roleName(r metadatav1.NodeRole) string {
	switch r {
	case metadatav1.NodeRole_NODE_ROLE_METADATA:
		return "a metadata node"
	case metadatav1.NodeRole_NODE_ROLE_STORAGE:
		return "a storage node"
	case metadatav1.NodeRole_NODE_ROLE_COORDINATOR:
		return "a coordinator node"
	default:
		return "a node without a role"
	}
}

func counterOp(key string, next int64) clientv3.Op {
	return catalog.Put(key, &catalogv1.CounterRecord{Next: next})
}

func (c *Controller) grant(ctx context.Context) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.RequestTimeout)
	defer cancel()
	response, err := c.o.Client.Grant(ctx, int64(c.o.LeaseTTL/time.Second))
	if err != nil {
		return 0, fmt.Errorf("grant lease: %w", err)
	}
	return response.ID, nil
}

// revoke gives up a lease that nothing depends on; if that fails it runs out.
func (c *Controller) revoke(ctx context.Context, lease clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.o.RequestTimeout)
	defer cancel()
	if _, err := c.o.Client.Revoke(ctx, lease); err != nil {
		c.o.Logger.Debug("a lease is left to run out", "error", err)
	}
}

// Deregister fences the process of a node that stops in good order, moves its
// leaderships, and ends its lease.
func (c *Controller) Deregister(ctx context.Context, id cluster.NodeID, epoch cluster.NodeEpoch) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	var lease clientv3.LeaseID
	err := c.retry(ctx, func() error {
		if err := c.catchUp(ctx); err != nil {
			return err
		}
		var node catalog.Node
		var changes []partitionChange
		var stale error
		c.o.Catalog.Read(func(s *catalog.State) {
			if stale = current(s, id, epoch); stale != nil {
				return
			}
			node = s.Nodes[id]
			changes = elections(s, without(ruleNodes(s), node))
		})
		if stale != nil {
			return stale
		}
		lease = node.Lease
		layout := c.o.Layout
		return c.write(ctx, changes,
			[]clientv3.Cmp{catalog.Unchanged(layout.Node(id), int64(epoch))},
			[]clientv3.Op{
				catalog.Put(layout.Status(id), &catalogv1.NodeStatusRecord{Fenced: true, Since: timestamppb.Now(), Deregistered: true}),
				clientv3.OpDelete(layout.Live(id)),
			})
	})
	if err != nil {
		return err
	}
	delete(c.lost, id)
	if lease != 0 {
		c.revoke(ctx, lease)
	}
	c.o.Logger.Info("node stopped in good order", "node", id, "epoch", epoch)
	return c.catchUp(ctx)
}

// without returns nodes with some of them dead.
func without(nodes rules.Nodes, dead ...catalog.Node) rules.Nodes {
	for _, n := range dead {
		state := nodes[n.ID]
		state.Live = false
		nodes[n.ID] = state
	}
	return nodes
}

// judge compares what the controller made of the nodes with their leases, fences
// those that lost theirs for long enough, un-fences those that have one again, and
// elects. It returns after how long to judge again.
func (c *Controller) judge(ctx context.Context) (time.Duration, error) {
	const idle = time.Minute
	var lost, returned []catalog.Node
	live := 0
	var nodesChanged int64
	c.o.Catalog.Read(func(s *catalog.State) {
		nodesChanged = s.NodesChanged
		for _, n := range s.Nodes {
			switch {
			case !n.Registered():
			case n.Status.GetFenced():
				if n.Lease != 0 && !n.Status.GetDeregistered() {
					returned = append(returned, n)
				}
			default:
				live++
				if n.Lease == 0 {
					lost = append(lost, n)
				}
			}
		}
	})
	if err := c.unfence(ctx, returned); err != nil {
		return 0, err
	}
	due, wait := c.due(lost, live, time.Now())
	if err := c.fence(ctx, due); err != nil {
		return 0, err
	}
	if len(returned)+len(due) > 0 || c.judged != nodesChanged {
		if err := c.elect(ctx); err != nil {
			return 0, err
		}
	}
	if wait == 0 {
		wait = idle
	}
	return wait, nil
}

// due returns which of the nodes without a lease shall be fenced now, and after
// how long to ask again, 0 if there is nothing to ask for.
//
// One that comes right back, or is replaced by its next process, is spared the
// move. And if many leases fall at once, etcd was probably too slow to renew them:
// the nodes are well and lead on, so that elections would only add to the load.
// Then nobody is fenced until Grace has passed since the first of them fell, or all
// have come back.
func (c *Controller) due(lost []catalog.Node, live int, now time.Time) (due []catalog.Node, wait time.Duration) {
	since := make(map[cluster.NodeID]time.Time, len(lost))
	first := now
	for _, n := range lost {
		at, known := c.lost[n.ID]
		if !known {
			at = now
		}
		since[n.ID] = at
		if at.Before(first) {
			first = at
		}
	}
	c.lost = since
	c.fenced = slices.DeleteFunc(c.fenced, func(at time.Time) bool { return now.Sub(at) > c.o.Grace })
	if len(lost) == 0 {
		c.pause = time.Time{}
		return nil, 0
	}
	if until := first.Add(c.o.Grace); until.After(c.pause) && rules.MassLoss(len(lost)+len(c.fenced), live+len(c.fenced)) {
		if now.Before(until) && !now.Before(c.pause) {
			c.metrics.massLosses.Inc()
			c.o.Logger.Warn("many nodes lost their leases at once: elections pause, since etcd may be at fault", "lost", len(lost), "live", live, "pause", until.Sub(now))
		}
		c.pause = until
	}
	if left := c.pause.Sub(now); left > 0 {
		return nil, left
	}
	for _, n := range lost {
		if left := c.o.Settle - now.Sub(since[n.ID]); left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		due = append(due, n)
	}
	return due, wait
}

// fence takes nodes without a lease out of everything: first, partition by
// partition, what they lead and the ISRs that they are in, and with the last of it
// their status. So at no time does a fenced node lead.
func (c *Controller) fence(ctx context.Context, nodes []catalog.Node) error {
	for batch := range slices.Chunk(nodes, nodesPerTransaction) {
		var comparisons []clientv3.Cmp
		var ops []clientv3.Op
		for _, n := range batch {
			comparisons = append(comparisons, catalog.Absent(c.o.Layout.Live(n.ID)), catalog.Unchanged(c.o.Layout.Node(n.ID), int64(n.Epoch)))
			ops = append(ops, catalog.Put(c.o.Layout.Status(n.ID), &catalogv1.NodeStatusRecord{Fenced: true, Since: timestamppb.Now(), Leaving: n.Status.GetLeaving()}))
		}
		var changes []partitionChange
		c.o.Catalog.Read(func(s *catalog.State) { changes = elections(s, without(ruleNodes(s), batch...)) })
		if err := c.write(ctx, changes, comparisons, ops); err != nil {
			if errors.Is(err, election.ErrConflict) {
				// A lease came back in time. The next round sees it.
				c.o.Logger.Info("a node was not fenced: it has a lease again")
			}
			return err
		}
		for _, n := range batch {
			delete(c.lost, n.ID)
			c.fenced = append(c.fenced, time.Now())
			c.metrics.fences.Inc()
			c.o.Logger.Warn("node fenced: it lost its lease", "node", n.ID, "epoch", n.Epoch)
		}
		if err := c.catchUp(ctx); err != nil {
			return err
		}
	}
	return nil
}

// unfence makes nodes live whose process has its lease again, with the epoch that
// it had.
func (c *Controller) unfence(ctx context.Context, nodes []catalog.Node) error {
	for batch := range slices.Chunk(nodes, nodesPerTransaction) {
		var comparisons []clientv3.Cmp
		var ops []clientv3.Op
		for _, n := range batch {
			comparisons = append(comparisons, catalog.Present(c.o.Layout.Live(n.ID)), catalog.Unchanged(c.o.Layout.Node(n.ID), int64(n.Epoch)))
			ops = append(ops, catalog.Put(c.o.Layout.Status(n.ID), &catalogv1.NodeStatusRecord{Since: timestamppb.Now(), Leaving: n.Status.GetLeaving()}))
		}
		if _, err := c.commit(ctx, comparisons, ops...); err != nil {
			return err
		}
		for _, n := range batch {
			c.o.Logger.Info("node is live again", "node", n.ID, "epoch", n.Epoch)
		}
		if err := c.catchUp(ctx); err != nil {
			return err
		}
	}
	return nil
}
