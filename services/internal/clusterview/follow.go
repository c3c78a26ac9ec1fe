package clusterview

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

const (
	minReconnectDelay = 50 * time.Millisecond
	maxReconnectDelay = 5 * time.Second
)

// Follow publishes what another node knows, until ctx is done; it returns nil
// then. It is the publisher of the view meanwhile.
//
// A watch that breaks, falls behind what the view has, or shows another cluster is
// opened again, after 50 ms to 5 s, with jitter.
func (v *View) Follow(ctx context.Context, client metadatav1connect.ClusterServiceClient) error {
	delay := minReconnectDelay
	for failing := false; ; {
		caughtUp, err := v.followOnce(ctx, client)
		if ctx.Err() != nil {
			return nil
		}
		if caughtUp {
			delay, failing = minReconnectDelay, false
		}
		if !failing {
			// Once per outage.
			v.logger.Warn("the watch of the cluster broke; opening another", "error", err)
			failing = true
		}
		// Between half and all of the delay: nodes that lost one metadata node do not
		// come to the next all at once.
		timer := time.NewTimer(delay/2 + rand.N(delay/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		delay = min(2*delay, maxReconnectDelay)
	}
}

// followOnce follows one stream to its end. It reports whether it reached the
// other node's newest version.
func (v *View) followOnce(ctx context.Context, client metadatav1connect.ClusterServiceClient) (caughtUp bool, _ error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	image := v.Image()
	req := &metadatav1.WatchClusterRequest{}
	if image != nil {
		req.KnownVersion = image.Version
	}
	stream, err := client.WatchCluster(ctx, req)
	if err != nil {
		return false, fmt.Errorf("watch cluster: %w", err)
	}
	defer stream.Close() // Of a stream that has broken already, or is given up.
	first, err := stream.Receive()
	if err != nil {
		return false, fmt.Errorf("receive snapshot: %w", err)
	}
	if first.GetSnapshot() == nil {
		return false, errors.New("the watch did not begin with a snapshot")
	}
	if image, err = v.adopt(image, first.GetSnapshot()); err != nil {
		return false, err
	}
	for {
		response, err := stream.Receive()
		if err != nil {
			return true, fmt.Errorf("receive update: %w", err)
		}
		switch update := response.GetUpdate().(type) {
		case *metadatav1.WatchClusterResponse_Snapshot:
			if image, err = v.adopt(image, update.Snapshot); err != nil {
				return true, err
			}
		case *metadatav1.WatchClusterResponse_Delta:
			next, err := image.Apply(update.Delta)
			if err != nil {
				return true, fmt.Errorf("apply delta: %w", err)
			}
			if next.Version <= image.Version {
				return true, fmt.Errorf("apply delta: it leads from version %d to %d", image.Version, next.Version)
			}
			image = v.images.share(next)
			v.Publish(image, update.Delta)
		default:
			return true, errors.New("the watch sent an update of an unknown kind")
		}
	}
}

// adopt publishes a snapshot if it is news, and returns the image to go on from.
func (v *View) adopt(held *cluster.Image, snapshot *metadatav1.ClusterSnapshot) (*cluster.Image, error) {
	image, err := cluster.FromSnapshot(snapshot)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read snapshot: %w", err)
	case held == nil:
	case image.ClusterID != held.ClusterID:
		return nil, fmt.Errorf("the watch shows cluster %s instead of %s: check the addresses of the metadata service",
			cluster.TopicID(image.ClusterID), cluster.TopicID(held.ClusterID))
	case image.Version < held.Version:
		return nil, fmt.Errorf("the watch shows version %d, older than %d", image.Version, held.Version)
	case image.Version == held.Version:
		return held, nil
	}
	image = v.images.share(image)
	v.Publish(image, nil)
	return image, nil
}
