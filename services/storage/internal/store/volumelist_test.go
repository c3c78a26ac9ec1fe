package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A volume whose folder is gone is missed, though no state record that is left
// names it, until its losses are settled.
func TestVanishedVolumeIsMissed(t *testing.T) {
	for name, c := range map[string]struct {
		clean bool
		// without is removed, too.
		without string
		want    Set
	}{
		"after a clean stop":          {clean: true, want: SetSynced},
		"after a crash":               {want: SetSynced},
		"known by the marker only":    {clean: true, without: listFile, want: setUnknown},
		"known by the list only":      {clean: true, without: cleanFile, want: SetSynced},
		"without the folder of all":   {clean: true, without: volumesFolder, want: SetSynced},
		"without all after a crash":   {without: volumesFolder, want: SetSynced},
		"without a marker after that": {without: cleanFile, want: SetSynced},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			fill(t, s.Log(partition(1)), SetSynced, 0, 4, 2000)
			fill(t, s.Log(partition(2)), SetReplicated, 0, 4, 2000)
			if c.clean {
				closeStore(t, s)
			} else {
				closeUnclean(t, s)
			}
			for _, gone := range []string{filepath.Join(volumesFolder, "synced-000001"), c.without} {
				if gone == "" {
					continue
				}
				if err := os.RemoveAll(filepath.Join(cfg.Dir, gone)); err != nil {
					t.Fatal(err)
				}
			}
			found, err := Inspect(t.Context(), cfg.Dir, InspectOptions{BootID: cfg.BootID})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(found.Damage, func(d Damage) bool { return d.Volume == 1 }) {
				t.Errorf("an inspection finds %+v", found.Damage)
			}
			for range 2 {
				s = open(t, cfg)
				if folders := volumeFolders(t, cfg); !slices.Contains(folders, volumeName(c.want, 1)+condemnedSuffix) {
					t.Errorf("the volumes are %v", folders)
				}
				if !s.Unsettled() {
					t.Error("nobody is asked for the partitions in the volume")
				}
				closeStore(t, s)
			}
			s = open(t, cfg)
			s.Log(partition(1)).Fail("it was lost")
			var failed *ErrFailed
			blamed, reason := uint64(1), "it was lost; volume 1: it is missing"
			if c.without == volumesFolder {
				// Of several nobody knows which it was.
				blamed, reason = 0, reason+"; volume 2: it is missing"
			}
			if err := s.Log(partition(1)).Failed(); !errors.As(err, &failed) || failed.Volume != blamed || failed.Reason != reason {
				t.Errorf("the partition has failed with %+v", failed)
			}
			s.SettleLosses()
			eventually(t, "the losses to be settled", func() bool { return !s.Unsettled() })
			closeStore(t, s)
			if err := os.RemoveAll(filepath.Join(cfg.Dir, volumesFolder, volumeName(c.want, 1)+condemnedSuffix)); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			if s.Unsettled() {
				t.Error("a volume is missed whose losses were settled")
			}
			if f := s.Log(partition(1)).Failed(); f == nil {
				t.Error("the partition in the volume has not failed")
			}
		})
	}
}

// Numbers are not used again, else spans would find what is not theirs.
func TestNumbersOfVanishedVolumesStayUsed(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(1))
	fill(t, l, SetSynced, 0, 4, 2000)
	moveAll(t, s, l)
	closeStore(t, s)
	for _, gone := range []string{filepath.Join(volumesFolder, "synced-000002"), listFile, cleanFile} {
		if err := os.RemoveAll(filepath.Join(cfg.Dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, cfg)
	fill(t, s.Log(partition(2)), SetReplicated, 0, 4, 2000)
	if got := s.volumes.numbers(); !slices.Equal(got, []uint64{1, 3}) {
		t.Errorf("the volumes are %d, want 1 and 3", got)
	}
}

// What is not a volume is left alone and keeps nobody from starting.
func TestStrangersAmongVolumes(t *testing.T) {
	dir, end := victim(t, "clean")
	folder := filepath.Join(dir, volumesFolder)
	strangers := []string{"lost+found", ".DS_Store", "backup", "backup-000001", "synced-000001.bak", "old.deleted"}
	for _, name := range strangers {
		if name == ".DS_Store" {
			write(t, filepath.Join(folder, name), "x")
			continue
		}
		if err := os.Mkdir(filepath.Join(folder, name), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(folder, "backup", "file"), "x")
	// A copy of a volume that is there.
	raw, err := os.ReadFile(filepath.Join(folder, "synced-000001", volumeFile))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, "synced-000001.bak", volumeFile), string(raw))
	s := open(t, damageConfig(dir))
	if _, err := s.Log(damagedPartitions[0]).Read(t.Context(), 0, end, 1); err != nil {
		t.Error(err)
	}
	closeStore(t, s)
	if in := inspectAll(t, dir); len(in.Damage) != 0 {
		t.Errorf("an inspection finds %v", in.Damage)
	}
	for _, name := range strangers {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			t.Errorf("a stranger is gone: %v", err)
		}
	}
}

// A volume that was renamed is not taken for lost, which would last.
func TestRenamedVolume(t *testing.T) {
	dir, end := victim(t, "clean")
	name := filepath.Join(dir, volumesFolder, "synced-000001")
	if err := os.Rename(name, name+".bak"); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(damageConfig(dir)); err == nil || !strings.Contains(err.Error(), "synced-000001 is missing, and "+name+".bak is it under another name; give the folder its name back") {
		t.Errorf("opened with %v", err)
		if err == nil {
			closeStore(t, s)
		}
	}
	if err := os.Rename(name+".bak", name); err != nil {
		t.Fatal(err)
	}
	s := open(t, damageConfig(dir))
	if _, err := s.Log(damagedPartitions[0]).Read(t.Context(), 0, end, 1); err != nil {
		t.Error(err)
	}
}
