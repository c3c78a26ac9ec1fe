package store

import (
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// space says what a volume holds, and how much of that somebody needs. It is
// kept up to date by whoever changes spans: a span counts from the moment in
// which it is made, and until the change that drops it is committed. A volume
// without spans can therefore not come back to life.
type space struct {
	// spans counts those in the volume.
	spans atomic.Int64
	// live are the bytes of the batches that spans name.
	live atomic.Int64
	// records are the bytes of what else is needed: the newest state records.
	records atomic.Int64
	// written are the bytes of all batches and records that were written to it.
	// While the volume is open for writing its writer changes them.
	written atomic.Int64
}

// needed are the bytes that have to be written anew before the volume can go.
func (s *space) needed() int64 { return s.live.Load() + s.records.Load() }

// size are the bytes of the volume; never less than those that are needed.
func (s *space) size() int64 { return max(s.written.Load(), s.needed()) }

// stateBytes is about what the state and the progress record of a log take.
func stateBytes(record int) int64 { return 2*partitionKeyBytes + int64(record) + 64 }

// needed returns how many of those bytes somebody needs: none once the partition is
// deleted and its batches are gone. Such a record only stands against older ones,
// and a volume is not kept for it.
func (d *durable) needed(stateBytes int64) int64 {
	if d.Deleted && len(d.spans) == 0 {
		return 0
	}
	return stateBytes
}

// use counts what a volume has come to hold for somebody, or no longer does; a
// volume that is gone needs no account.
type use struct {
	volume uint64
	// spans, bytes and records are added to those of [space].
	spans, bytes, records int64
}

// account applies uses; it wakes the cleaner if it may have work from them.
func (r *volumes) account(uses ...use) {
	freed := false
	r.mu.Lock()
	for _, u := range uses {
		if v := r.byNumber[u.volume]; v != nil {
			v.space.spans.Add(u.spans)
			v.space.live.Add(u.bytes)
			v.space.records.Add(u.records)
			freed = freed || u.spans < 0 || u.bytes < 0 || u.records < 0
		}
	}
	r.mu.Unlock()
	if freed {
		r.freed()
	}
}

// spaceCollector tells the live and the dead bytes of each set.
type spaceCollector struct {
	volumes    *volumes
	live, dead *prometheus.Desc
}

func newSpaceCollector(r *volumes) *spaceCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("runnel_storage_"+name, help, []string{"set"}, nil)
	}
	return &spaceCollector{
		volumes: r,
		live:    desc("live_bytes", "Bytes of batches and state that somebody may still read."),
		dead:    desc("dead_bytes", "Bytes in volumes that nobody needs any more."),
	}
}

// Describe implements [prometheus.Collector].
func (c *spaceCollector) Describe(out chan<- *prometheus.Desc) {
	out <- c.live
	out <- c.dead
}

// Collect implements [prometheus.Collector].
func (c *spaceCollector) Collect(out chan<- prometheus.Metric) {
	live, dead := make(map[Set]int64), make(map[Set]int64)
	c.volumes.mu.Lock()
	for _, v := range c.volumes.byNumber {
		live[v.set] += v.space.needed()
		dead[v.set] += v.space.size() - v.space.needed()
	}
	c.volumes.mu.Unlock()
	for _, set := range allSets {
		out <- prometheus.MustNewConstMetric(c.live, prometheus.GaugeValue, float64(live[set]), string(set))
		out <- prometheus.MustNewConstMetric(c.dead, prometheus.GaugeValue, float64(dead[set]), string(set))
	}
}

// errVolumeGone says that a volume does not exist (any more).
type errVolumeGone uint64

func (e errVolumeGone) Error() string { return fmt.Sprintf("volume %d does not exist", uint64(e)) }
