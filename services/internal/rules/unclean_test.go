package rules

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

func TestElectUnclean(t *testing.T) {
	t.Parallel()
	const none = cluster.NoNode
	power := Restart{SameDirectory: true}
	disk := Restart{Clean: true, SameBoot: true}
	broken := Restart{Clean: true, SameBoot: true, SameDirectory: true, Damaged: true}
	for _, test := range []struct {
		name  string
		p     PartitionState
		nodes Nodes
		want  cluster.NodeID
	}{
		{"the first of equal claims", offline(none, nil, nil), Nodes{1: live(10), 2: live(20), 3: live(30)}, 1},
		{"only who is live", offline(none, nil, nil), Nodes{1: dead(10), 3: live(30)}, 3},
		{"the last leader before others", offline(2, nil, nil), Nodes{1: live(10), 2: restarted(20, 21, power), 3: live(30)}, 2},
		{"the ELR before the last leader", offline(2, nil, ids{3}), Nodes{1: live(10), 2: restarted(20, 21, power), 3: restarted(30, 31, power)}, 3},
		{"the ISR as the ELR", offline(2, ids{3}, nil), Nodes{1: live(10), 2: live(20), 3: live(30)}, 3},
		{"another directory is no claim", offline(2, nil, ids{3}), Nodes{1: live(10), 2: restarted(20, 21, power), 3: restarted(30, 31, disk)}, 2},
		{"another directory comes last", offline(1, nil, nil), Nodes{1: restarted(10, 11, disk), 2: leaving(20), 3: dead(30)}, 2},
		{"damage comes last", offline(1, nil, nil), Nodes{1: restarted(10, 11, broken), 2: restarted(20, 21, power), 3: live(30)}, 2},
		{"damage is better than nobody", offline(1, nil, nil), Nodes{1: restarted(10, 11, broken)}, 1},
		{"damage before who withdrew", withdrew(1, 3), Nodes{1: live(10), 2: restarted(20, 21, broken), 3: live(30)}, 2},
		{"damage before another directory", offline(1, nil, nil), Nodes{1: restarted(10, 11, disk), 2: restarted(20, 21, broken), 3: dead(30)}, 2},
		{"who withdrew is better than nobody", withdrew(1), Nodes{1: live(10)}, 1},
		{"of equal claims one that stays", offline(none, nil, nil), Nodes{1: leaving(10), 2: live(20)}, 2},
		{"a claim outweighs that it is leaving", offline(1, nil, nil), Nodes{1: leaving(10), 2: live(20)}, 1},
		{"nobody is live", offline(1, nil, ids{2}), Nodes{1: dead(10), 2: dead(20)}, none},
		{"nobody is registered", offline(1, nil, nil), nil, none},
		{"there is a leader", led(2, ids{2}, nil), Nodes{1: live(10), 2: live(20)}, none},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			before := slices.Clone(test.p.Epochs)
			got, elected := ElectUnclean(test.p, test.nodes)
			if !slices.Equal(test.p.Epochs, before) {
				t.Error("it changes the node epochs of the partition that it was given")
			}
			if elected != (test.want != none) {
				t.Fatalf("elected: %t, want node %d", elected, test.want)
			}
			if !elected {
				if got.PartitionEpoch != test.p.PartitionEpoch || got.Leader != test.p.Leader {
					t.Errorf("nobody was elected, and yet it is %+v", got)
				}
				return
			}
			if got.Leader != test.want || got.LeaderEpoch != 6 || got.PartitionEpoch != 8 || got.LastLeader != none ||
				!slices.Equal(got.ISR, ids{test.want}) || len(got.ELR) > 0 {
				t.Errorf("got %+v, want node %d", got, test.want)
			}
			if epoch := got.Epochs[slices.Index(got.Replicas, test.want)]; epoch != test.nodes[test.want].Epoch {
				t.Errorf("node epoch %d is recorded", epoch)
			}
		})
	}
}

// withdrew returns an offline partition that counts on some of its replicas no more.
func withdrew(nodes ...cluster.NodeID) PartitionState {
	p := offline(cluster.NoNode, nil, nil)
	for _, id := range nodes {
		p.Epochs[slices.Index(p.Replicas, id)] = 0
	}
	return p
}

// Whoever is elected is live and a replica, nobody live has a better claim, and an
// election changes nothing of it.
func TestElectUncleanProperties(t *testing.T) {
	t.Parallel()
	restart := rapid.Custom(func(t *rapid.T) Restart {
		return Restart{Clean: rapid.Bool().Draw(t, "clean"), SameBoot: rapid.Bool().Draw(t, "boot"), SameDirectory: rapid.Bool().Draw(t, "directory"), Damaged: rapid.Bool().Draw(t, "damaged")}
	})
	rapid.Check(t, func(t *rapid.T) {
		nodes := Nodes{}
		for id := cluster.NodeID(1); id <= 3; id++ {
			n := restarted(cluster.NodeEpoch(10*id), cluster.NodeEpoch(10*id+1), restart.Draw(t, "restart"))
			n.Live, n.Leaving = rapid.Bool().Draw(t, "live"), rapid.Bool().Draw(t, "leaving")
			nodes[id] = n
		}
		topic := TopicTraits{Synced: rapid.Bool().Draw(t, "synced"), MinInsyncReplicas: rapid.IntRange(1, 3).Draw(t, "min ISR")}
		claims := rapid.Permutation(ids{1, 2, 3}).Draw(t, "claims")
		n := rapid.IntRange(0, 2).Draw(t, "eligible")
		p := offline(claims[2], nil, inOrder(claims[:n], ids{1, 2, 3}))
		if clean, changed := Elect(p, nodes, topic); changed {
			p = clean
		}
		got, elected := ElectUnclean(p, nodes)
		someone := slices.ContainsFunc(p.Replicas, func(id cluster.NodeID) bool { return nodes[id].Live })
		if elected != (p.Leader == cluster.NoNode && someone) {
			t.Fatalf("elected: %t", elected)
		}
		if !elected {
			return
		}
		if !nodes[got.Leader].Live {
			t.Fatalf("node %d leads without a lease", got.Leader)
		}
		directory := func(id cluster.NodeID) bool {
			return p.Epochs[slices.Index(p.Replicas, id)] >= max(nodes[id].History.DirectorySince, nodes[id].History.IntactSince)
		}
		for _, id := range p.ELR {
			if nodes[id].Live && directory(id) && !slices.Contains(p.ELR, got.Leader) {
				t.Fatalf("node %d leads, node %d of the ELR is live", got.Leader, id)
			}
		}
		if again, changed := Elect(got, nodes, topic); changed && again.Leader != got.Leader {
			stays := slices.Contains(again.ISR, again.Leader) && nodes[got.Leader].Leaving
			if !stays {
				t.Fatalf("an election takes the leadership from node %d: %+v", got.Leader, again)
			}
		}
	})
}
