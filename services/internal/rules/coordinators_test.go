package rules

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// coordinated returns partitions of which each is coordinated by the process of
// nodeEpoch of the node at its place, in coordinator epoch 4 and partition epoch 7.
func coordinated(nodeEpoch cluster.NodeEpoch, by ...cluster.NodeID) []PartitionState {
	partitions := make([]PartitionState, len(by))
	for i, id := range by {
		partitions[i] = led(1, ids{1, 2, 3}, nil)
		partitions[i].Index = int32(i)
		partitions[i].Coordinator, partitions[i].CoordinatorEpoch = id, 4
		if id != cluster.NoNode {
			partitions[i].CoordinatorNodeEpoch = nodeEpoch
		}
	}
	return partitions
}

// after returns the partitions with those that have changed in place.
func after(partitions, changed []PartitionState) []PartitionState {
	next := slices.Clone(partitions)
	for _, p := range changed {
		next[p.Index] = p
	}
	return next
}

func coordinatorsOf(partitions []PartitionState) (by ids) {
	for _, p := range partitions {
		by = append(by, p.Coordinator)
	}
	return by
}

func TestAssignCoordinators(t *testing.T) {
	t.Parallel()
	const none = cluster.NoNode
	for _, test := range []struct {
		name         string
		partitions   []PartitionState
		coordinators Nodes
		moves        int
		want         ids
	}{
		{"nobody is there", coordinated(9, none, none), Nodes{}, 9, ids{none, none}},
		{"the first gets all", coordinated(9, none, none, none), Nodes{5: live(9)}, 0, ids{5, 5, 5}},
		{"two share evenly", coordinated(9, none, none, none, none), Nodes{5: live(9), 6: live(9)}, 0, ids{5, 6, 5, 6}},
		{"nothing happened", coordinated(9, 5, 6, 6, 5), Nodes{5: live(9), 6: live(9)}, 9, ids{5, 6, 6, 5}},
		{"what a dead one had is shared out", coordinated(9, 5, 6, 7, 5, 6, 7), Nodes{5: live(9), 6: dead(9), 7: live(9)}, 0, ids{5, 5, 7, 5, 7, 7}},
		{"an unknown one is dead", coordinated(9, 4, 5), Nodes{5: live(9)}, 0, ids{5, 5}},
		{"a suspect keeps what it has and gets nothing", coordinated(9, 5, 6, none), Nodes{5: live(9), 6: suspect(live(9))}, 9, ids{5, 6, 5}},
		{"a leaving one gives away", coordinated(9, 5, 6, 6), Nodes{5: live(9), 6: leaving(9)}, 0, ids{5, 5, 5}},
		{"a leaving one keeps what nobody else can have", coordinated(9, 5, 6), Nodes{5: suspect(live(9)), 6: leaving(9)}, 9, ids{5, 6}},
		{"without anybody else a dead one is none", coordinated(9, 5, 5), Nodes{5: dead(9)}, 9, ids{none, none}},
		{"who joins gets nothing by itself", coordinated(9, 5, 5, 5, 5), Nodes{5: live(9), 6: live(9)}, 0, ids{5, 5, 5, 5}},
		{"and its share in bounded steps", coordinated(9, 5, 5, 5, 5), Nodes{5: live(9), 6: live(9)}, 1, ids{5, 5, 5, 6}},
		{"but no more than that", coordinated(9, 5, 5, 5, 5), Nodes{5: live(9), 6: live(9)}, 9, ids{5, 5, 6, 6}},
		{"a difference of one is even", coordinated(9, 5, 5, 6), Nodes{5: live(9), 6: live(9)}, 9, ids{5, 5, 6}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			changed := AssignCoordinators(test.partitions, test.coordinators, test.moves)
			if got := coordinatorsOf(after(test.partitions, changed)); !slices.Equal(got, test.want) {
				t.Errorf("coordinators are %v, want %v", got, test.want)
			}
		})
	}
}

// TestNextProcessIsAnotherCoordinator: a process that follows another of the same node
// has loaded nothing, and what the earlier one still writes has to be refused.
func TestNextProcessIsAnotherCoordinator(t *testing.T) {
	t.Parallel()
	changed := AssignCoordinators(coordinated(9, 5), Nodes{5: live(12)}, 0)
	if len(changed) != 1 {
		t.Fatalf("changed: %v", changed)
	}
	if p := changed[0]; p.Coordinator != 5 || p.CoordinatorEpoch != 5 || p.CoordinatorNodeEpoch != 12 || p.PartitionEpoch != 8 {
		t.Errorf("after a restart: %+v", p)
	}
}

func TestAssignCoordinatorsProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		nodes := make(Nodes)
		for id := cluster.NodeID(1); id <= 6; id++ {
			state := rapid.SampledFrom([]NodeState{live(9), live(9), live(9), live(8), dead(9), leaving(9), suspect(live(9)), suspect(leaving(9)), {}}).Draw(t, "state")
			if state.Epoch != 0 {
				nodes[id] = state
			}
		}
		before := coordinated(9, rapid.SliceOfN(rapid.Map(rapid.IntRange(0, 7), func(i int) cluster.NodeID {
			if i == 0 {
				return cluster.NoNode
			}
			return cluster.NodeID(i)
		}), 1, 60).Draw(t, "coordinators")...)
		moves := rapid.SampledFrom([]int{0, 1, 5, math.MaxInt}).Draw(t, "moves")

		able := func(id cluster.NodeID) bool { return nodes[id].Live && !nodes[id].Suspect && !nodes[id].Leaving }
		count := 0
		for id := range nodes {
			if able(id) {
				count++
			}
		}
		// held is what each that may get something has already.
		held := make(map[cluster.NodeID]int)
		stays := func(p PartitionState) bool {
			n, known := nodes[p.Coordinator]
			return known && n.Live && n.Epoch == p.CoordinatorNodeEpoch && (!n.Leaving || count == 0)
		}
		shared := 0
		for _, p := range before {
			switch {
			case !stays(p):
				shared++
			case able(p.Coordinator):
				shared++
				held[p.Coordinator]++
			}
		}

		changed := AssignCoordinators(before, nodes, moves)
		now := after(before, changed)
		moved := 0
		for _, p := range changed {
			was := before[p.Index]
			if p.PartitionEpoch != was.PartitionEpoch+1 || p.Leader != was.Leader || p.LeaderEpoch != was.LeaderEpoch || !slices.Equal(p.ISR, was.ISR) {
				t.Fatalf("%+v became %+v", was, p)
			}
			if p.Coordinator == cluster.NoNode {
				if count > 0 || stays(was) || p.CoordinatorEpoch != was.CoordinatorEpoch {
					t.Fatalf("nobody coordinates any more: %+v", p)
				}
				continue
			}
			if !able(p.Coordinator) || p.CoordinatorNodeEpoch != nodes[p.Coordinator].Epoch || p.CoordinatorEpoch != was.CoordinatorEpoch+1 {
				t.Fatalf("%+v became %+v of %+v", was, p, nodes)
			}
			if stays(was) {
				moved++
			}
		}
		if moved > moves {
			t.Fatalf("%d moves, of which %d were allowed", moved, moves)
		}
		has := make(map[cluster.NodeID]int)
		for _, p := range now {
			if p.Coordinator != cluster.NoNode {
				has[p.Coordinator]++
			}
			if !stays(p) && count > 0 {
				t.Fatalf("%+v has nobody who serves it", p)
			}
		}
		if moves == math.MaxInt && count > 0 {
			// The fewest moves after which nobody has more than one above another: those
			// that have most may keep one more.
			var kept []int
			for id := range nodes {
				if able(id) {
					kept = append(kept, held[id])
					if n := has[id]; n < shared/count || n > (shared+count-1)/count {
						t.Fatalf("node %d has %d of %d, shared by %d", id, n, shared, count)
					}
				}
			}
			slices.SortFunc(kept, func(a, b int) int { return b - a })
			fewest := 0
			for i, n := range kept {
				share := shared / count
				if i < shared%count {
					share++
				}
				fewest += max(0, n-share)
			}
			if moved != fewest {
				t.Fatalf("%d moves where %d do: %v", moved, fewest, kept)
			}
		}
		if again := AssignCoordinators(now, nodes, 0); len(again) > 0 {
			t.Fatalf("not level-triggered: %v", again)
		}
	})
}
