package allinone

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/runnel-mesh/runnel/services/coordinator"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/metadata"
	"github.com/runnel-mesh/runnel/services/storage"
)

// Config says where a cluster keeps its data and where clients reach it. Start
// from [DefaultConfig].
type Config struct {
	// DataDir is the directory that holds everything; it is created if need be, and
	// used by one process at a time. Default "runnel-data".
	DataDir string
	// Listen is the host:port of the one public port. Port 0 takes a free one, see
	// [Cluster.Address]. Default "127.0.0.1:7070".
	Listen string
	// Advertise is the host:port at which clients reach Listen. Empty means Listen
	// itself, or 127.0.0.1 where Listen names no host.
	Advertise string
	// Logger gets what the cluster has to say; nil discards.
	Logger *slog.Logger
	// Grace is how long calls and streams may take to end at a stop; at least 0.
	// Default 10 s.
	Grace time.Duration
	// MaxConnections bounds the open connections of clients; at least 1. Default
	// 10,000.
	MaxConnections int
	// EtcdQuotaBytes bounds the database of the embedded etcd, which holds the state
	// of the cluster but no records: 16 MiB to 8 GiB. Default 1 GiB.
	EtcdQuotaBytes int64
	// Metadata is the configuration of the metadata service. Its data directory and
	// addresses are set from the fields above.
	Metadata metadata.Config
	// Storage is the configuration of the storage service. Its data directory,
	// addresses and grace are set from the fields above.
	Storage storage.Config
	// Coordinator is the configuration of the coordinator service, of which the same is
	// set.
	Coordinator coordinator.Config
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		DataDir:        "runnel-data",
		Listen:         "127.0.0.1:7070",
		Grace:          rpc.DefaultGrace,
		MaxConnections: rpc.DefaultMaxConnections,
		EtcdQuotaBytes: 1 << 30,
		Metadata:       metadata.DefaultConfig(),
		Storage:        storage.DefaultConfig(),
		Coordinator:    coordinator.DefaultConfig(),
	}
}

// Validate returns all faults of the configuration in one error.
func (c Config) Validate() error {
	var faults []error
	check := func(ok bool, key string, got any, legal string) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s is %v, must be %s", key, got, legal))
		}
	}
	check(c.DataDir != "", "DataDir", `""`, "a directory")
	checkAddress := func(key, address string, minPort uint64) {
		_, port, err := net.SplitHostPort(address)
		n, portErr := strconv.ParseUint(port, 10, 16)
		check(err == nil && portErr == nil && n >= minPort, key, strconv.Quote(address), fmt.Sprintf("host:port with a port of %d to 65535", minPort))
	}
	checkAddress("Listen", c.Listen, 0)
	if c.Advertise != "" {
		checkAddress("Advertise", c.Advertise, 1)
	}
	check(c.Grace >= 0, "Grace", c.Grace, "at least 0s")
	check(c.MaxConnections >= 1, "MaxConnections", c.MaxConnections, "at least 1")
	check(c.EtcdQuotaBytes >= 16<<20 && c.EtcdQuotaBytes <= 8<<30, "EtcdQuotaBytes", c.EtcdQuotaBytes, "16777216 to 8589934592")
	if len(faults) == 0 {
		// With any port, as the real one may not be known yet.
		m, s, g := c.services("127.0.0.1:7070")
		faults = append(faults, m.Validate(), s.Validate(), g.Validate())
	}
	return errors.Join(faults...)
}

// services returns the configurations of the services for the address at which
// clients reach the cluster. The services for peers are reached in the process
// only.
func (c Config) services(address string) (metadata.Config, storage.Config, coordinator.Config) {
	m, s, g := c.Metadata, c.Storage, c.Coordinator
	m.DataDir, s.DataDir, g.DataDir = c.DataDir, c.DataDir, c.DataDir
	m.Listen, m.Advertise, m.PeerListen, m.AdvertisePeer = address, "", "", ""
	s.Listen, s.Advertise, s.PeerListen, s.AdvertisePeer = address, "", "", ""
	g.Listen, g.Advertise, g.PeerListen, g.AdvertisePeer = address, "", "", ""
	s.Grace, g.Grace = c.Grace, c.Grace
	return m, s, g
}

// advertised is where clients reach the cluster, given the real address of the
// listener.
func (c Config) advertised(listener net.Addr) string {
	if c.Advertise != "" {
		return c.Advertise
	}
	host, _, err := net.SplitHostPort(c.Listen)
	_, port, portErr := net.SplitHostPort(listener.String())
	if err != nil || portErr != nil {
		return listener.String()
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

func (c Config) etcdDir() string { return filepath.Join(c.DataDir, "etcd") }
