package groups

import (
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// maxName is how many bytes names may have.
const maxName = 255

func checkGroup(group GroupID) *Refusal {
	switch {
	case len(group) == 0 || len(group) > maxName:
		return refusal(errorsv1.Reason_REASON_INVALID_GROUP_ID,
			"a group id has %d bytes: it takes 1 to %d of UTF-8", len(group), maxName)
	case !isText(string(group)):
		return refusal(errorsv1.Reason_REASON_INVALID_GROUP_ID,
			"group id %q is not UTF-8 or has control characters: give the group a name without", group)
	}
	return nil
}

// isText reports whether people can be shown a name as it is.
func isText(name string) bool {
	return utf8.ValidString(name) && !strings.ContainsFunc(name, unicode.IsControl)
}

func checkJoin(r *Join) *Refusal {
	invalid := func(format string, args ...any) *Refusal {
		return refusal(errorsv1.Reason_REASON_INVALID_REQUEST, format, args...)
	}
	switch {
	case len(r.Member) == 0 || len(r.Member) > maxName:
		return invalid("the member id has %d bytes: it takes 1 to %d of UTF-8", len(r.Member), maxName)
	case !isText(string(r.Member)):
		return invalid("member id %q is not UTF-8 or has control characters", r.Member)
	case len(r.Instance) > maxName:
		return invalid("the instance id of member %q has %d bytes: it takes up to %d of UTF-8", r.Member, len(r.Instance), maxName)
	case !isText(r.Instance):
		return invalid("instance id %q of member %q is not UTF-8 or has control characters", r.Instance, r.Member)
	case len(r.ClientID) > maxName:
		return invalid("the client id of member %q has %d bytes: it takes up to %d of UTF-8", r.Member, len(r.ClientID), maxName)
	case !isText(r.ClientID):
		return invalid("client id %q of member %q is not UTF-8 or has control characters", r.ClientID, r.Member)
	case r.Epoch < 0:
		return invalid("the member epoch of member %q is %d: it is 0 for a new member, else that of its assignment", r.Member, r.Epoch)
	case r.SessionTimeout <= 0 || r.RebalanceTimeout <= 0:
		return invalid("the timeouts of member %q must be above 0", r.Member)
	}
	if _, err := ParseAssignor(string(r.Assignor)); err != nil {
		return invalid("member %q: %v", r.Member, err)
	}
	return nil
}

func unknownMember(group GroupID, member MemberID) *Refusal {
	return refusal(errorsv1.Reason_REASON_UNKNOWN_MEMBER,
		"group %q has no member %q: it has left, or its session has timed out; join anew", group, member)
}

func instanceFenced(group GroupID, m *member) *Refusal {
	return refusal(errorsv1.Reason_REASON_INSTANCE_FENCED,
		"another process has joined group %q as instance %q: stop member %q, or give it another instance id",
		group, m.Instance, m.Member)
}

// follows returns why a request of a member that claims to follow that epoch is refused.
func follows(group GroupID, m *member, epoch Epoch) *Refusal {
	switch {
	case m.superseded:
		return instanceFenced(group, m)
	case epoch > m.Epoch:
		return refusal(errorsv1.Reason_REASON_MEMBER_FENCED,
			"member %q of group %q has had no epoch %d yet, its assignment is of epoch %d: join anew with another member id",
			m.Member, group, epoch, m.Epoch)
	case m.fenced:
		return refusal(errorsv1.Reason_REASON_MEMBER_FENCED,
			"member %q of group %q did not give partitions up within %v: join anew with another member id, or raise the rebalance timeout",
			m.Member, group, m.RebalanceTimeout)
	}
	return nil
}

func (s *Shard) join(ticket Ticket, r *Join) {
	why := checkGroup(r.Group)
	if why == nil {
		why = checkJoin(r)
	}
	subscription := r.Subscription
	if why == nil {
		subscription, why = s.checkSubscription(r.Group, subscription)
	}
	g := s.groups[r.Group]
	m := g.member(r.Member)
	older := g.holder(r.Instance, m)
	if why == nil {
		why = s.admit(g, m, older, r)
	}
	if why != nil {
		s.refuse(ticket, why)
		return
	}

	if older != nil {
		s.supersede(g, older)
	}
	assignor, _ := ParseAssignor(string(r.Assignor))
	record := MemberRecord{
		Group: r.Group, Member: r.Member, Instance: r.Instance, ClientID: r.ClientID, ClientHost: r.ClientHost,
		Subscription: subscription, Assignor: assignor,
		SessionTimeout: r.SessionTimeout, RebalanceTimeout: r.RebalanceTimeout,
	}
	changed := m == nil || older != nil
	if m != nil {
		m.targeted = m.targeted && subscription.equal(m.Subscription)
		record.Epoch, record.Assigned, record.Revoking = m.Epoch, m.Assigned, m.Revoking
		changed = changed || record.Assignor != m.Assignor || !subscription.equal(m.Subscription)
	}
	if m == nil || changed || !m.sameProcess(&record) {
		s.emit(&record)
	}
	g = s.groups[r.Group]
	m = g.member(r.Member)
	if older != nil {
		m.inherits = g.record.Target[older.Member]
		if len(m.inherits) == 0 {
			m.inherits = older.inherits
		}
	}
	m.hear(s.now)
	s.schedule(m)
	s.shut(m, refusal(errorsv1.Reason_REASON_DRAINING,
		"member %q of group %q has opened another stream, which goes on", m.Member, g.id))
	m.stream, m.announce = ticket, true
	s.joins = append(s.joins, ticket)
	s.touch(g)
	if changed {
		s.change(g)
	}
	s.confirm(g, m, r.Epoch)
}

// admit returns why a Join is refused; g, m and older, which has the instance, may be nil.
func (s *Shard) admit(g *group, m, older *member, r *Join) *Refusal {
	if m != nil {
		return follows(r.Group, m, r.Epoch)
	}
	if r.Epoch > 0 {
		return unknownMember(r.Group, r.Member)
	}
	if g == nil {
		return s.admitGroup(r.Group)
	}
	// The one whose place it takes may stay beside it for a session. Those that were
	// superseded before count, so that a process that dies again and again is held up.
	count, superseded := 0, 0
	for _, other := range g.members {
		if other == older {
			continue
		}
		count++
		if other.superseded {
			superseded++
		}
	}
	if count >= s.config.MembersPerGroup {
		return refusal(errorsv1.Reason_REASON_GROUP_FULL,
			"group %q has %d members, as many as it may have, %d of them superseded by another process with their instance id until they leave or their session ends: try again once one is gone",
			g.id, count, superseded)
	}
	return nil
}

func (s *Shard) admitGroup(group GroupID) *Refusal {
	if len(s.groups) >= s.config.Groups {
		return refusal(errorsv1.Reason_REASON_LIMIT_REACHED,
			"the coordinator of group %q has %d groups, as many as it may have: delete some, or raise the limit",
			group, len(s.groups))
	}
	return nil
}

// sameProcess reports whether a record says nothing else of the process that the member
// is; m may be away.
func (m *member) sameProcess(r *MemberRecord) bool {
	return m.Instance == r.Instance && m.ClientID == r.ClientID && m.ClientHost == r.ClientHost && m.Away == r.Away &&
		m.SessionTimeout == r.SessionTimeout && m.RebalanceTimeout == r.RebalanceTimeout
}

// holder returns the member other than m that has the instance, or nil; g may be nil.
func (g *group) holder(instance string, m *member) *member {
	if g == nil || instance == "" {
		return nil
	}
	for _, other := range g.members {
		if other != m && other.Instance == instance && !other.superseded {
			return other
		}
	}
	return nil
}

// supersede takes the instance of a member for a newer one. A member that has left has
// stopped; of another that is not known, and it keeps from others what it had until it
// leaves or its session ends. It is told, and nothing else that it asks for is granted.
func (s *Shard) supersede(g *group, older *member) {
	if older.Away {
		s.emit(&Tombstone{Group: g.id, Member: older.Member})
		return
	}
	s.shut(older, instanceFenced(g.id, older))
	r := *older.MemberRecord
	r.Revoking = slices.Concat(r.Assigned, r.Revoking)
	slices.SortFunc(r.Revoking, compareOwned)
	r.Assigned = nil
	s.emit(&r)
}

// beat deals with a heartbeat that has just arrived: it prolongs the session whatever
// becomes of it, which is safe since the member counts from the last one that was
// answered. It reports whether nothing is left to do.
func (s *Shard) beat(w waiting) bool {
	r, ok := w.request.(*Heartbeat)
	if !ok || s.phase != serving {
		return false
	}
	m := s.groups[r.Group].member(r.Member)
	if m == nil || m.Away || r.Epoch <= 0 || follows(r.Group, m, r.Epoch) != nil {
		return false
	}
	m.hear(s.now)
	confident := s.now.Sub(s.proven) <= s.config.Confidence
	switch {
	case !confident && (len(s.records) > 0 || s.now.Before(s.paused)):
		s.refuseNow(w, unavailable("its coordinator cannot reach the leader of its log"))
		return true
	case !confident || s.decisive || r.Epoch == m.Epoch && len(m.Revoking) > 0:
		return false
	}
	m.confirmed = max(m.confirmed, r.Epoch)
	s.out.Replies = append(s.out.Replies, Reply{Ticket: w.ticket, Value: s.answer(m)})
	return true
}

// hear begins the session anew. The timer stays: when it fires, it is set again.
func (m *member) hear(now time.Time) {
	if m.heard.Before(now) {
		m.heard = now
	}
}

func (s *Shard) answer(m *member) HeartbeatAnswer {
	return HeartbeatAnswer{Epoch: m.Epoch, Interval: s.interval(m)}
}

func (s *Shard) interval(m *member) time.Duration {
	return min(s.config.HeartbeatInterval, m.SessionTimeout/3)
}

func (s *Shard) heartbeat(ticket Ticket, r *Heartbeat) {
	g := s.groups[r.Group]
	m := g.member(r.Member)
	if m == nil || m.Away {
		s.refuse(ticket, unknownMember(r.Group, r.Member))
		return
	}
	why := follows(r.Group, m, r.Epoch)
	if why == nil && r.Epoch <= 0 {
		why = refusal(errorsv1.Reason_REASON_MEMBER_FENCED,
			"member %q of group %q follows no assignment: heartbeat with the epoch of the newest, which is %d",
			m.Member, g.id, m.Epoch)
	}
	if why != nil {
		s.refuse(ticket, why)
		return
	}
	m.hear(s.now)
	s.confirm(g, m, r.Epoch)
	s.reply(ticket, s.answer(m))
}

// confirm notes that a member has applied the assignment of that epoch. Only its newest one
// can have partitions to give up: it gets no other before it has confirmed that.
func (s *Shard) confirm(g *group, m *member, epoch Epoch) {
	m.confirmed = max(m.confirmed, epoch)
	if epoch > 0 && epoch == m.Epoch && len(m.Revoking) > 0 {
		r := *m.MemberRecord
		r.Revoking = nil
		s.emit(&r)
		s.touch(g)
	}
}

func (s *Shard) leave(ticket Ticket, r *Leave) {
	s.reply(ticket, nil)
	g := s.groups[r.Group]
	m := g.member(r.Member)
	if m == nil {
		return
	}
	why := refusal(errorsv1.Reason_REASON_UNKNOWN_MEMBER, "member %q has left group %q", m.Member, g.id)
	if !r.Keep || m.Instance == "" || m.superseded {
		s.remove(g, m, why)
		return
	}
	if m.Away {
		return
	}
	s.shut(m, why)
	away := *m.MemberRecord
	away.Away, away.Revoking = true, nil
	s.emit(&away)
	m.fenced, m.heard = false, s.now
	s.schedule(m)
	s.touch(g)
}

// remove ends a membership.
func (s *Shard) remove(g *group, m *member, why *Refusal) {
	s.shut(m, why)
	s.emit(&Tombstone{Group: g.id, Member: m.Member})
	s.change(g)
}

// names lists members of a group for people, who have to find them.
func (g *group) names() string {
	const most = 10
	var names []string
	for _, m := range g.members[:min(len(g.members), most)] {
		name := string(m.Member)
		if m.ClientHost != "" {
			name += " at " + m.ClientHost
		}
		names = append(names, name)
	}
	text := strings.Join(names, ", ")
	if len(g.members) > most {
		text += ", ..."
	}
	return text
}

// stillMembers is what puzzles those who have stopped all members.
const stillMembers = "one that was killed, or has an instance id, is a member until its session times out"

func notEmpty(g *group) *Refusal {
	members, them := "members", "them"
	if len(g.members) == 1 {
		members, them = "member", "it"
	}
	return refusal(errorsv1.Reason_REASON_GROUP_NOT_EMPTY,
		"group %q has %d %s (%s): stop %s first; "+stillMembers, g.id, len(g.members), members, g.names(), them)
}
