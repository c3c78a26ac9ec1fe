package groups

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// group is a group in memory: the fold of its records, and what is lost with the process.
type group struct {
	id GroupID
	// record is the newest, or one with nothing but the name.
	record *GroupRecord
	// epoch is the highest of the group's record and its members' assignments: a round
	// that only makes assignments need not write the target again.
	epoch Epoch
	// members are in ascending order of their names.
	members []*member
	offsets map[Partition]*OffsetRecord

	// changed: members or subscriptions are others than the group's record counts.
	// stale: the target may be another by now. purge: there are offsets of topics that
	// are deleted.
	changed, stale, purge bool
	// touched is a group that the round has yet to settle, listed one that a round has.
	touched, listed bool
	// partitions is how many those of all subscribed topics are.
	partitions int
	// seen is up to when the time without members is counted; timer when it is next.
	seen  time.Time
	timer timer
}

// member is a member in memory.
type member struct {
	*MemberRecord
	// superseded: a newer member has its instance. What it had is its own until it
	// leaves or its session ends.
	superseded bool

	stream Ticket
	// announce: the stream is to be told the assignment.
	announce bool
	// heard is when the session began anew, revoked when partitions were taken away.
	heard, revoked time.Time
	// confirmed is the newest epoch that the member said that it follows.
	confirmed Epoch
	// targeted: a target was computed since it has had its subscription.
	targeted bool
	// fenced: it did not confirm in time, and its heartbeats are refused.
	fenced bool
	// inherits is the target of the member whose instance this one took over.
	inherits []Partition
	timer    timer
}

// state is the fold of the log.
type state struct {
	groups map[GroupID]*group
	// members is how many there are in all groups.
	members int
	// offsetsOf is how many offsets there are of each topic.
	offsetsOf map[cluster.TopicID]int
	// fence is the newest coordinator epoch of the log.
	fence  CoordinatorEpoch
	timers timers
}

func newState() state {
	return state{groups: map[GroupID]*group{}, offsetsOf: map[cluster.TopicID]int{}}
}

// fold applies a record. It is the only way in which what survives changes.
func (s *state) fold(record Record) {
	switch r := record.(type) {
	case *FenceRecord:
		s.fence = r.Epoch
	case *GroupRecord:
		g := s.group(r.Group)
		g.record = r
		g.epoch = max(g.epoch, r.Epoch)
	case *MemberRecord:
		g := s.group(r.Group)
		i, found := g.search(r.Member)
		if !found {
			s.members++
			// The time that the group is without members is over.
			s.timers.remove(&g.timer)
			m := &member{}
			m.timer = timer{group: g, member: m}
			g.members = slices.Insert(g.members, i, m)
		}
		m := g.members[i]
		m.MemberRecord = r
		g.epoch = max(g.epoch, r.Epoch)
		// A member is not written again once another has its instance, so the newest
		// record is that of the holder.
		m.superseded = false
		if r.Instance != "" {
			for _, other := range g.members {
				if other != m && other.Instance == r.Instance {
					other.superseded = true
				}
			}
		}
	case *OffsetRecord:
		g := s.group(r.Group)
		if g.offsets == nil {
			g.offsets = make(map[Partition]*OffsetRecord, 1)
		}
		if g.offsets[r.Partition] == nil {
			s.offsetsOf[r.Topic]++
		}
		g.offsets[r.Partition] = r
		// Of the member that has committed it there may be no record any more. Its epoch
		// names the time in which it had the partition, and must not name another.
		g.epoch = max(g.epoch, r.Since)
	case *Tombstone:
		s.erase(r)
	}
}

func (s *state) erase(r *Tombstone) {
	g := s.groups[r.Group]
	switch {
	case g == nil:
	case r.Member != "":
		if i, found := g.search(r.Member); found {
			s.members--
			s.timers.remove(&g.members[i].timer)
			g.members = slices.Delete(g.members, i, i+1)
		}
	case r.Offset != nil:
		if g.offsets[*r.Offset] != nil {
			s.uncount(r.Offset.Topic)
			delete(g.offsets, *r.Offset)
		}
	default:
		for _, m := range g.members {
			s.members--
			s.timers.remove(&m.timer)
		}
		for p := range g.offsets {
			s.uncount(p.Topic)
		}
		s.timers.remove(&g.timer)
		delete(s.groups, g.id)
	}
}

func (s *state) uncount(topic cluster.TopicID) {
	if s.offsetsOf[topic]--; s.offsetsOf[topic] == 0 {
		delete(s.offsetsOf, topic)
	}
}

// group returns the group of that name, which begins to be if it is not there.
func (s *state) group(id GroupID) *group {
	g := s.groups[id]
	if g == nil {
		g = &group{id: id, record: &GroupRecord{Group: id}}
		g.timer.group = g
		s.groups[id] = g
	}
	return g
}

// sorted returns the groups in ascending order of their names.
func (s *state) sorted() []*group {
	groups := make([]*group, 0, len(s.groups))
	for _, g := range s.groups {
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b *group) int { return strings.Compare(string(a.id), string(b.id)) })
	return groups
}

func (g *group) search(id MemberID) (int, bool) {
	return slices.BinarySearchFunc(g.members, id, func(m *member, id MemberID) int {
		return strings.Compare(string(m.Member), string(id))
	})
}

// member returns the member of that name, or nil; g may be nil.
func (g *group) member(id MemberID) *member {
	if g == nil {
		return nil
	}
	if i, found := g.search(id); found {
		return g.members[i]
	}
	return nil
}

func comparePartitions(a, b Partition) int {
	if c := bytes.Compare(a.Topic[:], b.Topic[:]); c != 0 {
		return c
	}
	return cmp.Compare(a.Index, b.Index)
}

func compareOwned(a, b Owned) int { return comparePartitions(a.Partition, b.Partition) }

// find returns what the member has of that partition, given up or not.
func (m *member) find(p Partition) (Owned, bool) {
	for _, list := range [2][]Owned{m.Assigned, m.Revoking} {
		if i, found := slices.BinarySearchFunc(list, p, func(o Owned, p Partition) int {
			return comparePartitions(o.Partition, p)
		}); found {
			return list[i], true
		}
	}
	return Owned{}, false
}
