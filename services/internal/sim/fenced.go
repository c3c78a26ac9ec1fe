package sim

import (
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// What a leader of an offsets partition does for coordinators.

// fenceCheck is a claim whose confirmation waits for a probe.
type fenceCheck struct {
	claim rules.Claim
	probe int64
	came  time.Duration
	reply func(groups.Outcome)
}

// outcome is what a coordinator is told of a claim that does not hold.
func outcome(j rules.Judgement) groups.Outcome {
	if j == rules.ClaimHolds {
		return groups.Done
	}
	return groups.Fenced
}

// fencedAppend appends what a coordinator asks for if its claim holds, and answers
// once all have it. epoch is the leadership that the coordinator believes in.
func (r *replica) fencedAppend(epoch cluster.LeaderEpoch, claim rules.Claim, p payload, reply func(groups.Outcome, int64)) {
	if r.rules.Role() != rules.Leading || r.cutting || r.file.failed || epoch > r.rules.Epoch() {
		reply(groups.Refused, 0)
		return
	}
	if have, need := r.rules.InSync(); have < need {
		reply(groups.Refused, 0)
		return
	}
	if j := r.rules.Judge(claim); j != rules.ClaimHolds {
		r.note("refuses a coordinator", int64(j), int64(claim.Epoch), claim.Expected, r.rules.Next())
		reply(outcome(j), 0)
		return
	}
	next := r.rules.Next()
	b := batch{base: next, last: next + int64(len(p.records)) - 1, epoch: r.rules.Epoch(), value: r.w.check.newValue(), coordinator: claim.Epoch}
	r.w.crowd.payloads[b.value] = p
	r.w.checkAppends(r, b)
	r.rules.QueueFenced(b.last+1, claim.Epoch)
	r.batches = append(r.batches, b)
	r.note("appends of a coordinator", b.base, b.last, int64(b.epoch), int64(b.coordinator))
	r.write(op{kind: opAppend, batches: []batch{b}})
	if r.w.settings.eager {
		r.pushAll()
	}
	r.waiters = append(r.waiters, waiter{end: b.last + 1, acks: acksAll, reply: func(p produced) {
		if p.outcome == producedOK {
			reply(groups.Done, b.last+1)
		} else {
			reply(groups.Doubtful, 0)
		}
	}})
	r.moved()
}

// checkFence answers whether a claim holds, once it is sure that nobody else leads.
func (r *replica) checkFence(claim rules.Claim, reply func(groups.Outcome)) {
	if r.rules.Role() != rules.Leading || r.cutting || r.file.failed {
		reply(groups.Refused)
		return
	}
	r.fences = append(r.fences, fenceCheck{claim, r.rules.BeginProbe(), r.w.now, reply})
	r.confirm()
	r.pushAll()
}

// confirm answers the checks that are decided.
func (r *replica) confirm() {
	waiting := r.fences
	r.fences = nil
	r.fences = append(slices.DeleteFunc(waiting, func(f fenceCheck) bool {
		j := r.rules.Confirm(f.claim, f.probe)
		if j == rules.ClaimOpen {
			return false
		}
		if j == rules.ClaimHolds {
			r.w.crowd.sawConfirmed(r, f)
		}
		f.reply(outcome(j))
		return true
	}), r.fences...)
}

// probed takes note of a probe of the leader that this replica follows, and answers it.
func (r *replica) probed(in rules.Replicated) {
	if r.rules.Role() == rules.Following && in.LeaderEpoch == r.rules.Epoch() && in.Probe > r.probe {
		r.probe = in.Probe
		r.fetch()
	}
}
