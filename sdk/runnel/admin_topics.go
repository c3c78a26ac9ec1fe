package runnel

import (
	"context"
	"errors"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// TopicSpec describes a topic to create.
type TopicSpec struct {
	// Name matches [a-zA-Z0-9._-]{1,249} and does not begin with "__".
	Name string
	// Partitions is 1 to 10,000; 0 means the cluster's default.
	Partitions int32
	// ReplicationFactor is 1 to the number of live storage nodes; 0 means the
	// cluster's default.
	ReplicationFactor int32
	// Config holds the settings that were given to the topic, by name.
	Config map[string]string
	// ValidateOnly asks only whether the topic could be created.
	ValidateOnly bool
}

// Topic is a topic as the cluster lists it.
type Topic struct {
	Name string
	// ID is a UUID that no other topic ever had; empty for one that was only
	// validated.
	ID         string
	Partitions int
	// Config holds the settings that were given to the topic, by name.
	Config map[string]string
}

// TopicDescription is all about a topic.
type TopicDescription struct {
	Topic
	// Settings holds every setting with the value in effect, by name in
	// ascending order.
	Settings []Setting
	// Replicas of every partition by its number.
	Replicas []PartitionDescription
}

// Setting is a topic's value of a setting.
type Setting struct {
	Name, Value string
	// Default says that the topic does not set it.
	Default bool
	// Documentation is what the setting does and its legal range, in a sentence.
	Documentation string
}

// PartitionDescription is the state of a partition.
type PartitionDescription struct {
	Partition int32
	// Leader is the node that leads it, -1 when none does.
	Leader      int32
	LeaderEpoch int32
	// LastLeader is the node that led last where none leads, else -1.
	LastLeader int32
	// PartitionEpoch grows with each change of the partition's state.
	PartitionEpoch int32
	// Replicas holds the nodes with a replica, the preferred leader first. InSync
	// and Eligible are those of them that hold all that was acknowledged: the ISR,
	// and the ELR of KIP-966.
	Replicas, InSync, Eligible []int32
	// Earliest is the first offset that the partition holds, Latest its high
	// watermark. They are -1 if Err says why they could not be asked for.
	Earliest, Latest int64
	// Bytes is what its batches take on the leader's disk; -1 where that is not known.
	Bytes int64
	// Err is also set where the partition has lost records and takes no more.
	Err error
}

// CreateTopic creates a topic with all its partitions, or nothing. Once it
// returns, producers and consumers of this client can use the topic.
func (a *Admin) CreateTopic(ctx context.Context, spec TopicSpec) (Topic, error) {
	request := &metadatav1.CreateTopicRequest{
		Name:              spec.Name,
		Partitions:        spec.Partitions,
		ReplicationFactor: spec.ReplicationFactor,
		Config:            spec.Config,
		ValidateOnly:      spec.ValidateOnly,
	}
	var topic Topic
	err := a.metadata(ctx, IsRetriable, func(ctx context.Context, address string, client metadatav1connect.TopicServiceClient) error {
		response, err := within(ctx, changeTimeout, address, client.CreateTopic, request)
		if err != nil {
			return err
		}
		topic = newTopic(response.GetTopic())
		if spec.ValidateOnly {
			return nil
		}
		id, err := cluster.ParseTopicID(response.GetTopic().GetTopicId())
		if err != nil {
			return newError(errorsv1.Reason_REASON_INTERNAL, "%s: %v", address, err)
		}
		if err := a.client.view.learn(ctx, address, id); err != nil {
			// The topic is there; this client hears of it by and by.
			a.client.config.Logger.Debug("created topic is not visible yet", "topic", spec.Name, "error", err)
		}
		return nil
	})
	return topic, err
}

// TopicChange is what to change of the settings of a topic. Those that it does
// not name stay as they are.
type TopicChange struct {
	// Name of the topic.
	Name string
	// Config holds the settings that get a value, by name.
	Config map[string]string
	// Unset names the settings that go back to their defaults.
	Unset []string
	// ValidateOnly asks only whether the settings could be changed.
	ValidateOnly bool
}

// AlterTopic changes settings of a topic, all that the change names or none, and
// returns the topic as it is then. The leaders of its partitions follow a moment
// later.
func (a *Admin) AlterTopic(ctx context.Context, change TopicChange) (Topic, error) {
	request := &metadatav1.AlterTopicRequest{Name: change.Name, Config: change.Config, Unset: change.Unset, ValidateOnly: change.ValidateOnly}
	var topic Topic
	err := a.metadata(ctx, IsRetriable, func(ctx context.Context, address string, client metadatav1connect.TopicServiceClient) error {
		response, err := within(ctx, changeTimeout, address, client.AlterTopic, request)
		if err != nil {
			return err
		}
		topic = newTopic(response.GetTopic())
		return nil
	})
	return topic, err
}

// DeleteTopic deletes a topic and its records.
func (a *Admin) DeleteTopic(ctx context.Context, name string) error {
	return a.metadata(ctx, IsRetriable, func(ctx context.Context, address string, client metadatav1connect.TopicServiceClient) error {
		_, err := within(ctx, changeTimeout, address, client.DeleteTopic, &metadatav1.DeleteTopicRequest{Name: name})
		return err
	})
}

// ListTopics returns all topics in ascending order of their names.
func (a *Admin) ListTopics(ctx context.Context) ([]Topic, error) {
	var topics []Topic
	token := ""
	for {
		err := a.metadata(ctx, notFatal, func(ctx context.Context, address string, client metadatav1connect.TopicServiceClient) error {
			page, err := call(ctx, address, client.ListTopics, &metadatav1.ListTopicsRequest{PageSize: topicsPage, PageToken: token})
			if err != nil {
				return err
			}
			for _, t := range page.GetTopics() {
				topics = append(topics, newTopic(t))
			}
			token = page.GetNextPageToken()
			return nil
		})
		if err != nil {
			return nil, err
		}
		if token == "" {
			return topics, nil
		}
	}
}

// DescribeTopic returns a topic with its settings, and its partitions with the
// offsets that they hold. A partition whose leader does not answer has its error
// in its entry.
func (a *Admin) DescribeTopic(ctx context.Context, name string) (TopicDescription, error) {
	d, err := a.DescribeTopicPlacement(ctx, name)
	if err != nil {
		return TopicDescription{}, err
	}
	ends := make([]Assignment, 0, 2*len(d.Replicas))
	for i := range d.Replicas {
		partition := d.Replicas[i].Partition
		ends = append(ends, At(name, partition, Earliest()), At(name, partition, Latest()))
	}
	offsets, err := a.ListOffsets(ctx, ends...)
	if err != nil {
		return TopicDescription{}, err
	}
	for i := range d.Replicas {
		earliest, latest := &offsets[2*i], &offsets[2*i+1]
		d.Replicas[i].Earliest, d.Replicas[i].Latest = earliest.Offset, latest.Offset
		d.Replicas[i].Bytes = latest.Bytes
		d.Replicas[i].Err = errors.Join(earliest.Err, latest.Err)
		if d.Replicas[i].Err == nil {
			d.Replicas[i].Err = latest.Failed
		}
	}
	return d, nil
}

// DescribeTopicPlacement returns what DescribeTopic does but for what only the leaders
// know: of its partitions Earliest, Latest and Bytes are -1. It asks the metadata service
// alone, and costs the leaders nothing.
func (a *Admin) DescribeTopicPlacement(ctx context.Context, name string) (TopicDescription, error) {
	var response *metadatav1.DescribeTopicResponse
	err := a.metadata(ctx, notFatal, func(ctx context.Context, address string, client metadatav1connect.TopicServiceClient) (err error) {
		response, err = call(ctx, address, client.DescribeTopic, &metadatav1.DescribeTopicRequest{Name: name})
		return err
	})
	if err != nil {
		return TopicDescription{}, err
	}
	d := TopicDescription{Topic: newTopic(response.GetTopic())}
	for _, s := range response.GetConfig() {
		d.Settings = append(d.Settings, Setting{Name: s.GetName(), Value: s.GetValue(), Default: s.GetIsDefault(), Documentation: s.GetDocumentation()})
	}
	for _, p := range response.GetTopic().GetPartitions() {
		d.Replicas = append(d.Replicas, PartitionDescription{
			Partition:      p.GetPartition(),
			Leader:         p.GetLeaderId(),
			LeaderEpoch:    p.GetLeaderEpoch(),
			PartitionEpoch: p.GetPartitionEpoch(),
			LastLeader:     p.GetLastLeaderId(),
			Replicas:       p.GetReplicas(),
			InSync:         p.GetIsr(),
			Eligible:       p.GetElr(),
			Earliest:       -1,
			Latest:         -1,
			Bytes:          -1,
		})
	}
	return d, nil
}

func newTopic(t *metadatav1.Topic) Topic {
	topic := Topic{Name: t.GetName(), Partitions: int(t.GetPartitionCount()), Config: t.GetConfig()}
	if id, err := cluster.ParseTopicID(t.GetTopicId()); err == nil {
		topic.ID = id.String()
	}
	if n := len(t.GetPartitions()); topic.Partitions == 0 {
		topic.Partitions = n
	}
	return topic
}
