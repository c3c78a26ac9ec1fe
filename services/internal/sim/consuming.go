package sim

import (
	"strconv"
	"time"

	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// What members do with what they have: they read on from the committed offset,
// process, and commit.

// fetch asks how far the group has come in what is new.
func (m *member) fetch() {
	var unknown []*reading
	var partitions []groups.Partition
	for _, r := range m.readings {
		if !r.known {
			unknown = append(unknown, r)
			partitions = append(partitions, r.partition)
		}
	}
	if len(unknown) == 0 {
		return
	}
	session := m.session
	m.request(func() groups.Request {
		return &groups.Fetch{Group: m.g.groups[m.group], Partitions: partitions}
	}, func(r groups.Reply, known bool) {
		if m.session != session {
			return
		}
		if !known || r.Refusal != nil {
			m.w.after(&m.process, m.w.between(20*time.Millisecond, 100*time.Millisecond), func() {
				if m.session == session {
					m.fetch()
				}
			})
			return
		}
		offsets := r.Value.([]*groups.OffsetRecord)
		for _, x := range unknown {
			if x.known {
				continue
			}
			x.known = true
			for _, o := range offsets {
				if o.Partition == x.partition {
					x.position, x.committed = o.Offset, o.Offset
				}
			}
			m.w.note(m.trace(), m.name, "begins at", int64(x.partition.Topic[15]), int64(x.partition.Index), x.position)
		}
	})
}

// poll processes what there is, and commits now and then.
func (m *member) poll() {
	if m.out || m.expire() {
		return
	}
	w := m.w
	for _, r := range m.readings {
		if !r.known {
			continue
		}
		end := min(m.g.end(r.partition), r.position+1+w.rng.Int64N(8))
		for ; r.position < end; r.position++ {
			w.counts.Processed++
			m.g.sawProcess(m, r.partition, r.position)
		}
	}
	if m.committing == 0 && w.chance(m.g.committing) || w.chance(m.g.committing/50) || w.calm && w.chance(100) {
		m.commit(m.readings)
	}
}

// commit records how far the member has come, with the epoch that it follows.
func (m *member) commit(readings []*reading) { m.commitAt(m.epoch, readings) }

// commitAt is a commit with an epoch that the member follows or has followed.
func (m *member) commitAt(epoch groups.Epoch, readings []*reading) {
	type position struct {
		r  *reading
		at int64
	}
	var positions []position
	for _, r := range readings {
		if r.known && r.position > r.committed {
			positions = append(positions, position{r, r.position})
		}
	}
	if len(positions) == 0 || epoch == 0 {
		return
	}
	session, id := m.session, m.id
	sent := m.g.newCommit()
	var sequence groups.CommitSequence
	if m.numbers {
		sequence = groups.CommitSequence(sent)
	}
	m.committing++
	m.request(func() groups.Request {
		c := &groups.Commit{Group: m.g.groups[m.group], Member: id, Epoch: epoch, Sequence: sequence}
		for _, p := range positions {
			// Each copy that arrives is told from the others.
			c.Offsets = append(c.Offsets, groups.CommitOffset{
				Partition: p.r.partition, TopicName: m.g.source(p.r.partition.Topic).topic.Name, Offset: p.at, LeaderEpoch: -1,
				Metadata: strconv.FormatInt(m.g.newCommit(), 10),
			})
		}
		m.g.sawCommit(m.group, int64(session), sent, c)
		return c
	}, func(r groups.Reply, known bool) {
		if m.session != session {
			return
		}
		m.committing--
		if !known || r.Refusal != nil {
			return
		}
		for i, refusal := range r.Value.(groups.CommitAnswer).Refusals {
			if refusal == nil {
				positions[i].r.committed = max(positions[i].r.committed, positions[i].at)
			}
		}
	})
}
