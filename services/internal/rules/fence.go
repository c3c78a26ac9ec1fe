package rules

import "github.com/runnel-mesh/runnel/sdk/cluster"

// Coordinators write partitions that they do not lead. Each of them has an epoch, which
// the metadata service hands out once and for all, and its first append, the fence,
// raises the partition's to it: whoever has a lower one appends no more.
//
// The partition's epoch never falls, not with a truncation either, which may take the
// fence away: the metadata service has issued that epoch, and so the coordinators with
// lower ones are superseded in any case. A replica whose log goes up to an offset knows
// of each epoch that has appended below it, since the epoch comes with the batches, or
// with the order to begin anew above them.

// AnyOffset is what a coordinator expects that appends its fence.
const AnyOffset = -1

// Claim is what a coordinator believes of a partition that it writes.
type Claim struct {
	// Epoch is its own, from 1.
	Epoch cluster.CoordinatorEpoch
	// Expected is where the log ends, or [AnyOffset].
	Expected int64
}

// Judgement is what a leader makes of a claim.
type Judgement uint8

// The judgements.
const (
	// ClaimHolds: the coordinator may go on.
	ClaimHolds Judgement = iota
	// ClaimFenced: a later coordinator has appended.
	ClaimFenced
	// ClaimEarly: the coordinator has not appended its fence, or the log has lost it.
	ClaimEarly
	// ClaimMoved: the log ends elsewhere.
	ClaimMoved
	// ClaimOpen: it holds as far as the leader knows, who does not know enough yet.
	ClaimOpen
)

// CoordinatorEpoch returns the highest that has appended, with all that is queued; 0
// where none has.
func (r *Replica) CoordinatorEpoch() cluster.CoordinatorEpoch { return r.coordinatorEpoch }

// Judge decides, at a leader, whether a coordinator may append: every lower epoch has
// come to its end, and but for the fence the log ends where the coordinator believes,
// with all that is queued. So a copy of an append that the network has delayed appends
// nothing, and neither does whoever has missed something of the log.
func (r *Replica) Judge(c Claim) Judgement {
	switch {
	case c.Epoch < r.coordinatorEpoch:
		return ClaimFenced
	case c.Expected == AnyOffset:
		return ClaimHolds
	case c.Epoch > r.coordinatorEpoch:
		return ClaimEarly
	case c.Expected != r.next:
		return ClaimMoved
	default:
		return ClaimHolds
	}
}

// QueueFenced is [Replica.Queue] for what a coordinator appends whose claim holds.
func (r *Replica) QueueFenced(next int64, epoch cluster.CoordinatorEpoch) {
	r.coordinatorEpoch = max(r.coordinatorEpoch, epoch)
	r.Queue(next)
}

// Probe returns the number of the latest probe in this leader epoch, from 0. A leader
// tells it to its followers, whose next positions carry it.
func (r *Replica) Probe() int64 {
	if r.leadership == nil {
		return 0
	}
	return r.probe
}

// BeginProbe begins a probe, at a leader, and returns its number; 0 where there is nobody
// to ask.
func (r *Replica) BeginProbe() int64 {
	if r.leadership != nil {
		r.probe++
	}
	return r.Probe()
}

// Confirm decides, at a leader, whether a claim held everywhere when a probe began that
// began after the claim had come: nobody had appended behind it, here or at a leader
// that this one does not know of. Of that, only what followers say tells: a leader that
// was cut off finds its own log unchanged.
//
// Whoever leads next is one of the maximal ISR or of the ELR, as the first of a chain if
// there were several: the next ISR is the next leader's to propose, and only once it
// knows that it leads. Then it answers no probe of an earlier epoch any more. So if all
// of them have answered, none of them led when the probe began. A majority would not do:
// a leader that one follower does not know of needs only itself and others, and may take
// that follower out of the ISR. A position that comes after the probe began does not do
// either, unless it carries the number: it may have been on its way for long.
//
// That the high watermark covers the log is another thing: what lies above it, another
// leader need not have.
func (r *Replica) Confirm(c Claim, probe int64) Judgement {
	if j := r.Judge(c); j != ClaimHolds {
		return j
	}
	if r.role != Leading || r.failed || r.highWatermark < r.next {
		return ClaimOpen
	}
	h := r.progress()
	if h.Probed() < probe {
		return ClaimOpen
	}
	return ClaimHolds
}
