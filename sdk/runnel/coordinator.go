package runnel

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
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

// again reports whether the call that failed with err may be repeated, perhaps
// elsewhere, as far as it changes nothing to repeat it. It takes up what err tells
// about who to ask.
func (o *coordinator) again(err error) bool {
	if _, ok := errors.AsType[*BootstrapError](err); ok {
		return true
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	// A hint that has led nowhere is worth nothing more.
	o.hint, o.image = redirect(err), o.client.view.image()
	return e.outcome == refused || e.outcome == unknown &&
		(e.Reason == errorsv1.Reason_REASON_UNSPECIFIED || e.Reason == errorsv1.Reason_REASON_TIMED_OUT)
}

// rest waits before a call is repeated: for the pause, or for news of the cluster,
// which it asks for where nothing keeps the image current. The error is that of ctx
// together with why the call has failed so far.
func (o *coordinator) rest(ctx context.Context, pause time.Duration, failure error) error {
	image, newer := o.client.view.next()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-newer:
	case <-timer.C:
		if o.client.view.unwatched() {
			// Where that fails too, the next attempt tells.
			_ = o.client.view.refresh(ctx, image)
		}
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w (so far: %w)", context.Cause(ctx), failure)
	}
	return nil
}

// call makes a call to the coordinator that may be repeated, until it is answered
// or ctx ends.
func (o *coordinator) call(ctx context.Context, attempt func(ctx context.Context, address string) error) error {
	var pause backoff
	for {
		address, err := o.find(ctx)
		if err == nil {
			err = attempt(ctx, address)
		}
		if err == nil || ctx.Err() != nil || !o.again(err) {
			return err
		}
		if err := o.rest(ctx, pause.next(), err); err != nil {
			return err
		}
	}
}
