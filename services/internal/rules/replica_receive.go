package rules

import (
	"math"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

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
