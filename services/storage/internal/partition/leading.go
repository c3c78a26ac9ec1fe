package partition

import "github.com/runnel-mesh/runnel/sdk/cluster"

// LogEnd returns the end of what is written.
func (p *Partition) LogEnd() int64 {
	p.lock()
	defer p.mu.Unlock()
	return p.replica.LogEnd()
}

// HighWatermark returns the offset up to which readers may read, as far as this
// node knows.
func (p *Partition) HighWatermark() int64 {
	p.lock()
	defer p.mu.Unlock()
	return p.replica.HighWatermark()
}

// CoordinatorEpoch returns the highest that has appended, 0 for none.
func (p *Partition) CoordinatorEpoch() cluster.CoordinatorEpoch {
	p.lock()
	defer p.mu.Unlock()
	return p.replica.CoordinatorEpoch()
}

// Assignment returns what the cluster agreed on last, as far as the partition was
// told. Its slices must not be changed.
func (p *Partition) Assignment() cluster.Partition {
	p.lock()
	defer p.mu.Unlock()
	assignment, _ := p.replica.Assignment()
	return assignment
}

// Proposing appends the partitions whose ISR this node may want changed: those that it
// leads and other nodes follow, and while a log has lost something those that it follows.
func (h *Host) Proposing(list []*Partition) []*Partition {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range h.followed {
		list = append(list, p)
	}
	if h.failed.Load() {
		for p := range h.following {
			list = append(list, p)
		}
	}
	return list
}
