// Package replica decides which partitions this node holds and what it is to
// each of them, by following the view of the cluster.
package replica

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// appliedWithin is how long a request waits for this node to act on what its own
// view says already.
const appliedWithin = time.Second

// Replicas are the partitions that this node holds. Its methods may be called
// concurrently.
type Replicas struct {
	host     *partition.Host
	view     *clusterview.View
	logger   *slog.Logger
	accepted Losses

	mu     sync.RWMutex
	topics map[cluster.TopicID]*topic
	// store is where dormant partitions wake up; nil before Run.
	store *store.Store
	// applied is the version of the last image that was acted on; 0 before the
	// first.
	applied int64
	// changed is closed and replaced when applied moves or closed is set.
	changed chan struct{}
	closed  bool
}

// topic is a topic of which this node holds a partition.
type topic struct {
	shared *partition.Topic
	// seen is the topic as it was acted on. Replaced by Run, under the mutex.
	seen *cluster.Topic
	// partitions has nil for those that this node does not hold, and for dormant
	// ones. Run replaces it, and whoever wakes a partition sets its place, under
	// the mutex.
	partitions []*partition.Partition
	// dormant counts the dormant ones by what this node is to them.
	dormant partition.Roles
}

// New returns an empty set. Of the partitions that accepted names, those which have lost
// records when this process begins go on with what is left.
func New(host *partition.Host, view *clusterview.View, logger *slog.Logger, accepted Losses) *Replicas {
	return &Replicas{
		host:     host,
		view:     view,
		logger:   logger,
		accepted: accepted,
		topics:   make(map[cluster.TopicID]*topic),
		changed:  make(chan struct{}),
	}
}

// Run follows the view until ctx ends. Images below a version are ignored: what
// they say of this node is about a process before this one. A partition is
// deleted only when an image says so, never because it is missing in one.
func (r *Replicas) Run(ctx context.Context, st *store.Store, from int64) error {
	found := make(map[cluster.TopicID][]int32)
	for _, id := range st.Partitions() {
		found[id.Topic] = append(found[id.Topic], id.Index)
	}
	for _, indexes := range found {
		slices.Sort(indexes)
	}
	r.mu.Lock()
	r.store = st
	r.mu.Unlock()
	subscription := r.view.Subscribe()
	defer subscription.Close()
	first := true
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
		r.removeDeleted(st, image, found)
		if first && st.Unsettled() {
			r.failLost(st, image, found)
		}
		if first {
			if err := r.acceptLosses(ctx, st, image, found); err != nil && ctx.Err() == nil {
				return err
			}
		}
		first = false
		for _, t := range image.Topics() {
			if known := r.topics[t.ID]; known == nil || known.seen != t {
				r.apply(st, t, found[t.ID])
			}
		}
		if r.setApplied(image.Version) == 0 {
			r.reportUnknown(image, found)
		}
	}
}

// failLost makes partitions fail that the cluster has given to this node and the
// store does not know, after it had to set a volume aside: all that it knew of
// them may have been there. That they were never written to is possible too, but
// nobody can tell.
func (r *Replicas) failLost(st *store.Store, image *cluster.Image, found map[cluster.TopicID][]int32) {
	for _, t := range image.Topics() {
		var lost []int32 // Apart, as what is searched has to stay in order.
		for i, assignment := range t.Partitions {
			index := int32(i)
			if _, stored := slices.BinarySearch(found[t.ID], index); stored || !r.holds(assignment) {
				continue
			}
			st.Log(store.PartitionID{Topic: t.ID, Index: index}).Fail("nothing is known of it here, and what there was may have been in a volume that is lost")
			lost = append(lost, index)
		}
		found[t.ID] = append(found[t.ID], lost...)
		slices.Sort(found[t.ID])
	}
	st.SettleLosses()
}

// removeDeleted marks the partitions of deleted topics as deleted: those in use,
// and those that only lie in the store, where they were found when it was opened.
func (r *Replicas) removeDeleted(st *store.Store, image *cluster.Image, found map[cluster.TopicID][]int32) {
	for id, t := range r.topics {
		if !image.Deleted(id) {
			continue
		}
		r.mu.Lock()
		delete(r.topics, id)
		r.countDormant(t, partition.Roles{})
		r.mu.Unlock()
		for _, p := range t.partitions {
			if p != nil {
				r.remove(p)
				found[id] = slices.DeleteFunc(found[id], func(index int32) bool { return index == p.Index() })
			}
		}
	}
	for id, indexes := range found {
		if !image.Deleted(id) {
			continue
		}
		delete(found, id)
		shared := partition.NewTopic(id, id.String(), rules.TopicConfig{Durability: rules.DurabilitySynced})
		for _, index := range indexes {
			log := st.Log(store.PartitionID{Topic: id, Index: index})
			if state, _ := log.Loaded(); !state.Deleted {
				r.remove(partition.New(r.host, shared, index, log))
			}
		}
	}
}

func (r *Replicas) reportUnknown(image *cluster.Image, found map[cluster.TopicID][]int32) {
	for id, indexes := range found {
		if _, known := image.TopicByID(id); !known {
			r.logger.Warn("the store holds partitions of a topic that the cluster does not know; they are kept", "topic_id", id.String(), "partitions", len(indexes))
		}
	}
}

// apply acts on a topic that is new or changed, of which the store has had the
// partitions in found, in ascending order, since it was opened. Those of which it
// has nothing stay dormant.
func (r *Replicas) apply(st *store.Store, now *cluster.Topic, found []int32) {
	t := r.topics[now.ID]
	if t == nil {
		if !slices.ContainsFunc(now.Partitions, r.holds) {
			return
		}
		t = &topic{shared: partition.NewTopic(now.ID, now.Name, r.config(now)), seen: &cluster.Topic{Config: now.Config}}
	}
	before := t.seen
	reconfigured := !maps.Equal(before.Config, now.Config)
	if reconfigured {
		t.shared.SetConfig(r.config(now))
	}
	partitions := make([]*partition.Partition, len(now.Partitions))
	r.mu.RLock()
	copy(partitions, t.partitions)
	r.mu.RUnlock()
	for i := range now.Partitions {
		assignment := &now.Partitions[i]
		if partitions[i] == nil {
			if _, stored := slices.BinarySearch(found, int32(i)); !stored || !r.holds(*assignment) {
				continue
			}
			partitions[i] = partition.New(r.host, t.shared, int32(i), st.Log(store.PartitionID{Topic: now.ID, Index: int32(i)}))
		} else if assignment.PartitionEpoch == before.Partitions[i].PartitionEpoch && !reconfigured {
			partitions[i].Share(assignment)
			continue
		}
		r.applyTo(partitions[i], assignment)
	}
	r.mu.Lock()
	woken := adoptWoken(partitions, t.partitions)
	t.seen, t.partitions = now, partitions
	r.topics[now.ID] = t
	r.countDormant(t, r.dormantRoles(t))
	r.mu.Unlock()
	for _, i := range woken {
		r.applyTo(partitions[i], &now.Partitions[i])
	}
}

// applyTo tells a partition what was agreed on, which must not change any more.
func (r *Replicas) applyTo(p *partition.Partition, assignment *cluster.Partition) {
	defer p.Share(assignment)
	if err := p.Apply(*assignment); err != nil {
		r.logger.Error("a partition is not served", "topic", p.Topic().Name, "partition", p.Index(), "error", err)
	}
}

func (r *Replicas) holds(p cluster.Partition) bool { return slices.Contains(p.Replicas, r.host.Self()) }

// config reads a topic's settings. What this release does not understand leaves
// the rest in effect: a node that refused to serve would help nobody.
func (r *Replicas) config(t *cluster.Topic) rules.TopicConfig {
	config, err := rules.ParseUnderstoodTopicConfig(t.Config)
	if err != nil {
		r.logger.Error("settings of a topic are not understood; their defaults apply, and neither retention nor compaction removes any of its records", "topic", t.Name, "error", err)
	}
	return config
}

// remove marks a partition as deleted. If the store fails, the node stops and the
// cluster says so again to the next process.
func (r *Replicas) remove(p *partition.Partition) {
	name, index := p.Topic().Name, p.Index()
	p.Delete(func(err error) {
		if err != nil {
			r.logger.Error("a deletion was not recorded", "topic", name, "partition", index, "error", err)
			return
		}
		r.logger.Info("partition deleted", "topic", name, "topic_id", p.Topic().ID.String(), "partition", index)
	})
}

// setApplied returns the version before.
func (r *Replicas) setApplied(version int64) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.applied
	r.applied = version
	close(r.changed)
	r.changed = make(chan struct{})
	return before
}

// WaitApplied returns once an image of that version or a later one was acted on,
// or with the error of ctx.
func (r *Replicas) WaitApplied(ctx context.Context, version int64) error {
	for {
		r.mu.RLock()
		applied, changed, closed := r.applied, r.changed, r.closed
		r.mu.RUnlock()
		if applied >= version {
			return nil
		}
		if closed {
			return errClosed()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Partition returns the partition of that name and number. It need not lead:
// whoever uses it is told. id names the topic for good, or is empty. The errors
// are *rpcerr.Error.
func (r *Replicas) Partition(ctx context.Context, name string, id []byte, index int32) (*partition.Partition, error) {
	image := r.view.Image()
	if image == nil {
		return nil, errStarting()
	}
	t, ok := image.Topic(name)
	if !ok {
		return nil, rpcerr.New(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "topic %q does not exist; create it, or check the name", name)
	}
	if len(id) > 0 && !bytes.Equal(id, t.ID[:]) {
		return nil, rpcerr.New(errorsv1.Reason_REASON_TOPIC_NOT_FOUND,
			"topic %q is not the one that was asked for: that one was deleted, and another was created under its name; refresh the view of the cluster", name)
	}
	if index < 0 || int(index) >= len(t.Partitions) {
		return nil, rpcerr.New(errorsv1.Reason_REASON_PARTITION_NOT_FOUND,
			"topic %q has no partition %d; it has partitions 0 to %d", name, index, len(t.Partitions)-1)
	}
	p, applied, err := r.held(t.ID, index)
	if p != nil || err != nil {
		return p, err
	}
	if applied == 0 {
		return nil, errStarting()
	}
	if applied < image.Version {
		wait, cancel := context.WithTimeout(ctx, appliedWithin)
		defer cancel()
		if r.WaitApplied(wait, image.Version) == nil {
			if p, _, err = r.held(t.ID, index); p != nil || err != nil {
				return p, err
			}
		}
	}
	a := &t.Partitions[index]
	return nil, partition.NotLeader(name, index, a.Leader, a.LeaderEpoch, r.address)
}

func (r *Replicas) held(id cluster.TopicID, index int32) (*partition.Partition, int64, error) {
	r.mu.RLock()
	p, applied, dormant, err := r.heldLocked(id, index)
	r.mu.RUnlock()
	if !dormant {
		return p, applied, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Others may have been faster, and the topic may be gone by now.
	if p, applied, dormant, err = r.heldLocked(id, index); dormant {
		p = r.wakeLocked(r.topics[id], index)
	}
	return p, applied, err
}

// heldLocked returns a partition, or that it is dormant; the mutex is held.
func (r *Replicas) heldLocked(id cluster.TopicID, index int32) (p *partition.Partition, applied int64, dormant bool, err error) {
	if r.closed {
		return nil, 0, false, errClosed()
	}
	t := r.topics[id]
	if t == nil || int(index) >= len(t.partitions) {
		return nil, r.applied, false, nil
	}
	p = t.partitions[index]
	return p, r.applied, p == nil && r.holds(t.seen.Partitions[index]), nil
}

func (r *Replicas) address(id cluster.NodeID) string {
	return Address(r.view, id)
}

// Address returns where clients reach a node as a view knows it, or the empty
// string.
func Address(view *clusterview.View, id cluster.NodeID) string {
	if image := view.Image(); image != nil {
		if n, ok := image.Node(id); ok {
			return n.Address
		}
	}
	return ""
}

// Close makes all partitions refuse to serve, after their high watermarks were
// queued for the store. Run must have returned.
func (r *Replicas) Close() {
	r.mu.Lock()
	r.closed = true
	close(r.changed)
	r.changed = make(chan struct{})
	for _, t := range r.topics {
		r.countDormant(t, partition.Roles{})
	}
	r.mu.Unlock()
	for _, t := range r.topics {
		for _, p := range t.partitions {
			if p != nil {
				p.Checkpoint()
				p.Close()
			}
		}
	}
}

func errStarting() error {
	return rpcerr.New(errorsv1.Reason_REASON_NO_LEADER, "this node is starting and leads nothing yet; try again")
}

func errClosed() error {
	return rpcerr.New(errorsv1.Reason_REASON_DRAINING, "this node is shutting down; ask the cluster for the new leader and try again")
}
