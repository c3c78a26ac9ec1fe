package runnel

import (
	"context"
	"syscall"
	"testing"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// TestMetadataFailure: where no metadata node can be reached the error names them
// all; what one of them says comes first.
func TestMetadataFailure(t *testing.T) {
	image, err := cluster.FromSnapshot(&metadatav1.ClusterSnapshot{ClusterId: make([]byte, 16), Version: 1, Nodes: []*metadatav1.Node{
		{NodeId: 1, Role: metadatav1.NodeRole_NODE_ROLE_METADATA, Address: "m1:1"},
		{NodeId: 2, Role: metadatav1.NodeRole_NODE_ROLE_METADATA, Address: "m2:1"},
		{NodeId: 3, Role: metadatav1.NodeRole_NODE_ROLE_STORAGE, Address: "s:1"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	down := func(address string) BootstrapAttempt {
		return BootstrapAttempt{address, callError(context.Background(), address, &transport.DialError{Cause: syscall.ECONNREFUSED})}
	}
	silent := BootstrapAttempt{"m2:1", callError(context.Background(), "m2:1", context.DeadlineExceeded)}
	storage := BootstrapAttempt{"s:1", newError(errorsv1.Reason_REASON_UNSPECIFIED, "s:1: unimplemented")}
	says := BootstrapAttempt{"m2:1", newError(errorsv1.Reason_REASON_NOT_CONTROLLER, "no controller")}
	for _, test := range []struct {
		failures []BootstrapAttempt
		want     string
		reason   Reason
	}{
		{[]BootstrapAttempt{down("m1:1"), down("m2:1"), storage}, "no metadata node answers (m1:1: connection refused; m2:1: connection refused); start one of them", errorsv1.Reason_REASON_METADATA_UNAVAILABLE},
		{[]BootstrapAttempt{down("m1:1"), says, storage}, "no controller", errorsv1.Reason_REASON_NOT_CONTROLLER},
		// Whether it has done what was asked is not known.
		{[]BootstrapAttempt{down("m1:1"), silent}, "m2:1: no answer in time", errorsv1.Reason_REASON_UNSPECIFIED},
		{[]BootstrapAttempt{storage}, "s:1: unimplemented", errorsv1.Reason_REASON_UNSPECIFIED},
		{nil, "no metadata node is known; start one", errorsv1.Reason_REASON_METADATA_UNAVAILABLE},
	} {
		if got := metadataFailure(image, test.failures); got.Error() != test.want || ReasonOf(got) != test.reason {
			t.Errorf("%v: %q, %v, want %q", test.failures, got, ReasonOf(got), test.want)
		}
	}
}
