package runnel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// groups returns the client of the coordinator at an address.
func (c *Client) groups(address string) coordinatorv1connect.GroupServiceClient {
	return coordinatorv1connect.NewGroupServiceClient(connect.NewClient(c.config.Transports.Transport(address, transport.Control)))
}

// offsets returns the client of the coordinator at an address.
func (c *Client) offsets(address string) coordinatorv1connect.OffsetServiceClient {
	return coordinatorv1connect.NewOffsetServiceClient(connect.NewClient(c.config.Transports.Transport(address, transport.Control)))
}

// coordinator knows where the coordinator of one group is reached. It may be used
// concurrently.
type coordinator struct {
	client *Client
	group  string

	mu sync.Mutex
	// hint is who coordinates the group as another node says, which holds as long as
	// image is the latest. Guarded by mu.
	hint  string
	image *cluster.Image
}

func newCoordinator(client *Client, group string) *coordinator {
	return &coordinator{client: client, group: group}
}

// find returns where to ask: who the group's coordinator is by the latest image, or by
// a newer hint.
func (o *coordinator) find(ctx context.Context) (string, error) {
	image, err := o.client.view.fresh(ctx)
	if err != nil {
		return "", err
	}
	o.mu.Lock()
	hint, current := o.hint, o.image == image
	o.mu.Unlock()
	if hint != "" && current {
		return hint, nil
	}
	return groupCoordinator(image, o.group)
}

// moved reports whether the group is known to have another coordinator than the node at
// an address.
func (o *coordinator) moved(from string) bool {
	image := o.client.view.image()
	if image == nil {
		return false
	}
	_, partition, ok := image.GroupPartition(o.group)
	if !ok {
		return false
	}
	node, ok := image.Node(partition.Coordinator)
	o.mu.Lock()
	defer o.mu.Unlock()
	return ok && node.Address != "" && node.Address != from && (o.hint != from || o.image != image)
}

// attempt makes a call to the coordinator once. If another node is known to be that by
// now, and again says that the call may be made again not knowing what it has done, it is
// given up: a coordinator that stands still is not waited for.
func (o *coordinator) attempt(ctx context.Context, again func(error) bool, do func(ctx context.Context, address string) error) error {
	address, err := o.find(ctx)
	if err != nil {
		return err
	}
	moved := &Error{Message: address + ": no answer, and another node coordinates the group by now", outcome: unknown}
	if !again(moved) {
		return do(ctx, address)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			_, newer := o.client.view.next()
			if o.moved(address) {
				cancel(moved)
			}
			select {
			case <-newer:
			case <-ctx.Done():
			}
		}
	})
	defer watch.Wait()
	defer cancel(nil)
	return do(ctx, address)
}

// repeatable reports whether a call that failed with err may be made again, perhaps
// elsewhere, as far as it changes nothing to repeat it.
func repeatable(err error) bool {
	if _, ok := errors.AsType[*BootstrapError](err); ok {
		return true
	}
	e, ok := errors.AsType[*Error](err)
	return ok && (e.outcome == refused || e.outcome == unknown &&
		(e.Reason == errorsv1.Reason_REASON_UNSPECIFIED || e.Reason == errorsv1.Reason_REASON_TIMED_OUT))
}

// learn takes up what the error of a call tells about who to ask.
func (o *coordinator) learn(err error) {
	if _, ok := errors.AsType[*Error](err); !ok {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	// A hint that has led nowhere is worth nothing more.
	o.hint, o.image = redirect(err), o.client.view.image()
}

// rest waits before a call is repeated: for the pause, or for news of the cluster. The
// error is that of ctx together with why the call has failed so far.
func (o *coordinator) rest(ctx context.Context, pause time.Duration, failure error) error {
	_, newer := o.client.view.next()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-newer:
	case <-timer.C:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w (so far: %w)", context.Cause(ctx), failure)
	}
	return nil
}

// call makes a call to the coordinator, and again while it fails with an error of which
// again says so, until ctx ends.
func (o *coordinator) call(ctx context.Context, again func(error) bool, do func(ctx context.Context, address string) error) error {
	var pause backoff
	for {
		err := o.attempt(ctx, again, do)
		if err == nil || ctx.Err() != nil {
			return err
		}
		o.learn(err)
		if !again(err) {
			return err
		}
		if err := o.rest(ctx, pause.next(), err); err != nil {
			return err
		}
	}
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
