package rules

import (
	"math"
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// FollowerProgress is what a leader knows of another replica.
type FollowerProgress struct {
	Node cluster.NodeID
	// LogEnd is the log end offset that the replica's last fetch showed.
	LogEnd int64
	// LogStart is the log start that it showed, as durable as the topic asks. One that
	// shows none shows 0, which promises nothing.
	LogStart int64
	// Fetched says that the replica has fetched under the leader's present
	// epoch. A position from an earlier epoch proves nothing: the replica may
	// have truncated since.
	Fetched bool
	// Probe is the latest that the replica has answered, see [Replica.Probe].
	Probe int64
}

// HighWatermark is what decides how far a leader's high watermark may go, and its
// low watermark.
type HighWatermark struct {
	// Leader is the node that asks.
	Leader cluster.NodeID
	// Current is the high watermark so far.
	Current int64
	// LogEnd is the leader's own log end offset, as durable as the topic asks.
	LogEnd int64
	// ISR is the one that the cluster agreed on.
	ISR []cluster.NodeID
	// ELR is the one that the cluster agreed on. There is none while the ISR is
	// large enough, but just after min.insync.replicas was lowered.
	ELR []cluster.NodeID
	// ProposedISR is what the leader has asked for and not yet heard about; nil
	// when there is nothing under way.
	ProposedISR []cluster.NodeID
	// Replicas is the number of replicas of the partition.
	Replicas int
	// MinInsyncReplicas is the topic's min.insync.replicas.
	MinInsyncReplicas int
	// Followers holds the other replicas in any order.
	Followers []FollowerProgress
}

// EffectiveMinInsync returns how many in-sync replicas an acknowledgement
// needs: the topic's min.insync.replicas, at most the number of replicas and at
// least 1.
func EffectiveMinInsync(minInsyncReplicas, replicas int) int {
	return max(1, min(minInsyncReplicas, replicas))
}

// Advance returns the high watermark, which never falls.
//
// It moves to the lowest log end of the maximal ISR, the union of the ISR agreed
// on and the one proposed: whichever of the two turns out to hold, all its
// members have the records below (KIP-497); and so have those of the ELR, which may
// be elected as long as the cluster names them. It stays where it is while the ISR
// agreed on is smaller than [EffectiveMinInsync] (KIP-966) and while a member
// has not fetched in this epoch.
func (h HighWatermark) Advance() int64 {
	lowest, known := h.lowest(h.LogEnd, func(f FollowerProgress) int64 { return f.LogEnd })
	if !known {
		return h.Current
	}
	return max(h.Current, lowest)
}

// LowWatermark returns the low watermark (KIP-107): the lowest log start of those whose
// log ends count for the high watermark, where the leader's own is logStart. Whoever of
// them leads next begins there or above. It is 0, which promises nothing, whenever the
// high watermark stands still: below [EffectiveMinInsync] somebody else may be elected.
func (h HighWatermark) LowWatermark(logStart int64) int64 {
	lowest, _ := h.lowest(logStart, func(f FollowerProgress) int64 { return f.LogStart })
	return lowest
}

// Probed returns the latest probe that everybody has answered who may lead next, at
// least 0 and [math.MaxInt64] where there is nobody else; -1 where others may be
// elected.
func (h HighWatermark) Probed() int64 {
	lowest, known := h.lowest(math.MaxInt64, func(f FollowerProgress) int64 { return f.Probe })
	if !known {
		return -1
	}
	return lowest
}

// lowest returns the lowest of what the maximal ISR and the ELR have, own being the
// leader's; false where somebody of them may have anything, or others may be elected.
func (h HighWatermark) lowest(own int64, of func(FollowerProgress) int64) (int64, bool) {
	if len(h.ISR) < EffectiveMinInsync(h.MinInsyncReplicas, h.Replicas) {
		return 0, false
	}
	lowest := own
	for _, members := range [...][]cluster.NodeID{h.ISR, h.ProposedISR, h.ELR} {
		for _, member := range members {
			if member == h.Leader {
				continue
			}
			i := slices.IndexFunc(h.Followers, func(f FollowerProgress) bool { return f.Node == member })
			if i < 0 || !h.Followers[i].Fetched {
				return 0, false
			}
			lowest = min(lowest, of(h.Followers[i]))
		}
	}
	return lowest, true
}
