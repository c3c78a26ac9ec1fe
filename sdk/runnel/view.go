package runnel

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

const (
	// callTimeout is what one node gets to answer one unary call.
	callTimeout = 10 * time.Second
	// silence is how long a node may take to begin a watch. A node that lags
	// behind what the client knows keeps silent until it has caught up; another
	// may know already.
	silence = 3 * time.Second
	// unknownTopicWait is how long a topic is asked for again before it counts
	// as missing: it may have been created a moment ago through another node.
	unknownTopicWait = time.Second
)

// view is what the client knows of the cluster. While it has users one
// goroutine keeps it current by a watch; in between, and to get ahead of a slow
// watch, calls refresh it on demand. Its image never goes back to an older
// version of the same cluster.
type view struct {
	config Config

	// current is written under mu; readers on hot paths go without.
	current atomic.Pointer[cluster.Image]
	// fetching serialises refreshes: it holds one token.
	fetching chan struct{}

	mu sync.Mutex
	// changed is closed and replaced whenever current changes. Guarded by mu.
	changed chan struct{}
	// preferred is the address that answered last. Guarded by mu.
	preferred string
	// users counts who needs the watch; cancel ends it, and done is closed by its
	// goroutine. Guarded by mu.
	users  int
	cancel context.CancelFunc
	done   chan struct{}
}

func newView(config Config) *view {
	v := &view{config: config, changed: make(chan struct{}), fetching: make(chan struct{}, 1)}
	v.fetching <- struct{}{}
	return v
}

// image returns the latest image, or nil before the first.
func (v *view) image() *cluster.Image { return v.current.Load() }

// next returns the latest image and a channel that is closed once there is a
// newer one.
func (v *view) next() (*cluster.Image, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current.Load(), v.changed
}

// retain makes sure that the watch runs until as many calls of release.
func (v *view) retain() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.users++
	if v.users > 1 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	v.cancel, v.done = cancel, done
	go func() {
		defer close(done)
		v.watch(ctx)
	}()
}

func (v *view) release() {
	v.mu.Lock()
	v.users--
	last := v.users == 0
	v.mu.Unlock()
	if last {
		v.stop()
	}
}

// stop ends the watch if nobody needs it and waits for its goroutine.
func (v *view) stop() {
	v.mu.Lock()
	cancel, done := v.cancel, v.done
	if v.users > 0 || cancel == nil {
		v.mu.Unlock()
		return
	}
	v.cancel, v.done = nil, nil
	v.mu.Unlock()
	cancel()
	<-done
}

// addresses returns where to ask, the most promising first.
func (v *view) addresses() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var addresses []string
	add := func(address string) {
		if address != "" && !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	add(v.preferred)
	for _, address := range v.config.Bootstrap {
		add(address)
	}
	if image := v.current.Load(); image != nil {
		for _, node := range image.Nodes() {
			if !node.Fenced {
				add(node.Address)
			}
		}
	}
	return addresses
}

// install makes image the latest unless a newer one is known, and notes who
// gave it.
func (v *view) install(image *cluster.Image, address string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.preferred = address
	if old := v.current.Load(); old != nil {
		if old.ClusterID == image.ClusterID && old.Version >= image.Version {
			return
		}
		if old.ClusterID != image.ClusterID {
			v.config.Logger.Warn("another cluster answers", "address", address)
		}
	}
	v.current.Store(image)
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *view) client(address string) metadatav1connect.ClusterServiceClient {
	return metadatav1connect.NewClusterServiceClient(connect.NewClient(v.config.Transports.Transport(address, transport.Control)))
}

// watch follows the cluster through whichever node answers, until ctx ends.
func (v *view) watch(ctx context.Context) {
	var pause backoff
	for {
		progress := false
		for _, address := range v.addresses() {
			follows, err := v.follow(ctx, address)
			if ctx.Err() != nil {
				return
			}
			v.config.Logger.Debug("watch of the cluster ended", "address", address, "error", err)
			if follows {
				// It has been a good source: begin with it again.
				progress = true
				break
			}
		}
		if progress {
			pause.reset()
		}
		if sleep(ctx, pause.next()) != nil {
			return
		}
	}
}

// follow watches through one node, and reports whether that gave an image.
func (v *view) follow(ctx context.Context, address string) (progress bool, err error) {
	streamCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	known := v.image()
	request := &metadatav1.WatchClusterRequest{}
	if known != nil {
		request.KnownVersion = known.Version
	}
	silent := time.AfterFunc(silence, cancel)
	defer silent.Stop()
	stream, err := v.client(address).WatchCluster(streamCtx, request)
	if err != nil {
		return false, err
	}
	var image *cluster.Image
	for {
		update, err := stream.Receive()
		if err != nil {
			if image == nil && known != nil && streamCtx.Err() != nil && ctx.Err() == nil {
				v.checkIdentity(ctx, address, known)
			}
			return image != nil, err
		}
		silent.Stop()
		if delta := update.GetDelta(); delta != nil && image != nil {
			image, err = image.Apply(delta)
		} else {
			image, err = cluster.FromSnapshot(update.GetSnapshot())
		}
		if err != nil {
			return false, err
		}
		v.install(image, address)
	}
}

// checkIdentity asks a node that keeps silent what it knows. A cluster that was
// set up anew counts its versions from 1 again, and would keep a watcher of the
// old one waiting for good.
func (v *view) checkIdentity(ctx context.Context, address string, known *cluster.Image) {
	image, err := v.get(ctx, address)
	if err == nil && image.ClusterID != known.ClusterID {
		v.install(image, address)
	}
}

// get asks one node for its image.
func (v *view) get(ctx context.Context, address string) (*cluster.Image, error) {
	response, err := call(ctx, address, v.client(address).GetCluster, &metadatav1.GetClusterRequest{})
	if err != nil {
		return nil, err
	}
	return cluster.FromSnapshot(response.GetCluster())
}

// refresh gets a newer image than known from the first node that answers, unless
// someone else has meanwhile. The error is a *BootstrapError if nobody answers.
func (v *view) refresh(ctx context.Context, known *cluster.Image) error {
	select {
	case <-v.fetching:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { v.fetching <- struct{}{} }()
	if v.image() != known {
		return nil
	}
	failure := &BootstrapError{}
	for _, address := range v.addresses() {
		image, err := v.get(ctx, address)
		if err == nil {
			v.install(image, address)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		failure.Attempts = append(failure.Attempts, BootstrapAttempt{Address: address, Err: err})
	}
	return failure
}

// fresh returns the latest image, asking for one if nothing keeps it current.
func (v *view) fresh(ctx context.Context) (*cluster.Image, error) {
	v.mu.Lock()
	watched, image := v.users > 0, v.current.Load()
	v.mu.Unlock()
	if watched && image != nil {
		return image, nil
	}
	if err := v.refresh(ctx, image); err != nil {
		return nil, err
	}
	return v.image(), nil
}

// topic returns the topic of that name, asking around for a moment if it is not
// known.
func (v *view) topic(ctx context.Context, name string) (*cluster.Topic, error) {
	var pause backoff
	asked := time.Now()
	for {
		image, changed := v.next()
		if image != nil {
			if topic, ok := image.Topic(name); ok {
				return topic, nil
			}
		}
		if err := v.refresh(ctx, image); err != nil {
			return nil, err
		}
		if latest := v.image(); latest != image {
			if topic, ok := latest.Topic(name); ok {
				return topic, nil
			}
		}
		if time.Since(asked) >= unknownTopicWait {
			return nil, topicNotFound(name)
		}
		timer := time.NewTimer(pause.next())
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// learn makes sure that a topic that was just created through the node at
// address is known.
func (v *view) learn(ctx context.Context, address string, id cluster.TopicID) error {
	for {
		if image := v.image(); image != nil {
			if _, ok := image.TopicByID(id); ok {
				return nil
			}
		}
		image, err := v.get(ctx, address)
		if err != nil {
			return err
		}
		v.install(image, address)
		if _, ok := image.TopicByID(id); ok {
			return nil
		}
		if err := sleep(ctx, firstPause); err != nil {
			return err
		}
	}
}

// route is where the leader of a partition is reached.
type route struct {
	address string
	epoch   cluster.LeaderEpoch
}

// leader returns the route to the leader of a partition, if it has one whose
// address is known.
func leader(image *cluster.Image, p *cluster.Partition) (route, bool) {
	if p.Leader == cluster.NoNode {
		return route{epoch: p.LeaderEpoch}, false
	}
	node, ok := image.Node(p.Leader)
	if !ok || node.Address == "" {
		return route{epoch: p.LeaderEpoch}, false
	}
	return route{address: node.Address, epoch: p.LeaderEpoch}, true
}
