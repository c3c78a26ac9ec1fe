package cli

import (
	"testing"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// TestLeaderless: a person hears which nodes to start, and not of those that are
// live already.
func TestLeaderless(t *testing.T) {
	all := []int32{3, 4, 5}
	for _, test := range []struct {
		name      string
		partition runnel.PartitionDescription
		live      []int32
		want      string
	}{
		{
			"an ELR", runnel.PartitionDescription{Replicas: all, Eligible: []int32{5, 3}, LastLeader: 4}, []int32{4},
			"start node 5 or 3 (ELR): that one holds all that was acknowledged, and leads at once",
		},
		{
			"only the last leader", runnel.PartitionDescription{Replicas: all, LastLeader: 4}, []int32{3, 5},
			"start node 4, which led last and leads as soon as it is back",
		},
		{"nothing is known", runnel.PartitionDescription{Replicas: all, LastLeader: -1}, []int32{3}, "start node 4 or 5"},
		{
			"about to be elected", runnel.PartitionDescription{Replicas: all, Eligible: []int32{5}, LastLeader: 4}, []int32{5},
			"an election should be under way, since the nodes that may lead it are live; look at the log of the controller if it does not end",
		},
		{
			"the last leader has come back without its data", runnel.PartitionDescription{Replicas: all, LastLeader: 4}, []int32{4},
			"no live node is known to hold all that was acknowledged; see \"runnel partitions elect-leader --help\" about --unclean",
		},
	} {
		nodes := []runnel.Node{{ID: 3, Fenced: true}, {ID: 4, Fenced: true}, {ID: 5, Fenced: true}}
		for i := range nodes {
			for _, id := range test.live {
				nodes[i].Fenced = nodes[i].Fenced && nodes[i].ID != id
			}
		}
		if got := leaderless(&test.partition, nodes); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
