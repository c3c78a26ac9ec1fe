package catalog

import (
	"errors"
	"fmt"
	"maps"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

type partitionState = rules.PartitionState

// State is what stands under the prefix at one revision. The records in it are
// never changed, only replaced, and may be kept, as may a copied [Partition];
// maps, and the slices that they hold, may not.
type State struct {
	// Revision is that of the newest change that is in it.
	Revision int64
	// ClusterID is all zeros before the cluster has a ClusterRecord.
	ClusterID  [16]byte
	Controller Controller
	Nodes      map[cluster.NodeID]Node
	// NodesChanged is the revision of the newest change of any node, lease or
	// status.
	NodesChanged int64
	Topics       map[cluster.TopicID]Topic
	Names        map[string]cluster.TopicID
	// Partitions holds those of all topics, also of topics that are being created
	// or removed, by their numbers. A partition whose Revision is 0 does not exist.
	Partitions map[cluster.TopicID][]Partition
	Deleted    map[cluster.TopicID]Deleted
	// PartitionCount is how many partitions there are, and Loads what of them lies on
	// each node.
	PartitionCount int
	Loads          map[cluster.NodeID]Load
	// NodeCounter and ProducerCounter hand out ids.
	NodeCounter, ProducerCounter Counter

	clusterRevision, touched int64
	// etcd is the id that the etcd cluster gave itself.
	etcd uint64
}

// Controller is the newest term.
type Controller struct {
	// Node is NoNode while there is no controller.
	Node        cluster.NodeID
	PeerAddress string
	Revision    int64
}

// Node is what is known of a node. Record and Status are nil where they are not
// stored.
type Node struct {
	ID     cluster.NodeID
	Record *catalogv1.NodeRecord
	// Epoch is the revision of Record.
	Epoch          cluster.NodeEpoch
	Status         *catalogv1.NodeStatusRecord
	StatusRevision int64
	// Lease is that of the node's live key; 0 while it has none.
	Lease clientv3.LeaseID
}

// Registered reports whether the node is visible.
func (n Node) Registered() bool { return n.Record != nil && n.Status != nil }

// Live reports whether the controller counts the node as live. Its lease may have
// been lost a moment ago.
func (n Node) Live() bool { return n.Registered() && !n.Status.GetFenced() }

// Leased reports whether the node is live and holds its lease.
func (n Node) Leased() bool { return n.Live() && n.Lease != 0 }

// State returns what elections depend on.
func (n Node) State() rules.NodeState {
	return rules.NodeState{Epoch: n.Epoch, Live: n.Live(), Suspect: n.Live() && !n.Leased(), Leaving: n.Status.GetLeaving(), History: n.History().Resolve(n.Epoch)}
}

// History returns the node's history as it is stored, not resolved.
func (n Node) History() rules.History {
	return rules.History{
		CleanSince:     cluster.NodeEpoch(n.Record.GetCleanSince()),
		CachedSince:    cluster.NodeEpoch(n.Record.GetCachedSince()),
		DirectorySince: cluster.NodeEpoch(n.Record.GetDirectorySince()),
		IntactSince:    cluster.NodeEpoch(n.Record.GetIntactSince()),
	}
}

// Topic is a topic without its partitions.
type Topic struct {
	ID       cluster.TopicID
	Record   *catalogv1.TopicRecord
	Revision int64
}

// Partition is the state of a partition and the revision at which it was stored.
type Partition struct {
	rules.PartitionState
	Revision int64
}

// Load is what lies on a node.
type Load struct {
	// Leaders is the number of partitions of which it is the preferred leader.
	Leaders int
	// Replicas is the number of replicas on it, those it leads included.
	Replicas int
}

// Deleted is a topic that was deleted.
type Deleted struct {
	Record   *catalogv1.DeletedTopicRecord
	Revision int64
}

// Counter is a counter; Revision is 0 while it is not stored, and then Next is 0.
type Counter struct {
	Next     int64
	Revision int64
}

func newState() *State {
	return &State{
		Controller: Controller{Node: cluster.NoNode},
		Nodes:      make(map[cluster.NodeID]Node),
		Topics:     make(map[cluster.TopicID]Topic),
		Names:      make(map[string]cluster.TopicID),
		Partitions: make(map[cluster.TopicID][]Partition),
		Deleted:    make(map[cluster.TopicID]Deleted),
		Loads:      make(map[cluster.NodeID]Load),
	}
}

// Ready returns a topic's partitions if it can be used: it is complete and not
// deleted.
func (s *State) Ready(id cluster.TopicID) ([]Partition, bool) {
	topic, ok := s.Topics[id]
	if !ok || topic.Record.GetState() != catalogv1.TopicState_TOPIC_STATE_READY {
		return nil, false
	}
	if _, deleted := s.Deleted[id]; deleted {
		return nil, false
	}
	partitions := s.Partitions[id]
	if len(partitions) != int(topic.Record.GetPartitionCount()) {
		return nil, false
	}
	for i := range partitions {
		if partitions[i].Revision == 0 {
			return nil, false
		}
	}
	return partitions, true
}

// change is what one or more events changed of what the cluster can see.
type change struct {
	nodes      map[cluster.NodeID]struct{}
	topics     map[cluster.TopicID]struct{}
	partitions map[cluster.TopicID]map[int32]struct{}
	deleted    []cluster.TopicID
	controller bool
	touched    bool
}

func newChange() *change {
	return &change{
		nodes:      make(map[cluster.NodeID]struct{}),
		topics:     make(map[cluster.TopicID]struct{}),
		partitions: make(map[cluster.TopicID]map[int32]struct{}),
	}
}

// errRecord says that a value cannot be read.
var errRecord = errors.New("a record in etcd cannot be read; a newer release may have written it")

// put folds a stored key into the state. A value that cannot be read leaves the
// state as it is.
func (s *State) put(l Layout, kv *mvccpb.KeyValue, c *change) error {
	key := l.parse(string(kv.Key))
	read := func(m proto.Message) error {
		if err := proto.Unmarshal(kv.Value, m); err != nil {
			return fmt.Errorf("%w: %s: %w", errRecord, kv.Key, err)
		}
		return nil
	}
	switch key.kind {
	case kindCluster:
		record := &catalogv1.ClusterRecord{}
		if err := read(record); err != nil {
			return err
		}
		if len(record.GetClusterId()) != len(s.ClusterID) {
			return fmt.Errorf("%w: %s: cluster id of %d bytes", errRecord, kv.Key, len(record.GetClusterId()))
		}
		copy(s.ClusterID[:], record.GetClusterId())
		s.clusterRevision = kv.ModRevision
	case kindController:
		record := &catalogv1.ControllerRecord{}
		if err := read(record); err != nil {
			return err
		}
		s.Controller = Controller{Node: cluster.NodeID(record.GetNodeId()), PeerAddress: record.GetPeerAddress(), Revision: kv.ModRevision}
		c.controller = true
	case kindTouched:
		s.touched = kv.ModRevision
		c.touched = true
	case kindNodeCounter, kindProducerCounter:
		record := &catalogv1.CounterRecord{}
		if err := read(record); err != nil {
			return err
		}
		counter := Counter{Next: record.GetNext(), Revision: kv.ModRevision}
		if key.kind == kindNodeCounter {
			s.NodeCounter = counter
		} else {
			s.ProducerCounter = counter
		}
	case kindNode:
		record := &catalogv1.NodeRecord{}
		if err := read(record); err != nil {
			return err
		}
		node := s.node(key.node)
		node.Record, node.Epoch = record, cluster.NodeEpoch(kv.ModRevision)
		s.setNode(node, kv.ModRevision, c)
	case kindStatus:
		record := &catalogv1.NodeStatusRecord{}
		if err := read(record); err != nil {
			return err
		}
		node := s.node(key.node)
		node.Status, node.StatusRevision = record, kv.ModRevision
		s.setNode(node, kv.ModRevision, c)
	case kindLive:
		node := s.node(key.node)
		node.Lease = clientv3.LeaseID(kv.Lease)
		// Who is live is the controller's verdict: this alone changes nothing visible.
		s.setNode(node, kv.ModRevision, nil)
	case kindTopic:
		record := &catalogv1.TopicRecord{}
		if err := read(record); err != nil {
			return err
		}
		s.Topics[key.topic] = Topic{ID: key.topic, Record: record, Revision: kv.ModRevision}
		c.topics[key.topic] = struct{}{}
	case kindName:
		id, err := cluster.ParseTopicID(kv.Value)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", errRecord, kv.Key, err)
		}
		s.Names[key.name] = id
	case kindDeleted:
		record := &catalogv1.DeletedTopicRecord{}
		if err := read(record); err != nil {
			return err
		}
		s.Deleted[key.topic] = Deleted{Record: record, Revision: kv.ModRevision}
		c.deleted = append(c.deleted, key.topic)
	case kindPartition:
		record := &catalogv1.PartitionRecord{}
		if err := read(record); err != nil {
			return err
		}
		partitions := s.Partitions[key.topic]
		for int(key.index) >= len(partitions) {
			partitions = append(partitions, Partition{})
		}
		s.count(partitions[key.index], -1)
		partitions[key.index] = Partition{PartitionState: partitionOf(key.index, record), Revision: kv.ModRevision}
		s.count(partitions[key.index], 1)
		s.Partitions[key.topic] = partitions
		if c.partitions[key.topic] == nil {
			c.partitions[key.topic] = make(map[int32]struct{})
		}
		c.partitions[key.topic][key.index] = struct{}{}
	case kindElection, kindUnknown:
	}
	return nil
}

// remove folds the removal of a key into the state.
func (s *State) remove(l Layout, raw string, revision int64, c *change) {
	key := l.parse(raw)
	switch key.kind {
	case kindController:
		s.Controller = Controller{Node: cluster.NoNode, Revision: revision}
		c.controller = true
	case kindNode:
		node := s.node(key.node)
		node.Record, node.Epoch = nil, 0
		s.setNode(node, revision, c)
	case kindStatus:
		node := s.node(key.node)
		node.Status, node.StatusRevision = nil, 0
		s.setNode(node, revision, c)
	case kindLive:
		node := s.node(key.node)
		node.Lease = 0
		s.setNode(node, revision, nil)
	case kindTopic:
		// Gone from the image only when it is named as deleted.
		delete(s.Topics, key.topic)
	case kindName:
		delete(s.Names, key.name)
	case kindDeleted:
		delete(s.Deleted, key.topic)
	case kindPartition:
		partitions := s.Partitions[key.topic]
		if int(key.index) >= len(partitions) {
			return
		}
		s.count(partitions[key.index], -1)
		partitions[key.index] = Partition{}
		for len(partitions) > 0 && partitions[len(partitions)-1].Revision == 0 {
			partitions = partitions[:len(partitions)-1]
		}
		if s.Partitions[key.topic] = partitions; len(partitions) == 0 {
			delete(s.Partitions, key.topic)
		}
	case kindUnknown, kindCluster, kindTouched, kindNodeCounter, kindProducerCounter, kindElection:
		// Never removed.
	}
}

// count adds a partition to what there is, or takes it away.
func (s *State) count(p Partition, sign int) {
	if p.Revision == 0 {
		return
	}
	s.PartitionCount += sign
	for i, id := range p.Replicas {
		load := s.Loads[id]
		load.Replicas += sign
		if i == 0 {
			load.Leaders += sign
		}
		if s.Loads[id] = load; load == (Load{}) {
			delete(s.Loads, id)
		}
	}
}

func (s *State) node(id cluster.NodeID) Node {
	node, ok := s.Nodes[id]
	if !ok {
		node.ID = id
	}
	return node
}

func (s *State) setNode(n Node, revision int64, c *change) {
	if n.Record == nil && n.Status == nil && n.Lease == 0 {
		delete(s.Nodes, n.ID)
	} else {
		s.Nodes[n.ID] = n
	}
	s.NodesChanged = max(s.NodesChanged, revision)
	if c != nil {
		c.nodes[n.ID] = struct{}{}
	}
}

// version returns the version of the image of this state: the revision of the
// newest visible key. Any replica that has seen the same visible keys comes to
// the same version, whether it listed or watched them: removing a visible key
// always goes with writing another.
func (s *State) version() int64 {
	version := max(s.clusterRevision, s.Controller.Revision, s.touched)
	for _, n := range s.Nodes {
		version = max(version, n.version())
	}
	for id := range s.Topics {
		version = max(version, s.topicVersion(id))
	}
	for _, d := range s.Deleted {
		version = max(version, d.Revision)
	}
	return version
}

func (n Node) version() int64 {
	if !n.Registered() {
		return 0
	}
	return max(int64(n.Epoch), n.StatusRevision)
}

func (s *State) topicVersion(id cluster.TopicID) int64 {
	partitions, ok := s.Ready(id)
	if !ok {
		return 0
	}
	version := s.Topics[id].Revision
	for i := range partitions {
		version = max(version, partitions[i].Revision)
	}
	return version
}

// snapshot returns the image of the state.
func (s *State) snapshot() *metadatav1.ClusterSnapshot {
	out := &metadatav1.ClusterSnapshot{
		ClusterId:    s.ClusterID[:],
		Version:      s.version(),
		ControllerId: int32(s.Controller.Node),
	}
	for _, n := range s.Nodes {
		if n.Registered() {
			out.Nodes = append(out.Nodes, n.proto())
		}
	}
	for id := range s.Topics {
		if partitions, ok := s.Ready(id); ok {
			out.Topics = append(out.Topics, topicProto(s.Topics[id], partitions, nil))
		}
	}
	for id := range s.Deleted {
		out.DeletedTopicIds = append(out.DeletedTopicIds, id[:])
	}
	return out
}

// delta returns what a change means for those who hold image, or nil if they
// cannot see it.
func (s *State) delta(image *cluster.Image, c *change) *metadatav1.ClusterDelta {
	out := &metadatav1.ClusterDelta{PreviousVersion: image.Version}
	if c.controller {
		out.ControllerId = proto.Int32(int32(s.Controller.Node))
		out.Version = max(out.Version, s.Controller.Revision)
	}
	if c.touched {
		out.Version = max(out.Version, s.touched)
	}
	for id := range c.nodes {
		if n := s.Nodes[id]; n.Registered() {
			out.Nodes = append(out.Nodes, n.proto())
			out.Version = max(out.Version, n.version())
		} else if _, known := image.Node(id); known {
			out.RemovedNodeIds = append(out.RemovedNodeIds, int32(id))
		}
	}
	for _, id := range c.deleted {
		// Also if the record of it is forgotten already: who was away until now has to
		// learn of it.
		out.RemovedTopicIds = append(out.RemovedTopicIds, id[:])
		out.Version = max(out.Version, s.Deleted[id].Revision)
	}
	for id := range c.topics {
		if partitions, ok := s.Ready(id); ok {
			var changed map[int32]struct{}
			if _, known := image.TopicByID(id); known {
				// Only its settings are news. Not nil, which stands for all partitions.
				changed = make(map[int32]struct{})
				maps.Copy(changed, c.partitions[id])
			}
			out.Topics = append(out.Topics, topicProto(s.Topics[id], partitions, changed))
			out.Version = max(out.Version, s.topicVersion(id))
		}
	}
	for id, changed := range c.partitions {
		if _, whole := c.topics[id]; whole {
			continue
		}
		partitions, ok := s.Ready(id)
		if !ok {
			continue
		}
		if _, known := image.TopicByID(id); !known {
			changed = nil
		}
		out.Topics = append(out.Topics, topicProto(s.Topics[id], partitions, changed))
		out.Version = max(out.Version, s.topicVersion(id))
	}
	if out.Version <= image.Version {
		return nil
	}
	return out
}

func (n Node) proto() *metadatav1.Node {
	return &metadatav1.Node{
		NodeId:      int32(n.ID),
		Role:        n.Record.GetRole(),
		Address:     n.Record.GetAddress(),
		PeerAddress: n.Record.GetPeerAddress(),
		NodeEpoch:   int64(n.Epoch),
		Fenced:      n.Status.GetFenced(),
		Since:       n.Status.GetSince(),
		Leaving:     n.Status.GetLeaving(),
	}
}

// TopicProto returns a topic with all its partitions.
func TopicProto(t Topic, partitions []Partition) *metadatav1.Topic {
	return topicProto(t, partitions, nil)
}

// topicProto returns a topic with those of its partitions, or with all for nil.
func topicProto(t Topic, partitions []Partition, only map[int32]struct{}) *metadatav1.Topic {
	out := &metadatav1.Topic{
		TopicId:        t.ID[:],
		Name:           t.Record.GetName(),
		Config:         t.Record.GetConfig(),
		PartitionCount: int32(len(partitions)),
	}
	for i := range partitions {
		if _, wanted := only[int32(i)]; wanted || only == nil {
			out.Partitions = append(out.Partitions, partitions[i].Proto())
		}
	}
	return out
}
