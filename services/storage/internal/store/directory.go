package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

const (
	// formatVersion is that of the directory's layout and of the volumes'.
	formatVersion = 1

	lockFile       = "LOCK"
	identityFile   = "node.json"
	cleanFile      = "clean.json"
	volumesFolder  = "volumes"
	volumeFile     = "volume.json"
	temporaryFiles = ".tmp"
)

// Identity says whose a directory is.
type Identity struct {
	// ClusterID is zero before the node's first registration.
	ClusterID [16]byte
	// NodeID is 0 before the node's first registration.
	NodeID cluster.NodeID
	// DirectoryID names the directory for good.
	DirectoryID [16]byte
}

// directory is the top of a store's files: who owns them and how they were left.
type directory struct {
	path     string
	lock     *os.File
	identity Identity
}

// openDirectory creates the directory where it is missing and locks it.
func openDirectory(path string) (*directory, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(path, volumesFolder), 0o750); err != nil {
		return nil, describe(path, err)
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, err
	}
	d := &directory{path: path, lock: lock}
	if err := d.readIdentity(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// lockDirectory holds the lock by an open file, so that it ends with the process
// however that dies.
func lockDirectory(path string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, describe(path, err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := io.ReadAll(io.LimitReader(file, 32))
		file.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock data directory %s: %w", path, err)
		}
		who := "another process"
		if pid := strings.TrimSpace(string(owner)); pid != "" {
			who = "process " + pid
		}
		return nil, fmt.Errorf("%w: %s works in %s; stop it, or choose another data directory", ErrLocked, who, path)
	}
	if err := file.Truncate(0); err != nil {
		file.Close()
		return nil, describe(path, err)
	}
	if _, err := fmt.Fprintf(file, "%d\n", os.Getpid()); err != nil {
		file.Close()
		return nil, describe(path, err)
	}
	return file, nil
}

// describe names the directory and the remedy where an error tells that the
// process must not write there.
func describe(path string, err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("%w: %s: give this user the right to write there, or choose another data directory (%w)", ErrReadOnly, path, err)
	}
	return fmt.Errorf("open data directory %s: %w", path, err)
}

func (d *directory) close() error { return d.lock.Close() }

func (d *directory) join(name ...string) string {
	return filepath.Join(append([]string{d.path}, name...)...)
}

// readIdentity reads node.json, or writes one with a new directory id.
func (d *directory) readIdentity() error {
	var m diskv1.NodeIdentity
	err := readMessage(d.join(identityFile), &m)
	if errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(d.join(volumesFolder))
		if err != nil {
			return describe(d.path, err)
		}
		if len(entries) > 0 {
			return fmt.Errorf("data directory %s has volumes but no %s; restore the file from a backup, or choose another data directory", d.path, identityFile)
		}
		identity := Identity{DirectoryID: uuid.New()}
		return d.writeIdentity(identity)
	}
	if err != nil {
		return fmt.Errorf("data directory %s: %w; restore the file from a backup, or choose another data directory", d.path, err)
	}
	if m.GetFormatVersion() > formatVersion {
		return fmt.Errorf("%w: %s has version %d, this release knows up to %d; start a newer release there, or choose another data directory",
			ErrNewerFormat, d.path, m.GetFormatVersion(), formatVersion)
	}
	directoryID, err := uuid.Parse(m.GetDirectoryId())
	var clusterID uuid.UUID
	if err == nil && m.GetClusterId() != "" {
		clusterID, err = uuid.Parse(m.GetClusterId())
	}
	if err != nil {
		return fmt.Errorf("data directory %s: %s: %w; restore the file from a backup, or choose another data directory", d.path, identityFile, err)
	}
	d.identity = Identity{ClusterID: clusterID, NodeID: cluster.NodeID(m.GetNodeId()), DirectoryID: directoryID}
	return nil
}

func (d *directory) writeIdentity(identity Identity) error {
	m := &diskv1.NodeIdentity{
		FormatVersion: formatVersion,
		NodeId:        int32(identity.NodeID),
		DirectoryId:   uuid.UUID(identity.DirectoryID).String(),
	}
	if identity.ClusterID != ([16]byte{}) {
		m.ClusterId = uuid.UUID(identity.ClusterID).String()
	}
	if err := writeMessage(d.join(identityFile), m); err != nil {
		return describe(d.path, err)
	}
	d.identity = identity
	return nil
}

// readClean returns the clean marker if there is one that is about exactly these
// volumes of this directory.
func (d *directory) readClean(volumes []uint64) bool {
	var m diskv1.CleanMarker
	if err := readMessage(d.join(cleanFile), &m); err != nil {
		return false
	}
	return m.GetDirectoryId() == uuid.UUID(d.identity.DirectoryID).String() && slices.Equal(m.GetVolumes(), volumes)
}

func (d *directory) writeClean(nodeEpoch int64, bootID string, volumes []uint64) error {
	return writeMessage(d.join(cleanFile), &diskv1.CleanMarker{
		NodeEpoch:   nodeEpoch,
		DirectoryId: uuid.UUID(d.identity.DirectoryID).String(),
		BootId:      bootID,
		Volumes:     volumes,
	})
}

// removeClean removes the marker durably: nothing may be written to a volume
// while it is there.
func (d *directory) removeClean() error {
	if err := os.Remove(d.join(cleanFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the clean marker: %w", err)
	}
	return syncDirectory(d.path)
}

func readMessage(path string, m proto.Message) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, m); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	return nil
}

// writeMessage replaces a file by a message in JSON, so that after a crash either
// the old or the new one is there, whole.
func writeMessage(path string, m proto.Message) error {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	// protojson varies its spaces on purpose; files had better not.
	var text bytes.Buffer
	if err := json.Indent(&text, raw, "", "  "); err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	text.WriteByte('\n')
	temporary := path + temporaryFiles
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = file.Write(text.Bytes())
	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", temporary, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

// syncDirectory makes the names in a directory durable.
func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}
