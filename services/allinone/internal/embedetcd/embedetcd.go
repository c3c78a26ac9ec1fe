// Package embedetcd runs an etcd of one member inside the process: it listens on
// no port and no socket, and its clients call it directly.
package embedetcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
)

// Config says where an etcd keeps its data and how much it may hold.
type Config struct {
	// Dir is its directory; it is created if need be.
	Dir string
	// QuotaBytes bounds the size of its database.
	QuotaBytes int64
	// Logger gets warnings and errors.
	Logger *slog.Logger
}

// The raft timer of a single member only decides how soon it elects itself after
// a start: within two ticks.
const (
	tick     = 100 * time.Millisecond
	election = 10 * tick
)

// Etcd is a running etcd.
type Etcd struct {
	server   *embed.Etcd
	client   *clientv3.Client
	stopping *atomic.Bool
}

// Start starts etcd and returns once it serves, or an error if it does not
// before ctx ends. The caller makes sure that nobody else uses the directory:
// etcd would wait for the other one without end.
func Start(ctx context.Context, c Config) (*Etcd, error) {
	stopping := new(atomic.Bool)
	server, err := embed.StartEtcd(settings(c, stopping))
	if err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", c.Dir, err)
	}
	select {
	case <-server.Server.ReadyNotify():
		return &Etcd{server: server, client: v3client.New(server.Server), stopping: stopping}, nil
	case err = <-server.Err():
	case <-server.Server.StopNotify():
		err = errors.New("it has stopped")
	case <-ctx.Done():
		err = ctx.Err()
	}
	server.Close()
	return nil, fmt.Errorf("start etcd in %s: %w", c.Dir, err)
}

func settings(c Config, stopping *atomic.Bool) *embed.Config {
	e := embed.NewConfig()
	e.Name = "runnel"
	e.Dir = c.Dir
	e.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(&slogCore{logger: c.Logger, stopping: stopping}))

	// A member has to have addresses, even if it listens on none.
	nowhere := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	e.AdvertisePeerUrls, e.AdvertiseClientUrls = nowhere, nowhere
	e.ListenPeerUrls, e.ListenClientUrls = nil, nil
	e.InitialCluster = e.InitialClusterFromName(e.Name)

	e.AuthToken = "" // Nobody logs in.

	e.TickMs, e.ElectionMs = uint(tick.Milliseconds()), uint(election.Milliseconds())

	// Only the latest state is ever read, and watchers that fall behind list anew.
	e.AutoCompactionMode = embed.CompactorModePeriodic
	e.AutoCompactionRetention = "10m"
	e.QuotaBackendBytes = c.QuotaBytes
	// Entries between snapshots are held in memory and replayed at a start; one has
	// up to 128 records. There is no other member to catch up.
	e.SnapshotCount = 500
	e.SnapshotCatchUpEntries = 50
	e.MaxSnapFiles, e.MaxWalFiles = 2, 2
	// Disks of small machines take this long now and then; it harms nobody.
	e.WarningApplyDuration = time.Second
	e.WarningUnaryRequestDuration = 2 * time.Second
	return e
}

// Client returns the client that calls the server directly. It is closed with
// the server.
func (e *Etcd) Client() *clientv3.Client { return e.client }

// Failed is closed when etcd has stopped by itself.
func (e *Etcd) Failed() <-chan struct{} { return e.server.Server.StopNotify() }

// Close stops etcd and waits for it. Whoever uses the client must be done.
func (e *Etcd) Close() error {
	e.stopping.Store(true)
	err := e.client.Close()
	e.server.Close()
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the client of etcd: %w", err)
	}
	return nil
}
