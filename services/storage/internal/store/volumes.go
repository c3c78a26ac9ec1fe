package store

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// volumes owns all volumes of a store. It opens what readers need and closes
// what they have not used for longest, never a volume that somebody reads: its
// files are mapped into memory, and reading them unmapped kills the process.
//
// A reader holds one volume at a time, else readers that wait for a place could
// wait for each other.
type volumes struct {
	path    string
	cfg     *Config
	logger  badger.Logger
	metrics *metrics
	// freed is called, perhaps with locks held, when bytes have become dead.
	freed func()
	// doubted is called with a volume that cannot be read, once for each; written says
	// that it is open for writing.
	doubted func(v *volume, written bool, err error)

	mu       sync.Mutex
	byNumber map[uint64]*volume
	// condemned are those that were set aside; they are not in byNumber.
	condemned map[uint64]*condemnedVolume
	// renamed are the folders, by the numbers of the volumes, that are one under a name
	// which no volume has.
	renamed map[uint64]string
	// next is the number of the next volume.
	next uint64
	// open counts the volumes that are open, or being opened, for readers only.
	open int
	// idle holds those of them without readers, the least recently used first.
	idle list.List
	// changed is closed and replaced whenever a volume changes its mode or loses
	// its last reader.
	changed chan struct{}
	// listing is held while the list on disk is replaced, and taken before mu. onDisk
	// is what it says; nil for nobody knows.
	listing sync.Mutex
	onDisk  *diskv1.VolumeList
	// removeAll is os.RemoveAll; tests replace it.
	removeAll func(path string) error
	// stopped is set when the store closes: nobody may acquire a volume any more.
	stopped bool
}

func newVolumes(path string, cfg *Config, logger badger.Logger, m *metrics) *volumes {
	return &volumes{
		path: path, cfg: cfg, logger: logger, metrics: m,
		byNumber: make(map[uint64]*volume), condemned: make(map[uint64]*condemnedVolume), renamed: make(map[uint64]string),
		next: 1, changed: make(chan struct{}), freed: func() {}, removeAll: os.RemoveAll,
		doubted: func(*volume, bool, error) {},
	}
}

// scan finds the volumes on disk, and removes what is left of those that were
// being removed.
func (r *volumes) scan() error {
	entries, err := os.ReadDir(r.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(r.path, e.Name())
		number, suffix, named := parseVolumeName(e.Name())
		if !named {
			if err := r.stranger(path); err != nil {
				return err
			}
			continue
		}
		if suffix == removedSuffix {
			if err := r.removeAll(path); err != nil {
				r.cfg.Logger.Warn("what is left of a removed volume stays", "path", path, "error", err)
				// Its name stays taken.
				r.next = max(r.next, number+1)
			}
			continue
		}
		if suffix == condemnedSuffix {
			r.condemned[number] = readCondemned(path, number, setOfName(e.Name()))
			r.next = max(r.next, number+1)
			continue
		}
		v, err := readVolume(path)
		if err != nil && !errors.Is(err, ErrNewerFormat) && !transient(err) {
			// Nothing is certain about it but its name.
			if r.condemned[number], err = r.setAside(number, setOfName(e.Name()), path, false, err); err != nil {
				return err
			}
			r.next = max(r.next, number+1)
			continue
		}
		if err != nil {
			return err
		}
		if v == nil {
			continue
		}
		if other := r.byNumber[v.number]; other != nil {
			return fmt.Errorf("volumes %s and %s have the same number", other.path, v.path)
		}
		v.listed = true
		r.byNumber[v.number] = v
		r.next = max(r.next, v.number+1)
	}
	r.metrics.condemned.Set(float64(len(r.condemned)))
	return nil
}

// numbers returns those of all volumes in ascending order.
func (r *volumes) numbers() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.byNumber))
}

// ofSet returns the volumes that a set's appends are written to, the newest
// first.
func (r *volumes) ofSet(set Set) []*volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*volume
	for _, v := range r.byNumber {
		if v.set == set && !v.copies {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *volume) int { return cmp.Compare(b.number, a.number) })
	return out
}

// written returns how many volumes are open for writing.
func (r *volumes) written() (n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.byNumber {
		if v.mode == writable {
			n++
		}
	}
	return n
}

// latest returns the volume in which a set goes on that nobody has written to since
// the store was opened; nil where it needs a new one.
func (r *volumes) latest(set Set) *volume {
	list := r.ofSet(set)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(list) == 0 || list[0].sealed || list[0].retired {
		return nil
	}
	return list[0]
}

// copies returns the volumes that take or took copies, in ascending order of their
// numbers.
func (r *volumes) copies() []*volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*volume
	for _, v := range r.byNumber {
		if v.copies {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *volume) int { return cmp.Compare(a.number, b.number) })
	return out
}

func (r *volumes) has(number uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byNumber[number] != nil
}

// broadcast wakes all who wait for a change; mu is held.
func (r *volumes) broadcast() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// await waits for a change, without mu meanwhile.
func (r *volumes) await(ctx context.Context) error {
	changed := r.changed
	r.mu.Unlock()
	defer r.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait is await for what nobody can call off: changes take as long as the disk.
func (r *volumes) wait() {
	changed := r.changed
	r.mu.Unlock()
	<-changed
	r.mu.Lock()
}

// acquire opens a volume for a reader, who must release it.
func (r *volumes) acquire(ctx context.Context, number uint64) (*volume, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		v := r.byNumber[number]
		switch {
		case r.stopped:
			return nil, ErrClosed
		case v == nil && r.condemned[number] != nil:
			return nil, r.condemned[number].lost()
		case v == nil:
			return nil, errVolumeGone(number)
		case v.mode == readOnly || v.mode == writable:
			if v.idle != nil {
				r.idle.Remove(v.idle)
				v.idle = nil
			}
			v.readers++
			v.acquired++
			return v, nil
		case v.mode == closed && r.open < r.cfg.MaxOpenSealed:
			if err := r.openForReading(v); err != nil {
				return nil, err
			}
		case v.mode == closed && r.idle.Len() > 0:
			r.closeReadOnly(r.idle.Front().Value.(*volume))
		default:
			if err := r.await(ctx); err != nil {
				return nil, err
			}
		}
	}
}

func (r *volumes) release(v *volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.releaseLocked(v)
}

func (r *volumes) releaseLocked(v *volume) {
	v.readers--
	if v.readers > 0 {
		return
	}
	if v.mode == readOnly && !v.unreadable {
		v.idle = r.idle.PushBack(v)
	}
	r.broadcast()
}

// change moves a volume from one mode to another with work that takes a while;
// mu is held, but not during the work.
func (r *volumes) change(v *volume, to mode, work func() (*badger.DB, error)) error {
	v.mode = changing
	v.db = nil
	r.mu.Unlock()
	db, err := work()
	r.mu.Lock()
	v.mode, v.db = to, db
	if err != nil {
		v.mode, v.db = closed, nil
	}
	r.broadcast()
	return err
}

func (r *volumes) openForReading(v *volume) error {
	r.open++
	started := time.Now()
	err := r.change(v, readOnly, func() (*badger.DB, error) {
		if err := r.check(v); err != nil {
			return nil, err
		}
		db, err := openReadOnly(v.path, r.cfg, r.logger)
		if err != nil {
			err = damage(v.path, "", err)
		}
		return db, err
	})
	if err != nil {
		r.open--
		return fmt.Errorf("open volume %d for reading: %w", v.number, err)
	}
	v.counted = true
	v.idle = r.idle.PushBack(v)
	r.metrics.opened.Observe(time.Since(started).Seconds())
	r.metrics.open.Set(float64(r.open))
	return nil
}

// shut closes a drained read-only volume. Its files are only read, so an error
// of closing them loses nothing.
func (r *volumes) shut(v *volume) {
	if v.unreadable {
		v.mode, v.db = closed, nil
		r.broadcast()
		return
	}
	db := v.db
	if err := r.change(v, closed, func() (*badger.DB, error) { return nil, db.Close() }); err != nil {
		r.cfg.Logger.Warn("closing a volume", "volume", v.number, "error", err)
	}
	r.uncount(v)
}

// uncount takes a volume off those that are open for readers; mu is held.
func (r *volumes) uncount(v *volume) {
	if !v.counted {
		return
	}
	v.counted = false
	r.open--
	r.metrics.open.Set(float64(r.open))
	r.broadcast()
}

// drain keeps new readers away from an open volume and waits for those it has;
// mu is held.
func (r *volumes) drain(v *volume) {
	v.mode = changing
	for v.readers > 0 {
		r.wait()
	}
}

// create makes the next volume of a set and opens it for writing.
func (r *volumes) create(set Set, copies bool) (*volume, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	number := r.next
	r.next++
	v := &volume{
		number: number, set: set, copies: copies, path: filepath.Join(r.path, volumeName(set, number)), created: time.Now(), checked: true,
	}
	r.byNumber[number] = v
	err := r.change(v, writable, func() (*badger.DB, error) {
		if err := os.Mkdir(v.path, 0o750); err != nil {
			return nil, err
		}
		failpoint.Hit("create/before-describe")
		if err := v.describe(time.Time{}, 0); err != nil {
			return nil, err
		}
		failpoint.Hit("create/after-describe")
		if err := datadir.Sync(r.path); err != nil {
			return nil, err
		}
		failpoint.Hit("create/before-open")
		db, err := openWritable(v.path, set.synced() || copies, r.cfg, r.logger)
		if err != nil {
			return nil, err
		}
		failpoint.Hit("create/before-list")
		if err := r.enlist(v, true); err != nil {
			return nil, errors.Join(err, db.Close())
		}
		failpoint.Hit("create/after-list")
		return db, nil
	})
	if noRoom(err) {
		// Nobody knows of it yet.
		err = errors.Join(err, os.RemoveAll(v.path))
		delete(r.byNumber, number)
	}
	if err != nil {
		return nil, fmt.Errorf("create volume %d: %w", number, err)
	}
	return v, nil
}

// activate opens an existing volume for writing once nobody reads it.
func (r *volumes) activate(v *volume) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for v.mode == changing {
		r.wait()
	}
	if v.mode == readOnly {
		r.closeReadOnly(v)
	}
	if v.unreadable {
		// Badger still has its lock on the folder.
		return errStuck(v)
	}
	err := r.change(v, writable, func() (*badger.DB, error) {
		if err := r.check(v); err != nil {
			return nil, err
		}
		// From here on they would not hold.
		if err := removeChecksums(v.path); err != nil {
			return nil, err
		}
		if v.version < formatVersion {
			// What is written from now on is of this version.
			if err := v.describe(time.Time{}, 0); err != nil {
				return nil, err
			}
		}
		db, err := openWritable(v.path, v.set.synced() || v.copies, r.cfg, r.logger)
		if err != nil {
			v.halfOpened = true
			err = damage(v.path, "", err)
		}
		return db, err
	})
	if err != nil {
		return fmt.Errorf("open volume %d for writing: %w", v.number, err)
	}
	return nil
}

// retire closes a volume that is no longer written to, as soon as nobody reads
// it. Readers that come meanwhile wait, and open it anew.
func (r *volumes) retire(v *volume) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	failpoint.Hit("seal/before-close")
	err := r.closeWritable(v, func() error { return v.describe(time.Time{}, v.space.written.Load()) })
	if err != nil {
		return fmt.Errorf("close volume %d: %w", v.number, err)
	}
	return nil
}

// seal records the checksums of a volume that was closed after its last write,
// and that there will be no other. It may be open for readers.
func (r *volumes) seal(v *volume, wait pace) error {
	err := func() error {
		if isSuspect(v.path) {
			if err := guarded(v.path, func() error { return checkLogs(v.path, v.set, r.cfg.BootID) }); err != nil {
				return err
			}
			if err := clearSuspect(v.path, false); err != nil {
				return err
			}
		}
		// Else what is damaged would get a checksum as it is.
		if err := verifyTables(v.path, wait); err != nil {
			return err
		}
		list, err := sumFiles(v.path, false, wait)
		if err != nil {
			return err
		}
		failpoint.Hit("seal/before-checksums")
		if err := writeChecksums(v.path, list); err != nil {
			return err
		}
		failpoint.Hit("seal/before-describe")
		return v.describe(time.Now(), v.space.written.Load())
	}()
	if err != nil {
		return fmt.Errorf("seal volume %d: %w", v.number, err)
	}
	failpoint.Hit("seal/after-describe")
	r.mu.Lock()
	defer r.mu.Unlock()
	v.sealed = true
	r.freed()
	return nil
}

// closeReadOnly closes a volume that is open for readers; mu is held.
func (r *volumes) closeReadOnly(v *volume) {
	if v.idle != nil {
		r.idle.Remove(v.idle)
		v.idle = nil
	}
	r.drain(v)
	r.shut(v)
}

// closeWritable closes a volume that is open for writing, and then takes another
// step, if there is one, before others may open it; mu is held.
func (r *volumes) closeWritable(v *volume, then func() error) error {
	r.drain(v)
	if v.unreadable {
		v.mode = writable
		r.broadcast()
		return errStuck(v)
	}
	db := v.db
	return r.change(v, closed, func() (*badger.DB, error) {
		// What is in memory goes to tables now.
		if err := removeFloor(v.path); err != nil {
			return nil, err
		}
		if err := db.Close(); err != nil {
			return nil, err
		}
		if then == nil {
			return nil, nil
		}
		return nil, then()
	})
}

// close closes all volumes once nobody reads them. No volume may be created or
// sealed any more.
func (r *volumes) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	r.broadcast()
	var faults []error
	for _, number := range slices.Sorted(maps.Keys(r.byNumber)) {
		v := r.byNumber[number]
		for v.mode == changing {
			r.wait()
		}
		switch v.mode {
		case readOnly:
			r.closeReadOnly(v)
		case writable:
			if err := r.closeWritable(v, func() error { return v.describe(time.Time{}, v.space.written.Load()) }); err != nil {
				faults = append(faults, fmt.Errorf("close volume %d: %w", v.number, err))
				continue
			}
			failpoint.Hit("stop/after-volume")
		}
		if v.sealed || v.halfOpened {
			// Of one that was half opened nobody can say what its files are.
			continue
		}
		if err := v.writeSizes(); IsDamagedVolume(err) {
			r.cfg.Logger.Error("a volume is damaged; the next start verifies it, and sets it aside if need be", "volume", v.number, "error", err)
		} else if err != nil {
			faults = append(faults, fmt.Errorf("close volume %d: %w", v.number, err))
		}
	}
	return errors.Join(faults...)
}
