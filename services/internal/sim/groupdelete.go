package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// What may take offsets and groups away: an operator who asks for it, the deletion of
// their topic, and time without members.

// payload is what a batch of an offsets partition holds.
type payload struct {
	records []groups.Record
	decision
}

// decision is when a coordinator has decided what it appends, and what of the requests
// that it had then asks for deletions. tick is its place in the order of what happens to
// registers.
type decision struct {
	at        time.Duration
	tick      int64
	deletions []groups.Request
}

// asked says whether somebody wants an offset to be gone, or the group.
func (d decision) asked(key recordKey) bool {
	return slices.ContainsFunc(d.deletions, func(r groups.Request) bool {
		switch r := r.(type) {
		case *groups.DeleteGroup:
			return r.Group == key.group
		case *groups.DeleteOffsets:
			return key.offset && r.Group == key.group && slices.Contains(r.Partitions, key.partition)
		default:
			return false
		}
	})
}

// buried is a tombstone in the log.
func (h *groupHistory) buried(key recordKey, d decision) {
	switch {
	case key.member != "":
		delete(h.records, key) // It is no member any more.
		if h.members(key.group) == 0 {
			h.emptied[key.group] = d.at
		}
	case key.offset:
		before, ok := h.records[key].(*groups.OffsetRecord)
		if !ok {
			return // The other tombstone of two.
		}
		h.offsetBuried(key, before, d)
	default:
		if !d.asked(key) {
			// Its offsets have gone before, each by its own; without any it goes soon.
			if n, empty := h.members(key.group), h.isEmptied(key.group); n > 0 || !empty {
				h.fail(28, "group %s goes by itself, and has %d members (none: %t)", key.group, n, empty)
			}
			h.k.counts.GroupsExpired++
		} else {
			h.k.counts.GroupsDeleted++
			if n := h.members(key.group); n > 0 {
				h.fail(28, "group %s is deleted, and has %d members", key.group, n)
			}
		}
		delete(h.emptied, key.group)
		h.ended[key.group] = h.k.tick()
	}
}

// offsetBuried is an offset that the log has no more.
func (h *groupHistory) offsetBuried(key recordKey, before *groups.OffsetRecord, d decision) {
	switch {
	case h.removed[key.partition.Topic]:
		h.k.counts.OffsetsPurged++
	case d.asked(key):
		h.k.counts.OffsetsDeleted++
		if id := h.reader(key.group, before.TopicName); id != "" {
			h.fail(28, "the offset of partition %d of topic %d is deleted, and member %s of group %s is subscribed to it",
				key.partition.Index, numberOf(key.partition.Topic), id, key.group)
		}
	default:
		h.expires(key, d)
	}
	if c := h.commits[commitID(before)]; c != nil {
		c.deleted = true
	}
	delete(h.highest, offsetKey{key.group, key.partition})
	// To who reads the register, nobody has written it.
	r := h.register(offsetKey{key.group, key.partition})
	r.operations = append(r.operations, operationFact{began: d.tick, ended: h.k.tick(), write: true})
}

// expires is something that goes without anybody asking for it: for the time without
// members, then.
func (h *groupHistory) expires(key recordKey, d decision) {
	since, empty := h.emptied[key.group]
	if n := h.members(key.group); n > 0 || !empty || h.retention == 0 || d.at-since < h.retention {
		h.fail(28, "what group %s has of %+v expires at %s; it has %d members, and none since %s (%t), and keeps offsets for %s",
			key.group, key.partition, d.at, n, since, empty, h.retention)
	}
}

// isEmptied reports whether the group has been without members since it last had some.
func (h *groupHistory) isEmptied(group groups.GroupID) bool {
	_, empty := h.emptied[group]
	return empty
}

// reset is an offset that an operator sets: what lies below is passed over with leave, and
// the time without members begins anew.
func (h *groupHistory) reset(r *groups.OffsetRecord, d decision) {
	if n := h.members(r.Group); n > 0 {
		h.fail(29, "offset %d of %v is set, and group %s has %d members", r.Offset, r.Partition, r.Group, n)
	}
	h.k.counts.Resets++
	h.emptied[r.Group] = d.at
	h.highest[offsetKey{r.Group, r.Partition}] = r.Offset
	h.progress(offsetKey{r.Group, r.Partition}).reach(r.Offset)
}

// members returns how many members a group has in the log.
func (h *groupHistory) members(group groups.GroupID) (n int) {
	for key := range h.records {
		if key.group == group && key.member != "" {
			n++
		}
	}
	return n
}

// reader returns a member that is subscribed to a topic, or "".
func (h *groupHistory) reader(group groups.GroupID, topic string) (id groups.MemberID) {
	for key, record := range h.records {
		if m, ok := record.(*groups.MemberRecord); ok && key.group == group && subscribed(m.Subscription, topic) {
			id = max(id, m.Member)
		}
	}
	return id
}

// deleted is the answer to who asked for offsets to be deleted: these were.
func (h *groupHistory) deleted(offsets []*groups.OffsetRecord) {
	for _, o := range offsets {
		if c := h.commits[commitID(o)]; c == nil || !c.deleted {
			h.fail(28, "offset %d of %v is answered to be deleted, and the log has it", o.Offset, o.Partition)
		}
	}
}

// gone is the answer to who asked at a place in the order of what happens for a group to
// be deleted. It may have been made anew at once.
func (h *groupHistory) gone(group groups.GroupID, began int64) {
	if h.ended[group] < began {
		h.fail(28, "group %s is answered to be deleted, and the log has no tombstone of it since that was asked for", group)
	}
}

// removes is a topic that is deleted.
func (h *groupHistory) removes(topic cluster.TopicID) { h.removed[topic] = true }

// unsettled returns what the log has of a group that cannot be once it has read and
// committed all of these partitions, or "": other offsets, or some of deleted topics.
// After an unclean election it does not know what the log has.
func (h *groupHistory) unsettled(group groups.GroupID, read []groups.Partition, end func(groups.Partition) int64) string {
	if h.excused {
		return ""
	}
	for _, p := range read {
		if at := h.highest[offsetKey{group, p}]; at != end(p) {
			return fmt.Sprintf("the log has offset %d of %v at most, which ends at %d", at, p, end(p))
		}
	}
	for key := range h.records {
		if key.group == group && key.offset && h.removed[key.partition.Topic] {
			return fmt.Sprintf("the log has an offset of topic %d, which is deleted", numberOf(key.partition.Topic))
		}
	}
	return ""
}
