package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// nodesNow returns the nodes as far as the cluster tells at once. Without them
// reasons name nodes and not their states.
func nodesNow(ctx context.Context, client *runnel.Client) []runnel.Node {
	limited, cancel := context.WithTimeout(ctx, obstaclePatience)
	defer cancel()
	cluster, err := client.Admin().DescribeCluster(limited)
	if err != nil {
		return nil
	}
	return cluster.Nodes
}

// belowMinISR reports whether a partition has too few replicas in sync for
// acks=all, with the number of them that it takes.
func (t *topicFacts) belowMinISR(r *runnel.PartitionDescription) (need int, below bool) {
	minISR, err := strconv.Atoi(t.setting(rules.MinInsyncReplicas))
	need = rules.EffectiveMinInsync(minISR, len(r.Replicas))
	return need, err == nil && len(r.InSync) < need
}

// outOfSync says of each replica that is not in sync what keeps it.
func outOfSync(r *runnel.PartitionDescription, nodes []runnel.Node) string {
	var reasons []string
	for _, id := range r.Replicas {
		if !slices.Contains(r.InSync, id) {
			reasons = append(reasons, notInSync(id, nodes))
		}
	}
	return strings.Join(reasons, "; ")
}

func notInSync(id int32, nodes []runnel.Node) string {
	i := slices.IndexFunc(nodes, func(n runnel.Node) bool { return n.ID == id })
	switch {
	case i < 0:
		return fmt.Sprintf("node %d is not in sync", id)
	case nodes[i].Fenced:
		return fmt.Sprintf("node %d is fenced since %s", id, since(nodes[i]))
	case nodes[i].Leaving:
		return fmt.Sprintf("node %d is leaving", id)
	}
	return fmt.Sprintf("node %d is live and has not caught up", id)
}

// leaderless says how a partition gets a leader again.
func leaderless(r *runnel.PartitionDescription, nodes []runnel.Node) string {
	start := toStart(r, nodes)
	switch {
	case len(start) == 0 && len(r.InSync)+len(r.Eligible) == 0:
		return "no live node is known to hold all that was acknowledged; see \"runnel partitions elect-leader --help\" about --unclean"
	case len(start) == 0:
		return "an election should be under way, since the nodes that may lead it are live; look at the log of the controller if it does not end"
	case len(r.InSync)+len(r.Eligible) > 0:
		return "start " + anyNode(start) + " (ELR): that one holds all that was acknowledged, and leads at once"
	case r.LastLeader > 0:
		return "start " + anyNode(start) + ", which led last and leads as soon as it is back"
	}
	return "start " + anyNode(start)
}

// toStart returns the nodes any of which may lead a partition without loss and is
// not live: those of the ISR and the ELR, or the last leader, or if nobody tells
// of it the replicas.
func toStart(r *runnel.PartitionDescription, nodes []runnel.Node) []int32 {
	may := slices.Concat(r.InSync, r.Eligible)
	if len(may) == 0 && r.LastLeader > 0 {
		may = []int32{r.LastLeader}
	}
	if len(may) == 0 {
		may = slices.Clone(r.Replicas)
	}
	return slices.DeleteFunc(may, func(id int32) bool {
		return slices.ContainsFunc(nodes, func(n runnel.Node) bool { return n.ID == id && !n.Fenced && !n.Leaving })
	})
}

// anyNode names nodes of which one will do.
func anyNode(ids []int32) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = plainNumber(id)
	}
	return "node " + strings.Join(texts, " or ")
}
