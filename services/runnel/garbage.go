package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How much garbage there may be before it is collected, in percent of what is alive.
const (
	// garbageCalm is that of a process which makes little. Most of what a server has in
	// memory is there for long, a stream for each member of a group, say: with Go's 100
	// percent a quarter more memory is taken for less than 1 % of the processor.
	garbageCalm = 75
	// garbageBusy is the most that there may be of a process which would collect more
	// than once in garbageApart otherwise: each time half of two processors are taken for
	// 30 ms, and p99 of 5,000 commits a second was 11 to 18 ms with 300 percent, 30 to 35
	// with 75.
	garbageBusy  = 300
	garbageApart = 5 * time.Second
	// garbageBytes is how much garbage there may be in a busy process, unless garbageCalm
	// allows more.
	garbageBytes = 128 << 20
	// paceEvery is how often the process looks at how much garbage it makes, and paceCalm
	// how many looks find little before it counts as calm.
	paceEvery = time.Second
	paceCalm  = 10
)

// pacer decides how much garbage there may be.
type pacer struct {
	// busy is how many looks the process counts as busy, 0 for a calm one.
	busy int
}

// percent is told how many bytes are alive and how many were allocated since the look
// before.
func (p *pacer) percent(alive, allocated uint64) int {
	if allocated >= alive/100*garbageCalm/uint64(garbageApart/paceEvery) {
		p.busy = paceCalm
	} else if p.busy > 0 {
		p.busy--
	}
	if p.busy == 0 || alive >= garbageBytes/garbageCalm*100 {
		return garbageCalm
	}
	return int(min(garbageBytes*100/max(alive, 1), garbageBusy))
}

// pace keeps collections apart until ctx ends.
func pace(ctx context.Context) {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	ticker := time.NewTicker(paceEvery)
	defer ticker.Stop()
	var p pacer
	now := garbageCalm
	debug.SetGCPercent(now)
	for last := uint64(0); ; {
		metrics.Read(samples)
		alive, allocated := samples[0].Value.Uint64(), samples[1].Value.Uint64()
		if next := p.percent(alive, allocated-last); next != now {
			now = next
			debug.SetGCPercent(now)
		}
		last = allocated
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
