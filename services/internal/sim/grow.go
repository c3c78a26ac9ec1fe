package sim

import (
	"math/rand/v2"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// growth gives partitions more replicas, in some of the seeds. Its numbers are its own,
// so that the other seeds are as they would be without it.
type growth struct {
	rng *rand.Rand
	// every is the mean time between additions, 0 for never.
	every time.Duration
}

func newGrowth(seed uint64) growth {
	g := growth{rng: rand.New(rand.NewPCG(seed, 0x6704))}
	if g.rng.IntN(4) == 0 {
		g.every = time.Second + time.Duration(g.rng.Int64N(int64(9*time.Second)))
	}
	return g
}

// grow adds a replica to a partition, and sees to the next time.
func (w *world) grow() {
	if w.calm {
		return
	}
	w.later(time.Duration(w.growth.rng.Int64N(int64(2*w.growth.every))), w.grow)
	i, preferred := w.growth.rng.IntN(len(w.topics)), w.growth.rng.IntN(2) == 0
	for _, c := range w.controllers {
		if c.up && c.leads {
			c.grow(i, preferred)
		}
	}
}

// grow gives a partition another replica, as the preferred leader if asked to.
func (c *controller) grow(index int, preferred bool) {
	c.job(func(done func()) {
		before := c.catalog.partitions[index]
		if before.mod == 0 {
			done()
			return
		}
		var loads []rules.NodeLoad
		for id, n := range c.leased() {
			if !n.Live || n.Leaving || int(id) > len(c.w.nodes) {
				continue
			}
			load := rules.NodeLoad{ID: id}
			if preferred && id == before.Replicas[0] {
				load.Leaders = 2
			}
			loads = append(loads, load)
		}
		grown := rules.GrowReplicas([]rules.PartitionState{before.PartitionState}, len(c.w.nodes), loads, 1)
		if len(grown) == 0 {
			done()
			return
		}
		c.w.counts.Grown++
		c.w.note(index, c.name, "adds a replica", replicaNumbers(grown[0].Replicas)...)
		c.commit([]comparison{{key: key{partitionKey, index}, mod: before.mod}}, []operation{{key: key{partitionKey, index}, value: grown[0]}},
			func(committed, bool) { c.refresh(done) }, done)
	})
}

func replicaNumbers(ids []cluster.NodeID) []int64 {
	numbers := make([]int64, len(ids))
	for i, id := range ids {
		numbers[i] = int64(id)
	}
	return numbers
}
