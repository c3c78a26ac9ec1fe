package groups

import (
	"slices"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// round decides what waits: requests first, since they may tell that a member lives, then
// what time brings, then groups to which the topics matter.
func (s *Shard) round() {
	n := 0
	for n < len(s.queue) && (n == 0 || s.bytes < s.config.RoundBytes) {
		if !s.handle(&s.queue[n]) {
			break
		}
		n++
	}
	s.take(n)
	for len(s.timers) > 0 && !s.timers[0].at.After(s.now) && (n == 0 || s.bytes < s.config.RoundBytes) {
		s.fire(s.timers[0])
		n++
	}
	s.decided = len(s.records)
	for i := 0; i < len(s.touched); i++ {
		s.settle(s.touched[i])
	}
	for len(s.stale) > 0 && (n == 0 || s.bytes < s.config.RoundBytes) {
		g := s.stale[0]
		s.stale = s.stale[1:]
		g.listed = false
		s.settle(g)
		n++
	}
}

// handle decides a request. It reports whether that is done: if not, it comes first in
// the next round.
func (s *Shard) handle(w *waiting) bool {
	switch r := w.request.(type) {
	case *Join:
		s.join(w.ticket, r)
	case *Detach:
		if m := s.groups[r.Group].member(r.Member); m != nil && m.stream == r.Stream {
			m.stream = 0
		}
	case *Heartbeat:
		s.heartbeat(w.ticket, r)
	case *Leave:
		s.leave(w.ticket, r)
	case *Commit:
		return s.commit(w, r)
	case *Fetch:
		s.reply(w.ticket, s.fetch(r))
	case *CheckReset:
		s.checkReset(w.ticket, r)
	case *Describe:
		s.describe(w.ticket, r)
	case *List:
		s.reply(w.ticket, s.summaries())
	case *DeleteGroup:
		return s.deleteGroup(w.ticket, r)
	case *DeleteOffsets:
		return s.deleteOffsets(w, r)
	}
	return true
}

// emit writes a record with the round, and applies it.
func (s *Shard) emit(r Record) {
	s.records = append(s.records, r)
	if _, offset := r.(*OffsetRecord); !offset {
		s.decisive = true
	}
	s.bytes += recordBytes(r)
	s.fold(r)
}

func (s *Shard) reply(ticket Ticket, value any) {
	s.held.Replies = append(s.held.Replies, Reply{Ticket: ticket, Value: value})
}

// refuse answers with the round: that something is not there is news of the log, too.
func (s *Shard) refuse(ticket Ticket, why *Refusal) {
	s.held.Replies = append(s.held.Replies, Reply{Ticket: ticket, Refusal: why})
}

// touch has the round settle the group.
func (s *Shard) touch(g *group) {
	if !g.touched {
		g.touched = true
		s.touched = append(s.touched, g)
	}
}

// list has a round settle the group.
func (s *Shard) list(g *group) {
	if !g.listed {
		g.listed = true
		s.stale = append(s.stale, g)
	}
}

// change says that the group has other members or subscriptions.
func (s *Shard) change(g *group) {
	g.changed, g.stale = true, true
	s.touch(g)
}

// shut ends the stream of a member.
func (s *Shard) shut(m *member, why *Refusal) {
	ticket := m.stream
	m.stream, m.announce = 0, false
	if ticket == 0 {
		return
	}
	if i := slices.Index(s.joins, ticket); i >= 0 {
		s.joins = slices.Delete(s.joins, i, i+1)
		s.refuse(ticket, why)
		return
	}
	s.held.Closed = append(s.held.Closed, Closed{Stream: ticket, Refusal: why})
}

// revive begins what is not in the log, once that is loaded.
func (s *Shard) revive() {
	for _, g := range s.sorted() {
		for _, m := range g.members {
			// A predecessor that was deposed unawares may have answered the member for as
			// long as its confidence lasted, after the fence.
			m.heard, m.revoked = s.now.Add(s.config.Confidence), s.now
			s.schedule(m)
			g.stale = true
			m.targeted = m.Epoch > 0
		}
		if len(g.members) == 0 {
			s.rest(g)
		}
		if s.topics != nil {
			s.seekDeleted(g)
		}
		if g.stale || g.purge {
			s.list(g)
		}
	}
}

// fire does what a timer was set for.
func (s *Shard) fire(t *timer) {
	if t.member == nil {
		s.age(t.group)
		return
	}
	m := t.member
	if m.awaited() && !s.now.Before(m.revoked.Add(m.RebalanceTimeout)) {
		m.fenced = true
	}
	switch {
	case s.now.Before(m.heard.Add(m.SessionTimeout)):
		s.schedule(m)
		return
	case s.now.Before(s.grace):
		s.timers.set(t, s.grace)
		return
	}
	s.remove(t.group, m, refusal(errorsv1.Reason_REASON_UNKNOWN_MEMBER,
		"member %q of group %q was not heard for %v, and is removed: join anew", m.Member, t.group.id, m.SessionTimeout))
}

// awaited reports whether the member has yet to confirm that it gave partitions up.
func (m *member) awaited() bool {
	return len(m.Revoking) > 0 && !m.fenced && !m.superseded
}

// schedule sets the timer of a member to what comes first.
func (s *Shard) schedule(m *member) {
	at := m.heard.Add(m.SessionTimeout)
	if m.awaited() {
		if limit := m.revoked.Add(m.RebalanceTimeout); limit.Before(at) {
			at = limit
		}
	}
	s.timers.set(&m.timer, at)
}

// mostAging is after how long at most the time that a group is without members is
// written, so that it is not lost with the process.
const mostAging = time.Hour

// rest begins or goes on to count the time that the group is without members.
func (s *Shard) rest(g *group) {
	g.seen = s.now
	retention := s.retention(g)
	if retention == 0 {
		s.timers.remove(&g.timer)
		return
	}
	part := min(max(retention/100, s.config.Aging), mostAging)
	s.timers.set(&g.timer, s.now.Add(min(part, max(retention-g.record.Empty, 0))))
}

// retention is how long a group without members stays; 0 is for ever.
func (s *Shard) retention(g *group) time.Duration {
	if len(g.offsets) > 0 || s.config.Retention > 0 && s.config.Retention < s.config.Aging {
		return s.config.Retention
	}
	return s.config.Aging
}

// restIfBare has a group go soon that has nothing left. How long it was without members
// before counts no more: whoever has just deleted its last offset still finds it.
func (s *Shard) restIfBare(g *group) {
	if s.groups[g.id] != g || len(g.members) > 0 || len(g.offsets) > 0 {
		return
	}
	if g.record.Empty > 0 {
		r := *g.record
		r.Empty = 0
		s.emit(&r)
	}
	s.rest(g)
}

// age counts the time of a group without members, and forgets it once that is enough. What
// passes between the time that the timer was set for and now does not count: nobody has
// seen it.
func (s *Shard) age(g *group) {
	empty := g.record.Empty + max(g.timer.at.Sub(g.seen), 0).Truncate(time.Millisecond)
	if retention := s.retention(g); retention > 0 && empty >= retention.Truncate(time.Millisecond) {
		s.forget(g) // What does not fit is due again in the next round.
		return
	}
	r := *g.record
	r.Empty = empty
	s.emit(&r)
	s.rest(g)
}

// recordBytes is about how long a record is in the log.
func recordBytes(record Record) int {
	const overhead, topic, partition = 24, 24, 8
	switch r := record.(type) {
	case *GroupRecord:
		n := overhead + len(r.Group) + (topic+partition)*len(r.Seen)
		for m, partitions := range r.Target {
			n += len(m) + topic + partition*len(partitions)
		}
		return n
	case *MemberRecord:
		n := overhead + len(r.Group) + len(r.Member) + len(r.Instance) + len(r.ClientID) + len(r.ClientHost) +
			len(r.Subscription.Pattern) + topic + partition*(len(r.Assigned)+len(r.Revoking))
		for _, name := range r.Subscription.Topics {
			n += 2 + len(name)
		}
		return n
	case *OffsetRecord:
		return overhead + topic + len(r.Group) + len(r.TopicName) + len(r.Metadata) + 3*partition
	case *Tombstone:
		return overhead + topic + len(r.Group) + len(r.Member)
	default:
		return overhead
	}
}
