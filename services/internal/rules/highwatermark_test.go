package rules

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

func TestHighWatermark(t *testing.T) {
	t.Parallel()
	nodes := func(ids ...cluster.NodeID) []cluster.NodeID { return ids }
	fetched := func(node cluster.NodeID, logEnd int64) FollowerProgress {
		return FollowerProgress{Node: node, LogEnd: logEnd, Fetched: true}
	}
	for _, test := range []struct {
		name string
		in   HighWatermark
		want int64
	}{
		{
			name: "a single replica is its whole ISR",
			in:   HighWatermark{Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1), Replicas: 1, MinInsyncReplicas: 2},
			want: 9,
		},
		{
			name: "lowest log end of the ISR",
			in: HighWatermark{
				Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1, 2, 3), Replicas: 3, MinInsyncReplicas: 2,
				Followers: []FollowerProgress{fetched(2, 7), fetched(3, 5)},
			},
			want: 5,
		},
		{
			name: "a follower outside of the ISR does not count",
			in: HighWatermark{
				Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(2, 1), Replicas: 3, MinInsyncReplicas: 2,
				Followers: []FollowerProgress{fetched(3, 4), fetched(2, 7)},
			},
			want: 7,
		},
		{
			name: "KIP-497: a proposed member counts before it is agreed on",
			in: HighWatermark{
				Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1, 2), ProposedISR: nodes(1, 2, 3), Replicas: 3, MinInsyncReplicas: 2,
				Followers: []FollowerProgress{fetched(2, 8), fetched(3, 6)},
			},
			want: 6,
		},
		{
			name: "KIP-497: a member that is proposed to leave counts until it has left",
			in: HighWatermark{
				Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1, 2, 3), ProposedISR: nodes(1, 2), Replicas: 3, MinInsyncReplicas: 2,
				Followers: []FollowerProgress{fetched(2, 8), fetched(3, 4)},
			},
			want: 4,
		},
		{
			name: "KIP-966: frozen below min ISR",
			in: HighWatermark{
				Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1), Replicas: 3, MinInsyncReplicas: 2,
			},
			want: 3,
		},
		{
			name: "KIP-966: a proposed member does not lift the ISR to min ISR",
			in: HighWatermark{
				Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1), ProposedISR: nodes(1, 2), Replicas: 3, MinInsyncReplicas: 2,
				Followers: []FollowerProgress{fetched(2, 9)},
			},
			want: 3,
		},
		{
			name: "KIP-966: who is eligible counts, although min ISR is reached: it was lowered, or raised and the leader does not know yet",
			in: HighWatermark{
				Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1), ELR: nodes(2), Replicas: 3, MinInsyncReplicas: 1,
				Followers: []FollowerProgress{fetched(2, 5)},
			},
			want: 5,
		},
		{
			name: "min ISR is at most the number of replicas",
			in: HighWatermark{
				Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1, 2), Replicas: 2, MinInsyncReplicas: 5,
				Followers: []FollowerProgress{fetched(2, 9)},
			},
			want: 9,
		},
		{
			name: "a position of an earlier epoch proves nothing",
			in: HighWatermark{
				Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1, 2), Replicas: 2, MinInsyncReplicas: 1,
				Followers: []FollowerProgress{{Node: 2, LogEnd: 9}},
			},
			want: 3,
		},
		{
			name: "a member that was never heard of",
			in:   HighWatermark{Leader: 1, Current: 3, LogEnd: 9, ISR: nodes(1, 2), Replicas: 2, MinInsyncReplicas: 1},
			want: 3,
		},
		{
			name: "never falls",
			in: HighWatermark{
				Leader: 1, Current: 8, LogEnd: 9, ISR: nodes(1, 2), Replicas: 2, MinInsyncReplicas: 1,
				Followers: []FollowerProgress{fetched(2, 5)},
			},
			want: 8,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := test.in.Advance(); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

// Whatever the leader knows: the watermark never falls, and when it moves every
// member of both ISRs and of the ELR has fetched all below it in this epoch.
func TestHighWatermarkProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		members := rapid.SliceOfNDistinct(rapid.Int32Range(2, 6), 0, 4, rapid.ID[int32]).Draw(t, "members")
		isr := func(label string) []cluster.NodeID {
			ids := []cluster.NodeID{1}
			for _, id := range members {
				if rapid.Bool().Draw(t, label) {
					ids = append(ids, cluster.NodeID(id))
				}
			}
			return ids
		}
		h := HighWatermark{
			Leader:            1,
			Current:           rapid.Int64Range(0, 10).Draw(t, "current"),
			LogEnd:            rapid.Int64Range(0, 20).Draw(t, "log end"),
			ISR:               isr("isr"),
			Replicas:          6,
			MinInsyncReplicas: rapid.IntRange(1, 4).Draw(t, "min insync"),
		}
		if rapid.Bool().Draw(t, "proposed") {
			h.ProposedISR = isr("proposed isr")
		}
		if rapid.Bool().Draw(t, "eligible") {
			h.ELR = isr("elr")[1:]
		}
		for _, id := range rapid.SliceOfNDistinct(rapid.Int32Range(2, 6), 0, 5, rapid.ID[int32]).Draw(t, "followers") {
			h.Followers = append(h.Followers, FollowerProgress{
				Node: cluster.NodeID(id), LogEnd: rapid.Int64Range(0, 20).Draw(t, "end"), Fetched: rapid.Bool().Draw(t, "fetched"),
			})
		}
		next := h.Advance()
		if next < h.Current {
			t.Fatalf("fell from %d to %d", h.Current, next)
		}
		if next == h.Current {
			return
		}
		if len(h.ISR) < h.MinInsyncReplicas {
			t.Fatalf("moved with an ISR of %d below %d", len(h.ISR), h.MinInsyncReplicas)
		}
		if next > h.LogEnd {
			t.Fatalf("moved to %d beyond the log end %d", next, h.LogEnd)
		}
		for _, id := range slices.Concat(h.ISR, h.ProposedISR, h.ELR) {
			if id == h.Leader {
				continue
			}
			holds := slices.ContainsFunc(h.Followers, func(f FollowerProgress) bool {
				return f.Node == id && f.Fetched && f.LogEnd >= next
			})
			if !holds {
				t.Fatalf("moved to %d although member %d is not known to hold it", next, id)
			}
		}
	})
}
