package groups

// ranking is a heap of numbers whose rank may change; the first is before all others.
type ranking struct {
	before func(a, b int32) bool
	heap   []int32
	// at is 1 + the place of each number in heap, 0 for those that are not in it.
	at []int32
}

func (r *ranking) empty() bool  { return len(r.heap) == 0 }
func (r *ranking) first() int32 { return r.heap[0] }

func (r *ranking) push(n int32) {
	r.heap = append(r.heap, n)
	r.at[n] = int32(len(r.heap))
	r.rise(len(r.heap) - 1)
}

// dropFirst removes the first.
func (r *ranking) dropFirst() {
	last := len(r.heap) - 1
	r.at[r.heap[0]] = 0
	if last > 0 {
		r.heap[0] = r.heap[last]
		r.at[r.heap[0]] = 1
	}
	r.heap = r.heap[:last]
	if last > 0 {
		r.sink(0)
	}
}

// fix finds the place of a number whose rank has changed, if it is there.
func (r *ranking) fix(n int32) {
	if r.at[n] == 0 {
		return
	}
	r.rise(int(r.at[n]) - 1)
	r.sink(int(r.at[n]) - 1)
}

func (r *ranking) rise(i int) {
	for i > 0 {
		above := (i - 1) / 2
		if !r.before(r.heap[i], r.heap[above]) {
			return
		}
		r.swap(i, above)
		i = above
	}
}

func (r *ranking) sink(i int) {
	for {
		below := 2*i + 1
		if below >= len(r.heap) {
			return
		}
		if below+1 < len(r.heap) && r.before(r.heap[below+1], r.heap[below]) {
			below++
		}
		if !r.before(r.heap[below], r.heap[i]) {
			return
		}
		r.swap(i, below)
		i = below
	}
}

func (r *ranking) swap(i, j int) {
	r.heap[i], r.heap[j] = r.heap[j], r.heap[i]
	r.at[r.heap[i]], r.at[r.heap[j]] = int32(i+1), int32(j+1)
}
