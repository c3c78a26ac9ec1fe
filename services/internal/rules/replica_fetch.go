package rules

import (
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

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
