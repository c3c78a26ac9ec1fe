package store

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// ballastFile is in the store's directory.
	ballastFile = "ballast"
	// maxMinFree and maxBallast are what is kept free, and held back for the moment
	// in which nothing is, where the configuration does not say otherwise; on small
	// disks it is a part of the disk.
	maxMinFree = 1 << 30
	maxBallast = 64 << 20
	// leastMinFree is the least that may be configured, or a sixteenth of a smaller
	// disk: what nobody can reserve, tables above all, has to find room there.
	leastMinFree = 32 << 20
	// leastVolume is how large volumes become on the smallest disks.
	leastVolume = 16 << 20

	// lookEvery is how often an idle store looks at the disk, and lookLow how often
	// below the watermark; appends look if nobody has within freshFor.
	lookEvery = time.Second
	lookLow   = 5 * time.Millisecond
	freshFor  = 10 * time.Millisecond
	// minFiles is how many files can still be made where batches are refused, if the
	// file system has a limit, and volumeFiles how many a volume may need.
	minFiles    = 64
	volumeFiles = 16
	// keptHandles is how many files the process can still open where batches are
	// refused: those of a volume, and as many for whoever opens one meanwhile.
	keptHandles = 2 * volumeFiles
	// awaitEvery is how often somebody looks who waits for space.
	awaitEvery = 20 * time.Millisecond
	// exhausted is how little is free when whoever takes the space meets the end of
	// the disk. steadyFor is how long nobody may have taken any where more than that
	// is left.
	exhausted = 256 << 10
	steadyFor = 100 * time.Millisecond
	// openPatience is how long a start waits for the space that its repairs need.
	openPatience = 2 * time.Second
	// tableSpace is what must be free for Badger to write a table.
	// Badger writes several at the same time, and takes claimFor at most to do so.
	tableSpace = 8 << 20
	claimFor   = time.Second
)

// ErrDiskFull says that the disk has too little free space. The errors that wrap
// it name the directory and the remedy. Nothing was written; the store goes on,
// and takes appends again once there is space.
var ErrDiskFull = errors.New("the disk is full")

// ErrFewFiles is the same for the files that the process may have open.
var ErrFewFiles = errors.New("the process has too many files open")

// usage is what a file system says about its space, in bytes.
type usage struct {
	// free is what a process without privileges may still use.
	free, total int64
	// files is how many files can still be made, totalFiles how many in all; 0 where
	// there is no limit.
	files, totalFiles int64
	readOnly          bool
}

// disk watches the space of the file system that a store lies on.
//
// Badger writes through mappings, and a page that the file system has no block
// for kills the process. So everything that is mapped gets its space before it
// is written, see [logFiles] and [memFiles], and what nobody can reserve, the
// tables that Badger builds, is only begun while there is room for it: batches
// are refused while less than a watermark is free, which leaves the rest to what
// makes room, and a ballast is given up when even that runs out.
//
// Another process may take the space between a look and the write; the watermark
// is what it would have to write in that time. It would take the ballast too, so
// that is given up only once that process has met the end of the disk, or has
// stopped before.
type disk struct {
	dir     string
	logger  *slog.Logger
	metrics *metrics
	fail    func(error)
	// failed is closed when the store has failed.
	failed <-chan struct{}
	// measure is statfs; tests replace it.
	measure func(dir string) (usage, error)
	// fewHandles says that the process can open hardly more files: Badger would not
	// survive that it cannot, so that this counts like space.
	fewHandles atomic.Bool
	handles    *handles

	// min is the watermark: below it batches are refused, until there are resume.
	min, resume int64
	// minFiles and resumeFiles are the same for files.
	minFiles, resumeFiles int64
	// ballastBytes is the size of the ballast; 0 for none.
	ballastBytes int64
	// total is the size of the file system; 0 where it does not tell.
	total int64
	// blind says that the file system does not tell, or cannot reserve.
	blind bool

	// queued are the bytes of batches that are admitted and not committed yet.
	queued atomic.Int64

	// alarm tells run that less is free than the watermark.
	alarm chan struct{}

	mu   sync.Mutex
	free int64
	// files is how many can still be made.
	files int64
	// fell is when less was free than at the look before.
	fell time.Time
	// claims are what was promised to somebody who is about to write.
	claims   []claim
	looked   time.Time
	refusing bool
	// told says that the log has it that batches are refused, be it only those as
	// large as wanted.
	told    bool
	wanted  int64
	ballast bool
}

// claim is a promise of space.
type claim struct {
	bytes int64
	until time.Time
}

// watchDisk has a first look. It makes no file. Its owner closes its handles.
func watchDisk(dir string, cfg *Config, m *metrics, failed <-chan struct{}, fail func(error)) *disk {
	d := &disk{dir: dir, logger: cfg.Logger, metrics: m, fail: fail, failed: failed, measure: cfg.measureDisk, free: math.MaxInt64, files: math.MaxInt64, alarm: make(chan struct{}, 1), handles: openHandles()}
	if d.measure == nil {
		d.measure = measureDisk
	}
	u, err := d.measure(dir)
	if err != nil {
		d.blind = true
		return d
	}
	d.total = u.total
	d.min = cfg.MinFreeBytes
	if d.min == 0 {
		d.min = min(maxMinFree, u.total/8)
	}
	if least := min(leastMinFree, u.total/16); d.min < least {
		d.logger.Warn("more is kept free of the disk than configured: that is what the store needs itself",
			"directory", dir, "configured", mebibytes(d.min), "kept_free", mebibytes(least))
		d.min = least
	}
	d.resume = d.min + d.min/4
	d.minFiles = min(minFiles, u.totalFiles/8)
	d.resumeFiles = d.minFiles + d.minFiles/4
	d.ballastBytes = min(maxBallast, u.total/16)
	if info, err := os.Stat(d.ballastPath()); err == nil && info.Size() > 0 {
		d.ballast = true
		m.ballast.Set(float64(info.Size()))
	}
	m.minFree.Set(float64(d.min))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free = u.free
	d.takeLocked(u)
	return d
}

func (d *disk) ballastPath() string { return filepath.Join(d.dir, ballastFile) }

// run looks at the disk until stop is closed, and keeps the ballast.
func (d *disk) run(stop <-chan struct{}) {
	for {
		d.lookForHandles()
		pause := lookEvery
		if !d.blind {
			d.mu.Lock()
			d.lookLocked()
			d.trimLocked()
			if d.free < d.min {
				pause = lookLow
			}
			d.mu.Unlock()
		}
		select {
		case <-stop:
			return
		case <-d.alarm:
		case <-time.After(pause):
		}
	}
}

// lookForHandles looks whether the process can open more files.
func (d *disk) lookForHandles() {
	few := d.openable(keptHandles) < keptHandles
	if d.fewHandles.Swap(few) == few {
		return
	}
	if few {
		d.logger.Error("records are refused until the process can open more files; reads of what is open and deletes go on", "reason", d.handlesError().Error())
	} else {
		d.logger.Warn("the process can open files again: records are taken", "directory", d.dir)
	}
}

func (d *disk) handlesError() error {
	return fmt.Errorf("%w: it can open fewer than %d more, which the store in %s may need at any time; "+
		"allow it more (ulimit -n; fs.file-max for the machine), or close connections; records are taken again then", ErrFewFiles, keptHandles, d.dir)
}

// lookLocked asks the file system.
func (d *disk) lookLocked() {
	if d.blind {
		return
	}
	u, err := d.measure(d.dir)
	if err != nil {
		d.logger.Warn("the file system does not tell how much is free", "directory", d.dir, "error", err)
		d.looked = time.Now()
		return
	}
	if u.readOnly {
		d.fail(fmt.Errorf("the file system of %s has become read-only: look at the kernel's log for the fault of the disk, and start again once it is writable", d.dir))
	}
	d.takeLocked(u)
}

func (d *disk) takeLocked(u usage) {
	d.looked = time.Now()
	if u.free < d.free {
		d.fell = d.looked
	}
	if u.free < d.min && d.free >= d.min {
		select {
		case d.alarm <- struct{}{}:
		default:
		}
	}
	d.free, d.files = u.free, math.MaxInt64
	if u.totalFiles > 0 {
		d.files = u.files
	}
	d.metrics.diskFree.Set(float64(u.free))
	limit, files := d.min, d.minFiles
	if d.refusing {
		limit, files = d.resume, d.resumeFiles
	}
	left := u.free - d.queued.Load()
	d.refusing = left < limit || d.files < files
	switch {
	case d.refusing:
		d.tellLocked()
	case d.told && left >= d.resume && left-d.wanted >= d.min:
		d.told, d.wanted = false, 0
		d.logger.Warn("the disk has room again: records are taken", "directory", d.dir, "free", mebibytes(u.free))
	}
}

// tellLocked logs that batches are refused, once.
func (d *disk) tellLocked() {
	if d.told {
		return
	}
	d.told = true
	d.logger.Warn("records are refused until there is room; reads and deletes go on", "reason", d.fullLocked(d.wanted).Error())
}

// mebibytes is how messages tell of space.
func mebibytes(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// trimLocked gives the ballast up where next to nothing is free, and makes it
// where it takes nothing away from anybody.
func (d *disk) trimLocked() {
	switch {
	case d.ballast && d.free < exhausted:
		d.releaseLocked()
	case !d.ballast && d.ballastBytes > 0 && d.free-d.ballastBytes >= d.resume && d.files >= d.resumeFiles:
		d.loadLocked()
	}
}

func (d *disk) releaseLocked() {
	if !d.ballast {
		return
	}
	if err := os.Remove(d.ballastPath()); err != nil {
		d.logger.Error("the ballast cannot be given up", "file", d.ballastPath(), "error", err)
		return
	}
	d.ballast = false
	d.metrics.ballast.Set(0)
	d.logger.Warn("the disk is full: the ballast was given up to keep the store going", "directory", d.dir, "free_bytes", d.free, "ballast_bytes", d.ballastBytes)
	d.lookLocked()
}

func (d *disk) loadLocked() {
	file, err := os.OpenFile(d.ballastPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(allocateSpace(file, d.ballastBytes), file.Close())
	}
	if err != nil {
		// Without one the watermark has to do. Half a ballast would be forgotten.
		_ = os.Remove(d.ballastPath())
		if !outOfSpace(err) {
			d.ballastBytes = 0
		}
		return
	}
	d.ballast = true
	d.metrics.ballast.Set(float64(d.ballastBytes))
	d.lookLocked()
}

// admit says whether batches may be appended.
func (d *disk) admit(bytes int64) error {
	if d.fewHandles.Load() {
		d.metrics.refused.Inc()
		return d.handlesError()
	}
	if d.blind {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.looked) > freshFor {
		d.lookLocked()
	}
	if !d.refusing && d.free-d.queued.Load()-bytes >= d.min {
		return nil
	}
	d.metrics.refused.Inc()
	d.wanted = max(d.wanted, bytes)
	d.tellLocked()
	return d.fullLocked(bytes)
}

func (d *disk) fullLocked(bytes int64) error {
	const remedy = "delete topics or records, shorten their retention, or make room on the disk"
	missing := d.min + d.queued.Load() + bytes - d.free
	switch {
	case d.files < d.resumeFiles:
		return fmt.Errorf("%w: only %d more files can be made on the disk of %s, and %d are kept; %s", ErrDiskFull, d.files, d.dir, d.resumeFiles, remedy)
	case d.refusing:
		return fmt.Errorf("%w: %s are free on the disk of %s; records are taken again from %s on; %s",
			ErrDiskFull, mebibytes(d.free), d.dir, mebibytes(d.resume), remedy)
	}
	return fmt.Errorf("%w: %s are free on the disk of %s, of which %s are kept free, and %s are missing for %s of records, while fewer may fit; %s",
		ErrDiskFull, mebibytes(d.free), d.dir, mebibytes(d.min), mebibytes(missing+1<<20/10), mebibytes(bytes), remedy)
}

// volumeBytes is how large volumes become, at most as configured: of each set the
// active one gives nothing back, so that on a small disk it is a part of the disk.
func (d *disk) volumeBytes(configured int64) int64 {
	if d.total == 0 {
		return configured
	}
	return min(configured, max(d.total/16, leastVolume))
}

// low says whether batches are refused.
func (d *disk) low() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refusing
}

// has says whether so many bytes are free, and nobody is about to take them: near
// the end of the disk that is so only once the free space has stopped falling. If
// need be the ballast is given up. As many files as a volume needs can be opened.
func (d *disk) has(bytes int64) error {
	if d.openable(volumeFiles) < volumeFiles {
		return d.handlesError()
	}
	if d.blind {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hasLocked(bytes)
}

// claim is has for somebody who writes soon, and whom nothing reserves space
// for: for a while nobody else is promised the same.
func (d *disk) claim(bytes int64) error {
	if d.openable(volumeFiles) < volumeFiles {
		return d.handlesError()
	}
	if d.blind {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.hasLocked(bytes); err != nil {
		return err
	}
	// Where much is free nobody counts.
	if d.free < 4*d.min {
		d.claims = append(d.claims, claim{bytes, time.Now().Add(claimFor)})
	}
	return nil
}

func (d *disk) hasLocked(bytes int64) error {
	d.lookLocked()
	if d.files < volumeFiles {
		return fmt.Errorf("%w: only %d more files can be made on the disk of %s and %d are needed; remove files, or make room for more (df -i)",
			ErrDiskFull, d.files, d.dir, volumeFiles)
	}
	d.claims = slices.DeleteFunc(d.claims, func(c claim) bool { return d.looked.After(c.until) })
	for _, c := range d.claims {
		bytes += c.bytes
	}
	// A watermark above the default is an operator's wish about records, not what
	// the store itself needs.
	if d.free >= min(d.min, maxMinFree)+bytes {
		return nil
	}
	steady := d.free < exhausted || time.Since(d.fell) >= steadyFor
	if steady && d.free < bytes {
		d.releaseLocked()
	}
	if steady && d.free >= bytes {
		return nil
	}
	return fmt.Errorf("%w: %s are free on the disk of %s and %s are needed; make room on the disk", ErrDiskFull, mebibytes(d.free), d.dir, mebibytes(bytes))
}

// await waits until so many bytes are free, or until called off.
func (d *disk) await(bytes int64, calledOff func() bool) error {
	return d.awaitWith(d.has, bytes, calledOff)
}

func (d *disk) awaitWith(has func(int64) error, bytes int64, calledOff func() bool) error {
	err := has(bytes)
	if err == nil {
		return nil
	}
	d.logger.Error("the store waits for space on the disk, or files to open", "error", err)
	ticker := time.NewTicker(awaitEvery)
	defer ticker.Stop()
	for err != nil && !calledOff() {
		<-ticker.C
		err = has(bytes)
	}
	return err
}

// ample says whether more is free than what is kept for emergencies.
func (d *disk) ample() bool {
	if d.fewHandles.Load() {
		return false
	}
	if d.blind {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lookLocked()
	return d.free >= d.min && d.files >= d.minFiles
}

// tight says whether the disk may be full before long: less is free than what all
// sets together reserve ahead, and as much again for somebody else.
func (d *disk) tight() bool {
	if d.blind {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.looked) > freshFor {
		d.lookLocked()
	}
	return d.free < max(4*d.min, d.min+2*int64(len(allSets))*reserveStep)
}

// spare returns how many bytes are free that nobody misses yet; 0 where nobody knows.
func (d *disk) spare() int64 {
	if d.blind {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.looked) > freshFor {
		d.lookLocked()
	}
	return max(d.free-4*d.min, 0)
}

// ahead returns how far ahead to reserve space: less than asked for where that
// would bring the disk near the watermark.
func (d *disk) ahead(step int64) int64 {
	if d.blind {
		return step
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return max(min(step, (d.free-d.min)/8), 0)
}

// spent makes the next to append look.
func (d *disk) spent() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looked = time.Time{}
}

// openSpace is what must be free to open a volume for writing: nil for a new one.
// Badger begins two log files, and turns those that it finds into tables.
func (s *Store) openSpace(v *volume) int64 {
	need := memSpace(s.cfg.memTableBytes) + 1<<20
	if v != nil {
		need += s.tablesSpace(v)
	}
	return need
}

// tablesSpace is what the tables take at most that Badger makes of the log files of a
// volume when it opens it.
func (s *Store) tablesSpace(v *volume) (need int64) {
	logs, _ := filepath.Glob(filepath.Join(v.path, "*"+memExtension)) // The pattern is well-formed.
	for _, name := range logs {
		if info, err := os.Stat(name); err == nil {
			need += min(info.Size(), s.cfg.memTableBytes)
		}
	}
	return need
}

// repairSpace is what must be free to open the store.
func (s *Store) repairSpace() (need int64) {
	if s.clean {
		return 0
	}
	for _, set := range allSets {
		for i, v := range s.volumes.ofSet(set) {
			switch {
			case v.sealed:
			case i == 0:
				need += s.openSpace(v)
			default:
				// Nothing is written to it any more: the log files that Badger begins stay empty.
				need += s.tablesSpace(v) + 1<<20
			}
		}
	}
	return need
}

func outOfSpace(err error) bool {
	return comesFrom(err, syscall.ENOSPC) || comesFrom(err, syscall.EDQUOT)
}

// noRoom says that an error is only about space on the disk, or files to open.
func noRoom(err error) bool {
	return errors.Is(err, ErrDiskFull) || errors.Is(err, ErrFewFiles) || outOfSpace(err)
}
