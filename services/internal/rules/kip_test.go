package rules

import (
	"slices"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// stage plays the histories of the proposals, step by step: replicas of one partition
// on nodes 1, 2, 3, whose logs hold one record for each offset.
type stage struct {
	t        *testing.T
	state    PartitionState
	nodes    Nodes
	topic    TopicTraits
	replicas map[cluster.NodeID]*Replica
	logs     map[cluster.NodeID][]string
}

// newStage has node 1 lead in epoch 0, with everybody in sync.
func newStage(t *testing.T, minInsync int) *stage {
	s := &stage{
		t: t, nodes: Nodes{1: live(10), 2: live(20), 3: live(30)}, topic: TopicTraits{MinInsyncReplicas: minInsync},
		replicas: make(map[cluster.NodeID]*Replica), logs: make(map[cluster.NodeID][]string),
	}
	s.state = NewPartition(0, ids{1, 2, 3}, s.nodes)
	for id := range s.nodes {
		r := NewReplica(id, minInsync, ReplicaLog{})
		s.replicas[id] = &r
		s.tell(id)
	}
	return s
}

// tell lets nodes know what the cluster agreed on last.
func (s *stage) tell(nodes ...cluster.NodeID) {
	for _, id := range nodes {
		if a := s.replicas[id].Apply(s.state.Partition, start); a.TooNew {
			s.t.Fatalf("node %d finds its log too new for %+v", id, s.state.Partition)
		}
	}
}

// elect lets the controller look at the nodes, after one has changed.
func (s *stage) elect(id cluster.NodeID, n NodeState) {
	s.nodes[id] = n
	s.state, _ = Elect(s.state, s.nodes, s.topic)
}

// lead is an election by other means: a node leads the next epoch with an ISR.
func (s *stage) lead(id cluster.NodeID, isr ids) {
	s.state.Leader, s.state.LastLeader, s.state.ISR, s.state.ELR = id, cluster.NoNode, isr, nil
	s.state.LeaderEpoch++
	s.state.PartitionEpoch++
}

// write appends records at a leader, and makes them durable.
func (s *stage) write(id cluster.NodeID, records ...string) {
	s.logs[id] = append(s.logs[id], records...)
	s.replicas[id].Queue(int64(len(s.logs[id])))
	s.replicas[id].Committed(int64(len(s.logs[id])))
}

// restart begins a new process on what is left of a log. Its checkpoint of the high
// watermark may lag.
func (s *stage) restart(id cluster.NodeID, logEnd, highWatermark int64) {
	r := NewReplica(id, s.topic.MinInsyncReplicas, ReplicaLog{
		Epochs: s.replicas[id].Epochs().TruncateEnd(logEnd), LogEnd: logEnd, HighWatermark: highWatermark,
	})
	s.replicas[id], s.logs[id] = &r, slices.Clone(s.logs[id][:logEnd])
}

// exchange shows a follower's position to a leader, and the follower what that
// answers; at most so many records.
func (s *stage) exchange(from, to cluster.NodeID, records int) FetchOutcome {
	s.t.Helper()
	f, l := s.replicas[from], s.replicas[to]
	p, ok := f.Position(s.nodes[from].Epoch)
	if !ok {
		s.t.Fatalf("node %d has no position", from)
	}
	return s.answer(from, to, p, l.Fetch(p, start), records)
}

func (s *stage) answer(from, to cluster.NodeID, p Position, fetch Fetch, records int) FetchOutcome {
	s.t.Helper()
	f, l := s.replicas[from], s.replicas[to]
	in := Replicated{LeaderEpoch: l.Epoch(), Follows: p.LogEnd, HighWatermark: l.HighWatermark(), LogStart: l.LogStart()}
	switch fetch.Outcome {
	case FetchServed:
		for at := p.LogEnd; at < min(l.LogEnd(), p.LogEnd+int64(records)); at++ {
			in.Batches = append(in.Batches, BatchBounds{BaseOffset: at, LastOffset: at, Epoch: l.Epochs().At(at)})
		}
	case FetchDiverges:
		in.Diverges, in.Epoch, in.End = true, fetch.Epoch, fetch.End
	default:
		return fetch.Outcome
	}
	switch d := f.Receive(in); d.Outcome {
	case ReceiveAppends:
		f.QueueCopies(in)
		s.logs[from] = append(s.logs[from], s.logs[to][p.LogEnd:p.LogEnd+int64(len(in.Batches))]...)
		f.Committed(f.Next())
	case ReceiveTruncates:
		f.Cut(d.Offset)
		s.logs[from] = s.logs[from][:d.Offset]
	default:
		s.t.Fatalf("node %d makes %+v of %+v", from, d, in)
	}
	return fetch.Outcome
}

// follow lets a follower catch up, and returns how often it had to truncate.
func (s *stage) follow(from, to cluster.NodeID) (cuts int) {
	s.t.Helper()
	for range 100 {
		before := s.replicas[from].LogEnd()
		switch got := s.exchange(from, to, 100); {
		case got == FetchDiverges:
			cuts++
		case got != FetchServed:
			s.t.Fatalf("node %d is answered with %d by node %d", from, got, to)
		case s.replicas[from].LogEnd() == before:
			return cuts
		}
	}
	s.t.Fatalf("node %d does not catch up with node %d", from, to)
	return 0
}

func (s *stage) wantLog(id cluster.NodeID, want ...string) {
	s.t.Helper()
	if !slices.Equal(s.logs[id], want) || s.replicas[id].LogEnd() != int64(len(want)) {
		s.t.Errorf("node %d has %v, want %v", id, s.logs[id], want)
	}
}

func (s *stage) wantHighWatermark(id cluster.NodeID, want int64) {
	s.t.Helper()
	if got := s.replicas[id].HighWatermark(); got != want {
		s.t.Errorf("the high watermark of node %d is %d, want %d", id, got, want)
	}
}

// Scenario 1 of KIP-101: the follower's high watermark lags behind what is
// acknowledged when it restarts, and it leads right after that.
func TestKIP101HighWatermarkTruncationThenElection(t *testing.T) {
	t.Parallel()
	s := newStage(t, 1)
	s.lead(1, ids{1, 2})
	s.tell(1, 2)
	s.write(1, "m1", "m2")
	s.exchange(2, 1, 1)
	s.exchange(2, 1, 1)
	p := position(t, s.replicas[2], 20)
	s.replicas[1].Fetch(p, start)
	s.wantHighWatermark(1, 2)
	s.wantHighWatermark(2, 1)
	s.restart(2, 2, 1)
	s.lead(2, ids{2})
	s.tell(2)
	s.wantLog(2, "m1", "m2")
	s.wantHighWatermark(2, 2)
	// And the leader that comes back finds nothing to cut.
	s.restart(1, 2, 2)
	s.tell(1)
	if cuts := s.follow(1, 2); cuts != 0 {
		t.Errorf("%d truncations", cuts)
	}
	s.wantLog(1, "m1", "m2")
}

// Scenario 2 of KIP-101: both crash, the one with the shorter log leads first.
func TestKIP101DivergenceAfterHardFailures(t *testing.T) {
	t.Parallel()
	s := newStage(t, 1)
	s.lead(1, ids{1, 2})
	s.tell(1, 2)
	s.write(1, "m1", "m2")
	s.follow(2, 1)
	s.wantHighWatermark(2, 2)
	// A power loss of node 2 takes m2 back, before it was synced.
	s.restart(2, 1, 1)
	s.restart(1, 2, 2)
	s.lead(2, ids{2})
	s.tell(1, 2)
	s.write(2, "m3")
	// Node 1 has an offset like that of the leader's end, with another record.
	if cuts := s.follow(1, 2); cuts != 1 {
		t.Errorf("%d truncations", cuts)
	}
	s.wantLog(1, "m1", "m3")
	s.wantLog(2, "m1", "m3")
}

// KIP-279, fast fail-over: leaders follow each other so fast that a replica leads and
// follows without the others ever hearing of its epoch.
func TestKIP279FastFailover(t *testing.T) {
	t.Parallel()
	s := newStage(t, 1)
	s.write(1, "a", "b")
	s.follow(2, 1)
	s.follow(3, 1)
	s.lead(2, ids{1, 2, 3})
	s.tell(2)
	s.write(2, "lost 1", "lost 2", "lost 3")
	s.lead(1, ids{1, 2, 3})
	s.tell(1, 3)
	s.write(1, "c")
	s.follow(3, 1)
	// Node 2 asks about epoch 1, which node 1 does not know: it answers with epoch 0.
	s.tell(2)
	if cuts := s.follow(2, 1); cuts != 1 {
		t.Errorf("%d truncations", cuts)
	}
	for id := range cluster.NodeID(3) {
		s.wantLog(id+1, "a", "b", "c")
	}
	s.follow(2, 1)
	s.wantHighWatermark(1, 3)
}

// KIP-279, after unclean elections: the epochs of two logs interleave, so that one
// look-up does not find the last record that they have in common.
func TestKIP279InterleavedEpochs(t *testing.T) {
	t.Parallel()
	s := newStage(t, 1)
	s.write(1, "a", "b")
	s.follow(2, 1)
	// Each leads without the other, time after time.
	for i, step := range []struct {
		leader  cluster.NodeID
		records []string
	}{{2, []string{"2c"}}, {1, []string{"1c", "1d"}}, {2, []string{"2d", "2e"}}, {1, []string{"1e"}}, {2, []string{"2f"}}} {
		s.lead(step.leader, ids{step.leader})
		s.replicas[step.leader].Apply(s.state.Partition, start)
		s.write(step.leader, step.records...)
		if i > 0 {
			s.wantHighWatermark(step.leader, int64(len(s.logs[step.leader])))
		}
	}
	s.tell(1)
	if cuts := s.follow(1, 2); cuts < 2 {
		t.Errorf("%d truncations: the history needs several", cuts)
	}
	s.wantLog(1, "a", "b", "2c", "2d", "2e", "2f")
	s.wantLog(2, "a", "b", "2c", "2d", "2e", "2f")
}

// KIP-320: a position names the epoch that its follower believes in. Without that a
// position of an earlier epoch of the same leader, which comes late, counts for
// records that the follower has cut since (the model Kip320FirstTry).
func TestKIP320LatePositionOfAnEarlierEpoch(t *testing.T) {
	t.Parallel()
	s := newStage(t, 1)
	s.lead(1, ids{1, 2})
	s.tell(1, 2)
	s.write(1, "a", "b")
	s.follow(2, 1)
	s.write(1, "c")
	s.exchange(2, 1, 1)
	late := position(t, s.replicas[2], 20) // It has c, and node 1 does not know.
	s.wantHighWatermark(1, 2)
	// Node 3 leads in between with what was committed, and node 2 follows it; node 1
	// hears of nothing.
	s.lead(3, ids{1, 2, 3})
	s.logs[3] = []string{"a", "b"}
	r := NewReplica(3, 1, ReplicaLog{Epochs: Epochs{{1, 0}}, LogEnd: 2, HighWatermark: 2})
	s.replicas[3] = &r
	s.tell(2, 3)
	s.follow(2, 3)
	s.wantLog(2, "a", "b")
	s.lead(1, ids{1, 2})
	s.tell(1)
	if got := s.replicas[1].Fetch(late, start); got.Outcome != FetchFenced {
		t.Errorf("the late position is answered with %+v", got)
	}
	s.wantHighWatermark(1, 2)
	s.tell(2)
	if got := s.replicas[1].Fetch(position(t, s.replicas[2], 20), start); got.Outcome != FetchServed {
		t.Errorf("its position of now is answered with %+v", got)
	}
	s.wantHighWatermark(1, 2)
}

// KIP-320: a follower that knows of a later leadership is not served by the leader
// before, however often it asks.
func TestKIP320SupersededLeaderServesNobody(t *testing.T) {
	t.Parallel()
	s := newStage(t, 1)
	s.write(1, "a")
	s.follow(2, 1)
	s.follow(3, 1)
	s.wantHighWatermark(1, 1)
	s.lead(2, ids{1, 2, 3})
	s.tell(2, 3)
	s.write(1, "zombie")
	p := position(t, s.replicas[3], 30)
	if got := s.replicas[1].Fetch(p, start); got.Outcome != FetchUnknown {
		t.Errorf("it is answered with %+v", got)
	}
	s.wantHighWatermark(1, 1)
	s.write(2, "b")
	s.follow(3, 2)
	s.tell(1)
	s.follow(1, 2)
	s.follow(3, 2)
	s.wantLog(1, "a", "b")
	s.wantHighWatermark(2, 2)
}

// KIP-320: a consumer whose last record was replaced is told so, at the very offset
// that it reads on from, and one whose records are all there is not.
func TestKIP320ConsumerDetectsTruncation(t *testing.T) {
	t.Parallel()
	s := newStage(t, 1)
	s.lead(1, ids{1})
	s.tell(1, 2)
	s.write(1, "a", "b", "c")
	s.follow(2, 1)
	s.restart(2, 2, 2)
	s.lead(2, ids{2}) // Uncleanly.
	s.tell(2)
	s.write(2, "x", "y")
	r := s.replicas[2]
	if _, end, diverges := r.Epochs().Diverges(1, 3, r.Next()); !diverges || end != 2 {
		t.Errorf("a consumer that has read c is told %t, %d", diverges, end)
	}
	if _, _, diverges := r.Epochs().Diverges(1, 2, r.Next()); diverges {
		t.Error("a consumer that has read b is told of a truncation")
	}
}

// KIP-966, last replica standing: the ISR shrinks to the leader, which then loses
// what it had. Whoever left the ISR below min ISR has all that was acknowledged.
func TestKIP966LastReplicaStanding(t *testing.T) {
	t.Parallel()
	powerLoss := Restart{SameDirectory: true}
	s := newStage(t, 2)
	s.write(1, "a")
	s.follow(2, 1)
	s.follow(3, 1)
	s.wantHighWatermark(1, 1)
	s.elect(3, dead(30))
	s.tell(1)
	s.write(1, "b")
	s.follow(2, 1)
	s.wantHighWatermark(1, 2)
	s.elect(2, dead(20))
	s.tell(1)
	if !slices.Equal(s.state.ISR, ids{1}) || !slices.Equal(s.state.ELR, ids{2}) {
		t.Fatalf("ISR %v, ELR %v: node 3 lacks b, node 2 does not", s.state.ISR, s.state.ELR)
	}
	s.write(1, "c")
	s.wantHighWatermark(1, 2)

	s.elect(1, dead(10))
	if s.state.Leader != cluster.NoNode || !slices.Equal(s.state.ELR, ids{1, 2}) {
		t.Fatalf("%+v", s.state)
	}
	s.elect(1, restarted(10, 11, powerLoss))
	s.restart(1, 0, 0)
	if s.state.Leader != cluster.NoNode {
		t.Fatalf("node %d leads, which has lost its records", s.state.Leader)
	}
	s.elect(3, live(30))
	if s.state.Leader != cluster.NoNode {
		t.Fatalf("node %d leads, which lacks b", s.state.Leader)
	}
	s.elect(2, live(20))
	if s.state.Leader != 2 {
		t.Fatalf("node 2 does not lead: %+v", s.state)
	}
	s.tell(2, 3, 1)
	s.follow(3, 2)
	s.follow(1, 2)
	s.wantLog(1, "a", "b")
	s.wantLog(3, "a", "b")
}

// KIP-966, the case for the maximal ISR: an expansion is accepted, the leader does
// not hear of it, and the replica that it had proposed leads next.
func TestKIP966ExpansionInFlight(t *testing.T) {
	t.Parallel()
	s := newStage(t, 2)
	s.lead(1, ids{1, 2})
	s.tell(1, 2, 3)
	s.write(1, "a")
	s.follow(2, 1)
	s.follow(3, 1)
	s.wantHighWatermark(1, 1)
	if !s.replicas[1].Propose(start, maxLag, func(id cluster.NodeID) (cluster.NodeEpoch, bool) { return s.nodes[id].Epoch, true }) {
		t.Fatal("node 3 is not proposed")
	}
	proposal, _ := s.replicas[1].Proposal()
	accepted, err := ProposeISR(s.state, proposal, s.nodes, s.topic)
	if err != nil {
		t.Fatal(err)
	}
	s.state = accepted
	s.write(1, "b")
	s.follow(2, 1)
	s.wantHighWatermark(1, 1) // Node 3 counts, although the answer has not come.
	s.elect(1, dead(10))
	s.elect(2, dead(20))
	if s.state.Leader != 3 {
		t.Fatalf("%+v", s.state)
	}
	s.tell(3)
	s.wantLog(3, "a")
}

// KIP-903 and KIP-841: a proposal names the process that had caught up; its successor
// is another matter, and so is a process without a lease.
func TestKIP903StaleProcessIsNotAdded(t *testing.T) {
	t.Parallel()
	s := newStage(t, 2)
	s.lead(1, ids{1, 2})
	s.tell(1, 2, 3)
	s.write(1, "a")
	s.follow(2, 1)
	s.follow(3, 1)
	s.replicas[1].Propose(start, maxLag, func(id cluster.NodeID) (cluster.NodeEpoch, bool) { return s.nodes[id].Epoch, true })
	proposal, _ := s.replicas[1].Proposal()
	s.elect(3, restarted(30, 31, Restart{SameDirectory: true}))
	s.restart(3, 0, 0)
	if _, err := ProposeISR(s.state, proposal, s.nodes, s.topic); err == nil {
		t.Error("the process that came after the one that had caught up is added")
	}
	s.elect(3, dead(30))
	if _, err := ProposeISR(s.state, proposal, s.nodes, s.topic); err == nil {
		t.Error("a process without a lease is added")
	}
}
