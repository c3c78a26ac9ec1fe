// Package metadata is the metadata service: it keeps the state of the cluster in
// etcd, elects leaders, and tells everybody what the cluster looks like.
//
// Its nodes are replicas without state of their own: the data directory holds only
// who the node is. Each follows etcd and answers reads from its own image; one of
// them is controller and makes the decisions.
//
// A [Service] lives through [New], [Service.Register], [Service.Run]. It starts in
// this order: lock the data directory, join the cluster or found one, follow etcd
// and campaign for controller, register as a node. It stops in the reverse order,
// and resigns at the end of it.
package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	clientv3 "go.etcd.io/etcd/client/v3"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/app"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/controller"
	"github.com/runnel-mesh/runnel/services/metadata/internal/election"
	"github.com/runnel-mesh/runnel/services/metadata/internal/server"
)

const (
	// settle is how long a lease must stay lost before its node is fenced.
	settle = 250 * time.Millisecond
	// showTimeout is how long a call waits until this node shows what it has done.
	showTimeout = 10 * time.Second
	// producerIDs is how many producer ids a storage node gets at a time.
	producerIDs   = 1000
	minRetryDelay = 10 * time.Millisecond
	maxRetryDelay = time.Second
	// firstAttempt is what the first attempt to start is given.
	firstAttempt = time.Second
	// deregisterWithin bounds the farewell of a node that stops.
	deregisterWithin = 2 * time.Second
)

// Deps is what a service is given.
type Deps struct {
	// Etcd is a client without a namespace. The caller closes it after Run.
	// Required.
	Etcd *clientv3.Client
	// Dial returns a transport to the peer address of a fellow metadata node; nil
	// means HTTP.
	Dial func(address string) connect.Transport
	// Images is shared with other services of the process; it may be nil.
	Images *clusterview.Images
	// Logger may be nil.
	Logger *slog.Logger
	// Telemetry may be nil.
	Telemetry *telemetry.Telemetry
}

// Service is one metadata node.
type Service struct {
	// Immutable.
	config     Config
	client     *clientv3.Client
	layout     catalog.Layout
	logger     *slog.Logger
	pool       *transport.Pool
	view       *clusterview.View
	drain      *rpc.Drain
	catalog    *catalog.Catalog
	controller *controller.Controller
	server     *server.Server
	// status is ready once the node is registered and shows the cluster.
	status *app.Status
}

// New returns a service. It does no I/O and starts nothing; the configuration must
// be valid.
func New(config Config, deps Deps) *Service {
	logger := deps.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	tel := deps.Telemetry
	if tel == nil {
		tel = telemetry.Discard()
	}
	s := &Service{
		config: config,
		client: deps.Etcd,
		layout: catalog.NewLayout(config.Prefix),
		logger: logger,
		pool:   transport.NewPool(transport.Options{}),
		view:   clusterview.New(logger, deps.Images),
		drain:  rpc.NewDrain(),
		status: app.NewStatus("metadata service"),
	}
	dial := deps.Dial
	if dial == nil {
		dial = func(address string) connect.Transport { return s.pool.Transport(address, transport.Control) }
	}
	s.catalog = catalog.New(catalog.Options{
		Client: s.client, Layout: s.layout, View: s.view, Logger: logger,
		RelistInterval: config.RelistInterval, RequestTimeout: config.RequestTimeout,
	})
	s.controller = controller.New(controller.Options{
		Client: s.client, Layout: s.layout, Catalog: s.catalog, Logger: logger,
		Limits: controller.Limits{
			Partitions: config.MaxPartitions, PartitionsPerTopic: config.MaxPartitionsPerTopic, Nodes: config.MaxNodes,
			ReplicationFactor: config.MaxReplicationFactor,
		},
		PeerAddress: config.peerAddress(), LeaseTTL: config.LeaseTTL,
		BalanceInterval: config.BalanceInterval, BalanceMoves: config.BalanceMoves, OffsetsPartitions: config.OffsetsPartitions,
		Settle: settle, Grace: config.LeaseTTL, RequestTimeout: config.RequestTimeout,
		ProducerIDs: producerIDs, DeletedTopicRetention: config.DeletedTopicRetention,
	})
	s.server = server.New(server.Options{
		Client: s.client, Layout: s.layout, Catalog: s.catalog, Controller: s.controller, View: s.view,
		PeerAddress: config.peerAddress(), Dial: dial, Logger: logger, Telemetry: tel,
		LeaseTTL: config.LeaseTTL, RequestTimeout: config.RequestTimeout, ShowTimeout: showTimeout,
	})
	tel.Registry.MustRegister(s.view.Collectors("metadata")...)
	tel.Registry.MustRegister(s.catalog.Collectors()...)
	tel.Registry.MustRegister(s.controller.Collectors()...)
	return s
}

// Register registers TopicService and ClusterService on public, and on peer
// NodeService, PartitionService, OffsetsTopicService, ClusterService and what fellow
// metadata nodes forward. A ClusterService that another service has registered is left in place.
func (s *Service) Register(public, peer *connect.Server) {
	s.server.Mount(public, peer)
	clusterview.Register(public, s.view, s.drain)
	clusterview.Register(peer, s.view, s.drain)
}

// Run serves as a metadata node until ctx ends; it returns nil then, when it has
// resigned and deregistered as far as etcd could be reached. It returns an error
// if the node is not who it claims to be, or if another process has taken its
// place. While etcd cannot be reached it waits, and answers reads with what it
// knows. Run is called once.
func (s *Service) Run(ctx context.Context) error {
	err := s.run(ctx)
	s.status.SetStopped(err)
	return err
}

func (s *Service) run(ctx context.Context) (err error) {
	defer s.pool.Close()
	s.status.SetPhase("it opens its data directory")
	dir, err := datadir.Open(filepath.Join(s.config.DataDir, "metadata"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	self, err := dir.Identity()
	if err != nil {
		return err
	}

	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	s.status.SetPhase("it waits for " + server.EtcdName(s.client))
	self, err = s.join(running, dir, self)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}

	// Candidacy outlives ctx, so that the node can still deregister with itself, and
	// the catalog outlives both.
	following, stopFollowing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopFollowing()
	campaigning, stopCampaigning := context.WithCancel(following)
	defer stopCampaigning()
	var followers, candidates sync.WaitGroup
	followers.Go(func() {
		if err := s.catalog.Run(following); err != nil {
			fail(err)
		}
	})
	candidate := election.NewCandidate(election.Options{
		Client: s.client, Prefix: s.layout.Election(), Node: self.NodeID,
		TTL: s.config.LeaseTTL, Logger: s.logger, RequestTimeout: s.config.RequestTimeout,
	})
	candidates.Go(func() {
		err := candidate.Run(campaigning, func(ctx context.Context, term *election.Term) error {
			return s.controller.Lead(ctx, self.NodeID, term)
		})
		if err != nil {
			fail(err)
		}
	})

	s.status.SetPhase("it waits for a controller to register it")
	epoch, err := s.enroll(running, self)
	if err == nil {
		s.status.SetReady()
		s.logger.Info("metadata node is ready", "node_id", self.NodeID, "node_epoch", epoch, "cluster", cluster.TopicID(self.ClusterID), "address", s.config.address())
		err = s.heartbeat(running, self.NodeID, epoch)
	}
	if running.Err() != nil {
		err = context.Cause(running)
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil
		}
	}

	s.status.SetPhase("it is stopping")
	s.drain.Begin()
	if epoch != 0 {
		s.deregister(context.WithoutCancel(ctx), self.NodeID, epoch)
	}
	stopCampaigning()
	candidates.Wait()
	stopFollowing()
	followers.Wait()
	return err
}

// join finds out, with etcd, to which cluster the node belongs and which number it
// has, records it in the directory, and returns it. It tries until etcd answers or
// ctx ends.
func (s *Service) join(ctx context.Context, dir *datadir.Dir, self datadir.Identity) (datadir.Identity, error) {
	if s.config.NodeID != 0 && self.NodeID != 0 && self.NodeID != s.config.NodeID {
		return self, fmt.Errorf("data directory %s belongs to node %d, not to node %d: start the node with its own directory, or without a node id", dir.Path(), self.NodeID, s.config.NodeID)
	}
	err := s.retry(ctx, "etcd cannot be reached", func(ctx context.Context) error {
		clusterID, err := catalog.JoinCluster(ctx, s.client, s.layout, self.Known())
		if errors.Is(err, catalog.ErrNoCluster) {
			return final{fmt.Errorf("%s holds nothing under %q, but data directory %s belongs to cluster %s: check the endpoints and the prefix, or restore etcd from a backup",
				server.EtcdName(s.client), s.layout.Prefix(), dir.Path(), cluster.TopicID(self.ClusterID))}
		}
		if err != nil {
			return err
		}
		if self.Known() && clusterID != self.ClusterID {
			return final{fmt.Errorf("data directory %s belongs to cluster %s, but %s holds cluster %s under %q: check the endpoints and the prefix, or use an empty data directory",
				dir.Path(), cluster.TopicID(self.ClusterID), server.EtcdName(s.client), cluster.TopicID(clusterID), s.layout.Prefix())}
		}
		id := max(self.NodeID, s.config.NodeID)
		if id == 0 {
			if id, err = catalog.AllotNode(ctx, s.client, s.layout); err != nil {
				return err
			}
		}
		if self.ClusterID == clusterID && self.NodeID == id {
			return nil
		}
		self.ClusterID, self.NodeID = clusterID, id
		if err := dir.SetIdentity(self); err != nil {
			return final{err}
		}
		return nil
	})
	return self, err
}

// enroll registers the node with the controller, which may be itself, and returns
// the epoch of this process.
func (s *Service) enroll(ctx context.Context, self datadir.Identity) (cluster.NodeEpoch, error) {
	var epoch cluster.NodeEpoch
	err := s.retry(ctx, "no controller has registered this node yet", func(ctx context.Context) error {
		response, err := s.server.Register(ctx, &peerv1.RegisterRequest{
			ClusterId:   self.ClusterID[:],
			NodeId:      int32(self.NodeID),
			Role:        metadatav1.NodeRole_NODE_ROLE_METADATA,
			Address:     s.config.address(),
			PeerAddress: s.config.peerAddress(),
			DirectoryId: self.DirectoryID[:],
		})
		if err != nil {
			switch rpcerr.ReasonOf(err) {
			case errorsv1.Reason_REASON_NODE_MISMATCH, errorsv1.Reason_REASON_INVALID_REQUEST, errorsv1.Reason_REASON_LIMIT_REACHED:
				return final{fmt.Errorf("register node: %w", err)}
			}
			return err
		}
		epoch = cluster.NodeEpoch(response.GetNodeEpoch())
		_, err = s.view.WaitVersion(ctx, response.GetVersion())
		return err
	})
	return epoch, err
}

// heartbeat renews the node's lease until ctx ends. The error says that another
// process has taken the node's place.
func (s *Service) heartbeat(ctx context.Context, id cluster.NodeID, epoch cluster.NodeEpoch) error {
	every := s.config.LeaseTTL / 3
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
		_, err := s.server.Heartbeat(ctx, &peerv1.HeartbeatRequest{NodeId: int32(id), NodeEpoch: int64(epoch)})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case rpcerr.ReasonOf(err) == errorsv1.Reason_REASON_STALE_NODE_EPOCH:
			return fmt.Errorf("another process has registered as metadata node %d, and this one stops: give each process a data directory of its own: %w", id, err)
		case err != nil && !failing:
			s.logger.Warn("this node cannot renew its lease; it goes on trying", "error", err)
			failing = true
		case err == nil:
			failing = false
		}
	}
}

// deregister spares others the wait for the lease to run out.
func (s *Service) deregister(ctx context.Context, id cluster.NodeID, epoch cluster.NodeEpoch) {
	ctx, cancel := context.WithTimeout(ctx, deregisterWithin)
	defer cancel()
	if _, err := s.server.Deregister(ctx, &peerv1.DeregisterRequest{NodeId: int32(id), NodeEpoch: int64(epoch)}); err != nil {
		s.logger.Info("the node could not deregister; its lease runs out instead", "error", err)
	}
}

// final is an error that trying again does not mend.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// retry calls attempt until it succeeds or fails for good or ctx ends, each time with
// a limit that grows to RequestTimeout: where all nodes start together the first
// attempts may wait for one that takes calls and does not answer them yet.
func (s *Service) retry(ctx context.Context, what string, attempt func(context.Context) error) error {
	delay, limit := minRetryDelay, firstAttempt
	for reported := false; ; {
		limited, cancel := context.WithTimeout(ctx, min(limit, s.config.RequestTimeout))
		err := attempt(limited)
		cancel()
		if stop, ok := errors.AsType[final](err); ok {
			return stop.error
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case delay >= maxRetryDelay && !reported:
			// The first attempts come too early when everything starts at once.
			s.logger.Warn(what+"; trying again", "error", err)
			reported = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay, limit = min(2*delay, maxRetryDelay), min(2*limit, s.config.RequestTimeout)
	}
}

// Ready returns nil once the node is registered and shows the cluster, and an error
// that says what it is doing when ctx ends before, or when the service has
// stopped.
func (s *Service) Ready(ctx context.Context) error { return s.status.Ready(ctx) }

// Drain makes all streams end, so that watchers go on elsewhere. It returns at
// once and may be called more than once.
func (s *Service) Drain() { s.drain.Begin() }
