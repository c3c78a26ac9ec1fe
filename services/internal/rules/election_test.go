package rules

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

type ids = []cluster.NodeID

// live is a process that has not restarted since it got a lease.
func live(epoch cluster.NodeEpoch) NodeState {
	return NodeState{Epoch: epoch, Live: true, History: History{}.Resolve(epoch)}
}

func dead(epoch cluster.NodeEpoch) NodeState {
	n := live(epoch)
	n.Live = false
	return n
}

// leaving is a live process that is about to stop.
func leaving(epoch cluster.NodeEpoch) NodeState {
	n := live(epoch)
	n.Leaving = true
	return n
}

// suspect is a process that counts as live and has just lost its lease.
func suspect(n NodeState) NodeState {
	n.Suspect = true
	return n
}

// restarted is a live process that followed the process of epoch before.
func restarted(before, epoch cluster.NodeEpoch, r Restart) NodeState {
	return NodeState{Epoch: epoch, Live: true, History: History{}.After(before, r).Resolve(epoch)}
}

// led returns a partition on nodes 1, 2, 3 (processes 10, 20, 30) in leader epoch
// 5 and partition epoch 7.
func led(leader cluster.NodeID, isr, elr ids) PartitionState {
	return PartitionState{
		Partition: cluster.Partition{
			Leader: leader, LastLeader: cluster.NoNode, LeaderEpoch: 5, PartitionEpoch: 7,
			Replicas: ids{1, 2, 3}, ISR: isr, ELR: elr,
		},
		Epochs: []cluster.NodeEpoch{10, 20, 30},
	}
}

func offline(last cluster.NodeID, isr, elr ids) PartitionState {
	p := led(cluster.NoNode, isr, elr)
	p.LastLeader = last
	return p
}

// alone returns a partition without a leader whose only replica is on node 1.
func alone() PartitionState {
	p := offline(1, nil, ids{1})
	p.Replicas, p.Epochs = ids{1}, []cluster.NodeEpoch{10}
	return p
}

func TestElect(t *testing.T) {
	t.Parallel()
	var (
		minTwo = TopicTraits{MinInsyncReplicas: 2}
		synced = TopicTraits{MinInsyncReplicas: 2, Synced: true}
		all    = Nodes{1: live(10), 2: live(20), 3: live(30)}
		killed = Restart{SameBoot: true, SameDirectory: true}
		power  = Restart{SameDirectory: true}
		clean  = Restart{Clean: true, SameDirectory: true}
		disk   = Restart{Clean: true, SameBoot: true}
		broken = Restart{Clean: true, SameBoot: true, SameDirectory: true, Damaged: true}
	)
	with := func(changes Nodes) Nodes {
		nodes := maps.Clone(all)
		maps.Copy(nodes, changes)
		return nodes
	}
	type want struct {
		leader      cluster.NodeID
		leaderEpoch cluster.LeaderEpoch
		isr, elr    ids
		last        cluster.NodeID
	}
	const none = cluster.NoNode
	for _, test := range []struct {
		name  string
		p     PartitionState
		nodes Nodes
		topic TopicTraits
		want  want
	}{
		{"nothing happened", led(1, ids{1, 2, 3}, nil), all, minTwo, want{1, 5, ids{1, 2, 3}, nil, none}},

		{"KIP-841: a follower without a lease leaves the ISR", led(1, ids{1, 2, 3}, nil), with(Nodes{3: dead(30)}), minTwo, want{1, 5, ids{1, 2}, nil, none}},
		{"KIP-841: a leader without a lease leaves the ISR and leads no more", led(1, ids{1, 2, 3}, nil), with(Nodes{1: dead(10)}), minTwo, want{2, 6, ids{2, 3}, nil, none}},
		{"the preferred leader is elected first", led(2, ids{1, 2, 3}, nil), with(Nodes{2: dead(20)}), minTwo, want{1, 6, ids{1, 3}, nil, none}},
		{"KAFKA-15021: an ISR change alone leaves the leader epoch", led(2, ids{2, 3}, nil), with(Nodes{3: dead(30)}), minTwo, want{2, 5, ids{2}, ids{3}, none}},

		{"KIP-966: below min ISR who leaves the ISR is eligible", led(1, ids{1, 2}, nil), with(Nodes{2: dead(20)}), minTwo, want{1, 5, ids{1}, ids{2}, none}},
		{"KIP-966: at min ISR nobody else is eligible", led(1, ids{1, 2, 3}, nil), with(Nodes{2: dead(20)}), TopicTraits{MinInsyncReplicas: 1}, want{1, 5, ids{1, 3}, nil, none}},
		{"KIP-966: min ISR is in effect at most the number of replicas", led(1, ids{1, 2, 3}, nil), with(Nodes{2: dead(20)}), TopicTraits{MinInsyncReplicas: 9}, want{1, 5, ids{1, 3}, ids{2}, none}},
		{"KIP-966: the last in-sync replica is eligible while the partition is offline", led(1, ids{1}, ids{2}), with(Nodes{1: dead(10), 2: dead(20)}), minTwo, want{none, 6, nil, ids{1, 2}, 1}},
		{"KIP-966: all at once", led(2, ids{1, 2, 3}, nil), Nodes{1: dead(10), 2: dead(20), 3: dead(30)}, minTwo, want{none, 6, nil, ids{1, 2, 3}, 2}},
		{"KIP-966: an eligible replica is elected when the ISR is empty", offline(1, nil, ids{1, 2}), with(Nodes{1: dead(10)}), minTwo, want{2, 6, ids{2}, ids{1}, none}},
		{"KIP-966: who is neither in ISR nor ELR is not elected", offline(1, nil, ids{1}), with(Nodes{1: dead(10)}), minTwo, want{none, 5, nil, ids{1}, 1}},
		{"KIP-966: an unclean restart leaves the ISR", led(1, ids{1, 2, 3}, nil), with(Nodes{3: restarted(30, 31, killed)}), minTwo, want{1, 5, ids{1, 2}, nil, none}},
		{"KIP-966: an unclean restart leaves the ELR", led(1, ids{1}, ids{2}), with(Nodes{2: restarted(20, 21, killed)}), minTwo, want{1, 5, ids{1}, nil, none}},
		{"KIP-966: a clean restart stays eligible", offline(1, nil, ids{1, 2}), Nodes{1: dead(10), 2: restarted(20, 21, clean), 3: dead(30)}, minTwo, want{2, 6, ids{2}, ids{1}, none}},
		{"KIP-966: clean, but after an unclean restart that nobody judged",
			offline(1, nil, ids{2}),
			Nodes{1: dead(10), 2: {Epoch: 22, Live: true, History: History{}.After(20, killed).After(21, clean).Resolve(22)}, 3: dead(30)},
			minTwo, want{none, 5, nil, nil, 1}},

		{"damage: a clean restart that found some leaves ISR and leadership", led(1, ids{1, 2, 3}, nil), with(Nodes{1: restarted(10, 11, broken)}), minTwo, want{2, 6, ids{2, 3}, nil, none}},
		{"damage: and the ELR", led(1, ids{1}, ids{2}), with(Nodes{2: restarted(20, 21, broken)}), minTwo, want{1, 5, ids{1}, nil, none}},
		{"damage: the last leader that found some is not elected, synced or not", offline(1, nil, ids{1}), Nodes{1: restarted(10, 11, broken), 2: live(20), 3: live(30)}, synced, want{none, 5, nil, nil, 1}},
		{"damage: not after a clean restart either", offline(1, nil, ids{1}),
			Nodes{1: {Epoch: 12, Live: true, History: History{}.After(10, broken).After(11, clean).Resolve(12)}, 2: live(20), 3: live(30)}, synced, want{none, 5, nil, nil, 1}},
		{"damage: the only replica is elected all the same", alone(), Nodes{1: restarted(10, 11, broken)}, synced, want{1, 6, ids{1}, nil, none}},
		{"KIP-101: a lease that came back is the same leadership", led(1, ids{1, 2, 3}, nil), with(Nodes{1: live(10)}), minTwo, want{1, 5, ids{1, 2, 3}, nil, none}},
		{"KIP-101: a new process of the leader is a new leadership", led(1, ids{1, 2, 3}, nil), with(Nodes{1: restarted(10, 11, clean)}), minTwo, want{1, 6, ids{1, 2, 3}, nil, none}},
		{"KIP-903: a follower that restarted cleanly is in the ISR as its new process", led(2, ids{1, 2, 3}, nil), with(Nodes{1: restarted(10, 11, clean)}), minTwo, want{2, 5, ids{1, 2, 3}, nil, none}},
		{"another replica leads after the leader's unclean restart", led(1, ids{1, 2, 3}, nil), with(Nodes{1: restarted(10, 11, killed)}), minTwo, want{2, 6, ids{2, 3}, nil, none}},

		{"leaving: the leader gives way to the next member of the ISR", led(1, ids{1, 2, 3}, nil), with(Nodes{1: leaving(10)}), minTwo, want{2, 6, ids{1, 2, 3}, nil, none}},
		{"leaving: not to one that is leaving too", led(1, ids{1, 2, 3}, nil), with(Nodes{1: leaving(10), 2: leaving(20)}), minTwo, want{3, 6, ids{1, 2, 3}, nil, none}},
		{"leaving: not to one outside of the ISR", led(1, ids{1}, ids{2}), with(Nodes{1: leaving(10)}), minTwo, want{1, 5, ids{1}, ids{2}, none}},
		{"leaving: not to one without a lease", led(1, ids{1, 2}, nil), with(Nodes{1: leaving(10), 2: dead(20)}), minTwo, want{1, 5, ids{1}, ids{2}, none}},
		{"leaving: the leader stays where all are leaving", led(1, ids{1, 2, 3}, nil), Nodes{1: leaving(10), 2: leaving(20), 3: leaving(30)}, minTwo, want{1, 5, ids{1, 2, 3}, nil, none}},
		{"leaving: a follower stays in the ISR", led(1, ids{1, 2, 3}, nil), with(Nodes{2: leaving(20)}), minTwo, want{1, 5, ids{1, 2, 3}, nil, none}},
		{"leaving: others are elected first", led(1, ids{1, 2, 3}, nil), with(Nodes{1: dead(10), 2: leaving(20)}), minTwo, want{3, 6, ids{2, 3}, nil, none}},
		{"leaving: elected when nobody else can be", led(1, ids{1, 2}, nil), with(Nodes{1: dead(10), 2: leaving(20)}), minTwo, want{2, 6, ids{2}, ids{1}, none}},
		{"leaving: who is eligible is elected first and joins the ISR", offline(1, ids{3}, ids{2}), with(Nodes{1: dead(10), 3: leaving(30)}), minTwo, want{2, 6, ids{2, 3}, nil, none}},
		{"leaving: the last leader, whom nobody can replace", led(1, ids{1}, nil), Nodes{1: func() NodeState { n := restarted(10, 11, killed); n.Leaving = true; return n }(), 2: live(20)}, minTwo, want{1, 6, ids{1}, nil, none}},

		{"suspect: the leader stays until it is fenced", led(1, ids{1, 2, 3}, nil), with(Nodes{1: suspect(live(10))}), minTwo, want{1, 5, ids{1, 2, 3}, nil, none}},
		{"suspect: a follower stays in the ISR until it is fenced", led(1, ids{1, 2, 3}, nil), with(Nodes{2: suspect(live(20))}), minTwo, want{1, 5, ids{1, 2, 3}, nil, none}},
		{"suspect: others are elected first", led(1, ids{1, 2, 3}, nil), with(Nodes{1: dead(10), 2: suspect(live(20))}), minTwo, want{3, 6, ids{2, 3}, nil, none}},
		{"suspect: one that is leaving is elected first", led(1, ids{1, 2, 3}, nil), with(Nodes{1: dead(10), 2: suspect(live(20)), 3: leaving(30)}), minTwo, want{3, 6, ids{2, 3}, nil, none}},
		{"suspect: elected when nobody else can be", led(1, ids{1, 2}, nil), with(Nodes{1: dead(10), 2: suspect(live(20))}), minTwo, want{2, 6, ids{2}, ids{1}, none}},
		{"suspect: who leaves gives nothing to it", led(1, ids{1, 2, 3}, nil), with(Nodes{1: leaving(10), 2: suspect(live(20))}), minTwo, want{3, 6, ids{1, 2, 3}, nil, none}},
		{"suspect: who leaves stays where the others are", led(1, ids{1, 2, 3}, nil), Nodes{1: leaving(10), 2: suspect(live(20)), 3: suspect(live(30))}, minTwo, want{1, 5, ids{1, 2, 3}, nil, none}},

		{"last leader: killed, the page cache survived", led(1, ids{1}, nil), Nodes{1: restarted(10, 11, killed), 2: live(20)}, minTwo, want{1, 6, ids{1}, nil, none}},
		{"last leader: power loss, synced", led(1, ids{1}, nil), Nodes{1: restarted(10, 11, power), 2: live(20)}, synced, want{1, 6, ids{1}, nil, none}},
		{"last leader: power loss, not synced", led(1, ids{1}, nil), Nodes{1: restarted(10, 11, power), 2: live(20)}, minTwo, want{none, 6, nil, nil, 1}},
		{"last leader: another directory", led(1, ids{1}, nil), Nodes{1: restarted(10, 11, disk)}, synced, want{none, 6, nil, nil, 1}},
		{"last leader: an ELR member may still come back", led(1, ids{1}, ids{2}), Nodes{1: restarted(10, 11, killed), 2: dead(20)}, synced, want{none, 6, nil, ids{2}, 1}},
		{"last leader: the ELR member came back without its records", offline(1, nil, ids{2}), Nodes{1: restarted(10, 11, killed), 2: restarted(20, 21, power)}, minTwo, want{1, 6, ids{1}, nil, none}},
		{"last leader: who did not lead last is not elected", offline(1, nil, nil), Nodes{1: dead(10), 2: live(20)}, synced, want{none, 5, nil, nil, 1}},
		{"last leader: a later restart under one boot does not bring back what a power loss took",
			offline(1, nil, nil),
			Nodes{1: {Epoch: 12, Live: true, History: History{}.After(10, power).After(11, killed).Resolve(12)}},
			minTwo, want{none, 5, nil, nil, 1}},
		{"last leader: nor does a clean one",
			offline(1, nil, nil),
			Nodes{1: {Epoch: 12, Live: true, History: History{}.After(10, power).After(11, clean).Resolve(12)}},
			minTwo, want{none, 5, nil, nil, 1}},
		{"last leader: a directory that comes back after another one is not trusted",
			offline(1, nil, nil),
			Nodes{1: {Epoch: 12, Live: true, History: History{}.After(10, disk).After(11, disk).Resolve(12)}},
			synced, want{none, 5, nil, nil, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, changed := Elect(test.p, test.nodes, test.topic)
			if got.Leader != test.want.leader || got.LeaderEpoch != test.want.leaderEpoch || got.LastLeader != test.want.last ||
				!slices.Equal(got.ISR, test.want.isr) || !slices.Equal(got.ELR, test.want.elr) {
				t.Errorf("got leader %d epoch %d isr %v elr %v last %d, want %+v", got.Leader, got.LeaderEpoch, got.ISR, got.ELR, got.LastLeader, test.want)
			}
			if changed != (got.PartitionEpoch != test.p.PartitionEpoch) {
				t.Errorf("changed %t, partition epoch from %d to %d", changed, test.p.PartitionEpoch, got.PartitionEpoch)
			}
			if again, changed := Elect(got, test.nodes, test.topic); changed {
				t.Errorf("a second election changes the partition to %+v", again)
			}
		})
	}
}

// A leader that has lost records leaves itself out of the ISR, and out of the ELR.
func TestLeaderResigns(t *testing.T) {
	t.Parallel()
	nodes := Nodes{1: live(10), 2: live(20), 3: dead(30)}
	for _, test := range []struct {
		name     string
		p        PartitionState
		isr      []ISRMember
		leader   cluster.NodeID
		now, elr ids
	}{
		{"another member leads", led(1, ids{1, 2, 3}, nil), []ISRMember{{2, -1}, {3, -1}}, 2, ids{2}, ids{3}},
		{"who is eligible leads", led(1, ids{1}, ids{2}), nil, 2, ids{2}, nil},
	} {
		got, err := ProposeISR(test.p, ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: test.isr}, nodes, TopicTraits{MinInsyncReplicas: 2})
		if err != nil || got.Leader != test.leader || got.LeaderEpoch != 6 || got.PartitionEpoch != 8 || !slices.Equal(got.ISR, test.now) || !slices.Equal(got.ELR, test.elr) {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
	}
}

// A leader whose disk hangs keeps what it held, which an unclean election may need; one
// that resigns because it has lost records does not.
func TestResignationSaysWhatIsLost(t *testing.T) {
	t.Parallel()
	broken := Restart{SameDirectory: true, Damaged: true}
	for _, test := range []struct {
		name  string
		lost  bool
		epoch cluster.NodeEpoch
		want  cluster.NodeID
	}{
		{"its disk hangs", false, 20, 2},
		{"it has lost records", true, 0, 1},
	} {
		p := led(2, ids{1, 2}, nil)
		p.Replicas, p.Epochs = ids{1, 2}, p.Epochs[:2]
		nodes := Nodes{1: live(10), 2: live(20)}
		minTwo := TopicTraits{MinInsyncReplicas: 2}
		p, err := ProposeISR(p, ISRProposal{Leader: 2, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch, ISR: []ISRMember{{1, -1}}, Withdraws: test.lost}, nodes, minTwo)
		if err != nil || p.Leader != 1 || !slices.Equal(p.ISR, ids{1}) || len(p.ELR) > 0 || p.Epochs[0] != 10 || p.Epochs[1] != test.epoch {
			t.Errorf("%s: %+v, %v", test.name, p, err)
			continue
		}
		// Another partition of node 1 is damaged, and the machines lose power.
		nodes = Nodes{1: restarted(10, 11, broken), 2: restarted(20, 21, Restart{SameDirectory: true})}
		p, _ = Elect(p, nodes, minTwo)
		if p, elected := ElectUnclean(p, nodes); !elected || p.Leader != test.want {
			t.Errorf("%s: the unclean election has %+v", test.name, p)
		}
	}
}

// A follower that has lost records is in neither ISR nor ELR once it has withdrawn, and
// what its leader believes that it has is of an earlier leader epoch.
func TestFollowerWithdraws(t *testing.T) {
	t.Parallel()
	nodes := Nodes{1: live(10), 2: live(20), 3: live(30)}
	stale := led(1, ids{1, 2, 3}, nil)
	for _, test := range []struct {
		name     string
		p        PartitionState
		proposal ISRProposal
		isr, elr ids
		refused  error
	}{
		{"of the ISR", led(1, ids{1, 2, 3}, nil), ISRProposal{Leader: 3}, ids{1, 2}, nil, nil},
		{"and the rest is too small for the high watermark to move", led(1, ids{1, 3}, nil), ISRProposal{Leader: 3}, ids{1}, nil, nil},
		{"of the ELR", led(1, ids{1}, ids{2, 3}), ISRProposal{Leader: 3}, ids{1}, ids{2}, nil},
		{"of neither", led(1, ids{1, 2}, nil), ISRProposal{Leader: 3}, ids{1, 2}, nil, nil},
		{"a leader to whom nobody succeeds", led(1, ids{1}, nil), ISRProposal{Leader: 1}, nil, nil, ErrIneligible},
		{"a leader that stays", led(1, ids{1, 2, 3}, nil), ISRProposal{Leader: 1, ISR: []ISRMember{{1, -1}, {2, -1}}}, nil, nil, ErrIneligible},
		{"nobody leads", offline(1, nil, ids{3}), ISRProposal{Leader: 3}, nil, nil, ErrIneligible},
		{"no replica", led(1, ids{1}, nil), ISRProposal{Leader: 4}, nil, nil, ErrIneligible},
		{"of an earlier leader epoch", stale, ISRProposal{Leader: 3, LeaderEpoch: stale.LeaderEpoch - 1}, nil, nil, ErrLeaderEpoch},
		{"based on an older state", stale, ISRProposal{Leader: 3, PartitionEpoch: stale.PartitionEpoch - 1}, nil, nil, ErrPartitionEpoch},
	} {
		proposal := test.proposal
		proposal.Withdraws = true
		proposal.LeaderEpoch = cmp.Or(proposal.LeaderEpoch, test.p.LeaderEpoch)
		proposal.PartitionEpoch = cmp.Or(proposal.PartitionEpoch, test.p.PartitionEpoch)
		got, err := ProposeISR(test.p, proposal, nodes, TopicTraits{MinInsyncReplicas: 2})
		if !errors.Is(err, test.refused) {
			t.Errorf("%s: refused with %v, want %v", test.name, err, test.refused)
			continue
		}
		if err != nil {
			continue
		}
		if got.Leader != 1 || got.LeaderEpoch != test.p.LeaderEpoch+1 || got.PartitionEpoch != test.p.PartitionEpoch+1 ||
			!slices.Equal(got.ISR, test.isr) || !slices.Equal(got.ELR, test.elr) || got.Epochs[2] != 0 {
			t.Errorf("%s: %+v", test.name, got)
		}
		if settled, changed := Elect(got, nodes, TopicTraits{MinInsyncReplicas: 2}); changed {
			t.Errorf("%s: the election makes %+v of it", test.name, settled)
		}
		// What the leader has proposed meanwhile, on account of what it had, is void.
		if _, err := ProposeISR(got, ISRProposal{Leader: 1, LeaderEpoch: test.p.LeaderEpoch, PartitionEpoch: got.PartitionEpoch, ISR: []ISRMember{{1, -1}, {3, 30}}}, nodes, TopicTraits{MinInsyncReplicas: 2}); !errors.Is(err, ErrLeaderEpoch) {
			t.Errorf("%s: an admission for an earlier position is answered with %v", test.name, err)
		}
	}
}

func TestProposeISR(t *testing.T) {
	t.Parallel()
	nodes := Nodes{1: live(10), 2: live(20), 3: restarted(30, 31, Restart{SameBoot: true, SameDirectory: true})}
	minTwo := TopicTraits{MinInsyncReplicas: 2}
	stay := func(members ...cluster.NodeID) []ISRMember {
		var out []ISRMember
		for _, m := range members {
			out = append(out, ISRMember{m, -1})
		}
		return out
	}
	for _, test := range []struct {
		name     string
		p        PartitionState
		proposal ISRProposal
		nodes    Nodes
		isr, elr ids
		refused  error
	}{
		{"KIP-497: shrink", led(1, ids{1, 2, 3}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(1, 2)}, nodes, ids{1, 2}, nil, nil},
		{"KIP-966: shrink below min ISR", led(1, ids{1, 2}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(1)}, nodes, ids{1}, ids{2}, nil},
		{"KIP-966: shrink keeps who was eligible", led(1, ids{1, 2}, ids{3}), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(1)}, nodes, ids{1}, ids{2, 3}, nil},
		{"KIP-497: expand", led(1, ids{1}, ids{2}), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: append(stay(1), ISRMember{2, 20})}, nodes, ids{1, 2}, nil, nil},
		{"KIP-966: expand below min ISR", led(1, ids{1}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(1)}, nodes, ids{1}, nil, nil},
		{"KIP-497: based on an older state", led(1, ids{1, 2}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 6, ISR: stay(1)}, nodes, nil, nil, ErrPartitionEpoch},
		{"KIP-497: based on a state that never was", led(1, ids{1, 2}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 8, ISR: stay(1)}, nodes, nil, nil, ErrPartitionEpoch},
		{"KIP-320: superseded leadership", led(1, ids{1, 2}, nil), ISRProposal{Leader: 1, LeaderEpoch: 4, PartitionEpoch: 7, ISR: stay(1)}, nodes, nil, nil, ErrLeaderEpoch},
		{"not the leader", led(1, ids{1, 2}, nil), ISRProposal{Leader: 2, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(2)}, nodes, nil, nil, ErrNotLeader},
		{"offline", offline(1, nil, ids{1}), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(1)}, nodes, nil, nil, ErrNotLeader},
		{"KIP-841: a node without a lease is not added", led(1, ids{1}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: append(stay(1), ISRMember{2, 20})}, Nodes{1: live(10), 2: dead(20)}, nil, nil, ErrIneligible},
		{"KIP-903: a process that has restarted is not added", led(1, ids{1}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: append(stay(1), ISRMember{3, 30})}, nodes, nil, nil, ErrIneligible},
		{"KIP-903: the new process is added", led(1, ids{1, 2}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: append(stay(1, 2), ISRMember{3, 31})}, nodes, ids{1, 2, 3}, nil, nil},
		{"a new member must name its epoch", led(1, ids{1}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(1, 2)}, nodes, nil, nil, ErrIneligible},
		{"a leaving node is not added", led(1, ids{1}, ids{2}), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: append(stay(1), ISRMember{2, 20})}, Nodes{1: live(10), 2: leaving(20)}, nil, nil, ErrIneligible},
		{"a leaving member stays", led(1, ids{1, 2}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(1, 2)}, Nodes{1: live(10), 2: leaving(20)}, ids{1, 2}, nil, nil},
		{"a leaving member that is named with its epoch stays", led(1, ids{1, 2}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: append(stay(1), ISRMember{2, 20})}, Nodes{1: live(10), 2: leaving(20)}, ids{1, 2}, nil, nil},
		{"KIP-966: who was eligible is so no more once min ISR was lowered", led(1, ids{1, 2}, ids{3}), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(1, 2)}, nodes, ids{1, 2}, nil, nil},
		{"no replica", led(1, ids{1}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: append(stay(1), ISRMember{4, 40})}, Nodes{1: live(10), 4: live(40)}, nil, nil, ErrIneligible},
		{"named twice", led(1, ids{1, 2}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(1, 2, 2)}, nodes, nil, nil, ErrIneligible},
		{"resigned: nobody else has all", led(1, ids{1}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: nil}, nodes, nil, nil, ErrIneligible},
		{"resigned: nobody else that has all is live", led(1, ids{1, 2}, nil), ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: stay(2)}, Nodes{1: live(10), 2: dead(20)}, nil, nil, ErrIneligible},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := ProposeISR(test.p, test.proposal, test.nodes, minTwo)
			if !errors.Is(err, test.refused) {
				t.Fatalf("refused with %v, want %v", err, test.refused)
			}
			if test.refused != nil {
				if got.PartitionEpoch != test.p.PartitionEpoch || !slices.Equal(got.ISR, test.p.ISR) {
					t.Fatalf("refused and yet changed to %+v", got)
				}
				return
			}
			if !slices.Equal(got.ISR, test.isr) || !slices.Equal(got.ELR, test.elr) {
				t.Errorf("got isr %v elr %v, want %v %v", got.ISR, got.ELR, test.isr, test.elr)
			}
			if got.LeaderEpoch != 5 || got.Leader != 1 {
				t.Errorf("leader %d in epoch %d", got.Leader, got.LeaderEpoch)
			}
			// Also where the ISR is the same: what else was proposed on epoch 7 is void.
			if got.PartitionEpoch != 8 {
				t.Errorf("partition epoch %d after an accepted proposal on 7", got.PartitionEpoch)
			}
			if _, err := ProposeISR(got, test.proposal, test.nodes, minTwo); !errors.Is(err, ErrPartitionEpoch) {
				t.Errorf("a late copy of the proposal is answered with %v", err)
			}
		})
	}
}

func TestMassLoss(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		lost, live int
		want       bool
	}{{0, 0, false}, {1, 1, false}, {1, 2, false}, {2, 2, true}, {1, 3, false}, {2, 3, true}, {2, 4, false}, {3, 4, true}} {
		if got := MassLoss(test.lost, test.live); got != test.want {
			t.Errorf("%d of %d: %t", test.lost, test.live, got)
		}
	}
}

// machine is a node in the model of [TestElectionProperties]: what truly happens
// to it, beside what the controller knows.
type machine struct {
	up, clean bool
	boot, dir int
	// registered is what the controller recorded of the latest process.
	registered struct{ boot, dir int }
	state      NodeState
	known      bool
	history    History
	// records is how many of the acknowledged records its replica holds.
	records int
}

// TestElectionProperties runs one partition through crashes, power losses,
// exchanged disks, lost leases and ISR changes, with elections that come late,
// and holds every leader against the records that were truly acknowledged.
func TestElectionProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		factor := rapid.IntRange(1, 4).Draw(t, "replicas")
		topic := TopicTraits{
			Synced:            rapid.Bool().Draw(t, "synced"),
			MinInsyncReplicas: rapid.IntRange(1, 4).Draw(t, "min ISR"),
		}
		minISR := EffectiveMinInsync(topic.MinInsyncReplicas, factor)
		epoch := cluster.NodeEpoch(0)
		machines := map[cluster.NodeID]*machine{}
		var replicas ids
		register := func(id cluster.NodeID) {
			m := machines[id]
			epoch++
			if m.known {
				m.history = m.history.After(m.state.Epoch, Restart{Clean: m.clean, SameBoot: m.registered.boot == m.boot, SameDirectory: m.registered.dir == m.dir})
			}
			m.known, m.up, m.clean = true, true, false
			m.registered.boot, m.registered.dir = m.boot, m.dir
			m.state = NodeState{Epoch: epoch, Live: true, History: m.history.Resolve(epoch)}
		}
		for id := cluster.NodeID(1); int(id) <= factor; id++ {
			machines[id] = &machine{}
			replicas = append(replicas, id)
			register(id)
		}
		nodes := func() Nodes {
			out := Nodes{}
			for id, m := range machines {
				out[id] = m.state
			}
			return out
		}
		p := NewPartition(0, replicas, nodes())
		acknowledged := 0
		judged := true
		// leads says that the very process leads that the controller elected.
		leads := func() bool {
			return p.Leader != cluster.NoNode && machines[p.Leader].up &&
				p.Epochs[slices.Index(replicas, p.Leader)] == machines[p.Leader].state.Epoch
		}
		check := func(before PartitionState) {
			for _, set := range []ids{p.ISR, p.ELR} {
				if len(slices.Compact(slices.Sorted(slices.Values(set)))) != len(set) {
					t.Fatalf("%v names a node twice", set)
				}
				for _, id := range set {
					if !slices.Contains(replicas, id) {
						t.Fatalf("node %d is in ISR %v or ELR %v and holds no replica", id, p.ISR, p.ELR)
					}
					if m := machines[id]; p.Epochs[slices.Index(replicas, id)] >= m.state.History.CleanSince && m.up && m.records < acknowledged {
						t.Fatalf("node %d is in ISR %v or ELR %v with %d of %d acknowledged records", id, p.ISR, p.ELR, m.records, acknowledged)
					}
				}
			}
			switch {
			case slices.ContainsFunc(p.ISR, func(id cluster.NodeID) bool { return slices.Contains(p.ELR, id) }):
				t.Fatalf("ISR %v and ELR %v overlap", p.ISR, p.ELR)
			case len(p.ISR) >= minISR && len(p.ELR) > 0:
				t.Fatalf("ELR %v with ISR %v and min ISR %d", p.ELR, p.ISR, minISR)
			case p.Leader != cluster.NoNode && !slices.Contains(p.ISR, p.Leader):
				t.Fatalf("leader %d is not in the ISR %v", p.Leader, p.ISR)
			case (p.Leader == cluster.NoNode) == (p.LastLeader == cluster.NoNode):
				t.Fatalf("leader %d, last leader %d", p.Leader, p.LastLeader)
			case p.LeaderEpoch < before.LeaderEpoch || p.PartitionEpoch < before.PartitionEpoch:
				t.Fatalf("epochs fall from %+v to %+v", before, p)
			case p.PartitionEpoch > before.PartitionEpoch+1:
				t.Fatalf("partition epoch from %d to %d in one step", before.PartitionEpoch, p.PartitionEpoch)
			case p.Leader != before.Leader && p.LeaderEpoch != before.LeaderEpoch+1:
				t.Fatalf("leader changes from %d to %d, leader epoch from %d to %d", before.Leader, p.Leader, before.LeaderEpoch, p.LeaderEpoch)
			}
			for i := range replicas {
				if p.Epochs[i] < before.Epochs[i] {
					t.Fatalf("node epochs fall from %v to %v", before.Epochs, p.Epochs)
				}
			}
			if leads() && machines[p.Leader].records < acknowledged {
				t.Fatalf("leader %d holds %d of %d acknowledged records", p.Leader, machines[p.Leader].records, acknowledged)
			}
		}
		pick := func(t *rapid.T, what string, fits func(*machine) bool) *machine {
			var fitting ids
			for _, id := range replicas {
				if fits(machines[id]) {
					fitting = append(fitting, id)
				}
			}
			if len(fitting) == 0 {
				t.Skip("no node fits")
			}
			return machines[rapid.SampledFrom(fitting).Draw(t, what)]
		}
		id := func(m *machine) cluster.NodeID {
			for id, other := range machines {
				if other == m {
					return id
				}
			}
			panic("unknown machine")
		}
		up := func(m *machine) bool { return m.up }
		down := func(m *machine) bool { return !m.up }
		t.Repeat(map[string]func(*rapid.T){
			"stop": func(t *rapid.T) {
				m := pick(t, "stops", up)
				m.up, m.clean, m.state.Live, judged = false, true, false, false
			},
			"kill": func(t *rapid.T) { pick(t, "killed", up).up = false },
			"power loss": func(t *rapid.T) {
				m := pick(t, "loses power", func(m *machine) bool { return m.up || !m.clean })
				m.up = false
				m.boot++
				if !topic.Synced {
					m.records = rapid.IntRange(0, m.records).Draw(t, "records left")
				}
			},
			"new disk": func(t *rapid.T) {
				m := pick(t, "gets a new disk", down)
				m.dir++
				m.records = 0
			},
			"lose lease": func(t *rapid.T) {
				pick(t, "loses lease", func(m *machine) bool { return m.state.Live }).state.Suspect = true
				judged = false
			},
			"fence": func(t *rapid.T) {
				m := pick(t, "is fenced", func(m *machine) bool { return m.state.Live })
				m.state.Live, m.state.Suspect, judged = false, false, false
			},
			"regain lease": func(t *rapid.T) {
				m := pick(t, "regains lease", func(m *machine) bool { return m.up && (!m.state.Live || m.state.Suspect) })
				m.state.Live, m.state.Suspect, judged = true, false, false
			},
			"leave": func(t *rapid.T) {
				pick(t, "leaves", func(m *machine) bool { return m.up && !m.state.Leaving }).state.Leaving = true
				judged = false
			},
			"register": func(t *rapid.T) { register(id(pick(t, "registers", down))); judged = false },
			"prefer": func(t *rapid.T) {
				before := p
				var moved bool
				if p, moved = Prefer(p, nodes()); !moved {
					return
				}
				check(before)
				if p.Leader != replicas[0] || !machines[p.Leader].state.Live || machines[p.Leader].state.Leaving {
					t.Fatalf("leader %d was preferred: %+v", p.Leader, machines[p.Leader].state)
				}
				if again, _ := Elect(p, nodes(), topic); judged && again.Leader != p.Leader {
					t.Fatalf("an election takes the leadership from the preferred leader to %d", again.Leader)
				}
			},
			"unclean": func(t *rapid.T) {
				before := p
				if before, _ = Elect(before, nodes(), topic); before.Leader != cluster.NoNode {
					t.Skip("there is a leader")
				}
				p = before
				var elected bool
				if p, elected = ElectUnclean(p, nodes()); !elected {
					return
				}
				judged = true
				// What the leader does not hold is given up.
				acknowledged = min(acknowledged, machines[p.Leader].records)
				for _, m := range machines {
					m.records = min(m.records, acknowledged)
				}
				check(before)
				if again, changed := Elect(p, nodes(), topic); changed {
					t.Fatalf("an election changes %+v to %+v", p, again)
				}
			},
			"elect": func(t *rapid.T) {
				before := p
				p, _ = Elect(p, nodes(), topic)
				judged = true
				check(before)
				for _, id := range p.ISR {
					if !machines[id].state.Live {
						t.Fatalf("fenced node %d is in the ISR %v", id, p.ISR)
					}
					if other := machines[id].state; p.Leader != cluster.NoNode && machines[p.Leader].state.Leaving && !other.Leaving && !other.Suspect {
						t.Fatalf("leader %d is leaving although node %d could lead", p.Leader, id)
					}
				}
				if p.Leader != cluster.NoNode && p.LeaderEpoch != before.LeaderEpoch && machines[p.Leader].state.Suspect &&
					slices.ContainsFunc(slices.Concat(p.ISR, p.ELR), func(id cluster.NodeID) bool { return machines[id].state.Live && !machines[id].state.Suspect }) {
					t.Fatalf("leader %d, which has lost its lease, was elected: %+v", p.Leader, p)
				}
				if again, changed := Elect(p, nodes(), topic); changed {
					t.Fatalf("a second election changes %+v to %+v", p, again)
				}
			},
			"acknowledge": func(t *rapid.T) {
				if !judged || !leads() || len(p.ISR) < minISR || slices.ContainsFunc(p.ISR, func(id cluster.NodeID) bool { return !machines[id].up }) {
					t.Skip("the high watermark stands still")
				}
				acknowledged++
				for _, id := range p.ISR {
					machines[id].records = acknowledged
				}
				check(p)
			},
			"propose": func(t *rapid.T) {
				if !leads() {
					t.Skip("nobody leads")
				}
				proposal := ISRProposal{Leader: p.Leader, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch}
				for _, id := range replicas {
					if id != p.Leader && !rapid.Bool().Draw(t, fmt.Sprintf("with %d", id)) {
						continue
					}
					member := ISRMember{id, -1}
					if m := machines[id]; !slices.Contains(p.ISR, id) {
						if m.up {
							// It has caught up with the leader, or else it is not proposed.
							m.records = max(m.records, machines[p.Leader].records)
						}
						member.Epoch = m.state.Epoch
						if !m.up {
							continue
						}
					}
					proposal.ISR = append(proposal.ISR, member)
				}
				before := p
				var err error
				if p, err = ProposeISR(p, proposal, nodes(), topic); err != nil && !errors.Is(err, ErrIneligible) {
					t.Fatal(err)
				}
				check(before)
			},
		})
	})
}
