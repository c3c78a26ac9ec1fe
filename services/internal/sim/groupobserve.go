package sim

import (
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// What the checker is told of groups.

// committed is a batch of an offsets partition that a high watermark has passed.
func (g *crowd) committed(index int, b batch) {
	h := g.checks[g.number(index)]
	h.logged(g.w.now, b.coordinator, b.last+1, g.payloads[b.value])
}

// tick numbers what happens to registers.
func (g *crowd) tick() int64 { return g.w.check.tick() }

func (g *crowd) newCommit() int64 { g.commits++; return g.commits }

func (g *crowd) sawTake(m *member, p groups.Partition) {
	g.check(m.group).takes(g.w.now, g.groups[m.group], p, m.name)
}

func (g *crowd) sawGive(m *member, p groups.Partition) {
	g.check(m.group).gives(g.groups[m.group], p, m.name)
}

func (g *crowd) sawSession(m *member) { g.check(m.group).session(m.name, m.until) }

// sawEnd is a process that is gone with all that it had.
func (g *crowd) sawEnd(m *member) {
	h := g.check(m.group)
	h.ends(m.name)
	for _, r := range m.readings {
		h.gives(g.groups[m.group], r.partition, m.name)
	}
}

func (g *crowd) sawProcess(m *member, p groups.Partition, offset int64) {
	h := g.check(m.group)
	if !h.owns(g.w.now, g.groups[m.group], p, m.name) {
		h.fail(27, "%s processes %v without having it", m.name, p)
	}
	h.processes(g.groups[m.group], p, offset)
}

// sawCommit is a commit, or a copy of one, that arrives.
func (g *crowd) sawCommit(group int, session, sent int64, c *groups.Commit) {
	h := g.check(group)
	for i := range c.Offsets {
		o := &c.Offsets[i]
		h.commits[commitID(&groups.OffsetRecord{Metadata: o.Metadata})] = &commitFact{
			group: c.Group, member: c.Member, epoch: c.Epoch, partition: o.Partition, offset: o.Offset,
			session: session, sent: sent, sequence: c.Sequence,
		}
	}
}

// sawReply is what a shard answers to a request.
func (g *crowd) sawReply(s *shard, a asked, r groups.Reply) {
	h := g.checks[s.number]
	if g.answering != g.w.steps || g.answered < a.began {
		// Nothing begins while a round is let out.
		g.answering, g.answered = g.w.steps, g.tick()
	}
	now := g.answered
	ok := r.Refusal == nil
	if c, is := a.request.(*groups.Commit); is {
		g.sawCommitted(h, c, a.began, now, r)
	}
	if !ok {
		return
	}
	switch q := a.request.(type) {
	case *groups.Heartbeat:
		h.beats(g.w.now, s.epoch, a.at, s.confirmed, g.config.Confidence)
		return
	case *groups.Fetch:
		g.sawFetched(h, q, a.began, now, r.Value.([]*groups.OffsetRecord))
	case *groups.Describe:
		g.sawFetched(h, &groups.Fetch{Group: q.Group}, a.began, now, r.Value.(*groups.Description).Offsets)
	case *groups.DeleteOffsets:
		h.deleted(r.Value.([]*groups.OffsetRecord))
	case *groups.DeleteGroup:
		h.gone(q.Group, a.began)
	}
	h.proves(s.epoch, a.at, s.confirmed, "a request")
}

// sawCommitted is what became of a commit; r is the zero value if nobody knows.
func (g *crowd) sawCommitted(h *groupHistory, c *groups.Commit, began, ended int64, r groups.Reply) {
	answer, known := r.Value.(groups.CommitAnswer)
	for i := range c.Offsets {
		o := &c.Offsets[i]
		id, key := commitID(&groups.OffsetRecord{Metadata: o.Metadata}), offsetKey{c.Group, o.Partition}
		switch {
		case known && answer.Refusals[i] != nil:
			g.w.counts.CommitsRefused++
			h.refused(id)
			continue
		case known:
			g.w.counts.Committed++
		}
		h.wrote(key, began, ended, id, known)
	}
}

// sawFetched are the offsets that somebody is told.
func (g *crowd) sawFetched(h *groupHistory, q *groups.Fetch, began, ended int64, offsets []*groups.OffsetRecord) {
	found := make(map[groups.Partition]int64, len(offsets))
	for _, o := range offsets {
		found[o.Partition] = commitID(o)
	}
	asked := q.Partitions
	if asked == nil {
		for _, s := range g.sources {
			for i := range s.ends {
				asked = append(asked, groups.Partition{Topic: s.topic.ID, Index: int32(i)})
			}
		}
	}
	for _, p := range asked {
		h.read(offsetKey{q.Group, p}, began, ended, found[p])
	}
}

// sawEnded is a shard that is gone: nobody knows what came of the commits that waited.
func (g *crowd) sawEnded(s *shard) {
	for _, a := range s.waiting {
		if c, ok := a.request.(*groups.Commit); ok {
			g.sawCommitted(g.checks[s.number], c, a.began, 0, groups.Reply{})
		}
	}
}

// sawAssignment is what a shard tells a member.
func (g *crowd) sawAssignment(s *shard, x opened, a groups.Assignment) {
	h := g.checks[s.number]
	h.assigns(a.Group, a.Member, a.Epoch, a.Partitions)
	h.proves(s.epoch, x.at, s.confirmed, "a join")
}

// sawConfirmed is a leader that tells a coordinator that its fence held when it asked.
func (g *crowd) sawConfirmed(r *replica, f fenceCheck) {
	g.checks[g.number(r.index)].confirms(f.claim.Epoch, f.came)
}

// sawWhole is a shard that has appended or loaded all up to an offset: if the log ends
// there, the shard's memory is its fold.
func (g *crowd) sawWhole(s *shard, end int64) {
	h := g.checks[s.number]
	if h.end != end || h.epoch != s.epoch {
		return
	}
	h.remembers(s.epoch, s.rules.Memory)
}
