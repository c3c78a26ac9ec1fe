package sim

import (
	"maps"
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// holes are what compaction has taken out of a replica's log of an offsets partition: each
// replica compacts on its own. Batches stay where they are, and lose records.
type holes struct {
	// gone are the offsets of the records that are gone.
	gone map[int64]bool
	// clean is up to where a run has left one record of each key.
	clean int64
}

// add takes note of what a run has done.
func (h *holes) add(gone []int64, clean int64) {
	if len(gone) > 0 && h.gone == nil {
		h.gone = make(map[int64]bool)
	}
	for _, offset := range gone {
		h.gone[offset] = true
	}
	h.clean = max(h.clean, clean)
}

// cut forgets what lies at or above an offset.
func (h *holes) cut(offset int64) {
	maps.DeleteFunc(h.gone, func(at int64, _ bool) bool { return at >= offset })
	h.clean = min(h.clean, offset)
}

// of returns which records of batches are gone.
func (h *holes) of(batches []batch) (gone []int64) {
	for _, b := range batches {
		for offset := b.base; offset <= b.last && len(h.gone) > 0; offset++ {
			if h.gone[offset] {
				gone = append(gone, offset)
			}
		}
	}
	return gone
}

// held returns what there is of the records of a batch.
func (r *replica) held(b batch) []groups.Record {
	records := r.w.crowd.payloads[b.value].records
	if len(r.holes.of([]batch{b})) == 0 {
		return records
	}
	var held []groups.Record
	for i, record := range records {
		if !r.holes.gone[b.base+int64(i)] {
			held = append(held, record)
		}
	}
	return held
}

// compactKeys is how many keys a run of compaction has room for.
const compactKeys = 20

// compact removes records that have a newer one of the same key below the high watermark,
// and tombstones whose time has come, as a store does: it notes the keys of what has come
// since the last run, as far as it has room for them, and goes from the start of the log
// to there.
func (r *replica) compact() {
	below := r.rules.HighWatermark()
	dirty := max(r.holes.clean, r.rules.LogStart())
	newest := make(map[recordKey]int64)
	mapped := dirty
	for _, b := range r.batches {
		if b.last < dirty {
			continue
		}
		if b.last >= below || len(newest) >= compactKeys {
			break
		}
		for i, record := range r.w.crowd.payloads[b.value].records {
			if offset := b.base + int64(i); offset >= dirty && !r.holes.gone[offset] {
				newest[keyOf(record)] = offset
			}
		}
		mapped = b.last + 1
	}
	var gone []int64
	for _, b := range r.batches {
		if b.last >= mapped {
			break
		}
		forget := r.forgets(b)
		for i, record := range r.w.crowd.payloads[b.value].records {
			offset := b.base + int64(i)
			_, tombstone := record.(*groups.Tombstone)
			if r.holes.gone[offset] || newest[keyOf(record)] <= offset && (!tombstone || !forget) {
				continue
			}
			if tombstone && forget {
				r.w.counts.TombstonesGone++
			}
			gone = append(gone, offset)
		}
	}
	if mapped == dirty && len(gone) == 0 {
		return
	}
	r.note("compacts", dirty, mapped, below, int64(len(gone)))
	r.w.counts.Compactions++
	r.w.counts.Compacted += len(gone)
	r.holes.add(gone, mapped)
	r.write(op{kind: opCompact, gone: gone})
	r.w.crowd.sawCompaction(r)
}

// forgets says whether the tombstones of a batch may go. They are to outlast the slowest
// load, and the longest time that a replica is away or not compacted. Here they do so by a
// hair: until all replicas are rid for good of what they bury, and no load goes on.
func (r *replica) forgets(b batch) bool {
	for _, id := range r.w.etcd.partitions[r.index].Replicas {
		if r.w.node(id).files[r.index].clean <= b.last {
			return false
		}
	}
	for _, c := range r.w.crowd.coordinators {
		if s := c.shardOf(r.index); s != nil && s.loading {
			return false
		}
	}
	return true
}

// shardOf returns what a running process has of an offsets partition, or nil.
func (c *coordinator) shardOf(index int) *shard {
	if !c.up {
		return nil
	}
	return c.shards[c.g.number(index)]
}

// sawCompaction is a replica that has compacted its log: as far as it is committed, that
// is still the log of the same state.
func (g *crowd) sawCompaction(r *replica) {
	h := g.checks[g.number(r.index)]
	if h.end != r.rules.HighWatermark() || r.rules.LogStart() > 0 {
		return
	}
	var left []groups.Record
	for _, b := range r.batches {
		if b.last < h.end {
			left = append(left, r.held(b)...)
		}
	}
	h.compacted(r.n.id, left)
}

// compacted are the records that compaction has left of all that is committed.
func (h *groupHistory) compacted(node cluster.NodeID, left []groups.Record) {
	state := make(map[recordKey]groups.Record)
	for _, record := range left {
		fold(state, record)
	}
	for key, record := range h.records {
		if state[key] != record {
			h.fail(21, "node %d has compacted its log up to %d to %+v of %+v, which was %+v", node, h.end, state[key], key, record)
			return
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(state), compareRecordKeys) {
		if h.records[key] == nil {
			h.fail(21, "node %d has compacted its log up to %d to %+v of %+v, which was gone", node, h.end, state[key], key)
			return
		}
	}
}
