package storage

import (
	"context"
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
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
		moved := n.Leave(ctx, func() int { return others(s.view.Image(), n.ID) }, s.replicas.WaitApplied)
		if left := others(s.view.Image(), n.ID); left > 0 {
			s.logger.Warn("the node stops although it leads partitions that others could lead", "partitions", left, "grace", s.config.Grace)
		} else if moved {
			s.logger.Info("others lead what the node led, where they can", "took", time.Since(began))
		}
	})
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
