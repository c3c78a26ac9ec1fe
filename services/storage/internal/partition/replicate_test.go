package partition

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// member is one replica over a store of its own.
type member struct {
	id    cluster.NodeID
	epoch cluster.NodeEpoch
	dir   string
	store *store.Store
	host  *Host
	p     *Partition
}

// replicas are the members of one partition, wired to each other without a
// network.
type replicas struct {
	testing.TB
	topic   *Topic
	agreed  cluster.Partition
	members map[cluster.NodeID]*member
	now     time.Time
}

// replicated returns n replicas, of which the first leads in epoch 0 and all are in
// sync.
func replicated(t testing.TB, n int, settings ...string) *replicas {
	t.Helper()
	s := &replicas{
		TB:      t,
		topic:   NewTopic(cluster.TopicID{1}, "orders", parseConfig(t, settings...)),
		members: map[cluster.NodeID]*member{},
		now:     time.Now(),
		agreed:  cluster.Partition{Leader: 1, LastLeader: cluster.NoNode},
	}
	for id := cluster.NodeID(1); int(id) <= n; id++ {
		s.agreed.Replicas = append(s.agreed.Replicas, id)
		s.members[id] = &member{id: id, dir: t.TempDir()}
	}
	s.agreed.ISR = slices.Clone(s.agreed.Replicas)
	for _, m := range s.members {
		s.start(m)
	}
	t.Cleanup(func() {
		for _, m := range s.members {
			s.stop(m)
		}
	})
	return s
}

// start begins a process of a node.
func (s *replicas) start(m *member) {
	s.Helper()
	config := store.DefaultConfig()
	config.Dir = m.dir
	st, err := store.Open(config)
	if err != nil {
		s.Fatal(err)
	}
	m.store = st
	m.epoch++
	m.host = NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)
	m.host.SetSelf(m.id)
	m.p = New(m.host, s.topic, 3, st.Log(store.PartitionID{Topic: s.topic.ID, Index: 3}))
	apply(s, m.p, s.agreed)
}

// stop ends the process in good order.
func (s *replicas) stop(m *member) {
	s.Helper()
	m.p.Checkpoint()
	m.p.Close()
	if err := m.store.Close(int64(m.epoch)); err != nil {
		s.Error(err)
	}
}

func (s *replicas) restart(m *member) {
	s.Helper()
	s.stop(m)
	s.start(m)
}

func (m *member) log(s *replicas) *store.Log {
	return m.store.Log(store.PartitionID{Topic: s.topic.ID, Index: 3})
}

// agree changes what the cluster has agreed on, and tells those members.
func (s *replicas) agree(change func(*cluster.Partition), told ...*member) {
	s.Helper()
	s.agreed.ISR = slices.Clone(s.agreed.ISR)
	change(&s.agreed)
	s.agreed.PartitionEpoch++
	for _, m := range told {
		apply(s, m.p, s.agreed)
	}
}

// elect makes a member the leader of a new epoch.
func (s *replicas) elect(m *member, isr []cluster.NodeID, told ...*member) {
	s.Helper()
	s.agree(func(p *cluster.Partition) {
		p.Leader, p.ISR = m.id, isr
		p.LeaderEpoch++
	}, told...)
}

// message returns what a leader answers a follower's position with.
func (s *replicas) message(leader, follower *member) (rules.Fetch, rules.Replicated, [][]byte) {
	s.Helper()
	at, ok := follower.p.Position(follower.epoch)
	if !ok {
		s.Fatalf("node %d has no position", follower.id)
	}
	fetch := leader.p.Fetched(at, s.now)
	in := rules.Replicated{LeaderEpoch: at.LeaderEpoch, Follows: at.LogEnd}
	var batches [][]byte
	var err error
	switch fetch.Outcome {
	case rules.FetchServed:
		in, batches, err = leader.p.ReadFollower(s.Context(), at.LeaderEpoch, at.LogEnd, 4000)
	case rules.FetchDiverges:
		in.Diverges, in.Epoch, in.End = true, fetch.Epoch, fetch.End
	case rules.FetchRestarts:
		in.Restarts = true
		in.RestartOffset, err = leader.p.RestartOffset(s.Context(), at.LeaderEpoch)
		in.CoordinatorEpoch = leader.p.CoordinatorEpoch()
	default:
		s.Fatalf("the leader refuses %+v: %d", at, fetch.Outcome)
	}
	if err != nil {
		s.Fatal(err)
	}
	copies := make([][]byte, len(batches))
	for i, b := range batches {
		copies[i] = bytes.Clone(b)
	}
	return fetch, in, copies
}

// receive has a follower take a message, and waits until it is written.
func (s *replicas) receive(follower *member, in rules.Replicated, batches [][]byte) Received {
	s.Helper()
	written := make(chan error, 1)
	r, err := follower.p.Receive(s.Context(), in, batches, func(err error) { written <- err })
	if err != nil {
		s.Fatal(err)
	}
	if r.Writes {
		if err := <-written; err != nil {
			s.Fatal(err)
		}
	}
	return r
}

// catchUp replicates until there is nothing to tell a follower any more, and
// returns what it had to do.
func (s *replicas) catchUp(leader, follower *member) (outcomes []rules.ReceiveOutcome) {
	s.Helper()
	for range 1000 {
		_, in, batches := s.message(leader, follower)
		r := s.receive(follower, in, batches)
		if !r.Writes {
			if l, f := leader.p.ends(), follower.p.ends(); l != f {
				s.Fatalf("nothing more to tell, but the leader has %+v and the follower %+v", l, f)
			}
			return outcomes
		}
		outcomes = append(outcomes, r.Outcome)
	}
	s.Fatal("it never ends")
	return nil
}

// ends are the bounds of a log.
type ends struct{ start, next, logEnd, highWatermark int64 }

func (p *Partition) ends() ends {
	p.mu.Lock()
	defer p.mu.Unlock()
	return ends{p.replica.StartWritten(), p.replica.Next(), p.replica.LogEnd(), p.replica.HighWatermark()}
}

func (s *replicas) batches(m *member, from int64) [][]byte {
	s.Helper()
	var out [][]byte
	for end := m.p.ends().logEnd; from < end; {
		batches, err := m.p.log.Read(context.Background(), from, end, 1<<20)
		if err != nil {
			s.Fatal(err)
		}
		if len(batches) == 0 {
			break
		}
		for _, b := range batches {
			out = append(out, b.Bytes)
			from = b.LastOffset + 1
		}
	}
	return out
}

// same fails unless all members hold the same bytes from an offset on, and the same
// epochs.
func (s *replicas) same(from int64, members ...*member) {
	s.Helper()
	want := s.batches(members[0], from)
	for _, m := range members[1:] {
		if got := s.batches(m, from); !slices.EqualFunc(got, want, bytes.Equal) {
			s.Errorf("node %d has %d batches, node %d has %d, or others", m.id, len(got), members[0].id, len(want))
		}
		if got, want := m.p.replica.Epochs(), members[0].p.replica.Epochs(); !slices.Equal(got, want) {
			s.Errorf("node %d has the epochs %v, node %d has %v", m.id, got, members[0].id, want)
		}
	}
}

// write appends a batch and waits until the leader has it on disk.
func (s *replicas) write(m *member, batch []byte) *outcome {
	s.Helper()
	written := newOutcome()
	acked := add(s, m.p, batch, all)
	if err := m.p.Append(request(plain(s, "after"), leader), written); err != nil {
		s.Fatal(err)
	}
	if r := <-written.results; r.Err != nil {
		s.Fatal(r.Err)
	}
	return acked
}

// TestReplication: the high watermark moves, and acks=all is answered, once every
// member of the ISR has what was appended.
func TestReplication(t *testing.T) {
	t.Parallel()
	s := replicated(t, 3, rules.MinInsyncReplicas, "2")
	one, two, three := s.members[1], s.members[2], s.members[3]
	acked := s.write(one, plain(t, "a", "b"))
	s.message(one, two)
	_, in, batches := s.message(one, three)
	s.receive(three, in, batches)
	if acked.done() || one.p.ends().highWatermark != 0 {
		t.Fatal("acknowledged before the followers told that they have it")
	}
	s.message(one, three)
	if acked.done() {
		t.Fatal("acknowledged although a follower has nothing")
	}
	s.catchUp(one, two)
	if r := acked.result(t); r.Err != nil || r.BaseOffset != 0 {
		t.Errorf("acknowledged with %+v", r)
	}
	s.catchUp(one, three)
	s.same(0, one, two, three)
	if got, want := two.p.ends(), (ends{0, 3, 3, 3}); got != want {
		t.Errorf("the follower has %+v, want %+v", got, want)
	}
	if _, err := two.p.Bounds(rules.NoEpoch); err == nil {
		t.Error("a follower serves readers")
	}
	// Followers note the high watermark, too.
	two.host.checkpoints.mu.Lock()
	if asks := two.host.checkpoints.asks; !slices.Equal(asks, []*Partition{two.p}) {
		t.Errorf("%d partitions are to be checkpointed", len(asks))
	}
	two.host.checkpoints.mu.Unlock()
	s.restart(two)
	if got := two.p.ends().highWatermark; got != 3 {
		t.Errorf("after a restart the follower's high watermark is %d, want 3", got)
	}
}

// TestFailoverKeepsProducers: the next leader gives a repeated batch its original
// offset, and continues the sequences, though all that it knows of the producers are
// the headers of the batches.
func TestFailoverKeepsProducers(t *testing.T) {
	t.Parallel()
	for _, restarted := range []bool{false, true} {
		s := replicated(t, 2, rules.MinInsyncReplicas, "1", rules.MessageTimestampType, rules.TimestampLogAppendTime)
		one, two := s.members[1], s.members[2]
		first := s.write(one, idempotent(t, 9, 2, 0, "a", "b"))
		s.write(one, idempotent(t, 8, 0, 0, "c"))
		last := s.write(one, idempotent(t, 9, 2, 2, "d", "e", "f"))
		s.catchUp(one, two)
		if restarted {
			s.restart(two)
		}
		s.elect(two, []cluster.NodeID{2}, one, two)
		for _, c := range []struct {
			original *outcome
			batch    []byte
		}{{first, idempotent(t, 9, 2, 0, "a", "b")}, {last, idempotent(t, 9, 2, 2, "d", "e", "f")}} {
			want := c.original.result(t)
			o := newOutcome()
			if err := two.p.Append(request(c.batch, all), o); err != nil {
				t.Fatal(err)
			}
			if got := <-o.results; !got.Duplicate || got.BaseOffset != want.BaseOffset || got.AppendTime != want.AppendTime || got.Err != nil {
				t.Errorf("repeated: %+v, want %+v", got, want)
			}
		}
		wantReason(t, two.p.Append(request(idempotent(t, 9, 1, 5, "x"), all), newOutcome()), errorsv1.Reason_REASON_PRODUCER_FENCED)
		wantReason(t, two.p.Append(request(idempotent(t, 9, 2, 6, "x"), all), newOutcome()), errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE)
		end := two.p.ends().next
		if r := s.write(two, idempotent(t, 9, 2, 5, "g")); r.result(t).BaseOffset != end {
			t.Error("the sequence does not go on")
		}
	}
}

// TestDivergence: a leader that comes back cuts what it alone has, in as many steps
// as there are leaderships that it missed, and forgets what producers did there.
func TestDivergence(t *testing.T) {
	t.Parallel()
	s := replicated(t, 2, rules.MinInsyncReplicas, "1")
	one, two := s.members[1], s.members[2]
	s.write(one, plain(t, "a", "b"))
	s.catchUp(one, two)
	s.write(one, idempotent(t, 7, 0, 0, "lost", "too"))
	s.elect(two, []cluster.NodeID{2}, two)
	s.write(two, plain(t, "c"))
	s.elect(two, []cluster.NodeID{2}, one, two)
	s.write(two, idempotent(t, 7, 0, 0, "d"))
	outcomes := s.catchUp(two, one)
	if !slices.Contains(outcomes, rules.ReceiveTruncates) {
		t.Errorf("no truncation: %v", outcomes)
	}
	s.same(0, two, one)
	s.elect(one, []cluster.NodeID{1, 2}, one, two)
	wantReason(t, one.p.Append(request(idempotent(t, 7, 0, 2, "e"), all), newOutcome()), errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE)
	add(t, one.p, idempotent(t, 7, 0, 1, "e"), leader)
	s.restart(one)
	if got := one.p.ends(); got.next != 8 {
		t.Errorf("after a restart it has %+v", got)
	}
}

// TestRestartBelowLogStart: a follower whose end lies below the leader's log start
// begins anew with the batch that the log start lies in, takes over the log start,
// and is as good as any other, also for a process that comes after.
func TestRestartBelowLogStart(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		held, restarted := i%2 > 0, i/2 > 0
		s := replicated(t, 2, rules.MinInsyncReplicas, "1")
		one, two := s.members[1], s.members[2]
		if held {
			s.write(one, idempotent(t, 5, 0, 0, "old"))
			s.catchUp(one, two)
		}
		s.agree(func(p *cluster.Partition) { p.ISR = []cluster.NodeID{1} }, one, two)
		first := s.write(one, plain(t, "a", "b", "c")).result(t).BaseOffset
		s.write(one, plain(t, "d", "e"))
		if _, err := one.p.DeleteRecords(t.Context(), first+2, rules.NoEpoch); err != nil {
			t.Fatal(err)
		}
		outcomes := s.catchUp(one, two)
		if outcomes[0] != rules.ReceiveRestarts || slices.Contains(outcomes[1:], rules.ReceiveRestarts) {
			t.Errorf("it does %v", outcomes)
		}
		s.same(first+2, one, two)
		if got := two.p.ends().start; got != first+2 {
			t.Errorf("the log starts at %d, want %d", got, first+2)
		}
		if restarted {
			s.restart(two)
		}
		s.write(one, plain(t, "f"))
		s.catchUp(one, two)
		s.elect(two, []cluster.NodeID{2}, one, two)
		f, err := two.p.Read(t.Context(), Fetch{Offset: first + 2, End: math.MaxInt64, MaxBytes: 1 << 20, LeaderEpoch: rules.NoEpoch})
		if err != nil || len(f.Batches) == 0 {
			t.Errorf("read %d batches, %v", len(f.Batches), err)
		}
		if held {
			// What it knew of producers belonged to the log that it dropped.
			wantReason(t, two.p.Append(request(idempotent(t, 5, 0, 1, "x"), all), newOutcome()), errorsv1.Reason_REASON_UNKNOWN_PRODUCER)
		}
	}
}

// A follower that has lost records takes no part while somebody counts on it; then it
// drops the rest, and copies all of it.
func TestFailedReplicaBeginsAnew(t *testing.T) {
	t.Parallel()
	s := replicated(t, 2, rules.MinInsyncReplicas, "1")
	one, two := s.members[1], s.members[2]
	s.write(one, plain(t, "a", "b", "c"))
	s.catchUp(one, two)
	two.log(s).Fail("a test says so")
	for range 2 {
		if at, ok := two.p.Position(two.epoch); ok {
			t.Fatalf("in the ISR, it has the position %+v", at)
		}
		s.restart(two)
	}
	withdraw := func() {
		t.Helper()
		if !two.p.Propose(time.Now(), time.Minute, func(cluster.NodeID) (cluster.NodeEpoch, bool) { return 0, false }) {
			t.Fatal("it does not withdraw")
		}
		proposal, ok := two.p.Proposal()
		if !ok || !proposal.Withdraws {
			t.Fatalf("it proposes %+v", proposal)
		}
		s.agree(func(p *cluster.Partition) { p.LeaderEpoch, p.ISR = p.LeaderEpoch+1, []cluster.NodeID{1} }, one, two)
		if err := two.p.Answer(proposal, true, s.agreed, s.now); err != nil {
			t.Fatal(err)
		}
		if _, ok := two.p.Proposal(); ok {
			t.Fatal("withdrawn it withdraws again")
		}
	}
	// The cluster keeps who was in sync, also where the ISR does not name it any more.
	s.agree(func(p *cluster.Partition) { p.ISR = []cluster.NodeID{1} }, one, two)
	if at, ok := two.p.Position(two.epoch); ok {
		t.Fatalf("it has not withdrawn, and has the position %+v", at)
	}
	withdraw()
	// Until its leader has answered it drops nothing.
	if at, ok := two.p.Position(two.epoch); !ok || at.LogEnd != 0 || two.log(s).Failed() == nil {
		t.Fatalf("it has the position %+v, %t", at, ok)
	}
	s.write(one, plain(t, "of this epoch"))
	s.catchUp(one, two)
	s.same(0, one, two)
	if two.log(s).Failed() != nil || two.store.Damaged() {
		t.Error("it counts as failed still")
	}
	// What is lost now may be what a leader is about to admit it for: it withdraws what
	// it has stated first.
	two.log(s).Fail("again")
	if _, ok := two.p.Position(two.epoch); ok {
		t.Fatal("it begins anew in the leader epoch in which it has shown a position")
	}
	withdraw()
	s.write(one, plain(t, "d"))
	s.catchUp(one, two)
	s.same(0, one, two)
}

// A leader that has lost records neither tells followers what to do nor stays.
func TestFailedLeaderResigns(t *testing.T) {
	t.Parallel()
	s := replicated(t, 2, rules.MinInsyncReplicas, "1")
	one, two := s.members[1], s.members[2]
	s.write(one, plain(t, "a"))
	s.catchUp(one, two)
	one.log(s).Fail("a test says so")
	at, _ := two.p.Position(two.epoch)
	if got := one.p.Fetched(at, time.Now()); got.Outcome != rules.FetchNotLeader {
		t.Errorf("a position is answered with %+v", got)
	}
	if !one.p.Propose(time.Now(), time.Minute, func(cluster.NodeID) (cluster.NodeEpoch, bool) { return 0, false }) {
		t.Fatal("it does not resign")
	}
	if proposal, _ := one.p.Proposal(); len(proposal.ISR) != 1 || proposal.ISR[0].Node != 2 {
		t.Errorf("it proposes %+v", proposal)
	}
}

// TestRestartBelowItsOwnEnd: an empty follower that begins above the leader's end
// begins anew below.
func TestRestartBelowItsOwnEnd(t *testing.T) {
	t.Parallel()
	s := replicated(t, 2, rules.MinInsyncReplicas, "1")
	one, two := s.members[1], s.members[2]
	s.write(one, plain(t, "a"))
	s.receive(two, rules.Replicated{Restarts: true, RestartOffset: 100}, nil)
	if got, want := two.p.ends(), (ends{100, 100, 100, 100}); got != want {
		t.Fatalf("it has %+v, want %+v", got, want)
	}
	s.restart(two)
	if got, want := two.p.ends(), (ends{100, 100, 100, 100}); got != want {
		t.Fatalf("after a restart it has %+v, want %+v", got, want)
	}
	s.catchUp(one, two)
	s.same(0, one, two)
}

// TestGapsOfCompactedLeader: a follower that comes late copies what compaction has
// left, with the same offsets and the same epochs.
func TestGapsOfCompactedLeader(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{rules.CleanupCompact, rules.CleanupDelete} {
		testGaps(t, policy)
	}
}

// testGaps has a follower copy after the topic's policy has become another one.
func testGaps(t *testing.T, policy string) {
	t.Helper()
	s := replicated(t, 2, rules.MinInsyncReplicas, "1", rules.CleanupPolicy, rules.CleanupCompact)
	one, two := s.members[1], s.members[2]
	s.agree(func(p *cluster.Partition) { p.ISR = []cluster.NodeID{1} }, one, two)
	for epoch := range 6 {
		for range 5 {
			s.write(one, plain(t, "a", "b"))
		}
		s.write(one, plain(t, fmt.Sprint(epoch)))
		s.elect(one, []cluster.NodeID{1}, one, two)
	}
	if done, err := one.p.Compact(t.Context()); err != nil || !done.Progress {
		t.Fatalf("compacted %+v, %v", done, err)
	}
	s.topic.SetConfig(parseConfig(t, rules.MinInsyncReplicas, "1", rules.CleanupPolicy, policy))
	s.write(one, plain(t, "last"))
	s.catchUp(one, two)
	s.same(0, one, two)
	if n := len(s.batches(two, 0)); n >= 40 {
		t.Errorf("%d batches: nothing was missing", n)
	}
	s.restart(two)
	s.same(0, one, two)
	s.elect(two, []cluster.NodeID{1, 2}, one, two)
	s.write(two, plain(t, "x"))
	s.catchUp(two, one)
	s.same(0, one, two)
}

// TestForeignBatchesAreNotTrusted: whatever is wrong with what a leader sends,
// nothing of it is appended, and what follows is.
func TestForeignBatchesAreNotTrusted(t *testing.T) {
	t.Parallel()
	s := replicated(t, 2, rules.MinInsyncReplicas, "1")
	one, two := s.members[1], s.members[2]
	s.write(one, plain(t, "a", "b"))
	for name, spoil := range map[string]func(*rules.Replicated, [][]byte){
		"a flipped bit":         func(_ *rules.Replicated, b [][]byte) { b[1][len(b[1])-1] ^= 1 },
		"cut short":             func(_ *rules.Replicated, b [][]byte) { b[0] = b[0][:len(b[0])-1] },
		"another base offset":   func(_ *rules.Replicated, b [][]byte) { recordbatch.Assign(b[0], 7, 0) },
		"another epoch":         func(_ *rules.Replicated, b [][]byte) { recordbatch.Assign(b[0], 0, 1) },
		"an epoch of the table": func(in *rules.Replicated, _ [][]byte) { in.Epochs = rules.Epochs{{Epoch: 1, StartOffset: 0}} },
		"an epoch to come":      func(in *rules.Replicated, _ [][]byte) { in.Epochs = rules.Epochs{{Epoch: 1, StartOffset: 1}} },
		"an epoch beyond":       func(in *rules.Replicated, _ [][]byte) { in.Epochs = rules.Epochs{{Epoch: 0, StartOffset: 3}} },
		"bounds without bytes": func(in *rules.Replicated, _ [][]byte) {
			in.Batches = append(in.Batches, rules.BatchBounds{BaseOffset: 3, LastOffset: 3})
		},
		"a gap above the high watermark": func(in *rules.Replicated, b [][]byte) {
			recordbatch.Assign(b[0], 1, 0)
			recordbatch.Assign(b[1], 3, 0)
			in.Batches[0].BaseOffset, in.Batches[0].LastOffset = 1, 2
			in.Batches[1].BaseOffset, in.Batches[1].LastOffset = 3, 3
			in.HighWatermark, in.Epochs = 1, nil
		},
	} {
		_, in, batches := s.message(one, two)
		spoil(&in, batches)
		before := two.p.ends()
		_, err := two.p.Receive(t.Context(), in, batches, func(error) { t.Errorf("%s: done is called", name) })
		wantReason(t, err, errorsv1.Reason_REASON_CORRUPT_BATCH)
		if after := two.p.ends(); after != before {
			t.Errorf("%s: it has %+v, before %+v", name, after, before)
		}
	}
	s.catchUp(one, two)
	s.same(0, one, two)
}

// TestDelayedMessagesAreDropped: what was meant for another position or another
// epoch changes nothing, whatever it says.
func TestDelayedMessagesAreDropped(t *testing.T) {
	t.Parallel()
	s := replicated(t, 2, rules.MinInsyncReplicas, "1")
	one, two := s.members[1], s.members[2]
	s.write(one, plain(t, "a"))
	_, in, batches := s.message(one, two)
	s.catchUp(one, two)
	before := two.p.ends()
	dropped := func(in rules.Replicated, batches [][]byte) {
		t.Helper()
		if r := s.receive(two, in, batches); r.Outcome != rules.ReceiveDropped || two.p.ends() != before {
			t.Errorf("%+v: %+v, then it has %+v", in, r, two.p.ends())
		}
	}
	dropped(in, batches)
	cutting := rules.Replicated{Follows: 1, Diverges: true, Epoch: rules.NoEpoch}
	dropped(cutting, nil)
	dropped(rules.Replicated{Follows: 1, Restarts: true}, nil)
	cutting.Follows = before.next
	s.elect(one, []cluster.NodeID{1, 2}, one, two)
	dropped(cutting, nil)
	s.catchUp(one, two)
}

// TestShrinkAndExpand: a follower that does not fetch leaves the ISR when it lags,
// acks=all is refused below min ISR, and it comes back once it has caught up.
func TestShrinkAndExpand(t *testing.T) {
	t.Parallel()
	s := replicated(t, 2, rules.MinInsyncReplicas, "2")
	one, two := s.members[1], s.members[2]
	s.catchUp(one, two)
	live := func(cluster.NodeID) (cluster.NodeEpoch, bool) { return two.epoch, true }
	acked := s.write(one, plain(t, "a"))
	if one.p.Propose(s.now, 10*time.Second, live) {
		t.Fatal("a change of the ISR too early")
	}
	if !one.p.Propose(s.now.Add(11*time.Second), 10*time.Second, live) {
		t.Fatal("no change of the ISR although a member lags")
	}
	proposal, ok := one.p.Proposal()
	if !ok || len(proposal.ISR) != 1 || proposal.ISR[0].Node != 1 {
		t.Fatalf("proposed %+v", proposal)
	}
	answer := func(isr ...cluster.NodeID) {
		t.Helper()
		proposal := rules.ISRProposal{PartitionEpoch: s.agreed.PartitionEpoch}
		s.agree(func(p *cluster.Partition) { p.ISR = isr })
		if err := one.p.Answer(proposal, true, s.agreed, s.now); err != nil {
			t.Fatal(err)
		}
	}
	answer(1)
	wantReason(t, one.p.Append(request(plain(t, "b"), all), newOutcome()), errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS)
	if acked.done() || one.p.ends().highWatermark != 0 {
		t.Fatal("acknowledged below min ISR")
	}
	one.p.expire(time.Now().Add(time.Hour))
	wantReason(t, acked.result(t).Err, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND)
	apply(t, two.p, s.agreed)
	_, in, batches := s.message(one, two)
	s.receive(two, in, batches)
	s.message(one, two)
	if !one.p.Propose(s.now, 10*time.Second, live) {
		t.Fatal("a follower that has caught up is not proposed")
	}
	answer(1, 2)
	if got := one.p.ends().highWatermark; got != 2 {
		t.Errorf("the high watermark is %d, want 2", got)
	}
	s.write(one, plain(t, "c"))
}

// TestFreshLeaderKnowsNoLatest: until its high watermark has reached the start of its
// leadership, a leader does not say what readers may have seen.
func TestFreshLeaderKnowsNoLatest(t *testing.T) {
	t.Parallel()
	s := replicated(t, 3, rules.MinInsyncReplicas, "2")
	one, two, three := s.members[1], s.members[2], s.members[3]
	waiting := s.write(one, plain(t, "a"))
	_, in, batches := s.message(one, two)
	s.receive(two, in, batches)
	s.elect(two, []cluster.NodeID{2, 3}, one, two, three)
	if r := waiting.result(t); r.Err == nil {
		t.Error("the old leader's append did not fail")
	} else {
		wantReason(t, r.Err, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND)
	}
	_, err := two.p.Bounds(rules.NoEpoch)
	wantReason(t, err, errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE)
	s.catchUp(two, three)
	if b, err := two.p.Bounds(rules.NoEpoch); err != nil || b.HighWatermark != 2 {
		t.Errorf("bounds %+v, %v", b, err)
	}
}

// TestAwaitFollower: who looks after a follower is told of all that it has to be
// told.
func TestAwaitFollower(t *testing.T) {
	t.Parallel()
	s := replicated(t, 2, rules.MinInsyncReplicas, "1")
	one, two := s.members[1], s.members[2]
	ready := NewReady()
	sent := Sent{}
	wait := func(what string, happens func()) {
		t.Helper()
		if !one.p.AwaitFollower(ready, 5, sent) {
			t.Fatalf("there is something to tell before %s", what)
		}
		happens()
		<-ready.C()
		if got := ready.Take(nil); !slices.Equal(got, []int{5}) {
			t.Errorf("%s: told %v", what, got)
		}
		if one.p.AwaitFollower(ready, 5, sent) {
			t.Errorf("%s is not to be told", what)
			one.p.Forget(ready)
		}
	}
	wait("an append", func() { s.write(one, plain(t, "a")) })
	sent.LogEnd = math.MaxInt64
	wait("the high watermark", func() { s.catchUp(one, two) })
	sent.HighWatermark = 2
	wait("the log start", func() {
		if _, err := one.p.BeginDelete(1, rules.NoEpoch); err != nil {
			t.Fatal(err)
		}
	})
	sent.LogStart = 1
	wait("the end of the leadership", func() { s.elect(two, []cluster.NodeID{2}, one, two) })
}

// TestDeleteRecordsReplicated: a deletion is done once every member of the ISR has told
// a log start that it has written. Below min.insync.replicas nothing is deleted.
func TestDeleteRecordsReplicated(t *testing.T) {
	t.Parallel()
	s := replicated(t, 3, rules.MinInsyncReplicas, "2")
	one, two, three := s.members[1], s.members[2], s.members[3]
	s.write(one, plain(t, "a", "b"))
	s.catchUp(one, two)
	s.catchUp(one, three)
	d, err := one.p.BeginDelete(2, rules.NoEpoch)
	if err != nil || d.LogStart != 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	waits := func(what string) {
		t.Helper()
		one.p.mu.Lock()
		defer one.p.mu.Unlock()
		if one.p.news == nil || one.p.news.deletions != d {
			t.Fatalf("done %s", what)
		}
	}
	for s.message(one, two); one.p.ends().start != 2; {
		s.message(one, two)
	}
	waits("before a follower has it")
	s.catchUp(one, two)
	waits("before the other has it")
	_, in, batches := s.message(one, three)
	s.receive(three, in, batches)
	waits("before the other has told")
	s.message(one, three)
	if err := d.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.agree(func(p *cluster.Partition) { p.ISR = []cluster.NodeID{1} }, one, two, three)
	_, err = one.p.BeginDelete(3, rules.NoEpoch)
	wantReason(t, err, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS)
	if got := one.p.ends().start; got != 2 {
		t.Errorf("the log starts at %d", got)
	}
	s.restart(two)
	s.elect(two, []cluster.NodeID{2, 3}, one, two, three)
	if got := two.p.ends().start; got != 2 {
		t.Errorf("the next leader's log starts at %d", got)
	}
}
