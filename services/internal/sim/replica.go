package sim

import (
	"slices"
	"sort"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// windowBatches bounds what is sent to a follower in one message.
const windowBatches = 8

// replica is the I/O around one rules.Replica: its file, its followers or its
// leader, and the producers that wait. It lives as long as the process.
type replica struct {
	n     *node
	w     *world
	index int
	topic topic
	rules rules.Replica
	file  *file

	batches   []batch
	producers *rules.Producers
	holes     holes
	// verified is up to where the log is known to agree with what is committed.
	verified int64
	// checkedHigh is the high watermark that was checked last.
	checkedHigh int64
	// agrees says that the log is known to be a part of that of a leader since the last
	// unclean election.
	agrees bool

	// flushing says that a write is under way, cutting that it has a truncation in it:
	// until that is durable nothing else happens to the log.
	flushing, cutting bool
	// assigned waits for the cut.
	assigned *cluster.Partition

	// sent is up to where each node was sent what it has not shown yet; -1 for a node
	// that has shown nothing in this leadership.
	sent []int64
	// lives are those of the processes that have shown it.
	lives   []int
	waiters []waiter
	// deletions are log starts that were asked for and wait for the low watermark.
	deletions []int64
	// fences are claims of coordinators that wait for their confirmation, and probe is
	// the latest that the leader of this epoch has sent.
	fences []fenceCheck
	probe  int64

	// possible is what this leadership has proposed on the partition epoch on, kept
	// apart from what the rules make of it.
	possible  []cluster.NodeID
	on        cluster.PartitionEpoch
	proposing bool
}

// waiter is an append whose acknowledgement waits.
type waiter struct {
	end   int64
	acks  acks
	reply func(produced)
	done  produced
}

func newReplica(n *node, index int, f *file) *replica {
	c := f.read()
	r := &replica{n: n, w: n.w, index: index, topic: n.w.topics[index], file: f, batches: c.batches, producers: c.producers, holes: c.holes, sent: make([]int64, len(n.w.nodes)+1), lives: make([]int, len(n.w.nodes)+1)}
	r.rules = rules.NewReplica(n.id, r.topic.minInsync, c.state)
	if !n.lossy[index] {
		n.w.check.logStart(index, n.id, f.start, r.rules.LogStart())
	}
	r.rules.SetFailed(f.failed)
	f.start = r.rules.LogStart()
	r.verified, r.checkedHigh = r.rules.LogStart(), r.rules.HighWatermark()
	if len(r.batches) > 0 {
		r.verified = r.batches[0].base
	}
	return r
}

func (r *replica) note(what string, numbers ...int64) { r.w.note(r.index, r.n.name, what, numbers...) }

// state is what is written with every change.
func (r *replica) state() rules.ReplicaLog {
	return rules.ReplicaLog{Epochs: r.rules.Epochs(), LogStart: r.rules.LogStart(), LogEnd: r.rules.Next(), HighWatermark: r.rules.HighWatermark(), CoordinatorEpoch: r.rules.CoordinatorEpoch()}
}

// write queues a write; state is added to it.
func (r *replica) write(o op) {
	o.state, o.clean = r.state(), r.holes.clean
	r.file.ops = append(r.file.ops, o)
	r.flush()
}

// flush writes what is queued, as one group, and syncs it if the topic asks.
func (r *replica) flush() {
	f := r.file
	if r.flushing || f.written == len(f.ops) && (!r.topic.synced || f.synced == f.written) {
		return
	}
	r.flushing = true
	n := len(f.ops)
	after := func(delay time.Duration, run func()) { r.w.after(&r.n.process, delay, run) }
	after(r.w.diskDelay(), func() {
		f.written = max(f.written, n)
		if !r.topic.synced {
			r.committed(n)
			return
		}
		after(r.w.diskDelay(), func() {
			f.synced = max(f.synced, n)
			r.committed(n)
		})
	})
}

// diskDelay is short, but now and then the disk stalls.
func (w *world) diskDelay() time.Duration {
	if !w.calm && w.chance(5) {
		return w.between(0, 2*time.Second)
	}
	return w.between(100*time.Microsecond, 4*time.Millisecond)
}

// committed is called when the first n writes are as durable as the topic asks.
func (r *replica) committed(n int) {
	r.flushing = false
	r.file.start, r.file.clean = r.file.ops[n-1].state.LogStart, r.file.ops[n-1].clean
	if r.cutting && n == len(r.file.ops) {
		r.cutting = false
		if r.file.failed && r.file.whole == n {
			r.file.failed = false
			r.rules.SetFailed(false)
		}
	}
	if !r.cutting {
		// A truncation is only made with nothing queued, and nothing is queued behind it.
		r.rules.Committed(r.file.ops[n-1].state.LogEnd)
		r.rules.StartCommitted(r.file.ops[n-1].state.LogStart)
	}
	r.flush()
	if !r.cutting && r.assigned != nil {
		p := *r.assigned
		r.assigned = nil
		r.assign(p)
	}
	r.moved()
	switch r.rules.Role() {
	case rules.Following:
		r.fetch()
	case rules.Leading:
		r.pushAll()
	case rules.Offline:
	}
}

// setMinInsync takes over the topic's min.insync.replicas.
func (r *replica) setMinInsync(n int) {
	if n != r.topic.minInsync {
		r.topic.minInsync = n
		r.rules.SetMinInsync(n)
		r.moved()
	}
}

// assign takes over what the cluster agreed on.
func (r *replica) assign(p cluster.Partition) {
	if r.cutting {
		if r.assigned == nil || r.assigned.PartitionEpoch < p.PartitionEpoch {
			r.assigned = &p
		}
		return
	}
	before := r.rules.Epoch()
	r.applied(before, r.rules.Apply(p, r.w.time()))
}

// applied follows what an assignment has changed.
func (r *replica) applied(before cluster.LeaderEpoch, a rules.Applied) {
	if a.Stale {
		return
	}
	if a.TooNew {
		r.w.check.fail(9, r.index, "node %d finds its log newer than leader epoch %d", r.n.id, r.rules.Epoch())
		return
	}
	p, _ := r.rules.Assignment()
	if p.PartitionEpoch != r.on || a.Began {
		r.possible, r.on = nil, p.PartitionEpoch
	}
	if before != p.LeaderEpoch {
		r.probe = 0
	}
	if a.Ended {
		r.fail()
	}
	if a.Began {
		r.note("leads", int64(p.LeaderEpoch), r.rules.EpochStart(), r.rules.HighWatermark())
		for i := range r.sent {
			r.sent[i] = -1
		}
		r.w.checkLeads(r)
	}
	if before != p.LeaderEpoch && r.rules.Role() == rules.Following {
		r.note("follows", int64(p.Leader), int64(p.LeaderEpoch), r.rules.LogEnd())
	}
	r.moved()
	if r.rules.Role() == rules.Following && before != p.LeaderEpoch {
		r.fetch()
	}
}

// fail answers all that wait: the next leader may have what they appended.
func (r *replica) fail() {
	waiting, fences := r.waiters, r.fences
	r.waiters, r.deletions, r.fences = nil, nil, nil
	for _, x := range waiting {
		x.done.outcome = producedUnknown
		x.reply(x.done)
	}
	for _, f := range fences {
		f.reply(groups.Refused)
	}
}

// moved looks at what a change of the replica allows: acknowledgements, and news for
// the followers.
func (r *replica) moved() {
	r.w.checkReplica(r)
	kept := r.waiters[:0]
	for _, x := range r.waiters {
		reached := r.rules.HighWatermark()
		if x.acks == acksLeader {
			reached = r.rules.LogEnd()
		}
		if x.end > reached {
			kept = append(kept, x)
			continue
		}
		if x.acks == acksAll {
			r.w.checkAcknowledges(r, x.end)
		}
		x.reply(x.done)
	}
	r.waiters = kept
	r.confirm()
	r.deletions = slices.DeleteFunc(r.deletions, func(start int64) bool {
		if r.rules.Role() != rules.Leading || start > r.rules.LowWatermark() {
			return false
		}
		r.note("has deleted", start)
		r.w.counts.Deletions++
		r.w.check.deletes(r.index, r.rules.Epoch(), start)
		return true
	})
}

// tick looks after what is late.
func (r *replica) tick() {
	switch r.rules.Role() {
	case rules.Following:
		r.propose()
		r.fetch()
	case rules.Leading:
		r.propose()
		r.w.checkReplica(r)
	case rules.Offline:
	}
	if !r.cutting && r.w.chance(100) && r.rules.Next() > 0 {
		r.write(op{kind: opState})
	}
	if r.topic.offsets && !r.cutting && !r.file.failed && r.w.chance(150) {
		r.compact()
	}
}

// propose asks for another ISR, if it should change, or to be counted on no more, and
// asks again for what is not answered.
func (r *replica) propose() {
	if r.rules.Role() == rules.Offline || r.cutting {
		return
	}
	r.rules.Propose(r.w.time(), r.w.settings.maxLag, r.n.live)
	p, ok := r.rules.Proposal()
	if !ok || r.proposing {
		return
	}
	r.proposing = true
	isr := int64(0)
	for _, m := range p.ISR {
		isr = isr*10 + int64(m.Node)
		if !slices.Contains(r.possible, m.Node) {
			r.possible = append(r.possible, m.Node)
		}
	}
	if p.Withdraws {
		r.w.counts.Withdrawals++
	}
	r.note("proposes", int64(p.LeaderEpoch), int64(p.PartitionEpoch), isr)
	c := r.w.anyController()
	id, epoch := r.n.id, r.n.epoch
	r.w.call(&r.n.process, c, func(answer func(any)) { c.alter(id, epoch, r.index, p, answer) }, func(answer any, known bool) {
		r.proposing = false
		a, ok := answer.(altered)
		if !known || !ok {
			return // The tick asks again.
		}
		r.note("answered", int64(p.PartitionEpoch), int64(a.partition.PartitionEpoch), number(a.accepted))
		before := r.rules.Epoch()
		r.applied(before, r.rules.Answer(p, a.accepted, a.partition, r.w.time()))
	})
}

// at returns the batch that holds an offset.
func (r *replica) at(offset int64) (batch, bool) {
	i := sort.Search(len(r.batches), func(i int) bool { return r.batches[i].last >= offset })
	if i == len(r.batches) || r.batches[i].base > offset {
		return batch{}, false
	}
	return r.batches[i], true
}
