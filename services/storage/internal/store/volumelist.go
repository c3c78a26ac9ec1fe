package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// listFile names, in the store's directory, the volumes that must be there. A
// volume is listed once it is on the disk and before anything is written to it,
// and no longer before it is removed: one that is not listed may be there, but not
// the other way round.
const listFile = "volumes.json"

// setUnknown is the set of a missing volume of which only the number is known.
const setUnknown Set = "unknown"

// expected returns the volumes that must be in the directory, and the highest
// number that one is known to have had.
func (d *directory) expected() (list []*diskv1.ListedVolume, last uint64, err error) {
	var m diskv1.VolumeList
	err = datadir.ReadMessage(d.Path(listFile), &m)
	// A directory of an earlier release has no list; one that is damaged, or cannot be
	// read, says nothing.
	if transient(err) || errors.Is(err, ErrNewerFormat) {
		return nil, 0, err
	}
	list, last = m.GetVolumes(), m.GetLastVolume()
	var marker diskv1.CleanMarker
	if datadir.ReadMessage(d.Path(cleanFile), &marker) == nil && marker.GetDirectoryId() == uuid.UUID(d.identity.DirectoryID).String() {
		for _, number := range marker.GetVolumes() {
			if !slices.ContainsFunc(list, func(l *diskv1.ListedVolume) bool { return l.GetVolume() == number }) {
				list = append(list, &diskv1.ListedVolume{Volume: number, Set: string(setUnknown)})
			}
		}
	}
	for _, l := range list {
		last = max(last, l.GetVolume())
	}
	return list, last, nil
}

// miss sets aside, in name, those of the volumes that must be there and are not.
func (r *volumes) miss(expected []*diskv1.ListedVolume) error {
	for _, m := range expected {
		number := m.GetVolume()
		if r.byNumber[number] != nil || r.condemned[number] != nil {
			continue
		}
		path := filepath.Join(r.path, volumeName(Set(m.GetSet()), number))
		if other := r.renamed[number]; other != "" {
			return fmt.Errorf("volume %s is missing, and %s is it under another name; give the folder its name back, or move it out of %s to go on without its records",
				filepath.Base(path), other, r.path)
		}
		c := &condemnedVolume{
			number: number, set: Set(m.GetSet()), path: path + removedSuffix, reason: "it is missing", at: time.Now(), copies: m.GetCopies(),
		}
		if err := c.placehold(path + condemnedSuffix); err != nil {
			return fmt.Errorf("note that volume %d is missing: %w", number, err)
		}
		r.condemned[number] = c
		r.cfg.Logger.Error("a volume is missing; the partitions in it have failed, all others are served", "volume", filepath.Base(path))
	}
	r.metrics.condemned.Set(float64(len(r.condemned)))
	return nil
}

// stranger looks at an entry of the volumes' folder that no volume has the name of.
// It is somebody else's and left alone, unless a newer release wrote it.
func (r *volumes) stranger(path string) error {
	r.cfg.Logger.Warn("something that is no volume lies among the volumes; it is left alone", "path", path)
	var m diskv1.VolumeDescription
	if datadir.ReadMessage(filepath.Join(path, volumeFile), &m) != nil {
		return nil
	}
	if m.GetFormatVersion() > formatVersion {
		return datadir.NewerFormat("volume "+path, int(m.GetFormatVersion()), formatVersion)
	}
	r.renamed[m.GetVolume()] = path
	return nil
}

// placehold makes the folder of a volume that was set aside, where there is none.
func (c *condemnedVolume) placehold(to string) error {
	// Under a name that means nothing until all of it is there.
	if err := os.Mkdir(c.path, 0o750); err != nil {
		return err
	}
	v := &volume{number: c.number, set: c.set, copies: c.copies, path: c.path, created: c.at}
	if err := v.describe(c.at, 0); err != nil {
		return err
	}
	if err := c.describe(); err != nil {
		return err
	}
	if err := os.Rename(c.path, to); err != nil {
		return err
	}
	c.path = to
	return datadir.Sync(filepath.Dir(to))
}

// reserve keeps numbers up to that one from being used again.
func (r *volumes) reserve(number uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = max(r.next, number+1)
}

// enlist has a volume on the list, or no longer; mu is not held.
func (r *volumes) enlist(v *volume, listed bool) error {
	r.mu.Lock()
	v.listed = listed
	r.mu.Unlock()
	err := r.list()
	if err != nil {
		r.mu.Lock()
		v.listed = !listed
		r.mu.Unlock()
	}
	return err
}

// list brings the list on disk up to date; mu is not held.
func (r *volumes) list() error {
	r.listing.Lock()
	defer r.listing.Unlock()
	r.mu.Lock()
	m := &diskv1.VolumeList{LastVolume: r.next - 1}
	for _, v := range r.byNumber {
		if v.listed {
			m.Volumes = append(m.Volumes, &diskv1.ListedVolume{Volume: v.number, Set: string(v.set), Copies: v.copies})
		}
	}
	for _, c := range r.condemned {
		if !c.settled && !c.copies {
			m.Volumes = append(m.Volumes, &diskv1.ListedVolume{Volume: c.number, Set: string(c.set)})
		}
	}
	r.mu.Unlock()
	slices.SortFunc(m.Volumes, func(a, b *diskv1.ListedVolume) int { return cmp.Compare(a.GetVolume(), b.GetVolume()) })
	if r.onDisk != nil && proto.Equal(m, r.onDisk) {
		return nil
	}
	r.onDisk = nil
	if err := datadir.WriteMessage(filepath.Join(filepath.Dir(r.path), listFile), m); err != nil {
		return fmt.Errorf("list the volumes: %w", err)
	}
	r.onDisk = m
	return nil
}
