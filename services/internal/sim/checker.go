package sim

import (
	"fmt"
	"math"
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// Violation is an invariant that does not hold. Partition is -1 if it is about none.
type Violation struct {
	Invariant int
	Partition int
	Text      string
}

// checker remembers what has happened and finds the first violation. It knows facts
// only, not the model that they come from, so that it can be fed wrong ones.
type checker struct {
	partitions []*history
	violation  *Violation
	term       int64
	nextValue  int64
	nextID     int64
	// clock numbers what happens to registers.
	clock  int64
	counts Counts
}

// history is what has happened to a partition.
type history struct {
	// committed is every batch that a high watermark has passed, and at holds the
	// index of the batch of each offset.
	committed []batch
	at        []int32
	// values are those of committed, with their base offsets.
	values map[int64]int64
	failed map[int64]bool
	// sequences holds the next sequence of each producer.
	sequences map[int64]int32
	// acked is what was acknowledged by all: values and base offsets, in that order.
	acked []ackedBatch
	// start is the highest log start that was asked for.
	start int64
	// deletions are the log starts that leaders have answered for, in the leader epochs
	// in which they did.
	deletions []rules.EpochStart
	// reached holds, for each leader epoch in which something was committed, up to where.
	reached []rules.EpochStart
	// leaders holds who was given each leader epoch.
	leaders map[cluster.LeaderEpoch]cluster.NodeID
	// unclean is the newest leader epoch that an operator has given to a replica that
	// may lack records, or [rules.NoEpoch]. What leaders of earlier epochs do from then
	// on counts no more.
	unclean cluster.LeaderEpoch
	// excused says that the log of that leader is not known yet, which decides what
	// was lost. Until then nothing is held against anybody.
	excused bool
	// lostFrom is the lowest offset at which an unclean election has lost something.
	lostFrom int64
}

type ackedBatch struct{ value, base int64 }

func newChecker(topics []topic) *checker {
	k := &checker{}
	for range topics {
		k.partitions = append(k.partitions, &history{
			values: make(map[int64]int64), failed: make(map[int64]bool), sequences: make(map[int64]int32), leaders: make(map[cluster.LeaderEpoch]cluster.NodeID),
			unclean: rules.NoEpoch, lostFrom: math.MaxInt64,
		})
	}
	return k
}

func (k *checker) newValue() int64 { k.nextValue++; return k.nextValue }

func (k *checker) tick() int64 { k.clock++; return k.clock }

func (k *checker) producerID() int64 { k.nextID++; return k.nextID }

// fail takes note of the first violation.
func (k *checker) fail(invariant, partition int, format string, args ...any) {
	if k.violation == nil {
		k.violation = &Violation{Invariant: invariant, Partition: partition, Text: fmt.Sprintf(format, args...)}
	}
}

// end is the end of what is committed.
func (h *history) end() int64 { return int64(len(h.at)) }

// commit takes note of what a high watermark has passed.
func (k *checker) commit(p int, b batch) {
	h := k.partitions[p]
	if b.base != h.end() || b.last < b.base {
		k.fail(7, p, "batch %+v is committed behind offset %d", b, h.end())
		return
	}
	if len(h.committed) > 0 && h.committed[len(h.committed)-1].epoch > b.epoch {
		k.fail(9, p, "batch %+v is committed behind %+v", b, h.committed[len(h.committed)-1])
	}
	if before, twice := h.values[b.value]; twice && before >= h.start {
		k.fail(3, p, "value %d is committed at %d and at %d", b.value, before, b.base)
	}
	if h.failed[b.value] {
		k.fail(4, p, "value %d, which had failed, is committed at %d", b.value, b.base)
	}
	if next, known := h.sequences[b.producer.ID]; b.coordinator == 0 && known && next != b.producer.BaseSequence {
		if _, twice := h.values[b.value]; !twice {
			k.fail(6, p, "batch %+v is committed where sequence %d comes next", b, next)
		}
	}
	h.sequences[b.producer.ID] = b.producer.LastSequence + 1
	h.values[b.value] = b.base
	for range b.last - b.base + 1 {
		h.at = append(h.at, int32(len(h.committed)))
	}
	h.committed = append(h.committed, b)
}

// reach notes that a leader has committed up to an offset in its epoch.
func (h *history) reach(epoch cluster.LeaderEpoch, end int64) {
	for i := range h.reached {
		if h.reached[i].Epoch == epoch {
			h.reached[i].StartOffset = end
			return
		}
	}
	h.reached = append(h.reached, rules.EpochStart{Epoch: epoch, StartOffset: end})
}

// before returns the end of what was committed in leader epochs below one.
func (h *history) before(epoch cluster.LeaderEpoch) int64 {
	end := int64(0)
	for _, x := range h.reached {
		if x.Epoch < epoch {
			end = max(end, x.StartOffset)
		}
	}
	return end
}

// leads is a leadership that a node begins with a log that ends at an offset.
func (k *checker) leads(p int, node cluster.NodeID, epoch cluster.LeaderEpoch, end int64) {
	if committed := k.partitions[p].before(epoch); end < committed {
		k.fail(10, p, "node %d leads in epoch %d with a log that ends at %d, and all below %d was committed before", node, epoch, end, committed)
	}
}

// superseded is a leader that moves its high watermark while another one leads in a
// later epoch with a log that ends at an offset.
func (k *checker) superseded(p int, epoch cluster.LeaderEpoch, highWatermark int64, successor cluster.LeaderEpoch, end int64) {
	if successor > epoch && end < highWatermark {
		k.fail(25, p, "the high watermark of epoch %d moves to %d, and the log of the leader of epoch %d ends at %d", epoch, highWatermark, successor, end)
	}
}

// registered is what a process finds of itself in ISR or ELR when it learns of its
// registration: the epoch of the process that is known to have had all, and the
// first one since which every process stopped in good order.
func (k *checker) registered(p int, node cluster.NodeID, epoch, cleanSince cluster.NodeEpoch) {
	if epoch < cleanSince {
		k.fail(26, p, "node %d is in ISR or ELR as the process of epoch %d, and has stopped in good order since %d only", node, epoch, cleanSince)
	}
}

// caughtUp is a node that comes into the ISR with a log that ends at an offset.
func (k *checker) caughtUp(p int, node cluster.NodeID, end, highWatermark, epochStart int64) {
	if end < highWatermark || end < epochStart {
		k.fail(26, p, "node %d comes into the ISR with a log that ends at %d; the leader's high watermark is %d, its epoch starts at %d", node, end, highWatermark, epochStart)
	}
}

// dropsLost is a node that has lost records and drops what is left of its log: the epoch
// of its process that the cluster keeps as one that had all, and whether it is in ISR or
// ELR.
func (k *checker) dropsLost(p int, node cluster.NodeID, epoch cluster.NodeEpoch, member bool) {
	if epoch != 0 && !member {
		k.fail(26, p, "node %d drops what is left of its log, and its process of epoch %d is its claim in an unclean election", node, epoch)
	}
}

// member is the end of the log of a running member of ISR or ELR.
func (k *checker) member(p int, node cluster.NodeID, end int64) {
	if committed := k.partitions[p].end(); end < committed {
		k.fail(11, p, "the log of node %d, in ISR or ELR, ends at %d, and all below %d is committed", node, end, committed)
	}
}

// batchAt returns the batch of a committed offset.
func (h *history) batchAt(offset int64) batch { return h.committed[h.at[offset]] }

// acknowledged is what a client learns of a batch that it sent with acks=all. floor
// is the end of what had been acknowledged when it was sent, epoch that of the leader
// that answered.
func (k *checker) acknowledged(p int, b batch, base, floor int64, epoch cluster.LeaderEpoch) {
	h := k.partitions[p]
	count := b.last - b.base + 1
	switch {
	case !h.binds(epoch):
		return
	case h.failed[b.value]:
		k.fail(4, p, "value %d is acknowledged at %d after it had failed", b.value, base)
	case base+count > h.end():
		k.fail(1, p, "value %d is acknowledged at %d, and committed is what lies below %d", b.value, base, h.end())
	case h.batchAt(base).value != b.value:
		k.fail(2, p, "value %d is acknowledged at %d, where value %d is", b.value, base, h.batchAt(base).value)
	case base < floor:
		k.fail(5, p, "value %d is acknowledged at %d, and was sent after all below %d was", b.value, base, floor)
	}
	h.acked = append(h.acked, ackedBatch{b.value, base})
}

// failed is what a client learns of a batch that was refused each time.
func (k *checker) failed(p int, value int64) {
	h := k.partitions[p]
	h.failed[value] = true
	if at, seen := h.values[value]; seen {
		k.fail(4, p, "value %d has failed and is committed at %d", value, at)
	}
}

// lostSequence is what a producer with acks=all learns that did nothing wrong.
func (k *checker) lostSequence(p int, id int64, sequence int32, outcome producedOutcome) {
	h := k.partitions[p]
	if h.unclean == rules.NoEpoch && h.start == 0 {
		k.fail(3, p, "producer %d is refused sequence %d, which is its next: outcome %d", id, sequence, outcome)
	}
}

// consumed is a batch that a consumer read, which is at an offset and has read
// value right before. epoch is that of the leader that served it.
func (k *checker) consumed(p int, offset, value int64, b batch, epoch cluster.LeaderEpoch) {
	h := k.partitions[p]
	switch {
	case offset < b.base || offset > b.last:
		k.fail(17, p, "batch %+v is read at %d", b, offset)
	case !h.binds(epoch):
	case b.last >= h.end():
		k.fail(16, p, "batch %+v is read, and committed is what lies below %d", b, h.end())
	case h.batchAt(b.base) != b:
		k.fail(16, p, "batch %+v is read where %+v is committed", b, h.batchAt(b.base))
	case value != 0 && offset > 0 && h.batchAt(offset-1).value != value:
		k.fail(19, p, "batch %+v is read after value %d, which was replaced by %d", b, value, h.batchAt(offset-1).value)
	case h.failed[b.value]:
		k.fail(4, p, "value %d, which had failed, is read", b.value)
	}
}

// truncated is what a consumer is told of its position.
func (k *checker) truncated(p int, offset, end int64) {
	if offset <= k.partitions[p].lostFrom {
		k.fail(16, p, "a consumer at %d is told that the log was truncated at %d", offset, end)
	}
}

// latest is what a client is told of the end of a partition by a leader of an epoch.
// acked and seen are the ends that it had been told of before it asked, since the
// last unclean election.
func (k *checker) latest(p int, latest, acked, seen int64, epoch cluster.LeaderEpoch) {
	switch h := k.partitions[p]; {
	case !h.binds(epoch):
	case latest < acked:
		k.fail(18, p, "the latest offset is %d, and all below %d was acknowledged", latest, acked)
	case latest < seen:
		k.fail(15, p, "the latest offset is %d after %d", latest, seen)
	}
}

// deleted is a log start that is asked for.
func (k *checker) deleted(p int, offset int64) {
	h := k.partitions[p]
	h.start = max(h.start, offset)
}

// deletes is the answer of a leader of an epoch that all below an offset is deleted.
func (k *checker) deletes(p int, epoch cluster.LeaderEpoch, offset int64) {
	h := k.partitions[p]
	h.deletions = append(h.deletions, rules.EpochStart{Epoch: epoch, StartOffset: offset})
}

// serves is a leader of an epoch with a log that begins at an offset. What leaders
// before an unclean election have answered does not bind those after.
func (k *checker) serves(p int, node cluster.NodeID, epoch cluster.LeaderEpoch, start int64) {
	h := k.partitions[p]
	if !h.binds(epoch) {
		return
	}
	for _, d := range h.deletions {
		if d.Epoch >= h.unclean && d.Epoch <= epoch && start < d.StartOffset {
			k.fail(20, p, "node %d serves from %d on in epoch %d, and in epoch %d all below %d was deleted", node, start, epoch, d.Epoch, d.StartOffset)
		}
	}
}

// memberStart is where the log of a running member of ISR or ELR begins, as durable as
// the topic asks.
func (k *checker) memberStart(p int, node cluster.NodeID, start int64) {
	h := k.partitions[p]
	for _, d := range h.deletions {
		if d.Epoch >= h.unclean && start < d.StartOffset {
			k.fail(20, p, "the log of node %d, in ISR or ELR, begins at %d, and in epoch %d all below %d was deleted", node, start, d.Epoch, d.StartOffset)
		}
	}
}

// logStart is where the log of a replica begins that began at before.
func (k *checker) logStart(p int, node cluster.NodeID, before, now int64) {
	if now < before {
		k.fail(20, p, "the log of node %d begins at %d after %d", node, now, before)
	}
}

// appended is a batch that is added to a log of a node, behind the batch before at
// next. by is the node whose leadership it is of.
func (k *checker) appended(p int, node cluster.NodeID, next int64, before cluster.LeaderEpoch, b batch, leads bool) {
	h := k.partitions[p]
	if b.base != next {
		k.fail(7, p, "node %d appends %+v at %d", node, b, next)
	}
	if b.epoch < before {
		k.fail(9, p, "node %d appends %+v behind epoch %d", node, b, before)
	}
	if leader, known := h.leaders[b.epoch]; leads && (!known || leader != node) {
		k.fail(9, p, "node %d appends %+v, and epoch %d is that of node %d", node, b, b.epoch, leader)
	}
}

// highWatermarkMoved is what a leader did.
type highWatermarkMoved struct {
	node     cluster.NodeID
	epoch    cluster.LeaderEpoch
	to       int64
	isr      []cluster.NodeID // As the leader knows it.
	need     int
	maximal  []cluster.NodeID
	agreed   rules.PartitionState
	isrReach bool // Whether agreed has as many in-sync replicas as it takes.
}

func (k *checker) highWatermark(p int, m highWatermarkMoved) {
	if len(m.isr) < m.need {
		k.fail(13, p, "node %d moves the high watermark to %d with ISR %v", m.node, m.to, m.isr)
	}
	if m.agreed.LeaderEpoch != m.epoch || !m.isrReach {
		return
	}
	for _, id := range slices.Concat(m.agreed.ISR, m.agreed.ELR) {
		if !slices.Contains(m.maximal, id) {
			k.fail(12, p, "node %d moves the high watermark to %d with the maximal ISR %v; agreed are ISR %v and ELR %v", m.node, m.to, m.maximal, m.agreed.ISR, m.agreed.ELR)
		}
	}
}

// memberEnd is where the log of a member of a leader's maximal ISR ends.
func (k *checker) memberEnd(p int, leader, member cluster.NodeID, highWatermark, end int64) {
	if end < highWatermark {
		k.fail(14, p, "the high watermark of node %d is %d, and the log of node %d ends at %d", leader, highWatermark, member, end)
	}
}

// termWrites is a transaction of a term that was written.
func (k *checker) termWrites(create int64) {
	if create < k.term {
		k.fail(23, -1, "the term of revision %d writes after that of %d", create, k.term)
	}
	k.term = max(k.term, create)
}

// agreed is a state of a partition that follows another one. minInsync is the highest
// that its topic has had.
func (k *checker) agreed(p, minInsync int, before rules.PartitionState, existed bool, now rules.PartitionState) {
	h := k.partitions[p]
	fail := func(format string, args ...any) {
		k.fail(22, p, "%s: %+v after %+v", fmt.Sprintf(format, args...), now, before)
	}
	need := rules.EffectiveMinInsync(minInsync, len(now.Replicas))
	for _, id := range slices.Concat(now.ISR, now.ELR) {
		if !slices.Contains(now.Replicas, id) {
			fail("node %d has no replica", id)
		}
	}
	switch {
	case now.Leader != cluster.NoNode && !slices.Contains(now.ISR, now.Leader):
		fail("the leader is not in the ISR")
	case len(now.ISR) >= need && len(now.ELR) > 0:
		fail("there is an ELR beside a full ISR")
	case slices.ContainsFunc(now.ISR, func(id cluster.NodeID) bool { return slices.Contains(now.ELR, id) }):
		fail("ISR and ELR overlap")
	}
	if now.Leader != cluster.NoNode {
		if other, known := h.leaders[now.LeaderEpoch]; known && other != now.Leader {
			fail("leader epoch %d was node %d's", now.LeaderEpoch, other)
		}
		h.leaders[now.LeaderEpoch] = now.Leader
	}
	if !existed {
		return
	}
	switch {
	case now.PartitionEpoch <= before.PartitionEpoch:
		fail("the partition epoch does not rise")
	case now.LeaderEpoch < before.LeaderEpoch:
		fail("the leader epoch falls")
	case now.Leader != before.Leader && now.LeaderEpoch != before.LeaderEpoch+1:
		fail("the leader changes, and its epoch does not rise by one")
	}
}

// unfenced is a member of an ISR that is written, and whether it is new there or the
// new leader. A member that is fenced already may stay for a moment: where the outcome
// of an earlier transaction was unknown, the one that fences may not know of it, and
// the next election makes it good.
func (k *checker) unfenced(p int, node cluster.NodeID, fenced, added, leads bool) {
	if fenced && (added || leads) {
		k.fail(22, p, "node %d is fenced and comes into the ISR (%t) or leads (%t)", node, added, leads)
	}
}

// added is a node that comes into an ISR by the proposal of its leader, as the
// process that had an epoch.
func (k *checker) added(p int, node cluster.NodeID, epoch, registered cluster.NodeEpoch, live bool) {
	if epoch != registered || !live {
		k.fail(24, p, "node %d comes into the ISR with epoch %d; registered is %d, with a lease: %t", node, epoch, registered, live)
	}
}
