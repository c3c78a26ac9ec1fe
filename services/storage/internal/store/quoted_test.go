package store

import (
	"path/filepath"
	"testing"
	"unicode/utf8"
)

// What is wrong with a file may quote bytes of it that are not text. The volume is set
// aside with a note, and its partitions fail, all the same.
func TestReasonQuotesDamage(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	fill(t, s.Log(partition(1)), SetSynced, 0, 4, 2000)
	sealAll(t, s)
	fill(t, s.Log(partition(1)), SetSynced, s.Log(partition(1)).next, 4, 2000)
	closeStore(t, s)
	folder := filepath.Join(cfg.Dir, volumesFolder, "synced-000001")
	write(t, filepath.Join(folder, volumeFile), "{\"formatVersion\": \xdf}")

	s = open(t, cfg)
	l := s.Log(partition(1))
	if l.Failed() == nil {
		t.Fatal("the partition has not failed")
	}
	state, _ := l.Loaded()
	mustAppend(t, l, Append{Set: SetSynced, State: state})
	closeStore(t, s)
	note := readCondemned(folder+condemnedSuffix, 1, SetSynced)
	if note.at.IsZero() || !utf8.ValidString(note.reason) {
		t.Errorf("the note says %q, of %v", note.reason, note.at)
	}
}
