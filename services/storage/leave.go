package storage

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

const (
	// leaveWithin bounds one attempt.
	leaveWithin = 5 * time.Second
	// leaveAgain is how long the node waits before it asks again for what was not
	// possible: a follower has come into the ISR meanwhile, or one that has just
	// disappeared is not fenced yet.
	leaveAgain = 100 * time.Millisecond
)

// Leave gives what the node leads to others, as far as others can lead it, and
// returns once the node has taken note of that, after [Config.Grace], or when ctx
// ends. Meanwhile, and afterwards, the node serves on: it is called before
// [Service.Drain], so that clients find a new leader and not just an old one that is
// gone. It does something once, and nothing before the node is ready. A node that
// leads nothing that others could lead does not wait.
func (s *Service) Leave(ctx context.Context) {
	s.leaving.Do(func() {
		n := s.node.Load()
		if n == nil {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, s.config.Grace)
		defer cancel()
		began := time.Now()
		moved := n.leave(ctx)
		if left := others(s.view.Image(), n.id); left > 0 {
			s.logger.Warn("the node stops although it leads partitions that others could lead", "partitions", left, "grace", s.config.Grace)
		} else if moved {
			s.logger.Info("others lead what the node led, where they can", "took", time.Since(began))
		}
	})
}

// leave moves leaderships until there are none that others could have. It returns
// whether there were any.
func (n *node) leave(ctx context.Context) (moved bool) {
	view := n.service.view
	failing := false
	for others(view.Image(), n.id) > 0 {
		moved = true
		attempt, cancel := context.WithTimeout(ctx, leaveWithin)
		res, err := n.service.nodes.Leave(attempt, &peerv1.LeaveRequest{NodeId: int32(n.id), NodeEpoch: int64(n.epoch)})
		cancel()
		switch {
		case err == nil:
			// Until then it answers as the leader that it is no more.
			if n.service.replicas.WaitApplied(ctx, res.GetVersion()) != nil || others(view.Image(), n.id) == 0 {
				return true
			}
		case final(err) || connect.CodeOf(err) == connect.CodeUnimplemented:
			n.service.logger.Warn("the node cannot give away what it leads", "error", err)
			return true
		case !failing:
			failing = true
			n.service.logger.Warn("the node cannot give away what it leads; it goes on trying", "error", err)
		}
		select {
		case <-ctx.Done():
			return true
		case <-time.After(leaveAgain):
		}
	}
	return moved
}

// others counts the partitions that a node leads and another could lead.
func others(image *cluster.Image, self cluster.NodeID) (count int) {
	if image == nil {
		return 0
	}
	able := func(id cluster.NodeID) bool {
		node, known := image.Node(id)
		return id != self && known && !node.Fenced && !node.Leaving
	}
	for _, topic := range image.Topics() {
		for i := range topic.Partitions {
			if p := &topic.Partitions[i]; p.Leader == self && slices.ContainsFunc(p.ISR, able) {
				count++
			}
		}
	}
	return count
}
