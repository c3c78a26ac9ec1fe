package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/runnel-mesh/runnel/services/storage/internal/loopdisk"
)

// TestUnreadableSectors has the disk report errors for the second half of a file,
// and starts twice on what is left.
func TestUnreadableSectors(t *testing.T) {
	for _, c := range []struct{ stop, state, volume, file string }{
		{"clean", "sealed", "synced-000001", "000001.vlog"},
		{"clean", "unread", "synced-000001", "checksums.json"},
		{"clean", "unread", "synced-000001", "000001.sst"},
		{"clean", "idle", "synced-000003", "000001.vlog"},
		{"kill", "idle", "synced-000003", "000001.vlog"},
		{"kill", "unread", "synced-000003", "000001.sst"},
		{"kill", "unread", "synced-000003", floorFile},
		{"kill", "unread", "", bootFile},
		{"kill", "unread", "", listFile},
	} {
		t.Run(c.stop+" "+c.volume+" "+c.file, func(t *testing.T) {
			disk := loopdisk.New(t, 16<<20)
			dir, end := victim(t, c.stop)
			path := filepath.Join(dir, c.file)
			if c.volume != "" {
				path = filepath.Join(dir, volumesFolder, c.volume, c.file)
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// Nothing else of the store lies on that disk.
			bad := filepath.Join(disk.Dir, "file")
			write(t, bad, string(raw))
			if err := errors.Join(os.Remove(path), os.Symlink(bad, path)); err != nil {
				t.Fatal(err)
			}
			disk.LoseEnd(t, bad, int64(len(raw))/2)
			if c.state != "unread" {
				runCut(t, dir, cut{c.state, c.volume, notCut, 0, "read"})
			}
			for start := range 2 {
				if err := verifyVictim(dir, end, append(damagedPartitions[:2:2], soundPartition)...); err != nil {
					t.Fatalf("start %d: %v", start+1, err)
				}
			}
		})
	}
}
