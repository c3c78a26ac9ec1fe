package groups

import "time"

// Effects is what [Shard.Step] asks its caller to do. Replies and assignments go out in
// their order.
type Effects struct {
	// Append, Check and Load are I/O, at most one of them and none while one is under way.
	// Its outcome comes back by [Shard.Appended], [Shard.Checked] or [Shard.Loaded] with
	// the same ticket.
	Append *Append
	Check  *Check
	Load   *Load

	Replies     []Reply
	Assignments []Assignment
	// Closed are streams that end, each with why.
	Closed []Closed
	// Wake is when to call [Shard.Step] again even if nothing happens; zero for never.
	Wake time.Time
}

// Append is a fenced append of one batch.
type Append struct {
	Ticket Ticket
	Epoch  CoordinatorEpoch
	// Expected is the log end to compare; -1 for the fence.
	Expected int64
	Records  []Record
}

// Check asks the leader whether the fence holds.
type Check struct {
	Ticket   Ticket
	Epoch    CoordinatorEpoch
	Expected int64
}

// Load reads the log from its start up to End. Records come in pieces by [Shard.Load],
// the end by [Shard.Loaded].
type Load struct {
	Ticket Ticket
	End    int64
}

// Reply answers a request.
type Reply struct {
	Ticket Ticket
	// Value is what the request's type says; nil with a refusal.
	Value   any
	Refusal *Refusal
}

// Assignment is what a member is to read, for the stream of its Join.
type Assignment struct {
	// Stream is the ticket of the Join.
	Stream     Ticket
	Group      GroupID
	Member     MemberID
	Epoch      Epoch
	Partitions []Owned
	// Added are those of Partitions that came into being after the group had subscribed to
	// their topics, and of which it has no offset.
	Added    []Partition
	Assignor Assignor
	// SessionTimeout and HeartbeatInterval are for the member to keep.
	SessionTimeout, HeartbeatInterval time.Duration
	// Awaited is how many partitions are meant for the member and not free.
	Awaited int
	// Missing are subscribed topics that do not exist.
	Missing []string
	// Members and GroupPartitions are the sizes of the group.
	Members, GroupPartitions int
}

// Closed is a stream that ends.
type Closed struct {
	Stream  Ticket
	Refusal *Refusal
}

// Outcome is what came of an I/O.
type Outcome int8

const (
	// Done: it was carried out.
	Done Outcome = iota
	// Refused: nothing was written, and the same may be tried again with the same
	// expectation, such as for want of a leader or of in-sync replicas.
	Refused
	// Doubtful: it may or may not have been written, or may still be.
	Doubtful
	// Fenced: another coordinator epoch has appended, or the log ends elsewhere.
	Fenced
)
