package sim

import (
	"fmt"
	"strings"
	"time"
)

// ringSize is how many events of a partition a violation shows.
const ringSize = 400

// trace remembers what happened lately and hashes all of it.
type trace struct {
	hash uint64
	// all keeps everything.
	all  bool
	ring []entry
	next int
}

// entry is formatted when it is shown only.
type entry struct {
	at        time.Duration
	partition int
	who       string
	what      string
	numbers   [4]int64
}

func newTrace(all bool) *trace { return &trace{hash: 14695981039346656037, all: all} }

func (t *trace) mix(n uint64) {
	for range 8 {
		t.hash = (t.hash ^ n&0xff) * 1099511628211
		n >>= 8
	}
}

// step takes note of an event that is run.
func (t *trace) step(at time.Duration, sequence uint64) {
	t.mix(uint64(at))
	t.mix(sequence)
}

// note takes note of what an event did to a partition, or to none with -1.
func (w *world) note(partition int, who, what string, numbers ...int64) {
	t := w.trace
	e := entry{at: w.now, partition: partition, who: who, what: what}
	copy(e.numbers[:], numbers)
	for i := range len(what) {
		t.hash = (t.hash ^ uint64(what[i])) * 1099511628211
	}
	for _, n := range numbers {
		t.mix(uint64(n))
	}
	if t.all || len(t.ring) < 3*ringSize {
		t.ring = append(t.ring, e)
		return
	}
	t.ring[t.next] = e
	t.next = (t.next + 1) % len(t.ring)
}

// format shows what concerns a partition, or everything with -1.
func (t *trace) format(partition int) string {
	var b strings.Builder
	for i := range t.ring {
		e := t.ring[(t.next+i)%len(t.ring)]
		if partition >= 0 && e.partition >= 0 && e.partition != partition {
			continue
		}
		fmt.Fprintf(&b, "  %12s p%d %-6s %s %v\n", e.at, e.partition, e.who, e.what, e.numbers)
	}
	return b.String()
}
