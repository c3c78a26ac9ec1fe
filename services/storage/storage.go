// Package storage is the storage service: it keeps partitions, leads those that
// the metadata service gives it, and serves producers and consumers.
//
// A [Service] lives through [New], [Service.Register], [Service.Run]. It starts
// in this order: open the store, register the node, record who the node is,
// follow the cluster until the registration is in it, lead. It stops in the
// reverse order: give away what it leads, end the streams, those of followers last,
// deregister, close the store, which leaves the clean marker last.
package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect/v2"

	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	storagepeerv1connect "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/app"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/node"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
	"github.com/runnel-mesh/runnel/services/storage/internal/replica"
	"github.com/runnel-mesh/runnel/services/storage/internal/replication"
	"github.com/runnel-mesh/runnel/services/storage/internal/server"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// Deps is what a service is given.
type Deps struct {
	// Metadata reaches ClusterService and the services for peers of the metadata
	// service. Required.
	Metadata connect.Transport
	// Peers returns the transport to the peer address of another storage node, for
	// replication; it must not block. nil is for a node that has no others.
	Peers func(address string) connect.Transport
	// Images is shared with other services of the process; it may be nil.
	Images *clusterview.Images
	// Logger may be nil.
	Logger *slog.Logger
	// Telemetry may be nil.
	Telemetry *telemetry.Telemetry
	// Health learns of [PartitionsHealth]; it may be nil. The rest of it is its
	// owner's.
	Health *rpc.Health
}

// PartitionsHealth is the name by which grpc.health.v1 tells whether all
// partitions of the node are whole: it is not serving while any has failed, before
// the store is open, and after it is closed. The node as a whole goes on serving
// then.
const PartitionsHealth = "runnel.storage.v1.partitions"

// Service is one storage node.
type Service struct {
	// Immutable.
	config   Config
	logger   *slog.Logger
	tel      *telemetry.Telemetry
	view     *clusterview.View
	drain    *rpc.Drain
	host     *partition.Host
	replicas *replica.Replicas
	ids      *server.ProducerIDs
	log      *server.Server
	fenced   *server.Fenced
	// replication is the leader's end of the streams, on a drain of its own: it ends
	// when the producers have, whose acknowledgements come by it.
	replication      *replication.Server
	replicationDrain *rpc.Drain
	followers        *replication.Followers
	proposer         *replication.Proposer
	nodes            peerv1connect.NodeServiceClient
	clusters         metadatav1connect.ClusterServiceClient
	health           *rpc.Health
	// status is ready once the node leads what it is given, and node is set then.
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
	health := deps.Health
	if health == nil {
		health = rpc.NewHealth()
	}
	health.SetServing(PartitionsHealth, false)
	client := rpc.NewClient(deps.Metadata, tel)
	view := clusterview.New(logger, deps.Images)
	tel.Registry.MustRegister(view.Collectors("storage")...)
	partitions := config.partitionConfig()
	partitions.Logger = logger
	host := partition.NewHost(partitions, func(id cluster.NodeID) string { return replica.Address(view, id) }, tel.Registry)
	s := &Service{
		config:   config,
		logger:   logger,
		tel:      tel,
		view:     view,
		drain:    rpc.NewDrain(),
		host:     host,
		replicas: replica.New(host, view, logger, config.AcceptLosses),
		ids:      server.NewProducerIDs(),
		nodes:    peerv1connect.NewNodeServiceClient(client),
		clusters: metadatav1connect.NewClusterServiceClient(client),
		health:   health,
		status:   app.NewStatus("storage service"),

		replicationDrain: rpc.NewDrain(),
	}
	s.log = server.New(config.serverConfig(), host, s.replicas, s.ids, s.drain, logger, tel.Registry)
	s.fenced = server.NewFenced(host, s.replicas, logger, tel.Registry)
	s.replicate(deps.Peers, peerv1connect.NewPartitionServiceClient(client))
	return s
}

// replicate makes the parts that replicate.
func (s *Service) replicate(peers func(address string) connect.Transport, partitions peerv1connect.PartitionServiceClient) {
	if peers == nil {
		peers = func(string) connect.Transport { return rpc.Failover() }
	}
	config := s.config.replicationConfig()
	metrics := replication.NewMetrics(s.tel.Registry, func() int { return replication.UnderReplicated(s.view, s.host.Self()) })
	s.proposer = replication.NewProposer(config, s.view, partitions, s.host.Proposing, s.logger, metrics)
	s.replication = replication.NewServer(config, s.replicas, s.nodeEpoch, s.proposer, s.replicationDrain, s.logger, metrics)
	s.followers = replication.NewFollowers(s.view, s.replicas, peers, s.logger, metrics)
}

// nodeEpoch returns the epoch of the latest process of a node that this one knows of.
func (s *Service) nodeEpoch(id cluster.NodeID) (cluster.NodeEpoch, bool) {
	image := s.view.Image()
	if image == nil {
		return 0, false
	}
	node, ok := image.Node(id)
	if !ok {
		return 0, false
	}
	return node.Epoch, true
}

// Register registers LogService on public, and ClusterService unless another
// service of the process has registered it there, and ReplicationService and
// FencedAppendService on peer.
func (s *Service) Register(public, peer *connect.Server) {
	storagev1connect.RegisterLogServiceHandler(public, s.log)
	storagepeerv1connect.RegisterReplicationServiceHandler(peer, s.replication)
	storagepeerv1connect.RegisterFencedAppendServiceHandler(peer, s.fenced)
	for spec := range public.Specs() {
		if spec.Procedure == metadatav1connect.ClusterServiceGetClusterProcedure {
			return
		}
	}
	metadatav1connect.RegisterClusterServiceHandler(public, clusterview.NewHandler(s.view, s.drain))
}

// Run opens the store, registers the node and leads partitions until ctx ends; it
// returns nil then, once the store is closed. It returns an error if the store
// fails, if the node is not who it claims to be, or if another process has taken
// its place. While the metadata service cannot be reached it waits, and leads on
// what it leads already. Run is called once.
func (s *Service) Run(ctx context.Context) error {
	err := s.run(ctx)
	s.status.SetStopped(err)
	return err
}

func (s *Service) run(ctx context.Context) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	var failed atomic.Pointer[error]
	fail := func(err error) {
		failed.CompareAndSwap(nil, &err)
		stop()
	}
	s.status.SetPhase("it opens the store")
	boot := bootID()
	var damage damageReport
	config := s.config.storeConfig()
	config.BootID = boot
	config.Logger = withTopicNames(s.logger, s.view)
	config.Registerer = s.tel.Registry
	config.OnFatal = func(err error) { fail(fmt.Errorf("store: %w", err)) }
	config.OnStall = s.stalled
	config.OnFailed = func(failed int) {
		damage.set(failed)
		s.failed(failed > 0)
	}
	st, err := store.Open(config)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	damage.begin(s.health)
	defer damage.end()

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
	start(s.host.Run)
	start(s.endReplication)

	n, err := s.register(running, st, boot)
	if err == nil {
		start(n.Heartbeat)
		start(func(ctx context.Context) error { return s.ids.Run(ctx, s.allocate(n)) })
		start(func(ctx context.Context) error { return s.replicas.Run(ctx, st, n.Version) })
		start(func(ctx context.Context) error { return s.proposer.Run(ctx, n.ID, n.Epoch) })
		start(func(ctx context.Context) error { return s.followers.Run(ctx, n.ID, n.Epoch, n.Version) })
		s.status.SetPhase("it waits for the cluster to know of it")
		err = s.replicas.WaitApplied(running, n.Version)
	}
	if err == nil {
		s.node.Store(n)
		s.status.SetReady()
		s.logger.Info("storage node leads", "node_id", n.ID, "node_epoch", n.Epoch, "address", s.config.address(), "directory", config.Dir)
		<-running.Done()
	}
	if running.Err() != nil {
		// The steps above failed because of that, if they did.
		err = nil
		if first := failed.Load(); first != nil {
			err = *first
		}
	}

	s.status.SetPhase("it is stopping")
	if err == nil {
		s.Leave(context.WithoutCancel(ctx))
	}
	s.drain.Begin()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Grace)
	if s.log.Wait(grace) != nil {
		s.logger.Warn("streams that did not end in time are left to the transport", "grace", s.config.Grace)
	}
	s.replicationDrain.Begin()
	if s.replication.Wait(grace) != nil {
		s.logger.Warn("streams of followers that did not end in time are left to the transport", "grace", s.config.Grace)
	}
	cancel()
	var epoch int64
	if n != nil {
		epoch = int64(n.Epoch)
		n.Deregister(context.WithoutCancel(ctx))
	}
	stopWork()
	workers.Wait()
	s.replicas.Close()
	if closed := st.Close(epoch); closed != nil {
		err = errors.Join(err, fmt.Errorf("close store: %w", closed))
	}
	return err
}

// endReplication ends the streams of followers once the producers have gone, for
// whose acknowledgements they are needed, or have been given time to.
func (s *Service) endReplication(ctx context.Context) error {
	select {
	case <-s.drain.C():
	case <-ctx.Done():
		return nil
	}
	grace, cancel := context.WithTimeout(ctx, s.config.Grace)
	defer cancel()
	_ = s.log.Wait(grace)
	s.replicationDrain.Begin()
	return nil
}

// Ready returns nil once the node leads what it is given, and an error that says
// what it is doing when ctx ends before, or when the service has stopped.
func (s *Service) Ready(ctx context.Context) error { return s.status.Ready(ctx) }

// Drain makes all streams end, so that clients go on elsewhere. It returns at
// once and may be called more than once.
func (s *Service) Drain() { s.drain.Begin() }
