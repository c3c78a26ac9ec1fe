package clusterview

import (
	"context"
	"slices"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// handler serves a view as ClusterService.
type handler struct {
	view  *View
	drain *rpc.Drain
}

// NewHandler returns a ClusterService over the view. Its streams end when the
// drain begins.
func NewHandler(v *View, drain *rpc.Drain) metadatav1connect.ClusterServiceHandler {
	return &handler{view: v, drain: drain}
}

// Register registers [NewHandler] on a server, unless a service in the same
// process already did: on a shared port any of their views will do, since all of
// them follow one cluster.
func Register(server *connect.Server, v *View, drain *rpc.Drain) {
	for spec := range server.Specs() {
		if spec.Procedure == metadatav1connect.ClusterServiceWatchClusterProcedure {
			return
		}
	}
	metadatav1connect.RegisterClusterServiceHandler(server, NewHandler(v, drain))
}

// GetCluster implements metadatav1connect.ClusterServiceHandler.
func (h *handler) GetCluster(_ context.Context, req *metadatav1.GetClusterRequest) (*metadatav1.GetClusterResponse, error) {
	image := h.view.Image()
	if image == nil {
		return nil, rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "this node does not know the cluster yet: it has not reached a metadata service since it started; try again")
	}
	if !req.GetExcludeTopics() && len(req.GetTopics()) == 0 {
		return &metadatav1.GetClusterResponse{Cluster: image.Snapshot()}, nil
	}
	snapshot := &metadatav1.ClusterSnapshot{
		ClusterId:    image.ClusterID[:],
		Version:      image.Version,
		ControllerId: int32(image.Controller),
	}
	for _, n := range image.Nodes() {
		snapshot.Nodes = append(snapshot.Nodes, n.Proto())
	}
	if !req.GetExcludeTopics() {
		for _, name := range slices.Compact(slices.Sorted(slices.Values(req.GetTopics()))) {
			if t, ok := image.Topic(name); ok {
				snapshot.Topics = append(snapshot.Topics, t.Proto())
			}
		}
	}
	return &metadatav1.GetClusterResponse{Cluster: snapshot}, nil
}

// WatchCluster implements metadatav1connect.ClusterServiceHandler.
func (h *handler) WatchCluster(ctx context.Context, req *metadatav1.WatchClusterRequest, stream metadatav1connect.ClusterServiceWatchClusterServerStream) error {
	// The headers tell the client that it is being served, even if the snapshot
	// has to wait.
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	w, err := h.watch(ctx, req.GetKnownVersion())
	if err != nil {
		return err
	}
	defer h.view.unwatch(w)
	for {
		select {
		case <-w.wake:
		case <-h.drain.C():
			return h.drain.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
		updates, complete := h.view.take(w)
		if !complete {
			return rpcerr.New(errorsv1.Reason_REASON_THROTTLED, "the watcher reads more slowly than the cluster changes; call again with the version that it has")
		}
		for _, update := range updates {
			if err := stream.Send(update); err != nil {
				return err
			}
		}
	}
}

// watch waits until the view has the version that the client holds.
func (h *handler) watch(ctx context.Context, known int64) (*watcher, error) {
	if known < 0 {
		return nil, rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST, "known_version is %d: use the version that the watcher holds, or 0 for none", known)
	}
	for {
		w, full, changed := h.view.watch(known)
		switch {
		case full:
			return nil, rpcerr.New(errorsv1.Reason_REASON_THROTTLED, "this node serves %d watchers already; try another node", maxWatchers)
		case w != nil:
			return w, nil
		}
		select {
		case <-changed:
		case <-h.drain.C():
			return nil, h.drain.Err()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
