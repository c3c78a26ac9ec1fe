package store

import (
	"math"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// A partition can be deleted whatever is wrong with it, and gives its space back.
func TestDamagedPartitionIsDeleted(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, cfg Config){
		"state": func(t *testing.T, cfg Config) {
			inVolume(t, cfg, func(db *badger.DB) {
				txn := db.NewTransactionAt(math.MaxUint64, true)
				if err := txn.Set(appendPartitionKey(nil, kindState, partition(1)), []byte{1, 2}); err != nil {
					t.Fatal(err)
				}
				if err := txn.CommitAt(db.MaxVersion()+1, nil); err != nil {
					t.Fatal(err)
				}
			})
		},
		"volume": func(t *testing.T, cfg Config) {
			if err := os.RemoveAll(filepath.Join(cfg.Dir, volumesFolder, "replicated-000001")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			clock := newTestClock()
			cfg := testConfig(t)
			cfg.Quarantine, cfg.Now = time.Hour, clock.Now
			var failed atomic.Int64
			cfg.OnFailed = func(partitions int) { failed.Store(int64(partitions)) }
			s := open(t, cfg)
			if name == "volume" {
				fill(t, s.Log(partition(1)), SetReplicated, 0, 4, 2000)
			}
			fill(t, s.Log(partition(1)), SetSynced, s.Log(partition(1)).next, 4, 2000)
			closeStore(t, s)
			damage(t, cfg)
			s = open(t, cfg)
			l := s.Log(partition(1))
			if l.Failed() == nil {
				t.Fatal("nothing is wrong with the partition")
			}
			if n := failed.Load(); n != 1 {
				t.Errorf("%d partitions are said to have failed, want 1", n)
			}
			state, _ := l.Loaded()
			state.Deleted = true
			mustAppend(t, l, Append{Set: SetSynced, State: state})
			if n := failed.Load(); n != 0 {
				t.Errorf("%d partitions are said to have failed after the deletion, want none", n)
			}
			for range 2 {
				closeUnclean(t, s)
				s = open(t, cfg)
				l = s.Log(partition(1))
				if state, _ := l.Loaded(); !state.Deleted || l.Failed() != nil {
					t.Fatalf("after a restart: deleted %t, %v", state.Deleted, l.Failed())
				}
			}
			clock.move(2 * time.Hour)
			sealAll(t, s)
			s.cleaner.poke()
			eventually(t, "the partition is forgotten", func() bool { return !s.knows(partition(1)) })
		})
	}
}
