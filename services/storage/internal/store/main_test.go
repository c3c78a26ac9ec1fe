package store

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// children are what the test binary does where an environment variable is set,
// with its value.
var children = map[string]func(string){childDirectory: child}

func TestMain(m *testing.M) {
	for variable, run := range children {
		if value := os.Getenv(variable); value != "" {
			run(value)
			return
		}
	}
	if runAsChild() {
		return
	}
	// Badger leaves these behind when it refuses to open a directory.
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/dgraph-io/ristretto/v2/z.(*AllocatorPool).freeupAllocators"),
		goleak.IgnoreTopFunction("github.com/dgraph-io/badger/v4.(*DB).monitorCache"))
}

// fewChecks makes rapid check less often than it would unless told so: here a
// check has dozens of operations, and takes as long.
func fewChecks(t *testing.T) {
	checks := "15"
	if testing.Short() {
		checks = "25" // Of which rapid does a fifth.
	}
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "rapid.checks" {
			checks = f.Value.String()
		}
	})
	if err := flag.Set("rapid.checks", checks); err != nil {
		t.Fatal(err)
	}
}

// testConfig is small enough for volumes to be rolled all the time.
func testConfig(t testing.TB) Config {
	cfg := DefaultConfig()
	cfg.Dir = t.TempDir()
	cfg.BootID = "boot"
	cfg.OnFatal = func(err error) { t.Errorf("fatal: %v", err) }
	cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg.valueLogBytes = 4 << 20
	cfg.memTableBytes = 2 << 20
	return cfg
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(0) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(7); err != nil {
		t.Fatal(err)
	}
}

// closeUnclean closes a store so that the next one takes it for killed: without
// the marker, all volumes that are not sealed are opened for writing, checked and
// repaired.
func closeUnclean(t testing.TB, s *Store) {
	t.Helper()
	closeStore(t, s)
	if err := os.Remove(s.directory.Path(cleanFile)); err != nil {
		t.Fatal(err)
	}
	for _, v := range s.volumes.byNumber {
		if v.sealed {
			continue
		}
		if err := removeChecksums(v.path); err != nil {
			t.Fatal(err)
		}
	}
}

func partition(n int) PartitionID {
	return PartitionID{Topic: cluster.TopicID{0xaa, byte(n >> 8), byte(n)}, Index: int32(n % 3)}
}

// makeBatch returns a batch of records at an offset, whose payload has about
// that size and depends on the seed.
func makeBatch(offset int64, records, size int, epoch cluster.LeaderEpoch, timestamp int64, seed uint64) Batch {
	var b recordbatch.Builder
	source := rand.NewPCG(seed, uint64(offset))
	for i := range records {
		value := make([]byte, max(size/records, 8))
		for j := 0; j+8 <= len(value); j += 8 {
			binary.LittleEndian.PutUint64(value[j:], source.Uint64())
		}
		if err := b.Append(nil, value, nil, timestamp-int64(records-1-i)); err != nil {
			panic(err)
		}
	}
	raw, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		panic(err)
	}
	recordbatch.Assign(raw, offset, int32(epoch))
	return Batch{Bytes: raw, BaseOffset: offset, LastOffset: offset + int64(records) - 1, MaxTimestamp: timestamp}
}

// appendSync appends and waits.
func appendSync(t testing.TB, l *Log, a Append) error {
	t.Helper()
	outcome := make(chan error, 1)
	l.Append(a, func(err error) { outcome <- err })
	select {
	case err := <-outcome:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("append was not answered")
		return nil
	}
}

func mustAppend(t testing.TB, l *Log, a Append) {
	t.Helper()
	if err := appendSync(t, l, a); err != nil {
		t.Fatal(err)
	}
}

// one appends a batch of records at the end of a log that has just one epoch.
func one(t testing.TB, l *Log, set Set, offset int64, records, size int) Batch {
	t.Helper()
	b := makeBatch(offset, records, size, 0, 1000+offset, 1)
	mustAppend(t, l, Append{Set: set, Batches: []Batch{b}, State: State{LogEnd: b.LastOffset + 1, HighWatermark: b.LastOffset + 1, Epochs: epochZero}})
	return b
}

var epochZero = []EpochStart{{Epoch: 0, StartOffset: 0}}

// readAll reads from an offset to the end.
func readAll(t testing.TB, l *Log, offset, end int64, maxBytes int) []Batch {
	t.Helper()
	var out []Batch
	for offset < end {
		batches, err := l.Read(context.Background(), offset, end, maxBytes)
		if err != nil {
			t.Fatalf("read at %d: %v", offset, err)
		}
		if len(batches) == 0 {
			t.Fatalf("nothing at %d, the log ends at %d", offset, end)
		}
		out = append(out, batches...)
		offset = batches[len(batches)-1].LastOffset + 1
	}
	return out
}

func sameBatches(got, want []Batch) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d batches instead of %d", len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if g.BaseOffset != w.BaseOffset || g.LastOffset != w.LastOffset || g.MaxTimestamp != w.MaxTimestamp || string(g.Bytes) != string(w.Bytes) {
			return fmt.Errorf("batch %d is %d to %d with %d bytes and time %d, want %d to %d with %d bytes and time %d", i,
				g.BaseOffset, g.LastOffset, len(g.Bytes), g.MaxTimestamp, w.BaseOffset, w.LastOffset, len(w.Bytes), w.MaxTimestamp)
		}
	}
	return nil
}

func wantError(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("error is %v, want %v", got, want)
	}
}

// inspectSound says what [Inspect] finds wrong with a store that nobody has open;
// where there is none yet, nothing is.
func inspectSound(cfg Config) error {
	if _, err := os.Stat(filepath.Join(cfg.Dir, datadir.IdentityFile)); err != nil {
		return nil
	}
	in, err := Inspect(context.Background(), cfg.Dir, InspectOptions{Verify: true, BootID: cfg.BootID})
	if err != nil || len(in.Damage) == 0 {
		return err
	}
	return fmt.Errorf("what lies on the disk is damaged: %v", in.Damage)
}
