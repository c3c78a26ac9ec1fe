// Package catalog keeps the state of the cluster as it stands in etcd.
//
// # Keys
//
// All keys share a prefix, by default "runnel/". Values are protobuf messages of
// runnel.metadata.catalog.v1.
//
//	cluster                      ClusterRecord, written once
//	controller                   ControllerRecord, the newest term (v)
//	election/<lease>             CandidateRecord, leased
//	nodes/<id>                   NodeRecord; its mod revision is the node epoch (v)
//	live/<id>                    no value; leased, and lost with the lease
//	status/<id>                  NodeStatusRecord, what the controller made of it (v)
//	topics/<topic id>            TopicRecord (v)
//	names/<name>                 16 bytes of topic id
//	partitions/<topic id>/<nr>   PartitionRecord; <nr> has ten digits (v)
//	deleted/<topic id>           DeletedTopicRecord (v)
//	counters/nodes, /producers   CounterRecord
//	touched                      no value (v)
//	mark                         no value; written by those who wait for the watch
//
// Keys marked (v) are visible: they make up the image of the cluster, a topic and
// its partitions from when the topic is ready. The version of an image is the mod
// revision of its newest visible key. So that it is the same for a replica that
// watched every change and for one that has just listed the keys, nobody removes
// a visible key without writing another in the same transaction, "touched" if
// there is no better one. A lost lease is not visible; that the controller fenced
// the node is.
//
// # Reading
//
// A watch is not trusted to be complete. [Catalog.Run] lists all keys at one
// revision, watches from the next, takes only events newer than what it has, lists
// again when etcd has compacted what it missed and from time to time anyway, and
// never goes back to a lower revision.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
)

const (
	// pageSize is how many keys one request of a listing returns.
	pageSize = 2000
	// maxGathered bounds the events that make one image together, but for the last
	// batch of them.
	maxGathered   = 4096
	minRetryDelay = 50 * time.Millisecond
	maxRetryDelay = 3 * time.Second
)

// Options is what a [Catalog] works with.
type Options struct {
	Client *clientv3.Client
	Layout Layout
	// View is where images are published; the catalog is its publisher.
	View   *clusterview.View
	Logger *slog.Logger
	// RelistInterval is how often all keys are listed although no watch broke.
	RelistInterval time.Duration
	// RequestTimeout bounds each request to etcd but watches.
	RequestTimeout time.Duration
}

// Catalog follows the keys. All methods may be called concurrently.
type Catalog struct {
	o Options

	lists       prometheus.Counter
	failures    prometheus.Counter
	divergences prometheus.Counter

	mu    sync.RWMutex
	state *State
	// changed is closed and replaced after each change of state, when the image of
	// the change is published.
	changed chan struct{}
}

// New returns a catalog that knows nothing until [Catalog.Run].
func New(o Options) *Catalog {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "runnel", Subsystem: "metadata", Name: name, Help: help})
	}
	return &Catalog{
		o:           o,
		lists:       counter("catalog_lists_total", "Listings of all keys in etcd."),
		failures:    counter("catalog_failures_total", "Listings and watches of etcd that failed."),
		divergences: counter("catalog_divergences_total", "Listings that showed a change which the watch had missed."),
		state:       newState(),
		changed:     make(chan struct{}),
	}
}

// Collectors returns the catalog's metrics.
func (c *Catalog) Collectors() []prometheus.Collector {
	return []prometheus.Collector{c.lists, c.failures, c.divergences}
}

// Read calls f with the state. It must not keep what [State] says may not be kept,
// nor call the catalog.
func (c *Catalog) Read(f func(*State)) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	f(c.state)
}

// Version returns that of the newest published image; 0 before the first.
func (c *Catalog) Version() int64 {
	if image := c.o.View.Image(); image != nil {
		return image.Version
	}
	return 0
}

// Changed returns a channel that is closed after the next change. To miss nothing
// call it before [Catalog.Read].
func (c *Catalog) Changed() <-chan struct{} {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.changed
}

// WaitRevision returns when the state contains everything up to a revision at
// which something under the prefix was written, and the image of it is published.
func (c *Catalog) WaitRevision(ctx context.Context, revision int64) error {
	for {
		c.mu.RLock()
		reached, changed := c.state.Revision >= revision, c.changed
		c.mu.RUnlock()
		if reached {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d: %w", revision, ctx.Err())
		}
	}
}

// errOther says that another etcd cluster answers than the one that was listed.
var errOther = errors.New("another etcd answers")

// errBack says that etcd shows less than was seen before: it was restored from a
// backup, or the endpoints lead to another cluster.
var errBack = errors.New("etcd went back")

// Run follows the keys until ctx is done; it returns nil then. While etcd cannot
// be reached the state stays as it is.
func (c *Catalog) Run(ctx context.Context) error {
	delay := minRetryDelay
	for relist, failing := true, false; ctx.Err() == nil; {
		var err error
		if relist {
			err = c.list(ctx)
		}
		if err == nil {
			var began bool
			if began, err = c.watch(ctx); began {
				delay, failing = minRetryDelay, false
			}
			// A watch that merely broke goes on where it was.
			relist = errors.Is(err, errRelist) || errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, errOther)
		}
		if errors.Is(err, errRelist) || ctx.Err() != nil {
			continue
		}
		c.failures.Inc()
		if !failing {
			// Once per outage.
			c.o.Logger.Warn("etcd does not show the state of the cluster; the last known one is kept", "error", err)
			failing = true
		}
		timer := time.NewTimer(delay/2 + rand.N(delay/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		delay = min(2*delay, maxRetryDelay)
	}
	return nil
}

// errRelist ends a watch whose time has come to list all keys again.
var errRelist = errors.New("relist")

// list replaces the state by what stands in etcd, at one revision.
func (c *Catalog) list(ctx context.Context) error {
	next, err := c.load(ctx)
	if err != nil {
		return err
	}
	c.lists.Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.state
	if next.Revision < old.Revision {
		return fmt.Errorf("%w from revision %d to %d", errBack, old.Revision, next.Revision)
	}
	if old.ClusterID != [16]byte{} && next.ClusterID != old.ClusterID {
		return fmt.Errorf("%w: it holds cluster %s instead of %s", errBack, cluster.TopicID(next.ClusterID), cluster.TopicID(old.ClusterID))
	}
	c.state = next
	c.publishList(next)
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

// publishList publishes the image of a listing if it is news.
func (c *Catalog) publishList(next *State) {
	if next.ClusterID == [16]byte{} {
		return
	}
	snapshot := next.snapshot()
	image, err := cluster.FromSnapshot(snapshot)
	if err != nil {
		c.o.Logger.Error("the state of the cluster makes no image", "error", err)
		return
	}
	held := c.o.View.Image()
	switch {
	case held == nil || held.Version < image.Version:
	case held.Version > image.Version:
		c.o.Logger.Error("the listed state of the cluster is older than the image", "version", image.Version, "image", held.Version)
		return
	case sameImage(held, image):
		return
	default:
		c.divergences.Inc()
		c.o.Logger.Error("the watch of etcd missed a change; the listed state holds", "version", image.Version)
	}
	c.o.View.Publish(image, nil)
}

// sameImage compares two images of one version. Which topics are known to be
// deleted does not count: records of that are dropped in time.
func sameImage(a, b *cluster.Image) bool {
	x, y := a.Snapshot(), b.Snapshot()
	x.DeletedTopicIds, y.DeletedTopicIds = nil, nil
	return proto.Equal(x, y)
}

// load lists all keys at one revision.
func (c *Catalog) load(ctx context.Context) (*State, error) {
	state, changes := newState(), newChange()
	end := clientv3.GetPrefixRangeEnd(c.o.Layout.Prefix())
	from := c.o.Layout.Prefix()
	for {
		options := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(pageSize)}
		if state.Revision > 0 {
			options = append(options, clientv3.WithRev(state.Revision))
		}
		response, err := c.get(ctx, from, options...)
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		if state.Revision == 0 {
			state.Revision, state.etcd = response.Header.GetRevision(), response.Header.GetClusterId()
		} else if state.etcd != response.Header.GetClusterId() {
			return nil, errOther
		}
		for _, kv := range response.Kvs {
			if err := state.put(c.o.Layout, kv, changes); err != nil {
				c.o.Logger.Error("a key is left out", "error", err)
			}
		}
		if !response.More {
			return state, nil
		}
		from = string(response.Kvs[len(response.Kvs)-1].Key) + "\x00"
	}
}

func (c *Catalog) get(ctx context.Context, key string, options ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.RequestTimeout)
	defer cancel()
	return c.o.Client.Get(ctx, key, options...)
}

// watch applies changes from the state's revision on. It returns when the watch
// breaks or all keys shall be listed again, and reports whether etcd answered at
// all.
func (c *Catalog) watch(ctx context.Context) (began bool, _ error) {
	var from int64
	var etcd uint64
	c.Read(func(s *State) { from, etcd = s.Revision+1, s.etcd })
	// A watch from a revision that etcd does not have yet would wait for it in
	// silence.
	response, err := c.get(ctx, c.o.Layout.Cluster(), clientv3.WithKeysOnly())
	if err != nil {
		return false, fmt.Errorf("read revision: %w", err)
	}
	if response.Header.GetClusterId() != etcd {
		return false, errOther
	}
	if revision := response.Header.GetRevision(); revision < from-1 {
		return false, fmt.Errorf("%w from revision %d to %d", errBack, from-1, revision)
	}
	// A member of etcd that is cut off from its leader shall not keep us waiting.
	watchCtx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	events := c.o.Client.Watch(watchCtx, c.o.Layout.Prefix(), clientv3.WithPrefix(), clientv3.WithRev(from))
	relist := time.NewTimer(c.o.RelistInterval/2 + rand.N(c.o.RelistInterval))
	defer relist.Stop()
	for {
		select {
		case batch, ok := <-events:
			changes, err := gather(batch, ok, events, etcd)
			c.apply(changes)
			if err != nil {
				return true, err
			}
		case <-relist.C:
			return true, errRelist
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}

// gather returns the events of a batch and of those that have come after it
// already: an image costs more than a change does, and they share one. The error
// is that of the batch after the last of them, by which the watch has ended.
func gather(batch clientv3.WatchResponse, ok bool, more clientv3.WatchChan, etcd uint64) ([]*clientv3.Event, error) {
	var events []*clientv3.Event
	for {
		switch {
		case !ok:
			return events, errors.New("the watch ended")
		case batch.Err() != nil:
			return events, fmt.Errorf("watch keys: %w", batch.Err())
		case batch.Header.GetClusterId() != etcd:
			// The client library goes on with a broken watch wherever it gets a connection.
			return events, errOther
		}
		seen := int64(0)
		if n := len(events); n > 0 {
			seen = events[n-1].Kv.ModRevision
		}
		for _, event := range batch.Events {
			// A batch that is delivered twice must not undo what came between.
			if event.Kv.ModRevision > seen {
				events = append(events, event)
			}
		}
		if len(events) >= maxGathered {
			return events, nil
		}
		select {
		case batch, ok = <-more:
		default:
			return events, nil
		}
	}
}

// apply folds a batch of events, whole revisions in ascending order, into the
// state and publishes what they change.
func (c *Catalog) apply(events []*clientv3.Event) {
	if len(events) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	seen, changes := c.state.Revision, newChange()
	for _, event := range events {
		revision := event.Kv.ModRevision
		if revision <= seen {
			// Delivered twice, or older than the listing.
			continue
		}
		c.state.Revision = max(c.state.Revision, revision)
		if event.Type == mvccpb.Event_DELETE {
			c.state.remove(c.o.Layout, string(event.Kv.Key), revision, changes)
			continue
		}
		if err := c.state.put(c.o.Layout, event.Kv, changes); err != nil {
			c.o.Logger.Error("a change is left out", "error", err)
		}
	}
	c.publish(changes)
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Catalog) publish(changes *change) {
	held := c.o.View.Image()
	if held == nil {
		c.publishList(c.state)
		return
	}
	delta := c.state.delta(held, changes)
	if delta == nil {
		return
	}
	image, err := held.Apply(delta)
	if err != nil {
		c.o.Logger.Error("a change of the cluster makes no image; the whole state is published", "error", err)
		c.publishList(c.state)
		return
	}
	c.o.View.Publish(image, delta)
}
