package store

import (
	"errors"
	"fmt"

	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// Reasons for which [Open] and [Store.SetIdentity] refuse a directory, and for
// which calls fail. The errors that wrap them name the directory and the remedy.
var (
	// ErrLocked says that another process works in the directory.
	ErrLocked = datadir.ErrLocked
	// ErrReadOnly says that the process may not write to the directory.
	ErrReadOnly = datadir.ErrReadOnly
	// ErrNewerFormat says that a newer release has written the directory.
	ErrNewerFormat = datadir.ErrNewerFormat
	// ErrOtherNode says that the directory belongs to another cluster or node.
	ErrOtherNode = errors.New("data directory belongs to another node")
	// ErrClosed says that the store has been closed.
	ErrClosed = errors.New("store is closed")
	// ErrOffsetOutOfRange says that the log no longer has, or never had, the
	// offset.
	ErrOffsetOutOfRange = errors.New("offset is not in the log")
	// ErrInvalidAppend says that an append contradicts itself or the log. Nothing
	// of it was written; the store goes on.
	ErrInvalidAppend = errors.New("append does not fit the log")
)

// ErrCorrupt says that what lies on disk is not what was written there.
type ErrCorrupt struct {
	Partition PartitionID
	// Volume is the number of the volume; 0 if none holds the offset.
	Volume uint64
	// Offset is the first that cannot be read.
	Offset int64
	// Reason says what is wrong.
	Reason string
	// Cause may be nil.
	Cause error
}

// Error implements error.
func (e *ErrCorrupt) Error() string {
	s := fmt.Sprintf("partition %v is corrupt in volume %d at offset %d: %s", e.Partition, e.Volume, e.Offset, e.Reason)
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *ErrCorrupt) Unwrap() error { return e.Cause }

func isCorrupt(err error) bool {
	var corrupt *ErrCorrupt
	return errors.As(err, &corrupt)
}
