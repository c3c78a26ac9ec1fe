package replication

import (
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// feed is a partition on its way to a follower. The mutex of its stream guards it,
// but for what never changes.
type feed struct {
	id        ID
	slot      int
	partition *partition.Partition

	// position is the one that was stated last.
	position rules.Position
	// generation counts the times that the follower had to be sent something from
	// another offset than it was sent last: what was read for an earlier one is void.
	generation int
	// answer is what the position is answered with before anything else, and then
	// the feed waits for another position. It is nil where batches may follow.
	answer *answer
	// waits says that nothing is sent before there is another position.
	waits bool
	// next is the offset from which on to send.
	next   int64
	window window
	// told is what the follower knows of the leader.
	told told

	// queued says that the feed is in the sender's queue, armed that the partition
	// was asked to tell of news.
	queued, armed bool
	// late says that there is only a new high watermark to tell, which waits a moment
	// for batches to ride on, and alone that it has waited.
	late, alone bool
}

// told is what of the leader's state travels with batches, or without.
type told struct {
	known                   bool
	highWatermark, logStart int64
	// probe does not wait for batches.
	probe int64
}

// answer is what a follower is told instead of what follows its position.
type answer struct {
	fetch rules.Fetch
	// cause is why the partition is not served; it ends the feed.
	cause error
}

// state takes over a position that the leader serves, and returns how many bytes
// of the stream's budget it frees.
func (f *feed) state(p rules.Position, resend bool) (freed int) {
	acknowledges := !resend && !f.waits && f.answer == nil && p.LeaderEpoch == f.position.LeaderEpoch &&
		f.position.LogEnd <= p.LogEnd && p.LogEnd <= f.next
	f.position = p
	if acknowledges {
		return f.window.acknowledge(p.LogEnd)
	}
	f.restart(p.LogEnd)
	return f.window.clear()
}

// refuse takes over a position that is answered with something else than batches,
// and returns how many bytes of the stream's budget it frees.
func (f *feed) refuse(p rules.Position, a answer) (freed int) {
	f.position = p
	f.restart(p.LogEnd)
	f.answer = &a
	return f.window.clear()
}

// restart makes the feed begin at an offset.
func (f *feed) restart(offset int64) {
	f.generation++
	f.next, f.answer, f.waits, f.told = offset, nil, false, told{}
}
