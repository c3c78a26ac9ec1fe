package sim

import (
	"strconv"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// The group of the history, and a partition that it reads.
var (
	readPartition = groups.Partition{Topic: cluster.TopicID{15: 1}}
	readKey       = offsetKey{"g", readPartition}
)

// aMember is a record of a member that has the partition since an epoch, or nothing.
func aMember(id groups.MemberID, epoch, since groups.Epoch) *groups.MemberRecord {
	m := &groups.MemberRecord{Group: "g", Member: id, Epoch: epoch}
	if since > 0 {
		m.Assigned = []groups.Owned{{Partition: readPartition, Since: since}}
	}
	return m
}

// commitsLogged has a member commit an offset in the second session of its process; the log
// has it.
func (h *groupHistory) commitsLogged(commit int64, member groups.MemberID, epoch groups.Epoch, offset int64) {
	h.numberedLogged(commit, 0, member, epoch, offset)
}

// numberedLogged is commitsLogged of a commit with a number.
func (h *groupHistory) numberedLogged(commit int64, sequence groups.CommitSequence, member groups.MemberID, epoch groups.Epoch, offset int64) {
	h.commits[commit] = &commitFact{
		group: "g", member: member, epoch: epoch, partition: readPartition, offset: offset, session: 2, sent: commit, sequence: sequence,
	}
	h.logged(5*time.Second, h.epoch, h.end+1, of(&groups.OffsetRecord{
		Group: "g", Partition: readPartition, TopicName: "t", Offset: offset, Metadata: strconv.FormatInt(commit, 10),
	}))
}

// What is deleted of the history.
var (
	offsetTombstone = &groups.Tombstone{Group: "g", Offset: &readPartition}
	memberTombstone = &groups.Tombstone{Group: "g", Member: "a"}
	groupTombstone  = &groups.Tombstone{Group: "g"}
)

// deletes has the log have tombstones, which somebody has asked for or not.
func (h *groupHistory) deletes(asked bool, tombstones ...groups.Record) {
	d := decision{at: 5 * time.Second, tick: h.k.tick()}
	if asked {
		d.deletions = []groups.Request{
			&groups.DeleteOffsets{Group: "g", Partitions: []groups.Partition{readPartition}}, &groups.DeleteGroup{Group: "g"},
		}
	}
	h.logged(5*time.Second, 1, h.end+int64(len(tombstones)), payload{tombstones, d})
}

// setsLogged has an operator set the offset; the log has it.
func (h *groupHistory) setsLogged(commit int64, at time.Duration, offset int64) {
	h.commits[commit] = &commitFact{group: "g", partition: readPartition, offset: offset, sent: commit}
	h.logged(at, 1, h.end+1, payload{[]groups.Record{&groups.OffsetRecord{
		Group: "g", Partition: readPartition, TopicName: "t", Offset: offset, Metadata: strconv.FormatInt(commit, 10),
	}}, decision{at: at}})
}

// of is a batch of records that a coordinator has decided at 5 s.
func of(records ...groups.Record) payload {
	return payload{records, decision{at: 5 * time.Second}}
}

// TestGroupCheckerFindsAnomalies plants one anomaly at a time in a good history: a, which
// began at 1 s and whose session goes on until 10 s, has processed 3 records, committed
// offset 2 and has been seen to.
func TestGroupCheckerFindsAnomalies(t *testing.T) {
	t.Parallel()
	logged := func(records ...groups.Record) func(*groupHistory) {
		return func(h *groupHistory) { h.logged(5*time.Second, 1, h.end+int64(len(records)), of(records...)) }
	}
	fence := func(epoch cluster.CoordinatorEpoch) []groups.Record {
		return []groups.Record{&groups.FenceRecord{Epoch: epoch}}
	}
	for _, test := range []struct {
		name      string
		invariant int
		plant     func(*groupHistory)
	}{
		{"nothing", 0, func(*groupHistory) {}},
		{"another takes what a has", 27, func(h *groupHistory) { h.session("b", 20*time.Second); h.takes(9*time.Second, "g", readPartition, "b") }},
		{"another takes what a has given up", 0, func(h *groupHistory) {
			h.gives("g", readPartition, "a")
			h.takes(5*time.Second, "g", readPartition, "b")
		}},
		{"another takes what a had when its session was over", 0, func(h *groupHistory) { h.takes(10*time.Second, "g", readPartition, "b") }},
		{"another takes what a had when it died", 0, func(h *groupHistory) { h.ends("a"); h.takes(5*time.Second, "g", readPartition, "b") }},
		{"the log gives a partition to two", 27, logged(aMember("b", 2, 2))},
		{"the log gives what is not given up", 27, func(h *groupHistory) {
			m := aMember("a", 2, 0)
			m.Revoking = []groups.Owned{{Partition: readPartition, Since: 1}}
			h.logged(5*time.Second, 1, h.end+2, of(m, aMember("b", 2, 2)))
		}},
		{"the log gives what is given up", 0, logged(aMember("a", 2, 0), aMember("b", 2, 2))},
		{"the epoch of a group falls", 27, logged(&groups.GroupRecord{Group: "g"})},
		{"the epoch of a member falls", 27, logged(aMember("a", 0, 0))},
		{"an epoch is another assignment", 27, logged(aMember("a", 1, 1), &groups.MemberRecord{
			Group: "g", Member: "a", Epoch: 1, Assigned: []groups.Owned{{Partition: groups.Partition{Topic: readPartition.Topic, Index: 1}, Since: 1}},
		})},
		{"a later offset", 0, func(h *groupHistory) { h.commitsLogged(2, "a", 1, 3) }},
		{"a lower offset of its owner", 28, func(h *groupHistory) { h.commitsLogged(2, "a", 1, 3); h.commitsLogged(3, "a", 1, 2) }},
		{"a late commit of its owner", 0, func(h *groupHistory) { h.commitsLogged(3, "a", 1, 3); h.commitsLogged(2, "a", 1, 2) }},
		{"a late commit of its owner, which numbers them", 28, func(h *groupHistory) {
			h.numberedLogged(2, 6, "a", 1, 3)
			h.numberedLogged(3, 5, "a", 1, 3)
		}},
		{"a commit of its owner, which numbers them, comes twice", 0, func(h *groupHistory) {
			h.numberedLogged(2, 6, "a", 1, 3)
			h.numberedLogged(3, 6, "a", 1, 3)
		}},
		{"a late commit of its owner, of another one's number", 0, func(h *groupHistory) {
			h.numberedLogged(2, 6, "a", 1, 2)
			h.logged(5*time.Second, 1, h.end+2, of(aMember("a", 2, 0), aMember("b", 2, 2)))
			h.numberedLogged(3, 5, "b", 2, 3)
		}},
		{"a lower offset of the next owner", 28, func(h *groupHistory) {
			h.logged(5*time.Second, 1, h.end+2, of(aMember("a", 2, 0), aMember("b", 2, 2)))
			h.commitsLogged(2, "b", 2, 1)
		}},
		{"a commit of nobody", 28, logged(&groups.OffsetRecord{Group: "g", Partition: readPartition, Offset: 3, Metadata: "9"})},
		{"a commit is answered and not in the log", 28, func(h *groupHistory) {
			h.commits[2] = &commitFact{group: "g", member: "a", epoch: 1, partition: readPartition, offset: 3}
			h.wrote(readKey, 7, 8, 2, true)
		}},
		{"a commit is not seen", 28, func(h *groupHistory) {
			h.commitsLogged(2, "a", 1, 3)
			h.wrote(readKey, 7, 8, 2, true)
			h.read(readKey, 9, 10, 1)
		}},
		{"a commit under way is seen", 0, func(h *groupHistory) {
			h.commitsLogged(2, "a", 1, 3)
			h.read(readKey, 8, 9, 2)
			h.wrote(readKey, 7, 10, 2, true)
		}},
		{"a commit without an answer is seen, and then not", 28, func(h *groupHistory) {
			h.commitsLogged(2, "a", 1, 3)
			h.wrote(readKey, 7, 0, 2, false)
			h.read(readKey, 8, 9, 2)
			h.read(readKey, 10, 11, 1)
		}},
		{"a commit without an answer is seen late", 0, func(h *groupHistory) {
			h.k.clock = 9
			h.commitsLogged(2, "a", 1, 3)
			h.wrote(readKey, 7, 0, 2, false)
			h.read(readKey, 8, 9, 1)
			h.read(readKey, 11, 12, 2)
		}},
		{"a commit without an answer is in the log and not seen", 28, func(h *groupHistory) {
			h.k.clock = 9
			h.commitsLogged(2, "a", 1, 3)
			h.wrote(readKey, 7, 0, 2, false)
			h.read(readKey, 11, 12, 1)
		}},
		{"a commit of another", 29, func(h *groupHistory) { h.commitsLogged(2, "b", 1, 3) }},
		{"a commit of an epoch to come", 29, func(h *groupHistory) { h.commitsLogged(2, "a", 2, 3) }},
		{"a commit of an earlier ownership", 29, func(h *groupHistory) {
			h.logged(5*time.Second, 1, h.end+2, of(aMember("a", 2, 0), aMember("a", 3, 3)))
			h.commitsLogged(2, "a", 1, 3)
		}},
		{"a refused commit is in the log", 29, func(h *groupHistory) { h.refused(1) }},
		{"a commit of what was not processed", 30, func(h *groupHistory) { h.commitsLogged(2, "a", 1, 4) }},
		{"an offset is deleted", 0, func(h *groupHistory) { h.deletes(true, offsetTombstone) }},
		{"an offset is deleted that somebody reads", 28, func(h *groupHistory) {
			m := aMember("a", 1, 1)
			m.Subscription.Topics = []string{"t"}
			h.logged(5*time.Second, 1, h.end+1, of(m))
			h.deletes(true, offsetTombstone)
		}},
		{"an offset is deleted that nobody has asked for", 28, func(h *groupHistory) { h.deletes(false, offsetTombstone) }},
		{"an offset of a topic that is deleted goes", 0, func(h *groupHistory) {
			h.removes(readPartition.Topic)
			h.deletes(false, offsetTombstone)
		}},
		{"a group without members is deleted", 0, func(h *groupHistory) { h.deletes(true, memberTombstone, offsetTombstone, groupTombstone) }},
		{"a group with members is deleted", 28, func(h *groupHistory) { h.deletes(true, groupTombstone) }},
		{"a group expires", 0, func(h *groupHistory) {
			h.deletes(false, memberTombstone)
			h.logged(30*time.Second, 1, h.end+1, payload{[]groups.Record{offsetTombstone, groupTombstone}, decision{at: 25 * time.Second}})
		}},
		{"a group expires too soon", 28, func(h *groupHistory) {
			h.deletes(false, memberTombstone)
			h.logged(30*time.Second, 1, h.end+1, payload{[]groups.Record{offsetTombstone, groupTombstone}, decision{at: 24 * time.Second}})
		}},
		{"a group expires too soon after its offset was set", 28, func(h *groupHistory) {
			h.deletes(false, memberTombstone)
			h.setsLogged(2, 15*time.Second, 1)
			h.logged(30*time.Second, 1, h.end+1, payload{[]groups.Record{offsetTombstone, groupTombstone}, decision{at: 25 * time.Second}})
		}},
		{"an offset is set back", 0, func(h *groupHistory) {
			h.deletes(false, memberTombstone)
			h.setsLogged(2, 6*time.Second, 1)
		}},
		{"an offset is set forward, and committed from there on", 0, func(h *groupHistory) {
			h.deletes(false, memberTombstone)
			h.setsLogged(2, 6*time.Second, 7)
			h.logged(7*time.Second, 1, h.end+1, of(aMember("b", 2, 2)))
			h.processes("g", readPartition, 7)
			h.commitsLogged(3, "b", 2, 8)
		}},
		{"an offset is set, and the next owner begins elsewhere", 30, func(h *groupHistory) {
			h.deletes(false, memberTombstone)
			h.setsLogged(2, 6*time.Second, 7)
			h.logged(7*time.Second, 1, h.end+1, of(aMember("b", 2, 2)))
			h.processes("g", readPartition, 8)
			h.commitsLogged(3, "b", 2, 9)
		}},
		{"an offset is set in a group with members", 29, func(h *groupHistory) { h.setsLogged(2, 6*time.Second, 1) }},
		{"a deleted offset is seen", 28, func(h *groupHistory) {
			h.deletes(true, offsetTombstone)
			now := h.k.tick()
			h.read(readKey, now, h.k.tick(), 1)
		}},
		{"a deleted offset is seen no more", 0, func(h *groupHistory) {
			h.deletes(true, offsetTombstone)
			now := h.k.tick()
			h.read(readKey, now, h.k.tick(), 0)
		}},
		{"a deletion is answered", 0, func(h *groupHistory) {
			before := h.records[keyOf(offsetTombstone)].(*groups.OffsetRecord)
			h.deletes(true, offsetTombstone)
			h.deleted([]*groups.OffsetRecord{before})
		}},
		{"a deletion is answered and not in the log", 28, func(h *groupHistory) {
			h.deleted([]*groups.OffsetRecord{h.records[keyOf(offsetTombstone)].(*groups.OffsetRecord)})
		}},
		{"the deletion of a group is answered and not in the log", 28, func(h *groupHistory) { h.gone("g", h.k.tick()) }},
		{"a group that is made anew begins with its first epoch", 27, func(h *groupHistory) {
			h.deletes(true, memberTombstone, offsetTombstone, groupTombstone)
			h.logged(5*time.Second, 1, h.end+1, of(&groups.GroupRecord{Group: "g", Epoch: 1}))
		}},
		{"a compacted log", 0, func(h *groupHistory) {
			h.compacted(1, []groups.Record{aMember("b", 1, 0), h.records[recordKey{group: "g"}], h.records[keyOf(memberTombstone)], h.records[keyOf(offsetTombstone)],
				&groups.Tombstone{Group: "g", Member: "b"}})
		}},
		{"compaction has lost an offset", 21, func(h *groupHistory) {
			h.compacted(1, []groups.Record{h.records[recordKey{group: "g"}], h.records[keyOf(memberTombstone)]})
		}},
		{"compaction has lost a tombstone", 21, func(h *groupHistory) {
			h.compacted(1, []groups.Record{aMember("b", 1, 0), h.records[recordKey{group: "g"}], h.records[keyOf(memberTombstone)], h.records[keyOf(offsetTombstone)]})
		}},
		{"a memory without an offset", 31, func(h *groupHistory) {
			h.remembers(1, func(yield func(groups.Record) bool) {
				_ = yield(&groups.GroupRecord{Group: "g", Epoch: 1}) && yield(aMember("a", 1, 1))
			})
		}},
		{"a memory of another epoch", 31, func(h *groupHistory) {
			h.remembers(1, func(yield func(groups.Record) bool) { yield(&groups.GroupRecord{Group: "g", Epoch: 2}) })
		}},
		{"a superseded coordinator appends", 32, func(h *groupHistory) {
			h.logged(5*time.Second, 2, h.end+1, of(fence(2)...))
			h.logged(5*time.Second, 1, h.end+1, of(aMember("a", 1, 1)))
		}},
		{"a coordinator appends before its fence", 32, func(h *groupHistory) { h.logged(5*time.Second, 2, h.end+1, of(aMember("a", 1, 1))) }},
		{"an assignment of the log", 0, func(h *groupHistory) { h.assigns("g", "a", 1, aMember("a", 1, 1).Assigned) }},
		{"an assignment that the log does not have", 32, func(h *groupHistory) { h.assigns("g", "a", 2, nil) }},
		{"an answer without a confirmation", 32, func(h *groupHistory) { h.proves(1, 5*time.Second, 4*time.Second, "a fetch") }},
		{"a confirmation of a superseded coordinator", 32, func(h *groupHistory) {
			h.logged(5*time.Second, 2, h.end+1, of(fence(2)...))
			h.confirms(1, 6*time.Second)
		}},
		{"a confirmation that was asked for before", 0, func(h *groupHistory) {
			h.logged(5*time.Second, 2, h.end+1, of(fence(2)...))
			h.confirms(1, 4*time.Second)
		}},
		{"a superseded coordinator answers heartbeats for long", 32, func(h *groupHistory) {
			h.logged(5*time.Second, 2, h.end+1, of(fence(2)...))
			h.beats(8*time.Second, 1, 7*time.Second, 4*time.Second, 2*time.Second)
		}},
		{"a superseded coordinator answers a heartbeat for a while", 0, func(h *groupHistory) {
			h.logged(5*time.Second, 2, h.end+1, of(fence(2)...))
			h.beats(6*time.Second, 1, 6*time.Second, 4*time.Second, 2*time.Second)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newGroupHistory(newChecker([]topic{{replicas: 3, minInsync: 2, offsets: true}}), 0, 20*time.Second)
			h.logged(time.Second, 1, 1, of(fence(1)...))
			h.logged(time.Second, 1, 3, of(&groups.GroupRecord{Group: "g", Epoch: 1}, aMember("a", 1, 1)))
			h.session("a", 10*time.Second)
			h.takes(time.Second, "g", readPartition, "a")
			for i := range int64(3) {
				h.processes("g", readPartition, i)
			}
			h.read(readKey, 1, 2, 0)
			h.k.clock = 3
			h.commitsLogged(1, "a", 1, 2)
			h.wrote(readKey, 3, 4, 1, true)
			h.read(readKey, 5, 6, 1)
			h.k.clock = 6
			test.plant(h)
			h.linearizable()
			got := 0
			if h.k.violation != nil {
				got = h.k.violation.Invariant
			}
			if got != test.invariant {
				t.Errorf("found %+v, want a violation of invariant %d", h.k.violation, test.invariant)
			}
			if _, listed := invariants[got]; got != 0 && !listed {
				t.Errorf("invariant %d is not listed", got)
			}
		})
	}
}

// An offset of a deleted topic is held against the log, but not after an unclean election:
// it may be among what that has given up.
func TestGroupCheckerKnowsNoLogAfterAnUncleanElection(t *testing.T) {
	t.Parallel()
	h := newGroupHistory(nil, 0, 0)
	fold(h.records, &groups.OffsetRecord{Group: "g", Partition: readPartition, Offset: 3})
	h.removes(readPartition.Topic)
	if h.unsettled("g", nil, nil) == "" {
		t.Error("the log may have an offset of a deleted topic")
	}
	h.excused = true
	if what := h.unsettled("g", nil, nil); what != "" {
		t.Errorf("after an unclean election %s", what)
	}
}
