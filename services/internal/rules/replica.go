package rules

import (
	"math"
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

// SetFailed notes whether something of the log was lost. Such a replica takes part in
// nothing that others rely on: it acknowledges nothing, has no position, and as a
// leader it tells no follower what to do, and resigns if another member of the ISR
// can lead.
func (r *Replica) SetFailed(failed bool) {
	r.failed, r.withdrawn = failed, r.withdrawn && failed
	r.advance()
}

// beginsAnew says that a failed replica may drop what it has and follow from
// nothing: the cluster has agreed not to count on it. It does so once its leader has
// answered: what is left of its log may be the best that there is where the leader has
// lost records too.
func (r *Replica) beginsAnew() bool { return r.failed && r.role == Following && r.withdrawn }

// withdraws says that a failed follower asks the cluster not to count on it, so that it
// may begin anew. It does so also where neither ISR nor ELR name it: its leader may be
// about to admit it for a position that it has told, and the cluster may keep that it
// was in sync once, which is a claim in an unclean election. A leader withdraws as it
// resigns.
func (r *Replica) withdraws() bool { return r.failed && r.role == Following && !r.withdrawn }

// counted says that the replica leads, or that the ISR or the ELR name it.
func (r *Replica) counted() bool {
	p := &r.assignment
	return r.role == Leading || slices.Contains(p.ISR, r.self) || slices.Contains(p.ELR, r.self)
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

// Position is where a follower stands (KIP-320).
type Position struct {
	Node      cluster.NodeID
	NodeEpoch cluster.NodeEpoch
	// LeaderEpoch is the one that it believes current.
	LeaderEpoch cluster.LeaderEpoch
	// LastEpoch is that of its last record, or [NoEpoch] where there is none.
	LastEpoch cluster.LeaderEpoch
	// LogEnd is the end of what it has written.
	LogEnd int64
	// LogStart is its log start, which is written; 0 says nothing.
	LogStart int64
	// Probe is the latest that had come in this leader epoch when the position was
	// taken. Whoever carries positions adds it.
	Probe int64
}

// Position returns where a follower stands, for its leader. There is none while
// records are queued that came in an earlier epoch: the leader must compare them,
// or what it sends to follow its own records at their end would follow these. A replica
// that has lost records has none until it has withdrawn, and then that of an empty
// log: it claims nothing, and asks for all.
func (r *Replica) Position(epoch cluster.NodeEpoch) (Position, bool) {
	switch {
	case r.role != Following || r.logEnd < r.settled:
		return Position{}, false
	case r.beginsAnew():
		return Position{Node: r.self, NodeEpoch: epoch, LeaderEpoch: r.assignment.LeaderEpoch, LastEpoch: NoEpoch}, true
	case r.failed:
		return Position{}, false
	}
	return Position{
		Node: r.self, NodeEpoch: epoch, LeaderEpoch: r.assignment.LeaderEpoch,
		LastEpoch: r.lastEpoch(), LogEnd: r.logEnd, LogStart: r.startWritten,
	}, true
}

// lastEpoch returns the epoch of the last record that is written.
func (r *Replica) lastEpoch() cluster.LeaderEpoch {
	if r.logEnd <= r.logStart {
		return NoEpoch
	}
	return r.epochs.At(r.logEnd - 1)
}

// FetchOutcome is what a leader makes of a position.
type FetchOutcome uint8

// The outcomes.
const (
	// FetchServed: what follows the position may be sent.
	FetchServed FetchOutcome = iota
	// FetchNotLeader: this node does not lead, or not in a way to rely on.
	FetchNotLeader
	// FetchFenced: the follower believes in an earlier leadership.
	FetchFenced
	// FetchUnknown: the follower knows of a later leadership.
	FetchUnknown
	// FetchStaleNode: a later process of the same node has fetched.
	FetchStaleNode
	// FetchNoReplica: the node has no replica of the partition.
	FetchNoReplica
	// FetchDiverges: the follower has records that the leader has not.
	FetchDiverges
	// FetchRestarts: the log begins above the position, or the follower's, which is
	// empty, begins above its end, or no record of the follower's epochs is left to
	// compare with: there is nothing to go on from. The follower begins anew where
	// the batch begins that holds the leader's log start, or at the log start if none
	// does; [Replica.ServesFrom] comes before it is told so. The same goes for a
	// position that was served and lies within a batch: only one of a log without
	// common records can.
	FetchRestarts
)

// Fetch is what a leader does about a position.
type Fetch struct {
	Outcome FetchOutcome
	// Epoch and End answer [FetchDiverges]: the largest epoch of the leader's log
	// that is not above the follower's last one, and where it ends.
	Epoch cluster.LeaderEpoch
	End   int64
}

// Fetch takes note of a follower's position, which may move the high watermark.
// Nothing is sent to a follower but in answer to a position, or behind what was
// sent in answer to one that was served in the same epoch.
func (r *Replica) Fetch(p Position, now time.Time) Fetch {
	switch {
	case r.role != Leading || r.failed:
		// A log that has lost something must not tell others what to cut.
		return Fetch{Outcome: FetchNotLeader}
	case p.LeaderEpoch < r.assignment.LeaderEpoch:
		return Fetch{Outcome: FetchFenced}
	case p.LeaderEpoch > r.assignment.LeaderEpoch:
		return Fetch{Outcome: FetchUnknown}
	}
	f := r.follower(p.Node)
	if f == nil {
		return Fetch{Outcome: FetchNoReplica}
	}
	switch {
	case p.NodeEpoch < f.epoch:
		return Fetch{Outcome: FetchStaleNode}
	case p.NodeEpoch > f.epoch:
		// What an earlier process had, this one may have lost. The time that it has
		// to catch up runs all the same.
		*f = follower{node: f.node, epoch: p.NodeEpoch, caughtUp: f.caughtUp}
	}
	epoch, end, diverges := r.epochs.Diverges(p.LastEpoch, p.LogEnd, r.next)
	switch {
	case p.LastEpoch != NoEpoch && epoch == NoEpoch:
		// Also at the log start: what lies below may differ from what was deleted
		// here, and a follower that came to lead would show it.
		return Fetch{Outcome: FetchRestarts}
	case diverges:
		return Fetch{Outcome: FetchDiverges, Epoch: epoch, End: end}
	}
	// A follower that has just begun anew where it was told to may be below the log
	// start, which then lies within the first batch.
	begun := p.LastEpoch == NoEpoch && p.LogEnd == r.servesFrom
	if p.LogEnd < r.logStart && !begun || p.LogEnd > r.next {
		return Fetch{Outcome: FetchRestarts}
	}
	reached := !f.fetched || p.LogEnd >= f.seenEnd
	if p.LogEnd >= r.logEnd {
		f.caughtUp = now
	} else if f.fetched && reached {
		f.caughtUp = f.seenAt
	}
	if reached {
		// Only then: one that shows positions faster than it writes would never reach
		// the end that was seen with the last of them.
		f.seenAt, f.seenEnd = now, r.logEnd
	}
	f.fetched, f.logEnd, f.logStart = true, p.LogEnd, p.LogStart
	if p.Probe <= r.probe {
		f.probe = max(f.probe, p.Probe)
	}
	r.advance()
	return Fetch{}
}

// BatchBounds is what replication needs of a batch.
type BatchBounds struct {
	BaseOffset, LastOffset int64
	Epoch                  cluster.LeaderEpoch
}

// Replicated is what a leader sends of a partition.
type Replicated struct {
	// LeaderEpoch is the one under which it was sent.
	LeaderEpoch cluster.LeaderEpoch
	// Follows is the log end of the follower that it is meant for.
	Follows int64
	// HighWatermark and LogStart are the leader's.
	HighWatermark, LogStart int64
	// CoordinatorEpoch is the highest that has appended to the leader's log.
	CoordinatorEpoch cluster.CoordinatorEpoch
	// Probe is the leader's latest.
	Probe int64
	// Diverges says that the logs part, as Epoch and End tell.
	Diverges bool
	Epoch    cluster.LeaderEpoch
	End      int64
	// Restarts says that the follower begins anew at RestartOffset, where a batch of
	// the leader's begins.
	Restarts      bool
	RestartOffset int64
	// Batches are in the order of their offsets. With gaps between them they come
	// from a log that was compacted.
	Batches []BatchBounds
	// Epochs are those of the leader's epoch table that begin at Follows or above, up
	// to the last of the batches: in a compacted log no batch need be left where an
	// epoch began.
	Epochs Epochs
}

// ReceiveOutcome is what a follower does about what was sent.
type ReceiveOutcome uint8

// The outcomes.
const (
	// ReceiveDropped: it is of another epoch or for another position, and changes
	// nothing: the network may have delayed it (Redpanda #18523).
	ReceiveDropped ReceiveOutcome = iota
	// ReceiveAppends: the batches are to be appended; [Replica.QueueCopies] follows.
	ReceiveAppends
	// ReceiveTruncates: the log is to be cut at Offset; [Replica.Cut] follows once
	// nothing is queued.
	ReceiveTruncates
	// ReceiveRestarts: the log is to be dropped and begins at Offset;
	// [Replica.Restart] follows.
	ReceiveRestarts
	// ReceiveInvalid: no leader sends that.
	ReceiveInvalid
)

// Receive is what a follower does about what was sent.
type Receive struct {
	Outcome ReceiveOutcome
	Offset  int64
	// LogStart is where the log is to begin from then on, if that is above its log
	// start; only with [ReceiveAppends].
	LogStart int64
}

// Receive decides what to do about what the leader sent to this process, and takes
// note of its high watermark. What was sent to an earlier process of the node is
// for others to keep away.
func (r *Replica) Receive(in Replicated) Receive {
	if r.role != Following || in.LeaderEpoch != r.assignment.LeaderEpoch || r.logEnd < r.settled {
		return Receive{}
	}
	if r.failed {
		return r.receiveAnew(in)
	}
	if in.Follows != r.next {
		return Receive{}
	}
	switch {
	case in.Restarts:
		return r.receiveRestart(in)
	case in.Diverges:
		return r.receiveDivergence(in.Epoch, in.End)
	}
	next, ok := r.copies(in)
	if !ok {
		return Receive{Outcome: ReceiveInvalid}
	}
	r.agrees = true
	r.leaderHighWatermark = max(r.leaderHighWatermark, in.HighWatermark)
	r.coordinatorEpoch = max(r.coordinatorEpoch, in.CoordinatorEpoch)
	r.advance()
	return Receive{Outcome: ReceiveAppends, LogStart: min(in.LogStart, next)}
}

// receiveAnew decides what a replica that has lost records makes of an answer: its leader
// has answered the position of an empty log, so that it can be followed from nothing.
// Where the leader does not say where, that is at the log start, which never goes back.
func (r *Replica) receiveAnew(in Replicated) Receive {
	switch {
	case !r.beginsAnew() || in.Follows != 0:
		return Receive{}
	case in.Restarts:
		return r.receiveRestart(in)
	default:
		r.coordinatorEpoch = max(r.coordinatorEpoch, in.CoordinatorEpoch)
		return Receive{Outcome: ReceiveRestarts, Offset: r.startWritten}
	}
}

// receiveRestart decides about an order to begin anew. Once the logs have agreed
// only a leader whose log begins above this one's end gives it; another one is a
// late copy, of the time when this log ended at the same offset with other records.
func (r *Replica) receiveRestart(in Replicated) Receive {
	switch {
	case in.RestartOffset < 0:
		return Receive{Outcome: ReceiveInvalid}
	case r.agrees && in.RestartOffset < r.next:
		return Receive{}
	default:
		// Of what lies below no batch will come.
		r.coordinatorEpoch = max(r.coordinatorEpoch, in.CoordinatorEpoch)
		return Receive{Outcome: ReceiveRestarts, Offset: in.RestartOffset}
	}
}

// receiveDivergence decides where to cut the log. A divergence after the logs have
// agreed is a late copy, as in [Replica.receiveRestart], and so is one that cuts
// nothing or meets an empty log: this log was cut or begun anew since.
func (r *Replica) receiveDivergence(epoch cluster.LeaderEpoch, end int64) Receive {
	if end < 0 {
		return Receive{Outcome: ReceiveInvalid}
	}
	cut := r.epochs.Truncation(epoch, end, r.next)
	switch {
	case r.agrees || r.next <= r.logStart || cut >= r.next:
		return Receive{}
	case cut < r.logStart:
		// A log does not end below its start.
		return Receive{Outcome: ReceiveRestarts, Offset: cut}
	default:
		return Receive{Outcome: ReceiveTruncates, Offset: cut}
	}
}

// copies returns the log end after the batches, if they and the epochs that came
// with them fit to each other and to the end of the log.
func (r *Replica) copies(in Replicated) (next int64, ok bool) {
	next, epochs := r.next, in.Epochs
	latest := r.epochs.TruncateEnd(next).Latest()
	for _, b := range in.Batches {
		if b.BaseOffset < next || b.LastOffset < b.BaseOffset || b.LastOffset == math.MaxInt64 {
			return 0, false
		}
		from := next
		for len(epochs) > 0 && epochs[0].StartOffset <= b.BaseOffset {
			// One may be that of the record before: where the leader's log starts, its
			// table does, and the start may move while the batches are read.
			if epochs[0].StartOffset < from || epochs[0].Epoch < latest {
				return 0, false
			}
			from, latest, epochs = epochs[0].StartOffset+1, epochs[0].Epoch, epochs[1:]
		}
		if b.Epoch < latest || b.Epoch > in.LeaderEpoch {
			return 0, false
		}
		next, latest = b.LastOffset+1, b.Epoch
		if len(epochs) > 0 && epochs[0].StartOffset < next {
			// The leader's log starts within the batch.
			if epochs[0].Epoch != b.Epoch {
				return 0, false
			}
			epochs = epochs[1:]
		}
	}
	return next, len(epochs) == 0
}

// Proposal returns the change of the ISR that waits for its outcome: it is to be
// sent, again and again until [Replica.Answer] or [Replica.Apply] has decided it.
func (r *Replica) Proposal() (ISRProposal, bool) {
	if r.withdraws() {
		return ISRProposal{Leader: r.self, LeaderEpoch: r.assignment.LeaderEpoch, PartitionEpoch: r.assignment.PartitionEpoch, Withdraws: true}, true
	}
	if r.leadership == nil || r.proposal == nil {
		return ISRProposal{}, false
	}
	return ISRProposal{
		Leader: r.self, LeaderEpoch: r.assignment.LeaderEpoch, PartitionEpoch: r.assignment.PartitionEpoch, ISR: r.proposal,
		Withdraws: r.failed && !r.proposesToStay(),
	}, true
}

// Propose decides whether the ISR should change: followers that have not had all
// that there is for longer than maxLag leave it, and those come in that have
// reached the high watermark, the start of this leadership and the log start in it. live returns
// the epoch of a node's process that has its lease and is not leaving, as far as is
// known here. It reports whether there is a proposal to send that was not there
// before. A follower that has lost records proposes, each time, to be counted on no more.
func (r *Replica) Propose(now time.Time, maxLag time.Duration, live func(cluster.NodeID) (cluster.NodeEpoch, bool)) bool {
	if r.leadership == nil {
		return r.withdraws()
	}
	if r.failed {
		return r.Resign()
	}
	if r.proposal != nil {
		return false
	}
	next := []ISRMember{}
	have, need := r.InSync()
	// What was refused is settled by whatever is accepted next, and so is an ELR that
	// is left of a higher min.insync.replicas.
	changed := len(r.possible) > 0 || have >= need && len(r.assignment.ELR) > 0
	for _, id := range r.assignment.Replicas {
		in := slices.Contains(r.assignment.ISR, id)
		if id == r.self {
			next = append(next, ISRMember{Node: id, Epoch: -1})
			continue
		}
		f := r.follower(id)
		switch {
		case in && r.lags(f, now, maxLag):
			changed = true
		case in:
			next = append(next, ISRMember{Node: id, Epoch: -1})
		case r.admits(f):
			if epoch, ok := live(id); ok && epoch == f.epoch {
				next = append(next, ISRMember{Node: id, Epoch: epoch})
				changed = true
			}
		}
	}
	if !changed {
		return false
	}
	r.propose(next)
	return true
}

func (r *Replica) propose(isr []ISRMember) {
	r.proposal = isr
	for _, m := range isr {
		if !slices.Contains(r.possible, m.Node) {
			r.possible = append(r.possible, m.Node)
		}
	}
}

// Resign proposes the ISR without this replica, where it leads and there are others
// in it, or in the ELR: it cannot serve. That takes the place of a proposal that is not answered yet:
// whichever is accepted first makes the other void. It reports whether there is a
// proposal to send that was not there before.
func (r *Replica) Resign() bool {
	if r.leadership == nil {
		return false
	}
	others := []ISRMember{}
	for _, id := range r.assignment.ISR {
		if id != r.self {
			others = append(others, ISRMember{Node: id, Epoch: -1})
		}
	}
	if len(others)+len(r.assignment.ELR) == 0 || r.proposal != nil && !r.proposesToStay() {
		return false
	}
	r.propose(others)
	return true
}

// proposesToStay says whether the leader itself is in the ISR that it has proposed.
func (r *Replica) proposesToStay() bool {
	return slices.ContainsFunc(r.proposal, func(m ISRMember) bool { return m.Node == r.self })
}

// lags says whether a member of the ISR keeps the high watermark back. One that has
// all there is takes nothing and shows no position, and lags only from the next
// record on: that it has all is noted each time that somebody asks.
func (r *Replica) lags(f *follower, now time.Time, maxLag time.Duration) bool {
	if f.fetched && f.logEnd >= r.logEnd {
		f.caughtUp = now
		return false
	}
	since := r.ledSince
	if f.caughtUp.After(since) {
		since = f.caughtUp
	}
	return now.Sub(since) > maxLag
}

// admits says whether a follower has all that an in-sync replica needs. A
// position below the start of this leadership does not do, though it may be above
// the high watermark: what earlier leaders acknowledged may lie between them. Nor does
// a log start below the leader's: what was deleted would be back if it led.
func (r *Replica) admits(f *follower) bool {
	return f.fetched && f.logEnd >= r.highWatermark && f.logEnd >= r.epochStart && f.logStart >= r.logStart
}

// Answer takes the cluster's answer to a proposal: whether it was accepted, and the
// partition as it is now, with the partition epoch of the proposal if it was
// refused. An answer to an earlier proposal changes nothing but what it tells of
// the partition.
func (r *Replica) Answer(proposal ISRProposal, accepted bool, current cluster.Partition, now time.Time) Applied {
	if r.leadership != nil && r.proposal != nil && proposal.PartitionEpoch == r.assignment.PartitionEpoch {
		r.proposal = nil
	}
	a := r.Apply(current, now)
	if accepted && proposal.Withdraws && r.failed && !a.Stale && !a.TooNew && !r.counted() {
		r.withdrawn = true
	}
	return a
}
