package store

import (
	"os"
	"testing"
)

func TestWritebackLeavesNothingOut(t *testing.T) {
	one, other := new(os.File), new(os.File)
	tests := []struct {
		name             string
		held, next, want writeback
	}{
		{"nothing is waiting", writeback{}, writeback{file: one, offset: 20, bytes: 8}, writeback{file: one, offset: 20, bytes: 8}},
		{"what follows is added", writeback{file: one, offset: 20, bytes: 8}, writeback{file: one, offset: 28, bytes: 4}, writeback{file: one, offset: 20, bytes: 12}},
		{"another file takes its place", writeback{file: one, offset: 20, bytes: 8}, writeback{file: other, offset: 28, bytes: 4}, writeback{file: other, offset: 28, bytes: 4}},
		{"a gap", writeback{file: one, offset: 20, bytes: 8}, writeback{file: one, offset: 40, bytes: 4}, writeback{file: one, offset: 40, bytes: 4}},
		{"what is to be fetched stays", writeback{file: one, warmFrom: 8, warmTo: 16}, writeback{file: one, offset: 28, bytes: 4}, writeback{file: one, offset: 28, bytes: 4, warmFrom: 8, warmTo: 16}},
		{"more is to be fetched", writeback{file: one, offset: 20, bytes: 8, warmFrom: 8, warmTo: 16}, writeback{file: one, warmFrom: 16, warmTo: 24}, writeback{file: one, offset: 20, bytes: 8, warmFrom: 8, warmTo: 24}},
		{"the writer was faster", writeback{file: one, warmFrom: 8, warmTo: 16}, writeback{file: one, warmFrom: 40, warmTo: 48}, writeback{file: one, warmFrom: 40, warmTo: 48}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.held.with(test.next); got != test.want {
				t.Fatalf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// TestPagesAreFetchedAhead: of a set without syncs the page cache gets pages before the
// writer comes to them, each once; of one with syncs it gets none.
func TestPagesAreFetchedAhead(t *testing.T) {
	for name, synced := range map[string]bool{"without syncs": false, "with syncs": true} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			log, err := os.CreateTemp(dir.Name(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			f := &logFiles{dir: dir, synced: synced, log: log, used: valueLogHeader, mem: newMemFiles(dir.Name(), memTableBytes)}
			fetched := f.used
			for range 100 {
				w, err := f.committed(1<<20, 0)
				if err != nil {
					t.Fatal(err)
				}
				if w.warmTo == 0 {
					continue
				}
				if w.warmFrom < fetched {
					t.Fatalf("%d to %d is fetched, and was up to %d", w.warmFrom, w.warmTo, fetched)
				}
				fetched = w.warmTo
			}
			switch ahead := fetched - f.used; {
			case synced && fetched != valueLogHeader:
				t.Errorf("fetched up to %d", fetched)
			case !synced && ahead < warmAhead-warmStep:
				t.Errorf("%d bytes ahead of the writer", ahead)
			}
		})
	}
}
