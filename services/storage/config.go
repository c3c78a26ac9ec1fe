package storage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/node"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
	"github.com/runnel-mesh/runnel/services/storage/internal/replication"
	"github.com/runnel-mesh/runnel/services/storage/internal/server"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// Config says who a storage node is and how much it may use. Start from
// [DefaultConfig].
type Config struct {
	// DataDir is the data directory of the process; the service keeps everything
	// in its folder "storage". Default "runnel-data".
	DataDir string
	// Listen is the host:port on which the process serves the public services.
	// Default "127.0.0.1:7080".
	Listen string
	// PeerListen is the host:port on which the process serves the services for
	// peers; empty where it has none. Default "127.0.0.1:7081".
	PeerListen string
	// Advertise is the host:port at which clients reach Listen; empty means Listen
	// itself. It is needed where Listen has no host or port 0.
	Advertise string
	// AdvertisePeer is the same for PeerListen.
	AdvertisePeer string
	// NodeID is the number of the node, from 1; 0 takes the one recorded in the data
	// directory, or asks for one. Default 0.
	NodeID cluster.NodeID
	// Grace is how long the node may take to give away what it leads when it stops, and
	// how long streams may take to end then; at least 0. Default 10 s.
	Grace time.Duration

	// AcceptLosses names partitions, by their topics, of which it is accepted that they
	// have lost records when the process begins: they go on with what is left, unless
	// another node leads them. No partitions stand for all of a topic. Default none.
	AcceptLosses map[string][]int32

	// VolumeBytes is how many bytes of batches the store puts into one volume; at
	// least 65,536. On a disk of less than 16 times as much it is a sixteenth of the
	// disk, or 16 MiB. Default 1 GiB.
	VolumeBytes int64
	// VolumeAge is the age at which a volume is closed to new batches; at least 1 s.
	// Default 24 h.
	VolumeAge time.Duration
	// MaxOpenSealed bounds the closed volumes that are open for reading; at least
	// 1. Default 8.
	MaxOpenSealed int
	// GroupBytes bounds the batches of one commit; at least 1. Default 4 MiB.
	GroupBytes int
	// QueueBytes bounds the batches that wait for a commit; at least GroupBytes.
	// Default 64 MiB.
	QueueBytes int
	// MinFreeBytes is how much of the disk stays free: while less is, records are
	// refused; at least 0. 0 stands for 1 GiB, or an eighth of the disk if that is
	// less. Default 0.
	// At least 32 MiB are, or a sixteenth of a smaller disk.
	MinFreeBytes int64

	// CleaningRate bounds how fast batches are copied to make room on the disk, in
	// bytes per second; at least 1. Default 64 MiB.
	CleaningRate int64
	// Quarantine is how long the records of a deleted topic stay on the disk; at
	// least 0. Default 1 min.
	Quarantine time.Duration
	// RetentionEvery is how often a partition that the node leads looks for records
	// to remove; at least 1 ms. Default 30 s.
	RetentionEvery time.Duration
	// ScrubBytes is how many bytes per second of closed volumes are read in the
	// background to see whether they are still what was written; at least 0, which
	// is for none. Default 8 MiB.
	ScrubBytes int64
	// ScrubEvery is how long after the beginning of a round through all closed
	// volumes the next one begins; more than 0. Default 24 h.
	ScrubEvery time.Duration
	// CheckVolume verifies a volume in a process of its own, with [CheckVolume],
	// before it is opened after an unclean stop: over some damage the process dies.
	// nil does it in this one. Its error is one of [DamagedVolume], or the node does
	// not start.
	CheckVolume func(ctx context.Context, dir string) error

	// TailBytes bounds the memory for the batches appended last, from which tailing
	// consumers are served; at least 0. Default 64 MiB.
	TailBytes int64
	// InFlightBytes bounds the batches that were received and are not stored yet;
	// at least 1. Beyond it the node stops reading from producers. Default 64 MiB.
	InFlightBytes int64
	// ProducersPerPartition is how many idempotent producers a partition
	// remembers; at least 1. Default 10,000.
	ProducersPerPartition int
	// MaxTimestampAhead is how far in the future a record's timestamp may lie; at
	// least 0. Default 1 h.
	MaxTimestampAhead time.Duration
	// OpenedBytes bounds a batch that the server itself decompresses: for plain
	// records, compacted topics and offsets by time; 1 to 16,777,216. Default
	// 16,777,216.
	OpenedBytes int
	// KeyMapBytes bounds the memory of compaction, which needs about 28 bytes for
	// each key that has come to a partition since it was compacted. With more keys
	// than that it takes several runs; at least 1. Default 64 MiB.
	KeyMapBytes int64
	// CompactEvery is how often compaction looks for work; above 0. Default 15 s.
	CompactEvery time.Duration
	// StreamRequests is how many requests of a Produce stream may be unanswered; at
	// least 1. Default 1,024.
	StreamRequests int
	// Streams bounds the goroutines that serve streams, two for Produce, one for Consume
	// and another while it reads from the disk; at least 2. Default 20,000.
	Streams int
	// ResponseBytes is what the responses that are being sent to consumers, and those
	// that were read ahead, may hold together, but for two batches or 128 KiB each; at
	// least 1. Default 128 MiB.
	ResponseBytes int

	// ReplicaLag is for how long a follower may lack records of a partition that
	// this node leads before it leaves the ISR; more than 0. Default 10 s.
	ReplicaLag time.Duration
	// ReplicaWindowBytes is how many bytes of batches of one partition may be on
	// their way to a follower; at least 1. Default 4 MiB.
	ReplicaWindowBytes int
	// ReplicaStreamBytes is the same for all partitions of a follower together; at
	// least ReplicaWindowBytes. Default 64 MiB.
	ReplicaStreamBytes int
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	st, p, srv := store.DefaultConfig(), partition.DefaultConfig(), server.DefaultConfig()
	r := replication.DefaultConfig()
	return Config{
		DataDir:    "runnel-data",
		Listen:     "127.0.0.1:7080",
		PeerListen: "127.0.0.1:7081",
		Grace:      10 * time.Second,

		VolumeBytes:   st.VolumeBytes,
		VolumeAge:     st.VolumeAge,
		MaxOpenSealed: st.MaxOpenSealed,
		GroupBytes:    st.GroupBytes,
		QueueBytes:    st.QueueBytes,
		ScrubBytes:    st.ScrubBytes,
		ScrubEvery:    st.ScrubEvery,

		CleaningRate:   st.CleaningRate,
		Quarantine:     st.Quarantine,
		RetentionEvery: p.RetentionEvery,

		TailBytes:             p.TailBytes,
		InFlightBytes:         p.InFlightBytes,
		ProducersPerPartition: p.ProducersPerPartition,
		MaxTimestampAhead:     p.MaxTimestampAhead,
		OpenedBytes:           p.Decoding.MaxBytes,
		KeyMapBytes:           p.KeyMapBytes,
		CompactEvery:          p.CompactEvery,
		StreamRequests:        srv.StreamRequests,
		Streams:               srv.Streams,
		ResponseBytes:         srv.ResponseBytes,

		ReplicaLag:         r.MaxLag,
		ReplicaWindowBytes: r.WindowBytes,
		ReplicaStreamBytes: r.StreamBytes,
	}
}

// Validate returns all faults of the configuration in one error.
func (c Config) Validate() error {
	var faults []error
	check := func(ok bool, key string, got any, legal string) {
		if !ok {
			faults = append(faults, fmt.Errorf("storage: %s is %v, must be %s", key, got, legal))
		}
	}
	check(c.DataDir != "", "DataDir", `""`, "a directory")
	if err := node.CheckReachable(c.address()); err != nil {
		faults = append(faults, fmt.Errorf("storage: clients are told to come to %q: %w; set Advertise", c.address(), err))
	}
	if address := c.peerAddress(); address != "" {
		if err := node.CheckReachable(address); err != nil {
			faults = append(faults, fmt.Errorf("storage: peers are told to come to %q: %w; set AdvertisePeer", address, err))
		}
	}
	check(c.NodeID >= 0, "NodeID", c.NodeID, "1 or more, or 0 to have one allotted")
	check(c.Grace >= 0, "Grace", c.Grace, "at least 0s")
	check(c.VolumeBytes >= 64<<10, "VolumeBytes", c.VolumeBytes, "at least 65536")
	check(c.VolumeAge >= time.Second, "VolumeAge", c.VolumeAge, "at least 1s")
	check(c.MaxOpenSealed >= 1, "MaxOpenSealed", c.MaxOpenSealed, "at least 1")
	check(c.GroupBytes >= 1, "GroupBytes", c.GroupBytes, "at least 1")
	check(c.QueueBytes >= c.GroupBytes, "QueueBytes", c.QueueBytes, fmt.Sprintf("at least GroupBytes (%d)", c.GroupBytes))
	check(c.MinFreeBytes >= 0, "MinFreeBytes", c.MinFreeBytes, "at least 0")
	check(c.CleaningRate >= 1, "CleaningRate", c.CleaningRate, "at least 1")
	check(c.Quarantine >= 0, "Quarantine", c.Quarantine, "at least 0s")
	check(c.RetentionEvery >= time.Millisecond, "RetentionEvery", c.RetentionEvery, "at least 1ms")
	check(c.ScrubBytes >= 0, "ScrubBytes", c.ScrubBytes, "at least 0")
	check(c.ScrubEvery > 0, "ScrubEvery", c.ScrubEvery, "more than 0s")
	check(c.TailBytes >= 0, "TailBytes", c.TailBytes, "at least 0")
	check(c.InFlightBytes >= 1, "InFlightBytes", c.InFlightBytes, "at least 1")
	check(c.ProducersPerPartition >= 1, "ProducersPerPartition", c.ProducersPerPartition, "at least 1")
	check(c.MaxTimestampAhead >= 0, "MaxTimestampAhead", c.MaxTimestampAhead, "at least 0s")
	check(c.OpenedBytes >= 1 && c.OpenedBytes <= 16<<20, "OpenedBytes", c.OpenedBytes, "1 to 16777216")
	check(c.KeyMapBytes >= 1, "KeyMapBytes", c.KeyMapBytes, "at least 1")
	check(c.CompactEvery > 0, "CompactEvery", c.CompactEvery, "above 0s")
	check(c.StreamRequests >= 1, "StreamRequests", c.StreamRequests, "at least 1")
	check(c.Streams >= 2, "Streams", c.Streams, "at least 2")
	check(c.ResponseBytes >= 1, "ResponseBytes", c.ResponseBytes, "at least 1")
	check(c.ReplicaLag > 0, "ReplicaLag", c.ReplicaLag, "more than 0s")
	check(c.ReplicaWindowBytes >= 1, "ReplicaWindowBytes", c.ReplicaWindowBytes, "at least 1")
	check(c.ReplicaStreamBytes >= c.ReplicaWindowBytes, "ReplicaStreamBytes", c.ReplicaStreamBytes, fmt.Sprintf("at least ReplicaWindowBytes (%d)", c.ReplicaWindowBytes))
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

func (c Config) storeConfig() store.Config {
	return store.Config{
		Dir:           filepath.Join(c.DataDir, "storage"),
		VolumeBytes:   c.VolumeBytes,
		VolumeAge:     c.VolumeAge,
		MaxOpenSealed: c.MaxOpenSealed,
		GroupBytes:    c.GroupBytes,
		QueueBytes:    c.QueueBytes,
		ScrubBytes:    c.ScrubBytes,
		ScrubEvery:    c.ScrubEvery,
		CheckVolume:   c.CheckVolume,
		MinFreeBytes:  c.MinFreeBytes,
		CleaningRate:  c.CleaningRate,
		Quarantine:    c.Quarantine,
	}
}

func (c Config) partitionConfig() partition.Config {
	p := partition.DefaultConfig()
	p.TailBytes = c.TailBytes
	p.RetentionEvery = c.RetentionEvery
	p.InFlightBytes = c.InFlightBytes
	p.ProducersPerPartition = c.ProducersPerPartition
	p.MaxTimestampAhead = c.MaxTimestampAhead
	p.Decoding.MaxBytes = c.OpenedBytes
	p.KeyMapBytes = c.KeyMapBytes
	p.CompactEvery = c.CompactEvery
	return p
}

func (c Config) serverConfig() server.Config {
	return server.Config{StreamRequests: c.StreamRequests, Streams: c.Streams, ResponseBytes: c.ResponseBytes}
}

func (c Config) replicationConfig() replication.Config {
	return replication.Config{WindowBytes: c.ReplicaWindowBytes, StreamBytes: c.ReplicaStreamBytes, MaxLag: c.ReplicaLag}
}
