package datadir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

const (
	// IdentityFile is the name of the file that holds the identity, and IdentityCopy
	// that of one which says the same and stands in for it where it is lost.
	IdentityFile = "node.json"
	IdentityCopy = "node.copy.json"
	// FormatVersion is that of the identity and of the layout of a directory that has
	// one.
	FormatVersion = 1
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

// Known says that the directory has belonged to a cluster.
func (i Identity) Known() bool { return i.ClusterID != [16]byte{} }

// Identity reads the identity. Where its file is missing, torn or unreadable it is
// made anew from the copy. A directory without either gets one with a new
// directory id, unless one of the folders holds something: that would then belong
// to nobody, and is refused with [ErrDamaged], as is a file that makes no sense. A
// newer release's is refused with [ErrNewerFormat]; fields that it added to this
// format are not.
func (d *Dir) Identity(folders ...string) (Identity, error) {
	identity, err := d.readIdentity(IdentityFile)
	if err == nil {
		if copied, copyErr := d.readIdentity(IdentityCopy); copyErr != nil || copied != identity {
			// Without one the directory is as good as before; the next start tries again.
			_ = d.writeIdentity(IdentityCopy, identity)
		}
		return identity, nil
	}
	if !replaceable(err) {
		return Identity{}, err
	}
	if copied, copyErr := d.readIdentity(IdentityCopy); copyErr == nil {
		return copied, d.SetIdentity(copied)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return d.found(folders)
	}
	return Identity{}, err
}

// replaceable says that what is wrong with a file is about the file alone.
func replaceable(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) || errors.Is(err, syscall.EIO)
}

func (d *Dir) readIdentity(name string) (Identity, error) {
	raw, err := os.ReadFile(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, err
	}
	if err != nil {
		return Identity{}, Unusable(d.path, err)
	}
	return parseIdentity(d.Path(name), raw)
}

func (d *Dir) found(folders []string) (Identity, error) {
	for _, folder := range folders {
		entries, err := os.ReadDir(d.Path(folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Identity{}, Unusable(d.path, err)
		}
		if slices.ContainsFunc(entries, counts) {
			return Identity{}, damagedIdentity(d.Path(IdentityFile), fmt.Errorf("it is missing, as is %s, but there are %s", IdentityCopy, folder))
		}
	}
	identity := Identity{DirectoryID: uuid.New()}
	return identity, d.SetIdentity(identity)
}

// counts says whether an entry of a folder is something that a node has written,
// and nothing that systems leave in any folder.
func counts(e fs.DirEntry) bool { return e.Name() != "lost+found" && !strings.HasPrefix(e.Name(), ".") }

// damagedIdentity is [Damaged] for the identity, of which any copy will do.
func damagedIdentity(file string, cause error) error {
	return &refusal{reason: ErrDamaged, cause: cause, text: fmt.Sprintf(
		"%s is damaged: %v; put a backup of it in its place, however old, since it stays as it is once the node has registered, or choose another data directory", file, cause)}
}

// checksum is what a file that says this must have.
func checksum(m *diskv1.NodeIdentity, identity Identity) uint32 {
	raw := binary.BigEndian.AppendUint32(nil, uint32(m.GetFormatVersion()))
	raw = append(raw, identity.ClusterID[:]...)
	raw = binary.BigEndian.AppendUint32(raw, uint32(identity.NodeID))
	return crc32.Checksum(append(raw, identity.DirectoryID[:]...), crc32.MakeTable(crc32.Castagnoli))
}

// parseIdentity reads what the file, which errors name, holds.
func parseIdentity(file string, raw []byte) (Identity, error) {
	var m diskv1.NodeIdentity
	if err := decode(raw, &m); err != nil {
		return Identity{}, damagedIdentity(file, err)
	}
	if v := m.GetFormatVersion(); v > FormatVersion {
		return Identity{}, NewerFormat(file, int(v), FormatVersion)
	}
	if m.GetFormatVersion() < 1 || m.GetNodeId() < 0 {
		return Identity{}, damagedIdentity(file, fmt.Errorf("it has format %d and node id %d", m.GetFormatVersion(), m.GetNodeId()))
	}
	identity := Identity{NodeID: cluster.NodeID(m.GetNodeId())}
	directoryID, err := uuid.Parse(m.GetDirectoryId())
	if err != nil {
		return Identity{}, damagedIdentity(file, fmt.Errorf("directory id: %w", err))
	}
	identity.DirectoryID = directoryID
	if text := m.GetClusterId(); text != "" {
		clusterID, err := uuid.Parse(text)
		if err != nil {
			return Identity{}, damagedIdentity(file, fmt.Errorf("cluster id: %w", err))
		}
		identity.ClusterID = clusterID
	}
	if m.Crc32C != nil && m.GetCrc32C() != checksum(&m, identity) {
		return Identity{}, damagedIdentity(file, errors.New("its checksum does not hold"))
	}
	return identity, nil
}

// SetIdentity records durably whose the directory is from now on. Whether that may
// change is for the caller to say.
func (d *Dir) SetIdentity(identity Identity) error {
	// The copy first: at no moment it is the older one.
	for _, name := range []string{IdentityCopy, IdentityFile} {
		if err := d.writeIdentity(name, identity); err != nil {
			return Unusable(d.path, err)
		}
	}
	return nil
}

func (d *Dir) writeIdentity(name string, identity Identity) error {
	m := &diskv1.NodeIdentity{
		FormatVersion: FormatVersion,
		NodeId:        int32(identity.NodeID),
		DirectoryId:   uuid.UUID(identity.DirectoryID).String(),
	}
	if identity.Known() {
		m.ClusterId = uuid.UUID(identity.ClusterID).String()
	}
	m.Crc32C = proto.Uint32(checksum(m, identity))
	return WriteMessage(d.Path(name), m)
}
