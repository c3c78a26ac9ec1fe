package controller

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
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

const (
	// keysPerRemoval is how many partitions one operation removes.
	keysPerRemoval = 1000
	// pruneInterval is how often deleted topics are looked through.
	pruneInterval = time.Hour
)

// TopicSpec describes the topic to create.
type TopicSpec struct {
	Name string
	// Partitions is 0 for the default.
	Partitions int32
	// ReplicationFactor is 0 for the default.
	ReplicationFactor int32
	Config            map[string]string
	// ValidateOnly creates nothing.
	ValidateOnly bool
}

// CreateTopic creates a topic with all its partitions, or nothing. The topic that
// it returns has no id if it was only to be validated.
func (c *Controller) CreateTopic(ctx context.Context, spec TopicSpec) (*metadatav1.Topic, error) {
	if err := c.begin(ctx); err != nil {
		return nil, err
	}
	defer c.end()
	if err := rules.CheckTopicName(spec.Name); err != nil {
		return nil, fmt.Errorf("create topic %q: %w", spec.Name, rpcerr.New(errorsv1.Reason_REASON_INVALID_TOPIC_NAME, "%s", err))
	}
	topic := &metadatav1.Topic{Name: spec.Name, Config: spec.Config}
	id := cluster.TopicID(uuid.New())
	err := c.retry(ctx, func() error {
		var partitions []catalog.Partition
		var refused error
		c.o.Catalog.Read(func(s *catalog.State) { partitions, refused = plan(s, spec, c.o.Limits) })
		if refused != nil {
			return refused
		}
		topic.PartitionCount, topic.Partitions = int32(len(partitions)), nil
		for i := range partitions {
			topic.Partitions = append(topic.Partitions, partitions[i].Proto())
		}
		if spec.ValidateOnly {
			return nil
		}
		return c.store(ctx, id, &catalogv1.TopicRecord{
			Name:           spec.Name,
			PartitionCount: topic.GetPartitionCount(),
			Config:         spec.Config,
			State:          catalogv1.TopicState_TOPIC_STATE_READY,
			Created:        timestamppb.Now(),
		}, partitions)
	})
	if err != nil {
		c.untidy = true
		return nil, fmt.Errorf("create topic %q: %w", spec.Name, err)
	}
	if !spec.ValidateOnly {
		topic.TopicId = id[:]
		c.o.Logger.Info("topic created", "topic", spec.Name, "id", id, "partitions", topic.GetPartitionCount())
	}
	return topic, nil
}

// plan returns the partitions of a new topic, or why it cannot be created. Its name is
// legal.
func plan(s *catalog.State, spec TopicSpec, limits Limits) ([]catalog.Partition, error) {
	if _, taken := s.Names[spec.Name]; taken {
		return nil, rpcerr.New(errorsv1.Reason_REASON_TOPIC_EXISTS, "topic %q exists already: use another name, or delete it first", spec.Name)
	}
	if _, err := rules.ParseTopicConfig(spec.Config); err != nil {
		return nil, rpcerr.New(errorsv1.Reason_REASON_INVALID_CONFIG, "%s", err)
	}
	count := int(spec.Partitions)
	if count == 0 {
		count = 1
	}
	if count < 1 || count > limits.PartitionsPerTopic {
		return nil, rpcerr.New(errorsv1.Reason_REASON_INVALID_PARTITIONS, "a topic cannot have %d partitions: use 1 to %d", count, limits.PartitionsPerTopic)
	}
	loads := loadsOf(s)
	factor, err := replicationFactor(int(spec.ReplicationFactor), len(loads), limits.ReplicationFactor)
	if err != nil {
		return nil, err
	}
	if total := s.PartitionCount; total+count > limits.Partitions {
		return nil, rpcerr.New(errorsv1.Reason_REASON_LIMIT_REACHED,
			"the cluster has %d partitions and may have %d, so %d more are too many: use fewer, delete topics, or raise the limit of partitions of the metadata service", total, limits.Partitions, count)
	}
	placed, err := rules.Place(count, factor, loads)
	if err != nil {
		return nil, fmt.Errorf("place topic: %w", err)
	}
	nodes := ruleNodes(s)
	partitions := make([]catalog.Partition, count)
	for i, replicas := range placed {
		partitions[i].PartitionState = rules.NewPartition(int32(i), replicas, nodes)
	}
	return partitions, nil
}

// replicationFactor returns the one in effect; 0 asks for the default. The cluster
// allows most.
func replicationFactor(asked, live, most int) (int, error) {
	factor := asked
	if asked == 0 {
		factor = min(rules.DefaultReplicationFactor(live), most)
	}
	refuse := func(format string, args ...any) (int, error) {
		return 0, rpcerr.New(errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR, format, args...)
	}
	switch {
	case live == 0:
		return refuse("replication factor %d needs as many live storage nodes, and there are 0: start a storage node and try again", factor)
	case factor < 1:
		return refuse("replication factor %d is out of range: use 1 to %d", factor, min(live, most))
	case factor > live && factor > most:
		return refuse("replication factor %d is above the number of live storage nodes, which is %d, and above what the metadata service allows: use at most %d", factor, live, min(live, most))
	case factor > most:
		return refuse("replication factor %d is above what the metadata service allows: use at most %d", factor, most)
	case factor > live:
		return refuse("replication factor %d is above the number of live storage nodes, which is %d: start more of them, or use at most %d", factor, live, live)
	}
	return factor, nil
}

// loadsOf returns the live storage nodes that stay, and what they hold.
func loadsOf(s *catalog.State) []rules.NodeLoad {
	var loads []rules.NodeLoad
	for id, n := range s.Nodes {
		if n.Leased() && !n.Status.GetLeaving() && n.Record.GetRole() == metadatav1.NodeRole_NODE_ROLE_STORAGE {
			loads = append(loads, rules.NodeLoad{ID: id, Leaders: s.Loads[id].Leaders, Replicas: s.Loads[id].Replicas})
		}
	}
	return loads
}

// store writes a new topic: in one transaction if it fits, otherwise in several of
// which the last makes it visible.
func (c *Controller) store(ctx context.Context, id cluster.TopicID, record *catalogv1.TopicRecord, partitions []catalog.Partition) error {
	layout := c.o.Layout
	fresh := []clientv3.Cmp{catalog.Absent(layout.Name(record.GetName())), catalog.Absent(layout.Topic(id))}
	puts := make([]clientv3.Op, len(partitions))
	for i := range partitions {
		puts[i] = layout.PutPartition(id, partitions[i])
	}
	name := layout.PutName(record.GetName(), id)
	if len(puts)+2 <= election.MaxOps {
		_, err := c.commit(ctx, fresh, append(puts, name, catalog.Put(layout.Topic(id), record))...)
		return err
	}
	creating := &catalogv1.TopicRecord{
		Name: record.GetName(), PartitionCount: record.GetPartitionCount(), Config: record.GetConfig(),
		State: catalogv1.TopicState_TOPIC_STATE_CREATING, Created: record.GetCreated(),
	}
	revision, err := c.commit(ctx, fresh, name, catalog.Put(layout.Topic(id), creating))
	if err != nil {
		return err
	}
	unchanged := []clientv3.Cmp{catalog.Unchanged(layout.Topic(id), revision)}
	err = c.commitAll(ctx, func(yield func(transaction) bool) {
		for chunk := range slices.Chunk(puts, election.MaxOps) {
			if !yield(transaction{comparisons: unchanged, ops: chunk}) {
				return
			}
		}
	})
	if err != nil {
		// The next look at the state removes what is there.
		return err
	}
	_, err = c.commit(ctx, unchanged, catalog.Put(layout.Topic(id), record))
	return err
}

// TopicChange is what to change of the settings of a topic.
type TopicChange struct {
	Name string
	// Config holds the settings that get a value, Unset those that go back to
	// their defaults.
	Config map[string]string
	Unset  []string
	// ValidateOnly changes nothing.
	ValidateOnly bool
}

// AlterTopic changes settings of a topic, all of them or none, and returns the
// topic with the version of the image that has them; 0 if they were only to be
// validated.
func (c *Controller) AlterTopic(ctx context.Context, change TopicChange) (*metadatav1.Topic, int64, error) {
	if err := c.begin(ctx); err != nil {
		return nil, 0, err
	}
	defer c.end()
	var altered *metadatav1.Topic
	layout := c.o.Layout
	err := c.retry(ctx, func() error {
		var topic catalog.Topic
		var after map[string]string
		var elected []partitionChange
		var err error
		ready := false
		c.o.Catalog.Read(func(s *catalog.State) {
			topic = s.Topics[s.Names[change.Name]]
			var partitions []catalog.Partition
			if partitions, ready = s.Ready(topic.ID); !ready {
				return
			}
			altered = catalog.TopicProto(topic, partitions)
			if after, err = rules.AlterTopicConfig(topic.Record.GetConfig(), change.Config, change.Unset); err == nil {
				elected = topicElections(s, topic.ID, traitsOf(catalog.Topic{Record: &catalogv1.TopicRecord{Config: after}}), ruleNodes(s))
			}
		})
		if !ready {
			return TopicNotFound(change.Name)
		}
		if err != nil {
			return rpcerr.New(errorsv1.Reason_REASON_INVALID_CONFIG, "%s", err)
		}
		altered.Config = after
		if change.ValidateOnly || maps.Equal(topic.Record.GetConfig(), after) {
			return nil
		}
		record := proto.CloneOf(topic.Record)
		record.Config = after
		// A lower min.insync.replicas lets leaders acknowledge without the ELR: it is
		// empty wherever that is so before any leader can hear of the setting. And unless
		// somebody else has changed or deleted the topic: then from the beginning.
		err = c.write(ctx, elected, []clientv3.Cmp{catalog.Unchanged(layout.Topic(topic.ID), topic.Revision)}, []clientv3.Op{catalog.Put(layout.Topic(topic.ID), record)})
		if err == nil {
			for i := range elected {
				altered.Partitions[elected[i].Index] = elected[i].Proto()
			}
			c.o.Logger.Info("topic altered", "topic", change.Name, "id", topic.ID, "config", after)
		}
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("alter topic %q: %w", change.Name, err)
	}
	if change.ValidateOnly {
		return altered, 0, nil
	}
	version, err := c.version(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("alter topic %q: %w", change.Name, err)
	}
	return altered, version, nil
}

// DeleteTopic deletes a topic. The record of its deletion is what takes it out of
// the image, and tells storage nodes to remove its data.
func (c *Controller) DeleteTopic(ctx context.Context, name string) (cluster.TopicID, error) {
	if err := c.begin(ctx); err != nil {
		return cluster.TopicID{}, err
	}
	defer c.end()
	var topic catalog.Topic
	layout := c.o.Layout
	err := c.retry(ctx, func() error {
		ready := false
		c.o.Catalog.Read(func(s *catalog.State) {
			topic = s.Topics[s.Names[name]]
			_, ready = s.Ready(topic.ID)
		})
		if !ready {
			return TopicNotFound(name)
		}
		_, err := c.commit(ctx,
			[]clientv3.Cmp{catalog.Unchanged(layout.Topic(topic.ID), topic.Revision)},
			catalog.Put(layout.Deleted(topic.ID), &catalogv1.DeletedTopicRecord{Name: name, Deleted: timestamppb.Now()}),
			clientv3.OpDelete(layout.Name(name)),
			clientv3.OpDelete(layout.Topic(topic.ID)),
		)
		return err
	})
	if err != nil {
		c.untidy = true
		return cluster.TopicID{}, fmt.Errorf("delete topic %q: %w", name, err)
	}
	c.o.Logger.Info("topic deleted", "topic", name, "id", topic.ID)
	// It is deleted now; partitions that stay behind are swept up later.
	if err := c.removePartitions(ctx, topic.ID, int(topic.Record.GetPartitionCount())); err != nil {
		c.untidy = true
		c.o.Logger.Warn("partitions of a deleted topic are left for later", "topic", name, "error", err)
	}
	return topic.ID, nil
}

// TopicNotFound is the failure of a call that names an unknown topic.
func TopicNotFound(name string) error {
	return rpcerr.New(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "topic %q does not exist: create it first, or check the name", name)
}

// removePartitions removes the keys of a topic's partitions. Nobody sees them any
// more.
func (c *Controller) removePartitions(ctx context.Context, id cluster.TopicID, count int) error {
	for from := 0; from < count; from += keysPerRemoval {
		to := int32(min(from+keysPerRemoval, math.MaxInt32))
		remove := clientv3.OpDelete(c.o.Layout.Partition(id, int32(from)), clientv3.WithRange(c.o.Layout.Partition(id, to)))
		if _, err := c.commit(ctx, nil, remove); err != nil {
			return fmt.Errorf("remove partitions: %w", err)
		}
	}
	return nil
}

// sweep removes what interrupted calls left behind: topics that never became
// ready, and partitions of topics that are gone. Whoever created or deleted a
// topic in this term is done with it, since it is the caller's turn.
func (c *Controller) sweep(ctx context.Context) error {
	now := time.Now()
	prune := now.Sub(c.pruned) >= pruneInterval
	if !c.untidy && !prune {
		return nil
	}
	var halfMade []catalog.Topic
	leftovers := make(map[cluster.TopicID]int)
	var expired []cluster.TopicID
	c.o.Catalog.Read(func(s *catalog.State) {
		for _, topic := range s.Topics {
			if topic.Record.GetState() == catalogv1.TopicState_TOPIC_STATE_CREATING {
				halfMade = append(halfMade, topic)
			}
		}
		for id, partitions := range s.Partitions {
			if _, ok := s.Topics[id]; !ok {
				leftovers[id] = len(partitions)
			}
		}
		for id, d := range s.Deleted {
			if _, partitions := s.Partitions[id]; prune && !partitions && now.Sub(d.Record.GetDeleted().AsTime()) > c.o.DeletedTopicRetention {
				expired = append(expired, id)
			}
		}
	})
	for _, topic := range halfMade {
		if err := c.abandon(ctx, topic); err != nil {
			return fmt.Errorf("remove half-made topic %q: %w", topic.Record.GetName(), err)
		}
	}
	for id, count := range leftovers {
		if err := c.removePartitions(ctx, id, count); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(expired, election.MaxOps-1) {
		ops := []clientv3.Op{c.o.Layout.Touch()}
		for _, id := range batch {
			ops = append(ops, clientv3.OpDelete(c.o.Layout.Deleted(id)))
		}
		if _, err := c.commit(ctx, nil, ops...); err != nil {
			return fmt.Errorf("forget deleted topics: %w", err)
		}
	}
	if err := c.catchUp(ctx); err != nil {
		return err
	}
	if prune {
		c.pruned = now
	}
	c.untidy = false
	return nil
}

// abandon removes a topic whose creation was interrupted.
func (c *Controller) abandon(ctx context.Context, topic catalog.Topic) error {
	layout, id := c.o.Layout, topic.ID
	// Written anew, so that a transaction which is still under way and would make
	// the topic ready fails: without its partitions it must not become so.
	revision, err := c.commit(ctx,
		[]clientv3.Cmp{catalog.Unchanged(layout.Topic(id), topic.Revision)},
		catalog.Put(layout.Topic(id), topic.Record))
	if err != nil {
		return err
	}
	if err := c.removePartitions(ctx, id, int(topic.Record.GetPartitionCount())); err != nil {
		return err
	}
	_, err = c.commit(ctx,
		[]clientv3.Cmp{catalog.Unchanged(layout.Topic(id), revision)},
		clientv3.OpDelete(layout.Topic(id)), clientv3.OpDelete(layout.Name(topic.Record.GetName())))
	if err != nil {
		return err
	}
	c.metrics.abandoned.Inc()
	c.o.Logger.Warn("a topic was removed: its creation was interrupted", "topic", topic.Record.GetName(), "id", id)
	return nil
}
