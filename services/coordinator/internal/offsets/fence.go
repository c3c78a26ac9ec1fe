package offsets

import (
	"context"
	"fmt"
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
	return n.fences.ask(ctx, claim, maxFences, n.sendFences)
}

// sendFences sends one request for all that wait.
func (n *storageNode) sendFences(ctx context.Context, batch []*asker[*peerv1.Fence]) {
	// For all of them: one partition that moves away does not fail the others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkWithin)
	defer cancel()
	req := &peerv1.CheckFenceRequest{Fences: make([]*peerv1.Fence, len(batch))}
	for i, a := range batch {
		req.Fences[i] = a.question
	}
	res, err := n.fenced.CheckFence(ctx, req)
	if err == nil && len(res.GetResults()) != len(batch) {
		err = fmt.Errorf("%d claims were answered with %d results", len(batch), len(res.GetResults()))
	}
	for i, a := range batch {
		answer := err
		if err == nil {
			if failure := res.GetResults()[i].GetFailure(); failure != nil {
				answer = rpcerr.FromFailure(failure)
			}
		}
		a.done <- answer
	}
}
