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

// A follower that has lost records has no position while somebody counts on it, and
// then that of an empty log.
func TestReplicaFailedFollower(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		isr, elr ids
		begins   bool
	}{
		{"in the ISR", ids{1, 2}, nil, false},
		{"eligible", ids{1}, ids{2}, false},
		{"neither", ids{1, 3}, nil, true},
	} {
		r := NewReplica(2, 2, ReplicaLog{Epochs: Epochs{{4, 0}}, LogEnd: 20, HighWatermark: 10})
		r.SetFailed(true)
		p := assigned(1, 5, 7, test.isr)
		p.ELR = test.elr
		r.Apply(p, start)
		if at, ok := r.Position(20); ok != test.begins || ok && (at.LogEnd != 0 || at.LastEpoch != NoEpoch) {
			t.Errorf("%s: it has the position %+v, %t", test.name, at, ok)
		}
		if got := r.beginsAnew(); got != test.begins {
			t.Errorf("%s: begins anew: %t", test.name, got)
		}
		r.Restart(0)
		r.SetFailed(false)
		if at := position(t, &r, 20); at.LogEnd != 0 || at.LastEpoch != NoEpoch {
			t.Errorf("%s: begun anew it has the position %+v", test.name, at)
		}
	}
	r := NewReplica(2, 2, ReplicaLog{})
	r.SetFailed(true)
	r.Apply(assigned(cluster.NoNode, 5, 7, nil), start)
	if r.beginsAnew() {
		t.Error("it begins anew without a leader")
	}
}

// A follower that loses records after it has told a position withdraws, until a new
// leader epoch makes that position void: its leader may be about to admit it for that.
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
	for range 2 {
		if r.beginsAnew() || !r.Propose(start, maxLag, everyone) {
			t.Fatal("it begins anew though its leader knows a position of it")
		}
		proposal, ok := r.Proposal()
		if !ok || proposal.Leader != 2 || proposal.LeaderEpoch != 5 || proposal.PartitionEpoch != p.PartitionEpoch || !proposal.Withdraws || proposal.ISR != nil {
			t.Fatalf("it proposes %+v", proposal)
		}
		// Another change of the ISR does not make the position void.
		p.PartitionEpoch++
		r.Apply(p, start)
	}
	p.LeaderEpoch, p.PartitionEpoch, p.ISR = 6, p.PartitionEpoch+1, ids{1, 2}
	r.Apply(p, start)
	if r.beginsAnew() || !r.Propose(start, maxLag, everyone) {
		t.Error("it begins anew in the ISR")
	}
	p.PartitionEpoch, p.ISR = p.PartitionEpoch+1, ids{1}
	r.Answer(p.PartitionEpoch-1, p, start)
	if _, ok := r.Proposal(); ok || !r.beginsAnew() {
		t.Error("it does not begin anew though nobody counts on it")
	}
}

// A follower that has lost records drops what is left only once its leader has answered,
// in this epoch, what it asked as an empty log.
func TestReplicaBeginsAnewOnceAnswered(t *testing.T) {
	t.Parallel()
	r := NewReplica(2, 2, ReplicaLog{Epochs: Epochs{{4, 5}}, LogStart: 5, LogEnd: 20, HighWatermark: 10, CoordinatorEpoch: 3})
	r.SetFailed(true)
	r.Apply(assigned(1, 5, 7, ids{1, 3}), start)
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
