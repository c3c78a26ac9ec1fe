package sim

import (
	"testing"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// aBatch is one batch of one record of a producer.
func aBatch(base int64, epoch cluster.LeaderEpoch, value int64, sequence int32) batch {
	return batch{base: base, last: base, epoch: epoch, value: value, producer: rules.ProducerAppend{ID: 7, BaseSequence: sequence, LastSequence: sequence}}
}

// TestCheckerFindsAnomalies plants one anomaly at a time in a good history.
func TestCheckerFindsAnomalies(t *testing.T) {
	t.Parallel()
	three := topic{replicas: 3, minInsync: 2}
	good := rules.PartitionState{Partition: cluster.Partition{
		Leader: 1, LeaderEpoch: 4, PartitionEpoch: 9, Replicas: []cluster.NodeID{1, 2, 3}, ISR: []cluster.NodeID{1, 2}, LastLeader: cluster.NoNode,
	}}
	with := func(change func(*rules.PartitionState)) rules.PartitionState {
		p := good
		p.PartitionEpoch++
		change(&p)
		return p
	}
	agreed := func(change func(*rules.PartitionState)) func(*checker) {
		return func(k *checker) { k.agreed(0, three.minInsync, good, true, with(change)) }
	}
	for _, test := range []struct {
		name      string
		invariant int
		plant     func(*checker)
	}{
		{"nothing", 0, func(*checker) {}},
		{"an ISR change", 0, agreed(func(p *rules.PartitionState) { p.ISR = []cluster.NodeID{1, 2, 3} })},
		{"a good read", 0, func(k *checker) { k.consumed(0, 1, 10, aBatch(1, 3, 11, 1), 4) }},
		{"an acknowledgement of what is not committed", 1, func(k *checker) { k.acknowledged(0, aBatch(0, 0, 12, 2), 2, 0, 4) }},
		{"an acknowledged batch is missing in the end", 1, func(k *checker) { k.finally(0, 0, []batch{aBatch(0, 3, 10, 0)}) }},
		{"an acknowledged batch is elsewhere in the end", 1, func(k *checker) {
			k.finally(0, 0, []batch{aBatch(0, 3, 10, 0), aBatch(1, 3, 12, 2), aBatch(2, 3, 11, 1)})
		}},
		{"two values at one offset", 2, func(k *checker) { k.acknowledged(0, aBatch(0, 0, 99, 5), 1, 0, 4) }},
		{"one value at two offsets", 3, func(k *checker) { k.commit(0, aBatch(2, 3, 11, 1)) }},
		{"one value twice in the end", 3, func(k *checker) {
			k.finally(0, 0, []batch{aBatch(0, 3, 10, 0), aBatch(1, 3, 11, 1), aBatch(2, 3, 11, 1)})
		}},
		{"a forgotten producer", 3, func(k *checker) { k.lostSequence(0, 7, 2, producedForgotten) }},
		{"a failed batch is committed", 4, func(k *checker) { k.failed(0, 12); k.commit(0, aBatch(2, 3, 12, 2)) }},
		{"a committed batch has failed", 4, func(k *checker) { k.failed(0, 11) }},
		{"a later batch before an earlier one", 5, func(k *checker) { k.acknowledged(0, aBatch(0, 0, 10, 0), 0, 2, 4) }},
		{"a gap in the sequence", 6, func(k *checker) { k.commit(0, aBatch(2, 3, 12, 3)) }},
		{"a gap in the offsets", 7, func(k *checker) { k.commit(0, aBatch(3, 3, 12, 2)) }},
		{"a gap in a log", 7, func(k *checker) { k.appended(0, 1, 2, 3, aBatch(3, 4, 12, 2), true) }},
		{"a falling epoch", 9, func(k *checker) { k.commit(0, aBatch(2, 2, 12, 2)) }},
		{"a falling epoch in a log", 9, func(k *checker) { k.appended(0, 1, 2, 5, aBatch(2, 4, 12, 2), true) }},
		{"an append in another's epoch", 9, func(k *checker) { k.appended(0, 2, 2, 3, aBatch(2, 4, 12, 2), true) }},
		{"a leader lacks what is committed", 10, func(k *checker) { k.partitions[0].reach(3, 2); k.leads(0, 1, 4, 1) }},
		{"a superseded leader begins late", 0, func(k *checker) { k.partitions[0].reach(5, 2); k.leads(0, 1, 4, 1) }},
		{"a member of the ISR lacks what is committed", 11, func(k *checker) { k.member(0, 2, 1) }},
		{"a superseded leader commits", 25, func(k *checker) { k.superseded(0, 4, 3, 5, 2) }},
		{"an unclean node in the ISR", 26, func(k *checker) { k.registered(0, 2, 5, 6) }},
		{"a node drops its log and keeps its claim", 26, func(k *checker) { k.dropsLost(0, 2, 5, false) }},
		{"a node comes into the ISR below the high watermark", 26, func(k *checker) { k.caughtUp(0, 2, 4, 5, 0) }},
		{"a node comes into the ISR below the epoch's start", 26, func(k *checker) { k.caughtUp(0, 2, 4, 4, 5) }},
		{"a member outside the maximal ISR", 12, func(k *checker) {
			k.highWatermark(0, highWatermarkMoved{node: 1, epoch: 4, isr: good.ISR, need: 2, maximal: []cluster.NodeID{1, 3}, agreed: good, isrReach: true})
		}},
		{"the high watermark moves below min ISR", 13, func(k *checker) {
			k.highWatermark(0, highWatermarkMoved{node: 1, epoch: 4, isr: good.ISR[:1], need: 2, maximal: good.ISR, agreed: good})
		}},
		{"a member lacks what is committed", 14, func(k *checker) { k.memberEnd(0, 1, 2, 5, 4) }},
		{"the latest offset goes back", 15, func(k *checker) { k.latest(0, 1, 0, 2, 4) }},
		{"another value is read", 16, func(k *checker) { k.consumed(0, 1, 10, aBatch(1, 3, 99, 1), 4) }},
		{"what is not committed is read", 16, func(k *checker) { k.consumed(0, 2, 11, aBatch(2, 3, 12, 2), 4) }},
		{"a truncation of what was read", 16, func(k *checker) { k.truncated(0, 2, 1) }},
		{"an unclean election may cut what was read", 0, func(k *checker) {
			k.electedUncleanly(0, 5)
			k.resumes(0, 5, 0, []batch{aBatch(0, 3, 10, 0)})
			k.truncated(0, 2, 1)
			k.commit(0, aBatch(1, 5, 12, 1))
			k.finally(0, 0, []batch{aBatch(0, 3, 10, 0), aBatch(1, 5, 12, 1)})
		}},
		{"an unclean election cuts more than the leader lacks", 16, func(k *checker) {
			k.electedUncleanly(0, 5)
			k.resumes(0, 5, 0, []batch{aBatch(0, 3, 10, 0)})
			k.truncated(0, 1, 0)
		}},
		{"what an unclean election kept is lost", 1, func(k *checker) {
			k.electedUncleanly(0, 5)
			k.resumes(0, 5, 0, []batch{aBatch(0, 3, 10, 0)})
			k.finally(0, 0, nil)
		}},
		{"what an unclean election cut is read on", 19, func(k *checker) {
			k.electedUncleanly(0, 5)
			k.resumes(0, 5, 0, []batch{aBatch(0, 3, 10, 0)})
			k.commit(0, aBatch(1, 5, 12, 1))
			k.commit(0, aBatch(2, 5, 13, 2))
			k.consumed(0, 2, 11, aBatch(2, 5, 13, 2), 5)
		}},
		{"a read skips", 17, func(k *checker) { k.consumed(0, 0, 0, aBatch(1, 3, 11, 1), 4) }},
		{"the own record is not seen", 18, func(k *checker) { k.latest(0, 1, 2, 0, 4) }},
		{"a consumer is not told of a truncation", 19, func(k *checker) { k.consumed(0, 1, 98, aBatch(1, 3, 11, 1), 4) }},
		{"the log start goes back", 20, func(k *checker) { k.logStart(0, 1, 5, 4) }},
		{"a member of the ISR has what was deleted", 20, func(k *checker) { k.deletes(0, 4, 2); k.memberStart(0, 2, 1) }},
		{"what was deleted is served", 20, func(k *checker) { k.deletes(0, 3, 2); k.serves(0, 1, 4, 1) }},
		{"a superseded leader serves what was deleted since", 0, func(k *checker) { k.deletes(0, 5, 2); k.serves(0, 1, 4, 1) }},
		{"an unclean election brings back what was deleted", 0, func(k *checker) {
			k.deletes(0, 4, 2)
			k.electedUncleanly(0, 5)
			k.resumes(0, 5, 0, []batch{aBatch(0, 3, 10, 0), aBatch(1, 3, 11, 1)})
			k.serves(0, 1, 5, 0)
		}},
		{"the leader is not in the ISR", 22, agreed(func(p *rules.PartitionState) { p.ISR = []cluster.NodeID{2, 3} })},
		{"the leader changes in its epoch", 22, agreed(func(p *rules.PartitionState) { p.Leader = 2 })},
		{"a leader epoch is skipped", 22, agreed(func(p *rules.PartitionState) { p.Leader, p.LeaderEpoch = 2, 6 })},
		{"the partition epoch stands still", 22, agreed(func(p *rules.PartitionState) { p.PartitionEpoch-- })},
		{"the leader epoch falls", 22, agreed(func(p *rules.PartitionState) { p.LeaderEpoch = 3 })},
		{"ELR beside a full ISR", 22, agreed(func(p *rules.PartitionState) { p.ELR = []cluster.NodeID{3} })},
		{"ISR and ELR overlap", 22, agreed(func(p *rules.PartitionState) { p.ISR, p.ELR = []cluster.NodeID{1}, []cluster.NodeID{1} })},
		{"a member without a replica", 22, agreed(func(p *rules.PartitionState) { p.ISR = []cluster.NodeID{1, 4} })},
		{"a fenced node comes into the ISR", 22, func(k *checker) { k.unfenced(0, 3, true, true, false) }},
		{"a fenced node leads", 22, func(k *checker) { k.unfenced(0, 3, true, false, true) }},
		{"a fenced node is still in the ISR", 0, func(k *checker) { k.unfenced(0, 3, true, false, false) }},
		{"an earlier term writes", 23, func(k *checker) { k.termWrites(5); k.termWrites(4) }},
		{"an earlier process comes into the ISR", 24, func(k *checker) { k.added(0, 3, 5, 6, true) }},
		{"a node without a lease comes into the ISR", 24, func(k *checker) { k.added(0, 3, 6, 6, false) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			k := newChecker([]topic{three})
			k.agreed(0, three.minInsync, rules.PartitionState{}, false, good)
			k.commit(0, aBatch(0, 3, 10, 0))
			k.commit(0, aBatch(1, 3, 11, 1))
			k.acknowledged(0, aBatch(0, 0, 10, 0), 0, 0, 4)
			k.acknowledged(0, aBatch(0, 0, 11, 1), 1, 1, 4)
			test.plant(k)
			got := 0
			if k.violation != nil {
				got = k.violation.Invariant
			}
			if got != test.invariant {
				t.Errorf("found %+v, want a violation of invariant %d", k.violation, test.invariant)
			}
			if _, listed := invariants[got]; got != 0 && !listed {
				t.Errorf("invariant %d is not listed", got)
			}
		})
	}
}
