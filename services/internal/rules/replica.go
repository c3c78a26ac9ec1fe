package rules

import (
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// Role is what a node is to a partition.
type Role uint8

// The roles.
const (
	// Offline: the partition has no leader, or the node no replica of it.
	Offline Role = iota
	// Following: another node leads.
	Following
	// Leading: the node leads.
	Leading
)

// String returns the role in lower case.
func (r Role) String() string {
	switch r {
	case Leading:
		return "leader"
	case Following:
		return "follower"
	default:
		return "offline"
	}
}

// RoleIn returns what a node is to a partition.
func RoleIn(p cluster.Partition, node cluster.NodeID) Role {
	switch {
	case p.Leader == node:
		return Leading
	case p.Leader != cluster.NoNode && slices.Contains(p.Replicas, node):
		return Following
	default:
		return Offline
	}
}

// Replica is what one replica of a partition knows of its own log, of what the
// cluster agreed on, and, while it leads, of the others. It decides; whoever owns
// it reads and writes the log, talks to others, and tells it what came of that.
// Not safe for concurrent use.
//
// There are three ends of a log: what is queued to be written (Next), what is
// written and as durable as the topic asks (LogEnd), and what every member of the
// maximal ISR has so (HighWatermark). HighWatermark <= LogEnd <= Next.
//
// The protocol is KIP-101, 279, 320, 497, 841, 903 and 966 as a whole:
//
//	cluster    -> Apply      -> a leadership begins or ends
//	producer   -> Queue      -> written: Committed
//	leader     <- Position   <- follower
//	leader     -> Sending    -> follower: Receive -> append, truncate or begin anew
//	follower   -> Committed, StartCommitted -> Position -> leader: Fetch -> the watermarks move
//	leader     -> Propose    -> cluster: ProposeISR -> Answer, or Apply
type Replica struct {
	self cluster.NodeID
	// minInsync is the topic's min.insync.replicas.
	minInsync int32
	// assignment is what the cluster agreed on, if anything is known of it.
	assignment cluster.Partition
	known      bool
	role       Role
	// agrees says that the leader of this epoch has found this log to be a part of
	// its own, so that nothing of it is cut in this epoch any more.
	agrees bool
	// failed says that something of the log was lost, and withdrawn that the cluster
	// has agreed since then to count on nothing of it.
	failed, withdrawn bool

	// epochs covers what is queued.
	epochs Epochs
	// epochStart is where this leadership begins.
	epochStart int64

	logStart int64
	// startWritten is the log start that is as durable as the topic asks.
	startWritten  int64
	next          int64
	logEnd        int64
	highWatermark int64
	// servesFrom is where the batch begins that holds the log start, as far as that
	// is known; otherwise the log start.
	servesFrom int64

	// leaderHighWatermark is what the leader of this epoch told last.
	leaderHighWatermark int64
	// settled is the end of what was queued when this epoch was learned of.
	settled int64

	// coordinatorEpoch is the highest that has appended, here or at a leader that this
	// replica followed.
	coordinatorEpoch cluster.CoordinatorEpoch

	// leadership is nil while the replica does not lead, and while there are no
	// others to lead: most replicas of a process are idle, and pay for what they
	// hold.
	*leadership
}

// leadership is what a leader knows of the others.
type leadership struct {
	// ledSince is when it began.
	ledSince time.Time
	// followers are the other replicas, in the order of the assignment.
	followers []follower
	// proposal is what was proposed and is not answered yet; nil for nothing. It is
	// based on the partition epoch of the assignment.
	proposal []ISRMember
	// probe is the number of the latest probe in this leader epoch.
	probe int64
	// possible are the members of all that was proposed on that partition epoch. A
	// refusal does not take them back: the network may still hold an earlier copy of
	// the request, to be accepted later. Only a higher partition epoch does.
	possible []cluster.NodeID
}

// follower is what a leader knows of another replica in its leader epoch.
type follower struct {
	node  cluster.NodeID
	epoch cluster.NodeEpoch
	// fetched says that it has shown a position; logEnd is the latest.
	fetched bool
	logEnd  int64
	// logStart is the log start of the latest position.
	logStart int64
	// At seenAt, a fetch, the leader's log ended at seenEnd, which it has not reached
	// since. caughtUp is the latest time at which it is known to have had all that there
	// was.
	seenEnd  int64
	seenAt   time.Time
	caughtUp time.Time
	// probe is the latest that it has answered.
	probe int64
}

// ReplicaLog is what a replica finds in its log when its process starts.
type ReplicaLog struct {
	Epochs        Epochs
	LogStart      int64
	LogEnd        int64
	HighWatermark int64
	// CoordinatorEpoch is the highest that has appended; 0 where none has.
	CoordinatorEpoch cluster.CoordinatorEpoch
}

// NewReplica returns the replica of a node with that log. It is offline until
// [Replica.Apply].
func NewReplica(self cluster.NodeID, minInsync int, log ReplicaLog) Replica {
	r := Replica{
		self: self, minInsync: int32(minInsync), epochs: log.Epochs,
		logStart: log.LogStart, startWritten: log.LogStart, servesFrom: log.LogStart, next: log.LogEnd, logEnd: log.LogEnd,
		highWatermark:    min(max(log.HighWatermark, log.LogStart), log.LogEnd),
		coordinatorEpoch: log.CoordinatorEpoch,
	}
	r.assignment.Leader = cluster.NoNode
	r.assignment.LeaderEpoch = NoEpoch
	return r
}

// Assignment returns what the cluster agreed on last, as far as the replica was
// told, and whether it was told anything. Its slices must not be changed.
func (r *Replica) Assignment() (cluster.Partition, bool) { return r.assignment, r.known }

// Role returns what the node is to the partition.
func (r *Replica) Role() Role { return r.role }

// Epoch returns the leader epoch that the replica believes current.
func (r *Replica) Epoch() cluster.LeaderEpoch { return r.assignment.LeaderEpoch }

// Epochs returns the epoch table of what is queued.
func (r *Replica) Epochs() Epochs { return r.epochs }

// EpochStart returns where this leadership begins. While the high watermark lies
// below, the leader does not know what earlier ones have let readers see.
func (r *Replica) EpochStart() int64 { return r.epochStart }

// LogStart returns the first offset that the log holds, with all that is queued.
func (r *Replica) LogStart() int64 { return r.logStart }

// StartWritten returns the log start that is written: what lies below it does not come
// back to this log.
func (r *Replica) StartWritten() int64 { return r.startWritten }

// LowWatermark returns the log start, at a leader, that every member of the maximal
// ISR has written: no leader that follows one without an unclean election begins below
// it. It is 0, which promises nothing, until they have shown it in this leadership, and
// below min ISR.
func (r *Replica) LowWatermark() int64 {
	if r.role != Leading {
		return 0
	}
	h := r.progress()
	return h.LowWatermark(r.startWritten)
}

// Next returns the log end with all that is queued.
func (r *Replica) Next() int64 { return r.next }

// LogEnd returns the end of what is written.
func (r *Replica) LogEnd() int64 { return r.logEnd }

// HighWatermark returns the offset below which no record is ever lost or
// replaced. It never falls, but with a truncation.
func (r *Replica) HighWatermark() int64 { return r.highWatermark }

// Applied says what [Replica.Apply] has changed.
type Applied struct {
	// Stale: what was agreed on is older than what is known; nothing has changed.
	Stale bool
	// TooNew: the log holds records of a later leadership than the one that this node
	// is told of. Nothing has changed: to lead would repeat an epoch, and to follow
	// its leader, which may be a superseded one, would cut records that were
	// acknowledged since.
	TooNew bool
	// Began says that a leadership of this node began; Ended, that one did end.
	// Both are true where another of its own follows.
	Began, Ended bool
}

// Apply takes over what the cluster agreed on.
func (r *Replica) Apply(p cluster.Partition, now time.Time) Applied {
	before := r.assignment
	if r.known && (p.PartitionEpoch < before.PartitionEpoch || p.LeaderEpoch < before.LeaderEpoch) {
		return Applied{Stale: true}
	}
	role := RoleIn(p, r.self)
	if p.LeaderEpoch < r.epochs.Latest() {
		return Applied{TooNew: true}
	}
	if p.PartitionEpoch > before.PartitionEpoch && r.leadership != nil {
		// Whatever was proposed is decided: it was based on an earlier state.
		r.proposal, r.possible = nil, nil
	}
	led := r.role == Leading
	renewed := !r.known || p.LeaderEpoch != before.LeaderEpoch
	r.assignment, r.known, r.role = p, true, role
	if r.counted() {
		r.withdrawn = false
	}
	a := Applied{Began: role == Leading && (renewed || !led), Ended: led && (renewed || role != Leading)}
	if a.Ended || a.Began {
		r.leadership = nil
	}
	if renewed {
		r.leaderHighWatermark, r.settled, r.agrees = 0, r.next, false
	}
	switch {
	case a.Began:
		r.epochs = r.epochs.Begin(p.LeaderEpoch, r.next)
		r.epochStart, r.servesFrom = r.next, r.logStart
		fallthrough
	case role == Leading:
		r.lead(p.Replicas, now)
	default:
		// A leadership without records leaves nothing: else a follower would claim to
		// have records of an epoch that has none.
		r.epochs = r.epochs.TruncateEnd(r.next)
	}
	r.advance()
	return a
}

// lead keeps account of the other replicas.
func (r *Replica) lead(replicas []cluster.NodeID, now time.Time) {
	if len(replicas) == 1 {
		r.leadership = nil
		return
	}
	if r.leadership == nil {
		r.leadership = &leadership{ledSince: now}
	}
	next := make([]follower, 0, len(replicas)-1)
	for _, id := range replicas {
		if id == r.self {
			continue
		}
		f := follower{node: id}
		if known := r.follower(id); known != nil {
			f = *known
		}
		next = append(next, f)
	}
	r.followers = next
}

func (r *Replica) follower(id cluster.NodeID) *follower {
	if r.leadership == nil {
		return nil
	}
	if i := slices.IndexFunc(r.followers, func(f follower) bool { return f.node == id }); i >= 0 {
		return &r.followers[i]
	}
	return nil
}

// SetMinInsync takes over the topic's min.insync.replicas.
func (r *Replica) SetMinInsync(n int) {
	r.minInsync = int32(n)
	r.advance()
}

// Alone says that the replica leads and there is no other: then all that it knows
// follows from its log and the assignment.
func (r *Replica) Alone() bool {
	return r.role == Leading && r.leadership == nil && len(r.assignment.Replicas) == 1
}

// InSync returns how many replicas the agreed ISR has and how many an
// acknowledgement by all of them needs.
func (r *Replica) InSync() (have, need int) {
	return len(r.assignment.ISR), EffectiveMinInsync(int(r.minInsync), len(r.assignment.Replicas))
}

// Queue notes what a leader adds to its log: the records up to an offset, of its
// leader epoch.
func (r *Replica) Queue(next int64) { r.next = next }

// QueueCopies notes what a follower adds to its log of what it received.
func (r *Replica) QueueCopies(in Replicated) {
	// An epoch that has no record here may not have one there either.
	r.epochs = r.epochs.TruncateEnd(r.next)
	epochs := in.Epochs
	for _, b := range in.Batches {
		for len(epochs) > 0 && epochs[0].StartOffset <= b.BaseOffset {
			r.epochs = r.epochs.Begin(epochs[0].Epoch, epochs[0].StartOffset)
			epochs = epochs[1:]
		}
		r.epochs = r.epochs.Begin(b.Epoch, b.BaseOffset)
		r.next = b.LastOffset + 1
	}
}

// Committed notes that the log is written up to an offset.
func (r *Replica) Committed(logEnd int64) {
	r.logEnd = max(r.logEnd, min(logEnd, r.next))
	r.advance()
}

// StartCommitted notes that a log start is written.
func (r *Replica) StartCommitted(logStart int64) {
	if start := min(logStart, r.logStart); start > r.startWritten {
		r.startWritten = start
	}
}

// AdvanceStart moves the log start forward. A leader's never passes its high
// watermark.
func (r *Replica) AdvanceStart(offset int64) {
	if offset > r.logStart {
		r.logStart, r.servesFrom = offset, offset
		r.epochs = r.epochs.TruncateStart(offset)
		r.advance()
	}
}

// ServesFrom notes, at a leader, where the batch begins that holds the log start:
// a follower that begins anew there goes on from there, though that is below the
// log start. It holds until the log start moves.
func (r *Replica) ServesFrom(offset int64) { r.servesFrom = min(r.logStart, offset) }

// Cut notes that the log was truncated at an offset, its log start or above.
func (r *Replica) Cut(offset int64) {
	r.next, r.logEnd, r.settled = offset, min(r.logEnd, offset), min(r.settled, offset)
	r.highWatermark = min(r.highWatermark, offset)
	r.epochs = r.epochs.TruncateEnd(offset)
}

// Restart notes that the log was dropped and begins anew, empty, at an offset.
func (r *Replica) Restart(offset int64) {
	r.logStart, r.startWritten, r.servesFrom, r.next, r.logEnd, r.highWatermark, r.settled = offset, offset, offset, offset, offset, offset, offset
	r.epochs = nil
}

// advance moves the high watermark as far as it may go.
func (r *Replica) advance() {
	if r.role == Following {
		// The leader's log start, which this one follows, is not above its watermark.
		r.highWatermark = max(r.highWatermark, min(max(r.leaderHighWatermark, r.logStart), r.logEnd))
		return
	}
	if r.role != Leading || r.failed && r.leadership != nil {
		return
	}
	h := r.progress()
	r.highWatermark = h.Advance()
}

// progress is what a leader knows of how far all are.
func (r *Replica) progress() HighWatermark {
	h := HighWatermark{
		Leader: r.self, Current: r.highWatermark, LogEnd: r.logEnd,
		ISR: r.assignment.ISR, ELR: r.assignment.ELR,
		Replicas: len(r.assignment.Replicas), MinInsyncReplicas: int(r.minInsync),
	}
	if l := r.leadership; l != nil {
		h.ProposedISR = l.possible
		for _, f := range l.followers {
			h.Followers = append(h.Followers, FollowerProgress{Node: f.node, LogEnd: f.logEnd, LogStart: f.logStart, Fetched: f.fetched, Probe: f.probe})
		}
	}
	return h
}
