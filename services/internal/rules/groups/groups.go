// Package groups holds the rules of consumer groups: who is a member, who gets which
// partition and when, which commits count, and how a coordinator takes a partition of
// __consumer_offsets over and loses it again.
//
// All of it is pure. A [Shard] is the coordinator's state of one such partition. Facts
// come in as arguments, time among them; what is to be done comes out of [Shard.Step].
// The coordinator service drives it with what the network brings, the simulation with
// what it invents.
//
// # How the state changes
//
// Whatever must survive is a [Record], and memory is the fold of the records of the log
// in their order: deciding makes records and folds them by the same code that loading
// does. What is lost with a process is little: when members were heard last, and which
// streams are open.
//
// A shard works in rounds. A round takes the requests that have arrived, decides them in
// their order, and puts all their records into one fenced append, or several where a
// rebalance makes more of them than a batch should have; none that arrives meanwhile is
// looked at before the last is answered. Only then are the replies and assignments of
// the round let out. So nobody hears of anything that a crash could take back, and memory
// needs no way back: an append that was refused is tried again, and one that was fenced
// or whose outcome is not known ends what the shard knows, so that it begins anew with
// the fence and the log. A round without records that has to answer reads asks the leader
// instead whether the fence still holds.
// Heartbeats that change nothing are answered at once while the last append or check was
// sent at most [Config.Confidence] ago, unless the round has records of a group or a member:
// commits hold nobody's session up.
//
// # Who has a partition
//
// A group counts its changes in one epoch. Each assignment of a member carries the value
// at which it was made, and that is the member's epoch. A member that heartbeats with an
// epoch has applied that assignment and all before it: what an assignment takes away is
// the member's until then, or until its session has ended, and nobody else's. Each
// partition that a member has remembers the epoch at which the member got it, and a
// commit counts if the epoch that it carries lies between that and the member's
// (KIP-848, KIP-1251).
//
// Commits of one member reach the shard in any order, since it may have several
// connections, and a coordinator that stood still reads what was given up long ago. So
// members number them, and each offset in the log remembers the number of its commit with
// the epoch at which the member got the partition: a lower one is refused as long as that
// lasts, by later coordinators too.
//
// A member that does not confirm in time has its heartbeats refused; its session then
// ends like that of one which has died, and the member, who counts from its last answered
// heartbeat, has stopped by then.
//
// A static member that left and keeps its assignment has stopped, too: whoever joins with
// its instance has the assignment at once. If the older process is still a member, it is
// told, and its requests are refused; but nobody can know that it has stopped, and so the
// newer one waits for it to leave or for its session to end.
package groups

import (
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// GroupID names a group, 1 to 255 bytes of UTF-8 without control characters.
type GroupID string

// MemberID names a member in its group, 1 to 255 bytes of UTF-8 without control characters.
type MemberID string

// Epoch rises with each change of a group, from 1 or more, over its deletion too; a
// member's epoch is that of its newest assignment.
type Epoch int64

// CommitSequence numbers the commits of a member, from 1. It says in which order they were
// sent, which connections do not.
type CommitSequence uint64

// CoordinatorEpoch orders the processes that coordinate a partition of
// __consumer_offsets, from 1.
type CoordinatorEpoch = cluster.CoordinatorEpoch

// Partition names a partition for good.
type Partition struct {
	Topic cluster.TopicID
	Index int32
}

// Topic is a topic as the rules see it.
type Topic struct {
	ID         cluster.TopicID
	Name       string
	Partitions int32
}

// Topics is which topics there are, at one version of the cluster. It is immutable.
type Topics interface {
	// ByName returns the topic of that name.
	ByName(name string) (Topic, bool)
	// ByID returns the topic of that id.
	ByID(id cluster.TopicID) (Topic, bool)
	// Deleted reports whether the topic is known to be deleted, which is more than that
	// it is not there.
	Deleted(id cluster.TopicID) bool
	// All yields all topics, internal ones too, in ascending order of their names.
	All(yield func(Topic) bool)
	// Version grows with each change.
	Version() int64
}

// Config bounds and times a shard.
type Config struct {
	// MembersPerGroup is how many members a group may have, from 1; and one more for the
	// time that one waits for a member that it supersedes.
	MembersPerGroup int
	// Groups is how many groups a shard may have, from 1.
	Groups int
	// OffsetsPerGroup is how many partitions a group may have offsets of, from 1.
	OffsetsPerGroup int
	// Queue is how many requests may wait for a round, from 1, and Commits how many of
	// them may be commits: the rest of the queue is left to those that a session needs.
	Queue, Commits int
	// RoundBytes is about how many bytes of records the requests of one round make at
	// most, and about how many more go into one append; a larger commit takes several
	// rounds.
	RoundBytes int
	// HeartbeatInterval is what members are told; a third of a shorter session timeout
	// takes its place.
	HeartbeatInterval time.Duration
	// Confidence is how old the last answered append or check may be for heartbeats to
	// be answered, and how long a request may wait for a round. CheckInterval is after how
	// long without either a shard with members checks.
	Confidence, CheckInterval time.Duration
	// Retention is how long the offsets of a group are kept that coordinators have seen
	// without members; 0 is for ever. A group without offsets, of which nothing would
	// be missed, is kept for Aging.
	Retention time.Duration
	// Aging is after how long at least that time is written, so that no more of it is lost
	// with the process. A hundredth of a longer Retention takes its place, up to an hour.
	Aging time.Duration
}

// Refusal is why a request fails: a reason of the public errors, and a sentence that
// names the thing and the remedy.
type Refusal struct {
	Reason  errorsv1.Reason
	Message string
}

func (r *Refusal) Error() string { return r.Message }
