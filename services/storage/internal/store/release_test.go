package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// TestRelease gives the files of a volume back a little at a time, unless there is
// reason to hurry.
func TestRelease(t *testing.T) {
	const size = 4 * releaseStep
	for name, test := range map[string]struct {
		waiting   int
		low, stop bool
		least     time.Duration
	}{
		"gently":      {waiting: 1, least: 3 * releaseStep * time.Second / releaseRate},
		"many wait":   {waiting: 3, least: releaseStep * time.Second / releaseRate},
		"no space":    {waiting: 1, low: true},
		"store stops": {waiting: 1, stop: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "synced-000001"+removedSuffix)
			path := filepath.Join(dir, "000001.vlog")
			if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				c := &cleaner{store: &Store{disk: &disk{refusing: test.low}}, releasing: newPacer(releaseRate)}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.stop {
					cancel()
				}
				began := time.Now()
				released := make(chan error, 1)
				go func() { released <- c.release(ctx, dir, test.waiting) }()
				synctest.Wait()
				info, err := os.Stat(path)
				if hurried := test.least == 0; hurried != errors.Is(err, os.ErrNotExist) || !hurried && info.Size() != size-releaseStep {
					t.Errorf("at once the file is %v, %v", info, err)
				}
				if err := <-released; err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < test.least-time.Microsecond || test.least == 0 && took > 0 {
					t.Errorf("it took %v, want %v", took, test.least)
				}
			})
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory is left: %v", err)
			}
		})
	}
}

// TestRemovalThatFailsAtStart leaves what cannot be removed, and its number alone.
func TestRemovalThatFailsAtStart(t *testing.T) {
	cfg := testConfig(t)
	closeStore(t, open(t, cfg))
	left := filepath.Join(cfg.Dir, volumesFolder, "synced-000009"+removedSuffix)
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	cfg.Logger = log.logger()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := newVolumes(filepath.Join(cfg.Dir, volumesFolder), &cfg, nil, m)
	r.removeAll = func(path string) error { return &os.PathError{Op: "unlinkat", Path: path, Err: os.ErrPermission} }
	if err := r.scan(); err != nil {
		t.Fatal(err)
	}
	if r.next != 10 || len(r.byNumber) != 0 {
		t.Errorf("the next volume is %d, and there are %d", r.next, len(r.byNumber))
	}
	if said := log.String(); said == "" {
		t.Error("the log says nothing")
	}
}
