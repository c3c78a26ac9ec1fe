package storage

import (
	"context"
	"os"
	"path/filepath"

	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// What [Inspect] returns.
type (
	// Inspection is what a data directory holds.
	Inspection = store.Inspection
	// InspectOptions says how thorough an inspection is.
	InspectOptions = store.InspectOptions
	// InspectedVolume is a volume on disk.
	InspectedVolume = store.InspectedVolume
	// InspectedPartition is the newest state of a partition on disk.
	InspectedPartition = store.InspectedPartition
	// InspectedSpan is a stretch of a log in one volume.
	InspectedSpan = store.InspectedSpan
	// Damage is one thing that is wrong in a data directory.
	Damage = store.Damage
)

// ErrLocked says that a node works in the directory.
var ErrLocked = store.ErrLocked

// Inspect reads a node's data directory, or the folder of the storage service in
// it, without changing anything there. It refuses with [ErrLocked] while a node
// works in it. Damage is part of the result, not an error.
func Inspect(ctx context.Context, dir string, options InspectOptions) (*Inspection, error) {
	if nested := filepath.Join(dir, "storage"); isDirectory(nested) {
		dir = nested
	}
	options.BootID = bootID()
	return store.Inspect(ctx, dir, options)
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
