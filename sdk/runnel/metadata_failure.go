package runnel

import (
	"slices"
	"strings"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// metadataFailure is the error of a call that failed wherever it was tried: what a
// metadata node says, and if none of them can be reached that. There is at least
// one failure unless there was nobody to ask, and all may be repeated.
func metadataFailure(image *cluster.Image, failures []BootstrapAttempt) error {
	if len(failures) == 0 {
		return newError(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "no metadata node is known; start one")
	}
	for _, f := range failures {
		if ReasonOf(f.Err) != errorsv1.Reason_REASON_UNSPECIFIED {
			return f.Err
		}
	}
	var tried []string
	for _, n := range image.Nodes() {
		if n.Role != metadatav1.NodeRole_NODE_ROLE_METADATA {
			continue
		}
		i := slices.IndexFunc(failures, func(f BootstrapAttempt) bool { return f.Address == n.Address })
		if i < 0 {
			continue
		}
		if !neverSent(failures[i].Err) {
			return failures[i].Err
		}
		tried = append(tried, failures[i].Err.Error())
	}
	if len(tried) == 0 {
		return failures[0].Err
	}
	e := newError(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "no metadata node answers (%s); start one of them", strings.Join(tried, "; "))
	e.cause = failures[0].Err
	return e
}
