package metadata

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"google.golang.org/protobuf/encoding/protojson"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

const (
	// formatVersion is that of the data directory.
	formatVersion = 1
	identityFile  = "node.json"
	lockFile      = "LOCK"
)

// directory is the data directory of a metadata node: it holds who the node is,
// and is locked so that no two processes are the same node.
type directory struct {
	path string
	lock *fileutil.LockedFile

	clusterID   [16]byte
	nodeID      cluster.NodeID
	directoryID [16]byte
}

// openDirectory locks a directory, and makes it, with a directory id of its own,
// if it does not exist.
func openDirectory(path string) (_ *directory, err error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	lock, err := fileutil.TryLockFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, fmt.Errorf("data directory %s is in use by another process: stop that one, or use another directory", path)
	}
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	d := &directory{path: path, lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	raw, err := os.ReadFile(d.file())
	if errors.Is(err, fs.ErrNotExist) {
		d.directoryID = uuid.New()
		return d, d.save()
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if err := d.parse(raw); err != nil {
		return nil, err
	}
	return d, nil
}

// parse reads the file that says who the node is. A field that a newer version
// added is no reason to refuse it, a newer version is.
func (d *directory) parse(raw []byte) error {
	identity := &diskv1.NodeIdentity{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, identity); err != nil {
		return fmt.Errorf("%s cannot be read: restore it from a backup, or use an empty data directory: %w", d.file(), err)
	}
	if v := identity.GetFormatVersion(); v > formatVersion {
		return fmt.Errorf("data directory %s has format %d, this release knows %d: use the release that wrote it, or a newer one", d.path, v, formatVersion)
	}
	directoryID, err := uuid.Parse(identity.GetDirectoryId())
	if err != nil || identity.GetFormatVersion() < 1 || identity.GetNodeId() < 0 {
		return fmt.Errorf("%s is damaged: restore it from a backup, or use an empty data directory", d.file())
	}
	d.directoryID, d.nodeID = directoryID, cluster.NodeID(identity.GetNodeId())
	if text := identity.GetClusterId(); text != "" {
		clusterID, err := uuid.Parse(text)
		if err != nil {
			return fmt.Errorf("%s is damaged: restore it from a backup, or use an empty data directory", d.file())
		}
		d.clusterID = clusterID
	}
	return nil
}

func (d *directory) file() string { return filepath.Join(d.path, identityFile) }

// known says that the node has belonged to a cluster.
func (d *directory) known() bool { return d.clusterID != [16]byte{} }

// save writes who the node is, so that a crash leaves the old file or the new one.
func (d *directory) save() error {
	identity := &diskv1.NodeIdentity{
		FormatVersion: formatVersion,
		NodeId:        int32(d.nodeID),
		DirectoryId:   uuid.UUID(d.directoryID).String(),
	}
	if d.known() {
		identity.ClusterId = uuid.UUID(d.clusterID).String()
	}
	raw, err := protojson.MarshalOptions{Multiline: true}.Marshal(identity)
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	next := d.file() + ".new"
	if err := writeSynced(next, append(raw, '\n')); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := os.Rename(next, d.file()); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	parent, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := errors.Join(parent.Sync(), parent.Close()); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

func writeSynced(path string, raw []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	return errors.Join(err, f.Sync(), f.Close())
}

func (d *directory) close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("unlock data directory: %w", err)
	}
	return nil
}
