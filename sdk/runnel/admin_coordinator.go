package runnel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// groups returns the client of the groups of the coordinator at an address.
func (a *Admin) groups(address string) coordinatorv1connect.GroupServiceClient {
	return a.client.groups(address)
}

// offsets returns the client of the offsets of the coordinator at an address.
func (a *Admin) offsets(address string) coordinatorv1connect.OffsetServiceClient {
	return a.client.offsets(address)
}

// groupCoordinator returns where the coordinator of a group is reached. As long as the
// offsets topic does not exist that is any coordinator: asking for a group is what
// creates the topic.
func groupCoordinator(image *cluster.Image, group string) (address string, err error) {
	_, partition, ok := image.GroupPartition(group)
	if ok {
		if node, known := image.Node(partition.Coordinator); known && node.Address != "" {
			return node.Address, nil
		}
	}
	live := liveCoordinators(image)
	switch {
	case len(live) == 0:
		return "", newError(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE,
			"no coordinator is live, and groups need one; start one (`runnel coordinator`)")
	case ok:
		return "", newError(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE, "group %q has no coordinator at the moment", group)
	}
	return live[rand.IntN(len(live))].Address, nil
}

// liveCoordinators returns the coordinator nodes that are not fenced.
func liveCoordinators(image *cluster.Image) []*cluster.Node {
	var live []*cluster.Node
	for _, n := range image.Nodes() {
		if n.Role == metadatav1.NodeRole_NODE_ROLE_COORDINATOR && !n.Fenced && n.Address != "" {
			live = append(live, n)
		}
	}
	return live
}

// redirect returns who coordinates a group according to the node that failed a call
// with err; "" if it did not say.
func redirect(err error) string {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return ""
	}
	return e.failure.GetNotCoordinator().GetCoordinatorAddress()
}

// atCoordinator makes a call to the coordinator of a group, and again while it fails
// with an error that is repeatable, as patiently does.
func (a *Admin) atCoordinator(ctx context.Context, group string, repeatable func(error) bool, do func(ctx context.Context, address string) error) error {
	told := ""
	return a.patiently(ctx, func(image *cluster.Image) (again bool, err error) {
		address := told
		if address == "" {
			if address, err = groupCoordinator(image, group); err != nil {
				return true, err
			}
		}
		err = do(ctx, address)
		// Who was named may not be it either: only the next attempt goes there.
		told = redirect(err)
		return err != nil && repeatable(err), err
	})
}

// patiently makes attempts with ever fresher images until one is not to be made again,
// or ctx has ended, or, for want of a deadline, callTimeout is over.
func (a *Admin) patiently(ctx context.Context, attempt func(image *cluster.Image) (again bool, err error)) error {
	patience, cancel := ctx, context.CancelFunc(func() {})
	if _, ok := ctx.Deadline(); !ok {
		patience, cancel = context.WithTimeout(ctx, callTimeout)
	}
	defer cancel()
	var pause backoff
	image, err := a.client.view.fresh(ctx)
	if err != nil {
		return err
	}
	for {
		again, err := attempt(image)
		if !again {
			return err
		}
		if sleep(patience, pause.next()) != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return err
		}
		if err := a.client.view.refresh(ctx, image); err != nil {
			return err
		}
		image = a.client.view.image()
	}
}
