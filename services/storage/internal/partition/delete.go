package partition

import (
	"context"
	"errors"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// Deletion is a log start that has been asked for.
type Deletion struct {
	// LogStart is the one that the partition has once it is done.
	LogStart  int64
	partition *Partition
	// done has the outcome, once.
	done chan error
	// next is another one that waits.
	next *Deletion
}

// DeleteRecords moves the log start forward to an offset, at most the high watermark,
// and returns the log start once the low watermark has reached it (KIP-107): every
// replica that may lead next has it as durable as the topic asks. An offset below the
// log start changes nothing, and waits for that one.
func (p *Partition) DeleteRecords(ctx context.Context, offset int64, believed cluster.LeaderEpoch) (int64, error) {
	d, err := p.BeginDelete(offset, believed)
	if err != nil {
		return 0, err
	}
	return d.LogStart, d.Wait(ctx)
}

// BeginDelete is the first half of DeleteRecords, and [Deletion.Wait], which has to
// follow, the second. With an error nothing is deleted: below min.insync.replicas that
// is so, as it is for records, since nobody could say when it is done.
func (p *Partition) BeginDelete(offset int64, believed cluster.LeaderEpoch) (*Deletion, error) {
	d := &Deletion{partition: p, done: make(chan error, 1)}
	_, err := p.advanceStart(offset, believed, d, nil)
	return d, err
}

// Wait returns once the deletion is done, or with an error: then what becomes of it
// is unknown, and it may be repeated. It is called once.
func (d *Deletion) Wait(ctx context.Context) error {
	select {
	case err := <-d.done:
		return err
	case <-ctx.Done():
		return d.partition.overdueDeletion(ctx, d)
	}
}

// advanceStart moves the log start forward. Unless there is an error d, if any, waits
// for the low watermark, and done, if any, is called once the log start is durable
// here.
func (p *Partition) advanceStart(offset int64, believed cluster.LeaderEpoch, d *Deletion, done func(error)) (int64, error) {
	p.appending.Lock()
	defer p.appending.Unlock()
	p.lock()
	err := p.servesLocked(believed)
	if err == nil && offset > p.replica.HighWatermark() {
		err = p.outOfRangeLocked(offset)
	}
	if have, need := p.replica.InSync(); err == nil && d != nil && have < need {
		err = rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS,
			"%s has %d in-sync replicas and needs min.insync.replicas=%d to delete records; nothing was deleted; bring replicas back and try again", p.name(), have, need)
	}
	start := max(offset, p.replica.LogStart())
	if err == nil {
		p.replica.AdvanceStart(start)
		if d != nil {
			d.LogStart = start
			n := p.newsLocked()
			d.next, n.deletions = n.deletions, d
		}
	}
	p.mu.Unlock()
	if err != nil {
		return 0, err
	}
	// Written even if nothing changes: an earlier call may still be on its way, and
	// what is done is looked at once it is written.
	p.writeAppending(nil, done)
	return start, nil
}

// deletedLocked completes the deletions that the low watermark has reached.
func (p *Partition) deletedLocked() {
	if p.news == nil || p.news.deletions == nil {
		return
	}
	low := p.replica.LowWatermark()
	p.takeDeletionsLocked(func(d *Deletion) bool { return d.LogStart <= low }, nil)
}

// undeletedLocked fails the deletions that wait.
func (p *Partition) undeletedLocked(cause error) {
	p.takeDeletionsLocked(func(*Deletion) bool { return true }, cause)
}

// takeDeletionsLocked tells deletions their outcome.
func (p *Partition) takeDeletionsLocked(which func(*Deletion) bool, outcome error) {
	if p.news == nil {
		return
	}
	for at := &p.news.deletions; *at != nil; {
		d := *at
		if !which(d) {
			at = &d.next
			continue
		}
		*at, d.next = d.next, nil
		d.done <- outcome
	}
}

// overdueDeletion gives up a deletion whose context has ended, and returns its outcome.
func (p *Partition) overdueDeletion(ctx context.Context, d *Deletion) error {
	p.lock()
	defer p.mu.Unlock()
	p.takeDeletionsLocked(func(other *Deletion) bool { return other == d }, p.lateLocked(ctx, d))
	return <-d.done
}

// lateLocked says why a deletion is not done.
func (p *Partition) lateLocked(ctx context.Context, d *Deletion) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	if have, need := p.replica.InSync(); have < need {
		return rpcerr.New(errorsv1.Reason_REASON_TIMED_OUT,
			"the log start of %s is moved to %d, but it has %d in-sync replicas and needs %d to make that last; bring replicas back, and repeat the request",
			p.name(), d.LogStart, have, need)
	}
	return rpcerr.New(errorsv1.Reason_REASON_TIMED_OUT,
		"the log start of %s is moved to %d, but not every in-sync replica has told in time that its own is above %d; look at how far they are behind, and repeat the request",
		p.name(), d.LogStart, p.replica.LowWatermark())
}
