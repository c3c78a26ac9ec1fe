package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// keyed is a record of a compacted topic.
type keyed struct {
	offset    int64
	key       string
	value     string
	tombstone bool
	// timestamp is its own, youngest the greatest of its batch.
	timestamp, youngest int64
	// last is the last offset of its batch.
	last int64
}

// compactedModel is a plain list of what was appended and not truncated, with
// what compaction may have done to it.
type compactedModel struct {
	log   *Log
	id    PartitionID
	all   []keyed
	state State
	now   time.Time
	set   Set
	// expire has for tombstones from when on they may go.
	expire map[int64]time.Time
	// left are the records that the log had at the last look.
	left []keyed
}

// append adds batches with few different keys.
func (m *compactedModel) append(t *rapid.T) {
	a := Append{Set: m.set}
	for range rapid.IntRange(1, 3).Draw(t, "batches") {
		var b recordbatch.Builder
		var added []keyed
		youngest := int64(0)
		for i := range rapid.IntRange(1, 6).Draw(t, "records") {
			r := keyed{
				offset:    m.state.LogEnd + int64(i),
				key:       rapid.StringMatching("[a-f]").Draw(t, "key"),
				tombstone: rapid.IntRange(0, 3).Draw(t, "tombstone") == 0,
				timestamp: m.now.UnixMilli() - rapid.Int64Range(0, 50).Draw(t, "age"),
			}
			var value []byte
			if !r.tombstone {
				r.value = fmt.Sprintf("%d%0*d", r.offset, rapid.SampledFrom([]int{1, 1, 400, 3000}).Draw(t, "size"), 0)
				value = []byte(r.value)
			}
			if err := b.Append([]byte(r.key), value, nil, r.timestamp); err != nil {
				t.Fatal(err)
			}
			youngest = max(youngest, r.timestamp)
			added = append(added, r)
		}
		raw, err := b.Build(recordbatch.WithoutProducer(rapid.SampledFrom([]recordbatch.Codec{recordbatch.None, recordbatch.LZ4, recordbatch.Zstd}).Draw(t, "codec")))
		if err != nil {
			t.Fatal(err)
		}
		recordbatch.Assign(raw, m.state.LogEnd, 0)
		last := added[len(added)-1].offset
		for i := range added {
			added[i].youngest, added[i].last = youngest, last
		}
		a.Batches = append(a.Batches, Batch{Bytes: raw, BaseOffset: m.state.LogEnd, LastOffset: last, MaxTimestamp: youngest})
		m.all = append(m.all, added...)
		m.left = append(m.left, added...)
		m.state.LogEnd = last + 1
	}
	m.state.Epochs = epochZero
	a.State = m.state
	m.write(t, a)
}

func (m *compactedModel) write(t *rapid.T, a Append) {
	outcome := make(chan error, 1)
	m.log.Append(a, func(err error) { outcome <- err })
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
}

// truncate cuts above the high watermark.
func (m *compactedModel) truncate(t *rapid.T) {
	offset := rapid.Int64Range(m.state.HighWatermark, m.state.LogEnd).Draw(t, "cut")
	state := m.state
	state.LogEnd = offset
	end, err := m.log.Truncate(context.Background(), offset, state)
	if err != nil {
		t.Fatal(err)
	}
	gone := func(r keyed) bool { return r.last >= offset }
	m.all, m.left = slices.DeleteFunc(m.all, gone), slices.DeleteFunc(m.left, gone)
	m.state.LogEnd = end
}

func (m *compactedModel) deleteRecords(t *rapid.T) {
	m.state.LogStart = rapid.Int64Range(m.state.LogStart, m.state.HighWatermark).Draw(t, "start")
	m.write(t, Append{Set: m.set, State: m.state})
	gone := func(r keyed) bool { return r.offset < m.state.LogStart }
	m.all, m.left = slices.DeleteFunc(m.all, gone), slices.DeleteFunc(m.left, gone)
}

// compact runs once and checks what it may and must have done.
func (m *compactedModel) compact(t *rapid.T) {
	o := CompactOptions{
		Set: m.set, Below: m.state.HighWatermark, Now: m.now,
		MinLag:          rapid.SampledFrom([]time.Duration{0, 0, 20 * time.Millisecond}).Draw(t, "lag"),
		DeleteRetention: rapid.SampledFrom([]time.Duration{0, 30 * time.Millisecond}).Draw(t, "retention"),
		MapBytes:        rapid.SampledFrom([]int64{1 << 20, 1 << 20, 3 * keySlotBytes, 1}).Draw(t, "map"),
		SpanBytes:       rapid.SampledFrom([]int64{0, 1000}).Draw(t, "span bytes"),
	}
	before := max(m.log.durable.compactedTo, m.state.LogStart)
	done, err := m.log.Compact(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	to := m.log.durable.compactedTo
	if to > o.Below || to < before && done.Progress {
		t.Fatalf("compacted to %d, before %d, the bound is %d", to, before, o.Below)
	}
	left := m.read(t, m.state.LogStart, m.state.LogEnd, 1<<20)
	has := make(map[int64]bool)
	for _, r := range left {
		has[r.offset] = true
	}
	newest := make(map[string]int64)
	for _, r := range m.all {
		if r.offset < to {
			newest[r.key] = r.offset
		}
	}
	old := func(timestamp int64) bool { return o.MinLag == 0 || timestamp <= m.now.Add(-o.MinLag).UnixMilli() }
	removed := 0
	for _, r := range m.left {
		expires, seen := m.expire[r.offset]
		over := seen && !m.now.Before(expires) && done.Progress
		// What makes its batch young may be gone.
		may, must := over && old(r.timestamp), over && old(r.youngest)
		if stays := r.offset >= to || newest[r.key] == r.offset && !must; has[r.offset] != stays && (has[r.offset] || !may) {
			t.Fatalf("record %+v is there: %v, must be: %v (compacted from %d to %d at %v, expires %v)", r, has[r.offset], stays, before, to, m.now.UnixMilli(), expires.UnixMilli())
		}
		if !has[r.offset] {
			removed++
			if r.offset >= before && !old(r.youngest) {
				t.Fatalf("record %+v is removed before its time", r)
			}
		}
		if r.tombstone && r.last < to && !seen && has[r.offset] {
			m.expire[r.offset] = m.now.Add(o.DeleteRetention)
		}
	}
	if int64(removed) != done.Records && m.state.LogStart == 0 {
		t.Fatalf("%d records are gone, %d are said to be", removed, done.Records)
	}
	if !done.MapFull && o.MinLag == 0 && done.Progress && to != m.boundary(o.Below) {
		t.Fatalf("compacted to %d, not to %d, though all keys fit", to, m.boundary(o.Below))
	}
	m.left = left
}

// boundary is the end of the last batch that ends below an offset.
func (m *compactedModel) boundary(below int64) int64 {
	end := m.state.LogStart
	for _, r := range m.all {
		if r.last < below {
			end = r.last + 1
		}
	}
	return end
}

// read returns the records from one offset below another, as a client sees them.
func (m *compactedModel) read(t *rapid.T, offset, end int64, maxBytes int) []keyed {
	var out []keyed
	from := offset
	for offset < end {
		batches, err := m.log.Read(context.Background(), offset, end, maxBytes)
		if err != nil {
			t.Fatalf("read at %d: %v", offset, err)
		}
		if len(batches) == 0 {
			break
		}
		for _, b := range batches {
			if b.LastOffset < offset {
				t.Fatalf("the batch from %d to %d is read at %d", b.BaseOffset, b.LastOffset, offset)
			}
			offset = b.LastOffset + 1
			records, err := recordbatch.Decode(b.Bytes, recordbatch.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range records {
				if r.Offset >= from && r.Offset < end {
					out = append(out, keyed{offset: r.Offset, key: string(r.Key), value: string(r.Value), tombstone: r.Value == nil, timestamp: r.Timestamp, last: b.LastOffset})
				}
			}
		}
	}
	for i := range out {
		j := slices.IndexFunc(m.all, func(r keyed) bool { return r.offset == out[i].offset })
		if j < 0 {
			t.Fatalf("record %+v was never appended", out[i])
		}
		out[i].youngest = m.all[j].youngest
		if m.all[j] != out[i] {
			t.Fatalf("record %+v was appended as %+v", out[i], m.all[j])
		}
	}
	return out
}

// check compares reads with the list.
func (m *compactedModel) check(t *rapid.T) {
	if got := m.read(t, m.state.LogStart, m.state.LogEnd, 1<<20); !slices.Equal(got, m.left) {
		t.Fatalf("the log has %+v, want %+v", got, m.left)
	}
	if m.state.LogEnd > m.state.LogStart {
		offset := rapid.Int64Range(m.state.LogStart, m.state.LogEnd-1).Draw(t, "offset")
		end := rapid.Int64Range(offset+1, m.state.LogEnd).Draw(t, "end")
		var want []keyed
		for _, r := range m.left {
			if r.offset >= offset && r.offset < end {
				want = append(want, r)
			}
		}
		if got := m.read(t, offset, end, rapid.IntRange(1, 5000).Draw(t, "bytes")); !slices.Equal(got, want) {
			t.Fatalf("from %d to %d there is %+v, want %+v", offset, end, got, want)
		}
	}
	// Whatever compaction has done, a reader has the newest of each key.
	newest := make(map[string]keyed)
	for _, r := range m.all {
		newest[r.key] = r
	}
	got := make(map[string]keyed)
	for _, r := range m.left {
		got[r.key] = r
	}
	gone := func(_ string, r keyed) bool { return r.tombstone }
	maps.DeleteFunc(newest, gone)
	maps.DeleteFunc(got, gone)
	if !maps.Equal(got, newest) {
		t.Fatalf("the newest of each key are %+v, want %+v", got, newest)
	}
	at := m.now.UnixMilli() - rapid.Int64Range(0, 200).Draw(t, "ago")
	found, err := m.log.OffsetForTime(context.Background(), at, m.state.LogEnd)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range m.left {
		if r.timestamp >= at && (found == nil || found.BaseOffset > r.offset) {
			t.Fatalf("record %+v is not found by its time %d: %+v", r, at, found)
		}
	}
}

// TestCompactModel compares every read with a plain list under random appends,
// compactions, truncations, deletions and restarts. All logs lie in one store,
// whose volumes are small.
func TestCompactModel(t *testing.T) {
	fewChecks(t)
	cfg := testConfig(t)
	cfg.VolumeBytes = 64 << 10
	cfg.MaxOpenSealed = 3
	s := open(t, cfg)
	t.Cleanup(func() { _ = s.Close(0) })
	partitions := 0
	now := time.UnixMilli(1_700_000_000_000)
	rapid.Check(t, func(t *rapid.T) {
		partitions++
		m := &compactedModel{id: partition(partitions), now: now, expire: make(map[int64]time.Time), set: SetSyncedCompacted}
		m.log = s.Log(m.id)
		t.Repeat(map[string]func(*rapid.T){
			"append":  m.append,
			"append ": m.append,
			"commit": func(t *rapid.T) {
				// A high watermark lies where a batch ends.
				m.state.HighWatermark = max(m.state.HighWatermark, m.boundary(rapid.Int64Range(m.state.HighWatermark, m.state.LogEnd+1).Draw(t, "high watermark")))
				m.write(t, Append{Set: m.set, State: m.state})
			},
			"wait": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 50).Draw(t, "ms")) * time.Millisecond)
			},
			"compact":  m.compact,
			"compact ": m.compact,
			"truncate": m.truncate,
			"delete":   m.deleteRecords,
			"policy": func(t *rapid.T) {
				m.set = rapid.SampledFrom([]Set{SetSyncedCompacted, SetReplicatedCompacted, SetSynced}).Draw(t, "set")
			},
			"restart": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "restart") > 0 {
					return
				}
				restart(t, &s, cfg, rapid.Bool().Draw(t, "clean"))
				m.log = s.Log(m.id)
				if state, _ := m.log.Loaded(); state.LogEnd != m.state.LogEnd || state.LogStart != m.state.LogStart || state.HighWatermark < m.state.HighWatermark && m.state.LogEnd > 0 {
					t.Fatalf("loaded %+v, want %+v", state, m.state)
				}
			},
			"": m.check,
		})
	})
}

// restart closes a store and opens it again.
func restart(t *rapid.T, s **Store, cfg Config, clean bool) {
	if err := (*s).Close(1); err != nil {
		t.Fatal(err)
	}
	if !clean {
		if err := (*s).directory.removeClean(); err != nil {
			t.Fatal(err)
		}
	}
	next, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	*s = next
}
