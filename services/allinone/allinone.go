// Package allinone runs a whole cluster in one process: an embedded etcd, the
// metadata service, the storage service and the coordinator service, on one public
// port.
//
// It runs the same services as separate processes do. They reach each other by
// the same clients; only the transport between them is in-process. What services
// offer to each other is never on the port, and etcd listens nowhere.
//
// `runnel up` is this package with a command line. It is also the way to have a
// real cluster in a Go test, see [Start].
package allinone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/allinone/internal/embedetcd"
	"github.com/runnel-mesh/runnel/services/coordinator"
	"github.com/runnel-mesh/runnel/services/internal/app"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
	"github.com/runnel-mesh/runnel/services/metadata"
	"github.com/runnel-mesh/runnel/services/storage"
)

const (
	// etcdStartTimeout is far beyond what a start takes, with a database of any size
	// that the quota allows.
	etcdStartTimeout = time.Minute
	// probeTimeout bounds the look at who else holds the port.
	probeTimeout = time.Second
	// flushTimeout bounds what telemetry still sends at a stop.
	flushTimeout = 3 * time.Second
)

// Cluster is a cluster of one process. Create it with [New] and run it once.
type Cluster struct {
	config Config
	logger *slog.Logger

	ready, stopped chan struct{} // Each closed once, by Run.

	mu      sync.Mutex
	address string
	err     error
}

// New returns a cluster that does nothing yet, or all faults of the
// configuration.
func New(config Config) (*Cluster, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	logger := config.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Cluster{config: config, logger: logger, ready: make(chan struct{}), stopped: make(chan struct{})}, nil
}

// Start runs a cluster in the background and returns once it is ready. Stop stops
// it, waits until everything is on disk and returns what Run returned; it may be
// called more than once, and must be called. If ctx ends before the cluster is
// ready, or the cluster fails, there is nothing to stop.
//
// A test calls it with DataDir set to its own temporary directory and Listen to
// "127.0.0.1:0".
func Start(ctx context.Context, config Config) (c *Cluster, stop func() error, err error) {
	if c, err = New(config); err != nil {
		return nil, nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- c.Run(running) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	if err := c.Ready(ctx); err != nil {
		if stopErr := stop(); stopErr != nil {
			err = stopErr
		}
		return nil, nil, err
	}
	return c, stop, nil
}

// Ready blocks until clients can use the cluster, and returns an error if ctx ends
// or the cluster stops before.
func (c *Cluster) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
	case <-c.stopped:
	case <-ctx.Done():
		return fmt.Errorf("the cluster is not ready yet: %w", ctx.Err())
	}
	select {
	case <-c.stopped:
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err != nil {
			return c.err
		}
		return errors.New("the cluster has been stopped")
	default:
		return nil
	}
}

// Address is the host:port at which clients reach the cluster, with the real port;
// empty until Run listens. It is known once the cluster is ready.
func (c *Cluster) Address() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.address
}

// DataDir is the directory that holds everything.
func (c *Cluster) DataDir() string { return c.config.DataDir }

// Run starts the cluster and serves until ctx ends; it returns nil then, once all
// data is on disk. An error that keeps the cluster from starting says what to do;
// one of a service names the service. Run is called once.
func (c *Cluster) Run(ctx context.Context) error {
	defer close(c.stopped)
	err := c.run(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	return err
}

func (c *Cluster) run(ctx context.Context) (err error) {
	// The port first: it is what most often is wrong, and trying it changes nothing.
	listener, err := listen(ctx, c.config.Listen)
	if err != nil {
		return err
	}
	defer listener.Close() // Again; the server closes it first.
	dir, err := openDirectory(c.config.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	tel, err := telemetry.Setup(ctx, "runnel", c.logger)
	if err != nil {
		return err
	}
	defer c.flush(ctx, tel)

	etcd, err := c.startEtcd(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer func() { err = errors.Join(err, etcd.Close()) }()

	address := c.config.advertised(listener.Addr())
	c.mu.Lock()
	c.address = address
	c.mu.Unlock()

	group := app.New(c.logger, c.components(listener, address, etcd, tel)...)
	return c.runGroup(ctx, group)
}

func (c *Cluster) startEtcd(ctx context.Context) (*embedetcd.Etcd, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdStartTimeout)
	defer cancel()
	return embedetcd.Start(ctx, embedetcd.Config{
		Dir: c.config.etcdDir(), QuotaBytes: c.config.EtcdQuotaBytes, Logger: c.logger.With("service", "etcd"),
	})
}

// components returns the parts of the cluster in the order in which they start:
// each needs those before it, also while it stops. So the server comes before
// the services, as clients must hear from them that they are leaving, but does
// not open its doors until they are ready.
func (c *Cluster) components(listener net.Listener, address string, etcd *embedetcd.Etcd, tel *telemetry.Telemetry) []app.Component {
	metadataConfig, storageConfig, coordinatorConfig := c.config.services(address)
	// Two servers: what is on the peer server is reached in the process only.
	options := rpc.ServerOptions{Logger: c.logger, Telemetry: tel}
	public, peer := rpc.NewServer(options), rpc.NewServer(options)
	images := new(clusterview.Images)
	meta := metadata.New(metadataConfig, metadata.Deps{
		Etcd: etcd.Client(), Images: images, Logger: c.logger.With("service", "metadata"), Telemetry: tel,
	})
	meta.Register(public, peer)
	health := rpc.NewHealth()
	toPublic := func(string) connect.Transport { return rpc.InProcess(public) }
	toPeer := func(string) connect.Transport { return rpc.InProcess(peer) }
	store := storage.New(storageConfig, storage.Deps{
		Metadata: rpc.InProcess(peer), Peers: toPeer, Images: images,
		Logger: c.logger.With("service", "storage"), Telemetry: tel, Health: health,
	})
	store.Register(public, peer)
	groups := coordinator.New(coordinatorConfig, coordinator.Deps{
		Metadata: rpc.InProcess(peer), Storage: toPublic, Peers: toPeer, Images: images,
		Logger: c.logger.With("service", "coordinator"), Telemetry: tel,
	})
	groups.Register(public, peer)
	services := append(rpc.ServiceNames(public), "")
	setServing(health, services, false)
	drain := rpc.NewDrain()
	open := make(chan struct{}) // Closed by the doors.

	return []app.Component{
		{Name: "etcd", Run: func(ctx context.Context) error {
			select {
			case <-etcd.Failed():
				return errors.New("etcd has stopped by itself; the log says why")
			case <-ctx.Done():
				return nil
			}
		}},
		{Name: "server", Run: func(ctx context.Context) error {
			select {
			case <-open:
			case <-ctx.Done():
				return nil
			}
			return rpc.Serve(ctx, rpc.ServeOptions{
				Listener: listener, Server: public, Drain: drain, Health: health, Reflection: true,
				Handlers:       map[string]http.Handler{"/metrics": tel.MetricsHandler()},
				Grace:          c.config.Grace,
				MaxConnections: c.config.MaxConnections,
				Logger:         c.logger, Telemetry: tel,
			})
		}},
		{Name: "metadata", Run: meta.Run, Ready: meta.Ready},
		{Name: "storage", Run: store.Run, Ready: store.Ready},
		{Name: "coordinator", Run: groups.Run, Ready: groups.Ready},
		{Name: "doors", Run: func(ctx context.Context) error {
			setServing(health, services, true)
			close(open)
			<-ctx.Done()
			setServing(health, services, false)
			// Before the services drain, which would wait for clients that do not read.
			drain.Begin()
			return nil
		}},
	}
}

func setServing(health *rpc.Health, services []string, serving bool) {
	for _, name := range services {
		health.SetServing(name, serving)
	}
}

// runGroup runs the services and tells when they are ready.
func (c *Cluster) runGroup(ctx context.Context, group *app.Group) error {
	var announce sync.WaitGroup
	announce.Go(func() {
		if group.Ready(context.WithoutCancel(ctx)) == nil {
			close(c.ready)
			// Starting a cluster of many partitions leaves garbage of several times what
			// stays, and an idle process collects none for minutes.
			debug.FreeOSMemory()
		}
	})
	err := group.Run(ctx)
	announce.Wait()
	return err
}

func (c *Cluster) flush(ctx context.Context, tel *telemetry.Telemetry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if err := tel.Shutdown(ctx); err != nil {
		c.logger.Warn("the last traces and metrics could not be exported", "error", err)
	}
}

// listen takes the port. Its errors are sentences that say what to do.
func listen(ctx context.Context, address string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return listener, nil
	case errors.Is(err, syscall.EADDRINUSE) && isRunnel(ctx, address):
		return nil, fmt.Errorf("another runnel serves at %s already; use that one, stop it, or choose another port with --listen (port 0 takes a free one)", address)
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("another program listens at %s already; choose another port with --listen (port 0 takes a free one)", address)
	}
	return nil, fmt.Errorf("listen at %s; choose another address with --listen: %w", address, err)
}

// isRunnel reports whether a cluster answers at the address.
func isRunnel(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	pool := transport.NewPool(transport.Options{DialTimeout: probeTimeout})
	defer pool.Close()
	client := metadatav1connect.NewClusterServiceClient(connect.NewClient(pool.Transport(address, transport.Control)))
	_, err := client.GetCluster(ctx, &metadatav1.GetClusterRequest{ExcludeTopics: true})
	return err == nil
}
