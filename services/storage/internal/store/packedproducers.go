package store

import "encoding/binary"

// PackedProducers is a list of producers in a fifth of their space: a node has one for
// each partition that nobody writes to any more. The empty string is the empty list. It
// is for memory only, and not what the disk has.
type PackedProducers string

// PackProducers packs a list.
func PackProducers(list []Producer) PackedProducers {
	var b []byte
	for i := range list {
		p := &list[i]
		b = binary.AppendVarint(b, p.ID)
		b = binary.AppendVarint(b, int64(p.Epoch))
		b = binary.AppendVarint(b, p.LastTimestamp)
		b = binary.AppendUvarint(b, uint64(len(p.Batches)))
		// Batches follow each other more often than not.
		var last ProducerBatch
		for _, batch := range p.Batches {
			b = binary.AppendVarint(b, int64(batch.BaseSequence)-int64(last.LastSequence))
			b = binary.AppendVarint(b, int64(batch.LastSequence)-int64(batch.BaseSequence))
			b = binary.AppendVarint(b, batch.BaseOffset-last.BaseOffset)
			b = binary.AppendVarint(b, batch.AppendTime-last.AppendTime)
			last = batch
		}
	}
	return PackedProducers(b)
}

// Unpack returns the list.
func (p PackedProducers) Unpack() []Producer {
	b := []byte(p)
	next := func() int64 {
		value, n := binary.Varint(b)
		b = b[n:]
		return value
	}
	var list []Producer
	for len(b) > 0 {
		producer := Producer{ID: next(), Epoch: int16(next()), LastTimestamp: next()}
		count, n := binary.Uvarint(b)
		b = b[n:]
		producer.Batches = make([]ProducerBatch, count)
		var last ProducerBatch
		for i := range producer.Batches {
			last.BaseSequence = int32(int64(last.LastSequence) + next())
			last.LastSequence = int32(int64(last.BaseSequence) + next())
			last.BaseOffset += next()
			last.AppendTime += next()
			producer.Batches[i] = last
		}
		list = append(list, producer)
	}
	return list
}
