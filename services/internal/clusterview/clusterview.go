// Package clusterview is what a node of any role knows of the cluster.
//
// A [View] holds the newest image. It has one publisher: the catalog on a
// metadata node, [View.Follow] on all others. Whoever lives in the same process
// subscribes to it, and the handler of ClusterService passes it on to other
// processes: a snapshot first, then each change as the delta by which it came.
//
// A view never goes back: neither it nor anyone who watches it sees a lower
// version after a higher one.
package clusterview

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

const (
	// maxQueuedUpdates and maxQueuedBytes bound what one watcher may have waiting.
	// Watchers share the messages, so a thousand slow ones hold no more than one.
	maxQueuedUpdates = 256
	maxQueuedBytes   = 8 << 20
	// maxWatchers bounds the watchers of one view.
	maxWatchers = 10_000
)

// View is the newest known image of the cluster. All methods may be called
// concurrently, except that Publish has one caller at a time.
type View struct {
	logger *slog.Logger
	// images is nil where the process has no other view.
	images *Images
	// image is written under mu, and read without.
	image atomic.Pointer[cluster.Image]
	// cut counts the watchers that were too slow.
	cut atomic.Int64

	mu sync.Mutex
	// snapshot is the wire form of image, for as long as it is in a queue or being
	// sent: it is as large as all that there is of the cluster. Like everything in a
	// queue it is shared, and never changed.
	snapshot weak.Pointer[metadatav1.WatchClusterResponse]
	// changed is closed and replaced with each publication.
	changed       chan struct{}
	subscriptions map[*Subscription]struct{}
	watchers      map[*watcher]struct{}
}

// watcher is the queue of one WatchCluster stream. Its fields but wake are
// guarded by the mutex of the view.
type watcher struct {
	// wake holds a token while there is something to take. It is never closed.
	wake  chan struct{}
	queue []*metadatav1.WatchClusterResponse
	bytes int
	// overflown says that updates were dropped: the stream must end.
	overflown bool
}

// Images is what several views of one cluster in one process have in common, so that
// its topics are in memory once. Its zero value is ready for use.
type Images struct {
	mu sync.Mutex
	// newest is the newest image of any of the views.
	newest *cluster.Image
}

// share returns an equal image that shares with the newest one.
func (i *Images) share(image *cluster.Image) *cluster.Image {
	if i == nil {
		return image
	}
	i.mu.Lock()
	newest := i.newest
	i.mu.Unlock()
	if newest == nil || newest == image {
		return image
	}
	return image.Sharing(newest)
}

// published takes note of the newest image of a view.
func (i *Images) published(image *cluster.Image) {
	if i == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.newest == nil || i.newest.Version <= image.Version {
		i.newest = image
	}
}

// New returns a view without an image. images may be nil.
func New(logger *slog.Logger, images *Images) *View {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &View{
		logger:        logger,
		images:        images,
		changed:       make(chan struct{}),
		subscriptions: make(map[*Subscription]struct{}),
		watchers:      make(map[*watcher]struct{}),
	}
}

// Image returns the newest image; nil before the first.
func (v *View) Image() *cluster.Image { return v.image.Load() }

// Publish makes image the newest. Update is the delta that leads to it from the
// image before, or nil, and then watchers are sent a snapshot. It must not be
// changed afterwards. An image with a lower version than the newest is refused
// with an error in the log.
func (v *View) Publish(image *cluster.Image, update *metadatav1.ClusterDelta) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.image.Load(); old != nil && image.Version < old.Version {
		v.logger.Error("an older image of the cluster was refused", "version", image.Version, "newest", old.Version)
		return
	}
	v.image.Store(image)
	v.images.published(image)
	v.snapshot = weak.Pointer[metadatav1.WatchClusterResponse]{}
	close(v.changed)
	v.changed = make(chan struct{})
	for s := range v.subscriptions {
		s.notify()
	}
	if len(v.watchers) == 0 {
		return
	}
	response := &metadatav1.WatchClusterResponse{Update: &metadatav1.WatchClusterResponse_Delta{Delta: update}}
	if update == nil {
		response = v.snapshotLocked()
	}
	size := proto.Size(response)
	for w := range v.watchers {
		if update == nil {
			// It replaces all that came before.
			w.queue, w.bytes = nil, 0
		}
		w.push(response, size)
		if w.overflown {
			delete(v.watchers, w)
			v.cut.Add(1)
		}
	}
}

func (w *watcher) push(response *metadatav1.WatchClusterResponse, size int) {
	if len(w.queue) > 0 && (len(w.queue) >= maxQueuedUpdates || w.bytes+size > maxQueuedBytes) {
		w.queue, w.bytes, w.overflown = nil, 0, true
	} else {
		w.queue = append(w.queue, response)
		w.bytes += size
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// snapshotLocked returns the newest image as a response. There is one while it is
// being sent.
func (v *View) snapshotLocked() *metadatav1.WatchClusterResponse {
	if shared := v.snapshot.Value(); shared != nil {
		return shared
	}
	response := &metadatav1.WatchClusterResponse{
		Update: &metadatav1.WatchClusterResponse_Snapshot{Snapshot: v.image.Load().Snapshot()},
	}
	v.snapshot = weak.Make(response)
	return response
}

// watch registers a watcher, with a snapshot as the first thing in its queue. It
// returns nil if the view is below that version, and then a channel that is
// closed by the next publication.
func (v *View) watch(known int64) (w *watcher, full bool, changed <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if image := v.image.Load(); image == nil || image.Version < known {
		return nil, false, v.changed
	}
	if len(v.watchers) >= maxWatchers {
		return nil, true, nil
	}
	w = &watcher{wake: make(chan struct{}, 1)}
	w.push(v.snapshotLocked(), 0)
	v.watchers[w] = struct{}{}
	return w, false, nil
}

func (v *View) unwatch(w *watcher) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.watchers, w)
}

// take empties the queue of a watcher. It reports false if the watcher missed
// something.
func (v *View) take(w *watcher) ([]*metadatav1.WatchClusterResponse, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	queue := w.queue
	w.queue, w.bytes = nil, 0
	return queue, !w.overflown
}

// Subscription tells a user in the same process that the image has changed.
type Subscription struct {
	// C receives after each publication, and at once if there is an image. It holds
	// at most one token, however many images came meanwhile: read the newest with
	// Image. It is never closed.
	C <-chan struct{}

	view   *View
	tokens chan struct{}
}

// Subscribe returns a new subscription, to be closed by the caller.
func (v *View) Subscribe() *Subscription {
	tokens := make(chan struct{}, 1)
	s := &Subscription{C: tokens, view: v, tokens: tokens}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.subscriptions[s] = struct{}{}
	if v.image.Load() != nil {
		s.notify()
	}
	return s
}

// Image returns the newest image; nil before the first.
func (s *Subscription) Image() *cluster.Image { return s.view.Image() }

// Close ends the subscription: C receives nothing more.
func (s *Subscription) Close() {
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	delete(s.view.subscriptions, s)
}

func (s *Subscription) notify() {
	select {
	case s.tokens <- struct{}{}:
	default:
	}
}

// WaitVersion returns the newest image as soon as its version is at least that
// one, or the error of ctx.
func (v *View) WaitVersion(ctx context.Context, version int64) (*cluster.Image, error) {
	return v.Await(ctx, func(image *cluster.Image) bool { return image.Version >= version })
}

// Await returns the newest image as soon as it meets the condition, or the error
// of ctx. An image that was replaced before it was looked at may be missed.
func (v *View) Await(ctx context.Context, condition func(*cluster.Image) bool) (*cluster.Image, error) {
	for {
		v.mu.Lock()
		image, changed := v.image.Load(), v.changed
		v.mu.Unlock()
		if image != nil && condition(image) {
			return image, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Collectors returns the metrics of the view, named after the service that it
// belongs to, such as "metadata".
func (v *View) Collectors(service string) []prometheus.Collector {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "runnel", Subsystem: service, Name: name, Help: help}
	}
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("cluster_version", "Version of the cluster state that this node knows.")), func() float64 {
			if image := v.Image(); image != nil {
				return float64(image.Version)
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("cluster_watchers", "WatchCluster streams being served.")), func() float64 {
			v.mu.Lock()
			defer v.mu.Unlock()
			return float64(len(v.watchers))
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts(opts("cluster_watchers_cut_total", "WatchCluster streams that ended because the watcher was too slow.")), func() float64 {
			return float64(v.cut.Load())
		}),
	}
}
