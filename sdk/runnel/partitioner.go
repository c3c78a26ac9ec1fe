package runnel

import (
	"math/rand/v2"
	"sync/atomic"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// Partitioner chooses the partition of a record that names none. The zero value
// is [Sticky].
type Partitioner struct {
	roundRobin bool
	custom     func(topic string, key []byte, partitions int) int
}

// Sticky sends a record with a key to partition (murmur2(key) & 0x7fffffff) mod
// the number of partitions, as Kafka's clients do, and records without a key to
// one random partition until a batch's worth of bytes went there, then to
// another (KIP-794). A key that is empty but not nil counts as a key.
func Sticky() Partitioner { return Partitioner{} }

// RoundRobin treats records with a key as [Sticky] does and deals records
// without one out evenly, one by one, which makes for small batches.
func RoundRobin() Partitioner { return Partitioner{roundRobin: true} }

// PartitionerFunc lets choose pick the partition, from 0 to partitions-1; any
// other answer fails the Send. The function is called concurrently when Send
// is, and must not keep the key.
func PartitionerFunc(choose func(topic string, key []byte, partitions int) int) Partitioner {
	return Partitioner{custom: choose}
}

// PartitionForKey returns the partition to which [Sticky] and [RoundRobin] send
// a record with that key in a topic of so many partitions.
func PartitionForKey(key []byte, partitions int) int32 {
	return cluster.PartitionForKey(key, partitions)
}

// spread is where records of one topic without a key go. Concurrent calls of
// Send may disagree about the moment of a switch; that costs evenness of a
// record or two, and no lock.
type spread struct {
	// current is the sticky partition, or counts the records dealt out.
	current atomic.Uint32
	// bytes went to the sticky partition since the last switch.
	bytes atomic.Int64
}

// sent notes that size bytes went to the sticky partition, and turns to another
// of the partitions after limit bytes.
func (s *spread) sent(size, limit int64, queues []*partitionQueue) {
	if len(queues) < 2 || s.bytes.Add(size) < limit {
		return
	}
	s.bytes.Store(0)
	s.turn(queues)
}

// turn chooses another of at least two partitions, one that has a leader if
// there are any.
func (s *spread) turn(queues []*partitionQueue) {
	last := int(s.current.Load())
	start := rand.IntN(len(queues) - 1)
	if start >= last {
		start++
	}
	for i := range queues {
		next := (start + i) % len(queues)
		if next != last && queues[next].led.Load() {
			s.current.Store(uint32(next))
			return
		}
	}
	if !queues[last].led.Load() {
		s.current.Store(uint32(start))
	}
}
