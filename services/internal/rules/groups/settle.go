package groups

import (
	"maps"
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// settle brings a group to where its members and topics want it: the target is computed
// anew if they have changed, at most once a round; members are told what to give up and,
// as far as it is free, what to read; streams get what there is to say.
func (s *Shard) settle(g *group) {
	g.touched = false
	if s.groups[g.id] != g {
		return
	}
	if g.purge {
		s.purgeDeleted(g)
	}
	if g.stale {
		s.retarget(g)
	}
	s.reconcile(g)
	s.announce(g)
}

// retarget computes who is to have what. Stickiness counts from the last target, not from
// what members have at the moment: a move that is under way goes on.
func (s *Shard) retarget(g *group) {
	epoch := s.nextEpoch(g)
	record := GroupRecord{Group: g.id, Epoch: epoch, TargetEpoch: epoch}
	var members []AssignMember
	union, standing := map[cluster.TopicID]Topic{}, map[cluster.TopicID]bool{}
	var wishes []Assignor
	var last Subscription
	var ids []cluster.TopicID
	for i, m := range g.members {
		if m.superseded {
			continue
		}
		if i == 0 || ids == nil || !m.Subscription.equal(last) {
			last, ids = m.Subscription, []cluster.TopicID{}
			for _, t := range s.resolve(last) {
				ids = append(ids, t.ID)
				union[t.ID] = t
			}
		}
		had := g.record.Target[m.Member]
		if had == nil {
			had = m.inherits
		}
		m.inherits = nil
		if m.targeted {
			for _, id := range ids {
				standing[id] = true
			}
		}
		m.targeted = true
		wishes = append(wishes, m.Assignor)
		members = append(members, AssignMember{ID: m.Member, Instance: m.Instance, Topics: ids, Owned: had})
	}
	g.partitions = 0
	for _, t := range union {
		g.partitions += int(t.Partitions)
	}
	if len(members) > 0 {
		record.Assignor = ElectAssignor(wishes)
		record.Target = target(Assign(record.Assignor, members, slices.SortedFunc(maps.Values(union), compareNames)))
	}
	record.Seen = g.see(union, standing)
	if len(g.members) == 0 && !g.changed {
		// Nobody was there since, not even within the round.
		record.Empty = g.record.Empty
	}
	changed := g.changed || !slices.Equal(record.Seen, g.record.Seen) || record.Assignor != g.record.Assignor ||
		!maps.EqualFunc(record.Target, g.record.Target, slices.Equal)
	g.stale, g.changed = false, false
	if changed {
		s.emit(&record)
	}
	if len(g.members) == 0 {
		s.rest(g)
	}
}

// see returns how many partitions each topic had when the group subscribed to it. standing
// are topics that match what somebody was subscribed to before: one of them of which the
// last target has nothing was not there then.
func (g *group) see(subscribed map[cluster.TopicID]Topic, standing map[cluster.TopicID]bool) []SeenTopic {
	targeted, committed := make(map[cluster.TopicID]bool), make(map[cluster.TopicID]bool)
	for _, partitions := range g.record.Target {
		for i := range partitions {
			targeted[partitions[i].Topic] = true
		}
	}
	for p := range g.offsets {
		committed[p.Topic] = true
	}
	var seen []SeenTopic
	known := make(map[cluster.TopicID]bool, len(g.record.Seen))
	for _, s := range g.record.Seen {
		// Who has neither offsets nor members there begins anew.
		if _, still := subscribed[s.Topic]; committed[s.Topic] || still && targeted[s.Topic] {
			seen, known[s.Topic] = append(seen, s), true
		}
	}
	for id, t := range subscribed {
		switch {
		case known[id]:
		case standing[id] && !targeted[id] && !committed[id]:
			seen = append(seen, SeenTopic{Topic: id})
		default:
			seen = append(seen, SeenTopic{Topic: id, Partitions: t.Partitions})
		}
	}
	slices.SortFunc(seen, func(a, b SeenTopic) int { return compareTopics(a.Topic, b.Topic) })
	return seen
}

// added returns which partitions came into being after the group had subscribed to their
// topics, and have no offset.
func (g *group) added(owned []Owned) []Partition {
	var added []Partition
	for _, o := range owned {
		i, found := slices.BinarySearchFunc(g.record.Seen, o.Topic, func(s SeenTopic, id cluster.TopicID) int { return compareTopics(s.Topic, id) })
		if found && o.Index >= g.record.Seen[i].Partitions && g.offsets[o.Partition] == nil {
			added = append(added, o.Partition)
		}
	}
	return added
}

// nextEpoch returns the epoch of the group's next change. That of a group which begins to
// be is the offset of the newest record, which is its first member's: a group of the same
// name that was deleted has had none as high, since each of its changes took a record of
// its own, and so what a member of that one sends late is no word of this one.
func (s *Shard) nextEpoch(g *group) Epoch {
	if g.epoch > 0 {
		return g.epoch + 1
	}
	return max(Epoch(s.end)+Epoch(len(s.records))-1, 1)
}

// target puts an assignment into the form in which it is written: in order, and without
// those who get nothing.
func target(assigned map[MemberID][]Partition) map[MemberID][]Partition {
	for id, partitions := range assigned {
		if len(partitions) == 0 {
			delete(assigned, id)
		} else if !slices.IsSortedFunc(partitions, comparePartitions) {
			slices.SortFunc(partitions, comparePartitions)
		}
	}
	return assigned
}

// reconcile takes from members what is not meant for them, and gives them what is and
// nobody has. What was taken is free once it is confirmed to be given up; a member that
// has yet to confirm gets nothing new, so that the epoch with which it confirms says what
// it gave up.
func (s *Shard) reconcile(g *group) {
	waiting := false
	for _, m := range g.members {
		want := g.record.Target[m.Member]
		if m.superseded {
			continue
		}
		if m.Away {
			// It has stopped: nobody need confirm.
			if kept, lost, _ := compareTarget(m.Assigned, want); len(lost) > 0 {
				r := *m.MemberRecord
				r.Assigned = kept
				s.emit(&r)
			}
			continue
		}
		waiting = waiting || len(m.Revoking) == 0 && (m.Epoch == 0 || !m.has(want))
	}
	if !waiting {
		return
	}
	owned := make(map[Partition]struct{}, g.partitions)
	for _, m := range g.members {
		for _, list := range [2][]Owned{m.Assigned, m.Revoking} {
			for _, o := range list {
				owned[o.Partition] = struct{}{}
			}
		}
	}
	epoch := g.epoch
	for _, m := range g.members {
		if m.Epoch == epoch {
			epoch++
			break
		}
	}
	for _, m := range g.members {
		if m.superseded || m.Away || len(m.Revoking) > 0 {
			continue
		}
		kept, lost, due := compareTarget(m.Assigned, g.record.Target[m.Member])
		free := due[:0]
		for _, p := range due {
			if _, taken := owned[p]; !taken {
				free = append(free, p)
			}
		}
		if m.Epoch > 0 && len(lost)+len(free) == 0 {
			continue
		}
		r := *m.MemberRecord
		r.Epoch, r.Assigned, r.Revoking = epoch, kept, lost
		for _, p := range free {
			r.Assigned = append(r.Assigned, Owned{Partition: p, Since: epoch})
		}
		slices.SortFunc(r.Assigned, compareOwned)
		s.emit(&r)
		m.announce = true
		if len(lost) > 0 {
			m.revoked = s.now
			s.schedule(m)
		}
	}
}

// has reports whether the member has just what it is meant to have.
func (m *member) has(want []Partition) bool {
	return slices.EqualFunc(m.Assigned, want, func(o Owned, p Partition) bool { return o.Partition == p })
}

// compareTarget walks through what a member has and what is meant for it, both in order,
// and returns what it keeps, what it loses, and what it has yet to get.
func compareTarget(assigned []Owned, want []Partition) (kept, lost []Owned, due []Partition) {
	for len(assigned) > 0 || len(want) > 0 {
		c := 0
		switch {
		case len(want) == 0:
			c = -1
		case len(assigned) == 0:
			c = 1
		default:
			c = comparePartitions(assigned[0].Partition, want[0])
		}
		switch {
		case c < 0:
			lost, assigned = append(lost, assigned[0]), assigned[1:]
		case c > 0:
			due, want = append(due, want[0]), want[1:]
		default:
			kept, assigned, want = append(kept, assigned[0]), assigned[1:], want[1:]
		}
	}
	return kept, lost, due
}

// announce tells streams what their members are to read.
func (s *Shard) announce(g *group) {
	members := 0
	for _, m := range g.members {
		if !m.superseded {
			members++
		}
	}
	for _, m := range g.members {
		if !m.announce {
			continue
		}
		m.announce = false
		if m.stream == 0 {
			continue
		}
		_, _, due := compareTarget(m.Assigned, g.record.Target[m.Member])
		s.held.Assignments = append(s.held.Assignments, Assignment{
			Stream: m.stream, Group: g.id, Member: m.Member, Epoch: m.Epoch,
			Partitions: m.Assigned, Added: g.added(m.Assigned), Assignor: g.record.Assignor,
			SessionTimeout: m.SessionTimeout, HeartbeatInterval: s.interval(m),
			Awaited: len(due), Missing: s.missing(m.Subscription),
			Members: members, GroupPartitions: g.partitions,
		})
	}
}
