package controller

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
)

// growing is how many replicas that the offsets topic gets later may be catching up on
// one node.
const growing = 10

// PrepareOffsetsTopic creates the topic in which coordinators keep groups if there is
// none, and gives its partitions to coordinators. It returns the version of the image
// that shows it.
func (c *Controller) PrepareOffsetsTopic(ctx context.Context) (version int64, _ error) {
	if err := c.begin(ctx); err != nil {
		return 0, err
	}
	defer c.end()
	err := c.retry(ctx, func() error {
		if err := c.catchUp(ctx); err != nil {
			return err
		}
		return c.createOffsetsTopic(ctx)
	})
	if err != nil {
		c.untidy = true
		return 0, fmt.Errorf("create topic %q: %w", cluster.OffsetsTopic, err)
	}
	if err := c.elect(ctx); err != nil {
		return 0, err
	}
	return c.version(ctx)
}

func (c *Controller) createOffsetsTopic(ctx context.Context) error {
	var partitions []catalog.Partition
	var refused error
	named, ready := false, false
	look := func(s *catalog.State) {
		_, named = s.Names[cluster.OffsetsTopic]
		_, _, ready = offsetsTopic(s)
		switch {
		case named:
		case len(loadsOf(s)) == 0:
			refused = rpcerr.New(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE, "there is no live storage node that could hold the offsets of consumer groups: start one and try again")
		default:
			partitions, refused = plan(s, TopicSpec{Name: cluster.OffsetsTopic, Partitions: int32(c.o.OffsetsPartitions)}, c.o.Limits)
		}
	}
	c.o.Catalog.Read(look)
	if named && !ready {
		// A call of this term has failed half-way.
		c.untidy = true
		if err := c.sweep(ctx); err != nil {
			return err
		}
		c.o.Catalog.Read(look)
	}
	if ready || refused != nil {
		return refused
	}
	id, factor := cluster.TopicID(uuid.New()), len(partitions[0].Replicas)
	err := c.store(ctx, id, &catalogv1.TopicRecord{
		Name:           cluster.OffsetsTopic,
		PartitionCount: int32(len(partitions)),
		Config:         rules.OffsetsTopicConfig(factor),
		State:          catalogv1.TopicState_TOPIC_STATE_READY,
		Created:        timestamppb.Now(),
	}, partitions)
	if err != nil {
		return err
	}
	c.o.Logger.Info("topic created", "topic", cluster.OffsetsTopic, "id", id, "partitions", len(partitions), "replication_factor", factor)
	return nil
}

// grow gives the offsets topic more replicas where storage nodes have appeared since
// it was created, some at a time, and settles its min.insync.replicas once enough of
// them are in sync. It needs no look but after a change of the state.
func (c *Controller) grow(ctx context.Context, now time.Time) (time.Duration, error) {
	if now.Before(c.pause) {
		// Who is live is not known for sure.
		return c.pause.Sub(now), nil
	}
	var topic catalog.Topic
	var changes []partitionChange
	inSync := 0
	c.o.Catalog.Read(func(s *catalog.State) {
		id, partitions, ready := offsetsTopic(s)
		if !ready {
			return
		}
		topic, inSync = s.Topics[id], len(partitions[0].ISR)
		states := make([]rules.PartitionState, len(partitions))
		for i := range partitions {
			states[i], inSync = partitions[i].PartitionState, min(inSync, len(partitions[i].ISR))
		}
		factor := min(rules.OffsetsTopicFactor, c.o.Limits.ReplicationFactor)
		for _, p := range rules.GrowReplicas(states, factor, loadsOf(s), growing) {
			changes = append(changes, partitionChange{topic: id, Partition: catalog.Partition{PartitionState: p, Revision: partitions[p.Index].Revision}})
		}
	})
	if err := c.write(ctx, changes, nil, nil); err != nil {
		return 0, err
	}
	if len(changes) > 0 {
		c.metrics.replicasAdded.Add(float64(len(changes)))
		c.o.Logger.Info("partitions of the offsets topic got another replica", "partitions", len(changes))
	}
	return never, c.settleMinInsync(ctx, topic, inSync)
}

// settleMinInsync takes back that fewer replicas in sync than usual do for the offsets
// topic, each partition of which has that many.
func (c *Controller) settleMinInsync(ctx context.Context, topic catalog.Topic, inSync int) error {
	_, unsettled := topic.Record.GetConfig()[rules.MinInsyncReplicas]
	_, needed := rules.OffsetsTopicConfig(inSync)[rules.MinInsyncReplicas]
	if !unsettled || needed {
		return nil
	}
	record := proto.CloneOf(topic.Record)
	delete(record.Config, rules.MinInsyncReplicas)
	key := c.o.Layout.Topic(topic.ID)
	if _, err := c.commit(ctx, []clientv3.Cmp{catalog.Unchanged(key, topic.Revision)}, catalog.Put(key, record)); err != nil {
		return err
	}
	c.o.Logger.Info("topic altered", "topic", cluster.OffsetsTopic, "id", topic.ID, "config", record.GetConfig())
	return nil
}
