package store

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Badger cuts the last value log off at the first entry that is not whole, when it
// opens a volume for writing: damage there is found before.
func TestLastValueLogDamagedAfterCleanStop(t *testing.T) {
	for name, damage := range map[string]func(raw []byte){
		"flipped bit": func(raw []byte) { raw[10<<10] ^= 4 },
		"zeroed end":  func(raw []byte) { clear(raw[10<<10:]) },
	} {
		for _, set := range []Set{SetSynced, SetReplicated} {
			t.Run(name+" "+string(set), func(t *testing.T) {
				cfg := testConfig(t)
				s := open(t, cfg)
				fill(t, s.Log(partition(1)), set, 0, 8, 4<<10)
				fill(t, s.Log(partition(2)), set, 0, 8, 4<<10)
				closeStore(t, s)
				volume := volumeName(set, 1)
				path := filepath.Join(cfg.Dir, volumesFolder, volume, "000001.vlog")
				raw, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				damage(raw)
				if err := os.WriteFile(path, raw, 0o600); err != nil {
					t.Fatal(err)
				}
				found, err := Inspect(t.Context(), cfg.Dir, InspectOptions{BootID: cfg.BootID})
				if err != nil {
					t.Fatal(err)
				}
				if len(found.Volumes) != 1 || found.Volumes[0].Unreadable == "" {
					t.Errorf("an inspection finds %+v", found.Volumes)
				}
				s = open(t, cfg)
				if folders := volumeFolders(t, cfg); !slices.Contains(folders, volume+condemnedSuffix) {
					t.Errorf("the volume was not set aside: %v", folders)
				}
				b := makeBatch(0, 1, 100, 0, 1000, 1)
				mustAppend(t, s.Log(partition(3)), Append{Set: set, Batches: []Batch{b}, State: State{LogEnd: 1, Epochs: epochZero}})
			})
		}
	}
}

// A crash between the checksums that sealing writes and the note that a volume is sealed
// leaves one that is written to again, and whose checksums say nothing of damage before.
func TestLastValueLogDamagedBeforeSealing(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	fill(t, s.Log(partition(1)), SetSynced, 0, 8, 4<<10)
	closeStore(t, s)
	dir := filepath.Join(cfg.Dir, volumesFolder, volumeName(SetSynced, 1))
	if err := flipByte(filepath.Join(dir, "000001.vlog"), 10<<10); err != nil {
		t.Fatal(err)
	}
	list, err := sumFiles(dir, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeChecksums(dir, list); err != nil {
		t.Fatal(err)
	}
	open(t, cfg)
	if folders := volumeFolders(t, cfg); !slices.Contains(folders, volumeName(SetSynced, 1)+condemnedSuffix) {
		t.Errorf("the volume was not set aside: %v", folders)
	}
}
