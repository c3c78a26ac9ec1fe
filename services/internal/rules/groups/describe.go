package groups

// state returns where a group stands.
func (g *group) state() State {
	if len(g.members) == 0 {
		return Empty
	}
	if g.stale || g.touched {
		return Reconciling
	}
	for _, m := range g.members {
		switch {
		case m.superseded:
			return Reconciling
		case m.Away:
		case m.confirmed < m.Epoch || len(m.Revoking) > 0 || !m.has(g.record.Target[m.Member]):
			return Reconciling
		}
	}
	return Stable
}

func (s *Shard) summaries() []Summary {
	summaries := make([]Summary, 0, len(s.groups))
	for _, g := range s.sorted() {
		summaries = append(summaries, Summary{Group: g.id, State: g.state(), Members: len(g.members)})
	}
	return summaries
}

func (s *Shard) describe(ticket Ticket, r *Describe) {
	g := s.groups[r.Group]
	if g == nil {
		s.refuse(ticket, groupNotFound(r.Group))
		return
	}
	if g.touched {
		// Who has just joined is a member with an assignment.
		s.settle(g)
	}
	d := &Description{
		Group: g.id, State: g.state(), Epoch: g.epoch, Assignor: g.record.Assignor, Offsets: g.sortedOffsets(),
	}
	for _, m := range g.members {
		described := DescribedMember{
			MemberRecord: *m.MemberRecord,
			Idle:         max(s.now.Sub(m.heard), 0),
			Fenced:       m.fenced || m.superseded,
		}
		if !m.superseded {
			_, _, described.Awaited = compareTarget(m.Assigned, g.record.Target[m.Member])
		}
		d.Members = append(d.Members, described)
	}
	s.reply(ticket, d)
}

// Stats is how much a shard holds.
type Stats struct {
	// Serving says that it is neither loading nor without an epoch.
	Serving bool
	// Groups and Members are counted over the shard.
	Groups, Members int
	// Queued is how many requests wait for a round.
	Queued int
}

// Stats tells the sizes of the shard, for metrics: nobody is asked whether the fence
// still holds.
func (s *Shard) Stats() Stats {
	return Stats{
		Serving: s.phase == serving && s.topics != nil,
		Groups:  len(s.groups), Members: s.members, Queued: len(s.queue),
	}
}

// Offsets yields all committed offsets in the order of groups, topic names and partitions,
// for metrics: nobody is asked whether the fence still holds, and some may have yet to be
// written.
func (s *Shard) Offsets(yield func(*OffsetRecord) bool) {
	for _, g := range s.sorted() {
		for _, o := range g.sortedOffsets() {
			if !yield(o) {
				return
			}
		}
	}
}
