package groups

import "time"

// Ticket names a request or an I/O of a shard; the caller of [Shard.Submit] chooses that
// of a request.
type Ticket uint64

// Request is one of [*Join], [*Detach], [*Heartbeat], [*Leave], [*Commit], [*Fetch],
// [*CheckReset], [*Describe], [*List], [*DeleteGroup], [*DeleteOffsets].
type Request interface{ request() }

// Join makes a member, or opens its stream anew. It is answered by a [Reply] if it is
// refused, and by an [Assignment] otherwise; assignments go to the stream that the
// ticket names until the member detaches, leaves, is fenced, or joins with another
// ticket.
type Join struct {
	Group  GroupID
	Member MemberID // Never empty: who serves the call makes one up.
	// Epoch is 0 for a new member, and otherwise the epoch of the assignment that the
	// member follows.
	Epoch            Epoch
	Instance         string
	ClientID         string
	ClientHost       string
	Subscription     Subscription
	Assignor         Assignor
	SessionTimeout   time.Duration
	RebalanceTimeout time.Duration
}

// Subscription is what a member wants to read.
type Subscription struct {
	// Topics are names in ascending order, each once.
	Topics []string
	// Pattern is a regular expression that compiles; empty for none.
	Pattern string
}

// Detach says that the stream of a Join has ended. It has no answer.
type Detach struct {
	Group  GroupID
	Member MemberID
	// Stream is the ticket of the Join: a newer stream stays.
	Stream Ticket
}

// Heartbeat is a sign of life, answered with [HeartbeatAnswer].
type Heartbeat struct {
	Group  GroupID
	Member MemberID
	Epoch  Epoch
}

// HeartbeatAnswer is the answer to a heartbeat.
type HeartbeatAnswer struct {
	Epoch    Epoch
	Interval time.Duration
}

// Leave ends a membership, answered without a value. Of a member that is not there it
// succeeds.
type Leave struct {
	Group  GroupID
	Member MemberID
	// Keep is for static members that will be back.
	Keep bool
}

// Commit records offsets, answered with [CommitAnswer].
type Commit struct {
	Group GroupID
	// Member is empty for who is none, which a group with members refuses.
	Member MemberID
	Epoch  Epoch
	// Sequence orders the commits of a member; 0 for one that does not number them.
	Sequence CommitSequence
	Offsets  []CommitOffset
}

// CommitOffset is an offset to record.
type CommitOffset struct {
	Partition
	// Topic is the name, for the record.
	TopicName string
	Offset    int64
	// LeaderEpoch is -1 where it is not known.
	LeaderEpoch int32
	Metadata    string
}

// CommitAnswer has an entry for each offset, nil where it is recorded.
type CommitAnswer struct{ Refusals []*Refusal }

// Fetch asks for committed offsets, answered with []*OffsetRecord in the order of topic
// names and partitions.
type Fetch struct {
	Group GroupID
	// Partitions is what to look for; nil means all.
	Partitions []Partition
}

// CheckReset asks whether the offsets of a group may be moved, which only those of a
// group without members may be. It is answered with []*OffsetRecord: all that there are,
// in the order of topic names and partitions.
type CheckReset struct {
	Group GroupID
	// Create says that the group need not exist.
	Create bool
}

// Describe asks for all of a group, answered with *Description.
type Describe struct{ Group GroupID }

// List asks for all groups of the shard, answered with []Summary.
type List struct{}

// DeleteGroup forgets a group without members, answered without a value.
type DeleteGroup struct{ Group GroupID }

// DeleteOffsets forgets offsets, answered with []*OffsetRecord: those that there were.
type DeleteOffsets struct {
	Group GroupID
	// Partitions is what to forget.
	Partitions []Partition
}

func (*Join) request()          {}
func (*Detach) request()        {}
func (*Heartbeat) request()     {}
func (*Leave) request()         {}
func (*Commit) request()        {}
func (*Fetch) request()         {}
func (*CheckReset) request()    {}
func (*Describe) request()      {}
func (*List) request()          {}
func (*DeleteGroup) request()   {}
func (*DeleteOffsets) request() {}

// State is where a group stands.
type State int8

const (
	// Empty is a group without members.
	Empty State = iota
	// Reconciling is one with members that have yet to give up, to receive or to confirm.
	Reconciling
	// Stable is one where nobody waits for anything.
	Stable
)

// Summary is a group in a list.
type Summary struct {
	Group   GroupID
	State   State
	Members int
}

// Description is all of a group.
type Description struct {
	Group    GroupID
	State    State
	Epoch    Epoch
	Assignor Assignor
	Members  []DescribedMember
	Offsets  []*OffsetRecord
}

// DescribedMember is a member with what it has.
type DescribedMember struct {
	MemberRecord
	// Awaited is what is meant for it and not free.
	Awaited []Partition
	// Idle is how long it was not heard.
	Idle time.Duration
	// Fenced says that its heartbeats are refused.
	Fenced bool
}
