package replication

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	metapeerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
)

// grant makes the changes that are asked for, as the metadata service does, and
// leaves it to the test to publish them. The mutex is held.
func (m *mesh) grant(req *metapeerv1.AlterPartitionRequest) (*metapeerv1.AlterPartitionResponse, error) {
	res := &metapeerv1.AlterPartitionResponse{}
	for _, c := range req.GetChanges() {
		p := m.image.Topics[0].Partitions[c.GetPartition()]
		result := &metapeerv1.PartitionChangeResult{}
		if c.GetPartitionEpoch() == p.PartitionEpoch && c.GetLeaderEpoch() == p.LeaderEpoch {
			p.PartitionEpoch++
			p.Isr = nil
			for _, member := range c.GetIsr() {
				p.Isr = append(p.Isr, member.GetNodeId())
			}
			result.Accepted = true
		}
		result.Partition = &metadatav1.Partition{
			Partition: p.Partition, LeaderId: p.LeaderId, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch,
			Replicas: p.Replicas, Isr: p.Isr, LastLeaderId: -1,
		}
		res.Results = append(res.Results, result)
	}
	return res, nil
}

// valueOf returns what a counter or a gauge has come to.
func valueOf(t testing.TB, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}

func (m *mesh) isr(index int32) []int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.image.Topics[0].Partitions[index].Isr)
}

func (m *mesh) requests() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.asked)
}

// setAlter changes how the metadata service answers.
func (m *mesh) setAlter(alter func(*metapeerv1.AlterPartitionRequest) (*metapeerv1.AlterPartitionResponse, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alter = alter
}

// A follower that hangs leaves the ISR, so that others are acknowledged, and comes
// back when it has caught up.
func TestISRFollowsTheFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, 1, 1, 2, 3)
		m.setAlter(m.grant)
		m.fill(1, 0, all, 0, 3)
		m.log(3, 0).hold(true)
		r := m.append(1, 0, all, "3")
		time.Sleep(9 * time.Second)
		if len(r) > 0 {
			t.Error("acknowledged before the follower that hangs has left the ISR")
		}
		m.acknowledged(r)
		if isr := m.isr(0); !slices.Equal(isr, []int32{1, 2}) {
			t.Errorf("ISR %v, want 1 and 2", isr)
		}
		shrinks := valueOf(t, m.nodes[1].metrics.shrinks)
		before := m.requests()
		time.Sleep(time.Minute)
		if again := m.requests(); again != before || shrinks != 1 {
			t.Errorf("%d requests more while nothing has changed, %v shrinks counted", again-before, shrinks)
		}
		m.log(3, 0).hold(false)
		time.Sleep(2 * time.Second)
		if isr := m.isr(0); !slices.Equal(isr, []int32{1, 2, 3}) {
			t.Errorf("ISR %v, want all", isr)
		}
		if got := valueOf(t, m.nodes[1].metrics.expansions); got != 1 {
			t.Errorf("%v expansions counted", got)
		}
	})
}

// What is not answered is asked for again, with pauses, and the partitions of a node
// ask together.
func TestUnansweredProposals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, 1500, 1, 2)
		m.setAlter(func(*metapeerv1.AlterPartitionRequest) (*metapeerv1.AlterPartitionResponse, error) {
			return nil, errors.New("nobody knows")
		})
		m.network.setCut(address(1), true)
		for i := range int32(1500) {
			m.append(1, i, leader, "x")
		}
		time.Sleep(15 * time.Second)
		before := m.requests()
		time.Sleep(60 * time.Second)
		if n := m.requests() - before; n < 30 || n > 100 {
			t.Errorf("%d requests in a minute without answers", n)
		}
		m.setAlter(m.grant)
		before = m.requests()
		time.Sleep(3 * time.Second)
		if n := m.requests() - before; n != 2 {
			t.Errorf("%d requests for 1,500 partitions, want 2", n)
		}
		for _, req := range m.asked {
			if len(req.GetChanges()) > maxChanges {
				t.Errorf("%d changes in one request", len(req.GetChanges()))
			}
		}
		for i := range int32(1500) {
			if isr := m.isr(i); !slices.Equal(isr, []int32{1}) {
				t.Fatalf("ISR %v of partition %d, want 1", isr, i)
			}
		}
		if got := valueOf(t, m.nodes[1].metrics.proposals); got != 0 {
			t.Errorf("%v proposals wait still", got)
		}
	})
}

// A refusal is not asked again at once: what this node knows may be behind.
func TestRefusedProposalsRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, 1, 1, 2)
		m.fill(1, 0, all, 0, 3)
		m.setISR(0, 1)
		m.setAlter(func(req *metapeerv1.AlterPartitionRequest) (*metapeerv1.AlterPartitionResponse, error) {
			p := m.image.Topics[0].Partitions[0] // The mutex is held.
			return &metapeerv1.AlterPartitionResponse{Results: []*metapeerv1.PartitionChangeResult{{Partition: &metadatav1.Partition{
				LeaderId: 1, LeaderEpoch: p.LeaderEpoch, PartitionEpoch: p.PartitionEpoch, Replicas: p.Replicas, Isr: p.Isr, LastLeaderId: -1,
			}}}}, nil
		})
		for i := range 100 {
			m.append(1, 0, leader, "x")
			if i%10 == 0 {
				time.Sleep(100 * time.Millisecond)
			}
		}
		time.Sleep(10 * time.Second)
		if n := m.requests(); n < 5 || n > 15 {
			t.Errorf("%d requests in 11 s of refusals", n)
		}
		m.setAlter(m.grant)
		time.Sleep(2 * time.Second)
		if isr := m.isr(0); !slices.Equal(isr, []int32{1, 2}) {
			t.Errorf("ISR %v, want both", isr)
		}
	})
}

// The view may be faster than the answer: then there is another proposal by the time
// that the answer to the first comes, and it is sent, too.
func TestProposedBeforeTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, 1, 1, 2)
		m.fill(1, 0, all, 0, 3)
		first := true
		m.setAlter(func(req *metapeerv1.AlterPartitionRequest) (*metapeerv1.AlterPartitionResponse, error) {
			res, err := m.grant(req)
			if first {
				first = false
				// The node loses its lease for a moment, and is known to have it again.
				m.mu.Unlock()
				m.publish()
				m.setISR(0, 1)
				m.nodes[1].proposer.Consider(m.partition(1, 0), time.Now())
				m.mu.Lock()
			}
			return res, err
		})
		m.setISR(0, 1)
		m.append(1, 0, leader, "x")
		time.Sleep(100 * time.Millisecond)
		if isr := m.isr(0); !slices.Equal(isr, []int32{1, 2}) || m.requests() != 2 {
			t.Errorf("ISR %v after %d requests, want both after 2", isr, m.requests())
		}
	})
}

// A node that has lost its lease is not proposed.
func TestFencedFollowersAreNotProposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, 1, 1, 2)
		m.fill(1, 0, all, 0, 3)
		m.setAlter(m.grant)
		m.agree(func() { m.image.Nodes[1].Fenced = true })
		m.setISR(0, 1)
		m.fill(1, 0, leader, 3, 5)
		time.Sleep(5 * time.Second)
		if n := m.requests(); n != 0 {
			t.Errorf("%d requests", n)
		}
		if n := UnderReplicated(m.nodes[1].view, 1); n != 1 {
			t.Errorf("%d partitions are under-replicated, want 1", n)
		}
		m.agree(func() { m.image.Nodes[1].Fenced = false })
		m.publish()
		time.Sleep(2 * time.Second)
		if isr := m.isr(0); !slices.Equal(isr, []int32{1, 2}) {
			t.Errorf("ISR %v, want both", isr)
		}
	})
}
