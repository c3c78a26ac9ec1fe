package rules

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

func TestOffsetsTopicConfig(t *testing.T) {
	t.Parallel()
	for inSync, want := range []int{1, 1, 2, 2} {
		config, err := ParseTopicConfig(OffsetsTopicConfig(inSync))
		if err != nil {
			t.Fatal(err)
		}
		if !config.Compacted() || config.Deletes() || !config.Synced() || config.MinInsyncReplicas != want || config.MaxMessageBytes != 16<<20 {
			t.Errorf("with %d in sync: %+v", inSync, config)
		}
	}
	if _, own := OffsetsTopicConfig(2)[MinInsyncReplicas]; own {
		t.Error("with enough in sync the default is not left to be the default")
	}
}

func TestGrowReplicas(t *testing.T) {
	t.Parallel()
	on := func(isr ids, replicas ...cluster.NodeID) PartitionState {
		p := NewPartition(0, replicas, Nodes{1: live(10), 2: live(20), 3: live(30)})
		p.ISR = isr
		return p
	}
	one, two, three := NodeLoad{ID: 1, Leaders: 4, Replicas: 4}, NodeLoad{ID: 2}, NodeLoad{ID: 3}
	for _, test := range []struct {
		name       string
		partitions []PartitionState
		nodes      []NodeLoad
		catchingUp int
		want       []ids
	}{
		{"nobody new", []PartitionState{on(ids{1}, 1)}, []NodeLoad{one}, 9, []ids{{1}}},
		{"a new node", []PartitionState{on(ids{1}, 1)}, []NodeLoad{{ID: 1, Leaders: 1}, two}, 9, []ids{{1, 2}}},
		{"one at a time", []PartitionState{on(ids{1}, 1)}, []NodeLoad{{ID: 1, Leaders: 1}, two, three}, 9, []ids{{1, 2}}},
		{"a new node is to lead its share", []PartitionState{on(ids{1}, 1), on(ids{1}, 1), on(ids{1}, 1), on(ids{1}, 1)}, []NodeLoad{one, two}, 9,
			[]ids{{2, 1}, {2, 1}, {1, 2}, {1, 2}}},
		{"new nodes share", []PartitionState{on(ids{1}, 1), on(ids{1}, 1)}, []NodeLoad{{ID: 1, Leaders: 2}, two, three}, 9, []ids{{2, 1}, {1, 3}}},
		{"some at a time", []PartitionState{on(ids{1}, 1), on(ids{1}, 1)}, []NodeLoad{{ID: 1, Leaders: 2}, two}, 1, []ids{{2, 1}, {1}}},
		{"a node that never catches up", []PartitionState{on(ids{1}, 1, 2), on(ids{1}, 1)}, []NodeLoad{{ID: 1, Leaders: 2}, two, {ID: 3, Leaders: 9, Replicas: 9}}, 1, []ids{{1, 2, 3}, {1}}},
		{"enough", []PartitionState{on(ids{1}, 1, 2, 3)}, []NodeLoad{one, two, three, {ID: 4}}, 9, []ids{{1, 2, 3}}},
		{"offline", []PartitionState{offline(1, nil, ids{1})}, []NodeLoad{two, three, {ID: 4}}, 9, []ids{{1, 2, 3}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for i := range test.partitions {
				test.partitions[i].Index = int32(i)
			}
			now := after(test.partitions, GrowReplicas(test.partitions, OffsetsTopicFactor, test.nodes, test.catchingUp))
			for i, p := range now {
				if !slices.Equal(p.Replicas, test.want[i]) {
					t.Errorf("replicas of %d are %v, want %v", i, p.Replicas, test.want[i])
				}
			}
		})
	}
}

// TestGrowingTakesNothingAway: while replicas are added and catch up, whoever could
// acknowledge still can, nobody else counts as holding anything, and the setting that
// follows asks for no more than there is. The partitions come to have all replicas.
func TestGrowingTakesNothingAway(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		nodes := make(Nodes)
		var loads []NodeLoad
		for id := cluster.NodeID(1); id <= 5; id++ {
			nodes[id] = live(cluster.NodeEpoch(10 * id))
			loads = append(loads, NodeLoad{ID: id})
		}
		first := rapid.IntRange(1, 3).Draw(t, "first nodes")
		placed, err := Place(rapid.IntRange(1, 20).Draw(t, "partitions"), DefaultReplicationFactor(first), loads[:first])
		if err != nil {
			t.Fatal(err)
		}
		var partitions []PartitionState
		for i, replicas := range placed {
			partitions = append(partitions, NewPartition(int32(i), replicas, nodes))
		}
		smallest := func() int {
			least := len(partitions[0].ISR)
			for _, p := range partitions {
				least = min(least, len(p.ISR))
			}
			return least
		}
		traits := func() TopicTraits {
			config, err := ParseTopicConfig(OffsetsTopicConfig(smallest()))
			if err != nil {
				t.Fatal(err)
			}
			return config.Traits()
		}
		catchingUp := rapid.IntRange(1, 5).Draw(t, "at a time")
		topic := traits()
		for step := 0; ; step++ {
			if step > 1000 {
				t.Fatal("it never ends")
			}
			grown := GrowReplicas(partitions, OffsetsTopicFactor, loads, catchingUp)
			for _, p := range grown {
				was := partitions[p.Index]
				if p.Leader != was.Leader || p.LeaderEpoch != was.LeaderEpoch || p.PartitionEpoch != was.PartitionEpoch+1 || !slices.Equal(p.ISR, was.ISR) || !slices.Equal(p.ELR, was.ELR) {
					t.Fatalf("%+v became %+v", was, p)
				}
				if len(p.ISR) < EffectiveMinInsync(topic.MinInsyncReplicas, len(p.Replicas)) {
					t.Fatalf("%+v cannot acknowledge any more", p)
				}
				if next, changed := Elect(p, nodes, topic); changed {
					t.Fatalf("%+v is not as an election leaves it, which is %+v", p, next)
				}
				if only, changed := Elect(p, withDead(nodes, was.ISR...), topic); changed && only.Leader != cluster.NoNode {
					t.Fatalf("%+v is led by a replica that has nothing: %+v", p, only)
				}
			}
			partitions = after(partitions, grown)
			var behind []int
			for i, p := range partitions {
				if len(p.ISR) < len(p.Replicas) {
					behind = append(behind, i)
				}
			}
			if len(behind) == 0 {
				break
			}
			// One of them catches up.
			i := rapid.SampledFrom(behind).Draw(t, "catches up")
			p := partitions[i]
			proposal := ISRProposal{Leader: p.Leader, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch}
			for _, id := range p.ISR {
				proposal.ISR = append(proposal.ISR, ISRMember{id, -1})
			}
			added := slices.DeleteFunc(slices.Clone(p.Replicas), func(id cluster.NodeID) bool { return slices.Contains(p.ISR, id) })[0]
			proposal.ISR = append(proposal.ISR, ISRMember{added, nodes[added].Epoch})
			if partitions[i], err = ProposeISR(p, proposal, nodes, topic); err != nil {
				t.Fatal(err)
			}
			// The setting never asks for more than there is, and never for less again.
			now := traits()
			if now.MinInsyncReplicas < topic.MinInsyncReplicas {
				t.Fatalf("min.insync.replicas went back from %d to %d", topic.MinInsyncReplicas, now.MinInsyncReplicas)
			}
			topic = now
			for _, p := range partitions {
				if len(p.ISR) < EffectiveMinInsync(topic.MinInsyncReplicas, len(p.Replicas)) {
					t.Fatalf("%+v cannot acknowledge any more", p)
				}
			}
		}
		if topic.MinInsyncReplicas != defaultMinInsyncReplicas {
			t.Fatalf("min.insync.replicas stays %d", topic.MinInsyncReplicas)
		}
		for _, p := range partitions {
			if len(p.Replicas) != OffsetsTopicFactor {
				t.Fatalf("%+v has too few replicas", p)
			}
		}
	})
}

// TestNewReplicaIsNoReasonToWait: a replica that was never in sync has nothing that
// the last leader could lack, though that has found damage.
func TestNewReplicaIsNoReasonToWait(t *testing.T) {
	t.Parallel()
	synced := TopicTraits{MinInsyncReplicas: 1, Synced: true}
	nodes := Nodes{1: live(10), 2: live(20)}
	p := NewPartition(0, ids{1}, nodes)
	p = GrowReplicas([]PartitionState{p}, OffsetsTopicFactor, []NodeLoad{{ID: 2}}, 1)[0]
	nodes[1] = restarted(10, 30, Restart{SameBoot: true, SameDirectory: true, Damaged: true})
	if next, _ := Elect(p, nodes, synced); next.Leader != 1 {
		t.Errorf("beside a replica that has nothing node 1 does not lead: %+v", next)
	}
	p.Epochs[1] = 20
	if next, _ := Elect(p, nodes, synced); next.Leader != cluster.NoNode {
		t.Errorf("beside a replica that may have more node 1 leads: %+v", next)
	}
}

func withDead(nodes Nodes, dead ...cluster.NodeID) Nodes {
	next := make(Nodes, len(nodes))
	for id, n := range nodes {
		n.Live = !slices.Contains(dead, id)
		next[id] = n
	}
	return next
}
