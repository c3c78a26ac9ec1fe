package partition

import (
	"context"
	"errors"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// FenceCheck is a coordinator's claim that waits to be confirmed.
type FenceCheck struct {
	partition *Partition
	claim     rules.Claim
	probe     int64
	// done has the outcome, once.
	done chan error
	// next is another one that waits.
	next *FenceCheck
}

// CheckFence returns nil if a coordinator's claim held after the call had begun: no
// other one had appended, and this node was the leader that counts. It costs one
// exchange with each member of the ISR.
func (p *Partition) CheckFence(ctx context.Context, claim rules.Claim) error {
	c, err := p.BeginCheck(claim)
	if err != nil {
		return err
	}
	return c.Wait(ctx)
}

// BeginCheck is the first half of CheckFence, and [FenceCheck.Wait], which has to follow
// unless there is an error, the second: so those of many partitions wait together.
func (p *Partition) BeginCheck(claim rules.Claim) (*FenceCheck, error) {
	p.lock()
	defer p.mu.Unlock()
	if err := p.servesLocked(rules.NoEpoch); err != nil {
		return nil, err
	}
	if err := p.log.Failed(); err != nil {
		return nil, p.lost(err)
	}
	if err := p.claimedLocked(&claim); err != nil {
		return nil, err
	}
	if have, need := p.replica.InSync(); have < need {
		return nil, rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS,
			"%s has %d in-sync replicas and needs min.insync.replicas=%d to tell whether a coordinator is current; bring replicas back and try again", p.name(), have, need)
	}
	c := &FenceCheck{partition: p, claim: claim, probe: p.replica.BeginProbe(), done: make(chan error, 1)}
	n := p.newsLocked()
	c.next, n.checks = n.checks, c
	p.confirmedLocked()
	if n.checks == c {
		n.wakeFollowers()
	}
	return c, nil
}

// Wait returns the outcome, or an error once ctx ends. It is called once.
func (c *FenceCheck) Wait(ctx context.Context) error {
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return c.partition.overdueCheck(ctx, c)
	}
}

// claimedLocked says why an append, or a claim without one, is refused.
func (p *Partition) claimedLocked(claim *rules.Claim) error {
	switch {
	case claim == nil && p.topic.Internal():
		return rpcerr.New(errorsv1.Reason_REASON_INTERNAL_TOPIC, "topic %q is the cluster's own: only its coordinators write it", p.topic.Name)
	case claim == nil:
		return nil
	case !p.topic.Internal():
		return rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST,
			"topic %q is not the cluster's own, whose names begin with \"__\": no coordinator writes it; produce to it", p.topic.Name)
	}
	return p.judgedLocked(*claim, p.replica.Judge(*claim))
}

// judgedLocked returns a judgement as an error; nil where the claim holds.
func (p *Partition) judgedLocked(claim rules.Claim, j rules.Judgement) error {
	const fenced = errorsv1.Reason_REASON_COORDINATOR_FENCED
	highest := p.replica.CoordinatorEpoch()
	switch j {
	case rules.ClaimFenced:
		return rpcerr.New(fenced, "coordinator epoch %d of %s is over: epoch %d has appended; stop coordinating it", claim.Epoch, p.name(), highest)
	case rules.ClaimEarly:
		return rpcerr.New(fenced, "coordinator epoch %d has not appended to %s, and %d is the highest that has; append its fence, with expected offset -1, and load what lies before",
			claim.Epoch, p.name(), highest)
	case rules.ClaimMoved:
		return rpcerr.New(fenced, "%s ends at offset %d, the coordinator of epoch %d expects %d; load it anew", p.name(), p.replica.Next(), claim.Epoch, claim.Expected)
	default:
		return nil
	}
}

// confirmedLocked answers the checks that can be.
func (p *Partition) confirmedLocked() {
	if p.news == nil || p.news.checks == nil {
		return
	}
	p.takeChecksLocked(func(c *FenceCheck) (bool, error) {
		j := p.replica.Confirm(c.claim, c.probe)
		return j != rules.ClaimOpen, p.judgedLocked(c.claim, j)
	})
}

// unconfirmedLocked fails the checks that wait.
func (p *Partition) unconfirmedLocked(cause error) {
	p.takeChecksLocked(func(*FenceCheck) (bool, error) { return true, cause })
}

// takeChecksLocked tells checks their outcome, if they have one.
func (p *Partition) takeChecksLocked(outcome func(*FenceCheck) (bool, error)) {
	if p.news == nil {
		return
	}
	for at := &p.news.checks; *at != nil; {
		c := *at
		decided, err := outcome(c)
		if !decided {
			at = &c.next
			continue
		}
		*at, c.next = c.next, nil
		c.done <- err
	}
}

// overLocked says that the leadership has ended in which a claim was checked.
func (p *Partition) overLocked(epoch cluster.LeaderEpoch) error {
	if p.replica.Role() != rules.Leading {
		return p.notLeaderLocked()
	}
	return rpcerr.New(errorsv1.Reason_REASON_FENCED_LEADER_EPOCH, "leader epoch %d of %s is over; ask again", epoch, p.name())
}

// overdueCheck gives up a check whose context has ended, and returns its outcome.
func (p *Partition) overdueCheck(ctx context.Context, c *FenceCheck) error {
	p.lock()
	defer p.mu.Unlock()
	p.takeChecksLocked(func(other *FenceCheck) (bool, error) { return other == c, p.undecidedLocked(ctx) })
	return <-c.done
}

// undecidedLocked says why a claim could not be judged in time.
func (p *Partition) undecidedLocked(ctx context.Context) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	if have, need := p.replica.InSync(); have < need {
		return rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS,
			"%s has %d in-sync replicas and needs min.insync.replicas=%d to tell whether a coordinator is current; bring replicas back and try again", p.name(), have, need)
	}
	return rpcerr.New(errorsv1.Reason_REASON_TIMED_OUT,
		"not every in-sync replica of %s has confirmed in time that this node leads it, so that nobody knows whether the coordinator is current; try again", p.name())
}
