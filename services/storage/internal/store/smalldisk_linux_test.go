package store

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/runnel-mesh/runnel/services/storage/internal/loopdisk"
)

// TestSmallDiskGivesBack fills a small disk as the defaults are, and deletes all
// records.
func TestSmallDiskGivesBack(t *testing.T) {
	d := loopdisk.New(t, 600<<20)
	cfg := DefaultConfig()
	cfg.Dir = filepath.Join(d.Dir, "store")
	cfg.BootID = "boot"
	s := open(t, cfg)
	before := d.Free(t)
	ends := make([]int64, 2)
	full := func() bool {
		for p := range ends {
			if err := s.Log(partition(p)).Admit(1 << 20); err != nil {
				wantError(t, err, ErrDiskFull)
				return true
			}
			one(t, s.Log(partition(p)), allSets[p], ends[p], 1, 1<<20)
			ends[p]++
		}
		return false
	}
	for !full() {
	}
	t.Logf("%v records fit, %d MiB are left of %d", ends, d.Free(t)>>20, before>>20)
	for p, end := range ends {
		moveStart(t, s.Log(partition(p)), allSets[p], end, end)
	}
	// Two volumes and their logs stay, and the ballast.
	eventually(t, "the space comes back", func() bool { return d.Free(t) > before-160<<20 })
	var failure error
	eventually(t, "records are taken again", func() bool { failure = s.Log(partition(0)).Admit(1); return failure == nil })
	if errors.Is(failure, ErrDiskFull) {
		t.Error(failure)
	}
	closeStore(t, s)
}
