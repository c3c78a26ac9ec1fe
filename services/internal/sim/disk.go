package sim

import (
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// batch is what a log consists of: some records of one value, which is unique but
// for retries.
type batch struct {
	base, last int64
	epoch      cluster.LeaderEpoch
	value      int64
	producer   rules.ProducerAppend
	// coordinator is that of a batch which a coordinator has appended; 0 for others, which
	// producers have sent.
	coordinator cluster.CoordinatorEpoch
}

// opKind is what a write does to a file.
type opKind uint8

const (
	opAppend opKind = iota
	// opCut truncates at an offset.
	opCut
	// opRestart drops the log, which begins anew at an offset.
	opRestart
	// opStart moves the log start, and opState writes state alone.
	opStart
	opState
	// opCompact takes records out.
	opCompact
)

// op is one write, which a crash leaves whole or not at all: state is written in
// one transaction with the records.
type op struct {
	kind    opKind
	batches []batch
	offset  int64
	state   rules.ReplicaLog
	// gone are the records that compaction takes out, or that batches lack because it has
	// at the leader. clean is that of holes after the write.
	gone  []int64
	clean int64
}

// file is what one replica has on disk, as the history of its writes. The first
// written of them have reached the page cache, the first synced of these the disk.
type file struct {
	ops             []op
	written, synced int
	// start is the log start as of the last write that was as durable as the topic asks.
	start int64
	// clean is up to where the log is compacted, as durable.
	clean int64
	// failed says that records are lost, though they still stand in ops. It ends with
	// the write that drops all of them: the first whole writes have it, 0 for none.
	failed bool
	whole  int
}

// crashProcess forgets some of what has not reached the page cache.
func (f *file) crashProcess(w *world) { f.keep(f.written + w.rng.IntN(len(f.ops)-f.written+1)) }

// crashMachine forgets some of what is not synced. The page cache is written back
// in an order of its own, for each file another, but what follows a hole in a log
// is not found again.
func (f *file) crashMachine(w *world) {
	kept := f.synced
	if w.chance(500) {
		kept += w.rng.IntN(len(f.ops) - f.synced + 1)
	}
	f.keep(kept)
}

func (f *file) keep(n int) {
	f.failed = f.failed || n < f.whole
	f.ops = slices.Clip(f.ops[:n])
	f.written = min(f.written, n)
	f.synced = min(f.synced, n)
}

// contents is what a process finds in a file.
type contents struct {
	state     rules.ReplicaLog
	batches   []batch
	producers *rules.Producers
	holes     holes
}

const producersPerPartition = 10_000

// read plays the writes again. What a process finds is in the page cache, and a
// store that is opened syncs it before anything is built on it.
func (f *file) read() contents {
	c := contents{producers: rules.NewProducers(producersPerPartition)}
	for _, o := range f.ops {
		c.apply(o)
	}
	f.written, f.synced = len(f.ops), len(f.ops)
	f.clean = c.holes.clean
	return c
}

func (c *contents) apply(o op) {
	switch o.kind {
	case opAppend:
		for _, b := range o.batches {
			c.batches = append(c.batches, b)
			record(c.producers, b)
		}
	case opCompact:
	case opCut:
		c.batches = cutBatches(c.batches, o.offset)
		c.holes.cut(o.offset)
		c.producers.TruncateEnd(o.offset)
	case opRestart:
		c.batches, c.producers, c.holes = nil, rules.NewProducers(producersPerPartition), holes{}
	case opStart:
		c.batches = startBatches(c.batches, o.offset)
	case opState:
	}
	c.holes.add(o.gone, o.clean)
	c.state = o.state
}

// cutBatches drops what is at or above an offset.
func cutBatches(batches []batch, offset int64) []batch {
	n := len(batches)
	for n > 0 && batches[n-1].last >= offset {
		n--
	}
	return slices.Clip(batches[:n])
}

// startBatches drops what is wholly below an offset.
func startBatches(batches []batch, offset int64) []batch {
	n := 0
	for n < len(batches) && batches[n].last < offset {
		n++
	}
	return batches[n:]
}

// record takes note of a batch that a producer has sent.
func record(p *rules.Producers, b batch) {
	if b.coordinator == 0 {
		p.Record(b.producer, b.base, -1, 0)
	}
}
