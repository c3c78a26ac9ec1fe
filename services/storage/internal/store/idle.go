package store

import (
	"path/filepath"
	"time"
)

// releaseEvery is how often the store looks for volumes that nobody uses. The tables of
// one that was not used between two looks leave the memory.
const releaseEvery = 30 * time.Second

// volumeUse is how much a volume was used; that nobody has used it meanwhile if it has not
// changed.
type volumeUse struct {
	// readers counts those that there were.
	readers uint64
	// written are the bytes of space.written.
	written int64
}

// releaseIdle has the kernel take the tables of volumes that nobody uses out of memory,
// until done is closed. Badger has them mapped, and what was once written or merged
// stays otherwise, as long as the machine has memory to spare: with many partitions
// that is as much as all that the store knows of them. Whoever needs a table again
// reads it from the disk. Value logs stay: they are what readers are about to ask for.
func (r *volumes) releaseIdle(done <-chan struct{}) {
	ticker := time.NewTicker(releaseEvery)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
		}
		r.releaseUnused()
	}
}

// releaseUnused releases the tables of the volumes that were not used since the call
// before.
func (r *volumes) releaseUnused() {
	var tables []string
	for _, dir := range r.unused() {
		// The pattern is a constant and valid.
		files, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
		tables = append(tables, files...)
	}
	releaseMapped(tables)
}

// unused returns the folders of the open volumes that were not used since the call before.
func (r *volumes) unused() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var dirs []string
	for _, v := range r.byNumber {
		use := volumeUse{readers: v.acquired, written: v.space.written.Load()}
		if v.mode != readOnly && v.mode != writable || v.readers > 0 || use != v.lastUse {
			v.lastUse = use
		} else {
			dirs = append(dirs, v.path)
		}
	}
	return dirs
}
