package store

import (
	"fmt"
	"time"
)

// InspectOptions says how thorough [Inspect] is.
type InspectOptions struct {
	// Verify reads everything: the checksums of files, each batch of each span and
	// the time index. Without it only states are read.
	Verify bool
	// Progress is called from time to time with the bytes that have been read and
	// those that there are to read; it must not block. It may be nil.
	Progress func(done, total int64)
	// BootID names the kernel's boot. If the directory was last written under
	// another one, what only a crash of the machine can do to a set that does not
	// sync is not taken for damage; and never if it is empty.
	BootID string
}

// Inspection is what a store's directory holds.
type Inspection struct {
	// Dir is the absolute path of the store's directory.
	Dir      string
	Identity Identity
	// Vacant says that nothing in the directory is a store's, whoever's it is: that of
	// another service has an identity, too.
	Vacant bool
	// Clean says that the last process stopped in good order.
	Clean bool
	// Verified says that everything was read.
	Verified bool
	// Volumes are those on disk in the order of their numbers, condemned ones too.
	Volumes []InspectedVolume
	// Partitions are in the order of topic ids and numbers.
	Partitions []InspectedPartition
	// Damage is empty where nothing wrong was found.
	Damage []Damage
}

// InspectedVolume is a volume on disk.
type InspectedVolume struct {
	Number uint64
	// Name is that of its folder.
	Name string
	Set  Set
	// Copies says that cleaning or compaction wrote it.
	Copies        bool
	FormatVersion int
	Created       time.Time
	// Sealed is when it was sealed, zero while it is written.
	Sealed time.Time
	// Condemned says why the volume was set aside; empty where it was not.
	Condemned string
	// Unreadable says why nothing is known of its contents; empty where they are.
	Unreadable string
	// DiskBytes are those that its files occupy.
	DiskBytes int64
	// Bytes are those of all its batches; 0 until it is sealed.
	Bytes int64
	// LiveBytes are those of the batches that spans name.
	LiveBytes int64
	// Spans and Partitions count what lies in it.
	Spans, Partitions int
	// Checksummed says that its files have checksums.
	Checksummed bool
}

// InspectedPartition is what the newest state record says of a partition.
type InspectedPartition struct {
	ID PartitionID
	State
	// Generation is that of the newest record, StateVolume the volume that holds it.
	Generation, StateVolume uint64
	// Producers counts the idempotent producers that are remembered.
	Producers int
	Spans     []InspectedSpan
	// DeletedAt is when the partition was deleted, zero if it is not known.
	DeletedAt time.Time
	// CompactedTo is the offset below which the log is compacted.
	CompactedTo int64
	// Failed says why the partition refuses appends; empty where it does not.
	Failed string
	// LogEndUnknown says that the log may have been longer.
	LogEndUnknown bool
}

// InspectedSpan is a stretch of a log in one volume.
type InspectedSpan struct {
	Volume uint64
	// First and End are its first offset and the one after its last.
	First, End int64
	// MaxTimestamp is an upper bound, in milliseconds since the Unix epoch.
	MaxTimestamp int64
	Bytes        int64
	// Sparse says that compaction has left gaps.
	Sparse bool
}

// Damage is one thing that is wrong.
type Damage struct {
	// Volume is the number of the volume; 0 where it concerns none.
	Volume uint64
	// File is relative to the store's directory; empty where no one file is known
	// to be at fault.
	File string
	// Partition is nil where the damage concerns no one partition.
	Partition *PartitionID
	// Offset is the first that cannot be read; only with a partition.
	Offset int64
	Reason string
}

// String returns the damage in one line.
func (d Damage) String() string {
	s := ""
	if d.Volume != 0 {
		s = fmt.Sprintf("volume %d: ", d.Volume)
	}
	if d.File != "" {
		s += d.File + ": "
	}
	if d.Partition != nil {
		s += fmt.Sprintf("partition %v at offset %d: ", *d.Partition, d.Offset)
	}
	return s + d.Reason
}
