package cli

import (
	"fmt"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// TestFewReplicas: who creates a topic while nodes are down hears that it will keep
// the replicas that there was room for.
func TestFewReplicas(t *testing.T) {
	nodes := func(storage, fenced int) []runnel.Node {
		list := []runnel.Node{{ID: 1, Role: "metadata"}}
		for i := range storage {
			list = append(list, runnel.Node{ID: int32(2 + i), Role: "storage", Fenced: i < fenced})
		}
		return list
	}
	for _, test := range []struct {
		factor int
		nodes  []runnel.Node
		want   string
	}{
		{3, nodes(3, 0), ""},
		{1, nodes(1, 0), ""},
		{3, nodes(5, 2), ""},
		{0, nodes(3, 1), ""}, // not known
		{2, nodes(3, 1), `topic "t" has replication factor 2 for good, since 2 of 3 storage nodes are live; with all of them live it would be 3: if it is to be that, start them, delete the topic and create it again`},
	} {
		if got := fewReplicas("t", test.factor, test.nodes); got != test.want {
			t.Errorf("%d replicas, %d nodes: %q, want %q", test.factor, len(test.nodes), got, test.want)
		}
	}
}

// TestMinISRAboveFactor: create and alter say that a setting cannot be kept.
func TestMinISRAboveFactor(t *testing.T) {
	const warning = "warning: min.insync.replicas=%d (1 in effect: replication factor 1): a topic cannot have more in-sync replicas than replicas\n"
	topic := topicName(t)
	if got := succeed(t, "", "topics", "create", topic, "--config", "min.insync.replicas=3"); got.stderr != fmt.Sprintf(warning, 3) {
		t.Errorf("create says %q", got.stderr)
	}
	if got := succeed(t, "", "topics", "alter", topic, "--config", "min.insync.replicas=4"); got.stderr != fmt.Sprintf(warning, 4) {
		t.Errorf("alter says %q", got.stderr)
	}
	if got := succeed(t, "", "topics", "alter", topic, "--config", "retention.ms=1000"); got.stderr != "" {
		t.Errorf("altering something else says %q", got.stderr)
	}
}
