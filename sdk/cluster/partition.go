package cluster

import "encoding/binary"

// OffsetsTopic is the topic in which coordinators keep consumer groups.
const OffsetsTopic = "__consumer_offsets"

// GroupPartition returns the partition of [OffsetsTopic] that a group belongs to,
// whose coordinator is the group's. It is not ok while there is no such topic.
func (i *Image) GroupPartition(group string) (topic *Topic, partition *Partition, ok bool) {
	topic, ok = i.byName[OffsetsTopic]
	if !ok || len(topic.Partitions) == 0 {
		return nil, nil, false
	}
	return topic, &topic.Partitions[PartitionForKey([]byte(group), len(topic.Partitions))], true
}

// PartitionForKey returns (murmur2(key) & 0x7fffffff) mod partitions, which is
// where Kafka's clients send a record with that key in a topic of so many
// partitions. There must be at least one.
func PartitionForKey(key []byte, partitions int) int32 {
	return int32(int(murmur2(key)&0x7fffffff) % partitions)
}

// murmur2 is Austin Appleby's 32-bit MurmurHash2 with the seed that Kafka uses.
func murmur2(data []byte) uint32 {
	const (
		seed  = 0x9747b28c
		mix   = 0x5bd1e995
		shift = 24
	)
	h := uint32(seed) ^ uint32(len(data))
	for ; len(data) >= 4; data = data[4:] {
		k := binary.LittleEndian.Uint32(data) * mix
		k ^= k >> shift
		h = h*mix ^ k*mix
	}
	switch len(data) {
	case 3:
		h ^= uint32(data[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(data[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(data[0])
		h *= mix
	}
	h ^= h >> 13
	h *= mix
	return h ^ h>>15
}
