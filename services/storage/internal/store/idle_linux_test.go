package store

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTablesOfIdleVolumesLeaveTheMemory: tables stay in memory while their volume is used,
// leave it once it is not, and are read again by whoever needs them.
func TestTablesOfIdleVolumesLeaveTheMemory(t *testing.T) {
	needPageout(t)
	cfg := testConfig(t)
	s := open(t, cfg)
	var logs []*Log
	var want []Batch
	// Small batches lie in the tables themselves.
	for i := 0; residentTables(t, cfg.Dir) < 1<<20; i++ {
		if i > 20000 {
			t.Fatalf("%d partitions leave no tables in memory", i)
		}
		logs = append(logs, s.Log(PartitionID{Index: int32(i)}))
		want = append(want, one(t, logs[i], SetReplicated, 0, 1, 900))
	}
	s.volumes.releaseUnused()
	written := residentTables(t, cfg.Dir)
	if written < 1<<20 {
		t.Fatalf("of a volume that was just written %d bytes of tables are in memory", written)
	}
	awaitReleased(t, s, written/4)
	for i, l := range logs {
		if err := sameBatches(readAll(t, l, 0, 1, 1<<20), want[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	read := residentTables(t, cfg.Dir)
	s.volumes.releaseUnused()
	if got := residentTables(t, cfg.Dir); got < read {
		t.Errorf("of a volume that was just read %d of %d bytes of tables are in memory", got, read)
	}
	awaitReleased(t, s, written/4)
}

// awaitReleased looks for idle volumes until at most so many bytes of tables are in
// memory. The kernel leaves alone what it is at work on itself.
func awaitReleased(t *testing.T, s *Store, most int64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); residentTables(t, s.cfg.Dir) > most; s.volumes.releaseUnused() {
		if time.Now().After(deadline) {
			t.Fatalf("of an idle volume %d bytes of tables are in memory", residentTables(t, s.cfg.Dir))
		}
	}
}

// needPageout skips where the kernel does not take files out of memory.
func needPageout(t *testing.T) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "file.sst"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const size = 1 << 20
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mapping, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapping) }()
	if err := unix.Madvise(mapping, unix.MADV_PAGEOUT); err != nil {
		t.Skipf("the kernel takes no files out of memory: %v", err)
	}
}

// residentTables returns how many bytes of tables below a directory are mapped and in
// memory.
func residentTables(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	file, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Skip("what of mappings is in memory is not to be seen here")
	}
	defer file.Close()
	table := false
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if strings.Contains(fields[0], "-") {
			table = len(fields) == 6 && strings.HasPrefix(fields[5], dir) && strings.HasSuffix(fields[5], ".sst")
		}
		if table && fields[0] == "Rss:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			bytes += kib << 10
		}
	}
	return bytes
}
