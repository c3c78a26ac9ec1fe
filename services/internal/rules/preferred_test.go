package rules

import (
	"slices"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

func TestPrefer(t *testing.T) {
	t.Parallel()
	minTwo := TopicTraits{MinInsyncReplicas: 2}
	nodes := func(first NodeState) Nodes { return Nodes{1: first, 2: live(20), 3: live(30)} }
	for _, test := range []struct {
		name  string
		p     PartitionState
		nodes Nodes
		moves bool
	}{
		{"back to the first replica", led(2, ids{1, 2, 3}, nil), nodes(live(10)), true},
		{"below min ISR", led(2, ids{1, 2}, nil), nodes(live(10)), true},
		{"it leads already", led(1, ids{1, 2, 3}, nil), nodes(live(10)), false},
		{"not in the ISR", led(2, ids{2, 3}, nil), nodes(live(10)), false},
		{"eligible is not in sync", led(2, ids{2}, ids{1}), nodes(live(10)), false},
		{"KIP-841: without a lease", led(2, ids{1, 2, 3}, nil), nodes(dead(10)), false},
		{"KIP-903: a process that nobody has judged yet", led(2, ids{1, 2, 3}, nil), nodes(restarted(10, 11, Restart{SameDirectory: true})), false},
		{"leaving", led(2, ids{1, 2, 3}, nil), nodes(leaving(10)), false},
		{"not registered", led(2, ids{1, 2, 3}, nil), Nodes{2: live(20)}, false},
		{"without a leader", offline(2, nil, ids{1, 2}), nodes(live(10)), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, moved := Prefer(test.p, test.nodes)
			if moved != test.moves {
				t.Fatalf("moved: %t, want %t", moved, test.moves)
			}
			want := test.p
			if test.moves {
				want.Leader, want.LeaderEpoch, want.PartitionEpoch = 1, 6, 8
			}
			if got.Leader != want.Leader || got.LeaderEpoch != want.LeaderEpoch || got.PartitionEpoch != want.PartitionEpoch ||
				!slices.Equal(got.ISR, want.ISR) || !slices.Equal(got.ELR, want.ELR) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if !test.moves {
				return
			}
			if again, changed := Elect(got, test.nodes, minTwo); changed && again.Leader != 1 {
				t.Errorf("an election undoes it: %+v", again)
			}
			if _, moved := Prefer(got, test.nodes); moved {
				t.Error("it moves twice")
			}
		})
	}
	if _, moved := Prefer(PartitionState{Partition: cluster.Partition{Leader: cluster.NoNode}}, nil); moved {
		t.Error("a partition without replicas moves")
	}
}
