package sim

import (
	"reflect"
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// groupHistory is what has happened to the groups of one offsets partition. Like the
// checker it knows facts only. What its log holds is what a leader's high watermark
// has passed.
type groupHistory struct {
	k         *checker
	partition int
	// excused says that an unclean election may have lost what groups rest on: from
	// then on nothing is held against anybody.
	excused bool

	// Of the log: records are its fold, epoch is that of the last coordinator, and
	// fences are when each came to be committed.
	records map[recordKey]groups.Record
	epoch   cluster.CoordinatorEpoch
	fences  []fenceFact
	end     int64
	// assigned is what each member was to read at each epoch, as the log has it: more than
	// one thing where a static member that was away has lost something.
	assigned map[assignmentKey][][]groups.Owned

	// epochs are the newest of groups, those too that are deleted.
	epochs map[groups.GroupID]groups.Epoch

	commits map[int64]*commitFact
	// retention is how long the offsets of a group without members are kept, 0 for ever.
	// emptied is since when a group has none, as far as its coordinators have decided so,
	// and removed are the topics that are deleted.
	retention time.Duration
	emptied   map[groups.GroupID]time.Duration
	removed   map[cluster.TopicID]bool
	// ended is when the newest tombstone of a group came, in the order of what happens.
	ended map[groups.GroupID]int64
	// owners are the members that have a partition, by their own lights, and sessions is
	// when a member's session is over by its own clock.
	owners    map[offsetKey][]string
	sessions  map[string]time.Duration
	processed map[offsetKey]*progress
	// highest is the highest offset that was committed since it was set or deleted: a late
	// commit of its owner may have followed.
	highest   map[offsetKey]int64
	registers map[offsetKey]*register
}

// recordKey is what a record is about: the newest with the same key holds.
type recordKey struct {
	group  groups.GroupID
	member groups.MemberID
	// offset says that it is that of the partition.
	offset    bool
	partition groups.Partition
}

type assignmentKey struct {
	group  groups.GroupID
	member groups.MemberID
	epoch  groups.Epoch
}

type offsetKey struct {
	group     groups.GroupID
	partition groups.Partition
}

type fenceFact struct {
	epoch cluster.CoordinatorEpoch
	at    time.Duration
}

// commitFact is an offset that a member has asked to be recorded.
type commitFact struct {
	group     groups.GroupID
	member    groups.MemberID
	epoch     groups.Epoch
	partition groups.Partition
	offset    int64
	// sent orders what a member has sent in a session; a copy has those of its original, as
	// it has the number that the member gave the commit, 0 for none.
	session, sent int64
	sequence      groups.CommitSequence
	// logged says that the log has it, deleted that it has it no more, refused that the
	// coordinator has refused it for good.
	logged, deleted, refused bool
	// by is the epoch of the coordinator that has recorded it, and at the place of that in
	// the order of what happens.
	by cluster.CoordinatorEpoch
	at int64
}

// progress is what members of a group have processed of a partition: all below upTo, and
// some above.
type progress struct {
	upTo  int64
	above map[int64]bool
}

func newGroupHistory(k *checker, partition int, retention time.Duration) *groupHistory {
	return &groupHistory{
		k: k, partition: partition, retention: retention,
		records: make(map[recordKey]groups.Record), assigned: make(map[assignmentKey][][]groups.Owned),
		epochs: make(map[groups.GroupID]groups.Epoch), emptied: make(map[groups.GroupID]time.Duration),
		ended: make(map[groups.GroupID]int64), removed: make(map[cluster.TopicID]bool),
		commits: make(map[int64]*commitFact), highest: make(map[offsetKey]int64), registers: make(map[offsetKey]*register),
		owners: make(map[offsetKey][]string), sessions: make(map[string]time.Duration), processed: make(map[offsetKey]*progress),
	}
}

func (h *groupHistory) fail(invariant int, format string, args ...any) {
	if !h.excused {
		h.k.fail(invariant, h.partition, format, args...)
	}
}

func keyOf(record groups.Record) recordKey {
	switch r := record.(type) {
	case *groups.GroupRecord:
		return recordKey{group: r.Group}
	case *groups.MemberRecord:
		return recordKey{group: r.Group, member: r.Member}
	case *groups.OffsetRecord:
		return recordKey{group: r.Group, offset: true, partition: r.Partition}
	case *groups.Tombstone:
		if r.Offset != nil {
			return recordKey{group: r.Group, offset: true, partition: *r.Offset}
		}
		return recordKey{group: r.Group, member: r.Member}
	default:
		return recordKey{}
	}
}

// logged takes note of a batch that is committed: the records of one round of a
// coordinator with an epoch.
func (h *groupHistory) logged(now time.Duration, epoch cluster.CoordinatorEpoch, end int64, batch payload) {
	records := batch.records
	if epoch < h.epoch {
		h.fail(32, "coordinator epoch %d has appended behind %d, up to %d", epoch, h.epoch, end)
	}
	if fence, ok := records[0].(*groups.FenceRecord); ok {
		if fence.Epoch != epoch || len(records) != 1 {
			h.fail(32, "coordinator epoch %d has appended a fence of %d with %d records", epoch, fence.Epoch, len(records))
		}
		if epoch > h.epoch {
			h.fences = append(h.fences, fenceFact{epoch, now})
		}
	} else if epoch != h.epoch {
		h.fail(32, "coordinator epoch %d has appended before its fence", epoch)
	}
	h.epoch, h.end = max(h.epoch, epoch), end
	var touched []groups.GroupID
	for _, record := range records {
		key := keyOf(record)
		if !slices.Contains(touched, key.group) {
			touched = append(touched, key.group)
		}
		switch r := record.(type) {
		case *groups.GroupRecord:
			if r.Epoch == 0 && h.records[key] == nil {
				break
			}
			if r.Epoch < h.epochs[r.Group] || r.Epoch == h.epochs[r.Group] && h.records[key] == nil {
				h.fail(27, "group %s has epoch %d after %d", r.Group, r.Epoch, h.epochs[r.Group])
			}
			h.epochs[r.Group] = r.Epoch
		case *groups.MemberRecord:
			h.memberLogged(key, r)
		case *groups.OffsetRecord:
			h.offsetLogged(key, r, batch.decision)
		case *groups.Tombstone:
			h.buried(key, batch.decision)
		}
		fold(h.records, record)
	}
	for _, id := range touched {
		h.unshared(id)
	}
}

// fold applies a record to the newest of each key.
func fold(records map[recordKey]groups.Record, record groups.Record) {
	key := keyOf(record)
	switch r := record.(type) {
	case *groups.FenceRecord:
		return
	case *groups.Tombstone:
		delete(records, key)
		return
	case *groups.GroupRecord:
		if r.Epoch == 0 && records[key] == nil {
			return // It says that there is a group, and nothing of it.
		}
	}
	records[key] = record
}

// memberLogged is a record of a member: its epoch does not fall, and one epoch is one
// assignment.
func (h *groupHistory) memberLogged(key recordKey, r *groups.MemberRecord) {
	if before, ok := h.records[key].(*groups.MemberRecord); ok && r.Epoch < before.Epoch {
		h.fail(27, "member %s has epoch %d after %d", r.Member, r.Epoch, before.Epoch)
	}
	at := assignmentKey{r.Group, r.Member, r.Epoch}
	known := h.assigned[at]
	if n := len(known); n == 0 || len(r.Assigned) < len(known[n-1]) && r.Away {
		h.assigned[at] = append(known, r.Assigned)
	}
	if n := len(known); n > 0 && gained(known[n-1], r.Assigned) {
		h.fail(27, "member %s has %v at epoch %d, and had %v", r.Member, r.Assigned, r.Epoch, known[n-1])
	}
	for _, o := range r.Assigned {
		if o.Since > r.Epoch {
			h.fail(27, "member %s has %v at epoch %d", r.Member, o, r.Epoch)
		}
	}
}

// gained says whether there is something in an assignment that was not there before.
func gained(before, now []groups.Owned) bool {
	return slices.ContainsFunc(now, func(o groups.Owned) bool { return !slices.Contains(before, o) })
}

// unshared looks whether the log gives a partition of a group to two members.
func (h *groupHistory) unshared(group groups.GroupID) {
	has := make(map[groups.Partition]groups.MemberID)
	for key, record := range h.records {
		r, ok := record.(*groups.MemberRecord)
		if !ok || key.group != group {
			continue
		}
		for _, owned := range [...][]groups.Owned{r.Assigned, r.Revoking} {
			for _, o := range owned {
				if other, taken := has[o.Partition]; taken {
					h.fail(27, "group %s: the log gives partition %d of topic %d to two members", group, o.Index, o.Topic[15])
					_ = other
				}
				has[o.Partition] = r.Member
			}
		}
	}
}

// offsetLogged is an offset that is recorded: by a member that has the partition at the
// epoch of the commit, of what was processed, and not below an earlier one; or by an
// operator who resets it while there are no members.
func (h *groupHistory) offsetLogged(key recordKey, r *groups.OffsetRecord, d decision) {
	c := h.commits[commitID(r)]
	if c == nil || c.group != r.Group || c.partition != r.Partition || c.offset != r.Offset {
		h.fail(28, "the log has offset %d of %v, commit %s, which nobody has sent so", r.Offset, r.Partition, r.Metadata)
		return
	}
	if c.refused {
		h.fail(29, "the log has a commit of member %s at epoch %d that was refused", c.member, c.epoch)
	}
	c.logged, c.by, c.at = true, h.epoch, h.k.tick()
	if c.member == "" {
		h.reset(r, d)
		return
	}
	m, ok := h.records[recordKey{group: r.Group, member: c.member}].(*groups.MemberRecord)
	had := func(owned []groups.Owned) bool {
		return slices.ContainsFunc(owned, func(o groups.Owned) bool { return o.Partition == r.Partition && o.Since <= c.epoch })
	}
	if !ok || c.epoch > m.Epoch || !had(m.Assigned) && !had(m.Revoking) {
		h.fail(29, "member %s commits %v at epoch %d; the log has %+v", c.member, r.Partition, c.epoch, m)
	}
	if p := h.processed[offsetKey{r.Group, r.Partition}]; r.Offset > 0 && (p == nil || p.upTo < r.Offset) {
		h.fail(30, "offset %d of %v is committed, and not all below was processed: %+v", r.Offset, r.Partition, p)
	}
	h.highest[offsetKey{r.Group, r.Partition}] = max(h.highest[offsetKey{r.Group, r.Partition}], r.Offset)
	before, ok := h.records[key].(*groups.OffsetRecord)
	if !ok {
		return
	}
	b := h.commits[commitID(before)]
	if b != nil && b.member == c.member && c.sequence > 0 && c.sequence < b.sequence {
		h.fail(28, "commit %d of member %s, of offset %d of %v, follows its commit %d", c.sequence, c.member, r.Offset, r.Partition, b.sequence)
	}
	if before.Offset <= r.Offset {
		return
	}
	// The network may bring the commits of an owner who does not number them in another
	// order, and one who begins anew may go on from where others were not to be seen yet.
	if b == nil || b.member != c.member || b.session == c.session && b.sent < c.sent {
		h.fail(28, "offset %d of %v, of member %s, follows %d, of %+v", r.Offset, r.Partition, c.member, before.Offset, b)
	}
}

// takes is a member that begins to read a partition.
func (h *groupHistory) takes(now time.Duration, group groups.GroupID, p groups.Partition, member string) {
	key := offsetKey{group, p}
	for _, other := range h.owners[key] {
		if until := h.sessions[other]; other != member && until > now {
			h.fail(27, "%s takes partition %d of topic %d, which %s has, whose session goes on until %s", member, p.Index, p.Topic[15], other, until)
		}
	}
	h.owners[key] = append(h.owners[key], member)
}

// gives is a member that reads a partition no more.
func (h *groupHistory) gives(group groups.GroupID, p groups.Partition, member string) {
	key := offsetKey{group, p}
	h.owners[key] = slices.DeleteFunc(h.owners[key], func(other string) bool { return other == member })
}

// session is when the session of a member is over, by its own clock.
func (h *groupHistory) session(member string, until time.Duration) { h.sessions[member] = until }

// ends is a member whose process is gone.
func (h *groupHistory) ends(member string) { h.sessions[member] = 0 }

// owns says whether a member has a partition, by its own lights.
func (h *groupHistory) owns(now time.Duration, group groups.GroupID, p groups.Partition, member string) bool {
	return h.sessions[member] > now && slices.Contains(h.owners[offsetKey{group, p}], member)
}

// processes is a record that a member has processed.
func (h *groupHistory) processes(group groups.GroupID, p groups.Partition, offset int64) {
	x := h.progress(offsetKey{group, p})
	if offset != x.upTo {
		if offset > x.upTo {
			x.above[offset] = true
		}
		return
	}
	x.reach(offset + 1)
}

func (h *groupHistory) progress(key offsetKey) *progress {
	x := h.processed[key]
	if x == nil {
		x = &progress{above: make(map[int64]bool)}
		h.processed[key] = x
	}
	return x
}

// reach notes that all below an offset is done with.
func (x *progress) reach(offset int64) {
	for x.upTo < offset || x.above[x.upTo] {
		delete(x.above, x.upTo)
		x.upTo++
	}
}

// assigns is an assignment that a coordinator lets out: the log has it.
func (h *groupHistory) assigns(group groups.GroupID, member groups.MemberID, epoch groups.Epoch, partitions []groups.Owned) {
	known := h.assigned[assignmentKey{group, member, epoch}]
	if !slices.ContainsFunc(known, func(logged []groups.Owned) bool { return slices.Equal(logged, partitions) }) {
		h.fail(32, "member %s is assigned %v at epoch %d; the log has %v", member, partitions, epoch, known)
	}
}

// proves is an answer that says something about the state of groups, by a coordinator
// to whom a request came at a time: since then a leader has confirmed that its fence
// held.
func (h *groupHistory) proves(epoch cluster.CoordinatorEpoch, came, confirmed time.Duration, what string) {
	if confirmed < came {
		h.fail(32, "coordinator epoch %d answers %s, which came at %s, and its fence was last confirmed at %s", epoch, what, came, confirmed)
	}
}

// confirms is a leader's word that a coordinator's fence held when it was asked.
func (h *groupHistory) confirms(epoch cluster.CoordinatorEpoch, came time.Duration) {
	if f, ok := h.superseded(epoch); ok && f.at < came {
		h.fail(32, "a leader that was asked at %s confirms coordinator epoch %d, and epoch %d was there since %s", came, epoch, f.epoch, f.at)
	}
}

// beats is the answer to a heartbeat that came at a time: without a confirmation since
// then, one that is superseded may give it for a while.
func (h *groupHistory) beats(now time.Duration, epoch cluster.CoordinatorEpoch, came, confirmed, confidence time.Duration) {
	if f, ok := h.superseded(epoch); ok && confirmed < came && f.at+confidence < now {
		h.fail(32, "coordinator epoch %d answers a heartbeat, and epoch %d was there since %s", epoch, f.epoch, f.at)
	}
}

// superseded returns the first fence that ended an epoch.
func (h *groupHistory) superseded(epoch cluster.CoordinatorEpoch) (fenceFact, bool) {
	i := slices.IndexFunc(h.fences, func(f fenceFact) bool { return f.epoch > epoch })
	if i < 0 {
		return fenceFact{}, false
	}
	return h.fences[i], true
}

// remembers is the memory of a coordinator that has all of the log.
func (h *groupHistory) remembers(epoch cluster.CoordinatorEpoch, memory func(func(groups.Record) bool)) {
	count := 0
	for record := range memory {
		count++
		if known := h.records[keyOf(record)]; known != record && !reflect.DeepEqual(known, record) {
			h.fail(31, "coordinator epoch %d remembers %+v, and the log up to %d has %+v", epoch, record, h.end, known)
			return
		}
	}
	if count != len(h.records) {
		h.fail(31, "coordinator epoch %d remembers %d records, and the log up to %d has %d", epoch, count, h.end, len(h.records))
	}
}
