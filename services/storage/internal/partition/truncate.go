package partition

import (
	"context"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// Truncate cuts what is at or above an offset out of the log of a replica that
// does not lead: its leader does not have it (KIP-101). The batch that holds the
// offset goes as a whole. Epochs, producers and the tail cache forget it too. It
// returns the log's end once the cut is durable.
func (p *Partition) Truncate(ctx context.Context, offset int64) (int64, error) {
	p.appending.Lock()
	defer p.appending.Unlock()
	p.mu.Lock()
	if p.role == Leader || p.commits.len() > 0 {
		p.mu.Unlock()
		return 0, rpcerr.New(errorsv1.Reason_REASON_INTERNAL, "%s cannot be truncated while it is appended to", p.name())
	}
	offset = max(offset, p.logStartNext)
	if offset >= p.next {
		p.mu.Unlock()
		return p.next, nil
	}
	p.cutLocked(offset)
	state := p.stateLocked()
	p.mu.Unlock()
	end, err := p.log.Truncate(ctx, offset, state)
	if err != nil {
		return 0, p.failed(err)
	}
	if end < offset {
		p.mu.Lock()
		p.cutLocked(end)
		p.checkpointed = p.highWatermark
		p.mu.Unlock()
	}
	// The store voids on its own what its producer records say of the cut.
	p.restoreProducers()
	p.producers.TruncateEnd(end)
	return end, nil
}

// cutLocked makes the replica end at an offset; appending and mu are held.
func (p *Partition) cutLocked(offset int64) {
	p.next, p.logEnd = offset, offset
	p.highWatermark = min(p.highWatermark, offset)
	p.setEpochs(p.epochs.TruncateEnd(offset))
	p.host.tails.cut(&p.tail, offset)
}
