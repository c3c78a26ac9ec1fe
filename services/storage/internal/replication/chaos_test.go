package replication

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// tried is an append and its outcome to come.
type tried struct {
	value   string
	outcome result
}

// TestChaos breaks streams, changes leaders and holds commits back, and looks
// whether the logs are the same in the end and have what was acknowledged by all,
// where it was said to be.
func TestChaos(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { chaos(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func chaos(t *testing.T, r *rand.Rand) {
	config := DefaultConfig()
	config.WindowBytes, config.StreamBytes = 600, 1000
	ids := []cluster.NodeID{1, 2, 3}
	m := startWith(t, config, 2, ids...)
	var all [2][]tried
	for step := range 120 {
		index := int32(r.IntN(2))
		id := ids[r.IntN(len(ids))]
		switch r.IntN(12) {
		case 0, 1, 2, 3, 4:
			// At whoever believes that it leads.
			value := fmt.Sprintf("%d-%d", step, id)
			if outcome := m.try(id, index, value); outcome != nil {
				all[index] = append(all[index], tried{value, outcome})
			}
		case 5:
			m.network.setCut(address(id), true)
		case 6, 7:
			m.network.setCut(address(id), false)
		case 8:
			m.elect(index, id)
		case 9:
			// Some learn of a leader later than others.
			m.choose(index, id)
			m.publishTo(m.nodes[ids[r.IntN(len(ids))]])
		case 10:
			log := m.log(id, index)
			log.hold(true)
			time.AfterFunc(time.Duration(r.IntN(300))*time.Millisecond, func() { log.hold(false) })
		case 11:
			time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
		}
		if r.IntN(3) == 0 {
			synctest.Wait()
		}
	}
	for _, id := range ids {
		m.network.setCut(address(id), false)
	}
	m.elect(0, ids[r.IntN(3)])
	m.elect(1, ids[r.IntN(3)])
	time.Sleep(10 * time.Second)
	synctest.Wait()
	for index := range int32(2) {
		leader := cluster.NodeID(m.image.Topics[0].Partitions[index].LeaderId)
		want := m.log(leader, index).content(t)
		for _, id := range ids {
			if got := m.log(id, index).content(t); !slices.Equal(got, want) {
				t.Errorf("partition %d: node %d has %v, its leader, node %d, has %v", index, id, got, leader, want)
			}
		}
		for _, a := range all[index] {
			select {
			case out := <-a.outcome:
				if out.Err == nil && !slices.ContainsFunc(want, func(s string) bool {
					return strings.HasSuffix(s, fmt.Sprintf("/%d:%s", out.BaseOffset, a.value))
				}) {
					t.Errorf("partition %d: %s was acknowledged at %d and is lost: %v", index, a.value, out.BaseOffset, want)
				}
			default:
			}
		}
		if hw := m.highWatermark(int(leader), index); hw != int64(len(want)) {
			t.Errorf("partition %d: the high watermark is %d after all have %d records", index, hw, len(want))
		}
	}
}

// try appends a record, to be acknowledged by all, at a node if it believes that it
// leads.
func (m *mesh) try(id cluster.NodeID, index int32, value string) result {
	m.t.Helper()
	var b recordbatch.Builder
	if err := b.Append(nil, []byte(value), nil, 1000); err != nil {
		m.t.Fatal(err)
	}
	batch, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		m.t.Fatal(err)
	}
	out := make(result, 1)
	if m.partition(id, index).Append(partition.Append{
		Batch: batch, Acks: all, Deadline: time.Now().Add(time.Hour), LeaderEpoch: rules.NoEpoch,
	}, out) != nil {
		return nil
	}
	return out
}
