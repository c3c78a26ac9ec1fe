package metadata

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/node"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/server"
)

// Config says who a metadata node is, and what its cluster may hold. Settings of
// the cluster must be the same on all metadata nodes: the controller's hold. Start
// from [DefaultConfig].
type Config struct {
	// DataDir is the data directory of the process; the service keeps its identity,
	// and nothing else, in its folder "metadata". Default "runnel-data".
	DataDir string
	// Listen is the host:port on which the process serves the public services.
	// Default "127.0.0.1:7070".
	Listen string
	// PeerListen is the host:port on which the process serves the services for
	// peers; empty where it has none, and then it must be the only metadata node.
	// Default "127.0.0.1:7071".
	PeerListen string
	// Advertise is the host:port at which clients reach Listen; empty means Listen
	// itself. It is needed where Listen has no host or port 0.
	Advertise string
	// AdvertisePeer is the same for PeerListen.
	AdvertisePeer string
	// NodeID is the number of the node, from 1; 0 takes the one recorded in the data
	// directory, or has one allotted. Default 0.
	NodeID cluster.NodeID

	// Prefix is what the keys of the cluster in etcd begin with. It ends with a
	// slash. Default "runnel/".
	Prefix string
	// LeaseTTL is for how long nodes, and the controller, count as live after they
	// were heard last: whole seconds, 2 s to 5 min. Default 6 s.
	LeaseTTL time.Duration
	// RequestTimeout bounds each request to etcd; at least 100 ms. Default 5 s.
	RequestTimeout time.Duration
	// RelistInterval is how often, on average, all keys are read from etcd although
	// the watch has not broken; at least 1 s. Default 10 min.
	RelistInterval time.Duration

	// MaxPartitionsPerTopic bounds the partitions of a topic; 1 to 100,000. Default
	// 10,000.
	MaxPartitionsPerTopic int
	// MaxPartitions bounds the partitions of all topics together; at least 1.
	// Default 100,000.
	MaxPartitions int
	// MaxReplicationFactor bounds the replication factor of new topics; 1 to 50.
	// Default [rules.MaxReplicationFactor].
	MaxReplicationFactor int
	// BalanceInterval is how often the controller gives leaderships back to preferred
	// replicas, of partitions that have not changed for as long and whose preferred
	// replica was in the ISR all the time; at least 100 ms, or 0 for never. Default
	// 30 s.
	BalanceInterval time.Duration
	// BalanceMoves bounds the leaderships that are given back at a time; at least 1.
	// Default 500.
	BalanceMoves int
	// OffsetsPartitions is how many partitions the topic of consumer groups is created
	// with; 1 to MaxPartitionsPerTopic. It is fixed for good once the topic exists:
	// another number would give groups other partitions. Default 50.
	OffsetsPartitions int
	// MaxNodes bounds the registered nodes of all roles; at least 2. Default 1,000.
	MaxNodes int
	// DeletedTopicRetention is how long storage nodes are told that a topic was
	// deleted; at least 1 h. A node that was away for longer keeps the topic's data.
	// Default 30 days.
	DeletedTopicRetention time.Duration
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		DataDir:    "runnel-data",
		Listen:     "127.0.0.1:7070",
		PeerListen: "127.0.0.1:7071",

		Prefix:         "runnel/",
		LeaseTTL:       6 * time.Second,
		RequestTimeout: 5 * time.Second,
		RelistInterval: 10 * time.Minute,

		MaxPartitionsPerTopic: 10_000,
		MaxPartitions:         100_000,
		MaxReplicationFactor:  rules.MaxReplicationFactor,
		BalanceInterval:       30 * time.Second,
		BalanceMoves:          500,
		OffsetsPartitions:     50,
		MaxNodes:              1000,
		DeletedTopicRetention: 30 * 24 * time.Hour,
	}
}

// Validate returns all faults of the configuration in one error.
func (c Config) Validate() error {
	var faults []error
	check := func(ok bool, key string, got any, legal string) {
		if !ok {
			faults = append(faults, fmt.Errorf("metadata: %s is %v, must be %s", key, got, legal))
		}
	}
	check(c.DataDir != "", "DataDir", `""`, "a directory")
	if err := node.CheckReachable(c.address()); err != nil {
		faults = append(faults, fmt.Errorf("metadata: clients are told to come to %q: %w; set Advertise", c.address(), err))
	}
	if address := c.peerAddress(); address != "" {
		if err := node.CheckReachable(address); err != nil {
			faults = append(faults, fmt.Errorf("metadata: peers are told to come to %q: %w; set AdvertisePeer", address, err))
		}
	}
	check(c.NodeID >= 0, "NodeID", c.NodeID, "1 or more, or 0 to have one allotted")
	check(len(c.Prefix) > 1 && strings.HasSuffix(c.Prefix, "/"), "Prefix", fmt.Sprintf("%q", c.Prefix), "some text that ends with a slash")
	check(c.LeaseTTL >= 2*time.Second && c.LeaseTTL <= 5*time.Minute && c.LeaseTTL%time.Second == 0, "LeaseTTL", c.LeaseTTL, "whole seconds, 2s to 5m0s")
	check(c.RequestTimeout >= 100*time.Millisecond, "RequestTimeout", c.RequestTimeout, "at least 100ms")
	check(c.RelistInterval >= time.Second, "RelistInterval", c.RelistInterval, "at least 1s")
	check(c.MaxPartitionsPerTopic >= 1 && c.MaxPartitionsPerTopic <= 100_000, "MaxPartitionsPerTopic", c.MaxPartitionsPerTopic, "1 to 100000")
	check(c.MaxPartitions >= 1, "MaxPartitions", c.MaxPartitions, "at least 1")
	check(c.MaxReplicationFactor >= 1 && c.MaxReplicationFactor <= server.MaxISR, "MaxReplicationFactor", c.MaxReplicationFactor, fmt.Sprintf("1 to %d", server.MaxISR))
	check(c.BalanceInterval == 0 || c.BalanceInterval >= 100*time.Millisecond, "BalanceInterval", c.BalanceInterval, "at least 100ms, or 0")
	check(c.BalanceMoves >= 1, "BalanceMoves", c.BalanceMoves, "at least 1")
	check(c.OffsetsPartitions >= 1 && c.OffsetsPartitions <= c.MaxPartitionsPerTopic, "OffsetsPartitions", c.OffsetsPartitions, fmt.Sprintf("1 to %d", c.MaxPartitionsPerTopic))
	check(c.MaxNodes >= 2, "MaxNodes", c.MaxNodes, "at least 2")
	check(c.DeletedTopicRetention >= time.Hour, "DeletedTopicRetention", c.DeletedTopicRetention, "at least 1h0m0s")
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
