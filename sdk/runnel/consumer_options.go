package runnel

import (
	"errors"
	"fmt"
	"time"
)

// ResetPolicy says where a consumer goes on when it has no offset to go on at: its
// group has committed none for the partition, or the partition does not hold the one
// that there is, since retention has removed it or it never was there.
//
// That records which were read are no longer in the log, as after an unclean
// election, Poll tells under every policy, with a [PartitionError] whose reason is
// REASON_LOG_TRUNCATED. Under [ResetEarliest] and [ResetLatest] it tells so once,
// and the consumer goes on where the log parts from what was read, or as the policy
// says if that is not known. What the program had done with beyond that place is not
// committed.
type ResetPolicy int8

const (
	// ResetNone fails the Poll with a [PartitionError] and leaves it to the
	// program to seek. It is the default: going on by itself would pass over
	// records, or read some twice, without anyone noticing.
	ResetNone ResetPolicy = iota
	// ResetEarliest goes on with the first record that the partition holds.
	ResetEarliest
	// ResetLatest goes on at the end of the partition. A member of a group commits where
	// that was before it gets a record from there, also if committing is left to the
	// program: whoever comes after it would begin at a later end. A topic that
	// is created, or a partition that is added to one, while members are subscribed to it
	// begins with its first record: all that it holds was written since, and would be
	// passed over up to when a member finds it (as in Kafka, KAFKA-12478). So does a
	// partition that was added while the group had no members but offsets of the topic.
	ResetLatest
)

// start returns where the policy goes on; ok is false where it leaves that to the
// program.
func (p ResetPolicy) start() (start Start, ok bool) {
	switch p {
	case ResetEarliest:
		return Start{kind: startEarliest, byPolicy: true}, true
	case ResetLatest:
		return Start{kind: startLatest, byPolicy: true}, true
	}
	return Start{}, false
}

// Delivery is what a consumer in a group promises about each record when it, or
// another member, dies at a bad moment.
type Delivery int8

const (
	// AtLeastOnce, the default, loses nothing of what is written behind the place where
	// the group has begun: an offset is committed after the program has done with the
	// records before it. What was done with since the last commit, at most an auto-commit
	// interval ago, and what was in hand when a member died is read once more by its
	// successor. It holds as long as retention does not remove records unread, and, with
	// WithAutoCommit(0), as long as the program commits nothing ahead of its work.
	AtLeastOnce Delivery = iota
	// AtMostOnce repeats nothing: Poll commits the offset behind its records before
	// it returns them. What was in hand when a member died is not read again; one that is
	// stopped by Close or the end of a context loses nothing, as long as the coordinator
	// answers and the program handles all that Poll returns. It holds as long as nobody
	// seeks back or resets the group's offsets.
	AtMostOnce
)

const (
	defaultConsumerBuffer = 32 << 20
	minConsumerBuffer     = 64 << 10
	// maxResponseBytes is how much one response of a stream carries, unless a
	// single batch is larger.
	maxResponseBytes = 1 << 20
	// pollBytes is about how much one Poll returns at most.
	pollBytes = 1 << 20
	// faultInterval is how often Poll repeats the error of a partition that
	// nobody has done anything about.
	faultInterval = time.Second

	defaultAutoCommit     = 5 * time.Second
	minSessionTimeout     = time.Second
	maxSessionTimeout     = 30 * time.Minute
	defaultSessionTimeout = 45 * time.Second

	minRebalanceTimeout     = time.Second
	maxRebalanceTimeout     = 24 * time.Hour
	defaultRebalanceTimeout = 5 * time.Minute
	// maxNameBytes bounds the names of groups and of static members.
	maxNameBytes = 255
)

type consumerConfig struct {
	reset       ResetPolicy
	bufferBytes int64

	group          string
	inGroup        bool
	instanceID     string
	assignor       string
	sessionTimeout time.Duration
	// rebalanceTimeout is how long the member may take to give partitions up before its
	// heartbeats are refused.
	rebalanceTimeout time.Duration
	delivery         Delivery
	autoCommit       time.Duration
	// autoCommitSet says that the program chose autoCommit.
	autoCommitSet bool
	rebalance     Rebalance
}

// ConsumerOption changes a setting of a consumer.
type ConsumerOption func(*consumerConfig)

// WithReset sets what happens when the offset to read is not there; default
// [ResetNone].
func WithReset(policy ResetPolicy) ConsumerOption {
	return func(c *consumerConfig) { c.reset = policy }
}

// WithMaxBufferedBytes bounds the records that are fetched ahead of Poll: 64 KiB
// or more, default 32 MiB. What is counted is batches as received, and the
// records of compressed ones. One response per node, of about 1 MiB, may come on
// top.
func WithMaxBufferedBytes(n int64) ConsumerOption {
	return func(c *consumerConfig) { c.bufferBytes = n }
}

// WithGroup makes the consumer one of a group, 1 to 255 bytes of UTF-8:
// [Consumer.Subscribe] makes it a member, which shares the partitions of topics with
// the other members, and its commits are those of the group.
func WithGroup(group string) ConsumerOption {
	return func(c *consumerConfig) { c.group, c.inGroup = group, true }
}

// WithInstanceID makes the consumer a static member: one that gets its partitions
// back when its process comes up again within its session timeout, without the other
// members noticing. The id, at most 255 bytes, is that of the instance, such as
// "billing-3", and the same after each start. Where two processes use one id, the
// older is told by REASON_INSTANCE_FENCED and reads no more.
func WithInstanceID(id string) ConsumerOption {
	return func(c *consumerConfig) { c.instanceID = id }
}

// WithAssignor sets how partitions are shared out: "sticky", the default, moves as few
// as it can, "range" gives each member neighbouring partitions of each topic,
// "roundrobin" deals them out. Where members differ, that of the most members holds.
func WithAssignor(name string) ConsumerOption {
	return func(c *consumerConfig) { c.assignor = name }
}

// WithSessionTimeout sets how long the member may go unheard before its partitions go
// to others: 1 s to 30 min, default 45 s. It is what a member that dies without a word
// costs.
func WithSessionTimeout(timeout time.Duration) ConsumerOption {
	return func(c *consumerConfig) { c.sessionTimeout = timeout }
}

// WithRebalanceTimeout sets how long the member may take to give partitions up that
// another member is to have, counted from when the group wants them: 1 s to 24 h, default
// 5 min. It covers the work between two calls of Poll and the Revoked callback. A member
// that takes longer loses its place in the group and all its partitions; so it is the time
// that a program which does not poll any more can hold the others up, as long as its
// process lives.
func WithRebalanceTimeout(timeout time.Duration) ConsumerOption {
	return func(c *consumerConfig) { c.rebalanceTimeout = timeout }
}

// WithDelivery sets what the consumer promises about each record; default
// [AtLeastOnce].
func WithDelivery(delivery Delivery) ConsumerOption {
	return func(c *consumerConfig) { c.delivery = delivery }
}

// WithAutoCommit sets how often a member commits what the program has done with:
// the records of all polls but the last. Default 5 s; 0 leaves committing to the
// program.
func WithAutoCommit(interval time.Duration) ConsumerOption {
	return func(c *consumerConfig) { c.autoCommit, c.autoCommitSet = interval, true }
}

// WithRebalance sets what is called when the member's partitions change.
func WithRebalance(callbacks Rebalance) ConsumerOption {
	return func(c *consumerConfig) { c.rebalance = callbacks }
}

// check returns all that is wrong with the settings.
func (c *consumerConfig) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.reset < ResetNone || c.reset > ResetLatest {
		fault("reset policy %d is not none, earliest or latest", c.reset)
	}
	if c.bufferBytes < minConsumerBuffer {
		fault("buffer of %d bytes is below %d", c.bufferBytes, minConsumerBuffer)
	}
	if c.inGroup && (c.group == "" || len(c.group) > maxNameBytes) {
		fault("group id of %d bytes: it has 1 to %d", len(c.group), maxNameBytes)
	}
	if len(c.instanceID) > maxNameBytes {
		fault("instance id of %d bytes is longer than %d", len(c.instanceID), maxNameBytes)
	}
	switch c.assignor {
	case "", "sticky", "range", "roundrobin":
	default:
		fault("assignor %q is not sticky, range or roundrobin", c.assignor)
	}
	if c.sessionTimeout < minSessionTimeout || c.sessionTimeout > maxSessionTimeout {
		fault("session timeout of %v is not within %v and %v", c.sessionTimeout, minSessionTimeout, maxSessionTimeout)
	}
	if c.rebalanceTimeout < minRebalanceTimeout || c.rebalanceTimeout > maxRebalanceTimeout {
		fault("rebalance timeout of %v is not within %v and %v", c.rebalanceTimeout, minRebalanceTimeout, maxRebalanceTimeout)
	}
	if c.delivery < AtLeastOnce || c.delivery > AtMostOnce {
		fault("delivery %d is not at least once or at most once", c.delivery)
	}
	if c.autoCommit < 0 {
		fault("auto-commit interval of %v is below 0", c.autoCommit)
	}
	if c.delivery == AtMostOnce && c.autoCommitSet {
		fault("at most once commits before each Poll returns: leave WithAutoCommit out")
	}
	if !c.inGroup && (c.instanceID != "" || c.assignor != "" || c.delivery != AtLeastOnce || c.autoCommitSet) {
		fault("instance id, assignor, delivery and auto-commit are for members of a group: add WithGroup")
	}
	return errors.Join(faults...)
}

// commitsItself reports whether the consumer commits what the program has done with.
func (c *consumerConfig) commitsItself() bool {
	return c.inGroup && c.delivery == AtLeastOnce && c.autoCommit > 0
}
