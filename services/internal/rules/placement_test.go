package rules

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

func TestPlace(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		partitions int
		factor     int
		nodes      []NodeLoad
		want       [][]cluster.NodeID
	}{
		{"one node takes all", 3, 1, []NodeLoad{{ID: 7}}, [][]cluster.NodeID{{7}, {7}, {7}}},
		{"equal nodes take turns", 4, 1, []NodeLoad{{ID: 1}, {ID: 2}, {ID: 3}}, [][]cluster.NodeID{{1}, {2}, {3}, {1}}},
		{"the order of nodes does not matter", 4, 1, []NodeLoad{{ID: 3}, {ID: 1}, {ID: 2}}, [][]cluster.NodeID{{1}, {2}, {3}, {1}}},
		{"a new node catches up", 3, 1, []NodeLoad{{ID: 1, Leaders: 5, Replicas: 5}, {ID: 2, Leaders: 3, Replicas: 3}}, [][]cluster.NodeID{{2}, {2}, {1}}},
		{"leaders are balanced before replicas", 1, 2, []NodeLoad{{ID: 1, Leaders: 1, Replicas: 1}, {ID: 2, Leaders: 0, Replicas: 9}, {ID: 3, Leaders: 2, Replicas: 2}}, [][]cluster.NodeID{{2, 1}}},
		{"followers of one leader differ", 4, 2, []NodeLoad{{ID: 1}, {ID: 2}, {ID: 3}, {ID: 4}}, [][]cluster.NodeID{{1, 2}, {3, 4}, {4, 1}, {2, 3}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := Place(test.partitions, test.factor, test.nodes)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(got, test.want, slices.Equal[[]cluster.NodeID]) {
				t.Errorf("placed %v, want %v", got, test.want)
			}
		})
	}
}

func TestPlaceRefusesTheImpossible(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ partitions, factor, nodes int }{{0, 1, 1}, {-1, 1, 1}, {1, 0, 1}, {1, 2, 1}, {1, 1, 0}} {
		if placed, err := Place(test.partitions, test.factor, make([]NodeLoad, test.nodes)); err == nil {
			t.Errorf("%+v was placed as %v", test, placed)
		}
	}
}

func TestPlaceProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "nodes")
		factor := rapid.IntRange(1, n).Draw(t, "replication factor")
		nodes := make([]NodeLoad, n)
		for i := range nodes {
			nodes[i].ID = cluster.NodeID(i*3 + 1)
		}
		// Several topics in a row, each on top of the load of those before.
		for topic := range rapid.IntRange(1, 6).Draw(t, "topics") {
			partitions := rapid.IntRange(1, 40).Draw(t, fmt.Sprintf("partitions of topic %d", topic))
			placed, err := Place(partitions, factor, nodes)
			if err != nil {
				t.Fatal(err)
			}
			shuffled := slices.Clone(nodes)
			rand.Shuffle(n, func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			if again, _ := Place(partitions, factor, shuffled); !slices.EqualFunc(placed, again, slices.Equal[[]cluster.NodeID]) {
				t.Fatalf("the order of nodes changes the placement from %v to %v", placed, again)
			}
			for p, replicas := range placed {
				if len(replicas) != factor {
					t.Fatalf("partition %d has replicas %v, want %d", p, replicas, factor)
				}
				if len(slices.Compact(slices.Sorted(slices.Values(replicas)))) != factor {
					t.Fatalf("partition %d has two replicas on one node: %v", p, replicas)
				}
				for i, id := range replicas {
					at := slices.IndexFunc(nodes, func(l NodeLoad) bool { return l.ID == id })
					if at < 0 {
						t.Fatalf("partition %d lies on unknown node %d", p, id)
					}
					nodes[at].Replicas++
					if i == 0 {
						nodes[at].Leaders++
					}
				}
			}
			leaders := func(a, b NodeLoad) int { return a.Leaders - b.Leaders }
			replicas := func(a, b NodeLoad) int { return a.Replicas - b.Replicas }
			if most, least := slices.MaxFunc(nodes, leaders), slices.MinFunc(nodes, leaders); most.Leaders-least.Leaders > 1 {
				t.Fatalf("leaders are uneven: %v", nodes)
			}
			if most, least := slices.MaxFunc(nodes, replicas), slices.MinFunc(nodes, replicas); most.Replicas-least.Replicas > 2 {
				t.Fatalf("replicas are uneven: %v", nodes)
			}
		}
	})
}

func TestDefaultReplicationFactor(t *testing.T) {
	t.Parallel()
	for live, want := range map[int]int{0: 1, 1: 1, 2: 2, 3: 3, 9: 3} {
		if got := DefaultReplicationFactor(live); got != want {
			t.Errorf("default for %d live nodes is %d, want %d", live, got, want)
		}
	}
}
