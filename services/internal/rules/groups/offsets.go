package groups

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// maxMetadata is how many bytes the metadata of a commit may have.
const maxMetadata = 4096

// commit reports whether it is through. What one round can write is recorded at once or not
// at all; a larger commit takes several, during which the group gets no other request.
func (s *Shard) commit(w *waiting, r *Commit) bool {
	g := s.groups[r.Group]
	m := g.member(r.Member)
	if why := s.mayCommit(g, m, r); why != nil {
		s.refuse(w.ticket, why)
		return true
	}
	if w.settled == 0 {
		w.refusals = make([]*Refusal, len(r.Offsets))
	}
	whole := commitBytes(r) <= s.config.RoundBytes
	var records []*OffsetRecord
	bytes, count := 0, 0
	if g != nil {
		count = len(g.offsets)
	}
	for ; w.settled < len(r.Offsets); w.settled++ {
		if !whole && len(records) > 0 && s.bytes+bytes >= s.config.RoundBytes {
			break
		}
		o := &r.Offsets[w.settled]
		var before *OffsetRecord
		if g != nil {
			before = g.offsets[o.Partition]
		}
		fresh := before == nil
		why := s.checkOffset(r, m, o, before)
		if why == nil && fresh && count >= s.config.OffsetsPerGroup {
			why = refusal(errorsv1.Reason_REASON_LIMIT_REACHED,
				"group %q has offsets of %d partitions, as many as it may have: delete those of topics that it no longer reads",
				r.Group, count)
		}
		if why != nil {
			w.refusals[w.settled] = why
			continue
		}
		if fresh {
			count++
		}
		record := &OffsetRecord{
			Group: r.Group, Partition: o.Partition, TopicName: o.TopicName, Offset: o.Offset,
			LeaderEpoch: o.LeaderEpoch, Metadata: o.Metadata, Committed: time.UnixMilli(s.now.UnixMilli()),
			Sequence: r.Sequence,
		}
		if m != nil {
			owned, _ := m.find(o.Partition)
			record.Since = owned.Since
		}
		bytes += recordBytes(record)
		records = append(records, record)
	}
	if len(records) > 0 && (g == nil || len(g.members) == 0) {
		// The time without members counts from the last commit.
		defer func() { s.rest(s.groups[r.Group]) }()
		if g == nil || g.record.Empty > 0 {
			record := GroupRecord{Group: r.Group}
			if g != nil {
				record = *g.record
				record.Empty = 0
			}
			s.emit(&record)
		}
	}
	for _, record := range records {
		s.emit(record)
	}
	if w.settled < len(r.Offsets) {
		return false
	}
	s.reply(w.ticket, CommitAnswer{Refusals: w.refusals})
	return true
}

// commitBytes is about what a commit writes at most.
func commitBytes(r *Commit) int {
	n := len(r.Offsets) * recordBytes(&OffsetRecord{Group: r.Group})
	for i := range r.Offsets {
		n += len(r.Offsets[i].TopicName) + len(r.Offsets[i].Metadata)
	}
	return n
}

// mayCommit returns why nothing of a commit is recorded; g and m may be nil.
func (s *Shard) mayCommit(g *group, m *member, r *Commit) *Refusal {
	switch {
	case checkGroup(r.Group) != nil:
		return checkGroup(r.Group)
	case r.Member == "" && g == nil:
		return s.admitGroup(r.Group)
	case r.Member == "" && len(g.members) > 0:
		return notEmpty(g)
	case r.Member == "":
		return nil
	case m == nil || m.Away:
		return unknownMember(r.Group, r.Member)
	case m.superseded:
		return instanceFenced(g.id, m)
	case r.Epoch > m.Epoch:
		return follows(g.id, m, r.Epoch)
	}
	return nil
}

// checkOffset returns why one offset is not recorded; m is nil where no member commits.
// What a member was told to give up is its own until it has, and the last commit of it
// counts. before is the partition's record, which may be nil.
func (s *Shard) checkOffset(r *Commit, m *member, o *CommitOffset, before *OffsetRecord) *Refusal {
	switch {
	case o.Offset < 0 || o.LeaderEpoch < -1 || o.Index < 0:
		return refusal(errorsv1.Reason_REASON_INVALID_REQUEST,
			"offset %d of partition %d of topic %q has to be at least 0, and its leader epoch %d at least -1",
			o.Offset, o.Index, o.TopicName, o.LeaderEpoch)
	case !utf8.ValidString(o.Metadata) || strings.ContainsFunc(o.Metadata, notInMetadata):
		return refusal(errorsv1.Reason_REASON_INVALID_REQUEST,
			"the metadata %.80q of partition %d of topic %q is not UTF-8 or has control characters: encode it, such as in base64",
			o.Metadata, o.Index, o.TopicName)
	case len(o.Metadata) > maxMetadata:
		return refusal(errorsv1.Reason_REASON_METADATA_TOO_LARGE,
			"the metadata of partition %d of topic %q has %d bytes, more than %d: shorten it",
			o.Index, o.TopicName, len(o.Metadata), maxMetadata)
	case s.topics.Deleted(o.Topic):
		return refusal(errorsv1.Reason_REASON_TOPIC_NOT_FOUND,
			"topic %q with id %v is deleted: read the topic that has its name now, if there is one", o.TopicName, o.Topic)
	case m == nil:
		return nil
	}
	owned, found := m.find(o.Partition)
	switch {
	case !found:
		return refusal(errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED,
			"member %q of group %q does not have partition %d of topic %q: commit only what its assignment holds",
			m.Member, r.Group, o.Index, o.TopicName)
	case r.Epoch < owned.Since:
		return refusal(errorsv1.Reason_REASON_STALE_MEMBER_EPOCH,
			"member %q of group %q has partition %d of topic %q since epoch %d, and the commit is of epoch %d: read on from the committed offset",
			m.Member, r.Group, o.Index, o.TopicName, owned.Since, r.Epoch)
	case before != nil && before.Since == owned.Since && r.Sequence > 0 && r.Sequence < before.Sequence:
		return refusal(errorsv1.Reason_REASON_STALE_COMMIT,
			"member %q of group %q has committed offset %d of partition %d of topic %q with sequence %d, and this commit of offset %d has %d: number each commit above the one before, and drop those that come late",
			m.Member, r.Group, before.Offset, o.Index, o.TopicName, before.Sequence, o.Offset, r.Sequence)
	}
	return nil
}

// notInMetadata reports whether metadata must not have a character: it is text, possibly
// of several lines.
func notInMetadata(r rune) bool {
	return unicode.IsControl(r) && r != '\t' && r != '\n' && r != '\r'
}

func (s *Shard) fetch(r *Fetch) []*OffsetRecord {
	g := s.groups[r.Group]
	if g == nil {
		return nil
	}
	if r.Partitions == nil {
		return g.sortedOffsets()
	}
	return g.pick(r.Partitions)
}

func (s *Shard) checkReset(ticket Ticket, r *CheckReset) {
	g := s.groups[r.Group]
	var why *Refusal
	switch {
	case g != nil && len(g.members) > 0:
		why = notEmpty(g)
	case g == nil && r.Create:
		why = s.admitGroup(r.Group)
	case g == nil:
		why = refusal(errorsv1.Reason_REASON_GROUP_NOT_FOUND,
			"there is no group %q whose offsets could be moved: check its name, or ask for it to be created", r.Group)
	}
	if why != nil {
		s.refuse(ticket, why)
		return
	}
	var offsets []*OffsetRecord
	if g != nil {
		offsets = g.sortedOffsets()
	}
	s.reply(ticket, offsets)
}

func (g *group) sortedOffsets() []*OffsetRecord {
	offsets := make([]*OffsetRecord, 0, len(g.offsets))
	for _, o := range g.offsets {
		offsets = append(offsets, o)
	}
	slices.SortFunc(offsets, compareOffsets)
	return offsets
}

// pick returns the offsets of those partitions that have one.
func (g *group) pick(partitions []Partition) []*OffsetRecord {
	var offsets []*OffsetRecord
	for _, p := range partitions {
		if o := g.offsets[p]; o != nil {
			offsets = append(offsets, o)
		}
	}
	slices.SortFunc(offsets, compareOffsets)
	return slices.Compact(offsets)
}

// compareOffsets orders by topic names and partitions; a topic that was created anew has
// the name of the old one.
func compareOffsets(a, b *OffsetRecord) int {
	return cmp.Or(strings.Compare(a.TopicName, b.TopicName), cmp.Compare(a.Index, b.Index),
		comparePartitions(a.Partition, b.Partition))
}

// deleteOffsets reports whether it is through: many offsets take several rounds.
func (s *Shard) deleteOffsets(w *waiting, r *DeleteOffsets) bool {
	g := s.groups[r.Group]
	if g == nil && w.deleted == nil {
		s.refuse(w.ticket, groupNotFound(r.Group))
		return true
	}
	if g == nil {
		g = &group{id: r.Group}
	}
	offsets := g.pick(r.Partitions)
	for _, o := range offsets {
		name := o.TopicName
		if t, ok := s.topics.ByID(o.Topic); ok {
			name = t.Name
		}
		if s.subscribed(g, []string{name}) {
			s.refuse(w.ticket, refusal(errorsv1.Reason_REASON_GROUP_NOT_EMPTY,
				"members of group %q are subscribed to topic %q (the group has %s): stop them first; "+stillMembers, g.id, name, g.names()))
			return true
		}
	}
	if w.deleted == nil {
		w.deleted = make(map[Partition]*OffsetRecord, len(offsets))
	}
	for _, o := range offsets {
		if s.bytes > 0 && s.bytes >= s.config.RoundBytes {
			return false
		}
		s.emit(&Tombstone{Group: g.id, Offset: &o.Partition})
		w.deleted[o.Partition] = o
	}
	s.restIfBare(g)
	s.reply(w.ticket, slices.SortedFunc(maps.Values(w.deleted), compareOffsets))
	return true
}

// deleteGroup reports whether it is through: a group with many offsets takes several
// rounds.
func (s *Shard) deleteGroup(ticket Ticket, r *DeleteGroup) bool {
	g := s.groups[r.Group]
	switch {
	case g == nil:
		s.refuse(ticket, groupNotFound(r.Group))
	case len(g.members) > 0:
		s.refuse(ticket, notEmpty(g))
	case !s.forget(g):
		return false
	default:
		s.reply(ticket, nil)
	}
	return true
}

// forget removes a group without members, its offsets first. It reports whether all that
// fits into the round.
func (s *Shard) forget(g *group) bool {
	if !s.bury(g, func(*OffsetRecord) bool { return true }) {
		return false
	}
	s.emit(&Tombstone{Group: g.id})
	return true
}

// bury removes offsets of a group as far as the round has room, and reports whether it has
// for all. A round has room for one at least.
func (s *Shard) bury(g *group, which func(*OffsetRecord) bool) bool {
	for _, o := range g.sortedOffsets() {
		if !which(o) {
			continue
		}
		if s.bytes > 0 && s.bytes >= s.config.RoundBytes {
			return false
		}
		s.emit(&Tombstone{Group: g.id, Offset: &o.Partition})
	}
	return true
}

// seekDeleted marks a group that has offsets of a deleted topic.
func (s *Shard) seekDeleted(g *group) {
	for p := range g.offsets {
		g.purge = g.purge || s.topics.Deleted(p.Topic)
	}
}

func (s *Shard) purgeDeleted(g *group) {
	g.purge = !s.bury(g, func(o *OffsetRecord) bool { return s.topics.Deleted(o.Topic) })
	if g.purge {
		s.list(g)
		return
	}
	s.restIfBare(g)
}

func groupNotFound(group GroupID) *Refusal {
	return refusal(errorsv1.Reason_REASON_GROUP_NOT_FOUND, "there is no group %q: check its name", group)
}
