// Package coordinator is the coordinator service: it keeps consumer groups, who is a
// member of them, who reads which partition, and how far each group has come.
//
// A [Service] lives through [New], [Service.Register], [Service.Run]. It starts in
// this order: open the data directory, register the node, record who the node is,
// follow the cluster until the registration is in it, coordinate. It stops in the
// reverse order: give its partitions to other coordinators, end the streams, deregister.
// It keeps nothing but who it is: groups are records of the topic __consumer_offsets,
// which storage nodes have.
package coordinator

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/coordinator/internal/groups"
	"github.com/runnel-mesh/runnel/services/coordinator/internal/lag"
	"github.com/runnel-mesh/runnel/services/coordinator/internal/offsets"
	"github.com/runnel-mesh/runnel/services/coordinator/internal/server"
	"github.com/runnel-mesh/runnel/services/internal/app"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
	"github.com/runnel-mesh/runnel/services/internal/node"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

// Deps is what a service is given.
type Deps struct {
	// Metadata reaches ClusterService and the services for peers of the metadata
	// service. Required.
	Metadata connect.Transport
	// Storage returns the transport to the address for clients of a storage node, and
	// Peers that to its address for peers; they must not block. Required.
	Storage, Peers func(address string) connect.Transport
	// Images is shared with other services of the process; it may be nil.
	Images *clusterview.Images
	// Logger may be nil.
	Logger *slog.Logger
	// Telemetry may be nil.
	Telemetry *telemetry.Telemetry
}

// Service is one coordinator node.
type Service struct {
	// Immutable.
	config   Config
	logger   *slog.Logger
	view     *clusterview.View
	drain    *rpc.Drain
	host     *groups.Host
	server   *server.Server
	lag      *lag.Collector
	nodes    peerv1connect.NodeServiceClient
	clusters metadatav1connect.ClusterServiceClient
	// status is ready once the node coordinates what it is given; node is set as soon as
	// it is registered.
	status *app.Status
	node   atomic.Pointer[node.Node]
	// leaving is done once the node has given away what it can.
	leaving sync.Once
}

// New returns a service. It does no I/O and starts nothing; the configuration
// must be valid.
func New(config Config, deps Deps) *Service {
	logger := deps.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	tel := deps.Telemetry
	if tel == nil {
		tel = telemetry.Discard()
	}
	client := rpc.NewClient(deps.Metadata, tel)
	view := clusterview.New(logger, deps.Images)
	tel.Registry.MustRegister(view.Collectors("coordinator")...)
	leaders := offsets.NewLeaders(view, deps.Storage, deps.Peers, logger, tel)
	s := &Service{
		config:   config,
		logger:   logger,
		view:     view,
		drain:    rpc.NewDrain(),
		host:     groups.NewHost(config.rulesConfig(), leaders, view, logger, tel.Registry),
		nodes:    peerv1connect.NewNodeServiceClient(client),
		clusters: metadatav1connect.NewClusterServiceClient(client),
		status:   app.NewStatus("coordinator service"),
	}
	s.lag = lag.New(lag.Config{Interval: config.LagInterval, Series: config.LagSeries}, s.host.Offsets, leaders.Ends)
	tel.Registry.MustRegister(s.lag)
	s.server = server.New(config.serverConfig(), server.Deps{
		Host: s.host, Leaders: leaders, View: view, Topics: peerv1connect.NewOffsetsTopicServiceClient(client),
		Self: s.self, Drain: s.drain, Logger: logger, Registerer: tel.Registry,
	})
	return s
}

// self returns the number of the node, 0 before it has one.
func (s *Service) self() cluster.NodeID {
	if n := s.node.Load(); n != nil {
		return n.ID
	}
	return 0
}

// Register registers GroupService and OffsetService on public, and ClusterService
// unless another service of the process has registered it there. Peers are offered
// nothing.
func (s *Service) Register(public, _ *connect.Server) {
	coordinatorv1connect.RegisterGroupServiceHandler(public, s.server)
	coordinatorv1connect.RegisterOffsetServiceHandler(public, s.server)
	clusterview.Register(public, s.view, s.drain)
}

// Run registers the node and coordinates groups until ctx ends; it returns nil then.
// It returns an error if the node is not who it claims to be, or if another process
// has taken its place. While the metadata service cannot be reached it waits, and
// coordinates on what it coordinates already. Run is called once.
func (s *Service) Run(ctx context.Context) error {
	err := s.run(ctx)
	s.status.SetStopped(err)
	return err
}

func (s *Service) run(ctx context.Context) (err error) {
	s.status.SetPhase("it opens its data directory")
	dir, err := datadir.Open(s.config.directory())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	identity, err := dir.Identity()
	if err != nil {
		return err
	}

	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// Workers outlive ctx: they are stopped after the streams.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var workers sync.WaitGroup
	start := func(worker func(context.Context) error) {
		workers.Go(func() {
			if err := worker(work); err != nil {
				fail(err)
			}
		})
	}
	start(func(ctx context.Context) error { return s.view.Follow(ctx, s.clusters) })
	n, err := s.register(running, dir, identity)
	if err == nil {
		s.node.Store(n)
		start(n.Heartbeat)
		start(func(ctx context.Context) error { return s.host.Run(ctx, n.ID, n.Version) })
		start(s.lag.Run)
		s.status.SetPhase("it waits for the cluster to know of it")
		err = s.host.WaitApplied(running, n.Version)
	}
	if err == nil {
		s.status.SetReady()
		s.logger.Info("coordinator node is ready", "node_id", n.ID, "node_epoch", n.Epoch, "address", s.config.address())
		<-running.Done()
	}
	if running.Err() != nil {
		// The steps above failed because of that, if they did.
		if err = context.Cause(running); ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil
		}
	}

	s.status.SetPhase("it is stopping")
	if err == nil {
		s.Leave(context.WithoutCancel(ctx))
	}
	s.drain.Begin()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Grace)
	if s.server.Wait(grace) != nil {
		s.logger.Warn("streams that did not end in time are left to the transport", "grace", s.config.Grace)
	}
	cancel()
	if n != nil {
		n.Deregister(context.WithoutCancel(ctx))
	}
	stopWork()
	workers.Wait()
	return err
}

// register announces the process and records in the data directory who it is.
func (s *Service) register(ctx context.Context, dir *datadir.Dir, identity datadir.Identity) (*node.Node, error) {
	s.status.SetPhase("it waits for the metadata service to register it")
	return node.Register(ctx, s.nodes, node.Process{
		Role:      metadatav1.NodeRole_NODE_ROLE_COORDINATOR,
		NodeID:    s.config.NodeID,
		Directory: dir.Path(),
		Identity:  identity,
		Record: func(clusterID [16]byte, id cluster.NodeID) error {
			if identity.ClusterID == clusterID && identity.NodeID == id {
				return nil
			}
			identity.ClusterID, identity.NodeID = clusterID, id
			return dir.SetIdentity(identity)
		},
		Address:     s.config.address(),
		PeerAddress: s.config.peerAddress(),
	}, s.logger)
}

// Leave gives the groups of the node to other coordinators, if there are any, and
// returns once the node has taken note of that, after [Config.Grace], or when ctx ends.
// Members that are sent away find the next coordinator and keep what they have. It does
// something once, and nothing before the node is registered.
func (s *Service) Leave(ctx context.Context) {
	s.leaving.Do(func() {
		n := s.node.Load()
		if n == nil {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, s.config.Grace)
		defer cancel()
		began := time.Now()
		moved := n.Leave(ctx, func() int { return others(s.view.Image(), n.ID) }, s.host.WaitApplied)
		if left := others(s.view.Image(), n.ID); left > 0 {
			s.logger.Warn("the node stops although it coordinates groups that others could take over", "partitions", left, "grace", s.config.Grace)
		} else if moved {
			s.logger.Info("others coordinate the groups that the node had", "took", time.Since(began))
		}
	})
}

// others counts the partitions that a node coordinates and another could coordinate.
func others(image *cluster.Image, self cluster.NodeID) (count int) {
	if image == nil {
		return 0
	}
	topic, ok := image.Topic(cluster.OffsetsTopic)
	if !ok {
		return 0
	}
	able := false
	for _, n := range image.Nodes() {
		able = able || n.Role == metadatav1.NodeRole_NODE_ROLE_COORDINATOR && n.ID != self && !n.Fenced && !n.Leaving
	}
	if !able {
		return 0
	}
	for i := range topic.Partitions {
		if topic.Partitions[i].Coordinator == self {
			count++
		}
	}
	return count
}

// Ready returns nil once the node coordinates what it is given, and an error that says
// what it is doing when ctx ends before, or when the service has stopped.
func (s *Service) Ready(ctx context.Context) error { return s.status.Ready(ctx) }

// Drain makes all streams end, so that clients go on elsewhere. It returns at
// once and may be called more than once.
func (s *Service) Drain() { s.drain.Begin() }
