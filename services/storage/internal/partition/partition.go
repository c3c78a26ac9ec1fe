// Package partition is one replica of one partition: it appends batches, keeps
// the high watermark, acknowledges, serves readers and followers, and follows a
// leader. What is to be done a [rules.Replica] decides; this package does it.
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
	Loaded() (store.State, store.PackedProducers)
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
	// Restart drops all of the log, which begins anew, empty, at the log start and log
	// end of the state.
	Restart(ctx context.Context, set store.Set, state store.State) error
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

// Roles counts partitions by what this node is to them.
type Roles struct{ Leaders, Followers int }

// Add counts n partitions more, or less.
func (r *Roles) Add(role rules.Role, n int) {
	switch role {
	case rules.Leading:
		r.Leaders += n
	case rules.Following:
		r.Followers += n
	case rules.Offline:
	}
}

// Partition is one replica. Its methods may be called concurrently.
type Partition struct {
	// Immutable.
	host  *Host
	topic *Topic
	log   Log
	index int32

	// appending orders what is pushed to the store and guards the fields up to mu,
	// and those that awake says. It is taken before mu.
	appending sync.Mutex
	// loaded are the producers of a log that none of them has appended to since the
	// log was opened, or since the partition has woken up.
	loaded store.PackedProducers
	// appendTime is the last LogAppendTime given, in milliseconds since the Unix
	// epoch: the times in a log do not go back when the clock does.
	appendTime int64

	// mu guards the fields below. It is taken with [Partition.lock], but for a few
	// that leave a partition asleep.
	mu sync.Mutex
	// assigned is where the assignment lies that was applied last; nil where nobody
	// has said.
	assigned *cluster.Partition
	// awake is nil while the partition is asleep, see [Partition.rest]. It changes
	// from nil under mu, and to nil under appending and mu.
	*awake
}

// awake is what a partition holds in memory while it is in use. mu guards it, but
// for the fields that appending does.
type awake struct {
	// sweeping says that the host looks for overdue acknowledgements here, and marked
	// that it has the high watermark to checkpoint.
	sweeping, marked bool
	// rested counts the visits since the last use, see [Partition.rest].
	rested uint8
	// producers is nil until the first append of an idempotent producer; until
	// then loaded has them. appending guards it.
	producers *rules.Producers
	// checkpointed is the high watermark in the last state record; appending guards
	// it.
	checkpointed int64
	// replica decides. What it knows of the log's start, of what is queued and of
	// epochs changes only while appending is held, too.
	replica rules.Replica
	// unavailable is why the partition serves nobody any more.
	unavailable error
	// commits are the appends that the store has not confirmed yet.
	commits fifo[commit]
	// forLeader and forAll are appends whose acknowledgement waits for the log
	// end and the high watermark.
	forLeader, forAll fifo[waiter]
	// news is who waits for news; nil before the first.
	news       *news
	compaction compaction
	tail       tail
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
	p := &Partition{host: host, topic: topic, log: log, index: index, loaded: producers}
	p.awake = p.wakenedBy(state)
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
func (p *Partition) Role() (rules.Role, cluster.LeaderEpoch) {
	p.lock()
	defer p.mu.Unlock()
	return p.roleLocked(), p.replica.Epoch()
}

func (p *Partition) roleLocked() rules.Role {
	if p.unavailable != nil {
		return rules.Offline
	}
	return p.replica.Role()
}

// Apply takes over what the cluster agreed on, and the topic's present settings.
// An assignment older than the one at hand is ignored. A new leader epoch of this node begins at the log's end.
// An append whose acknowledgement is still out when this node stops leading fails
// with an unknown outcome: the next leader may have it.
//
// The error says that the log is newer than the cluster; the partition is not
// served then.
func (p *Partition) Apply(assignment cluster.Partition) error {
	return p.apply(func() rules.Applied { return p.replica.Apply(assignment, time.Now()) })
}

// apply acts on what the replica makes of a new assignment.
func (p *Partition) apply(change func() rules.Applied) error {
	p.appending.Lock()
	defer p.appending.Unlock()
	p.lock()
	defer p.mu.Unlock()
	if p.unavailable != nil {
		return nil
	}
	role, epoch, highWatermark := p.replica.Role(), p.replica.Epoch(), p.replica.HighWatermark()
	p.replica.SetMinInsync(p.topic.Config().MinInsyncReplicas)
	p.replica.SetFailed(p.log.Failed() != nil)
	applied := change()
	if applied.TooNew {
		err := p.tooNew()
		p.shutLocked(err)
		return err
	}
	now := p.replica.Role()
	known, _ := p.replica.Assignment()
	p.host.moved(p, role, now, len(known.Replicas))
	if applied.Ended && now != rules.Leading {
		p.abandonLocked(rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
			"the records were appended to %s, but this node stopped leading it in leader epoch %d before they were acknowledged; an idempotent producer may repeat them with the same sequence number",
			p.name(), epoch))
		p.undeletedLocked(p.notLeaderLocked())
	}
	if applied.Ended {
		p.unconfirmedLocked(p.overLocked(epoch))
	}
	if now != role || p.replica.Epoch() != epoch {
		p.wakeLocked()
	}
	p.movedLocked(highWatermark)
	p.soilLocked()
	return nil
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
	p.lock()
	defer p.mu.Unlock()
	p.shutLocked(cause)
}

// shutLocked makes the partition unavailable for good.
func (p *Partition) shutLocked(cause error) {
	p.host.moved(p, p.roleLocked(), rules.Offline, 0)
	if p.unavailable == nil {
		p.unavailable = cause
	}
	p.abandonLocked(rpcerr.New(errorsv1.Reason_REASON_TIMED_OUT,
		"the records were appended to %s, but their acknowledgement did not come before the partition was closed on this node; an idempotent producer may repeat them with the same sequence number", p.name()))
	p.undeletedLocked(p.unavailable)
	p.unconfirmedLocked(p.unavailable)
	p.host.tails.drop(&p.tail)
	p.wakeLocked()
}

// Checkpoint queues a state record if the high watermark has moved since the
// last one.
func (p *Partition) Checkpoint() {
	p.appending.Lock()
	defer p.appending.Unlock()
	p.mu.Lock()
	if p.awake == nil {
		p.mu.Unlock()
		return
	}
	p.marked = false
	due := p.replica.HighWatermark() > p.checkpointed && p.unavailable == nil
	p.mu.Unlock()
	if due {
		p.writeAppending(nil, nil)
	}
}

// writeAppending queues a state record without batches; appending is held. change
// and done may be nil.
func (p *Partition) writeAppending(change func(*store.State), done func(error)) {
	p.lock()
	state := p.stateLocked()
	if change != nil {
		change(&state)
	}
	p.commits.push(commit{logEnd: state.LogEnd, logStart: state.LogStart, done: done})
	p.mu.Unlock()
	p.log.Append(store.Append{Set: p.topic.set(), State: state}, p.committed)
}

// stateLocked is the state record after what was appended so far; appending and
// mu are held.
func (p *Partition) stateLocked() store.State {
	p.checkpointed = p.replica.HighWatermark()
	return store.State{
		LogStart:         p.replica.LogStart(),
		LogEnd:           p.replica.Next(),
		HighWatermark:    p.checkpointed,
		Epochs:           p.replica.Epochs(),
		CoordinatorEpoch: int64(p.replica.CoordinatorEpoch()),
	}
}

// committed is called by the store, once for each append and in their order.
func (p *Partition) committed(err error) {
	p.lock()
	c := p.commits.pop()
	if err != nil {
		p.shutLocked(p.failed(err))
	} else {
		logStart, logEnd, highWatermark := p.replica.StartWritten(), p.replica.LogEnd(), p.replica.HighWatermark()
		p.replica.Committed(c.logEnd)
		p.replica.StartCommitted(c.logStart)
		if p.replica.StartWritten() > logStart {
			p.wakeLocked()
		}
		for p.forLeader.len() > 0 && p.forLeader.front().end <= p.replica.LogEnd() {
			p.forLeader.pop().complete()
		}
		if p.replica.LogEnd() > logEnd {
			p.news.wakeFollowers()
		}
		p.movedLocked(highWatermark)
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

// movedLocked acts on how far the high watermark has moved since, the low one, and the
// probes that were answered: it completes what waited for them and wakes readers.
func (p *Partition) movedLocked(since int64) {
	p.deletedLocked()
	p.confirmedLocked()
	now := p.replica.HighWatermark()
	if now <= since {
		return
	}
	for p.forAll.len() > 0 && p.forAll.front().end <= now {
		w := p.forAll.pop()
		w.result.HighWatermark = now
		w.complete()
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
	p.lock()
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
	if have, need := p.replica.InSync(); have < need {
		return rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
			"the records were appended to %s, but it has only %d in sync, and acks=all needs min.insync.replicas=%d; bring replicas back, and repeat them with the same sequence number",
			p.name(), have, need)
	}
	return rpcerr.New(errorsv1.Reason_REASON_TIMED_OUT,
		"the records were appended to %s, but not acknowledged within timeout_ms; raise it, or repeat them with the same sequence number", p.name())
}
