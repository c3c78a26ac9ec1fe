package rules

import (
	"slices"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

const maxLag = 10 * time.Second

var start = time.Unix(1000, 0)

// assigned returns a partition on nodes 1, 2, 3.
func assigned(leader cluster.NodeID, epoch cluster.LeaderEpoch, version cluster.PartitionEpoch, isr ids) cluster.Partition {
	return cluster.Partition{Leader: leader, LeaderEpoch: epoch, PartitionEpoch: version, Replicas: ids{1, 2, 3}, ISR: isr, LastLeader: cluster.NoNode}
}

// leader returns node 1 leading in epoch 5 with min ISR 2: its log goes from 0 to
// 30, was written in epochs 2, 4 and 5, and was known up to 10 before.
func leader(isr ids) *Replica {
	r := NewReplica(1, 2, ReplicaLog{Epochs: Epochs{{2, 0}, {4, 10}}, LogEnd: 20, HighWatermark: 10})
	r.Apply(assigned(1, 5, 7, isr), start)
	r.Queue(30)
	r.Committed(30)
	return &r
}

// followerOf returns node 2 following node 1 in epoch 5 with that log.
func followerOf(log ReplicaLog) *Replica {
	r := NewReplica(2, 2, log)
	r.Apply(assigned(1, 5, 7, ids{1, 2, 3}), start)
	return &r
}

// at is a position of process 20 of node 2.
func at(lastEpoch cluster.LeaderEpoch, logEnd int64) Position {
	return Position{Node: 2, NodeEpoch: 20, LeaderEpoch: 5, LastEpoch: lastEpoch, LogEnd: logEnd}
}

// from is a position of a log that starts at an offset.
func from(logStart int64, p Position) Position {
	p.LogStart = logStart
	return p
}

func node(id cluster.NodeID, p Position) Position {
	p.Node = id
	return p
}

// position returns where a follower stands.
func position(t *testing.T, r *Replica, epoch cluster.NodeEpoch) Position {
	t.Helper()
	p, ok := r.Position(epoch)
	if !ok {
		t.Fatalf("no position at %d of %d", r.LogEnd(), r.Next())
	}
	return p
}

// everyone is live as process 20.
func everyone(cluster.NodeID) (cluster.NodeEpoch, bool) { return 20, true }

func TestReplicaFetch(t *testing.T) {
	t.Parallel()
	believes := func(epoch cluster.LeaderEpoch) Position { p := at(5, 30); p.LeaderEpoch = epoch; return p }
	for _, test := range []struct {
		name     string
		logStart int64
		position Position
		want     Fetch
	}{
		{"KIP-320: a lower epoch is fenced", 0, believes(4), Fetch{Outcome: FetchFenced}},
		{"KIP-320: a higher epoch is unknown", 0, believes(6), Fetch{Outcome: FetchUnknown}},
		{"KIP-320: fenced before anything else of the position counts", 0, node(4, believes(4)), Fetch{Outcome: FetchFenced}},
		{"no replica", 0, node(4, at(5, 30)), Fetch{Outcome: FetchNoReplica}},
		{"caught up", 0, at(5, 30), Fetch{}},
		{"behind in the same epoch", 0, at(5, 25), Fetch{}},
		{"behind, at the end of an epoch", 0, at(2, 10), Fetch{}},
		{"empty", 0, at(NoEpoch, 0), Fetch{}},
		{"KIP-101: more of an epoch than the leader", 0, at(4, 25), Fetch{FetchDiverges, 4, 20}},
		{"KIP-279: an epoch that the leader never had", 0, at(3, 10), Fetch{FetchDiverges, 2, 10}},
		{"KIP-320: ahead in the same epoch", 0, at(5, 31), Fetch{FetchDiverges, 5, 30}},
		{"empty, beyond the leader's end", 0, at(NoEpoch, 31), Fetch{Outcome: FetchRestarts}},
		{"below the log start", 15, at(2, 10), Fetch{Outcome: FetchRestarts}},
		{"empty, below the log start", 15, at(NoEpoch, 14), Fetch{Outcome: FetchRestarts}},
		{"at the log start", 15, at(4, 15), Fetch{}},
		{"empty, at the log start", 15, at(NoEpoch, 15), Fetch{}},
		{"at the log start, and no epoch is left to compare with", 20, at(4, 20), Fetch{Outcome: FetchRestarts}},
		{"above the log start, and no epoch is left to compare with", 15, at(2, 18), Fetch{Outcome: FetchRestarts}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := leader(ids{1, 2, 3})
			r.highWatermark = 30
			r.AdvanceStart(test.logStart)
			if got := r.Fetch(test.position, start); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if f := r.follower(2); f.fetched != (test.want.Outcome == FetchServed) {
				t.Errorf("noted: %t", f.fetched)
			}
		})
	}
	r := followerOf(ReplicaLog{})
	if got := r.Fetch(at(5, 30), start); got.Outcome != FetchNotLeader {
		t.Errorf("a follower answers with %+v", got)
	}
}

// KIP-903: what an earlier process of a node had is not what its present one has.
func TestReplicaFetchOfAnotherProcess(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 2})
	r.Fetch(at(5, 30), start)
	if r.HighWatermark() != 30 {
		t.Fatalf("high watermark %d", r.HighWatermark())
	}
	r.Queue(40)
	r.Committed(40)
	later := at(5, 25)
	later.NodeEpoch = 21
	if got := r.Fetch(later, start.Add(time.Second)); got.Outcome != FetchServed || r.follower(2).logEnd != 25 {
		t.Fatalf("a new process is answered with %+v, and noted at %d", got, r.follower(2).logEnd)
	}
	if got := r.Fetch(at(5, 40), start.Add(time.Second)); got.Outcome != FetchStaleNode || r.HighWatermark() != 30 {
		t.Errorf("the process before is answered with %+v, high watermark %d", got, r.HighWatermark())
	}
	if r.Propose(start.Add(maxLag), maxLag, everyone) {
		t.Error("a member leaves the ISR at once because its process is new")
	}
	if !r.Propose(start.Add(maxLag+1), maxLag, everyone) {
		t.Error("a new process has not caught up for too long, and stays in the ISR")
	}

	// A position that is not served resets as well.
	r = leader(ids{1, 2})
	r.Fetch(at(5, 30), start)
	later = at(4, 40)
	later.NodeEpoch = 21
	if got := r.Fetch(later, start); got.Outcome != FetchDiverges || r.follower(2).fetched {
		t.Errorf("answered with %+v, progress %+v", got, r.follower(2))
	}
}

func TestReplicaReceive(t *testing.T) {
	t.Parallel()
	const epoch = 5
	batch := func(base, last int64, epoch cluster.LeaderEpoch) BatchBounds { return BatchBounds{base, last, epoch} }
	// The follower's log goes from 4 to 20.
	log := ReplicaLog{Epochs: Epochs{{2, 4}, {4, 10}}, LogStart: 4, LogEnd: 20, HighWatermark: 8}
	for _, test := range []struct {
		name   string
		in     Replicated
		want   Receive
		epochs Epochs
		next   int64
	}{
		{"batches", Replicated{Follows: 20, Batches: []BatchBounds{batch(20, 21, 4), batch(22, 22, 5)}}, Receive{Outcome: ReceiveAppends}, Epochs{{2, 4}, {4, 10}, {5, 22}}, 23},
		{"only a high watermark", Replicated{Follows: 20}, Receive{Outcome: ReceiveAppends}, log.Epochs, 20},
		{"the log start moves", Replicated{Follows: 20, LogStart: 12}, Receive{Outcome: ReceiveAppends, LogStart: 12}, log.Epochs, 20},
		{"the log start moves no further than the log", Replicated{Follows: 20, LogStart: 99, Batches: []BatchBounds{batch(20, 29, 5)}}, Receive{Outcome: ReceiveAppends, LogStart: 30}, Epochs{{2, 4}, {4, 10}, {5, 20}}, 30},
		{
			"a compacted gap", Replicated{Follows: 20, Batches: []BatchBounds{batch(25, 25, 4), batch(40, 45, 5)}},
			Receive{Outcome: ReceiveAppends}, Epochs{{2, 4}, {4, 10}, {5, 40}}, 46,
		},
		{
			"a compacted gap in which epochs began", Replicated{Follows: 20, Epochs: Epochs{{4, 20}, {5, 33}}, Batches: []BatchBounds{batch(40, 45, 5)}},
			Receive{Outcome: ReceiveAppends}, Epochs{{2, 4}, {4, 10}, {5, 33}}, 46,
		},
		{"a lower leader epoch is dropped", Replicated{LeaderEpoch: -1, Follows: 20, Batches: []BatchBounds{batch(20, 21, 4)}}, Receive{}, log.Epochs, 20},
		{"a higher leader epoch is dropped", Replicated{LeaderEpoch: 1, Follows: 20, Batches: []BatchBounds{batch(20, 21, 4)}}, Receive{}, log.Epochs, 20},
		{"what follows another position is dropped", Replicated{Follows: 21, Batches: []BatchBounds{batch(21, 21, 5)}}, Receive{}, log.Epochs, 20},
		{"what was received already is dropped", Replicated{Follows: 18, Batches: []BatchBounds{batch(18, 21, 5)}}, Receive{}, log.Epochs, 20},
		{"Redpanda #18523: a divergence at another position is dropped", Replicated{Follows: 22, Diverges: true, Epoch: 2, End: 6}, Receive{}, log.Epochs, 20},
		{"Redpanda #18523: a divergence of another epoch is dropped", Replicated{LeaderEpoch: -1, Follows: 20, Diverges: true, Epoch: 2, End: 6}, Receive{}, log.Epochs, 20},
		{"a restart at another position is dropped", Replicated{Follows: 22, Restarts: true, RestartOffset: 50}, Receive{}, log.Epochs, 20},

		{"KIP-101: the epoch ends earlier at the leader", Replicated{Follows: 20, Diverges: true, Epoch: 4, End: 15}, Receive{Outcome: ReceiveTruncates, Offset: 15}, nil, 0},
		{"KIP-279: the leader lacks the epoch", Replicated{Follows: 20, Diverges: true, Epoch: 3, End: 18}, Receive{Outcome: ReceiveTruncates, Offset: 10}, nil, 0},
		{"KIP-279: the follower lacks the leader's, and goes back further", Replicated{Follows: 20, Diverges: true, Epoch: 2, End: 6}, Receive{Outcome: ReceiveTruncates, Offset: 6}, nil, 0},
		{"truncation below the log start begins anew", Replicated{Follows: 20, Diverges: true, Epoch: 2, End: 3}, Receive{Outcome: ReceiveRestarts, Offset: 3}, nil, 0},
		{"restart", Replicated{Follows: 20, Restarts: true, RestartOffset: 50}, Receive{Outcome: ReceiveRestarts, Offset: 50}, nil, 0},
		{"restart at an earlier offset", Replicated{Follows: 20, Restarts: true, RestartOffset: 2}, Receive{Outcome: ReceiveRestarts, Offset: 2}, nil, 0},

		{"a divergence that cuts nothing is late", Replicated{Follows: 20, Diverges: true, Epoch: 4, End: 20}, Receive{}, log.Epochs, 20},
		{"a divergence below 0", Replicated{Follows: 20, Diverges: true, Epoch: 4, End: -1}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a restart below 0", Replicated{Follows: 20, Restarts: true, RestartOffset: -1}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a batch below the log end", Replicated{Follows: 20, Batches: []BatchBounds{batch(19, 21, 5)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a batch that ends before it begins", Replicated{Follows: 20, Batches: []BatchBounds{batch(22, 21, 5)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"overlapping batches", Replicated{Follows: 20, Batches: []BatchBounds{batch(20, 25, 5), batch(25, 26, 5)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a batch of an epoch below the log's", Replicated{Follows: 20, Batches: []BatchBounds{batch(20, 25, 3)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a batch of an epoch above the leader's", Replicated{Follows: 20, Batches: []BatchBounds{batch(20, 25, 6)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"epochs that fall", Replicated{Follows: 20, Batches: []BatchBounds{batch(20, 25, 5), batch(26, 26, 4)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a batch of another epoch than the table's", Replicated{Follows: 20, Epochs: Epochs{{5, 20}}, Batches: []BatchBounds{batch(20, 25, 4)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a table entry below the log end", Replicated{Follows: 20, Epochs: Epochs{{5, 19}}, Batches: []BatchBounds{batch(20, 25, 5)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a table entry within a batch of another epoch", Replicated{Follows: 20, Epochs: Epochs{{5, 22}}, Batches: []BatchBounds{batch(20, 25, 4)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a table entry beyond the batches", Replicated{Follows: 20, Epochs: Epochs{{5, 26}}, Batches: []BatchBounds{batch(20, 25, 4)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{"a table entry without batches", Replicated{Follows: 20, Epochs: Epochs{{5, 20}}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
		{
			"the leader's log start moved to 23 while it read", Replicated{Follows: 20, LogStart: 23, Epochs: Epochs{{4, 23}}, Batches: []BatchBounds{batch(20, 22, 4), batch(23, 25, 4)}},
			Receive{Outcome: ReceiveAppends, LogStart: 23}, log.Epochs, 26,
		},
		{"the last offset there is", Replicated{Follows: 20, Batches: []BatchBounds{batch(20, 1<<63-1, 5)}}, Receive{Outcome: ReceiveInvalid}, nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := followerOf(log)
			in := test.in
			in.LeaderEpoch += epoch
			got := r.Receive(in)
			if got != test.want {
				t.Fatalf("got %+v, want %+v", got, test.want)
			}
			switch got.Outcome {
			case ReceiveAppends:
				r.QueueCopies(in)
				fallthrough
			case ReceiveDropped:
				if r.Next() != test.next || !slices.Equal(r.Epochs(), test.epochs) {
					t.Errorf("next %d epochs %v, want %d %v", r.Next(), r.Epochs(), test.next, test.epochs)
				}
			}
		})
	}
	r := leader(ids{1, 2, 3})
	if got := r.Receive(Replicated{LeaderEpoch: 5, Follows: 30}); got.Outcome != ReceiveDropped {
		t.Errorf("a leader does %+v", got)
	}
}

// Redpanda #18523: an order to truncate or to begin anew comes a second time, when
// the log ends where it ended then, now with other records.
func TestReplicaReceiveLateCopy(t *testing.T) {
	t.Parallel()
	r := followerOf(ReplicaLog{Epochs: Epochs{{2, 0}, {4, 10}}, LogEnd: 20})
	divergence := Replicated{LeaderEpoch: 5, Follows: 20, Diverges: true, Epoch: 4, End: 15}
	restart := Replicated{LeaderEpoch: 5, Follows: 20, Restarts: true, RestartOffset: 15}
	if got := r.Receive(divergence); got.Outcome != ReceiveTruncates {
		t.Fatalf("got %+v", got)
	}
	r.Cut(15)
	batches := Replicated{LeaderEpoch: 5, Follows: 15, HighWatermark: 20, Batches: []BatchBounds{{15, 19, 5}}}
	if got := r.Receive(batches); got.Outcome != ReceiveAppends {
		t.Fatalf("got %+v", got)
	}
	r.QueueCopies(batches)
	r.Committed(20)
	if r.HighWatermark() != 20 {
		t.Fatalf("high watermark %d", r.HighWatermark())
	}
	for _, late := range []Replicated{divergence, restart, batches} {
		if got := r.Receive(late); got.Outcome != ReceiveDropped {
			t.Errorf("a late copy of %+v leads to %+v", late, got)
		}
	}
	// A log that begins above this one's end is another matter.
	if got := r.Receive(Replicated{LeaderEpoch: 5, Follows: 20, Restarts: true, RestartOffset: 40}); got.Outcome != ReceiveRestarts {
		t.Errorf("behind the log start: %+v", got)
	}
	// In the next epoch the logs may part again.
	r.Apply(assigned(3, 6, 8, ids{2, 3}), start)
	if got := r.Receive(Replicated{LeaderEpoch: 6, Follows: 20, Diverges: true, Epoch: 4, End: 15}); got.Outcome != ReceiveTruncates {
		t.Errorf("in the next epoch: %+v", got)
	}
}

// Records of an earlier leadership are still being written. Were the end of those
// before them its position, the leader would send what follows, and the second
// message would fit to the end of the records that the leader never had.
func TestReplicaPositionWhileWriting(t *testing.T) {
	t.Parallel()
	r := NewReplica(2, 1, ReplicaLog{})
	r.Apply(assigned(2, 1, 1, ids{1, 2}), start)
	r.Queue(2)
	r.Apply(assigned(1, 2, 2, ids{1, 2}), start)
	second := Replicated{LeaderEpoch: 2, Follows: 2, Batches: []BatchBounds{{2, 2, 2}}}
	if p, ok := r.Position(20); ok {
		t.Errorf("position %+v", p)
	}
	if got := r.Receive(second); got.Outcome != ReceiveDropped {
		t.Errorf("got %+v", got)
	}
	r.Committed(2)
	if p := position(t, &r, 20); p.LastEpoch != 1 || p.LogEnd != 2 {
		t.Errorf("position %+v", p)
	}
	if got := r.Receive(Replicated{LeaderEpoch: 2, Follows: 2, Diverges: true, Epoch: NoEpoch, End: 0}); got.Outcome != ReceiveTruncates || got.Offset != 0 {
		t.Errorf("got %+v", got)
	}
}

// A leader's log start lies within the batch from 5 to 9; its follower is empty.
func TestReplicaRestartWithinBatch(t *testing.T) {
	t.Parallel()
	l := NewReplica(1, 1, ReplicaLog{Epochs: Epochs{{3, 0}}, LogEnd: 10, HighWatermark: 10})
	l.Apply(assigned(1, 5, 7, ids{1}), start)
	l.AdvanceStart(8)
	f := followerOf(ReplicaLog{})
	if got := l.Fetch(position(t, f, 20), start); got.Outcome != FetchRestarts {
		t.Fatalf("got %+v", got)
	}
	l.ServesFrom(5)
	in := Replicated{LeaderEpoch: 5, HighWatermark: 10, LogStart: 8, Restarts: true, RestartOffset: 5}
	if got := f.Receive(in); got.Outcome != ReceiveRestarts || got.Offset != 5 {
		t.Fatalf("%+v leads to %+v", in, got)
	}
	f.Restart(5)
	if got := l.Fetch(position(t, f, 20), start); got.Outcome != FetchServed {
		t.Fatalf("where it was told to begin: %+v", got)
	}
	in = Replicated{LeaderEpoch: 5, Follows: 5, LogStart: 8, HighWatermark: 10, Epochs: Epochs{{3, 8}}, Batches: []BatchBounds{{5, 9, 3}}}
	got := f.Receive(in)
	if got.Outcome != ReceiveAppends || got.LogStart != 8 {
		t.Fatalf("got %+v", got)
	}
	f.QueueCopies(in)
	f.AdvanceStart(got.LogStart)
	if p := position(t, f, 20); p.LastEpoch != NoEpoch || p.LogEnd != 5 || f.HighWatermark() != 5 {
		t.Errorf("before it is written: %+v, high watermark %d", p, f.HighWatermark())
	}
	f.Committed(10)
	f.StartCommitted(8)
	if !slices.Equal(f.Epochs(), Epochs{{3, 8}}) || f.HighWatermark() != 10 || f.LogStart() != 8 {
		t.Errorf("epochs %v, high watermark %d, log start %d", f.Epochs(), f.HighWatermark(), f.LogStart())
	}
	if got := l.Fetch(position(t, f, 20), start); got.Outcome != FetchServed || !l.admits(l.follower(2)) {
		t.Errorf("%+v is answered with %+v", position(t, f, 20), got)
	}
	for _, inside := range []int64{4, 6, 7} {
		if got := l.Fetch(at(NoEpoch, inside), start); got.Outcome != FetchRestarts {
			t.Errorf("at %d: %+v", inside, got)
		}
	}
	// Once the log start has left the batch, an empty log at its begin is too low.
	l.Queue(20)
	l.Committed(20)
	l.AdvanceStart(12)
	if got := l.Fetch(at(NoEpoch, 5), start); got.Outcome != FetchRestarts {
		t.Errorf("got %+v", got)
	}
}

func TestReplicaApply(t *testing.T) {
	t.Parallel()
	log := ReplicaLog{Epochs: Epochs{{2, 0}, {4, 10}}, LogEnd: 20, HighWatermark: 10}
	everybody := ids{1, 2, 3}
	known := assigned(3, 5, 7, everybody)
	for _, test := range []struct {
		name   string
		before []cluster.Partition
		next   cluster.Partition
		want   Applied
		role   Role
		epoch  cluster.LeaderEpoch
	}{
		{"a leadership", nil, assigned(1, 5, 7, everybody), Applied{Began: true}, Leading, 5},
		{"another leads", nil, known, Applied{}, Following, 5},
		{"nobody leads", nil, assigned(cluster.NoNode, 5, 7, nil), Applied{}, Offline, 5},
		{"the first epoch that is possible", nil, assigned(1, 4, 7, everybody), Applied{Began: true}, Leading, 4},
		{"the log is of a later leadership: not to lead", nil, assigned(1, 3, 7, everybody), Applied{TooNew: true}, Offline, NoEpoch},
		{"the log is of a later leadership: not to follow one that may be superseded", nil, assigned(3, 3, 7, everybody), Applied{TooNew: true}, Offline, NoEpoch},
		{"a lower partition epoch", ps(known), assigned(1, 5, 6, everybody), Applied{Stale: true}, Following, 5},
		{"a lower leader epoch", ps(known), assigned(1, 4, 8, everybody), Applied{Stale: true}, Following, 5},
		{"another ISR", ps(assigned(1, 5, 7, everybody)), assigned(1, 5, 8, ids{1}), Applied{}, Leading, 5},
		{"the leadership ends", ps(assigned(1, 5, 7, everybody)), assigned(3, 6, 8, everybody), Applied{Ended: true}, Following, 6},
		{"another leadership of its own", ps(assigned(1, 5, 7, everybody)), assigned(1, 6, 8, everybody), Applied{Began: true, Ended: true}, Leading, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := NewReplica(1, 2, log)
			for _, p := range test.before {
				r.Apply(p, start)
			}
			if got := r.Apply(test.next, start); got != test.want || r.Role() != test.role || r.Epoch() != test.epoch {
				t.Errorf("got %+v as %s in %d, want %+v as %s in %d", got, r.Role(), r.Epoch(), test.want, test.role, test.epoch)
			}
		})
	}
}

func ps(p ...cluster.Partition) []cluster.Partition { return p }

// KIP-101, KIP-279: an epoch in which nothing was written leaves no trace in the
// position of who led it, or else the next leader would not know what it asks.
func TestReplicaEpochWithoutRecords(t *testing.T) {
	t.Parallel()
	r := NewReplica(1, 1, ReplicaLog{Epochs: Epochs{{2, 0}}, LogEnd: 20})
	r.Apply(assigned(1, 5, 7, ids{1, 2}), start)
	if !slices.Equal(r.Epochs(), Epochs{{2, 0}, {5, 20}}) || r.EpochStart() != 20 {
		t.Fatalf("while it leads: %v from %d", r.Epochs(), r.EpochStart())
	}
	r.Apply(assigned(2, 6, 8, ids{1, 2}), start)
	if p := position(t, &r, 10); p.LastEpoch != 2 || p.LogEnd != 20 || p.LeaderEpoch != 6 {
		t.Errorf("position %+v", p)
	}
	if !slices.Equal(r.Epochs(), Epochs{{2, 0}}) {
		t.Errorf("epochs %v", r.Epochs())
	}

	// A record that is not written yet keeps the epoch in the table.
	r = NewReplica(1, 1, ReplicaLog{Epochs: Epochs{{2, 0}}, LogEnd: 20})
	r.Apply(assigned(1, 5, 7, ids{1, 2}), start)
	r.Queue(21)
	r.Apply(assigned(2, 6, 8, ids{1, 2}), start)
	r.Committed(21)
	if p := position(t, &r, 10); p.LastEpoch != 5 || p.LogEnd != 21 {
		t.Errorf("position %+v once it is written", p)
	}
}

// KIP-101, KIP-279, KIP-966: who may come into the ISR.
func TestReplicaAdmission(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		// highWatermark is the leader's; its epoch begins at 20, its log ends at 30.
		highWatermark int64
		position      *Position
		live          func(cluster.NodeID) (cluster.NodeEpoch, bool)
		admitted      bool
		// logStart is the leader's.
		logStart int64
	}{
		{"at the high watermark and the epoch's start", 20, ptr(at(4, 20)), everyone, true, 0},
		{"above both", 20, ptr(at(5, 22)), everyone, true, 0},
		{"KIP-101: at the high watermark and below the epoch's start", 15, ptr(at(4, 19)), everyone, false, 0},
		{"at the epoch's start and below the high watermark", 25, ptr(at(5, 24)), everyone, false, 0},
		{"at the high watermark above the epoch's start", 25, ptr(at(5, 25)), everyone, true, 0},
		{"KIP-320: it has not fetched in this epoch", 20, nil, everyone, false, 0},
		{"KIP-101: it diverges", 20, ptr(at(4, 25)), everyone, false, 0},
		{"KIP-841: without a lease", 20, ptr(at(5, 30)), func(cluster.NodeID) (cluster.NodeEpoch, bool) { return 20, false }, false, 0},
		{"KIP-903: another process is registered", 20, ptr(at(5, 30)), func(cluster.NodeID) (cluster.NodeEpoch, bool) { return 21, true }, false, 0},
		{"KIP-107: its log starts where the leader's does", 20, ptr(from(12, at(5, 30))), everyone, true, 12},
		{"KIP-107: its log starts below the leader's", 20, ptr(from(11, at(5, 30))), everyone, false, 12},
		{"KIP-107: it tells no log start", 20, ptr(at(5, 30)), everyone, false, 12},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := leader(ids{1, 3})
			r.highWatermark = test.highWatermark
			r.AdvanceStart(test.logStart)
			r.Fetch(node(3, at(4, 15)), start)
			if test.position != nil {
				r.Fetch(*test.position, start)
			}
			if got := r.Propose(start, maxLag, test.live); got != test.admitted {
				t.Fatalf("proposed: %t", got)
			}
			proposal, ok := r.Proposal()
			if ok != test.admitted {
				t.Fatalf("proposal %+v: %t", proposal, ok)
			}
			want := []ISRMember{{1, -1}, {2, 20}, {3, -1}}
			if ok && (!slices.Equal(proposal.ISR, want) || proposal.Leader != 1 || proposal.LeaderEpoch != 5 || proposal.PartitionEpoch != 7) {
				t.Errorf("proposal %+v", proposal)
			}
		})
	}
}

func ptr(p Position) *Position { return &p }

// A position of the epoch before does not admit to the ISR, although nobody has
// restarted and the leader is the same (the third condition of KIP-966).
func TestReplicaAdmissionInThisEpoch(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 3})
	r.Fetch(at(5, 30), start)
	r.Apply(assigned(1, 6, 8, ids{1, 3}), start)
	if r.Propose(start, maxLag, everyone) {
		t.Fatal("a position of the epoch before admits")
	}
	p := at(5, 30)
	p.LeaderEpoch = 6
	r.Fetch(p, start)
	if !r.Propose(start, maxLag, everyone) {
		t.Error("a position of this epoch does not admit")
	}
}

func TestReplicaLag(t *testing.T) {
	t.Parallel()
	after := func(d time.Duration) time.Time { return start.Add(d) }
	r := leader(ids{1, 2, 3})
	r.Fetch(node(3, at(5, 30)), start)
	if r.Propose(after(maxLag), maxLag, everyone) {
		t.Fatal("node 2 has had no longer than the bound to show up")
	}
	// Node 2 fetches, always behind: it had at 9 s what there was at 5 s.
	r.Fetch(at(5, 25), after(5*time.Second))
	r.Queue(40)
	r.Committed(40)
	r.Fetch(node(3, at(5, 40)), after(9*time.Second))
	r.Fetch(at(5, 30), after(9*time.Second))
	if r.Propose(after(5*time.Second+maxLag), maxLag, everyone) {
		t.Fatal("node 2 was caught up with 5 s")
	}
	if !r.Propose(after(5*time.Second+maxLag+1), maxLag, everyone) {
		t.Fatal("node 2 lags and stays in the ISR")
	}
	if p, _ := r.Proposal(); !slices.Equal(p.ISR, []ISRMember{{1, -1}, {3, -1}}) {
		t.Errorf("proposal %+v: node 3 has all there is, however long ago it asked", p)
	}
}

// Whoever has all that there is shows no position while nothing is written. When
// something is at last, it has the time to take it.
func TestReplicaLagAfterIdleTime(t *testing.T) {
	t.Parallel()
	r, now := leader(ids{1, 2, 3}), start
	r.Fetch(at(5, 30), now)
	r.Fetch(node(3, at(5, 30)), now)
	// The leader looks now and then.
	for range 60 {
		now = now.Add(time.Second)
		if r.Propose(now, maxLag, everyone) {
			t.Fatal("the ISR changes while nothing happens")
		}
	}
	r.Queue(31)
	r.Committed(31)
	// The first of them is there, and its position has the leader look again.
	r.Fetch(at(5, 31), now.Add(time.Second/2))
	if r.Propose(now.Add(time.Second/2), maxLag, everyone) {
		t.Fatal("the first record after a while takes a follower out of the ISR")
	}
	if !r.Propose(now.Add(maxLag+1), maxLag, everyone) {
		t.Fatal("a follower that takes nothing stays in the ISR")
	}
}

// KIP-497: the high watermark waits for everybody who may be in the ISR: those of
// the ISR agreed on, and those of all that was proposed on its partition epoch,
// also what was refused, since the network may still hold a copy.
func TestReplicaMaximalISR(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 3})
	r.Fetch(node(3, at(5, 30)), start)
	r.Fetch(at(5, 30), start)
	if r.HighWatermark() != 30 || !r.Propose(start, maxLag, everyone) {
		t.Fatalf("high watermark %d", r.HighWatermark())
	}
	first, _ := r.Proposal()
	grow := func(next int64) {
		r.Queue(next)
		r.Committed(next)
		r.Fetch(node(3, at(5, next)), start)
	}
	expect := func(when string, want int64) {
		t.Helper()
		if r.HighWatermark() != want {
			t.Fatalf("%s: high watermark %d, want %d", when, r.HighWatermark(), want)
		}
	}
	grow(40)
	expect("node 2 is proposed", 30)
	if r.Propose(start, maxLag, everyone) {
		t.Fatal("a second proposal while the first has no answer")
	}

	state := PartitionState{Partition: assigned(1, 5, 7, ids{1, 3}), Epochs: []cluster.NodeEpoch{20, 20, 20}}
	topic := TopicTraits{MinInsyncReplicas: 2}
	fenced := Nodes{1: live(20), 2: dead(20), 3: live(20)}
	all := Nodes{1: live(20), 2: live(20), 3: live(20)}
	refused, err := ProposeISR(state, first, fenced, topic)
	if err == nil {
		t.Fatal("a node without a lease is admitted")
	}
	r.Answer(first, false, refused.Partition, start)
	if _, ok := r.Proposal(); ok {
		t.Fatal("a refused proposal is sent again")
	}
	grow(41)
	expect("the proposal was refused, and a copy may still be accepted", 30)

	// A late copy is accepted after the refusal: the leader had counted node 2.
	late, err := ProposeISR(state, first, all, topic)
	if err != nil || late.PartitionEpoch != 8 {
		t.Fatalf("%+v, %v", late, err)
	}
	other, others := *r, *r.leadership
	other.leadership = &others
	others.followers = slices.Clone(r.followers)
	other.Apply(late.Partition, start)
	other.Fetch(at(5, 35), start)
	if other.HighWatermark() != 35 {
		t.Errorf("with node 2 at 35: high watermark %d", other.HighWatermark())
	}

	// Or the ISR that there is is proposed, which makes all copies void.
	nobody := func(cluster.NodeID) (cluster.NodeEpoch, bool) { return 0, false }
	if !r.Propose(start, maxLag, nobody) {
		t.Fatal("what was refused is not settled")
	}
	second, _ := r.Proposal()
	settled, err := ProposeISR(state, second, all, topic)
	if err != nil || settled.PartitionEpoch != 8 || !slices.Equal(settled.ISR, ids{1, 3}) {
		t.Fatalf("%+v, %v", settled, err)
	}
	if _, err := ProposeISR(settled, first, all, topic); err == nil {
		t.Fatal("a late copy is accepted behind a later proposal")
	}
	r.Answer(second, true, settled.Partition, start)
	expect("settled", 41)
	if r.Propose(start, maxLag, nobody) {
		t.Error("there is nothing left to settle")
	}
}

// A late answer to an earlier proposal does not decide the one that is under way.
func TestReplicaLateAnswer(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 3})
	r.Fetch(node(3, at(5, 30)), start)
	r.Apply(assigned(1, 5, 9, ids{1, 3}), start)
	r.Fetch(at(5, 30), start)
	if !r.Propose(start, maxLag, everyone) {
		t.Fatal("no proposal")
	}
	if a := r.Answer(ISRProposal{PartitionEpoch: 7}, true, assigned(1, 5, 8, ids{1, 3}), start); !a.Stale {
		t.Errorf("got %+v", a)
	}
	if p, ok := r.Proposal(); !ok || p.PartitionEpoch != 9 {
		t.Errorf("proposal %+v: %t", p, ok)
	}
	// That the partition has moved on decides it.
	r.Apply(assigned(1, 5, 10, ids{1, 3}), start)
	if p, ok := r.Proposal(); ok || len(r.possible) > 0 {
		t.Errorf("proposal %+v, possible %v", p, r.possible)
	}
}

// A shrink frees the high watermark once it is agreed on, not when it is proposed.
func TestReplicaShrink(t *testing.T) {
	t.Parallel()
	r := leader(ids{1, 2, 3})
	r.Fetch(node(3, at(5, 30)), start)
	r.Fetch(at(4, 20), start)
	later := start.Add(maxLag + 1)
	if r.HighWatermark() != 20 || !r.Propose(later, maxLag, everyone) {
		t.Fatalf("high watermark %d", r.HighWatermark())
	}
	if r.HighWatermark() != 20 {
		t.Fatalf("proposed: high watermark %d", r.HighWatermark())
	}
	r.Answer(ISRProposal{PartitionEpoch: 7}, true, assigned(1, 5, 8, ids{1, 3}), later)
	if r.HighWatermark() != 30 {
		t.Errorf("agreed: high watermark %d", r.HighWatermark())
	}
}

// KIP-966: strict min ISR.
func TestReplicaFrozenBelowMinISR(t *testing.T) {
	t.Parallel()
	r := leader(ids{1})
	r.Fetch(at(5, 30), start)
	if have, need := r.InSync(); have != 1 || need != 2 {
		t.Errorf("in sync: %d of %d", have, need)
	}
	if r.HighWatermark() != 10 {
		t.Fatalf("high watermark %d with ISR 1 of 2", r.HighWatermark())
	}
	r.Propose(start, maxLag, everyone)
	if r.HighWatermark() != 10 {
		t.Fatalf("a proposal lifts the high watermark to %d", r.HighWatermark())
	}
	r.Answer(ISRProposal{PartitionEpoch: 7}, true, assigned(1, 5, 8, ids{1, 2}), start)
	if r.HighWatermark() != 30 {
		t.Errorf("high watermark %d with ISR 2 of 2", r.HighWatermark())
	}
}

// min.insync.replicas was lowered while the ISR was below it: who is eligible may
// still be elected until the cluster says otherwise.
func TestReplicaMinISRLowered(t *testing.T) {
	t.Parallel()
	r := leader(ids{1})
	p := assigned(1, 5, 8, ids{1})
	p.ELR = ids{2}
	r.Apply(p, start)
	r.SetMinInsync(1)
	if r.HighWatermark() != 10 {
		t.Fatalf("high watermark %d, node 2 is eligible", r.HighWatermark())
	}
	if !r.Propose(start, maxLag, everyone) {
		t.Fatal("the ELR is not settled")
	}
	proposal, _ := r.Proposal()
	next, err := ProposeISR(PartitionState{Partition: p, Epochs: []cluster.NodeEpoch{20, 20, 20}}, proposal, nil, TopicTraits{MinInsyncReplicas: 1})
	if err != nil || len(next.ELR) > 0 {
		t.Fatalf("%+v, %v", next, err)
	}
	r.Answer(ISRProposal{PartitionEpoch: 8}, true, next.Partition, start)
	if r.HighWatermark() != 30 {
		t.Errorf("high watermark %d, nobody else is eligible", r.HighWatermark())
	}
}

// A follower's high watermark is the leader's as far as its own log goes, falls
// with a truncation alone, and is no truncation point (KIP-101).
func TestReplicaFollowerHighWatermark(t *testing.T) {
	t.Parallel()
	r := followerOf(ReplicaLog{Epochs: Epochs{{2, 0}, {4, 10}}, LogEnd: 20, HighWatermark: 12})
	expect := func(want int64) {
		t.Helper()
		if r.HighWatermark() != want {
			t.Fatalf("high watermark %d, want %d", r.HighWatermark(), want)
		}
	}
	if p := position(t, r, 20); p.LogEnd != 20 {
		t.Fatalf("position %+v", p)
	}
	expect(12)
	in := Replicated{LeaderEpoch: 5, Follows: 20, HighWatermark: 27, Batches: []BatchBounds{{20, 24, 5}}}
	r.Receive(in)
	r.QueueCopies(in)
	expect(20)
	r.Committed(25)
	expect(25)
	r.Receive(Replicated{LeaderEpoch: 5, Follows: 25, HighWatermark: 22})
	expect(25)
	// What the leader of the epoch before told says nothing of the next one's log.
	r.Apply(assigned(3, 6, 8, ids{2, 3}), start)
	r.Queue(30)
	r.Committed(30)
	expect(25)
	r.Cut(15)
	expect(15)
	// It falls no further than the log.
	r.Committed(99)
	if r.LogEnd() != 15 {
		t.Errorf("log end %d of a log that was cut at 15", r.LogEnd())
	}
}
