package store

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// A batch and the state that counts on it are written together: where the last
// batch of a log is missing after a crash, the disk has lost it, and nothing may be
// appended behind the hole.
func TestLogWithoutItsLastBatchFails(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	batches := fill(t, s.Log(partition(1)), SetSynced, 0, 4, 2000)
	fill(t, s.Log(partition(2)), SetSynced, 0, 4, 2000)
	closeUnclean(t, s)
	inVolume(t, cfg, func(db *badger.DB) {
		txn := db.NewTransactionAt(math.MaxUint64, true)
		if err := txn.Delete(appendOffsetKey(nil, kindBatch, partition(1), 15)); err != nil {
			t.Fatal(err)
		}
		if err := txn.CommitAt(db.MaxVersion()+1, nil); err != nil {
			t.Fatal(err)
		}
	})
	// The second start finds it recorded.
	for range 2 {
		s = open(t, cfg)
		l := s.Log(partition(1))
		if err := s.Log(partition(2)).Failed(); err != nil {
			t.Errorf("the other partition has failed: %v", err)
		}
		if _, ok := errors.AsType[*ErrFailed](l.Failed()); !ok {
			t.Fatalf("the log has failed: %v", l.Failed())
		}
		if err := sameBatches(readAll(t, l, 0, 12, 1<<20), batches[:3]); err != nil {
			t.Error(err)
		}
		outcome := make(chan error, 1)
		next := makeBatch(16, 4, 2000, 0, 1000, 1)
		l.Append(Append{Set: SetSynced, Batches: []Batch{next}, State: State{LogEnd: 20, Epochs: epochZero}}, func(err error) { outcome <- err })
		if _, ok := errors.AsType[*ErrFailed](<-outcome); !ok {
			t.Error("a batch was appended behind a hole")
		}
		closeStore(t, s)
	}
}

// Badger cuts off only its last value log file when it closes: the one before may
// end with space that was reserved and never written. It is no damage.
func TestZerosBehindTheLastEntryAreNoDamage(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	batches := fill(t, s.Log(partition(1)), SetSynced, 0, 4, 2000)
	closeStore(t, s)
	dir := filepath.Join(cfg.Dir, volumesFolder, volumeName(SetSynced, 1))
	path := filepath.Join(dir, "000001.vlog")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Truncate(path, info.Size()+64<<10), removeChecksums(dir)); err != nil {
		t.Fatal(err)
	}
	list, err := sumFiles(dir, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeChecksums(dir, list); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	l := s.Log(partition(1))
	if err := l.Failed(); err != nil {
		t.Fatal(err)
	}
	if err := sameBatches(readAll(t, l, 0, 16, 1<<20), batches); err != nil {
		t.Error(err)
	}
}
