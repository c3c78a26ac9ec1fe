package partition

import (
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// A partition that nobody uses falls asleep: it forgets what it would find in its
// log and its assignment, which is nearly all, and its part of the tail cache.
// Whoever locks it next wakes it up, so that nobody who holds a [Partition] need
// know, and it may fall asleep at any moment in which neither lock is held.
//
// Only a leader without followers does. Of the others part of what they know lies
// at other nodes: a leader has the positions that its followers have stated, which
// state them again only once there is more to fetch, and a follower has promised a
// position to its leader. Neither could be had again without asking.

// restsAfter is how many visits of the host, a [Config.RetentionEvery] apart, find
// a partition unused before it falls asleep.
const restsAfter = 2

// givesBack is how many partitions fall asleep before their memory is given back to
// the system at once: an idle process collects no garbage for minutes.
const givesBack = 1000

// lock takes mu, and wakes the partition up.
func (p *Partition) lock() {
	p.mu.Lock()
	if p.awake == nil {
		p.awake = p.wakenedBy(p.state())
		p.replica.SetFailed(p.log.Failed() != nil)
		p.replica.Apply(*p.assigned, time.Now())
		p.host.metrics.asleep.Dec()
	}
	p.rested = 0
}

// state is that of the log with all that is written.
func (p *Partition) state() store.State {
	state, _ := p.log.Loaded()
	return state
}

// wakenedBy returns what a partition without an assignment knows of its log.
func (p *Partition) wakenedBy(state store.State) *awake {
	return &awake{
		checkpointed: state.HighWatermark,
		replica: rules.NewReplica(p.host.Self(), p.topic.Config().MinInsyncReplicas, rules.ReplicaLog{
			Epochs: state.Epochs, LogStart: state.LogStart, LogEnd: state.LogEnd, HighWatermark: state.HighWatermark,
			CoordinatorEpoch: cluster.CoordinatorEpoch(state.CoordinatorEpoch),
		}),
	}
}

// Share says where the assignment lies that was applied last, or an equal one. It
// must not change any more. A partition that was not told so does not fall asleep.
func (p *Partition) Share(assignment *cluster.Partition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awake != nil || p.assigned.PartitionEpoch == assignment.PartitionEpoch {
		p.assigned = assignment
	}
}

// rest is a visit of the host, and lets the partition fall asleep if it was not used
// since the visits before. It reports whether it does.
func (p *Partition) rest() bool {
	if !p.appending.TryLock() {
		return false
	}
	defer p.appending.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awake == nil || !p.idleLocked() {
		return false
	}
	if p.rested++; p.rested < restsAfter {
		return false
	}
	if p.producers != nil {
		p.loaded = storedProducers(p.producers)
	}
	p.host.tails.drop(&p.tail)
	p.awake = nil
	p.host.metrics.asleep.Inc()
	return true
}

// idleLocked says that the partition knows nothing but what its log and its
// assignment say, and that nobody waits for anything; appending is held.
func (p *Partition) idleLocked() bool {
	if p.unavailable != nil || p.log.Failed() != nil || p.sweeping || p.marked || p.compaction.queued ||
		p.commits.len() > 0 || p.forLeader.len() > 0 || p.forAll.len() > 0 || p.news.waiting() {
		return false
	}
	known, _ := p.replica.Assignment()
	return p.assigned != nil && p.assigned.PartitionEpoch == known.PartitionEpoch && p.assigned.LeaderEpoch == known.LeaderEpoch &&
		p.replica.Alone() && p.replica.HighWatermark() == p.replica.Next() && p.checkpointed == p.replica.HighWatermark() &&
		p.replica.StartWritten() == p.replica.LogStart()
}

// storedProducers returns what is remembered of producers as a log has it.
func storedProducers(p *rules.Producers) store.PackedProducers {
	list := make([]store.Producer, 0, p.Len())
	for state := range p.All() {
		list = append(list, storedProducer(state))
	}
	return store.PackProducers(list)
}
