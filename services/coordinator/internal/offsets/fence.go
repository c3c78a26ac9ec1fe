package offsets

import (
	"context"
	"fmt"
	"sync"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

const (
	// checkWithin bounds a check, and is less than the node may go without one.
	checkWithin = 3 * time.Second
	// maxFences is how many claims a request may have.
	maxFences = 1000
)

// fenceQueue has the checks that wait for a node. One request to the node is under
// way at a time, and takes all that came while the one before was: so a node that
// leads many partitions is asked about all of them at once. Whoever finds the queue
// unattended sends for all, and hands over to the next in line when that is done.
type fenceQueue struct {
	mu      sync.Mutex
	sending bool
	waiting []*fence
}

type fence struct {
	claim *peerv1.Fence
	// turn says that its owner has to send the next request.
	turn chan struct{}
	// done gets the answer.
	done chan error
}

// Check asks the leader of a partition whether a fence holds. err says why it does
// not, or is not known to.
func (l *Leaders) Check(ctx context.Context, p rules.Partition, c *rules.Check) (rules.Outcome, error) {
	node, _, _, err := l.ofID(p)
	if err != nil {
		return rules.Refused, err
	}
	err = node.check(ctx, &peerv1.Fence{
		TopicId: p.Topic[:], Partition: p.Index, CoordinatorEpoch: int64(c.Epoch), ExpectedOffset: c.Expected,
	})
	switch {
	case err == nil:
		return rules.Done, nil
	case rpcerr.ReasonOf(err) == errorsv1.Reason_REASON_COORDINATOR_FENCED:
		return rules.Fenced, err
	}
	return rules.Refused, err
}

func (n *storageNode) check(ctx context.Context, claim *peerv1.Fence) error {
	f := &fence{claim: claim, turn: make(chan struct{}, 1), done: make(chan error, 1)}
	n.fences.enter(f)
	select {
	case err := <-f.done:
		return err
	case <-f.turn:
	case <-ctx.Done():
		if !n.fences.giveUp(f) {
			return ctx.Err()
		}
		// The turn has come at the same time, and somebody has to take it.
	}
	n.sendFences(ctx)
	return <-f.done
}

// enter puts a check in line, and gives it the turn if nobody has it.
func (q *fenceQueue) enter(f *fence) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, f)
	if !q.sending {
		q.sending = true
		f.turn <- struct{}{}
	}
}

// giveUp reports whether the check has the turn.
func (q *fenceQueue) giveUp(f *fence) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-f.turn:
		return true
	default:
	}
	for i, other := range q.waiting {
		if other == f {
			q.waiting = append(q.waiting[:i:i], q.waiting[i+1:]...)
			break
		}
	}
	return false
}

// next returns the checks of the next request, that of who has the turn first.
func (q *fenceQueue) next() []*fence {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.waiting), maxFences)
	batch := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	return batch
}

// pass gives the turn to the next in line.
func (q *fenceQueue) pass() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.sending, q.waiting = false, nil
		return
	}
	q.waiting[0].turn <- struct{}{}
}

// sendFences sends one request for all that wait; the caller has the turn and is the
// first of them.
func (n *storageNode) sendFences(ctx context.Context) {
	batch := n.fences.next()
	defer n.fences.pass()
	// For all of them: one partition that moves away does not fail the others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkWithin)
	defer cancel()
	req := &peerv1.CheckFenceRequest{Fences: make([]*peerv1.Fence, len(batch))}
	for i, f := range batch {
		req.Fences[i] = f.claim
	}
	res, err := n.fenced.CheckFence(ctx, req)
	if err == nil && len(res.GetResults()) != len(batch) {
		err = fmt.Errorf("%d claims were answered with %d results", len(batch), len(res.GetResults()))
	}
	for i, f := range batch {
		answer := err
		if err == nil {
			if failure := res.GetResults()[i].GetFailure(); failure != nil {
				answer = rpcerr.FromFailure(failure)
			}
		}
		f.done <- answer
	}
}
