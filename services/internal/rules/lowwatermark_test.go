package rules

import (
	"testing"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// The low watermark is the lowest log start of whoever may lead next (KIP-107).
func TestLowWatermark(t *testing.T) {
	t.Parallel()
	showed := func(node cluster.NodeID, logStart int64) FollowerProgress {
		return FollowerProgress{Node: node, LogEnd: 90, LogStart: logStart, Fetched: true}
	}
	for _, test := range []struct {
		name string
		in   HighWatermark
		want int64
	}{
		{"a single replica", HighWatermark{ISR: ids{1}, Replicas: 1}, 9},
		{"the lowest of the ISR", HighWatermark{ISR: ids{1, 2, 3}, Followers: []FollowerProgress{showed(2, 7), showed(3, 5)}}, 5},
		{"a follower that is ahead of the leader", HighWatermark{ISR: ids{1, 2}, Followers: []FollowerProgress{showed(2, 20)}}, 9},
		{"a follower outside of the ISR does not count", HighWatermark{ISR: ids{1, 2}, Followers: []FollowerProgress{showed(2, 8), showed(3, 0)}}, 8},
		{"KIP-497: a proposed member counts", HighWatermark{ISR: ids{1, 2}, ProposedISR: ids{1, 2, 3}, Followers: []FollowerProgress{showed(2, 8), showed(3, 6)}}, 6},
		{"KIP-497: a member that is to leave counts", HighWatermark{ISR: ids{1, 2, 3}, ProposedISR: ids{1, 2}, Followers: []FollowerProgress{showed(2, 8), showed(3, 4)}}, 4},
		{"KIP-966: who is eligible counts", HighWatermark{ISR: ids{1, 2}, ELR: ids{3}, Followers: []FollowerProgress{showed(2, 8), showed(3, 4)}}, 4},
		{"KIP-966: frozen below min ISR", HighWatermark{ISR: ids{1}, Followers: []FollowerProgress{showed(2, 8)}}, 0},
		{"a member has shown nothing in this epoch", HighWatermark{ISR: ids{1, 2}, Followers: []FollowerProgress{{Node: 2, LogStart: 9}}}, 0},
		{"a member that tells no log start", HighWatermark{ISR: ids{1, 2}, Followers: []FollowerProgress{showed(2, 0)}}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.in.Leader, test.in.MinInsyncReplicas = 1, 2
			if test.in.Replicas == 0 {
				test.in.Replicas = 3
			}
			if got := test.in.LowWatermark(9); got != test.want {
				t.Errorf("low watermark is %d, want %d", got, test.want)
			}
		})
	}
}

// A leader's low watermark moves once all have the log start written, and begins anew
// with each leadership: what members had in another epoch shows nothing.
func TestReplicaLowWatermark(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 2, 3})
	r.Fetch(from(0, at(5, 30)), start)
	r.Fetch(node(3, from(0, at(5, 30))), start)
	if r.HighWatermark() != 30 {
		t.Fatalf("high watermark is %d", r.HighWatermark())
	}
	wants := func(what string, want int64) {
		t.Helper()
		if got := r.LowWatermark(); got != want {
			t.Fatalf("%s: low watermark is %d, want %d", what, got, want)
		}
	}
	r.AdvanceStart(12)
	r.Fetch(from(12, at(5, 30)), start)
	r.Fetch(node(3, from(12, at(5, 30))), start)
	wants("not written at the leader", 0)
	r.StartCommitted(99)
	wants("written by all", 12)
	if r.StartWritten() != 12 {
		t.Errorf("written is %d", r.StartWritten())
	}
	r.AdvanceStart(15)
	r.StartCommitted(15)
	r.Fetch(from(15, at(5, 30)), start)
	wants("node 3 has not", 12)
	r.Apply(assigned(1, 5, 8, ids{1, 2}), start)
	wants("node 3 has left", 15)

	r.Apply(assigned(1, 6, 9, ids{1, 2}), start)
	wants("another leadership", 0)
	p := from(15, at(5, 30))
	p.LeaderEpoch = 6
	r.Fetch(p, start)
	wants("shown again", 15)
}

// A follower tells the log start that it has written, not the one that is queued.
func TestReplicaPositionLogStart(t *testing.T) {
	t.Parallel()
	f := followerOf(ReplicaLog{Epochs: Epochs{{2, 0}, {5, 20}}, LogStart: 3, LogEnd: 30})
	if got := f.Receive(Replicated{LeaderEpoch: 5, Follows: 30, HighWatermark: 30, LogStart: 12}); got.Outcome != ReceiveAppends || got.LogStart != 12 {
		t.Fatalf("received: %+v", got)
	}
	f.AdvanceStart(12)
	if p := position(t, f, 20); p.LogStart != 3 {
		t.Errorf("before it is written the position says %d", p.LogStart)
	}
	f.StartCommitted(12)
	if p := position(t, f, 20); p.LogStart != 12 {
		t.Errorf("once it is written the position says %d", p.LogStart)
	}
	f.Restart(40)
	if p := position(t, f, 20); p.LogStart != 40 {
		t.Errorf("begun anew the position says %d", p.LogStart)
	}
}
