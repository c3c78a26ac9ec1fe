package store

import (
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// Set names a sequence of volumes; a partition's batches go to the set of its
// durability class.
type Set string

const (
	// SetSynced acknowledges what has been synced to the disk.
	SetSynced Set = "synced"
	// SetReplicated acknowledges what the kernel has: it survives the process, but
	// not the machine.
	SetReplicated Set = "replicated"
	// SetSyncedCompacted and SetReplicatedCompacted are the same for compacted
	// topics: their volumes empty in another pattern, and cleaning them together
	// with others would copy more.
	SetSyncedCompacted     Set = "synced-compacted"
	SetReplicatedCompacted Set = "replicated-compacted"
)

var allSets = []Set{SetSynced, SetReplicated, SetSyncedCompacted, SetReplicatedCompacted}

// synced says whether the set acknowledges only what has been synced.
func (s Set) synced() bool { return s == SetSynced || s == SetSyncedCompacted }

// SetFor returns the set of a durability class.
func SetFor(synced, compacted bool) Set {
	switch {
	case synced && compacted:
		return SetSyncedCompacted
	case synced:
		return SetSynced
	case compacted:
		return SetReplicatedCompacted
	default:
		return SetReplicated
	}
}

// mode is what may be done with a volume.
type mode uint8

const (
	// closed: nobody has its files open.
	closed mode = iota
	// changing: somebody opens or closes it; all others wait.
	changing
	// readOnly: open for readers.
	readOnly
	// writable: open for readers and for the commit goroutine of its set.
	writable
)

// volume is one Badger directory. [volumes] owns and guards it.
type volume struct {
	// Immutable.
	number  uint64
	set     Set
	path    string
	created time.Time
	// copies says that the volume holds what was copied from others, and
	// that no group is ever written to it.
	copies bool
	// space may be changed by anybody.
	space space

	// Guarded by volumes.mu.
	mode mode
	// db is there while the mode is readOnly or writable.
	db *badger.DB
	// readers holds off closing; acquired counts all that there were.
	readers  int
	acquired uint64
	// lastUse is what the look for idle volumes has found, see [volumes.releaseIdle].
	lastUse volumeUse
	// counted says that it is one of volumes.open.
	counted bool
	// idle is the place among the read-only volumes without readers.
	idle *list.Element
	// sealed says that nothing is written to it any more.
	sealed bool
	// retired says that it has taken its last write, and is to be sealed.
	retired bool
	// listed says that the list on disk has it, see [listFile].
	listed bool
	// checked says that its files were verified since this process began.
	checked bool
	// unreadable says that what is open cannot be closed any more, see [volumes.read].
	unreadable bool
	// halfOpened says that Badger has failed to open it for writing. Its goroutines may
	// still be at work on the files.
	halfOpened bool
	// version is that of the layout which the description names.
	version int32

	tables tableCheck
}

// writeSizes records what a closed volume that is not sealed has in its files, but
// for the value logs: unless it has such a list, or a better one, already. One that is
// damaged gets none, so that the next start verifies it.
func (v *volume) writeSizes() error {
	if list, err := readChecksums(v.path); err != nil || list != nil {
		return err
	}
	if err := verifyTables(v.path, nil); err != nil {
		return err
	}
	list, err := sumFiles(v.path, true, nil)
	if err != nil {
		return err
	}
	return writeChecksums(v.path, list)
}

func volumeName(set Set, number uint64) string { return fmt.Sprintf("%s-%06d", set, number) }

// describe writes volume.json; sealed is zero while the volume is active. bytes
// is what it holds, as far as that is known.
func (v *volume) describe(sealed time.Time, bytes int64) error {
	m := &diskv1.VolumeDescription{
		FormatVersion: formatVersion,
		Volume:        v.number,
		Set:           string(v.set),
		CreatedMs:     v.created.UnixMilli(),
		Copies:        v.copies,
		Bytes:         bytes,
	}
	if !sealed.IsZero() {
		m.SealedMs = sealed.UnixMilli()
	}
	if err := datadir.WriteMessage(filepath.Join(v.path, volumeFile), m); err != nil {
		return fmt.Errorf("describe volume %d: %w", v.number, err)
	}
	v.version = formatVersion
	return nil
}

// readVolume reads the description of the volume in a folder. It returns nil for
// a folder in which the process died before it could describe the volume; there
// is nothing in it, and it is removed.
func readVolume(path string) (*volume, error) {
	var m diskv1.VolumeDescription
	err := datadir.ReadMessage(filepath.Join(path, volumeFile), &m)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, removeUndescribed(path)
	}
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", path, err)
	}
	if m.GetFormatVersion() > formatVersion {
		return nil, datadir.NewerFormat("volume "+path, int(m.GetFormatVersion()), formatVersion)
	}
	v := &volume{
		number:  m.GetVolume(),
		set:     Set(m.GetSet()),
		path:    path,
		created: time.UnixMilli(m.GetCreatedMs()),
		copies:  m.GetCopies(),
		sealed:  m.GetSealedMs() != 0,
		version: m.GetFormatVersion(),
	}
	v.space.written.Store(m.GetBytes())
	if want := volumeName(v.set, v.number); want != filepath.Base(path) || v.number == 0 {
		return nil, fmt.Errorf("volume %s: its %s is that of %s", path, volumeFile, want)
	}
	return v, nil
}

func removeUndescribed(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), datadir.TemporarySuffix) {
			return fmt.Errorf("volume %s has no %s; restore the file from a backup", path, volumeFile)
		}
	}
	return os.RemoveAll(path)
}
