package store

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// fakeDisk tells what a test wants of the disk. Its files lie on a real one.
type fakeDisk struct {
	mu sync.Mutex
	usage
}

func (f *fakeDisk) measure(string) (usage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.usage, nil
}

func (f *fakeDisk) set(free int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = free
}

func TestDiskWatermark(t *testing.T) {
	disk := &fakeDisk{usage: usage{free: 100 << 20, total: 400 << 20}}
	cfg := testConfig(t)
	cfg.measureDisk = disk.measure
	s := open(t, cfg)
	if got, want := s.disk.min, int64(50<<20); got != want {
		t.Fatalf("%d bytes are kept free of 400 MiB, want %d", got, want)
	}
	l := s.Log(partition(0))
	for _, step := range []struct {
		free    int64
		refused bool
	}{
		{100 << 20, false},
		{50 << 20, false},
		{50<<20 - 1, true},
		{51 << 20, true}, // not enough to begin again
		{62 << 20, true},
		{63 << 20, false},
		{50 << 20, false},
		{1 << 20, true},
	} {
		disk.set(step.free)
		s.disk.spent()
		err := l.Admit(0)
		if errors.Is(err, ErrDiskFull) != step.refused {
			t.Fatalf("with %d free: %v", step.free, err)
		}
		if step.refused && (!strings.Contains(err.Error(), s.directory.Path()) || !strings.Contains(err.Error(), "make room")) {
			t.Errorf("the error does not name the disk or the remedy: %v", err)
		}
	}
	var refused dto.Metric
	if err := s.metrics.refused.Write(&refused); err != nil || refused.GetCounter().GetValue() != 4 {
		t.Errorf("%v refusals were counted, want 4; %v", refused.GetCounter().GetValue(), err)
	}
	// What is on its way counts.
	disk.set(100 << 20)
	s.disk.spent()
	if err := l.Admit(51 << 20); !errors.Is(err, ErrDiskFull) {
		t.Errorf("more than there is was admitted: %v", err)
	}
	if err := l.Admit(10); err != nil {
		t.Errorf("a large batch that was refused keeps small ones out: %v", err)
	}
	s.disk.queued.Add(45 << 20)
	if err := l.Admit(6 << 20); !errors.Is(err, ErrDiskFull) {
		t.Errorf("what is queued was forgotten: %v", err)
	}
	s.disk.queued.Add(-45 << 20)
}

func TestDiskDefaults(t *testing.T) {
	for _, c := range []struct {
		total, configured, min, ballast int64
	}{
		{400 << 20, 0, 50 << 20, 25 << 20},
		{1 << 40, 0, 1 << 30, 64 << 20},
		{1 << 40, 50 << 20, 50 << 20, 64 << 20},
		{1 << 40, 5 << 20, 32 << 20, 64 << 20},
		{160 << 20, 1, 10 << 20, 10 << 20},
	} {
		cfg := testConfig(t)
		cfg.MinFreeBytes = c.configured
		cfg.measureDisk = func(string) (usage, error) { return usage{free: c.total, total: c.total}, nil }
		m, err := newMetrics(nil)
		if err != nil {
			t.Fatal(err)
		}
		d := watchDisk(cfg.Dir, &cfg, m, nil, nil)
		if d.min != c.min || d.ballastBytes != c.ballast {
			t.Errorf("of %d bytes %d are kept free, with a ballast of %d; want %d and %d", c.total, d.min, d.ballastBytes, c.min, c.ballast)
		}
	}
}

// TestDiskBallast runs out of space and gets it back.
func TestDiskBallast(t *testing.T) {
	disk := &fakeDisk{usage: usage{free: 300 << 20, total: 400 << 20}}
	cfg := testConfig(t)
	cfg.measureDisk = disk.measure
	s := open(t, cfg)
	ballast := filepath.Join(cfg.Dir, ballastFile)
	size := func() int64 {
		info, err := os.Stat(ballast)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	look := func() {
		s.disk.mu.Lock()
		defer s.disk.mu.Unlock()
		s.disk.lookLocked()
		s.disk.trimLocked()
	}
	eventually(t, "a ballast", func() bool { return size() == 25<<20 })
	disk.set(13 << 20)
	look()
	if size() == 0 {
		t.Fatal("the ballast was given up while there is room")
	}
	eventually(t, "the ballast being given up for somebody who needs space", func() bool {
		if s.disk.has(14<<20) == nil {
			t.Fatal("space was promised that is not there")
		}
		return size() == 0
	})
	disk.set(80 << 20)
	look()
	if size() != 0 {
		t.Fatal("the ballast was made of what appends need to go on")
	}
	disk.set(90 << 20)
	look()
	if size() == 0 {
		t.Fatal("the ballast was not made again")
	}
	disk.set(1 << 20)
	look()
	if size() == 0 {
		t.Fatal("the ballast was left to another program")
	}
	disk.set(0)
	look()
	if size() != 0 {
		t.Fatal("the ballast was kept on a full disk")
	}
}

// TestDiskWaits appends what was admitted before the disk was full.
func TestDiskWaits(t *testing.T) {
	disk := &fakeDisk{usage: usage{free: 300 << 20, total: 400 << 20}}
	cfg := testConfig(t)
	cfg.measureDisk = disk.measure
	s := open(t, cfg)
	disk.set(0)
	l := s.Log(partition(0))
	b := makeBatch(0, 1, 10, 0, 1000, 1)
	outcome := make(chan error, 1)
	l.Append(Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: 1, Epochs: epochZero}}, func(err error) { outcome <- err })
	eventually(t, "a look for space", func() bool {
		_, err := os.Stat(filepath.Join(cfg.Dir, ballastFile))
		return os.IsNotExist(err)
	})
	select {
	case err := <-outcome:
		t.Fatalf("an append ended without space: %v", err)
	default:
	}
	disk.set(300 << 20)
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
	if err := sameBatches(readAll(t, l, 0, 1, 1000), []Batch{b}); err != nil {
		t.Fatal(err)
	}
}

// TestDiskFullStop stops and starts on a full disk: volumes are left as a crash
// would, and a start that cannot repair them says so.
func TestDiskFullStop(t *testing.T) {
	disk := &fakeDisk{usage: usage{free: 300 << 20, total: 400 << 20}}
	cfg := testConfig(t)
	cfg.measureDisk = disk.measure
	s := open(t, cfg)
	one(t, s.Log(partition(0)), SetSynced, 0, 1, 10)
	need := s.repairSpace()
	s.clean = true
	if n := s.repairSpace(); n != 0 {
		t.Errorf("a clean start needs %d bytes", n)
	}
	if s.clean = false; need == 0 {
		t.Error("a repair needs no space")
	}
	closeUnclean(t, s)
	disk.set(need / 2)
	if _, err := Open(cfg); !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), "make room") {
		t.Fatalf("a store that has to be repaired was opened on a full disk: %v", err)
	}
	disk.set(need)
	s = open(t, cfg)
	if got := readAll(t, s.Log(partition(0)), 0, 1, 1000); len(got) != 1 {
		t.Fatalf("%d batches", len(got))
	}
	disk.set(0)
	err := s.Close(1)
	wantError(t, err, ErrDiskFull)
	disk.set(300 << 20)
	// The volumes of the store above are still open in this process.
	if err := s.volumes.close(); err != nil {
		t.Fatal(err)
	}
	if s = open(t, cfg); s.Clean() {
		t.Error("a store that was not closed is clean")
	}
}

// A watermark far above what is free refuses records and nothing else, also while
// others go on writing to the disk.
func TestDiskHighWatermark(t *testing.T) {
	disk := &fakeDisk{usage: usage{free: 50 << 30, total: 1 << 40}}
	cfg := testConfig(t)
	cfg.measureDisk = func(dir string) (usage, error) {
		disk.mu.Lock()
		disk.free -= 4096
		disk.mu.Unlock()
		return disk.measure(dir)
	}
	s := open(t, cfg)
	b := one(t, s.Log(partition(0)), SetSynced, 0, 1, 10)
	cfg.MinFreeBytes = 200 << 30
	for _, stop := range []func(testing.TB, *Store){closeUnclean, closeStore} {
		stop(t, s)
		s = open(t, cfg)
		l := s.Log(partition(0))
		if err := sameBatches(readAll(t, l, 0, 1, 1000), []Batch{b}); err != nil {
			t.Fatal(err)
		}
		if err := l.Admit(1); !errors.Is(err, ErrDiskFull) {
			t.Errorf("a record was admitted: %v", err)
		}
		mustAppend(t, l, Append{Set: SetSynced, State: State{LogEnd: 1, HighWatermark: 1, Epochs: epochZero}})
	}
}

func TestDiskReadOnly(t *testing.T) {
	disk := &fakeDisk{usage: usage{free: 300 << 20, total: 400 << 20}}
	cfg := testConfig(t)
	cfg.measureDisk = disk.measure
	fatal := make(chan error, 1)
	cfg.OnFatal = func(err error) { fatal <- err }
	s := open(t, cfg)
	disk.mu.Lock()
	disk.readOnly = true
	disk.mu.Unlock()
	s.disk.spent()
	_ = s.Log(partition(0)).Admit(1)
	if err := <-fatal; !strings.Contains(err.Error(), "read-only") {
		t.Fatal(err)
	}
}

// TestMemoryLogsAreReserved writes keys until Badger has begun several memory
// logs, and looks at each file that it may write.
func TestMemoryLogsAreReserved(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(0))
	one(t, l, SetSynced, 0, 1, 10)
	w := &s.sets[SetSynced].writer
	first := w.files.mem.latest
	offset := int64(1)
	ahead := false
	for w.files.mem.latest < first+3 {
		var a Append
		a.Set = SetSynced
		for range 100 {
			b := makeBatch(offset, 1, 800, 0, 1000, 1)
			a.Batches = append(a.Batches, b)
			offset++
		}
		a.State = State{LogEnd: offset, Epochs: epochZero}
		mustAppend(t, l, a)
		// The commit goroutine waits for the next append now.
		ahead = ahead || w.files.mem.next != nil
		if got := allocated(t, w.files.mem.path(w.files.mem.latest)); got < w.files.mem.space {
			t.Fatalf("memory log %d has %d bytes on the disk, want %d", w.files.mem.latest, got, w.files.mem.space)
		}
		if w.files.mem.rotates(0) && w.files.mem.next == nil {
			t.Fatal("Badger may begin a memory log that is not there")
		}
	}
	if !ahead {
		t.Error("no memory log was prepared")
	}
	dir := w.volume.path
	closeStore(t, s)
	left, _ := filepath.Glob(filepath.Join(dir, "*"+memExtension))
	if len(left) > 0 {
		t.Errorf("memory logs are left: %v", left)
	}
	s = open(t, cfg)
	if got := readAll(t, s.Log(partition(0)), 0, offset, 1<<20); len(got) != int(offset) {
		t.Errorf("%d batches instead of %d", len(got), offset)
	}
}

// TestDiskClaims: near the end of the disk the same space is promised once, and
// none while it is being taken.
func TestDiskClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeDisk{usage: usage{free: 100 << 20, total: 400 << 20}}
		cfg := testConfig(t)
		cfg.measureDisk = fake.measure
		m, err := newMetrics(nil)
		if err != nil {
			t.Fatal(err)
		}
		d := watchDisk(cfg.Dir, &cfg, m, nil, nil)
		fake.set(20 << 20)
		if d.claim(8<<20) == nil {
			t.Error("space was promised while it was being taken")
		}
		time.Sleep(steadyFor)
		for i := range 3 {
			if err := d.claim(8 << 20); (err == nil) != (i < 2) {
				t.Errorf("promise %d of 8 MiB, of 20: %v", i, err)
			}
		}
		if d.has(8<<20) == nil {
			t.Error("space was promised twice")
		}
		time.Sleep(claimFor + time.Millisecond)
		if err := d.claim(8 << 20); err != nil {
			t.Errorf("a promise is kept for ever: %v", err)
		}
	})
}

// TestDiskFiles: a disk without room for more files is full, and taken for nothing
// else.
func TestDiskFiles(t *testing.T) {
	disk := &fakeDisk{usage: usage{free: 300 << 20, total: 400 << 20, files: 1000, totalFiles: 2000}}
	cfg := testConfig(t)
	cfg.measureDisk = disk.measure
	s := open(t, cfg)
	l := s.Log(partition(0))
	files := func(n int64) {
		disk.mu.Lock()
		disk.files = n
		disk.mu.Unlock()
		s.disk.spent()
	}
	for _, step := range []struct {
		files   int64
		refused bool
	}{{1000, false}, {64, false}, {63, true}, {70, true}, {80, false}, {15, true}} {
		files(step.files)
		err := l.Admit(1)
		if errors.Is(err, ErrDiskFull) != step.refused {
			t.Fatalf("with %d files: %v", step.files, err)
		}
		if step.refused && !strings.Contains(err.Error(), "files can be made") {
			t.Errorf("the error does not say what is missing: %v", err)
		}
	}
	if err := s.disk.has(1); !errors.Is(err, ErrDiskFull) {
		t.Errorf("a volume may be made: %v", err)
	}
	files(volumeFiles)
	if err := s.disk.has(1); err != nil {
		t.Error(err)
	}
}

// TestDiskIsTold: the log says once that batches are refused, and once that they are
// taken again, also where only large ones are.
func TestDiskIsTold(t *testing.T) {
	disk := &fakeDisk{usage: usage{free: 300 << 20, total: 400 << 20}}
	cfg := testConfig(t)
	cfg.measureDisk = disk.measure
	var log lockedBuffer
	cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s := open(t, cfg)
	l := s.Log(partition(0))
	for round := 1; round <= 2; round++ {
		disk.set(52 << 20)
		for range 10 {
			s.disk.spent()
			err := l.Admit(3 << 20)
			wantError(t, err, ErrDiskFull)
			if !strings.Contains(err.Error(), "52.0 MiB are free") || !strings.Contains(err.Error(), "50.0 MiB are kept free, and 1.1 MiB are missing for 3.0 MiB") {
				t.Fatalf("the error is %v", err)
			}
		}
		if round == 2 {
			disk.set(10 << 20)
			s.disk.spent()
			if err := l.Admit(1); err == nil || !strings.Contains(err.Error(), "from 62.5 MiB on") {
				t.Fatalf("the error is %v", err)
			}
		}
		disk.set(300 << 20)
		s.disk.spent()
		if err := l.Admit(3 << 20); err != nil {
			t.Fatal(err)
		}
		said := log.String()
		if n, m := strings.Count(said, "the disk is full"), strings.Count(said, "room again"); n != round || m != round {
			t.Fatalf("after round %d the log says %d times that the disk is full, and %d times that it has room: %s", round, n, m, said)
		}
	}
}

// TestValuesAreReserved: no transaction is begun whose values have no space, also the
// first one of a value log, and while the next step is being reserved.
func TestValuesAreReserved(t *testing.T) {
	cfg := testConfig(t)
	disk := &fakeDisk{usage: usage{free: 100 << 30, total: 1 << 40}}
	cfg.measureDisk = disk.measure
	s := open(t, cfg)
	l := s.Log(partition(0))
	files := func() *logFiles { return s.sets[SetSynced].writer.files }
	logs := make(map[string]bool)
	for offset := int64(0); len(logs) < 4; offset++ {
		one(t, l, SetSynced, offset, 1, 300_000)
		// The commit goroutine waits for the next append now.
		f := files()
		logs[f.name] = true
		for _, values := range []int64{2000, 400_000} {
			if _, err := f.prepare(values, 100); err != nil {
				t.Fatal(err)
			}
			if f.unreservable {
				t.Skip("the file system does not reserve space")
			}
			if f.reserved < f.used+values {
				t.Fatalf("%s is reserved up to %d, and a transaction reaches to %d", f.name, f.reserved, f.used+values)
			}
			if got := allocated(t, f.name); got < f.used+values {
				t.Fatalf("%s has %d bytes on the disk, and a transaction reaches to %d", f.name, got, f.used+values)
			}
		}
	}
}
