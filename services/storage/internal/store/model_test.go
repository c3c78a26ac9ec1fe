package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// modelLog is what a log must hold.
type modelLog struct {
	batches   []Batch
	state     State
	producers map[int64]Producer
	set       Set
	timestamp int64
}

func (m *modelLog) end() int64 { return m.state.LogEnd }

// from returns what a read at an offset must begin with.
func (m *modelLog) from(offset int64) []Batch {
	i := slices.IndexFunc(m.batches, func(b Batch) bool { return b.LastOffset >= offset })
	if i < 0 {
		return nil
	}
	return m.batches[i:]
}

// TestModel compares the store with slices under random appends, reads, set
// changes, truncations, searches by time and restarts, with volumes so small
// that they are replaced all the time.
func TestModel(t *testing.T) {
	seeds := uint64(3)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { runModel(t, rand.New(rand.NewPCG(seed, 11)), 200) })
	}
}

func runModel(t *testing.T, r *rand.Rand, steps int) {
	cfg := testConfig(t)
	cfg.VolumeBytes = 192 << 10
	cfg.MaxOpenSealed = 2
	s := open(t, cfg)
	const partitions = 5
	models := make([]*modelLog, partitions)
	for i := range models {
		models[i] = &modelLog{producers: map[int64]Producer{}, set: SetSynced}
	}
	log := func(i int) *Log { return s.Log(partition(i)) }

	grow := func(m *modelLog) Append {
		a := Append{Set: m.set}
		if len(m.state.Epochs) == 0 || r.IntN(20) == 0 {
			epochs := slices.Clone(m.state.Epochs)
			m.state.Epochs = append(epochs, EpochStart{Epoch: cluster.LeaderEpoch(len(epochs)), StartOffset: m.end()})
		}
		epoch := m.state.Epochs[len(m.state.Epochs)-1].Epoch
		for range 1 + r.IntN(3) {
			m.timestamp += int64(r.IntN(20)) - 5
			records := 1 + r.IntN(5)
			size := 20 + r.IntN(200)
			if r.IntN(3) == 0 {
				size = 1000 + r.IntN(30_000)
			}
			b := makeBatch(m.end(), records, size, epoch, max(m.timestamp, 10), r.Uint64())
			a.Batches = append(a.Batches, b)
			m.batches = append(m.batches, b)
			m.state.LogEnd = b.LastOffset + 1
		}
		if r.IntN(3) == 0 {
			id := int64(r.IntN(4))
			last := a.Batches[len(a.Batches)-1]
			p := m.producers[id]
			p.ID, p.LastTimestamp = id, last.MaxTimestamp
			p.Batches = append(slices.Clone(p.Batches), ProducerBatch{BaseSequence: int32(last.BaseOffset), LastSequence: int32(last.LastOffset), BaseOffset: last.BaseOffset, AppendTime: -1})
			if len(p.Batches) > 5 {
				p.Batches = p.Batches[1:]
			}
			m.producers[id] = p
			a.Producers = []Producer{p}
		}
		if len(a.Producers) == 0 && r.IntN(10) == 0 {
			id := int64(r.IntN(4))
			delete(m.producers, id)
			a.RemovedProducers = []int64{id}
		}
		if r.IntN(4) == 0 {
			m.state.HighWatermark = m.end()
		}
		a.State = m.state
		return a
	}
	check := func(i int) {
		m, l := models[i], log(i)
		if m.end() == m.state.LogStart {
			return
		}
		offset := m.state.LogStart + r.Int64N(m.end()-m.state.LogStart)
		maxBytes := 1 + r.IntN(50_000)
		end := offset + 1 + r.Int64N(m.end()-offset)
		got, err := l.Read(context.Background(), offset, end, maxBytes)
		if err != nil {
			t.Fatalf("read %d at %d to %d: %v", i, offset, end, err)
		}
		var want []Batch
		total := 0
		for _, b := range m.from(offset) {
			if b.BaseOffset >= end || len(want) > 0 && total+len(b.Bytes) > maxBytes {
				break
			}
			want, total = append(want, b), total+len(b.Bytes)
		}
		if err := sameBatches(got, want); err != nil {
			t.Fatalf("read %d at %d to %d with %d bytes: %v", i, offset, end, maxBytes, err)
		}
		at := max(m.timestamp-r.Int64N(300), 0)
		found, err := l.OffsetForTime(context.Background(), at, m.end())
		if err != nil {
			t.Fatalf("find %d in %d: %v", at, i, err)
		}
		var wanted *Batch
		for j := range m.batches {
			if b := &m.batches[j]; b.LastOffset >= m.state.LogStart && b.MaxTimestamp >= at {
				wanted = b
				break
			}
		}
		switch {
		case wanted == nil && found != nil:
			t.Fatalf("found the batch at %d for time %d in %d, want none", found.BaseOffset, at, i)
		case wanted != nil && (found == nil || found.BaseOffset != wanted.BaseOffset):
			t.Fatalf("found %v for time %d in %d, want the batch at %d", found, at, i, wanted.BaseOffset)
		}
	}
	checkLoaded := func() {
		for i, m := range models {
			l := log(i)
			if err := l.Err(); err != nil {
				t.Fatal(err)
			}
			state, producers := l.Loaded()
			if state.LogEnd != m.end() || state.LogStart != m.state.LogStart || state.HighWatermark != m.state.HighWatermark || !slices.Equal(state.Epochs, m.state.Epochs) {
				t.Fatalf("log %d was loaded with %+v, want %+v", i, state, m.state)
			}
			if len(producers) != len(m.producers) {
				t.Fatalf("log %d was loaded with producers %+v, want %+v", i, producers, m.producers)
			}
			for _, p := range producers {
				w := m.producers[p.ID]
				if p.LastTimestamp != w.LastTimestamp || !slices.Equal(p.Batches, w.Batches) {
					t.Fatalf("log %d was loaded with producer %+v, want %+v", i, p, w)
				}
			}
			for _, sp := range l.durable.spans {
				var bytes int64
				for _, b := range m.batches {
					if b.BaseOffset >= sp.first && b.LastOffset < sp.end {
						bytes += int64(len(b.Bytes))
					}
				}
				if sp.bytes != bytes {
					t.Fatalf("log %d has the span %+v, which has %d bytes", i, sp, bytes)
				}
			}
			if m.end() > m.state.LogStart {
				if err := sameBatches(readAll(t, l, m.state.LogStart, m.end(), 1<<20), m.from(m.state.LogStart)); err != nil {
					t.Fatalf("log %d: %v", i, err)
				}
			}
		}
	}

	for step := range steps {
		i := r.IntN(partitions)
		m := models[i]
		switch action := r.IntN(100); {
		case action < 55:
			// Several at once, so that groups form.
			outcomes := make(chan error, 8)
			n := 1 + r.IntN(6)
			for range n {
				j := r.IntN(partitions)
				log(j).Append(grow(models[j]), func(err error) { outcomes <- err })
			}
			for range n {
				if err := <-outcomes; err != nil {
					t.Fatal(err)
				}
			}
		case action < 80:
			check(i)
		case action < 85:
			m.set = allSets[r.IntN(2)]
		case action < 90:
			if m.end() == 0 {
				continue
			}
			// DeleteRecords: the log start may lie within a batch.
			m.state.LogStart += r.Int64N(m.end() - m.state.LogStart + 1)
			m.state.HighWatermark = max(m.state.HighWatermark, m.state.LogStart)
			mustAppend(t, log(i), Append{Set: m.set, State: m.state})
		case action < 96:
			truncateModel(t, r, log(i), m)
		default:
			if step%2 == 0 {
				closeStore(t, s)
			} else {
				closeUnclean(t, s)
			}
			s = open(t, cfg)
			if want := step%2 == 0; s.Clean() != want {
				t.Fatalf("clean is %v after step %d", s.Clean(), step)
			}
			checkLoaded()
		}
	}
	closeStore(t, s)
	s = open(t, cfg)
	checkLoaded()
}

// truncateModel cuts anywhere in the log, as a rule near its end.
func truncateModel(t *testing.T, r *rand.Rand, l *Log, m *modelLog) {
	low := m.state.LogStart
	if live := m.from(low); r.IntN(3) > 0 && len(live) > 0 {
		low = max(low, live[max(len(live)-3, 0)].BaseOffset)
	}
	offset := low + r.Int64N(m.end()-low+1)
	// As a replica does it, which does not know where batches begin.
	state := m.state
	state.LogEnd = offset
	state.HighWatermark = min(state.HighWatermark, offset)
	state.Epochs = epochsBelow(state.Epochs, offset)
	end, err := l.Truncate(context.Background(), offset, state)
	if err != nil {
		t.Fatal(err)
	}
	if want := m.truncate(offset); end != want {
		t.Fatalf("truncated at %d: the log ends at %d, want %d", offset, end, want)
	}
}

func epochsBelow(epochs []EpochStart, end int64) []EpochStart {
	return slices.DeleteFunc(slices.Clone(epochs), func(e EpochStart) bool { return e.StartOffset >= end })
}

// truncate cuts off what is at or above an offset, batches as a whole, and
// returns the end of the log.
func (m *modelLog) truncate(offset int64) int64 {
	from := offset
	if i := slices.IndexFunc(m.batches, func(b Batch) bool { return b.LastOffset >= offset }); i >= 0 {
		from = min(from, m.batches[i].BaseOffset)
		m.batches = m.batches[:i:i]
	}
	end := max(from, m.state.LogStart)
	m.state.LogEnd = end
	m.state.HighWatermark = min(m.state.HighWatermark, end)
	m.state.Epochs = epochsBelow(m.state.Epochs, end)
	for id, p := range m.producers {
		p.Batches = slices.DeleteFunc(slices.Clone(p.Batches), func(b ProducerBatch) bool { return b.BaseOffset >= from })
		m.producers[id] = p
		if len(p.Batches) == 0 {
			delete(m.producers, id)
		}
	}
	return end
}
