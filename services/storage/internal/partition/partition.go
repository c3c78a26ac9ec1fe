// Package partition is one replica of one partition: it appends batches, keeps
// the high watermark, acknowledges, and serves readers.
//
// A [Partition] has no goroutine. Callers append and read; the store's commit
// goroutine moves the log end and, with it, completes appends and wakes
// readers; the goroutines of [Host.Run] look after what is late, for all
// partitions of the process together.
//
// Locks, in the order in which they are taken: Partition.appending orders the
// appends of a partition and is held while the store's queue is full;
// Partition.mu guards its state and is held for moments only, so that the
// store's commit goroutine never waits for a caller that waits for the store;
// last come those of the tail cache, the host, the sweepers, [Ready] and whoever
// implements [Completion].
package partition

import (
	"context"
	"slices"
	"sync"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// Log is what a partition needs of the store; [*store.Log] is one.
type Log interface {
	// Loaded returns the state and the producers that the log was opened with.
	Loaded() (store.State, []store.Producer)
	// Admit says whether there is room on the disk for so many bytes of batches.
	Admit(bytes int) error
	// Append queues batches and state and calls done once they are durable, from
	// one goroutine and in the order of the calls.
	Append(a store.Append, done func(error))
	// Read returns batches from the one that contains offset on.
	Read(ctx context.Context, offset, endOffset int64, maxBytes int) ([]store.Batch, error)
	// OffsetForTime returns the first batch with a record at or after timestamp.
	OffsetForTime(ctx context.Context, timestamp, endOffset int64) (*store.Batch, error)
	// Truncate cuts what is at or above offset, and the whole of the batch that
	// holds it, and returns the log's end.
	Truncate(ctx context.Context, offset int64, state store.State) (int64, error)
	// Spans appends the stretches that the log consists of to a list.
	Spans(list []store.Span) []store.Span
	// Compact removes records that have a newer one of their key.
	Compact(ctx context.Context, o store.CompactOptions) (store.Compacted, error)
	// Dirt returns what Compact could do below an offset.
	Dirt(below int64, now time.Time, lag time.Duration) store.Dirt
	// Err returns why the log cannot be used, if so.
	Err() error
	// Failed returns why the log takes no more batches, if so, though what it has
	// can be read.
	Failed() error
}

// Role is what a node is to a partition.
type Role uint8

// The roles.
const (
	// Offline: the partition has no leader, or this node no replica of it.
	Offline Role = iota
	// Follower: another node leads.
	Follower
	// Leader: this node leads.
	Leader
)

// String returns the role in lower case.
func (r Role) String() string {
	switch r {
	case Leader:
		return "leader"
	case Follower:
		return "follower"
	default:
		return "offline"
	}
}

// RoleIn returns what a node is to a partition.
func RoleIn(assignment cluster.Partition, node cluster.NodeID) Role {
	switch {
	case assignment.Leader == node:
		return Leader
	case assignment.Leader != cluster.NoNode && slices.Contains(assignment.Replicas, node):
		return Follower
	default:
		return Offline
	}
}

// Roles counts partitions by what this node is to them.
type Roles struct{ Leaders, Followers int }

// Add counts n partitions more, or less.
func (r *Roles) Add(role Role, n int) {
	switch role {
	case Leader:
		r.Leaders += n
	case Follower:
		r.Followers += n
	case Offline:
	}
}

// Partition is one replica. Its methods may be called concurrently.
type Partition struct {
	// Immutable.
	host  *Host
	topic *Topic
	log   Log
	index int32

	// appending orders what is pushed to the store and guards the fields up to
	// mu. It is taken before mu.
	appending sync.Mutex
	// next is the offset of the next record.
	next int64
	// producers is nil until the first append of an idempotent producer; until
	// then loaded has what the log was opened with.
	producers *rules.Producers
	loaded    []store.Producer
	// appendTime is the last LogAppendTime given, in milliseconds since the Unix
	// epoch: the times in a log do not go back when the clock does.
	appendTime int64
	// checkpointed is the high watermark in the last state record.
	checkpointed int64
	// logStartNext is the log start in the last state record, which readers see
	// once it is durable.
	logStartNext int64
	// coordinatorEpoch is the highest that has appended.
	coordinatorEpoch int64

	// mu guards the fields below.
	mu         sync.Mutex
	role       Role
	known      bool // Whether an assignment was applied.
	sweeping   bool // Whether the host looks for overdue acknowledgements here.
	marked     bool // Whether the host has the high watermark to checkpoint.
	assignment cluster.Partition
	// unavailable is why the partition serves nobody any more.
	unavailable error
	// epochs is shared with state records and replaced, never changed.
	epochs rules.Epochs
	// stored is epochs in the form of state records, shared likewise.
	stored []store.EpochStart
	// epochStart is where the present leadership begins.
	epochStart    int64
	logStart      int64
	logEnd        int64
	highWatermark int64
	// commits are the appends that the store has not confirmed yet.
	commits fifo[commit]
	// forLeader and forAll are appends whose acknowledgement waits for the log
	// end and the high watermark.
	forLeader, forAll fifo[waiter]
	armed             []armedReader
	compaction        compaction
	tail              tail
}

// commit is an append that the store has not confirmed.
type commit struct {
	// logEnd and logStart are those after the append.
	logEnd, logStart int64
	// bytes are given back to the budget.
	bytes int64
	// done may be nil.
	done func(error)
}

// New returns the replica that a log holds. It is offline until
// [Partition.Apply].
func New(host *Host, topic *Topic, index int32, log Log) *Partition {
	state, producers := log.Loaded()
	epochs := make(rules.Epochs, len(state.Epochs))
	for i, e := range state.Epochs {
		epochs[i] = rules.EpochStart(e)
	}
	p := &Partition{
		host:             host,
		topic:            topic,
		log:              log,
		index:            index,
		next:             state.LogEnd,
		loaded:           producers,
		checkpointed:     state.HighWatermark,
		logStartNext:     state.LogStart,
		coordinatorEpoch: state.CoordinatorEpoch,
		epochs:           epochs,
		stored:           state.Epochs,
		logStart:         state.LogStart,
		logEnd:           state.LogEnd,
		highWatermark:    min(max(state.HighWatermark, state.LogStart), state.LogEnd),
	}
	p.assignment.Leader = cluster.NoNode
	p.assignment.LeaderEpoch = rules.NoEpoch
	if state.Deleted {
		p.unavailable = p.gone()
	} else if err := log.Err(); err != nil {
		p.unavailable = p.unreadable(state.LogStart, err)
	}
	return p
}

// Topic returns the topic that the partition belongs to.
func (p *Partition) Topic() *Topic { return p.topic }

// Index returns the number of the partition, from 0.
func (p *Partition) Index() int32 { return p.index }

// Role returns what this node is to the partition, and the leader epoch that it
// knows of.
func (p *Partition) Role() (Role, cluster.LeaderEpoch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.role, p.assignment.LeaderEpoch
}

// Apply takes over what the cluster agreed on, and the topic's present settings.
// An assignment older than the one at hand is ignored. A new leader epoch of this node begins at the log's end.
// An append whose acknowledgement is still out when this node stops leading fails
// with an unknown outcome: the next leader may have it.
//
// The error says that the log is newer than the cluster; the partition is not
// served then.
func (p *Partition) Apply(assignment cluster.Partition) error {
	p.appending.Lock()
	defer p.appending.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unavailable != nil {
		return nil
	}
	if p.known && (assignment.PartitionEpoch < p.assignment.PartitionEpoch || assignment.LeaderEpoch < p.assignment.LeaderEpoch) {
		return nil
	}
	if assignment.Leader == p.host.Self() && assignment.LeaderEpoch < p.epochs.Latest() {
		err := p.tooNew(assignment.LeaderEpoch)
		p.shutLocked(err)
		return err
	}
	before, epochBefore := p.role, p.assignment.LeaderEpoch
	p.assignment, p.known = assignment, true
	p.role = RoleIn(assignment, p.host.Self())
	p.host.moved(p, before, p.role)
	if p.role == Leader && (before != Leader || epochBefore != assignment.LeaderEpoch) {
		p.setEpochs(p.epochs.Begin(assignment.LeaderEpoch, p.next))
		p.epochStart = p.next
	}
	if before == Leader && p.role != Leader {
		p.abandonLocked(rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
			"the records were appended to %s, but this node stopped leading it in leader epoch %d before they were acknowledged; an idempotent producer may repeat them with the same sequence number",
			p.name(), epochBefore))
	}
	if p.role != before || epochBefore != assignment.LeaderEpoch {
		p.wakeLocked()
	}
	p.advanceLocked()
	p.soilLocked()
	return nil
}

// setEpochs replaces the epoch table; appending and mu are held.
func (p *Partition) setEpochs(epochs rules.Epochs) {
	stored := make([]store.EpochStart, len(epochs))
	for i, e := range epochs {
		stored[i] = store.EpochStart(e)
	}
	p.epochs, p.stored = epochs, stored
}

// Delete makes the partition serve nobody from now on and records that it is
// deleted. done is called once the record is durable, or with the error.
func (p *Partition) Delete(done func(error)) {
	p.close(p.gone())
	p.appending.Lock()
	defer p.appending.Unlock()
	p.writeAppending(func(s *store.State) { s.Deleted = true }, done)
}

// wait returns what comes from durable, or the error of ctx.
func wait(ctx context.Context, durable <-chan error) error {
	select {
	case err := <-durable:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close makes the partition refuse all callers; the store must still be open.
// Appends whose outcome is not known yet fail as such.
func (p *Partition) Close() {
	p.close(p.closing())
}

func (p *Partition) close(cause error) {
	p.appending.Lock()
	defer p.appending.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shutLocked(cause)
}

// shutLocked makes the partition unavailable for good.
func (p *Partition) shutLocked(cause error) {
	if p.unavailable == nil {
		p.unavailable = cause
	}
	p.host.moved(p, p.role, Offline)
	p.role = Offline
	p.abandonLocked(rpcerr.New(errorsv1.Reason_REASON_TIMED_OUT,
		"the records were appended to %s, but their acknowledgement did not come before the partition was closed on this node; an idempotent producer may repeat them with the same sequence number", p.name()))
	p.host.tails.drop(&p.tail)
	p.wakeLocked()
}

// Checkpoint queues a state record if the high watermark has moved since the
// last one.
func (p *Partition) Checkpoint() {
	p.appending.Lock()
	defer p.appending.Unlock()
	p.mu.Lock()
	p.marked = false
	due := p.highWatermark > p.checkpointed && p.unavailable == nil
	p.mu.Unlock()
	if due {
		p.writeAppending(nil, nil)
	}
}

// writeAppending queues a state record without batches; appending is held. change
// and done may be nil.
func (p *Partition) writeAppending(change func(*store.State), done func(error)) {
	p.mu.Lock()
	state := p.stateLocked()
	if change != nil {
		change(&state)
	}
	p.commits.push(commit{logEnd: p.next, logStart: state.LogStart, done: done})
	p.mu.Unlock()
	p.log.Append(store.Append{Set: p.topic.set(), State: state}, p.committed)
}

// stateLocked is the state record after what was appended so far; appending and
// mu are held.
func (p *Partition) stateLocked() store.State {
	p.checkpointed = p.highWatermark
	return store.State{
		LogStart:         p.logStartNext,
		LogEnd:           p.next,
		HighWatermark:    p.highWatermark,
		Epochs:           p.stored,
		CoordinatorEpoch: p.coordinatorEpoch,
	}
}

// committed is called by the store, once for each append and in their order.
func (p *Partition) committed(err error) {
	p.mu.Lock()
	c := p.commits.pop()
	if err != nil {
		p.shutLocked(p.failed(err))
	} else {
		p.logEnd = c.logEnd
		if c.logStart > p.logStart {
			p.logStart = c.logStart
			p.wakeLocked()
		}
		for p.forLeader.len() > 0 && p.forLeader.front().end <= p.logEnd {
			p.forLeader.pop().complete()
		}
		p.advanceLocked()
	}
	p.mu.Unlock()
	p.host.budget.Release(c.bytes)
	if c.done != nil {
		if err != nil {
			err = p.failed(err)
		}
		c.done(err)
	}
}

// advanceLocked moves the high watermark as far as the rules allow, completes
// what waited for it and wakes readers.
func (p *Partition) advanceLocked() {
	if p.role != Leader {
		return
	}
	next := rules.HighWatermark{
		Leader:            p.host.Self(),
		Current:           p.highWatermark,
		LogEnd:            p.logEnd,
		ISR:               p.assignment.ISR,
		Replicas:          len(p.assignment.Replicas),
		MinInsyncReplicas: p.topic.Config().MinInsyncReplicas,
	}.Advance()
	if next == p.highWatermark {
		return
	}
	p.highWatermark = next
	for p.forAll.len() > 0 && p.forAll.front().end <= next {
		p.forAll.pop().complete()
	}
	p.wakeLocked()
	p.soilLocked()
	if !p.marked {
		p.marked = true
		p.host.checkpoints.add(p)
	}
}

// abandonLocked fails every append that waits for its acknowledgement.
func (p *Partition) abandonLocked(cause error) {
	for _, waiting := range [...]*fifo[waiter]{&p.forLeader, &p.forAll} {
		for waiting.len() > 0 {
			waiting.pop().fail(cause)
		}
	}
}

// expire fails the appends whose time is up, and asks to be called again while
// others wait.
func (p *Partition) expire(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	expired := func(w *waiter) bool {
		if now.Before(w.deadline) {
			return false
		}
		w.fail(p.overdueLocked())
		return true
	}
	p.forLeader.removeFunc(expired)
	p.forAll.removeFunc(expired)
	p.sweeping = p.forLeader.len()+p.forAll.len() > 0
	if p.sweeping {
		p.host.overdue.add(p)
	}
}

// overdueLocked says why an acknowledgement did not come.
func (p *Partition) overdueLocked() error {
	need := rules.EffectiveMinInsync(p.topic.Config().MinInsyncReplicas, len(p.assignment.Replicas))
	if have := len(p.assignment.ISR); have < need {
		return rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
			"the records were appended to %s, but it has %d in-sync replicas and needs %d to acknowledge them; bring replicas back, and repeat them with the same sequence number",
			p.name(), have, need)
	}
	return rpcerr.New(errorsv1.Reason_REASON_TIMED_OUT,
		"the records were appended to %s, but not acknowledged within timeout_ms; raise it, or repeat them with the same sequence number", p.name())
}
