package rules

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// fencedLeader is [leader] with 5 more records, the fence of coordinator epoch 7, all of
// them written.
func fencedLeader(isr ids) *Replica {
	r := leader(isr)
	r.QueueFenced(35, 7)
	r.Committed(35)
	return r
}

// answering is a position of a node that has all there is, and the probe.
func answering(id cluster.NodeID, probe int64) Position {
	p := node(id, at(5, 35))
	p.Probe = probe
	return p
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		claim Claim
		want  Judgement
	}{
		{"the highest epoch, at the log end", Claim{7, 35}, ClaimHolds},
		{"the highest epoch, anywhere", Claim{7, AnyOffset}, ClaimHolds},
		{"a higher epoch's fence", Claim{8, AnyOffset}, ClaimHolds},
		{"a lower epoch at the log end", Claim{6, 35}, ClaimFenced},
		{"a lower epoch's fence", Claim{6, AnyOffset}, ClaimFenced},
		{"a lower epoch elsewhere", Claim{6, 30}, ClaimFenced},
		{"a higher epoch without its fence", Claim{8, 35}, ClaimEarly},
		{"below the log end", Claim{7, 34}, ClaimMoved},
		{"above the log end", Claim{7, 36}, ClaimMoved},
		{"no epoch", Claim{0, 35}, ClaimFenced},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := fencedLeader(ids{1, 2, 3})
			if got := r.Judge(test.claim); got != test.want {
				t.Errorf("judged %d, want %d", got, test.want)
			}
		})
	}
	r := NewReplica(1, 1, ReplicaLog{LogEnd: 4})
	if got := r.Judge(Claim{1, 4}); got != ClaimEarly {
		t.Errorf("nobody has appended, and epoch 1 is judged %d", got)
	}
	// What is queued counts as appended.
	r = *fencedLeader(ids{1, 2, 3})
	r.QueueFenced(40, 8)
	if got := r.Judge(Claim{7, 35}); got != ClaimFenced {
		t.Errorf("a later fence is queued, and epoch 7 is judged %d", got)
	}
	if got := r.Judge(Claim{8, 35}); got != ClaimMoved {
		t.Errorf("records are queued behind 35, which is judged %d", got)
	}
}

// The epoch stays when its fence goes: the metadata service has issued it.
func TestCoordinatorEpochNeverFalls(t *testing.T) {
	t.Parallel()
	const issued = 7
	log := ReplicaLog{Epochs: Epochs{{2, 0}, {4, 10}}, LogEnd: 20, CoordinatorEpoch: issued}
	wants := func(what string, r *Replica, want cluster.CoordinatorEpoch) {
		t.Helper()
		if got := r.CoordinatorEpoch(); got != want {
			t.Errorf("%s: coordinator epoch %d, want %d", what, got, want)
		}
	}
	r := followerOf(log)
	wants("found in the log", r, issued)
	r.Cut(5)
	wants("after a truncation", r, issued)
	r.Restart(0)
	wants("after a restart", r, issued)

	r = followerOf(log)
	batches := Replicated{LeaderEpoch: 5, Follows: 20, CoordinatorEpoch: 3, Batches: []BatchBounds{{20, 21, 5}}}
	if got := r.Receive(batches); got.Outcome != ReceiveAppends {
		t.Fatalf("got %+v", got)
	}
	r.QueueCopies(batches)
	wants("from a leader that knows less", r, issued)
	more := Replicated{LeaderEpoch: 5, Follows: 22, CoordinatorEpoch: 9, Batches: []BatchBounds{{22, 22, 5}}}
	r.Receive(more)
	wants("with batches", r, 9)
	r.QueueCopies(more)
	r.Receive(Replicated{LeaderEpoch: 4, Follows: 23, CoordinatorEpoch: 20})
	r.Receive(Replicated{LeaderEpoch: 5, Follows: 99, CoordinatorEpoch: 20})
	wants("with what is dropped", r, 9)
	if got := r.Receive(Replicated{LeaderEpoch: 5, Follows: 23, CoordinatorEpoch: 20, Batches: []BatchBounds{{3, 3, 5}}}); got.Outcome != ReceiveInvalid {
		t.Fatalf("got %+v", got)
	}
	wants("with what no leader sends", r, 9)
	if got := r.Receive(Replicated{LeaderEpoch: 5, Follows: 23, CoordinatorEpoch: 11, Restarts: true, RestartOffset: 50}); got.Outcome != ReceiveRestarts {
		t.Fatalf("got %+v", got)
	}
	wants("with the order to begin anew", r, 11)

	// Whoever leads next goes on with it.
	r.Restart(50)
	r.Apply(assigned(2, 6, 9, ids{2, 3}), start)
	if got := r.Judge(Claim{10, AnyOffset}); got != ClaimFenced {
		t.Errorf("the next leader judges a superseded coordinator %d", got)
	}
}

func TestConfirm(t *testing.T) {
	t.Parallel()
	claim := Claim{7, 35}
	fetch := func(positions ...func(probe int64) Position) func(*Replica, int64) {
		return func(r *Replica, probe int64) {
			for _, p := range positions {
				r.Fetch(p(probe), start)
			}
		}
	}
	answer := func(id cluster.NodeID) func(int64) Position {
		return func(probe int64) Position { return answering(id, probe) }
	}
	all := fetch(answer(2), answer(3))
	for _, test := range []struct {
		name  string
		isr   ids
		claim Claim
		then  func(r *Replica, probe int64)
		want  Judgement
	}{
		{"all members have answered", ids{1, 2, 3}, claim, all, ClaimHolds},
		{"nobody has", ids{1, 2, 3}, claim, nil, ClaimOpen},
		{"one member has not", ids{1, 2, 3}, claim, fetch(answer(2)), ClaimOpen},
		{"a position that does not carry the probe may have been on its way for long", ids{1, 2, 3}, claim, fetch(
			answer(2), func(int64) Position { return answering(3, 0) }), ClaimOpen},
		{"an earlier probe", ids{1, 2}, claim, fetch(func(probe int64) Position { return answering(2, probe-1) }), ClaimOpen},
		{"a later position keeps the answer", ids{1, 2}, claim, fetch(answer(2), func(int64) Position { return answering(2, 0) }), ClaimHolds},
		{"a number that was not given", ids{1, 2}, claim, fetch(func(probe int64) Position { return answering(2, probe+1) }), ClaimOpen},
		{"who is not in sync does not count", ids{1, 2}, claim, fetch(answer(2)), ClaimHolds},
		{"KIP-497: a proposed member counts", ids{1, 2}, claim, func(r *Replica, probe int64) {
			r.propose([]ISRMember{{Node: 1}, {Node: 2}, {Node: 3}})
			r.Fetch(answering(2, probe), start)
		}, ClaimOpen},
		{"KIP-497: a member that is to leave counts", ids{1, 2, 3}, claim, func(r *Replica, probe int64) {
			r.propose([]ISRMember{{Node: 1}, {Node: 2}})
			r.Fetch(answering(2, probe), start)
		}, ClaimOpen},
		{"KIP-966: who is eligible counts", ids{1, 2}, claim, func(r *Replica, probe int64) {
			p := assigned(1, 5, 8, ids{1, 2})
			p.ELR = ids{3}
			r.Apply(p, start)
			r.Fetch(answering(2, probe), start)
		}, ClaimOpen},
		{"KIP-966: below min ISR others may be elected", ids{1}, claim, all, ClaimOpen},
		{"alone in an ISR that is large enough", ids{1}, claim, func(r *Replica, _ int64) { r.SetMinInsync(1) }, ClaimHolds},
		{"the high watermark does not cover it", ids{1, 2, 3}, claim, fetch(answer(2), func(probe int64) Position {
			p := answering(3, probe)
			p.LogEnd = 34
			return p
		}), ClaimOpen},
		{"KIP-320: an answer of another leader epoch", ids{1, 2}, claim, fetch(answer(2), func(probe int64) Position {
			p := answering(2, probe)
			p.LeaderEpoch = 4
			return p
		}), ClaimHolds},
		{"KIP-320: only an answer of another leader epoch", ids{1, 2}, claim, fetch(func(probe int64) Position {
			p := answering(2, probe)
			p.LeaderEpoch = 4
			return p
		}), ClaimOpen},
		{"KIP-903: what an earlier process has answered", ids{1, 2}, claim, fetch(answer(2), func(int64) Position {
			p := answering(2, 0)
			p.NodeEpoch = 21
			return p
		}), ClaimOpen},
		{"another leadership of the same node", ids{1, 2}, claim, func(r *Replica, probe int64) {
			r.Fetch(answering(2, probe), start)
			r.Apply(assigned(1, 6, 8, ids{1, 2}), start)
		}, ClaimOpen},
		{"the node does not lead any more", ids{1, 2}, claim, func(r *Replica, probe int64) {
			r.Fetch(answering(2, probe), start)
			r.Apply(assigned(2, 6, 8, ids{1, 2}), start)
		}, ClaimOpen},
		{"something of the log is lost", ids{1, 2}, claim, func(r *Replica, probe int64) {
			r.Fetch(answering(2, probe), start)
			r.SetFailed(true)
		}, ClaimOpen},
		{"a lower epoch", ids{1, 2, 3}, Claim{6, 35}, all, ClaimFenced},
		{"an epoch without its fence", ids{1, 2, 3}, Claim{8, 35}, all, ClaimEarly},
		{"below the log end", ids{1, 2, 3}, Claim{7, 30}, all, ClaimMoved},
		{"above the log end", ids{1, 2, 3}, Claim{7, 40}, all, ClaimMoved},
		{"a later fence came meanwhile", ids{1, 2, 3}, claim, func(r *Replica, probe int64) {
			all(r, probe)
			r.QueueFenced(36, 8)
		}, ClaimFenced},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := fencedLeader(test.isr)
			// All have fetched before, and answered an earlier probe.
			earlier := r.BeginProbe()
			r.Fetch(answering(2, earlier), start)
			r.Fetch(answering(3, earlier), start)
			if test.name == "the high watermark does not cover it" {
				r = fencedLeader(test.isr)
				r.BeginProbe()
			}
			probe := r.BeginProbe()
			if test.then != nil {
				test.then(r, probe)
			}
			if got := r.Confirm(test.claim, probe); got != test.want {
				t.Errorf("judged %d, want %d", got, test.want)
			}
		})
	}
	r := NewReplica(1, 2, ReplicaLog{LogEnd: 4, HighWatermark: 4, CoordinatorEpoch: 7})
	alone := assigned(1, 5, 7, ids{1})
	alone.Replicas = ids{1}
	r.Apply(alone, start)
	if got := r.Confirm(Claim{7, 4}, r.BeginProbe()); got != ClaimHolds {
		t.Errorf("the only replica judges %d", got)
	}
}

// A superseded leader that does not know of it confirms nothing once another coordinator
// has been answered at its successor, however late the network brings what it has:
// random walks of three replicas.
func TestConfirmIsSound(t *testing.T) {
	t.Parallel()
	confirmed, asked := 0, 0
	for seed := range uint64(3000) {
		w := newFenceWalk(t, seed)
		w.run()
		confirmed += w.confirmed
		asked += len(w.late)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if confirmed < 1000 || asked < 1000 {
		t.Errorf("the walks have confirmed %d claims before there was another coordinator, and asked %d times after", confirmed, asked)
	}
}

// fenceWalk is three replicas, of which node 1 leads in epoch 5 until another is elected,
// and the coordinators with epochs 7 and 8. All logs end at 10.
type fenceWalk struct {
	*testing.T
	random   *rand.Rand
	agreed   cluster.Partition
	replicas [4]*Replica
	// probes are the latest that the nodes have been told of, in the epochs in which.
	probes  [4]Replicated
	network []fenceMessage
	// answered says that coordinator 8 was told that its fence is appended.
	answered bool
	// early and late are the probes of node 1 before that and after.
	early, late []int64
	confirmed   int
	// holds says that the network keeps what it has for node 1 until then.
	holds bool
}

// fenceMessage is a position, or what a leader has sent.
type fenceMessage struct {
	to       cluster.NodeID
	position Position
	sent     *Replicated
}

func newFenceWalk(t *testing.T, seed uint64) *fenceWalk {
	w := &fenceWalk{T: t, random: rand.New(rand.NewPCG(seed, 1)), agreed: assigned(1, 5, 7, ids{1, 2, 3}), holds: seed%2 > 0}
	for id := cluster.NodeID(1); id <= 3; id++ {
		r := NewReplica(id, 2, ReplicaLog{Epochs: Epochs{{4, 0}}, LogEnd: 10, HighWatermark: 10, CoordinatorEpoch: 7})
		r.Apply(w.agreed, start)
		w.replicas[id] = &r
	}
	return w
}

func (w *fenceWalk) run() {
	for range 150 {
		id := cluster.NodeID(1 + w.random.IntN(3))
		r := w.replicas[id]
		switch w.random.IntN(8) {
		case 0:
			if w.agreed.LeaderEpoch == 5 && w.random.IntN(3) == 0 {
				w.agreed.Leader, w.agreed.ISR = cluster.NodeID(2+w.random.IntN(2)), ids{2, 3}
				w.agreed.LeaderEpoch++
				w.agreed.PartitionEpoch++
			}
		case 1:
			if id != 1 { // It is cut off from the metadata service.
				r.Apply(w.agreed, start)
			}
		case 2:
			if p, ok := r.Position(20); ok {
				if told := w.probes[id]; told.LeaderEpoch == p.LeaderEpoch {
					p.Probe = told.Probe
				}
				w.network = append(w.network, fenceMessage{to: w.leaderOf(r), position: p})
			}
		case 3, 4, 5:
			if n := len(w.network); n > 0 {
				i := w.random.IntN(n)
				m := w.network[i]
				if m.to == 1 && w.holds && !w.answered {
					continue
				}
				w.network = append(w.network[:i], w.network[i+1:]...)
				w.deliver(m)
			}
		case 6:
			if r.Role() == Leading && r.Epoch() == 6 && r.CoordinatorEpoch() == 7 {
				r.QueueFenced(r.Next()+1, 8)
				r.Committed(r.Next())
			}
		case 7:
			if probe := w.replicas[1].BeginProbe(); w.answered {
				w.late = append(w.late, probe)
			} else {
				w.early = append(w.early, probe)
			}
		}
		w.check()
	}
}

func (w *fenceWalk) leaderOf(r *Replica) cluster.NodeID {
	assignment, _ := r.Assignment()
	return assignment.Leader
}

func (w *fenceWalk) deliver(m fenceMessage) {
	to := w.replicas[m.to]
	if m.sent == nil {
		if to.Fetch(m.position, start).Outcome != FetchServed {
			return
		}
		out := Replicated{
			LeaderEpoch: to.Epoch(), Follows: m.position.LogEnd, HighWatermark: to.HighWatermark(), CoordinatorEpoch: to.CoordinatorEpoch(), Probe: to.Probe(),
		}
		if end := to.LogEnd(); end > out.Follows {
			out.Batches = []BatchBounds{{out.Follows, end - 1, to.Epochs().At(end - 1)}}
		}
		w.network = append(w.network, fenceMessage{to: m.position.Node, sent: &out})
		return
	}
	if told := w.probes[m.to]; to.Epoch() == m.sent.LeaderEpoch && (told.LeaderEpoch < m.sent.LeaderEpoch || told.Probe < m.sent.Probe) {
		w.probes[m.to] = *m.sent
	}
	if to.Receive(*m.sent).Outcome == ReceiveAppends {
		to.QueueCopies(*m.sent)
		to.Committed(to.Next())
	}
}

func (w *fenceWalk) check() {
	for _, r := range w.replicas[1:] {
		w.answered = w.answered || r.Role() == Leading && r.CoordinatorEpoch() == 8 && r.HighWatermark() > 10
	}
	claim := Claim{7, 10}
	for _, probe := range w.late {
		if w.replicas[1].Confirm(claim, probe) == ClaimHolds {
			w.Error("node 1 confirms a coordinator though the next one serves")
		}
	}
	waiting := w.early[:0]
	for _, probe := range w.early {
		if w.replicas[1].Confirm(claim, probe) == ClaimHolds {
			w.confirmed++
		} else {
			waiting = append(waiting, probe)
		}
	}
	w.early = waiting
}

// A follower that shows positions faster than it writes has caught up with what there
// was a while ago, again and again: it keeps no high watermark back.
func TestReplicaCatchesUpBetweenPositions(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 2})
	const step, behind = 100 * time.Millisecond, 5
	now := start
	for i := int64(1); now.Before(start.Add(3 * maxLag)); i++ {
		now = now.Add(step)
		r.Queue(30 + i)
		r.Committed(30 + i)
		if i > behind {
			r.Fetch(at(5, 30+i-behind), now)
		}
		if r.Propose(now, maxLag, everyone) {
			t.Fatalf("leaves the ISR after %s, half a second behind", now.Sub(start))
		}
	}
}
