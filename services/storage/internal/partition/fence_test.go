package partition

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

const offsetsTopic = "__consumer_offsets"

// openInternal returns a partition of an internal topic that leads in epoch 3.
func openInternal(t testing.TB, log *memoryLog, settings ...string) *Partition {
	t.Helper()
	host := NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)
	host.SetSelf(self)
	p := New(host, NewTopic(cluster.TopicID{1}, offsetsTopic, parseConfig(t, settings...)), 3, log)
	apply(t, p, led(3))
	return p
}

// claimed is what a coordinator asks for.
func claimed(batch []byte, epoch cluster.CoordinatorEpoch, expected int64) Append {
	return Append{
		Batch: batch, Claim: &rules.Claim{Epoch: epoch, Expected: expected}, Deadline: time.Now().Add(time.Minute), LeaderEpoch: 3,
	}
}

// fenced appends for a coordinator, which has to succeed, and returns the outcome to
// come.
func fenced(t testing.TB, p *Partition, batch []byte, epoch cluster.CoordinatorEpoch, expected int64) *outcome {
	t.Helper()
	o := newOutcome()
	a := claimed(batch, epoch, expected)
	_, a.LeaderEpoch = p.Role()
	if err := p.Append(a, o); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestFencedAppendIsJudged(t *testing.T) {
	t.Parallel()
	const refused = errorsv1.Reason_REASON_COORDINATOR_FENCED
	for _, test := range []struct {
		name     string
		epoch    cluster.CoordinatorEpoch
		expected int64
		want     errorsv1.Reason
		says     string
	}{
		{"at the log end", 5, 2, 0, ""},
		{"the same fence again", 5, rules.AnyOffset, 0, ""},
		{"a later fence", 9, rules.AnyOffset, 0, ""},
		{"a lower epoch", 4, 2, refused, "epoch 5 has appended"},
		{"a lower epoch's fence", 4, rules.AnyOffset, refused, "epoch 5 has appended"},
		{"a higher epoch without a fence", 6, 2, refused, "append its fence"},
		{"below the log end", 5, 1, refused, "ends at offset 2"},
		{"above the log end", 5, 3, refused, "ends at offset 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			log := &memoryLog{}
			p := openInternal(t, log)
			if r := fenced(t, p, plain(t, "fence"), 5, rules.AnyOffset).result(t); r.BaseOffset != 0 || r.HighWatermark != 1 || r.LeaderEpoch != 3 {
				t.Fatalf("the fence: %+v", r)
			}
			fenced(t, p, plain(t, "a"), 5, 1).result(t)
			o := newOutcome()
			err := p.Append(claimed(plain(t, "b", "c"), test.epoch, test.expected), o)
			if test.want != 0 {
				if e := wantReason(t, err, test.want); !strings.Contains(e.Message, test.says) || !strings.Contains(e.Message, "partition 3 of topic \""+offsetsTopic+"\"") {
					t.Errorf("message %q does not name the partition and %q", e.Message, test.says)
				}
				if len(log.batches) != 2 || p.CoordinatorEpoch() != 5 {
					t.Errorf("%d batches, coordinator epoch %d after a refusal", len(log.batches), p.CoordinatorEpoch())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r := o.result(t); r.BaseOffset != 2 || r.HighWatermark != 4 {
				t.Errorf("appended as %+v", r)
			}
			// The epoch is in the transaction of the batch.
			if last := log.last(); len(last.Batches) != 1 || last.State.CoordinatorEpoch != int64(test.epoch) || last.State.LogEnd != 4 {
				t.Errorf("written are %d batches with %+v", len(last.Batches), last.State)
			}
		})
	}
}

// What is refused raises no epoch, whatever it is refused for.
func TestRefusedFenceFencesNobody(t *testing.T) {
	t.Parallel()
	corrupt := func(t *testing.T) []byte { return change(plain(t, "x"), func(b []byte) { b[len(b)-1]++ }) }
	for _, test := range []struct {
		name   string
		append func(*testing.T) Append
		change func(*testing.T, *memoryLog, *Partition)
		want   errorsv1.Reason
	}{
		{"a damaged batch", func(t *testing.T) Append { return claimed(corrupt(t), 9, rules.AnyOffset) }, nil, errorsv1.Reason_REASON_CORRUPT_BATCH},
		{"too large", func(t *testing.T) Append { return claimed(plain(t, strings.Repeat("x", 2000)), 9, rules.AnyOffset) }, nil, errorsv1.Reason_REASON_RECORD_TOO_LARGE},
		{"a record without a key", func(t *testing.T) Append {
			var b recordbatch.Builder
			if err := b.Append(nil, []byte("x"), nil, 1000); err != nil {
				t.Fatal(err)
			}
			batch, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
			if err != nil {
				t.Fatal(err)
			}
			return claimed(batch, 9, rules.AnyOffset)
		}, nil, errorsv1.Reason_REASON_KEY_REQUIRED},
		{"a producer id", func(t *testing.T) Append { return claimed(idempotent(t, 7, 0, 0, "x"), 9, rules.AnyOffset) }, nil, errorsv1.Reason_REASON_UNSUPPORTED_BATCH},
		{"an earlier leader epoch", func(t *testing.T) Append {
			a := claimed(plain(t, "x"), 9, rules.AnyOffset)
			a.LeaderEpoch = 2
			return a
		}, nil, errorsv1.Reason_REASON_FENCED_LEADER_EPOCH},
		{"a later leader epoch", func(t *testing.T) Append {
			a := claimed(plain(t, "x"), 9, rules.AnyOffset)
			a.LeaderEpoch = 4
			return a
		}, nil, errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH},
		{"a full disk", func(t *testing.T) Append { return claimed(plain(t, "x"), 9, rules.AnyOffset) },
			func(_ *testing.T, log *memoryLog, _ *Partition) { log.full = errors.New("full") }, errorsv1.Reason_REASON_DISK_FULL},
		{"below min ISR, though acks=leader was asked for", func(t *testing.T) Append {
			a := claimed(plain(t, "x"), 9, rules.AnyOffset)
			a.Acks = leader
			return a
		}, func(t *testing.T, _ *memoryLog, p *Partition) {
			shrunk := led(3)
			shrunk.PartitionEpoch, shrunk.Replicas = 4, []cluster.NodeID{self, 2, 3}
			apply(t, p, shrunk)
		}, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS},
		{"a node that follows", func(t *testing.T) Append { return claimed(plain(t, "x"), 9, rules.AnyOffset) },
			func(t *testing.T, _ *memoryLog, p *Partition) {
				other := led(3)
				other.PartitionEpoch, other.Leader, other.Replicas = 4, 2, []cluster.NodeID{self, 2}
				apply(t, p, other)
			}, errorsv1.Reason_REASON_NOT_LEADER},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			log := &memoryLog{}
			p := openInternal(t, log, rules.MinInsyncReplicas, "2", rules.MaxMessageBytes, "1000", rules.CleanupPolicy, rules.CleanupCompact)
			fenced(t, p, plain(t, "fence"), 5, rules.AnyOffset).result(t)
			if test.change != nil {
				test.change(t, log, p)
			}
			wantReason(t, p.Append(test.append(t), newOutcome()), test.want)
			if len(log.batches) != 1 || p.CoordinatorEpoch() != 5 {
				t.Errorf("%d batches, coordinator epoch %d after a refusal", len(log.batches), p.CoordinatorEpoch())
			}
		})
	}
}

// Only coordinators write internal topics, and nothing else.
func TestWhoWritesWhat(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	p := openInternal(t, log)
	wantReason(t, p.Append(request(plain(t, "a"), all), newOutcome()), errorsv1.Reason_REASON_INTERNAL_TOPIC)
	_, orders := open(t, log)
	a := claimed(plain(t, "a"), 1, rules.AnyOffset)
	a.LeaderEpoch = 0
	wantReason(t, orders.Append(a, newOutcome()), errorsv1.Reason_REASON_INVALID_REQUEST)
	_, err := orders.BeginCheck(rules.Claim{Epoch: 1})
	wantReason(t, err, errorsv1.Reason_REASON_INVALID_REQUEST)
	if len(log.appends) > 0 {
		t.Error("something was appended")
	}
}

// A copy of an append that the network has kept finds that the log has gone on, also
// while the first is on its way to the disk, and in whatever order they come.
func TestDelayedCopyIsRefused(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	p := openInternal(t, log)
	first := fenced(t, p, plain(t, "fence"), 5, rules.AnyOffset)
	second := fenced(t, p, plain(t, "a"), 5, 1)
	copyOf := func(what string) {
		t.Helper()
		wantReason(t, p.Append(claimed(plain(t, "a"), 5, 1), newOutcome()), errorsv1.Reason_REASON_COORDINATOR_FENCED)
		if len(log.batches) != 2 {
			t.Fatalf("%s: %d batches", what, len(log.batches))
		}
	}
	copyOf("queued")
	log.commit(2, nil)
	first.result(t)
	if r := second.result(t); r.BaseOffset != 1 || r.HighWatermark != 2 {
		t.Errorf("appended as %+v", r)
	}
	copyOf("written")
	// What was on its way when its coordinator fenced anew comes too late.
	log.hold = false
	fenced(t, p, plain(t, "fence"), 5, rules.AnyOffset).result(t)
	wantReason(t, p.Append(claimed(plain(t, "late"), 5, 2), newOutcome()), errorsv1.Reason_REASON_COORDINATOR_FENCED)
}

// Of copies that come at once one is appended: the claim is compared under the lock that
// assigns the offset.
func TestCopiesAtOnce(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	p := openInternal(t, log)
	fenced(t, p, plain(t, "fence"), 5, rules.AnyOffset).result(t)
	value := strings.Repeat("x", 200_000) // What is read without the lock takes a while.
	for expected := int64(1); expected <= 20; expected++ {
		var copies sync.WaitGroup
		var appended atomic.Int64
		begin := make(chan struct{})
		for range 4 {
			a := claimed(plain(t, value), 5, expected)
			copies.Go(func() {
				<-begin
				if p.Append(a, newOutcome()) == nil {
					appended.Add(1)
				}
			})
		}
		close(begin)
		copies.Wait()
		if n := appended.Load(); n != 1 {
			t.Fatalf("%d of 4 copies were appended at %d", n, expected)
		}
	}
}

// What has been appended and is not acknowledged by all has an unknown outcome.
func TestFencedAppendOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	two := led(3)
	two.PartitionEpoch, two.Replicas = 4, []cluster.NodeID{self, 2}
	two.ISR = two.Replicas
	for _, test := range []struct {
		name    string
		happens func(*testing.T, *Partition)
		want    errorsv1.Reason
	}{
		{"another node leads", func(t *testing.T, p *Partition) {
			next := two
			next.Leader, next.LeaderEpoch, next.PartitionEpoch = 2, 4, 5
			apply(t, p, next)
		}, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND},
		{"the ISR has become too small", func(t *testing.T, p *Partition) {
			next := two
			next.ISR, next.PartitionEpoch = []cluster.NodeID{self}, 5
			apply(t, p, next)
			p.expire(time.Now().Add(time.Hour))
		}, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND},
		{"a follower is silent", func(_ *testing.T, p *Partition) { p.expire(time.Now().Add(time.Hour)) }, errorsv1.Reason_REASON_TIMED_OUT},
		{"the node stops", func(_ *testing.T, p *Partition) { p.Close() }, errorsv1.Reason_REASON_TIMED_OUT},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := openInternal(t, &memoryLog{}, rules.MinInsyncReplicas, "2")
			apply(t, p, two)
			o := fenced(t, p, plain(t, "fence"), 5, rules.AnyOffset)
			if o.done() {
				t.Fatal("acknowledged though a member of the ISR has nothing")
			}
			test.happens(t, p)
			wantReason(t, o.result(t).Err, test.want)
			if p.CoordinatorEpoch() != 5 {
				t.Errorf("coordinator epoch %d: it was appended", p.CoordinatorEpoch())
			}
		})
	}
}

// coordinatedReplicas are replicas of an internal topic.
func coordinatedReplicas(t *testing.T, n int, settings ...string) *replicas {
	t.Helper()
	s := replicated(t, n, append([]string{rules.MinInsyncReplicas, "1", rules.CleanupPolicy, rules.CleanupCompact}, settings...)...)
	s.topic.Name = offsetsTopic
	return s
}

// settleFenced waits until a member has written all that it has queued.
func (s *replicas) settleFenced(m *member) {
	s.Helper()
	m.p.appending.Lock()
	defer m.p.appending.Unlock()
	if err := m.p.settle(s.Context()); err != nil {
		s.Fatal(err)
	}
}

func (s *replicas) wantEpoch(what string, want cluster.CoordinatorEpoch, members ...*member) {
	s.Helper()
	for _, m := range members {
		if got := m.p.CoordinatorEpoch(); got != want {
			s.Errorf("%s: node %d has coordinator epoch %d, want %d", what, m.id, got, want)
		}
	}
}

// refuses checks that a coordinator cannot append at a member, whatever it expects.
func (s *replicas) refuses(m *member, epoch cluster.CoordinatorEpoch) {
	s.Helper()
	for _, expected := range []int64{rules.AnyOffset, m.p.ends().next} {
		a := claimed(plain(s, "zombie"), epoch, expected)
		_, a.LeaderEpoch = m.p.Role()
		wantReason(s, m.p.Append(a, newOutcome()), errorsv1.Reason_REASON_COORDINATOR_FENCED)
	}
}

// A coordinator that was fenced is refused by the next leader too: when the fence was
// acknowledged, when it only was appended just before the failover, and when the next
// leader's process has been started since.
func TestFenceSurvivesFailover(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		acknowledged, restarted := i&1 > 0, i&2 > 0
		t.Run(fmt.Sprintf("acknowledged=%t restarted=%t", acknowledged, restarted), func(t *testing.T) {
			t.Parallel()
			s := coordinatedReplicas(t, 3)
			one, two, three := s.members[1], s.members[2], s.members[3]
			fenced(t, one.p, plain(t, "fence 4"), 4, rules.AnyOffset)
			s.settleFenced(one)
			s.catchUp(one, two)
			s.catchUp(one, three)
			o := fenced(t, one.p, plain(t, "fence 5"), 5, rules.AnyOffset)
			s.settleFenced(one)
			_, in, batches := s.message(one, two)
			s.receive(two, in, batches)
			s.wantEpoch("the fence is written", 5, one, two)
			s.wantEpoch("nobody has told it", 4, three)
			if acknowledged {
				s.catchUp(one, two)
				s.catchUp(one, three)
				if r := o.result(t); r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			if restarted {
				s.restart(two)
			}
			s.elect(two, []cluster.NodeID{2, 3}, two, three)
			s.refuses(two, 4)
			fenced(t, two.p, plain(t, "a"), 5, two.p.ends().next)
			s.settleFenced(two)
			s.catchUp(two, three)
			s.wantEpoch("from the next leader", 5, three)
			apply(t, one.p, s.agreed)
			s.catchUp(two, one)
			s.same(0, one, two, three)
		})
	}
}

// A fence that nobody but a superseded leader had goes with its truncation. The epoch
// stays: it was issued, whoever has a lower one is superseded.
func TestTruncationKeepsCoordinatorEpoch(t *testing.T) {
	t.Parallel()
	for _, restarted := range []bool{false, true} {
		s := coordinatedReplicas(t, 2)
		one, two := s.members[1], s.members[2]
		fenced(t, one.p, plain(t, "fence 4"), 4, rules.AnyOffset)
		s.settleFenced(one)
		s.catchUp(one, two)
		fenced(t, one.p, plain(t, "fence 6"), 6, rules.AnyOffset)
		s.settleFenced(one)
		s.elect(two, []cluster.NodeID{2}, two)
		fenced(t, two.p, plain(t, "fence 5"), 5, rules.AnyOffset)
		s.settleFenced(two)
		apply(t, one.p, s.agreed)
		if outcomes := s.catchUp(two, one); !slices.Contains(outcomes, rules.ReceiveTruncates) {
			t.Fatalf("no truncation: %v", outcomes)
		}
		s.same(0, one, two)
		s.wantEpoch("after the truncation", 6, one)
		if restarted {
			s.restart(one)
		}
		s.elect(one, []cluster.NodeID{1, 2}, one, two)
		s.wantEpoch("leading again", 6, one)
		s.refuses(one, 5)
		fenced(t, one.p, plain(t, "fence 6"), 6, rules.AnyOffset)
		s.settleFenced(one)
		s.catchUp(one, two)
		s.wantEpoch("told", 6, two)
	}
}

// A follower that has nothing gets the epoch with whatever is left of the log: after
// compaction, with nothing of the coordinator's, and with no batch at all.
func TestEmptyFollowerLearnsCoordinatorEpoch(t *testing.T) {
	t.Parallel()
	for _, left := range []string{"all", "compacted", "nothing"} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s restarted=%t", left, restarted), func(t *testing.T) {
				t.Parallel()
				s := coordinatedReplicas(t, 2)
				one, two := s.members[1], s.members[2]
				s.agree(func(p *cluster.Partition) { p.ISR = []cluster.NodeID{1} }, one, two)
				fenced(t, one.p, plain(t, "fence"), 5, rules.AnyOffset)
				for range 6 {
					fenced(t, one.p, plain(t, "fence"), 5, one.p.ends().next)
					s.elect(one, []cluster.NodeID{1}, one, two)
				}
				s.settleFenced(one)
				switch left {
				case "compacted":
					if done, err := one.p.Compact(t.Context()); err != nil || !done.Progress {
						t.Fatalf("compacted %+v, %v", done, err)
					}
				case "nothing":
					if _, err := one.p.DeleteRecords(t.Context(), one.p.ends().logEnd, rules.NoEpoch); err != nil {
						t.Fatal(err)
					}
				}
				s.catchUp(one, two)
				if n := len(s.batches(two, two.p.ends().start)); left == "nothing" && n > 0 || left != "nothing" && n == 0 {
					t.Fatalf("it has %d batches", n)
				}
				if restarted {
					s.restart(two)
				}
				s.elect(two, []cluster.NodeID{2}, one, two)
				s.wantEpoch("it leads", 5, two)
				s.refuses(two, 4)
			})
		}
	}
}

// A check asks the followers, and waits for what they say of this leadership.
func TestCheckFence(t *testing.T) {
	t.Parallel()
	s := coordinatedReplicas(t, 3, rules.MinInsyncReplicas, "2")
	one, two, three := s.members[1], s.members[2], s.members[3]
	fenced(t, one.p, plain(t, "fence"), 5, rules.AnyOffset)
	s.settleFenced(one)
	s.catchUp(one, two)
	s.catchUp(one, three)

	ready := NewReady()
	sent := Sent{LogEnd: 1, HighWatermark: 1}
	if !one.p.AwaitFollower(ready, 4, sent) {
		t.Fatal("there is something to tell")
	}
	claim := rules.Claim{Epoch: 5, Expected: 1}
	begin := func() *FenceCheck {
		t.Helper()
		c, err := one.p.BeginCheck(claim)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	wait := func(c *FenceCheck) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return c.Wait(ctx)
	}
	done := func(c *FenceCheck) bool { return len(c.done) > 0 }
	c := begin()
	<-ready.C()
	if got := ready.Take(nil); !slices.Equal(got, []int{4}) {
		t.Fatalf("told %v", got)
	}
	if one.p.AwaitFollower(ready, 4, sent) {
		t.Fatal("a probe is not to be told")
	}
	// answers takes what the leader says to a follower, and states its position.
	answers := func(m *member) {
		t.Helper()
		_, in, _ := s.message(one, m)
		at, ok := m.p.Position(m.epoch)
		if !ok {
			t.Fatal("no position")
		}
		at.Probe = in.Probe
		one.p.Fetched(at, s.now)
	}
	stale, _ := three.p.Position(three.epoch)
	answers(two)
	if done(c) {
		t.Fatal("confirmed before node 3 has said anything")
	}
	later := begin()
	one.p.Fetched(stale, s.now)
	if done(c) {
		t.Fatal("confirmed by a position that was stated before")
	}
	answers(three)
	if !done(c) || done(later) {
		t.Fatal("the first check is not confirmed, or the second one is, which node 2 knows nothing of")
	}
	answers(two)
	if err := errors.Join(wait(c), wait(later)); err != nil {
		t.Fatal(err)
	}
	if one.p.news.checks != nil {
		t.Error("a check is left")
	}

	c = begin()
	fenced(t, one.p, plain(t, "fence"), 6, rules.AnyOffset)
	answers(two)
	wantReason(t, wait(c), errorsv1.Reason_REASON_COORDINATOR_FENCED)
	_, err := one.p.BeginCheck(claim)
	wantReason(t, err, errorsv1.Reason_REASON_COORDINATOR_FENCED)
	claim = rules.Claim{Epoch: 6, Expected: 2}
	s.settleFenced(one)
	c = begin()
	answers(two)
	answers(three)
	if done(c) {
		t.Fatal("confirmed though the high watermark does not cover it")
	}
	s.catchUp(one, two)
	s.catchUp(one, three)
	if err := wait(c); err != nil {
		t.Fatal(err)
	}

	// It ends with the leadership, though the same node leads on, and with the node.
	c = begin()
	s.elect(one, []cluster.NodeID{1, 2, 3}, one, two, three)
	wantReason(t, wait(c), errorsv1.Reason_REASON_FENCED_LEADER_EPOCH)
	c = begin()
	s.agree(func(p *cluster.Partition) { p.ISR = []cluster.NodeID{1} }, one, two, three)
	_, err = one.p.BeginCheck(claim)
	wantReason(t, err, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS)
	s.elect(two, []cluster.NodeID{2, 3}, one, two, three)
	wantReason(t, wait(c), errorsv1.Reason_REASON_NOT_LEADER)
	_, err = one.p.BeginCheck(claim)
	wantReason(t, err, errorsv1.Reason_REASON_NOT_LEADER)
}

// The only replica answers at once, and a check that nobody answers ends with its
// context.
func TestCheckFenceIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := openInternal(t, &memoryLog{state: store.State{LogEnd: 4, HighWatermark: 4, CoordinatorEpoch: 5, Epochs: []store.EpochStart{{Epoch: 0, StartOffset: 0}}}})
		claim := rules.Claim{Epoch: 5, Expected: 4}
		if err := p.CheckFence(t.Context(), claim); err != nil {
			t.Fatal(err)
		}
		two := led(3)
		two.PartitionEpoch, two.Replicas = 4, []cluster.NodeID{self, 2}
		two.ISR = two.Replicas
		apply(t, p, two)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		wantReason(t, p.CheckFence(ctx, claim), errorsv1.Reason_REASON_TIMED_OUT)
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %s", took)
		}
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.CheckFence(canceled, claim); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		c, err := p.BeginCheck(claim)
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		wantReason(t, c.Wait(t.Context()), errorsv1.Reason_REASON_DRAINING)
		if p.news.checks != nil {
			t.Error("a check is left")
		}
	})
}

// Compaction does not pass the high watermark, and keeps the newest record of each key
// below it, that of the fence among them: what lies above may be cut.
func TestCompactionKeepsTheFence(t *testing.T) {
	t.Parallel()
	s := coordinatedReplicas(t, 2, rules.Durability, rules.DurabilitySynced, rules.MinInsyncReplicas, "2")
	one, two := s.members[1], s.members[2]
	values := func(m *member) (out []string) {
		t.Helper()
		for _, b := range s.batches(m, 0) {
			for r, err := range recordbatch.Records(b, recordbatch.Limits{}) {
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, fmt.Sprintf("%d:%s=%s", r.Offset, r.Key, r.Value))
			}
		}
		return out
	}
	pair := func(key, value string) []byte {
		var b recordbatch.Builder
		if err := b.Append([]byte(key), []byte(value), nil, 1000); err != nil {
			t.Fatal(err)
		}
		batch, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
		if err != nil {
			t.Fatal(err)
		}
		return batch
	}
	add := func(epoch cluster.CoordinatorEpoch, expected int64, key, value string) {
		t.Helper()
		fenced(t, one.p, pair(key, value), epoch, expected)
		s.settleFenced(one)
	}
	add(4, rules.AnyOffset, "fence", "4")
	add(4, 1, "group", "a")
	add(5, rules.AnyOffset, "fence", "5")
	add(5, 3, "group", "b")
	s.catchUp(one, two)
	// Nobody but the leader has the rest.
	add(6, rules.AnyOffset, "fence", "6")
	add(6, 5, "group", "c")
	if done, err := one.p.Compact(t.Context()); err != nil || !done.Progress {
		t.Fatalf("compacted %+v, %v", done, err)
	}
	if got, want := values(one), []string{"2:fence=5", "3:group=b", "4:fence=6", "5:group=c"}; !slices.Equal(got, want) {
		t.Fatalf("left are %v, want %v", got, want)
	}
	// The other leads, and what it did not have is cut: what stands below is whole.
	s.elect(two, []cluster.NodeID{1, 2}, one, two)
	fenced(t, two.p, pair("fence", "7"), 7, rules.AnyOffset)
	s.settleFenced(two)
	s.catchUp(two, one)
	s.catchUp(two, one)
	if got, want := values(one), []string{"2:fence=5", "3:group=b", "4:fence=7"}; !slices.Equal(got, want) {
		t.Errorf("after the failover there are %v, want %v", got, want)
	}
	for _, m := range []*member{one, two} {
		if _, err := m.p.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := values(m), []string{"3:group=b", "4:fence=7"}; m.p.HighWatermark() != 5 || !slices.Equal(got, want) {
			t.Errorf("below %d node %d has %v, want %v", m.p.HighWatermark(), m.id, got, want)
		}
		s.restart(m)
		s.wantEpoch("compacted and started again", 7, m)
	}
}
