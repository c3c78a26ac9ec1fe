package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// Inspect reads a store's directory that no process works in, and changes nothing
// there. It refuses with [ErrLocked]. Damage is part of the result, not an error:
// that says that the directory could not be read at all, or is ctx's.
func Inspect(ctx context.Context, dir string, options InspectOptions) (_ *Inspection, err error) {
	opened, err := datadir.OpenReadOnly(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	i := &inspector{ctx: ctx, dir: opened, options: options, out: &Inspection{Dir: opened.Path(), Verified: options.Verify}}
	if err := i.run(); err != nil {
		return nil, fmt.Errorf("inspect %s: %w", opened.Path(), err)
	}
	return i.out, nil
}

// inspector is one call of [Inspect].
type inspector struct {
	ctx     context.Context
	dir     *datadir.Dir
	options InspectOptions
	out     *Inspection
}

func (i *inspector) run() error {
	identity, err := i.dir.ReadIdentity()
	if err != nil {
		i.damaged(Damage{File: datadir.IdentityFile, Reason: err.Error()})
	}
	i.out.Identity = identity
	if err := i.listVolumes(); err != nil {
		return err
	}
	var numbers []uint64
	for _, v := range i.out.Volumes {
		if v.Condemned == "" {
			numbers = append(numbers, v.Number)
		}
	}
	d := &directory{Dir: i.dir, identity: identity}
	i.out.Clean = d.readClean(numbers)
	return nil
}

func (i *inspector) damaged(d Damage) { i.out.Damage = append(i.out.Damage, d) }

// listVolumes describes all volumes as far as volume.json and the file system do.
func (i *inspector) listVolumes() error {
	entries, err := os.ReadDir(i.dir.Path(volumesFolder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		number, state, ok := parseVolumeName(e.Name())
		if !ok || state == deletedSuffix {
			continue
		}
		v := InspectedVolume{Number: number, Name: e.Name()}
		if state == condemnedSuffix {
			v.Condemned = "it was found damaged"
		}
		path := i.dir.Path(volumesFolder, e.Name())
		var m diskv1.VolumeDescription
		if err := datadir.ReadMessage(filepath.Join(path, volumeFile), &m); err != nil {
			v.Unreadable = err.Error()
			if v.Condemned == "" {
				i.damaged(Damage{Volume: number, File: filepath.Join(volumesFolder, e.Name(), volumeFile), Reason: err.Error()})
			}
		}
		v.Set, v.Copies, v.FormatVersion, v.Bytes = Set(m.GetSet()), m.GetCopies(), int(m.GetFormatVersion()), m.GetBytes()
		v.Created = timeOfMs(m.GetCreatedMs())
		v.Sealed = timeOfMs(m.GetSealedMs())
		if v.DiskBytes, err = occupied(path); err != nil {
			return err
		}
		if v.Condemned != "" {
			v.Condemned = readCondemned(path, number, v.Set).reason
		} else if v.Unreadable == "" {
			if err := i.checkFiles(&v, path); err != nil {
				return err
			}
		}
		i.out.Volumes = append(i.out.Volumes, v)
	}
	slices.SortFunc(i.out.Volumes, func(a, b InspectedVolume) int { return cmp.Compare(a.Number, b.Number) })
	return nil
}

// checkFiles verifies the files of a volume as a start would, and to verify
// everything also the value logs.
func (i *inspector) checkFiles(v *InspectedVolume, path string) error {
	list, err := readChecksums(path)
	if err != nil {
		return err
	}
	v.Checksummed = list != nil
	if list != nil {
		err = verifyFiles(i.ctx, path, list, i.options.Verify, nil)
	} else {
		// Which boot it was written under is not known; what only a crash of the
		// machine can do to a set that does not sync is then not taken for damage.
		err = checkLogs(path, v.Set, "")
	}
	if err == nil && i.options.Verify {
		err = verifyValueLogs(path, v.Sealed.IsZero())
	}
	var found *ErrDamagedVolume
	if !errors.As(err, &found) {
		return err
	}
	i.damaged(Damage{Volume: v.Number, File: filepath.Join(volumesFolder, v.Name, found.File), Reason: found.Reason})
	return nil
}

func timeOfMs(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

const (
	// condemnedSuffix ends the name of the folder of a volume that was set aside.
	condemnedSuffix = ".condemned"
	// deletedSuffix ends the name of the folder of a volume that is being removed.
	deletedSuffix = ".deleted"
)

// parseVolumeName reads the name of a volume's folder: its number, and the suffix
// of one that is no longer in use.
func parseVolumeName(name string) (number uint64, suffix string, ok bool) {
	for _, s := range []string{condemnedSuffix, deletedSuffix} {
		if rest, found := strings.CutSuffix(name, s); found {
			name, suffix = rest, s
			break
		}
	}
	i := strings.LastIndexByte(name, '-')
	if i < 1 {
		return 0, "", false
	}
	number, err := strconv.ParseUint(name[i+1:], 10, 64)
	if err != nil || number == 0 || volumeName(Set(name[:i]), number) != name {
		return 0, "", false
	}
	return number, suffix, true
}

// setOfName returns the set that a folder's name says, whatever its suffix.
func setOfName(name string) Set {
	i := strings.LastIndexByte(name, '-')
	return Set(name[:max(i, 0)])
}

// occupied returns what the files of a folder take of the disk.
func occupied(path string) (int64, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return 0, err
		}
		total += diskBytes(info)
	}
	return total, nil
}
