package catalog

import (
	"math"
	"strconv"
	"strings"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// Layout names the keys under one prefix, and writes the records under them. The
// package documentation lists them.
type Layout struct {
	prefix string
}

// NewLayout returns the layout under a prefix such as "runnel/".
func NewLayout(prefix string) Layout { return Layout{prefix: strings.TrimSuffix(prefix, "/") + "/"} }

// Prefix is what all keys begin with. It ends with a slash.
func (l Layout) Prefix() string { return l.prefix }

// Election is the prefix of the election keys, without a slash at its end.
func (l Layout) Election() string { return l.prefix + "election" }

// Cluster is the key of the ClusterRecord.
func (l Layout) Cluster() string { return l.prefix + "cluster" }

// Controller is the key of the ControllerRecord.
func (l Layout) Controller() string { return l.prefix + "controller" }

// Touched is the key that is written together with the removal of a visible key.
func (l Layout) Touched() string { return l.prefix + "touched" }

// NodeCounter is the key of the counter of node ids.
func (l Layout) NodeCounter() string { return l.prefix + "counters/nodes" }

// ProducerCounter is the key of the counter of producer ids.
func (l Layout) ProducerCounter() string { return l.prefix + "counters/producers" }

// Node is the key of a NodeRecord.
func (l Layout) Node(id cluster.NodeID) string { return l.prefix + "nodes/" + decimal(id) }

// Live is the leased key of a node. It has no value.
func (l Layout) Live(id cluster.NodeID) string { return l.prefix + "live/" + decimal(id) }

// Status is the key of a NodeStatusRecord.
func (l Layout) Status(id cluster.NodeID) string { return l.prefix + "status/" + decimal(id) }

// Topic is the key of a TopicRecord.
func (l Layout) Topic(id cluster.TopicID) string { return l.prefix + "topics/" + id.String() }

// Name is the key that holds the id of the topic with that name.
func (l Layout) Name(name string) string { return l.prefix + "names/" + name }

// Deleted is the key of a DeletedTopicRecord.
func (l Layout) Deleted(id cluster.TopicID) string { return l.prefix + "deleted/" + id.String() }

// Partition is the key of a PartitionRecord. The keys of a topic are in the order
// of its partitions.
func (l Layout) Partition(id cluster.TopicID, index int32) string {
	digits := decimal(index)
	const width = 10
	return l.prefix + "partitions/" + id.String() + "/" + strings.Repeat("0", width-len(digits)) + digits
}

// Put returns the operation that stores a record.
func Put(key string, record proto.Message, options ...clientv3.OpOption) clientv3.Op {
	value, err := proto.Marshal(record)
	if err != nil {
		// Only text that is not UTF-8 can do this, and all text was checked before.
		panic("catalog: marshal record: " + err.Error())
	}
	return clientv3.OpPut(key, string(value), options...)
}

// PutName returns the operation that gives a name to a topic.
func (l Layout) PutName(name string, id cluster.TopicID) clientv3.Op {
	return clientv3.OpPut(l.Name(name), string(id[:]))
}

// PutPartition returns the operation that stores a partition.
func (l Layout) PutPartition(id cluster.TopicID, p Partition) clientv3.Op {
	return Put(l.Partition(id, p.Index), partitionRecord(p.PartitionState))
}

// Touch returns the operation that goes with the removal of a visible key.
func (l Layout) Touch() clientv3.Op { return clientv3.OpPut(l.Touched(), "") }

// Mark returns an operation that changes nothing, so that a controller can wait
// until the catalog shows what else stands in etcd.
func (l Layout) Mark() clientv3.Op { return clientv3.OpPut(l.prefix+"mark", "") }

// Absent is the comparison that holds while there is no such key.
func Absent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

// Present is the comparison that holds while there is such a key.
func Present(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
}

// Unchanged is the comparison that holds while a key is as it was written at a
// revision; 0 stands for its absence.
func Unchanged(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

// kind says what stands under a key.
type kind int

const (
	kindUnknown kind = iota
	kindCluster
	kindController
	kindTouched
	kindNodeCounter
	kindProducerCounter
	kindElection
	kindNode
	kindLive
	kindStatus
	kindTopic
	kindName
	kindDeleted
	kindPartition
)

// parsedKey is a key taken apart; which fields are set depends on the kind.
type parsedKey struct {
	kind  kind
	node  cluster.NodeID
	topic cluster.TopicID
	index int32
	name  string
}

// parse takes a key apart. Keys that [Layout] does not make are of kindUnknown.
func (l Layout) parse(key string) parsedKey {
	rest, ok := strings.CutPrefix(key, l.prefix)
	if !ok {
		return parsedKey{}
	}
	switch rest {
	case "cluster":
		return parsedKey{kind: kindCluster}
	case "controller":
		return parsedKey{kind: kindController}
	case "touched":
		return parsedKey{kind: kindTouched}
	case "counters/nodes":
		return parsedKey{kind: kindNodeCounter}
	case "counters/producers":
		return parsedKey{kind: kindProducerCounter}
	}
	folder, rest, _ := strings.Cut(rest, "/")
	switch folder {
	case "election":
		return parsedKey{kind: kindElection}
	case "nodes":
		return nodeKey(kindNode, rest)
	case "live":
		return nodeKey(kindLive, rest)
	case "status":
		return nodeKey(kindStatus, rest)
	case "topics":
		return topicKey(kindTopic, rest)
	case "deleted":
		return topicKey(kindDeleted, rest)
	case "names":
		return parsedKey{kind: kindName, name: rest}
	case "partitions":
		topic, digits, _ := strings.Cut(rest, "/")
		parsed := topicKey(kindPartition, topic)
		index, err := strconv.ParseInt(digits, 10, 32)
		if err != nil || index < 0 || index >= maxIndex || l.Partition(parsed.topic, int32(index)) != key {
			return parsedKey{}
		}
		parsed.index = int32(index)
		return parsed
	}
	return parsedKey{}
}

// maxIndex bounds what a stray key can make the state allocate.
const maxIndex = 100_000

func nodeKey(k kind, digits string) parsedKey {
	id, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || id < 1 || id > math.MaxInt32 || decimal(id) != digits {
		return parsedKey{}
	}
	return parsedKey{kind: k, node: cluster.NodeID(id)}
}

func topicKey(k kind, text string) parsedKey {
	id, err := uuid.Parse(text)
	if err != nil || id.String() != text {
		return parsedKey{}
	}
	return parsedKey{kind: k, topic: cluster.TopicID(id)}
}

func decimal[N ~int32 | ~int64](n N) string { return strconv.FormatInt(int64(n), 10) }

func partitionRecord(p partitionState) *catalogv1.PartitionRecord {
	r := &catalogv1.PartitionRecord{
		Replicas:       make([]*catalogv1.ReplicaRecord, len(p.Replicas)),
		LeaderId:       int32(p.Leader),
		LeaderEpoch:    int32(p.LeaderEpoch),
		PartitionEpoch: int32(p.PartitionEpoch),
		Isr:            numbers(p.ISR),
		Elr:            numbers(p.ELR),
		LastLeaderId:   int32(p.LastLeader),

		CoordinatorId:        max(int32(p.Coordinator), 0),
		CoordinatorEpoch:     int64(p.CoordinatorEpoch),
		CoordinatorNodeEpoch: int64(p.CoordinatorNodeEpoch),
	}
	for i, id := range p.Replicas {
		r.Replicas[i] = &catalogv1.ReplicaRecord{NodeId: int32(id), NodeEpoch: int64(p.Epochs[i])}
	}
	return r
}

func partitionOf(index int32, r *catalogv1.PartitionRecord) partitionState {
	p := partitionState{
		Partition: cluster.Partition{
			Index:          index,
			Leader:         cluster.NodeID(r.GetLeaderId()),
			LeaderEpoch:    cluster.LeaderEpoch(r.GetLeaderEpoch()),
			PartitionEpoch: cluster.PartitionEpoch(r.GetPartitionEpoch()),
			Replicas:       make([]cluster.NodeID, len(r.GetReplicas())),
			ISR:            nodeIDs(r.GetIsr()),
			ELR:            nodeIDs(r.GetElr()),
			LastLeader:     cluster.NodeID(r.GetLastLeaderId()),

			Coordinator:      cluster.CoordinatorFromProto(r.GetCoordinatorId()),
			CoordinatorEpoch: cluster.CoordinatorEpoch(r.GetCoordinatorEpoch()),
		},
		Epochs:               make([]cluster.NodeEpoch, len(r.GetReplicas())),
		CoordinatorNodeEpoch: cluster.NodeEpoch(r.GetCoordinatorNodeEpoch()),
	}
	for i, replica := range r.GetReplicas() {
		p.Replicas[i] = cluster.NodeID(replica.GetNodeId())
		p.Epochs[i] = cluster.NodeEpoch(replica.GetNodeEpoch())
	}
	return p
}

func numbers(ids []cluster.NodeID) []int32 {
	out := make([]int32, len(ids))
	for i, id := range ids {
		out[i] = int32(id)
	}
	return out
}

func nodeIDs(numbers []int32) []cluster.NodeID {
	out := make([]cluster.NodeID, len(numbers))
	for i, n := range numbers {
		out[i] = cluster.NodeID(n)
	}
	return out
}
