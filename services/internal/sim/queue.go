package sim

import (
	"container/heap"
	"time"
)

// event is something that happens at a time. Those of the same time happen in the
// order in which they were made.
type event struct {
	at       time.Duration
	sequence uint64
	run      func()
}

// queue holds what is still to happen.
type queue struct {
	events   events
	sequence uint64
}

func (q *queue) add(at time.Duration, run func()) {
	q.sequence++
	heap.Push(&q.events, event{at: at, sequence: q.sequence, run: run})
}

// push gives back what pop took.
func (q *queue) push(e event) { heap.Push(&q.events, e) }

func (q *queue) pop() (event, bool) {
	if len(q.events) == 0 {
		return event{}, false
	}
	return heap.Pop(&q.events).(event), true
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].sequence < e[j].sequence
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = event{}
	*e = (*e)[:last]
	return x
}

// later runs what belongs to no process.
func (w *world) later(delay time.Duration, run func()) { w.queue.add(w.now+delay, run) }
