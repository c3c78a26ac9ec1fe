package rules

import (
	"slices"
	"sort"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// NoEpoch stands for the absence of a leader epoch: that of an empty log, and
// the answer for an epoch older than all that a log knows.
const NoEpoch cluster.LeaderEpoch = -1

// EpochStart is the offset of the first record of a leader epoch.
type EpochStart struct {
	Epoch       cluster.LeaderEpoch
	StartOffset int64
}

// Epochs tells under which leader epoch each record of a log was appended
// (KIP-101). Epochs and start offsets both rise strictly. The functions return
// new tables and leave the old ones as they are, so a table may be shared.
type Epochs []EpochStart

// Latest returns the last epoch of the table, or [NoEpoch].
func (e Epochs) Latest() cluster.LeaderEpoch {
	if len(e) == 0 {
		return NoEpoch
	}
	return e[len(e)-1].Epoch
}

// Begin returns the table after an epoch began at an offset, the log's end.
// Earlier epochs that start there have no records and are left out. An epoch
// that is not above the latest changes nothing.
func (e Epochs) Begin(epoch cluster.LeaderEpoch, offset int64) Epochs {
	if epoch <= e.Latest() {
		return e
	}
	earlier := e.TruncateEnd(offset)
	if len(earlier) == 0 && offset == 0 && epoch >= 0 && int(epoch) < len(onlyEpochs) {
		return onlyEpochs[epoch : epoch+1 : epoch+1]
	}
	return append(slices.Clone(earlier), EpochStart{Epoch: epoch, StartOffset: offset})
}

// onlyEpochs holds the tables of logs that know one epoch, since their first record:
// those of nearly all partitions, which share them.
var onlyEpochs = func() (list [64]EpochStart) {
	for i := range list {
		list[i].Epoch = cluster.LeaderEpoch(i)
	}
	return list
}()

// At returns the epoch of the record at an offset, or [NoEpoch] for an offset
// below the first epoch of the table.
func (e Epochs) At(offset int64) cluster.LeaderEpoch {
	i := sort.Search(len(e), func(i int) bool { return e[i].StartOffset > offset })
	if i == 0 {
		return NoEpoch
	}
	return e[i-1].Epoch
}

// EndOffset returns the largest epoch of the table that is not above the one
// asked for, and the offset at which it ends: where the next epoch starts, or
// the log's end. For an epoch below all that the table knows it returns
// [NoEpoch] and the start of the first one, or the log's end when the table is
// empty: no record of such an epoch is left. (KIP-101, KIP-279.)
func (e Epochs) EndOffset(asked cluster.LeaderEpoch, logEnd int64) (cluster.LeaderEpoch, int64) {
	i := sort.Search(len(e), func(i int) bool { return e[i].Epoch > asked })
	end := logEnd
	if i < len(e) {
		end = e[i].StartOffset
	}
	if i == 0 {
		return NoEpoch, end
	}
	return e[i-1].Epoch, end
}

// Diverges reports whether a log that ends with an epoch at an offset holds
// records that this one does not (KIP-320). If so it returns the answer of
// [Epochs.EndOffset] for that epoch. An epoch older than the whole table is no
// divergence by itself: its records may have been deleted since.
func (e Epochs) Diverges(lastEpoch cluster.LeaderEpoch, offset, logEnd int64) (epoch cluster.LeaderEpoch, end int64, diverges bool) {
	if lastEpoch == NoEpoch {
		return NoEpoch, 0, false
	}
	epoch, end = e.EndOffset(lastEpoch, logEnd)
	return epoch, end, end < offset || (epoch < lastEpoch && epoch != NoEpoch)
}

// Truncation returns where a follower with this table cuts its log when the
// leader's log parts from it: the leader answered with the largest epoch that
// is not above the follower's last one and that epoch's end. The cut removes
// every record that the leader does not have; when the follower lacks the
// leader's epoch it may leave records that part again, and the next exchange
// finds them (KIP-279). With [NoEpoch] the leader has only its log start to
// offer: what lies below it cannot be compared and stays.
func (e Epochs) Truncation(leaderEpoch cluster.LeaderEpoch, leaderEnd, logEnd int64) int64 {
	end := logEnd
	if leaderEpoch != NoEpoch {
		_, end = e.EndOffset(leaderEpoch, logEnd)
	}
	return min(leaderEnd, end)
}

// TruncateEnd returns the table of a log that was cut at an offset: what is at
// or above it is gone.
func (e Epochs) TruncateEnd(offset int64) Epochs {
	i := sort.Search(len(e), func(i int) bool { return e[i].StartOffset >= offset })
	return e[:i:i]
}

// TruncateStart returns the table of a log whose start moved forward to an
// offset. The epoch at the offset stays and starts there.
func (e Epochs) TruncateStart(offset int64) Epochs {
	i := sort.Search(len(e), func(i int) bool { return e[i].StartOffset > offset })
	if i == 0 || (i == 1 && e[0].StartOffset == offset) {
		return e
	}
	kept := slices.Clone(e[i-1:])
	kept[0].StartOffset = offset
	return kept
}
