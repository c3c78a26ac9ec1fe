package coordinator

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/coordinator/internal/server"
	"github.com/runnel-mesh/runnel/services/internal/node"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// Config says who a coordinator node is and what groups may take of it. Start from
// [DefaultConfig].
type Config struct {
	// DataDir is the data directory of the process; the service keeps nothing but the
	// identity of the node, in its folder "coordinator". Default "runnel-data".
	DataDir string
	// Listen is the host:port on which the process serves the public services.
	// Default "127.0.0.1:7090".
	Listen string
	// PeerListen is the host:port on which the process serves peers; empty where it has
	// none. Coordinators offer them nothing yet. Default "127.0.0.1:7091".
	PeerListen string
	// Advertise is the host:port at which clients reach Listen; empty means Listen
	// itself. It is needed where Listen has no host or port 0.
	Advertise string
	// AdvertisePeer is the same for PeerListen.
	AdvertisePeer string
	// NodeID is the number of the node, from 1; 0 takes the one recorded in the data
	// directory, or asks for one. Default 0.
	NodeID cluster.NodeID
	// Grace is how long the node may take to give its groups away when it stops, and how
	// long streams may take to end then; at least 0. Default 10 s.
	Grace time.Duration

	// MaxGroupMembers is how many members a group may have; 1 to 100,000. Default 1,000.
	MaxGroupMembers int
	// MaxGroups is how many groups one partition of __consumer_offsets may hold; at least
	// 1. Default 20,000.
	MaxGroups int
	// MaxGroupOffsets is how many partitions a group may have offsets of; at least 1.
	// Default 200,000.
	MaxGroupOffsets int
	// OffsetsRetention is how long the offsets of a group without members are kept; at
	// least 1 min, or 0 for ever. Default 7 days.
	OffsetsRetention time.Duration
	// MinSessionTimeout and MaxSessionTimeout bound what members may ask for; 1 s to
	// 30 min. Default 1 s and 30 min.
	MinSessionTimeout, MaxSessionTimeout time.Duration
	// HeartbeatInterval is how often members are told to send heartbeats; a third of
	// their session timeout where that is less. At least 100 ms. Default 5 s.
	HeartbeatInterval time.Duration
	// Streams bounds the Join streams, and by themselves the goroutines that serve streams
	// of commits; at least 1. Default 20,000.
	Streams int
	// LagInterval is how often the lag of groups is measured; at least 1 s. Default 15 s.
	LagInterval time.Duration
	// LagSeries bounds the partitions of groups whose lag is shown as a metric; at least
	// 0. Default 10,000.
	LagSeries int
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		DataDir:           "runnel-data",
		Listen:            "127.0.0.1:7090",
		PeerListen:        "127.0.0.1:7091",
		Grace:             10 * time.Second,
		MaxGroupMembers:   1000,
		MaxGroups:         20_000,
		MaxGroupOffsets:   200_000,
		OffsetsRetention:  7 * 24 * time.Hour,
		MinSessionTimeout: server.LeastSession,
		MaxSessionTimeout: server.MostSession,
		HeartbeatInterval: 5 * time.Second,
		Streams:           20_000,
		LagInterval:       15 * time.Second,
		LagSeries:         10_000,
	}
}

// Validate returns all faults of the configuration in one error.
func (c Config) Validate() error {
	var faults []error
	check := func(ok bool, key string, got any, legal string) {
		if !ok {
			faults = append(faults, fmt.Errorf("coordinator: %s is %v, must be %s", key, got, legal))
		}
	}
	check(c.DataDir != "", "DataDir", `""`, "a directory")
	if err := node.CheckReachable(c.address()); err != nil {
		faults = append(faults, fmt.Errorf("coordinator: clients are told to come to %q: %w; set Advertise", c.address(), err))
	}
	if address := c.peerAddress(); address != "" {
		if err := node.CheckReachable(address); err != nil {
			faults = append(faults, fmt.Errorf("coordinator: peers are told to come to %q: %w; set AdvertisePeer", address, err))
		}
	}
	check(c.NodeID >= 0, "NodeID", c.NodeID, "1 or more, or 0 to have one allotted")
	check(c.Grace >= 0, "Grace", c.Grace, "at least 0s")
	check(c.MaxGroupMembers >= 1 && c.MaxGroupMembers <= 100_000, "MaxGroupMembers", c.MaxGroupMembers, "1 to 100000")
	check(c.MaxGroups >= 1, "MaxGroups", c.MaxGroups, "at least 1")
	check(c.MaxGroupOffsets >= 1, "MaxGroupOffsets", c.MaxGroupOffsets, "at least 1")
	check(c.OffsetsRetention == 0 || c.OffsetsRetention >= time.Minute, "OffsetsRetention", c.OffsetsRetention, "at least 1m0s, or 0s for ever")
	check(c.MinSessionTimeout >= server.LeastSession && c.MinSessionTimeout <= server.MostSession, "MinSessionTimeout", c.MinSessionTimeout, fmt.Sprintf("%v to %v", server.LeastSession, server.MostSession))
	check(c.MaxSessionTimeout >= c.MinSessionTimeout && c.MaxSessionTimeout <= server.MostSession, "MaxSessionTimeout", c.MaxSessionTimeout, fmt.Sprintf("MinSessionTimeout (%v) to %v", c.MinSessionTimeout, server.MostSession))
	check(c.HeartbeatInterval >= 100*time.Millisecond, "HeartbeatInterval", c.HeartbeatInterval, "at least 100ms")
	check(c.Streams >= 1, "Streams", c.Streams, "at least 1")
	check(c.LagInterval >= time.Second, "LagInterval", c.LagInterval, "at least 1s")
	check(c.LagSeries >= 0, "LagSeries", c.LagSeries, "at least 0")
	return errors.Join(faults...)
}

// address is where clients reach the node.
func (c Config) address() string {
	if c.Advertise != "" {
		return c.Advertise
	}
	return c.Listen
}

// peerAddress is where peers reach the node; empty where they do not.
func (c Config) peerAddress() string {
	if c.AdvertisePeer != "" {
		return c.AdvertisePeer
	}
	return c.PeerListen
}

func (c Config) directory() string { return filepath.Join(c.DataDir, "coordinator") }

const (
	// queue is how many requests of one partition of __consumer_offsets may wait.
	queue = 10_000
	// commits is how many of them may be commits: about what one round writes.
	commits = 5_000
	// roundBytes leaves a batch well below max.message.bytes.
	roundBytes = 512 << 10
	// confidence is how old the last sign that nobody has taken a partition over may be
	// for the node to speak for its groups; checkInterval keeps it younger than that.
	confidence    = 5 * time.Second
	checkInterval = 3 * time.Second
	// aging is after how long at least the time that a group is without members is written.
	aging = time.Minute
)

func (c Config) rulesConfig() rules.Config {
	return rules.Config{
		MembersPerGroup:   c.MaxGroupMembers,
		Groups:            c.MaxGroups,
		OffsetsPerGroup:   c.MaxGroupOffsets,
		Queue:             queue,
		Commits:           commits,
		RoundBytes:        roundBytes,
		HeartbeatInterval: c.HeartbeatInterval,
		Confidence:        confidence,
		CheckInterval:     checkInterval,
		Retention:         c.OffsetsRetention,
		Aging:             aging,
	}
}

func (c Config) serverConfig() server.Config {
	return server.Config{
		MinSessionTimeout: c.MinSessionTimeout,
		MaxSessionTimeout: c.MaxSessionTimeout,
		Streams:           c.Streams,
	}
}
