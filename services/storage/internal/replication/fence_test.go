package replication

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// fence appends a coordinator's fence to partitions.
func (m *mesh) fence(id cluster.NodeID, epoch cluster.CoordinatorEpoch, indexes ...int32) {
	m.t.Helper()
	out := make(result, len(indexes))
	for _, i := range indexes {
		if err := m.partition(id, i).Append(partition.Append{
			Batch: m.batch("fence"), Claim: &rules.Claim{Epoch: epoch, Expected: rules.AnyOffset}, Deadline: time.Now().Add(time.Hour), LeaderEpoch: rules.NoEpoch,
		}, out); err != nil {
			m.t.Fatal(err)
		}
	}
	for range indexes {
		m.acknowledged(out)
	}
}

// check asks a node whether a claim holds, and waits for so long.
func (m *mesh) check(id cluster.NodeID, index int32, claim rules.Claim, within time.Duration) error {
	ctx, cancel := context.WithTimeout(m.t.Context(), within)
	defer cancel()
	return m.partition(id, index).CheckFence(ctx, claim)
}

func (m *mesh) wantCheck(id cluster.NodeID, claim rules.Claim, want errorsv1.Reason) {
	m.t.Helper()
	if err := m.check(id, 0, claim, 5*time.Second); rpcerr.ReasonOf(err) != want {
		m.t.Errorf("node %d answers %v to %+v, want %s", id, err, claim, want)
	}
}

func indexes(n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(i)
	}
	return out
}

// Followers that have nothing to fetch are asked about many partitions with few
// messages, and at once. Before and after all is silent.
func TestFencesAreCheckedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions = 1000
		m := startTopic(t, DefaultConfig(), "__consumer_offsets", partitions, 1, 2, 3)
		m.fence(1, 5, indexes(partitions)...)
		time.Sleep(time.Minute)
		synctest.Wait()
		before := m.network.messages()
		began := time.Now()
		checks := make([]*partition.FenceCheck, partitions)
		for i := range checks {
			c, err := m.partition(1, int32(i)).BeginCheck(rules.Claim{Epoch: 5, Expected: 1})
			if err != nil {
				t.Fatal(err)
			}
			checks[i] = c
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, c := range checks {
			if err := c.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("took %s of the bubble's time: somebody waits", took)
		}
		synctest.Wait()
		asked := m.network.messages() - before
		t.Logf("%d messages for %d partitions", asked, partitions)
		if asked > partitions/2 {
			t.Errorf("%d messages for %d partitions", asked, partitions)
		}
		before = m.network.messages()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if after := m.network.messages(); after != before {
			t.Errorf("%d messages after all is told", after-before)
		}
	})
}

// A leader that was superseded confirms nothing, whether its streams stand or not: as
// soon as one member of the ISR follows another, though the rest do not know of that.
func TestSupersededLeaderConfirmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTopic(t, DefaultConfig(), "__consumer_offsets", 1, 1, 2, 3)
		m.fence(1, 5, 0)
		old := rules.Claim{Epoch: 5, Expected: 1}
		m.wantCheck(1, old, 0)
		m.choose(0, 2)
		m.publishTo(m.nodes[2])
		m.wantCheck(1, old, errorsv1.Reason_REASON_TIMED_OUT)
		m.publishTo(m.nodes[3])
		m.agree(func() {
			p := m.image.Topics[0].Partitions[0]
			p.Isr = []int32{2, 3}
			p.PartitionEpoch++
		})
		m.publishTo(m.nodes[2])
		m.publishTo(m.nodes[3])
		m.fence(2, 6, 0)
		m.wantCheck(1, old, errorsv1.Reason_REASON_TIMED_OUT)
		m.network.setCut(address(1), true)
		m.wantCheck(1, old, errorsv1.Reason_REASON_TIMED_OUT)
		m.wantCheck(2, old, errorsv1.Reason_REASON_COORDINATOR_FENCED)
		m.wantCheck(2, rules.Claim{Epoch: 6, Expected: 2}, 0)
		m.network.setCut(address(1), false)
		m.publishTo(m.nodes[1])
		m.wantCheck(1, old, errorsv1.Reason_REASON_NOT_LEADER)
		m.converged(0, "0/0:fence", "1/1:fence")
		m.elect(0, 1)
		synctest.Wait()
		m.wantCheck(1, old, errorsv1.Reason_REASON_COORDINATOR_FENCED)
		m.wantCheck(1, rules.Claim{Epoch: 6, Expected: 2}, 0)
	})
}

// A probe that was lost with its stream is told again on the next.
func TestProbeOutlivesItsStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTopic(t, DefaultConfig(), "__consumer_offsets", 1, 1, 2, 3)
		m.fence(1, 5, 0)
		m.network.setCut(address(1), true)
		confirmed := make(chan error, 1)
		go func() { confirmed <- m.check(1, 0, rules.Claim{Epoch: 5, Expected: 1}, time.Minute) }()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		select {
		case err := <-confirmed:
			t.Fatalf("answered with %v while nobody could be asked", err)
		default:
		}
		m.network.setCut(address(1), false)
		if err := <-confirmed; err != nil {
			t.Fatal(err)
		}
		m.wantCheck(1, rules.Claim{Epoch: 5, Expected: 1}, 0)
	})
}

// A follower that is slow to write answers a probe all the same, and what it then
// writes is acknowledged: the high watermark is what a claim waits for, no more.
func TestProbeWhileFollowersWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTopic(t, DefaultConfig(), "__consumer_offsets", 1, 1, 2, 3)
		m.fence(1, 5, 0)
		m.log(2, 0).hold(true)
		out := make(result, 1)
		if err := m.partition(1, 0).Append(partition.Append{
			Batch: m.batch("a"), Claim: &rules.Claim{Epoch: 5, Expected: 1}, Deadline: time.Now().Add(time.Hour), LeaderEpoch: rules.NoEpoch,
		}, out); err != nil {
			t.Fatal(err)
		}
		m.wantCheck(1, rules.Claim{Epoch: 5, Expected: 2}, errorsv1.Reason_REASON_TIMED_OUT)
		if len(out) > 0 {
			t.Fatal("acknowledged before node 2 has it")
		}
		confirmed := make(chan error, 1)
		go func() { confirmed <- m.check(1, 0, rules.Claim{Epoch: 5, Expected: 2}, time.Minute) }()
		synctest.Wait()
		m.log(2, 0).hold(false)
		if err := <-confirmed; err != nil {
			t.Fatal(err)
		}
		m.acknowledged(out)
		m.converged(0, "0/0:fence", "0/1:a")
	})
}

// What a follower was asked in an earlier leader epoch says nothing of the present one,
// where numbers begin anew.
func TestProbesEndWithTheLeaderEpoch(t *testing.T) {
	id := ID{Topic: topicID}
	l := newLink(nil, 1)
	l.follow(id, nil, 4)
	f := l.followed[id]
	l.probed(f, rules.Replicated{LeaderEpoch: 4, Probe: 9})
	l.probed(f, rules.Replicated{LeaderEpoch: 4, Probe: 8})
	l.probed(f, rules.Replicated{LeaderEpoch: 5, Probe: 10})
	if f.probe != 9 {
		t.Errorf("asked %d", f.probe)
	}
	l.follow(id, nil, 4)
	if f.probe != 9 {
		t.Errorf("asked %d in the same epoch", f.probe)
	}
	l.follow(id, nil, 5)
	if f.probe != 0 || f.answered != 0 {
		t.Errorf("asked %d, answered %d in another epoch", f.probe, f.answered)
	}
}

// The coordinator epoch comes with the batches: whoever leads next refuses the
// coordinator of before.
func TestCoordinatorEpochTravels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTopic(t, DefaultConfig(), "__consumer_offsets", 1, 1, 2, 3)
		m.fence(1, 4, 0)
		m.fence(1, 5, 0)
		for _, id := range []cluster.NodeID{2, 3} {
			if got := m.log(id, 0).epoch(); got != 5 {
				t.Errorf("node %d has written coordinator epoch %d", id, got)
			}
			m.elect(0, id)
			err := m.partition(id, 0).Append(partition.Append{
				Batch: m.batch("zombie"), Claim: &rules.Claim{Epoch: 4, Expected: 2}, Deadline: time.Now().Add(time.Hour), LeaderEpoch: rules.NoEpoch,
			}, make(result, 1))
			if rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_COORDINATOR_FENCED {
				t.Errorf("node %d answers %v", id, err)
			}
		}
	})
}

// It comes, too, where no batch is left that it could come with.
func TestCoordinatorEpochTravelsWithoutBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTopic(t, DefaultConfig(), "__consumer_offsets", 1, 1, 2)
		m.network.setCut(address(1), true)
		m.setISR(0, 1)
		m.fence(1, 5, 0)
		if _, err := m.partition(1, 0).DeleteRecords(t.Context(), 1, rules.NoEpoch); err != nil {
			t.Fatal(err)
		}
		m.log(1, 0).removeBelow(1)
		m.network.setCut(address(1), false)
		m.converged(0)
		if end, epoch := m.partition(2, 0).LogEnd(), m.log(2, 0).epoch(); end != 1 || epoch != 5 {
			t.Errorf("node 2 ends at %d and has written coordinator epoch %d", end, epoch)
		}
	})
}

// epoch returns the coordinator epoch that is written.
func (l *memoryLog) epoch() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.CoordinatorEpoch
}
