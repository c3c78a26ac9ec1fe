package partition

import (
	"sort"
	"sync"
)

// tailOverhead is what a cached batch costs beside its bytes: the entry, its
// place in the ring and the message that its bytes arrived in.
const tailOverhead = 256

// tails is the cache of what was appended last, one budget of bytes for all
// partitions of the process: tailing readers never touch the store. The oldest
// batch goes first, whatever partition it belongs to. Batches are immutable and
// shared with everybody who reads them, so an eviction takes nothing away from a
// reader.
type tails struct {
	mu     sync.Mutex
	budget int64
	used   int64
	// oldest and newest end a list of all entries in the order of their appends.
	oldest, newest *tailEntry
	metrics        *metrics
}

// tail is the part of the cache that belongs to a partition: the last of its
// batches, without a gap between them. The zero value is empty. It is guarded by
// the cache's lock.
type tail struct {
	entries fifo[*tailEntry]
}

type tailEntry struct {
	batch        []byte
	base, last   int64
	tail         *tail
	older, newer *tailEntry
}

func (e *tailEntry) cost() int64 { return int64(len(e.batch)) + tailOverhead }

// add caches the batch that follows the last one of t.
func (c *tails) add(t *tail, batch []byte, base, last int64) {
	e := &tailEntry{batch: batch, base: base, last: last, tail: t}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := t.entries.len(); n > 0 && (*t.entries.back()).last+1 != base {
		c.cutLocked(t, 0)
	}
	if e.cost() > c.budget {
		c.cutLocked(t, 0)
		return
	}
	e.older = c.newest
	if c.newest != nil {
		c.newest.newer = e
	} else {
		c.oldest = e
	}
	c.newest = e
	t.entries.push(e)
	c.used += e.cost()
	for c.used > c.budget {
		// The oldest of all is the oldest of its partition, too.
		oldest := c.oldest
		oldest.tail.entries.pop()
		c.unlinkLocked(oldest)
	}
	c.metrics.tailBytes.Set(float64(c.used))
}

// read returns the batches from the one that holds offset on, up to the one that
// ends below end, until they have maxBytes; at least one. next is the offset
// after the last of them. It reports false when the cache does not hold offset.
func (c *tails) read(t *tail, offset, end int64, maxBytes int) (batches [][]byte, next int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := t.entries.len()
	if n == 0 || offset < (*t.entries.front()).base {
		return nil, offset, false
	}
	first := sort.Search(n, func(i int) bool { return (*t.entries.at(i)).last >= offset })
	total := 0
	for i := first; i < n; i++ {
		e := *t.entries.at(i)
		if e.last >= end || (len(batches) > 0 && total+len(e.batch) > maxBytes) {
			break
		}
		batches = append(batches, e.batch)
		total += len(e.batch)
		next = e.last + 1
	}
	return batches, next, len(batches) > 0
}

// cut drops what is at or above offset.
func (c *tails) cut(t *tail, offset int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutLocked(t, offset)
	c.metrics.tailBytes.Set(float64(c.used))
}

// compacted drops what ends below offset: the log has no longer all of it.
func (c *tails) compacted(t *tail, offset int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t.entries.len() > 0 && (*t.entries.front()).last < offset {
		c.unlinkLocked(t.entries.pop())
	}
	c.metrics.tailBytes.Set(float64(c.used))
}

// drop drops all of a partition.
func (c *tails) drop(t *tail) { c.cut(t, 0) }

func (c *tails) cutLocked(t *tail, offset int64) {
	for t.entries.len() > 0 && (*t.entries.back()).last >= offset {
		c.unlinkLocked(t.entries.popBack())
	}
}

func (c *tails) unlinkLocked(e *tailEntry) {
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		c.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		c.newest = e.older
	}
	e.older, e.newer = nil, nil
	c.used -= e.cost()
}
