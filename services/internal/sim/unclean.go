package sim

import (
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// What an unclean election may lose, and what counts from then on.

// binds says whether what leaders of an epoch do is held to what is committed.
func (h *history) binds(epoch cluster.LeaderEpoch) bool { return !h.excused && epoch >= h.unclean }

// electedUncleanly is an operator's act, which begins an epoch.
func (k *checker) electedUncleanly(p int, epoch cluster.LeaderEpoch) {
	h := k.partitions[p]
	h.excused, h.unclean = true, epoch
}

// resumes is what a leader has when it begins after an unclean election: what was
// committed and is not there, as it was, is lost with leave. start is where its log
// begins.
func (k *checker) resumes(p int, epoch cluster.LeaderEpoch, start int64, log []batch) {
	h := k.partitions[p]
	kept := min(start, h.end())
	if len(log) > 0 {
		kept = min(log[0].base, h.end())
	}
	for _, b := range log {
		if b.last >= h.end() || h.batchAt(b.base) != b {
			break
		}
		kept = b.last + 1
	}
	if kept < h.end() {
		h.lostFrom = min(h.lostFrom, kept)
	}
	n := len(h.committed)
	for n > 0 && h.committed[n-1].last >= kept {
		n--
	}
	h.committed, h.at = slices.Clip(h.committed[:n]), slices.Clip(h.at[:kept])
	clear(h.values)
	clear(h.sequences)
	for _, b := range h.committed {
		h.values[b.value] = b.base
		h.sequences[b.producer.ID] = b.producer.LastSequence + 1
	}
	h.acked = slices.DeleteFunc(h.acked, func(a ackedBatch) bool { return a.base >= kept || h.batchAt(a.base).value != a.value })
	h.reached = []rules.EpochStart{{Epoch: epoch - 1, StartOffset: kept}}
	h.excused = false
}
