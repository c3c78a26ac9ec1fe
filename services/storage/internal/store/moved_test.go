package store

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMoveOutlivesOlderRecords removes the volume that says that newer records of a
// partition are in another set, while an older one of the same set stays. If the newer
// records are lost then, the partition has failed: it must not go on from the older one.
func TestMoveOutlivesOlderRecords(t *testing.T) {
	cfg := spaceConfig(t)
	s := open(t, cfg)
	l, other := s.Log(partition(1)), s.Log(partition(2))
	// Volume 1 stays, for what the other one has in it.
	fill(t, l, SetSynced, 0, 1, 1000)
	fill(t, other, SetSynced, 0, 12, 1000)
	sealAll(t, s)
	fill(t, l, SetSynced, 4, 1, 1000)
	fill(t, other, SetSynced, 48, 1, 1000)
	// Volume 2 says that the log has moved to volume 3.
	fill(t, l, SetReplicated, 8, 4, 1000)
	sealAll(t, s)
	eventually(t, "the volumes are sealed", func() bool { return s.settled() && s.volumes.sealed(2) != nil && s.volumes.sealed(3) != nil })
	moveStart(t, l, SetReplicated, 8, 24)
	fill(t, other, SetSynced, 52, 1, 1000)
	if _, err := other.Truncate(t.Context(), 48, State{LogEnd: 48, HighWatermark: 48, Epochs: epochZero}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "volume 2 is gone", func() bool { return s.volumes.sealed(2) == nil })
	closeStore(t, s)
	for _, folder := range volumeFolders(t, cfg) {
		if folder[:len(SetReplicated)] == string(SetReplicated) {
			if err := os.RemoveAll(filepath.Join(cfg.Dir, volumesFolder, folder)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s = open(t, cfg)
	if err := s.Log(partition(1)).Failed(); err == nil {
		state, _ := s.Log(partition(1)).Loaded()
		t.Errorf("the log goes on from %+v", state)
	}
	if err := s.Log(partition(2)).Failed(); err != nil {
		t.Error(err)
	}
}
