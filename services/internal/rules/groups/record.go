package groups

import (
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// Record is one of [*FenceRecord], [*GroupRecord], [*MemberRecord], [*OffsetRecord] and
// [*Tombstone]. Records are immutable.
type Record interface{ record() }

// FenceRecord is the first record of a coordinator epoch.
type FenceRecord struct {
	Epoch CoordinatorEpoch
	Node  cluster.NodeID
}

// GroupRecord is a group apart from members and offsets.
type GroupRecord struct {
	Group GroupID
	Epoch Epoch
	// TargetEpoch is the epoch for which Target was computed.
	TargetEpoch Epoch
	Assignor    Assignor
	// Empty is how long coordinators have seen the group without members.
	Empty time.Duration
	// Target is what each member is to have, in ascending order of topic and index.
	Target map[MemberID][]Partition
	// Seen are the topics that the group knows, in ascending order of their ids.
	Seen []SeenTopic
}

// SeenTopic says how many partitions a topic had when the group subscribed to it, or 0 if
// it was not there yet: those from there on came into being later.
type SeenTopic struct {
	Topic      cluster.TopicID
	Partitions int32
}

// MemberRecord is a member with what it has.
type MemberRecord struct {
	Group            GroupID
	Member           MemberID
	Epoch            Epoch
	Instance         string
	ClientID         string
	ClientHost       string
	Subscription     Subscription
	Assignor         Assignor
	SessionTimeout   time.Duration
	RebalanceTimeout time.Duration
	// Assigned is what it reads, Revoking what it was told to give up; both in ascending
	// order of topic and index.
	Assigned, Revoking []Owned
	// Away says that it has left and keeps its assignment, as a static member, until its
	// session times out.
	Away bool
}

// Owned is a partition that a member has, since the member's epoch Since.
type Owned struct {
	Partition
	Since Epoch
}

// OffsetRecord is a committed offset.
type OffsetRecord struct {
	Group GroupID
	Partition
	TopicName string
	Offset    int64
	// LeaderEpoch is -1 where it is not known.
	LeaderEpoch int32
	Metadata    string
	// Committed is the wall clock's time, for people.
	Committed time.Time
	// Since is the epoch at which the member that has committed it got the partition, 0
	// where no member has; Sequence is the number of the commit among those since then.
	Since    Epoch
	Sequence CommitSequence
}

// Tombstone removes a group, a member, or an offset.
type Tombstone struct {
	Group GroupID
	// Member is set for a member, Offset for an offset, none of them for a group.
	Member MemberID
	Offset *Partition
}

func (*FenceRecord) record()  {}
func (*GroupRecord) record()  {}
func (*MemberRecord) record() {}
func (*OffsetRecord) record() {}
func (*Tombstone) record()    {}
