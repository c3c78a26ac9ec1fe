package runnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

const (
	// changeTimeout is what a metadata node gets to change something: creating a
	// topic with thousands of partitions takes a while.
	changeTimeout = time.Minute
	// maxPositions is how many positions one call of ListOffsets may ask for,
	// maxDeletions the same for DeleteRecords.
	maxPositions = 10_000
	maxDeletions = 1_000
	topicsPage   = 1_000
)

// Admin looks at a cluster and changes its topics. It is safe for concurrent
// use, and needs no closing.
//
// Calls that failed without effect are repeated on other nodes until ctx ends,
// or, for want of a deadline, for 10 s. A change whose outcome is unknown is not
// made again: [Error.OutcomeUnknown] tells.
type Admin struct{ client *Client }

// Admin returns the client's administration.
func (c *Client) Admin() *Admin { return &Admin{client: c} }

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

// ClusterDescription is what a cluster looks like.
type ClusterDescription struct {
	// ID is a UUID given when the cluster was first started.
	ID string
	// Version of this state: greater with each change.
	Version int64
	// Controller is the metadata node that is controller, -1 while there is none.
	Controller int32
	// Nodes holds all registered nodes by their ids in ascending order.
	Nodes []Node
	// OffsetsPartitions is how many partitions the topic of consumer groups has, which
	// the coordinators share; 0 before the first group is used.
	OffsetsPartitions int
}

// Node is a registered service process.
type Node struct {
	ID int32
	// Role is metadata, storage or coordinator.
	Role    string
	Address string
	// Epoch grows with each start of the node.
	Epoch int64
	// Fenced says that the node has lost its lease, and leads nothing.
	Fenced bool
	// Since is when it became live or fenced.
	Since time.Time
	// Leaving says that its process is about to stop: others lead what it led, where
	// they can.
	Leaving bool
	// Coordinated is how many partitions of the topic of consumer groups it
	// coordinates; 0 for nodes of other roles.
	Coordinated int
}

// PartitionOffset is a position as an offset.
type PartitionOffset struct {
	TopicPartition
	// Offset is -1 if Err is set.
	Offset int64
	// LeaderEpoch is that of the record at the offset, or of the leader at its
	// end.
	LeaderEpoch int32
	// Time is the record's timestamp where the position was a time and a record
	// was found; else zero.
	Time time.Time
	Err  error
	// Failed says why the partition takes no more records although what is left of
	// it can be read: some were lost.
	Failed error
	// Bytes is what the partition's batches take on the leader's disk; -1 where that is
	// not known.
	Bytes int64
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

// ElectionSpec says which leaders to elect.
type ElectionSpec struct {
	// Unclean elects a live replica as leader of each partition that is offline,
	// although it may lack acknowledged records, which are lost for good then.
	// Otherwise the preferred replicas, the first of each partition, are elected
	// where they are live and in sync; that loses nothing.
	Unclean bool
	// Topics holds the partitions to elect leaders of by topic, none for all of a
	// topic; empty means all partitions of all topics.
	Topics map[string][]int32
	// ValidateOnly asks only what would be elected.
	ValidateOnly bool
}

// LeaderElection is the outcome of an election for one partition.
type LeaderElection struct {
	TopicPartition
	// PreviousLeader led before, and Leader leads now, or would with ValidateOnly; -1
	// stands for none. Where they are the same there was nothing to elect.
	PreviousLeader, Leader int32
	LeaderEpoch            int32
	// Unclean says that Leader may lack acknowledged records.
	Unclean bool
	// Err says why the leader that the election is for could not be elected.
	Err error
}

// ElectLeaders elects leaders, for each partition by itself. It returns the
// outcome for the partitions that the spec names by their numbers, and of the
// others for those whose leader changed or could not be elected. An unknown topic
// or partition fails the whole call, and nothing is elected.
func (a *Admin) ElectLeaders(ctx context.Context, spec ElectionSpec) ([]LeaderElection, error) {
	request := &metadatav1.ElectLeadersRequest{Type: metadatav1.ElectionType_ELECTION_TYPE_PREFERRED, ValidateOnly: spec.ValidateOnly}
	if spec.Unclean {
		request.Type = metadatav1.ElectionType_ELECTION_TYPE_UNCLEAN
	}
	for _, topic := range slices.Sorted(maps.Keys(spec.Topics)) {
		request.Topics = append(request.Topics, &metadatav1.TopicPartitions{Topic: topic, Partitions: spec.Topics[topic]})
	}
	var elections []LeaderElection
	err := a.metadata(ctx, IsRetriable, func(ctx context.Context, address string, client metadatav1connect.TopicServiceClient) error {
		response, err := within(ctx, changeTimeout, address, client.ElectLeaders, request)
		if err != nil {
			return err
		}
		elections = make([]LeaderElection, len(response.GetElections()))
		for i, e := range response.GetElections() {
			elections[i] = LeaderElection{
				TopicPartition: TopicPartition{Topic: e.GetTopic(), Partition: e.GetPartition()},
				PreviousLeader: e.GetPreviousLeaderId(), Leader: e.GetLeaderId(), LeaderEpoch: e.GetLeaderEpoch(), Unclean: e.GetUnclean(),
			}
			if failure := e.GetFailure(); failure != nil {
				elections[i].Err = failureError(failure)
			}
		}
		return nil
	})
	return elections, err
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

// DescribeCluster returns the nodes and the controller as the first node that
// answers knows them.
func (a *Admin) DescribeCluster(ctx context.Context) (ClusterDescription, error) {
	failure := &BootstrapError{}
	for _, address := range a.client.view.addresses() {
		response, err := call(ctx, address, a.client.view.client(address).GetCluster, &metadatav1.GetClusterRequest{Topics: []string{cluster.OffsetsTopic}})
		if err == nil {
			return describeCluster(response.GetCluster())
		}
		if ctx.Err() != nil {
			return ClusterDescription{}, err
		}
		failure.Attempts = append(failure.Attempts, BootstrapAttempt{Address: address, Err: err})
	}
	return ClusterDescription{}, failure
}

func describeCluster(snapshot *metadatav1.ClusterSnapshot) (ClusterDescription, error) {
	image, err := cluster.FromSnapshot(snapshot)
	if err != nil {
		return ClusterDescription{}, newError(errorsv1.Reason_REASON_INTERNAL, "the description of the cluster makes no sense: %v", err)
	}
	d := ClusterDescription{
		ID:         cluster.TopicID(image.ClusterID).String(),
		Version:    image.Version,
		Controller: int32(image.Controller),
	}
	coordinated := make(map[cluster.NodeID]int)
	if topic, ok := image.Topic(cluster.OffsetsTopic); ok {
		d.OffsetsPartitions = len(topic.Partitions)
		for i := range topic.Partitions {
			coordinated[topic.Partitions[i].Coordinator]++
		}
	}
	for _, n := range image.Nodes() {
		d.Nodes = append(d.Nodes, Node{
			ID: int32(n.ID), Role: role(n.Role), Address: n.Address, Epoch: int64(n.Epoch), Fenced: n.Fenced, Since: n.Since, Leaving: n.Leaving,
			Coordinated: coordinated[n.ID],
		})
	}
	return d, nil
}

func role(r metadatav1.NodeRole) string {
	switch r {
	case metadatav1.NodeRole_NODE_ROLE_METADATA:
		return "metadata"
	case metadatav1.NodeRole_NODE_ROLE_STORAGE:
		return "storage"
	case metadatav1.NodeRole_NODE_ROLE_COORDINATOR:
		return "coordinator"
	}
	return "unknown"
}

// ListOffsets turns positions into offsets, in their order. A partition that
// cannot be asked has its error in its entry; the call as a whole fails only if
// the cluster cannot be reached or a topic does not exist.
func (a *Admin) ListOffsets(ctx context.Context, positions ...Assignment) ([]PartitionOffset, error) {
	return a.atLeaders(ctx, positions, maxPositions, func(ctx context.Context, address string, positions []*storagev1.PartitionPosition) ([]*storagev1.PartitionOffset, error) {
		response, err := call(ctx, address, a.client.log(address, transport.Control).ListOffsets, &storagev1.ListOffsetsRequest{Partitions: positions})
		return response.GetPartitions(), err
	})
}

// DeleteRecords removes the records before a position from each partition:
// readers no longer find them, and their space is given back later. The offsets
// returned are the new starts. Errors are reported as by ListOffsets.
func (a *Admin) DeleteRecords(ctx context.Context, positions ...Assignment) ([]PartitionOffset, error) {
	return a.atLeaders(ctx, positions, maxDeletions, func(ctx context.Context, address string, positions []*storagev1.PartitionPosition) ([]*storagev1.PartitionOffset, error) {
		response, err := call(ctx, address, a.client.log(address, transport.Control).DeleteRecords, &storagev1.DeleteRecordsRequest{Partitions: positions})
		return response.GetPartitions(), err
	})
}

// notFatal reports whether a call that only reads is worth repeating.
func notFatal(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.outcome != fatal
}

// metadata makes a call to a metadata node, and to others while it fails with an
// error that is repeatable.
func (a *Admin) metadata(ctx context.Context, repeatable func(error) bool, do func(context.Context, string, metadatav1connect.TopicServiceClient) error) error {
	patience, cancel := ctx, context.CancelFunc(func() {})
	if _, ok := ctx.Deadline(); !ok {
		patience, cancel = context.WithTimeout(ctx, callTimeout)
	}
	defer cancel()
	var pause backoff
	image, err := a.client.view.fresh(ctx)
	for {
		if err != nil {
			return err
		}
		var failures []BootstrapAttempt
		for _, address := range a.metadataAddresses(image) {
			failure := do(ctx, address, a.client.topics(address))
			if failure == nil || !repeatable(failure) || ReasonOf(failure) == errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
				return failure
			}
			failures = append(failures, BootstrapAttempt{Address: address, Err: failure})
		}
		err = metadataFailure(image, failures)
		if sleep(patience, pause.next()) != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return err
		}
		if err = a.client.view.refresh(ctx, image); err == nil {
			image = a.client.view.image()
		}
	}
}

// metadataAddresses returns where metadata nodes may be: first those that are
// live, last the bootstrap addresses, should the nodes have addresses that mean
// nothing here.
func (a *Admin) metadataAddresses(image *cluster.Image) []string {
	var live, fenced []string
	for _, n := range image.Nodes() {
		switch {
		case n.Role != metadatav1.NodeRole_NODE_ROLE_METADATA || n.Address == "":
		case n.Fenced:
			fenced = append(fenced, n.Address)
		default:
			live = append(live, n.Address)
		}
	}
	addresses := slices.Concat(live, fenced)
	for _, address := range a.client.config.Bootstrap {
		if !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// atLeaders makes a call about partitions to the leader of each, at most limit
// of them at a time, and again where the leader has moved.
func (a *Admin) atLeaders(ctx context.Context, positions []Assignment, limit int,
	do func(context.Context, string, []*storagev1.PartitionPosition) ([]*storagev1.PartitionOffset, error),
) ([]PartitionOffset, error) {
	view := a.client.view
	if _, err := view.fresh(ctx); err != nil {
		return nil, err
	}
	results := make([]PartitionOffset, len(positions))
	open := make([]int, len(positions))
	for i, p := range positions {
		if p.partition == allPartitions {
			return nil, newError(errorsv1.Reason_REASON_INVALID_REQUEST, "name each partition of topic %q with At", p.topic)
		}
		if _, err := view.topic(ctx, p.topic); err != nil {
			return nil, err
		}
		results[i] = PartitionOffset{TopicPartition: TopicPartition{Topic: p.topic, Partition: p.partition}, Offset: -1, Bytes: -1}
		open[i] = i
	}
	routes := make(map[TopicPartition]route)
	var pause backoff
	for try := 0; len(open) > 0 && try < 5; try++ {
		if try > 0 {
			if err := sleep(ctx, pause.next()); err != nil {
				return nil, err
			}
			if err := view.refresh(ctx, view.image()); err != nil {
				return nil, err
			}
		}
		byAddress := make(map[string][]int)
		var again []int
		for _, i := range open {
			r := &results[i]
			to, err := a.route(r.TopicPartition, routes)
			if err != nil {
				r.Err = err
				if IsRetriable(err) {
					again = append(again, i)
				}
				continue
			}
			byAddress[to.address] = append(byAddress[to.address], i)
		}
		for address, indexes := range byAddress {
			for chunk := range slices.Chunk(indexes, limit) {
				request := make([]*storagev1.PartitionPosition, len(chunk))
				for k, i := range chunk {
					p := &positions[i]
					request[k] = &storagev1.PartitionPosition{Topic: p.topic, Partition: p.partition, Position: p.start.proto()}
				}
				answers, err := do(ctx, address, request)
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				if err == nil && len(answers) != len(chunk) {
					err = newError(errorsv1.Reason_REASON_INTERNAL, "%s answers %d of %d positions", address, len(answers), len(chunk))
				}
				for k, i := range chunk {
					r := &results[i]
					r.Err = err
					if err == nil {
						r.answer(answers[k], routes)
					}
					// Both calls may be repeated: a position is where it is, and records
					// are deleted once.
					if notFatal(r.Err) {
						again = append(again, i)
					}
				}
			}
		}
		open = again
	}
	return results, nil
}

// route returns where to ask about a partition: what a node has said in this
// call, or else what is known of the cluster.
func (a *Admin) route(tp TopicPartition, routes map[TopicPartition]route) (route, error) {
	image := a.client.view.image()
	topic, ok := image.Topic(tp.Topic)
	if !ok {
		return route{}, topicNotFound(tp.Topic).withOutcome(fatal)
	}
	if tp.Partition < 0 || int(tp.Partition) >= len(topic.Partitions) {
		return route{}, newError(errorsv1.Reason_REASON_PARTITION_NOT_FOUND,
			"topic %q has no partition %d: it has %d, from 0", tp.Topic, tp.Partition, len(topic.Partitions))
	}
	to, led := leader(image, &topic.Partitions[tp.Partition])
	if told, ok := routes[tp]; ok && told.epoch >= to.epoch {
		return told, nil
	}
	if !led {
		return route{}, newError(errorsv1.Reason_REASON_NO_LEADER, "%s has no leader at the moment", tp)
	}
	return to, nil
}

// answer takes what the leader says.
func (r *PartitionOffset) answer(o *storagev1.PartitionOffset, routes map[TopicPartition]route) {
	if failure := o.GetFailure(); failure != nil {
		r.Err = failureError(failure)
		if d := failure.GetNotLeader(); d.GetLeaderAddress() != "" {
			routes[r.TopicPartition] = route{address: d.GetLeaderAddress(), epoch: cluster.LeaderEpoch(d.GetLeaderEpoch())}
		}
		return
	}
	r.Offset, r.LeaderEpoch = o.GetOffset(), o.GetLeaderEpoch()
	if o.SizeBytes != nil {
		r.Bytes = o.GetSizeBytes()
	}
	if failed := o.GetFailed(); failed != nil {
		r.Failed = failureError(failed)
	}
	if o.GetTime() != nil {
		r.Time = o.GetTime().AsTime()
	}
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
