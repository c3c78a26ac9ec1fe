// Package cluster is the image of a cluster that a WatchCluster stream
// describes: which nodes there are, which topics, and who leads what. Clients
// and services fold the same snapshots and deltas with it.
//
// An [Image] and all that it points to is immutable: applying a delta makes a
// new one that shares what did not change. All of it may be read concurrently.
package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
)

// TopicID names a topic for good: a topic that was deleted and created again
// under the same name has another one.
type TopicID [16]byte

// String returns the id as a UUID.
func (id TopicID) String() string { return uuid.UUID(id).String() }

// NodeID numbers a node, from 1; [NoNode] stands for none.
type NodeID int32

// NoNode stands for the absence of a node, such as the leader of an offline
// partition.
const NoNode NodeID = -1

// NodeEpoch orders the processes that ran under one node id (KIP-903).
type NodeEpoch int64

// LeaderEpoch orders the leaderships of a partition, from 0 (KIP-101).
type LeaderEpoch int32

// PartitionEpoch orders the states of a partition, from 0 (KIP-497).
type PartitionEpoch int32

// CoordinatorEpoch orders the processes that coordinate a partition of
// [OffsetsTopic], from 1; 0 stands for none.
type CoordinatorEpoch int64

// maxPartitions bounds what an image allocates for a topic that a peer
// describes; it is far above what a cluster admits.
const maxPartitions = 1_000_000

// ErrVersionGap says that a delta does not follow the image: the watcher has
// missed something and needs a snapshot.
var ErrVersionGap = errors.New("cluster delta does not follow the version at hand")

// Node is one registered service process.
type Node struct {
	ID      NodeID
	Role    metadatav1.NodeRole
	Address string
	// PeerAddress is where other services reach it; empty where they do not.
	PeerAddress string
	Epoch       NodeEpoch
	Fenced      bool
	// Since is when the node became live or fenced.
	Since time.Time
	// Leaving says that the process is about to stop.
	Leaving bool
}

// Partition is the state of a partition that the cluster agrees on.
type Partition struct {
	Index          int32
	Leader         NodeID
	LeaderEpoch    LeaderEpoch
	PartitionEpoch PartitionEpoch
	// Replicas holds the preferred leader first.
	Replicas []NodeID
	ISR      []NodeID
	ELR      []NodeID
	// LastLeader is the node that led last while there is no leader.
	LastLeader NodeID
	// Coordinator is the node that coordinates the groups of this partition of
	// [OffsetsTopic]; NoNode where there is none, as in all other topics.
	Coordinator NodeID
	// CoordinatorEpoch is that of Coordinator, or of the last one where there is none.
	CoordinatorEpoch CoordinatorEpoch
}

// Topic is a topic with all its partitions, indexed by their numbers.
type Topic struct {
	ID   TopicID
	Name string
	// Config holds the settings that were given to the topic.
	Config     map[string]string
	Partitions []Partition
}

// Image is the state of the cluster at one version.
type Image struct {
	ClusterID [16]byte
	// Version grows with each change; 0 is the empty image.
	Version    int64
	Controller NodeID

	nodes   map[NodeID]*Node
	topics  map[TopicID]*Topic
	byName  map[string]*Topic
	deleted map[TopicID]struct{}
}

// Node returns the node of that id.
func (i *Image) Node(id NodeID) (*Node, bool) {
	n, ok := i.nodes[id]
	return n, ok
}

// Nodes returns all nodes in ascending order of their ids.
func (i *Image) Nodes() []*Node {
	return slices.SortedFunc(maps.Values(i.nodes), func(a, b *Node) int { return int(a.ID - b.ID) })
}

// Topic returns the topic of that name.
func (i *Image) Topic(name string) (*Topic, bool) {
	t, ok := i.byName[name]
	return t, ok
}

// TopicByID returns the topic of that id.
func (i *Image) TopicByID(id TopicID) (*Topic, bool) {
	t, ok := i.topics[id]
	return t, ok
}

// Topics returns all topics in ascending order of their names.
func (i *Image) Topics() []*Topic {
	return slices.SortedFunc(maps.Values(i.byName), func(a, b *Topic) int { return strings.Compare(a.Name, b.Name) })
}

// Deleted reports whether the topic is known to be deleted. That a topic is
// absent from the image does not mean that it is.
func (i *Image) Deleted(id TopicID) bool {
	_, ok := i.deleted[id]
	return ok
}

// FromSnapshot returns the image that a snapshot describes.
func FromSnapshot(s *metadatav1.ClusterSnapshot) (*Image, error) {
	image := &Image{
		Version:    s.GetVersion(),
		Controller: NodeID(s.GetControllerId()),
		nodes:      make(map[NodeID]*Node, len(s.GetNodes())),
		topics:     make(map[TopicID]*Topic, len(s.GetTopics())),
		byName:     make(map[string]*Topic, len(s.GetTopics())),
		deleted:    make(map[TopicID]struct{}, len(s.GetDeletedTopicIds())),
	}
	if len(s.GetClusterId()) != len(image.ClusterID) {
		return nil, fmt.Errorf("cluster id has %d bytes instead of 16", len(s.GetClusterId()))
	}
	copy(image.ClusterID[:], s.GetClusterId())
	if err := image.merge(s.GetNodes(), s.GetTopics(), s.GetDeletedTopicIds()); err != nil {
		return nil, err
	}
	return image, nil
}

// Apply returns the image after a delta, or [ErrVersionGap] when the delta does
// not start at the image's version.
func (i *Image) Apply(d *metadatav1.ClusterDelta) (*Image, error) {
	if d.GetPreviousVersion() != i.Version {
		return nil, fmt.Errorf("%w: have %d, delta starts at %d", ErrVersionGap, i.Version, d.GetPreviousVersion())
	}
	next := &Image{
		ClusterID:  i.ClusterID,
		Version:    d.GetVersion(),
		Controller: i.Controller,
		nodes:      i.nodes,
		topics:     i.topics,
		byName:     i.byName,
		deleted:    i.deleted,
	}
	if d.ControllerId != nil {
		next.Controller = NodeID(d.GetControllerId())
	}
	if len(d.GetNodes())+len(d.GetRemovedNodeIds()) > 0 {
		next.nodes = maps.Clone(i.nodes)
	}
	for _, id := range d.GetRemovedNodeIds() {
		delete(next.nodes, NodeID(id))
	}
	if len(d.GetTopics())+len(d.GetRemovedTopicIds()) > 0 {
		next.topics = maps.Clone(i.topics)
		next.byName = maps.Clone(i.byName)
		next.deleted = maps.Clone(i.deleted)
	}
	if err := next.merge(d.GetNodes(), d.GetTopics(), d.GetRemovedTopicIds()); err != nil {
		return nil, err
	}
	return next, nil
}

// merge folds changes into maps that no other image shares. Deletions come
// first, so that a topic created again under its name survives them.
func (i *Image) merge(nodes []*metadatav1.Node, topics []*metadatav1.Topic, deleted [][]byte) error {
	for _, n := range nodes {
		i.nodes[NodeID(n.GetNodeId())] = nodeFromProto(n)
	}
	for _, raw := range deleted {
		id, err := ParseTopicID(raw)
		if err != nil {
			return err
		}
		if t, ok := i.topics[id]; ok {
			delete(i.topics, id)
			if i.byName[t.Name] == t {
				delete(i.byName, t.Name)
			}
		}
		i.deleted[id] = struct{}{}
	}
	for _, t := range topics {
		if err := i.mergeTopic(t); err != nil {
			return err
		}
	}
	return nil
}

func (i *Image) mergeTopic(t *metadatav1.Topic) error {
	id, err := ParseTopicID(t.GetTopicId())
	if err != nil {
		return fmt.Errorf("topic %q: %w", t.GetName(), err)
	}
	if t.GetPartitionCount() < 0 || t.GetPartitionCount() > maxPartitions {
		return fmt.Errorf("topic %q: %d partitions", t.GetName(), t.GetPartitionCount())
	}
	partitions := make([]Partition, t.GetPartitionCount())
	if old, ok := i.topics[id]; ok {
		copy(partitions, old.Partitions)
		if len(old.Partitions) > len(partitions) {
			return fmt.Errorf("topic %q: partitions fall from %d to %d", t.GetName(), len(old.Partitions), len(partitions))
		}
	}
	for _, p := range t.GetPartitions() {
		if p.GetPartition() < 0 || int(p.GetPartition()) >= len(partitions) {
			return fmt.Errorf("topic %q: partition %d of %d", t.GetName(), p.GetPartition(), len(partitions))
		}
		partitions[p.GetPartition()] = PartitionFromProto(p)
	}
	topic := &Topic{ID: id, Name: t.GetName(), Config: t.GetConfig(), Partitions: partitions}
	i.topics[id] = topic
	i.byName[topic.Name] = topic
	return nil
}

// Sharing returns an equal image that has the topics in common with another one which
// are equal in both, so that they are in memory once. It returns the image itself where
// there are none.
func (i *Image) Sharing(other *Image) *Image {
	var out *Image
	for id, t := range i.topics {
		common := other.topics[id]
		if common == nil || common == t || !common.equal(t) {
			continue
		}
		if out == nil {
			clone := *i
			clone.topics, clone.byName = maps.Clone(i.topics), maps.Clone(i.byName)
			out = &clone
		}
		out.topics[id] = common
		if i.byName[t.Name] == t {
			out.byName[t.Name] = common
		}
	}
	if out == nil {
		return i
	}
	return out
}

// Snapshot returns the image in its wire form.
func (i *Image) Snapshot() *metadatav1.ClusterSnapshot {
	s := &metadatav1.ClusterSnapshot{
		ClusterId:    i.ClusterID[:],
		Version:      i.Version,
		ControllerId: int32(i.Controller),
	}
	for _, n := range i.Nodes() {
		s.Nodes = append(s.Nodes, n.Proto())
	}
	for _, t := range i.Topics() {
		s.Topics = append(s.Topics, t.Proto())
	}
	for id := range i.deleted {
		s.DeletedTopicIds = append(s.DeletedTopicIds, id[:])
	}
	slices.SortFunc(s.DeletedTopicIds, slices.Compare[[]byte])
	return s
}

// ParseTopicID reads the wire form of a topic id.
func ParseTopicID(raw []byte) (TopicID, error) {
	var id TopicID
	if len(raw) != len(id) {
		return id, fmt.Errorf("topic id has %d bytes instead of 16", len(raw))
	}
	copy(id[:], raw)
	return id, nil
}

func (t *Topic) equal(o *Topic) bool {
	return t.ID == o.ID && t.Name == o.Name && maps.Equal(t.Config, o.Config) && slices.EqualFunc(t.Partitions, o.Partitions, Partition.equal)
}

func (p Partition) equal(o Partition) bool {
	return p.Index == o.Index && p.Leader == o.Leader && p.LeaderEpoch == o.LeaderEpoch && p.PartitionEpoch == o.PartitionEpoch &&
		slices.Equal(p.Replicas, o.Replicas) && slices.Equal(p.ISR, o.ISR) && slices.Equal(p.ELR, o.ELR) &&
		p.LastLeader == o.LastLeader && p.Coordinator == o.Coordinator && p.CoordinatorEpoch == o.CoordinatorEpoch
}

// Proto returns the topic with all its partitions in its wire form.
func (t *Topic) Proto() *metadatav1.Topic {
	out := &metadatav1.Topic{
		TopicId:        t.ID[:],
		Name:           t.Name,
		Config:         t.Config,
		PartitionCount: int32(len(t.Partitions)),
		Partitions:     make([]*metadatav1.Partition, len(t.Partitions)),
	}
	for i := range t.Partitions {
		out.Partitions[i] = t.Partitions[i].Proto()
	}
	return out
}

// Proto returns the partition in its wire form.
func (p *Partition) Proto() *metadatav1.Partition {
	return &metadatav1.Partition{
		Partition:      p.Index,
		LeaderId:       int32(p.Leader),
		LeaderEpoch:    int32(p.LeaderEpoch),
		PartitionEpoch: int32(p.PartitionEpoch),
		Replicas:       idsToProto(p.Replicas),
		Isr:            idsToProto(p.ISR),
		Elr:            idsToProto(p.ELR),
		LastLeaderId:   int32(p.LastLeader),
		// The wire has 0 for none, so that topics without coordinators say nothing.
		CoordinatorId:    max(int32(p.Coordinator), 0),
		CoordinatorEpoch: int64(p.CoordinatorEpoch),
	}
}

// PartitionFromProto reads the wire form of a partition.
func PartitionFromProto(p *metadatav1.Partition) Partition {
	return Partition{
		Index:          p.GetPartition(),
		Leader:         NodeID(p.GetLeaderId()),
		LeaderEpoch:    LeaderEpoch(p.GetLeaderEpoch()),
		PartitionEpoch: PartitionEpoch(p.GetPartitionEpoch()),
		Replicas:       idsFromProto(p.GetReplicas()),
		ISR:            idsFromProto(p.GetIsr()),
		ELR:            idsFromProto(p.GetElr()),
		LastLeader:     NodeID(p.GetLastLeaderId()),

		Coordinator:      CoordinatorFromProto(p.GetCoordinatorId()),
		CoordinatorEpoch: CoordinatorEpoch(p.GetCoordinatorEpoch()),
	}
}

// CoordinatorFromProto reads the wire form of a partition's coordinator, which is 0
// for none.
func CoordinatorFromProto(id int32) NodeID {
	if id <= 0 {
		return NoNode
	}
	return NodeID(id)
}

// Proto returns the node in its wire form.
func (n *Node) Proto() *metadatav1.Node {
	return &metadatav1.Node{
		NodeId:      int32(n.ID),
		Role:        n.Role,
		Address:     n.Address,
		PeerAddress: n.PeerAddress,
		NodeEpoch:   int64(n.Epoch),
		Fenced:      n.Fenced,
		Since:       timestamppb.New(n.Since),
		Leaving:     n.Leaving,
	}
}

func nodeFromProto(n *metadatav1.Node) *Node {
	return &Node{
		ID:          NodeID(n.GetNodeId()),
		Role:        n.GetRole(),
		Address:     n.GetAddress(),
		PeerAddress: n.GetPeerAddress(),
		Epoch:       NodeEpoch(n.GetNodeEpoch()),
		Fenced:      n.GetFenced(),
		Since:       n.GetSince().AsTime(),
		Leaving:     n.GetLeaving(),
	}
}

func idsToProto(ids []NodeID) []int32 {
	out := make([]int32, len(ids))
	for i, id := range ids {
		out[i] = int32(id)
	}
	return out
}

func idsFromProto(ids []int32) []NodeID {
	out := make([]NodeID, len(ids))
	for i, id := range ids {
		out[i] = NodeID(id)
	}
	return out
}
