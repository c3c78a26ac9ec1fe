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
	i := &inspector{ctx: ctx, dir: opened, options: options, out: &Inspection{Dir: opened.Path(), Verified: options.Verify},
		found: recovery{partitions: make(map[PartitionID]*recoveredPartition)}, spans: make(map[uint64][]heldSpan)}
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
	// rebooted says that the machine has crashed since the directory was written.
	rebooted bool
	// done and total are bytes, for [InspectOptions.Progress].
	done, total int64

	found recovery
	// spans are those in each volume.
	spans map[uint64][]heldSpan
}

// heldSpan is a span with the partition that it belongs to.
type heldSpan struct {
	id PartitionID
	in *durable
	span
}

// maxDamage bounds the list of what is wrong.
const maxDamage = 1000

func (i *inspector) damaged(d Damage) {
	switch n := len(i.out.Damage); {
	case n < maxDamage:
		i.out.Damage = append(i.out.Damage, d)
	case n == maxDamage:
		i.out.Damage = append(i.out.Damage, Damage{Reason: "there is more damage than is listed"})
	}
}

// damagedIn adds damage of a volume whose reason is an error. It returns the error
// if it is about the process or the machine.
func (i *inspector) damagedIn(v *InspectedVolume, err error) error {
	var found *ErrDamagedVolume
	if !errors.As(err, &found) {
		return err
	}
	i.damaged(Damage{Volume: v.Number, File: volumeFileOf(v, found.File), Reason: found.Reason})
	return nil
}

// volumeFileOf returns the name of a file of a volume in the store's directory.
func volumeFileOf(v *InspectedVolume, file string) string {
	return filepath.Join(volumesFolder, v.Name, file)
}

// read is the [pace] of all that is read.
func (i *inspector) read(bytes int) error {
	i.done += int64(bytes)
	i.total = max(i.total, i.done)
	if i.options.Progress != nil {
		i.options.Progress(i.done, i.total)
	}
	return i.ctx.Err()
}

func (i *inspector) run() error {
	identity, err := i.dir.ReadIdentity()
	if err != nil {
		i.damaged(Damage{File: datadir.IdentityFile, Reason: err.Error()})
	}
	i.out.Identity = identity
	if i.out.Vacant, err = i.vacant(); err != nil {
		return err
	}
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
	if err := i.reportMissing(d); err != nil {
		return err
	}
	if i.out.Clean = d.readClean(numbers); !i.out.Clean {
		if i.rebooted, err = d.otherBoot(i.options.BootID); err != nil {
			return err
		}
		i.rebooted = i.rebooted || i.options.BootID == ""
	}
	for n := range i.out.Volumes {
		v := &i.out.Volumes[n]
		if v.Condemned != "" || v.Unreadable != "" {
			continue
		}
		if err := i.checkFiles(v); err != nil {
			return err
		}
	}
	if err := i.readPartitions(); err != nil {
		return err
	}
	if !i.options.Verify {
		return nil
	}
	for n := range i.out.Volumes {
		v := &i.out.Volumes[n]
		if v.Condemned != "" || v.Unreadable != "" {
			continue
		}
		if err := i.open(v, func(in entries) error { return i.verifyEntries(v, in) }); err != nil {
			return err
		}
	}
	return nil
}

// vacant says that there is nothing of what a store makes when it begins or ends.
func (i *inspector) vacant() (bool, error) {
	for _, name := range []string{volumesFolder, listFile, cleanFile} {
		if _, err := os.Stat(i.dir.Path(name)); !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return true, nil
}

// open calls f with the entries of a volume. What damage it meets is noted; the
// volume counts as unreadable then.
func (i *inspector) open(v *InspectedVolume, f func(entries) error) error {
	path := i.dir.Path(volumesFolder, v.Name)
	err := guarded(path, func() error {
		in, err := openOffline(path)
		if err != nil {
			return err
		}
		defer in.close()
		return f(in)
	})
	if IsDamagedVolume(err) {
		v.Unreadable = err.Error()
	}
	if err != nil {
		return i.damagedIn(v, err)
	}
	return nil
}

// mayHaveHoles says whether a crash of the machine may have taken something from
// the midst of a volume. A start settles that without a loss that was promised not
// to happen.
func (i *inspector) mayHaveHoles(v *InspectedVolume) bool {
	return i.rebooted && v.Sealed.IsZero() && !v.Set.synced()
}

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
		v := InspectedVolume{Number: number, Name: e.Name(), Set: setOfName(e.Name())}
		if state == "" && undescribed(i.dir.Path(volumesFolder, v.Name)) {
			continue
		}
		if err := i.describe(&v); err != nil {
			return err
		}
		i.out.Volumes = append(i.out.Volumes, v)
	}
	slices.SortFunc(i.out.Volumes, func(a, b InspectedVolume) int { return cmp.Compare(a.Number, b.Number) })
	return nil
}

// undescribed says whether a process died before it could describe the volume in a
// folder: there is nothing in it.
func undescribed(path string) bool {
	entries, err := os.ReadDir(path)
	return err == nil && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !strings.HasSuffix(e.Name(), datadir.TemporarySuffix) })
}

func (i *inspector) describe(v *InspectedVolume) error {
	path := i.dir.Path(volumesFolder, v.Name)
	var err error
	if v.DiskBytes, err = occupied(path); err != nil {
		return err
	}
	var m diskv1.VolumeDescription
	if err := datadir.ReadMessage(filepath.Join(path, volumeFile), &m); err != nil {
		v.Unreadable = err.Error()
	}
	v.Copies, v.FormatVersion, v.Bytes = m.GetCopies(), int(m.GetFormatVersion()), m.GetBytes()
	v.Created, v.Sealed = timeOfMs(m.GetCreatedMs()), timeOfMs(m.GetSealedMs())
	if strings.HasSuffix(v.Name, condemnedSuffix) {
		v.Condemned = readCondemned(path, v.Number, v.Set).reason
		return nil
	}
	switch {
	case v.FormatVersion > formatVersion:
		return datadir.NewerFormat("volume "+path, v.FormatVersion, formatVersion)
	case v.Unreadable == "" && volumeName(Set(m.GetSet()), m.GetVolume()) != v.Name:
		v.Unreadable = "it is that of " + volumeName(Set(m.GetSet()), m.GetVolume())
	}
	if v.Unreadable != "" {
		i.damaged(Damage{Volume: v.Number, File: volumeFileOf(v, volumeFile), Reason: v.Unreadable})
		return nil
	}
	files, err := i.filesOf(path)
	for _, bytes := range files {
		i.total += bytes
	}
	return err
}

// filesOf returns the files in a folder that are read whole, with the bytes that
// they occupy.
func (i *inspector) filesOf(path string) (map[string]int64, error) {
	list, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	out := make(map[string]int64)
	for _, f := range list {
		if !checksummed(f.Name()) || filepath.Ext(f.Name()) == ".vlog" && !i.options.Verify {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return nil, err
		}
		out[f.Name()] = diskBytes(info)
	}
	return out, nil
}

// checkFiles verifies the files of a volume as a start would, and to verify
// everything also the value logs. A volume with damage that a start would set it
// aside for counts as unreadable.
func (i *inspector) checkFiles(v *InspectedVolume) error {
	path := i.dir.Path(volumesFolder, v.Name)
	list, err := readChecksums(path)
	if err != nil {
		return err
	}
	v.Checksummed = list != nil
	// What is not read below with the others.
	rest, err := i.filesOf(path)
	if err != nil {
		return err
	}
	if list != nil {
		for _, f := range list.GetFiles() {
			if !f.GetSizeOnly() {
				delete(rest, f.GetName())
			}
		}
		if err = verifyFiles(i.ctx, path, list, false, i.read); err == nil && !i.options.Verify && !complete(list) {
			// Else all value logs are, and what is damaged there is named.
			err = verifyLastValueLog(path)
		}
	} else {
		err = guarded(path, func() error { return checkLogs(path, v.Set, i.options.BootID) })
	}
	if IsDamagedVolume(err) {
		v.Unreadable = err.Error()
	}
	if err = i.damagedIn(v, err); err != nil {
		return err
	}
	if i.options.Verify && v.Unreadable == "" {
		for _, f := range list.GetFiles() {
			if f.GetSizeOnly() || filepath.Ext(f.GetName()) != ".vlog" {
				continue
			}
			if err := i.damagedIn(v, verifyFile(path, f, true, i.read)); err != nil {
				return err
			}
		}
		if !complete(list) {
			if err := i.damagedIn(v, verifyValueLogs(path, list == nil && v.Sealed.IsZero())); err != nil {
				return err
			}
		}
	}
	var bytes int64
	for _, n := range rest {
		bytes += n
	}
	return i.read(int(bytes))
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
	set := Set(name[:i])
	if err != nil || number == 0 || volumeName(set, number) != name || !slices.Contains(allSets, set) && set != setUnknown {
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
