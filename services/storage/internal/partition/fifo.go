package partition

import "slices"

// keptCapacity is what an empty queue keeps of its memory.
const keptCapacity = 16

// fifo is a queue whose zero value is empty and has no memory.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

// at returns the item at a place, from 0 for the front.
func (f *fifo[T]) at(i int) *T { return &f.items[f.head+i] }

func (f *fifo[T]) front() *T { return f.at(0) }

func (f *fifo[T]) back() *T { return &f.items[len(f.items)-1] }

func (f *fifo[T]) push(item T) {
	if f.head > 0 && len(f.items) == cap(f.items) && f.head >= len(f.items)/2 {
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
	f.items = append(f.items, item)
}

func (f *fifo[T]) pop() T {
	var zero T
	item := f.items[f.head]
	f.items[f.head] = zero
	f.head++
	f.settle()
	return item
}

func (f *fifo[T]) popBack() T {
	var zero T
	last := len(f.items) - 1
	item := f.items[last]
	f.items[last] = zero
	f.items = f.items[:last]
	f.settle()
	return item
}

// removeFunc removes the items that remove reports true for.
func (f *fifo[T]) removeFunc(remove func(*T) bool) {
	kept := f.items[f.head:f.head]
	for i := f.head; i < len(f.items); i++ {
		if !remove(&f.items[i]) {
			kept = append(kept, f.items[i])
		}
	}
	clear(f.items[f.head+len(kept):])
	f.items = f.items[:f.head+len(kept)]
	f.settle()
}

// settle gives memory back once the queue is empty.
func (f *fifo[T]) settle() {
	if f.len() > 0 {
		return
	}
	f.head = 0
	if cap(f.items) > keptCapacity {
		f.items = nil
	} else {
		f.items = slices.Delete(f.items, 0, len(f.items))
	}
}
