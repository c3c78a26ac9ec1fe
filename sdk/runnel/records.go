package runnel

import (
	"iter"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// Records is what one poll returned: records of one or more partitions, those of
// one partition in the order of their offsets. It is a value that stays valid
// however long it is kept, and may be read any number of times.
type Records struct {
	chunks []chunk
	count  int
}

// Len returns the number of records.
func (r Records) Len() int { return r.count }

// All yields the records. It allocates nothing per record, except for headers.
func (r Records) All() iter.Seq[ConsumedRecord] {
	return func(yield func(ConsumedRecord) bool) {
		for i := range r.chunks {
			if !r.chunks[i].each(yield) {
				return
			}
		}
	}
}

// Slice returns the records as a slice, for programs that sort, keep or index
// them; [Records.All] is cheaper.
func (r Records) Slice() []ConsumedRecord {
	all := make([]ConsumedRecord, 0, r.count)
	for record := range r.All() {
		all = append(all, record)
	}
	return all
}

// ByPartition yields the records of each partition, in no particular order of
// partitions.
func (r Records) ByPartition() iter.Seq2[TopicPartition, Records] {
	return func(yield func(TopicPartition, Records) bool) {
		parts := make(map[TopicPartition]*Records)
		for _, c := range r.chunks {
			part := parts[c.partition]
			if part == nil {
				part = &Records{}
				parts[c.partition] = part
			}
			part.chunks = append(part.chunks, c)
			part.count += c.count
		}
		for tp, part := range parts {
			if !yield(tp, *part) {
				return
			}
		}
	}
}

// without returns the records but for those of certain chunks.
func (r Records) without(dropped func(*chunk) bool) Records {
	var left Records
	for i := range r.chunks {
		if c := &r.chunks[i]; !dropped(c) {
			left.chunks = append(left.chunks, *c)
			left.count += c.count
		}
	}
	return left
}

// chunk is the part of one batch that a consumer asked for. It was read through
// once when it arrived, so reading it again cannot fail.
type chunk struct {
	partition TopicPartition
	// batch is an uncompressed batch, or nil if records are set: those of a
	// compressed one, which is opened only once.
	batch   []byte
	records []recordbatch.Record
	// from and until bound the offsets; count is how many records lie within.
	from, until int64
	count       int
	leaderEpoch int32
	// tenure is that under which a member of a group has read the chunk; nil for
	// others.
	tenure *tenure
	// size is what the chunk counts in the consumer's memory, in bytes.
	size int64
	// next is the position behind the chunk.
	next Position
}

func (c *chunk) each(yield func(ConsumedRecord) bool) bool {
	if c.count == 0 {
		return true
	}
	for i := range c.records {
		if !yield(c.record(&c.records[i])) {
			return false
		}
	}
	if c.batch == nil {
		return true
	}
	for r := range recordbatch.Records(c.batch, recordbatch.Limits{}) {
		if r.Offset >= c.until {
			break
		}
		if r.Offset >= c.from && !yield(c.record(&r)) {
			return false
		}
	}
	return true
}

func (c *chunk) record(r *recordbatch.Record) ConsumedRecord {
	return ConsumedRecord{
		Topic:       c.partition.Topic,
		Partition:   c.partition.Partition,
		Offset:      r.Offset,
		LeaderEpoch: c.leaderEpoch,
		Timestamp:   timestamp(r.Timestamp),
		Key:         r.Key,
		Value:       r.Value,
		Headers:     r.Headers,
		tenure:      c.tenure,
	}
}

// recordOverhead is about what a decoded record takes besides its key and value.
const recordOverhead = 96

// openBatch checks a batch and cuts it to the offsets from, until until. The
// chunk has no records if none lie within.
func openBatch(tp TopicPartition, batch []byte, from, until int64) (chunk, error) {
	h, err := recordbatch.Verify(batch)
	if err != nil {
		return chunk{}, err
	}
	c := chunk{
		partition:   tp,
		from:        from,
		until:       until,
		leaderEpoch: h.LeaderEpoch,
		next:        Position{Offset: max(from, h.LastOffset()+1), LeaderEpoch: h.LeaderEpoch},
	}
	if h.Control() || h.LastOffset() < from || h.BaseOffset >= until {
		return c, nil
	}
	if h.Codec() == recordbatch.None {
		c.batch, c.size = batch, int64(len(batch))
		for r, err := range recordbatch.Records(batch, recordbatch.Limits{}) {
			if err != nil {
				return chunk{}, err
			}
			if r.Offset >= from && r.Offset < until {
				c.count++
			}
		}
		return c, nil
	}
	records, err := recordbatch.Decode(batch, recordbatch.Limits{})
	if err != nil {
		return chunk{}, err
	}
	for len(records) > 0 && records[0].Offset < from {
		records = records[1:]
	}
	for len(records) > 0 && records[len(records)-1].Offset >= until {
		records = records[:len(records)-1]
	}
	c.records, c.count = records, len(records)
	for i := range records {
		c.size += recordOverhead + int64(len(records[i].Key)+len(records[i].Value))
	}
	return c, nil
}
