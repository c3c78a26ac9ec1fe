package partition

import (
	"slices"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// TestFollowed: only what others follow is looked at each second, so that a node alone
// pays nothing for its partitions.
func TestFollowed(t *testing.T) {
	t.Parallel()
	host, p := open(t, &memoryLog{})
	check := func(what string, want ...*Partition) {
		t.Helper()
		if got := host.Proposing(nil); !slices.Equal(got, want) {
			t.Errorf("%s: %d partitions instead of %d", what, len(got), len(want))
		}
	}
	agreed := led(1)
	apply(t, p, agreed)
	check("alone")
	const other = self + 1
	agreed.PartitionEpoch++
	agreed.Replicas = []cluster.NodeID{self, other}
	apply(t, p, agreed)
	check("a second replica", p)
	agreed.PartitionEpoch, agreed.LeaderEpoch, agreed.Leader = agreed.PartitionEpoch+1, agreed.LeaderEpoch+1, other
	apply(t, p, agreed)
	check("another leads")
	host.SetFailed(true)
	check("another leads, and something is lost", p)
	host.SetFailed(false)
	agreed.PartitionEpoch, agreed.LeaderEpoch, agreed.Leader = agreed.PartitionEpoch+1, agreed.LeaderEpoch+1, self
	apply(t, p, agreed)
	check("it leads again", p)
	p.Close()
	check("closed")
}
