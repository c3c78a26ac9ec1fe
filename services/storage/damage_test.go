package storage

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// TestDamagedReplicaIsCopiedAnew flips a byte in a sealed volume of a running node: the
// scrub finds it, the replica leaves ISR and leadership, drops what it has, copies all
// from its leader, and can lead again, without a restart.
func TestDamagedReplicaIsCopiedAnew(t *testing.T) {
	t.Parallel()
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprintf("leads=%t", leads), func(t *testing.T) {
			t.Parallel()
			r := newReplicaSet(t, 1, 2, 3)
			for id := range r.dirs {
				r.start(id, func(c *Config) {
					c.VolumeBytes, c.TailBytes, c.ScrubEvery = 64<<10, 0, 100*time.Millisecond
				})
			}
			before := r.inSync(3)
			damaged := int32(before.Leader)
			if !leads {
				damaged = damaged%3 + 1
			}
			var want []string
			for len(sealedVolumes(t, r.dirs[damaged])) < 2 {
				value := fmt.Sprintf("%d %s", len(want), strings.Repeat("x", 3000))
				want = append(want, value)
				r.produce(value)
			}
			flipValue(t, sealedVolumes(t, r.dirs[damaged])[0], want[1])
			r.controller.await(t, func(p cluster.Partition) bool {
				return p.LeaderEpoch > before.LeaderEpoch && len(p.ISR) == 3
			})
			lost := r.controller.elected(before.LeaderEpoch + 1)
			if slices.Contains(lost.ISR, cluster.NodeID(damaged)) || slices.Contains(lost.ELR, cluster.NodeID(damaged)) || int32(lost.Leader) == damaged {
				t.Errorf("node %d is damaged, and the partition %+v", damaged, lost)
			}
			last := fmt.Sprintf("%d", len(want))
			want = append(want, last)
			r.produce(last)
			for id := range r.dirs {
				r.controller.setLive(id, id == damaged)
			}
			for id := range r.dirs {
				r.controller.setLive(id, true)
			}
			if p := r.inSync(3); int32(p.Leader) != damaged {
				t.Fatalf("node %d does not lead: %+v", damaged, p)
			}
			if !slices.Equal(r.readAt(damaged), want) {
				t.Errorf("node %d does not have all %d records", damaged, len(want))
			}
		})
	}
}

// sealedVolumes returns the folders of the volumes that a node has sealed.
func sealedVolumes(t *testing.T, dir string) (sealed []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "storage", "volumes", "synced-??????"))
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range found {
		if _, err := os.Stat(filepath.Join(folder, "checksums.json")); err == nil {
			sealed = append(sealed, folder)
		}
	}
	return sealed
}

// flipValue flips a byte of a value that lies in a volume.
func flipValue(t *testing.T, folder, value string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(raw, []byte(value)); at >= 0 {
			if _, err := file.WriteAt([]byte{raw[at+100] ^ 1}, int64(at+100)); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%q holds no such value", folder)
}
