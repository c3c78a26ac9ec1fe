// Package replication carries partitions from their leaders to their followers:
// [Server] is the leader's end of the streams, [Followers] the follower's, and
// [Proposer] asks the metadata service for the ISR changes that come of it.
//
// There is one stream per pair of nodes, opened by the follower. It states where
// its partitions stand, and the leader sends what follows; the position that has
// moved after the follower's own commit is the acknowledgement. Both ends sleep
// until a partition has news: nothing is polled, and a partition without records
// costs no message.
//
// What the two ends decide is in package rules, and the partitions apply it. What
// is here is only how it travels: in which order, how much of it at once, and what
// happens when a stream breaks.
package replication

import (
	"context"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// Config bounds what replication may take.
type Config struct {
	// WindowBytes is how many bytes of batches of one partition may be sent to a
	// follower and not be acknowledged; 1 or more. A larger batch is sent alone.
	WindowBytes int
	// StreamBytes is the same for all partitions of a stream together; at least
	// WindowBytes.
	StreamBytes int
	// MaxLag is for how long a follower may lack records before it leaves the ISR;
	// more than 0.
	MaxLag time.Duration
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{WindowBytes: 4 << 20, StreamBytes: 64 << 20, MaxLag: 10 * time.Second}
}

// ID names a partition for good.
type ID struct {
	Topic cluster.TopicID
	Index int32
}

// Partitions finds the partitions that this node holds.
type Partitions interface {
	// ByID returns a partition, whatever this node is to it. The error is a
	// *rpcerr.Error.
	ByID(topic cluster.TopicID, index int32) (*partition.Partition, error)
	// WaitApplied returns once what a version of the cluster's state says was handed
	// to the partitions.
	WaitApplied(ctx context.Context, version int64) error
}
