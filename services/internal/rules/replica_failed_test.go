package rules

import (
	"slices"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// A leader that has lost records tells no follower what to do, moves no high
// watermark, and resigns.
func TestReplicaFailedLeader(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 2})
	r.SetFailed(true)
	for _, p := range []Position{at(4, 20), at(5, 30), at(NoEpoch, 0)} {
		if got := r.Fetch(p, start); got.Outcome != FetchNotLeader {
			t.Errorf("the position %+v is answered with %+v", p, got)
		}
	}
	if r.HighWatermark() != 10 {
		t.Errorf("the high watermark has moved to %d", r.HighWatermark())
	}
	if !r.Propose(start, maxLag, everyone) || r.Propose(start, maxLag, everyone) {
		t.Error("it does not resign once")
	}
	proposal, ok := r.Proposal()
	if want := (ISRProposal{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7, ISR: []ISRMember{{2, -1}}}); !ok || !proposal.Withdraws || proposal.Leader != want.Leader ||
		proposal.LeaderEpoch != want.LeaderEpoch || proposal.PartitionEpoch != want.PartitionEpoch || !slices.Equal(proposal.ISR, want.ISR) {
		t.Errorf("it proposes %+v", proposal)
	}
}

// What was proposed before is no reason to stay.
func TestReplicaResignsBeforeItsProposalIsAnswered(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 2})
	r.Fetch(node(3, at(5, 30)), start)
	if !r.Propose(start, maxLag, everyone) {
		t.Fatal("nothing is proposed")
	}
	r.SetFailed(true)
	if proposal, ok := r.Proposal(); !ok || proposal.Withdraws {
		t.Errorf("before it resigns it proposes %+v", proposal)
	}
	if !r.Propose(start, maxLag, everyone) {
		t.Fatal("it does not resign")
	}
	if proposal, _ := r.Proposal(); !proposal.Withdraws || slices.ContainsFunc(proposal.ISR, func(m ISRMember) bool { return m.Node == 1 }) {
		t.Errorf("it proposes %+v", proposal)
	}
}

// The only replica has nobody to resign to, and serves on once what was lost is
// given up.
func TestReplicaFailedAlone(t *testing.T) {
	t.Parallel()
	r := NewReplica(1, 2, ReplicaLog{Epochs: Epochs{{2, 0}}, LogEnd: 20, HighWatermark: 10})
	r.SetFailed(true)
	p := assigned(1, 5, 7, ids{1})
	p.Replicas = ids{1}
	r.Apply(p, start)
	if r.Propose(start, maxLag, everyone) {
		t.Error("it resigns")
	}
	r.Queue(30)
	r.Committed(30)
	if r.HighWatermark() != 30 {
		t.Errorf("the high watermark is %d", r.HighWatermark())
	}
}

// acceptWithdrawal lets the cluster accept that a follower withdraws.
func acceptWithdrawal(t *testing.T, r *Replica) cluster.Partition {
	t.Helper()
	proposal, ok := r.Proposal()
	if !ok || !proposal.Withdraws || proposal.ISR != nil {
		t.Fatalf("it proposes %+v", proposal)
	}
	p, _ := r.Assignment()
	state := PartitionState{Partition: p, Epochs: make([]cluster.NodeEpoch, len(p.Replicas))}
	next, err := ProposeISR(state, proposal, nil, TopicTraits{MinInsyncReplicas: 2})
	if err != nil {
		t.Fatal(err)
	}
	r.Answer(proposal, true, next.Partition, start)
	return next.Partition
}

// A follower that has lost records has no position until it has withdrawn, and then that
// of an empty log, though nobody names it: its leader may know a position of it, and the
// cluster that it was in sync once.
func TestReplicaFailedFollower(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		isr, elr ids
	}{
		{"in the ISR", ids{1, 2}, nil},
		{"eligible", ids{1}, ids{2}},
		{"neither", ids{1, 3}, nil},
	} {
		r := NewReplica(2, 2, ReplicaLog{Epochs: Epochs{{4, 0}}, LogEnd: 20, HighWatermark: 10})
		r.SetFailed(true)
		p := assigned(1, 5, 7, test.isr)
		p.ELR = test.elr
		r.Apply(p, start)
		if at, ok := r.Position(20); ok || r.beginsAnew() {
			t.Errorf("%s: it has the position %+v", test.name, at)
		}
		if !r.Propose(start, maxLag, everyone) {
			t.Fatalf("%s: it does not withdraw", test.name)
		}
		acceptWithdrawal(t, &r)
		if _, ok := r.Proposal(); ok {
			t.Errorf("%s: it withdraws again", test.name)
		}
		if at, ok := r.Position(20); !ok || at.LogEnd != 0 || at.LastEpoch != NoEpoch || !r.beginsAnew() {
			t.Errorf("%s: withdrawn it has the position %+v, %t", test.name, at, ok)
		}
		r.Restart(0)
		r.SetFailed(false)
		if at := position(t, &r, 20); at.LogEnd != 0 || at.LastEpoch != NoEpoch {
			t.Errorf("%s: begun anew it has the position %+v", test.name, at)
		}
		r.SetFailed(true)
		if r.beginsAnew() {
			t.Errorf("%s: what it has lost since is covered by an earlier withdrawal", test.name)
		}
	}
	r := NewReplica(2, 2, ReplicaLog{})
	r.SetFailed(true)
	r.Apply(assigned(cluster.NoNode, 5, 7, nil), start)
	if r.beginsAnew() || r.Propose(start, maxLag, everyone) {
		t.Error("it begins anew or withdraws without a leader")
	}
}

// A follower that has lost records withdraws until that is accepted, whatever else the
// cluster agrees on meanwhile, and again once it was counted on since.
func TestReplicaWithdraws(t *testing.T) {
	t.Parallel()
	r := NewReplica(2, 2, ReplicaLog{Epochs: Epochs{{4, 0}}, LogEnd: 20, HighWatermark: 10})
	p := assigned(1, 5, 7, ids{1, 3})
	r.Apply(p, start)
	position(t, &r, 20)
	if r.Propose(start, maxLag, everyone) {
		t.Error("it withdraws though it has lost nothing")
	}
	r.SetFailed(true)
	for i := range 3 {
		if r.beginsAnew() || !r.Propose(start, maxLag, everyone) {
			t.Fatal("it begins anew though its claim stands")
		}
		proposal, ok := r.Proposal()
		if !ok || proposal.Leader != 2 || proposal.LeaderEpoch != p.LeaderEpoch || proposal.PartitionEpoch != p.PartitionEpoch || !proposal.Withdraws || proposal.ISR != nil {
			t.Fatalf("it proposes %+v", proposal)
		}
		p.PartitionEpoch++
		switch i {
		case 0:
			r.Apply(p, start)
		case 1:
			// Somebody else has withdrawn.
			p.LeaderEpoch++
			r.Answer(proposal, false, p, start)
		default:
			// When it led, it has resigned as its disk was slow.
			p.LeaderEpoch++
			r.Answer(ISRProposal{Leader: 2, LeaderEpoch: 3, PartitionEpoch: 4}, true, p, start)
		}
	}
	p = acceptWithdrawal(t, &r)
	if !r.beginsAnew() {
		t.Error("it does not begin anew though nobody counts on it")
	}
	p.PartitionEpoch, p.ISR = p.PartitionEpoch+1, ids{1, 2}
	r.Apply(p, start)
	if r.beginsAnew() || !r.Propose(start, maxLag, everyone) {
		t.Error("it begins anew in the ISR")
	}
	p.PartitionEpoch, p.ISR = p.PartitionEpoch+1, ids{1}
	r.Apply(p, start)
	if r.beginsAnew() || !r.Propose(start, maxLag, everyone) {
		t.Error("it begins anew though it was in the ISR since it has withdrawn")
	}
}

// An answer that comes after the cluster has gone on says nothing of what it counts on
// now.
func TestReplicaLateWithdrawal(t *testing.T) {
	t.Parallel()
	r := NewReplica(2, 2, ReplicaLog{Epochs: Epochs{{4, 0}}, LogEnd: 20, HighWatermark: 10})
	r.SetFailed(true)
	p := assigned(1, 5, 7, ids{1, 3})
	r.Apply(p, start)
	proposal, _ := r.Proposal()
	accepted := p
	accepted.LeaderEpoch, accepted.PartitionEpoch = 6, 8
	p.LeaderEpoch, p.PartitionEpoch = 6, 10
	r.Apply(p, start)
	if a := r.Answer(proposal, true, accepted, start); !a.Stale || r.beginsAnew() {
		t.Errorf("%+v, and it begins anew: %t", a, r.beginsAnew())
	}
	// The image may tell of it before the answer does.
	proposal, _ = r.Proposal()
	accepted.LeaderEpoch, accepted.PartitionEpoch = 7, 11
	r.Apply(accepted, start)
	if r.Answer(proposal, true, accepted, start); !r.beginsAnew() {
		t.Error("it does not begin anew")
	}
}

// A leader that resigns because it has lost records has withdrawn with that.
func TestReplicaFailedLeaderHasWithdrawn(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 2})
	r.SetFailed(true)
	r.Propose(start, maxLag, everyone)
	proposal, _ := r.Proposal()
	r.Answer(proposal, true, assigned(2, 6, 8, ids{2}), start)
	if _, ok := r.Proposal(); ok || !r.beginsAnew() {
		t.Errorf("it begins anew: %t", r.beginsAnew())
	}
}

// A follower that has lost records drops what is left only once its leader has answered,
// in this epoch, what it asked as an empty log.
func TestReplicaBeginsAnewOnceAnswered(t *testing.T) {
	t.Parallel()
	r := NewReplica(2, 2, ReplicaLog{Epochs: Epochs{{4, 5}}, LogStart: 5, LogEnd: 20, HighWatermark: 10, CoordinatorEpoch: 3})
	r.SetFailed(true)
	r.Apply(assigned(1, 4, 6, ids{1, 3}), start)
	if got := r.Receive(Replicated{LeaderEpoch: 4}); got != (Receive{}) {
		t.Errorf("before it has withdrawn: %+v", got)
	}
	acceptWithdrawal(t, &r)
	for _, test := range []struct {
		name string
		in   Replicated
		want Receive
	}{
		{"another epoch", Replicated{LeaderEpoch: 4}, Receive{}},
		{"to follow what it had", Replicated{LeaderEpoch: 5, Follows: 20}, Receive{}},
		{"from the beginning", Replicated{LeaderEpoch: 5, Batches: []BatchBounds{{0, 9, 1}}}, Receive{Outcome: ReceiveRestarts, Offset: 5}},
		{"nothing to send", Replicated{LeaderEpoch: 5, CoordinatorEpoch: 8}, Receive{Outcome: ReceiveRestarts, Offset: 5}},
		{"from above", Replicated{LeaderEpoch: 5, Restarts: true, RestartOffset: 12}, Receive{Outcome: ReceiveRestarts, Offset: 12}},
		{"from nowhere", Replicated{LeaderEpoch: 5, Restarts: true, RestartOffset: -1}, Receive{Outcome: ReceiveInvalid}},
	} {
		if got := r.Receive(test.in); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
	if r.CoordinatorEpoch() != 8 {
		t.Errorf("the coordinator epoch is %d", r.CoordinatorEpoch())
	}
	p := assigned(1, 5, 8, ids{1, 2, 3})
	r.Apply(p, start)
	if got := r.Receive(Replicated{LeaderEpoch: 5}); got != (Receive{}) {
		t.Errorf("in the ISR: %+v", got)
	}
}

// A leader whose disk hangs resigns too; a follower, or who leads alone, has nothing to
// resign.
func TestReplicaResigns(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 2, 3})
	if !r.Resign() || r.Resign() {
		t.Error("it does not resign once")
	}
	if proposal, ok := r.Proposal(); !ok || proposal.Withdraws || !slices.Equal(proposal.ISR, []ISRMember{{2, -1}, {3, -1}}) {
		t.Errorf("it proposes %+v", proposal)
	}
	alone := leader(ids{1})
	if alone.Resign() {
		t.Error("the last member of the ISR resigns")
	}
	p := assigned(1, 5, 8, ids{1})
	p.ELR = ids{3}
	alone.Apply(p, start)
	if !alone.Resign() {
		t.Error("it does not resign though another one is eligible")
	}
	if r := followerOf(ReplicaLog{}); r.Resign() {
		t.Error("a follower resigns")
	}
}
