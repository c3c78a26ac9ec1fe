package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

const condemnedFile = "condemned.json"

// condemnedVolume is a volume that was set aside: its files are not what was
// written there, and nothing of it is read any more. Its number stays used.
type condemnedVolume struct {
	number uint64
	set    Set
	// path is that of its folder now.
	path   string
	reason string
	at     time.Time
	// known says that all partitions are known which have lost something there, and
	// settled that their own state records say so.
	known   atomic.Bool
	settled bool
	// copies says that there were no state records in it.
	copies bool
}

func (c *condemnedVolume) describe() error {
	return datadir.WriteMessage(filepath.Join(c.path, condemnedFile), &diskv1.CondemnedVolume{
		Reason: c.reason, CondemnedMs: c.at.UnixMilli(), Settled: c.settled,
	})
}

// lost is why a read of the volume fails.
func (c *condemnedVolume) lost() error {
	return &ErrDamagedVolume{Volume: filepath.Base(c.path), Reason: c.reason}
}

// readCondemned reads what is known of a volume that was set aside before.
func readCondemned(path string, number uint64, set Set) *condemnedVolume {
	c := &condemnedVolume{number: number, set: set, path: path, reason: "it was found damaged"}
	var m diskv1.CondemnedVolume
	// What cannot be read is not known, and has to be settled once more.
	if datadir.ReadMessage(filepath.Join(path, condemnedFile), &m) == nil {
		c.reason, c.at, c.settled = m.GetReason(), time.UnixMilli(m.GetCondemnedMs()), m.GetSettled()
	}
	var d diskv1.VolumeDescription
	if datadir.ReadMessage(filepath.Join(path, volumeFile), &d) == nil {
		c.copies = d.GetCopies()
	}
	return c
}

// setAside renames the folder of a volume that nobody has open, durably. Where
// even that fails the volume is left, and found again by the next start.
func (r *volumes) setAside(number uint64, set Set, path string, copies bool, cause error) (*condemnedVolume, error) {
	c := &condemnedVolume{number: number, set: set, path: path, reason: cause.Error(), at: time.Now(), copies: copies}
	var damaged *ErrDamagedVolume
	if errors.As(cause, &damaged) {
		c.reason = damaged.Reason
		if damaged.File != "" {
			c.reason = damaged.File + ": " + damaged.Reason
		}
	}
	// It may quote what is damaged, and the note takes nothing but text.
	c.reason = strings.ToValidUTF8(c.reason, replacement)
	// The note is for operators; the name is what counts.
	if err := c.describe(); err != nil {
		r.cfg.Logger.Warn("a volume that is set aside gets no note of why", "volume", filepath.Base(path), "error", err)
	}
	to := path + condemnedSuffix
	if err := os.Rename(path, to); err != nil {
		return nil, fmt.Errorf("set volume %s aside: %w", filepath.Base(path), err)
	}
	c.path = to
	if err := datadir.Sync(r.path); err != nil {
		return nil, fmt.Errorf("set volume %s aside: %w", filepath.Base(path), err)
	}
	r.cfg.Logger.Error("a volume is damaged and was set aside; the partitions in it have failed, all others are served",
		"volume", filepath.Base(path), "folder", to, "reason", c.reason)
	return c, nil
}

// condemn sets a volume aside that was found damaged. Nobody reads it any more
// when it returns. A volume that is written cannot be condemned.
func (r *volumes) condemn(v *volume, cause error) (*condemnedVolume, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for v.mode == changing {
		r.wait()
	}
	if v.mode == writable || r.byNumber[v.number] != v || r.stopped {
		return nil, nil
	}
	if v.mode == readOnly {
		r.closeReadOnly(v)
	}
	v.mode = changing
	r.mu.Unlock()
	c, err := r.setAside(v.number, v.set, v.path, v.copies, cause)
	r.mu.Lock()
	v.mode = closed
	r.broadcast()
	if err != nil {
		return nil, err
	}
	delete(r.byNumber, v.number)
	r.condemned[v.number] = c
	r.metrics.condemned.Set(float64(len(r.condemned)))
	return c, nil
}

// condemnedVolumes returns those that were set aside, in no certain order.
func (r *volumes) condemnedVolumes() []*condemnedVolume {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*condemnedVolume
	for _, c := range r.condemned {
		out = append(out, c)
	}
	return out
}

// unsettled returns those that were set aside and whose losses nobody knows yet, in
// ascending order of their numbers.
func (r *volumes) unsettled() []*condemnedVolume {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*condemnedVolume
	for _, c := range r.condemned {
		if !c.settled && !c.copies {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *condemnedVolume) int { return cmp.Compare(a.number, b.number) })
	return out
}

// settle records of the volumes that were set aside that the losses are.
func (r *volumes) settle() error {
	for _, c := range r.condemnedVolumes() {
		r.mu.Lock()
		due := c.known.Load() && !c.settled
		c.settled = c.settled || due
		r.mu.Unlock()
		if !due {
			continue
		}
		if err := c.describe(); err != nil {
			return err
		}
	}
	return r.list()
}

// verify checks a volume before it is opened for the first time in this process:
// against the checksums of its files, or where there are none by the scan that an
// unclean stop asks for.
func (r *volumes) verify(v *volume) error {
	suspect := isSuspect(v.path)
	if suspect && !v.sealed {
		if err := removeChecksums(v.path); err != nil {
			return err
		}
	}
	list, err := readChecksums(v.path)
	if err != nil {
		return err
	}
	if list != nil {
		err = verifyBeforeOpening(context.Background(), v.path, list, v.sealed, nil)
	} else {
		err = r.cfg.CheckVolume(context.Background(), v.path)
	}
	if err != nil || !suspect {
		return err
	}
	return clearSuspect(v.path, !v.sealed)
}

// check does that once. Its error is an [*ErrDamagedVolume], or about the process.
func (r *volumes) check(v *volume) error {
	r.mu.Lock()
	checked := v.checked
	r.mu.Unlock()
	if checked {
		return nil
	}
	err := r.verify(v)
	r.mu.Lock()
	// It may have been opened for that.
	v.checked, v.halfOpened = err == nil, err != nil
	r.mu.Unlock()
	return err
}

// unlisted says whether a volume that is not sealed has no checksums, or none that
// hold.
func (r *volumes) unlisted() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.byNumber {
		if v.sealed {
			continue
		}
		if isSuspect(v.path) {
			return true, nil
		}
		if list, err := readChecksums(v.path); err != nil || list == nil {
			return true, err
		}
	}
	return false, nil
}
