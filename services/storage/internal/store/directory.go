package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/google/uuid"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

const (
	// formatVersion is that of the volumes' layout: 2 came with copies volumes,
	// sparse spans, the sets of compacted topics, and what the state records say of
	// compaction, deletion and failure. Volumes of version 1 are read as they are.
	formatVersion = 2

	cleanFile     = "clean.json"
	volumesFolder = "volumes"
	volumeFile    = "volume.json"
	// removedSuffix ends the name of a volume that is being removed.
	removedSuffix = ".deleted"
)

// Identity says whose a directory is.
type Identity = datadir.Identity

// directory is the top of a store's files: who owns them and how they were left.
type directory struct {
	*datadir.Dir
	identity Identity
}

// openDirectory creates the directory where it is missing and locks it.
func openDirectory(path string) (_ *directory, err error) {
	dir, err := datadir.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.Close())
		}
	}()
	// Before the identity, which makes this name durable too.
	if err := os.MkdirAll(dir.Path(volumesFolder), 0o750); err != nil {
		return nil, datadir.Unusable(dir.Path(), err)
	}
	identity, err := dir.Identity(volumesFolder)
	if err != nil {
		return nil, err
	}
	return &directory{Dir: dir, identity: identity}, nil
}

func (d *directory) setIdentity(identity Identity) error {
	if err := d.SetIdentity(identity); err != nil {
		return err
	}
	d.identity = identity
	return nil
}

// readClean returns whether there is a clean marker that is about exactly these
// volumes of this directory.
func (d *directory) readClean(volumes []uint64) bool {
	var m diskv1.CleanMarker
	if err := datadir.ReadMessage(d.Path(cleanFile), &m); err != nil {
		return false
	}
	return m.GetDirectoryId() == uuid.UUID(d.identity.DirectoryID).String() && slices.Equal(m.GetVolumes(), volumes)
}

func (d *directory) writeClean(nodeEpoch int64, bootID string, volumes []uint64) error {
	return datadir.WriteMessage(d.Path(cleanFile), &diskv1.CleanMarker{
		NodeEpoch:   nodeEpoch,
		DirectoryId: uuid.UUID(d.identity.DirectoryID).String(),
		BootId:      bootID,
		Volumes:     volumes,
	})
}

// removeClean removes the marker durably: nothing may be written to a volume
// while it is there.
func (d *directory) removeClean() error {
	if err := os.Remove(d.Path(cleanFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the clean marker: %w", err)
	}
	failpoint.Hit("start/before-marker-is-gone")
	if err := datadir.Sync(d.Path()); err != nil {
		return err
	}
	failpoint.Hit("start/after-marker-is-gone")
	return nil
}
