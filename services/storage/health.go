package storage

import (
	"sync"

	"github.com/runnel-mesh/runnel/services/internal/rpc"
)

// damageReport tells by [PartitionsHealth], while the store is open, whether a
// partition has failed.
type damageReport struct {
	mu sync.Mutex
	// health is nil before the store is open and after it is closed.
	health *rpc.Health
	failed int
}

// set takes the number of partitions that have failed.
func (r *damageReport) set(failed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = failed
	if r.health != nil {
		r.health.SetServing(PartitionsHealth, failed == 0)
	}
}

// begin is called once the store is open.
func (r *damageReport) begin(health *rpc.Health) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.health = health
	health.SetServing(PartitionsHealth, r.failed == 0)
}

// end is called once the store is closed.
func (r *damageReport) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.health.SetServing(PartitionsHealth, false)
	r.health = nil
}

// failed is told by the store whether partitions have lost something.
func (s *Service) failed(failed bool) {
	s.host.SetFailed(failed)
	if failed {
		s.proposer.Sweep()
	}
}

// stalled is told by the store when the disk does not answer, and when it does
// again.
func (s *Service) stalled(stalled bool) {
	if stalled {
		s.logger.Error("the disk does not answer: this node gives up what others can lead, the rest takes no records, and it stops if that goes on")
	} else {
		s.logger.Info("the disk answers again")
	}
	s.host.SetStalled(stalled)
	if stalled {
		s.proposer.Sweep()
	}
}
