package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// fewFiles makes the test binary a child that works on the store in that directory
// while it may have only so many files open as fewFilesLimit says.
const (
	fewFiles      = "RUNNEL_STORE_TEST_FEW_FILES"
	fewFilesLimit = "RUNNEL_STORE_TEST_FEW_FILES_LIMIT"
)

func init() {
	children[fewFiles] = func(dir string) {
		var limit int
		if _, err := fmt.Sscan(os.Getenv(fewFilesLimit), &limit); err != nil {
			fmt.Println("fail", err)
			return
		}
		switch {
		case limit > 0:
			startWithFewFiles(dir, limit)
		case limit == 0:
			readWithFewFiles(dir)
		case limit == -2:
			openTheLastFile(dir)
		default:
			appendWithFewFiles(dir)
		}
	}
}

func startWithFewFiles(dir string, limit int) {
	if err := limitFiles(limit); err != nil {
		fmt.Println("fail", err)
		return
	}
	s, err := Open(damageConfig(dir))
	if err != nil {
		fmt.Println("refused", err)
		return
	}
	fmt.Println("opened", s.Close(1))
}

// readWithFewFiles opens a sealed volume again and again, with a few files more
// each time.
func readWithFewFiles(dir string) {
	s, err := Open(damageConfig(dir))
	if err != nil {
		fmt.Println("fail", err)
		return
	}
	l := s.Log(damagedPartitions[0])
	read := func() error {
		_, err := l.Read(context.Background(), 1, 2, 1)
		return err
	}
	refused, all := 0, 0
	for ; ; all++ {
		s.volumes.mu.Lock()
		if v := s.volumes.byNumber[1]; v.mode == readOnly {
			s.volumes.closeReadOnly(v)
		}
		s.volumes.mu.Unlock()
		restore, err := leaveFiles(all)
		if err != nil {
			fmt.Println("fail", err)
			return
		}
		denied := read()
		restore()
		if err := read(); err != nil {
			fmt.Printf("lost with %d files left: %v, then %v\n", all, denied, err)
			return
		}
		if denied == nil {
			break
		}
		refused++
	}
	if err := s.Close(1); err != nil {
		fmt.Println("fail", err)
		return
	}
	if failed := l.Failed(); failed != nil {
		fmt.Println("lost", failed)
		return
	}
	fmt.Println("sound", refused)
}

// leaveFiles lets the process open that many more files, until restore is called.
func leaveFiles(n int) (restore func(), err error) {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	highest := 0
	for _, fd := range open {
		var n int
		_, _ = fmt.Sscan(fd.Name(), &n)
		highest = max(highest, n)
	}
	// Files may be open anywhere below.
	var fillers []*os.File
	for len(fillers) == 0 || int(fillers[len(fillers)-1].Fd()) < highest {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		fillers = append(fillers, f)
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		return nil, err
	}
	if err := limitFiles(int(fillers[len(fillers)-1].Fd()) + 1 + n); err != nil {
		return nil, err
	}
	return func() {
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
		for _, f := range fillers {
			_ = f.Close()
		}
	}, nil
}

// appendWithFewFiles begins a new volume when no file can be opened.
func appendWithFewFiles(dir string) {
	s, err := Open(damageConfig(dir))
	if err != nil {
		fmt.Println("fail", err)
		return
	}
	l := s.Log(PartitionID{Topic: cluster.TopicID{0xfe}, Index: 1})
	write := func(offset int64) error {
		outcome := make(chan error, 1)
		l.Append(Append{Set: SetSynced, Batches: []Batch{makeBatch(offset, 1, 100, 0, 1000, 1)},
			State: State{LogEnd: offset + 1, Epochs: epochZero}}, func(err error) { outcome <- err })
		return <-outcome
	}
	// admitted waits until records are taken, or are not.
	admitted := func(want bool) (err error) {
		for range 1000 {
			if err = l.Admit(100); (err == nil) == want {
				return err
			}
			<-time.After(10 * time.Millisecond)
		}
		return fmt.Errorf("records are still taken, or refused: %v", err)
	}
	if err := write(0); err != nil {
		fmt.Println("fail", err)
		return
	}
	restore, err := leaveFiles(0)
	if err != nil {
		fmt.Println("fail", err)
		return
	}
	refusal := admitted(false)
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	roll := s.sets[SetSynced].roll(ctx)
	restore()
	if s.failure() != nil || roll == nil {
		fmt.Println("fail", roll, s.failure())
		return
	}
	if err := admitted(true); err != nil {
		fmt.Println("fail", err)
		return
	}
	if err := errors.Join(write(1), s.sets[SetSynced].roll(context.Background()), write(2), s.Close(1)); err != nil {
		fmt.Println("fail", err)
		return
	}
	fmt.Println("went on after", refusal)
}

// openTheLastFile opens the only file that is left, while the store looks how many are.
func openTheLastFile(dir string) {
	d := &disk{dir: dir, handles: openHandles()}
	for _, left := range []int{1, 0, keptHandles - 1, keptHandles, keptHandles + 1} {
		restore, err := leaveFiles(left)
		if err != nil {
			fmt.Println("fail", err)
			return
		}
		counted := d.openable(keptHandles)
		var looking sync.WaitGroup
		done := make(chan struct{})
		if left == 1 {
			looking.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
						d.openable(keptHandles)
					}
				}
			})
			for range 10_000 {
				f, opened := os.Open(os.DevNull)
				if err = errors.Join(err, opened); err != nil {
					break
				}
				_ = f.Close()
			}
		}
		close(done)
		looking.Wait()
		restore()
		if err != nil || counted != min(left, keptHandles) {
			fmt.Printf("with %d files left, %d are counted: %v\n", left, counted, err)
			return
		}
	}
	fmt.Println("went on")
}

func limitFiles(n int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = uint64(n)
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}

func runWithFewFiles(t *testing.T, dir string, limit int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	var stacks strings.Builder
	cmd.Stderr = &stacks
	cmd.Env = append(os.Environ(), fewFiles+"="+dir, fmt.Sprintf("%s=%d", fewFilesLimit, limit))
	// A process that cannot even begin says nothing.
	out, _ := cmd.Output()
	if ctx.Err() != nil {
		t.Fatalf("with %d files the child hangs: %s", limit, stacks.String())
	}
	return string(out)
}

func condemnedIn(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, volumesFolder, "*"+condemnedSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestFewFilesAtStart starts after a kill with ever more files that may be open:
// the start is refused or goes well, and no volume is taken for damaged.
func TestFewFilesAtStart(t *testing.T) {
	dir, end := victim(t, "kill")
	step := 1
	if testing.Short() {
		step = 5
	}
	refused := 0
	for limit := 6; ; limit += step {
		copied := filepath.Join(memoryDir(t), "store")
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		out := runWithFewFiles(t, copied, limit)
		if list := condemnedIn(t, copied); len(list) > 0 {
			t.Fatalf("with %d files: %v were set aside; %s", limit, list, out)
		}
		if err := verifyVictim(copied, end, append(damagedPartitions[:2:2], soundPartition)...); err != nil {
			t.Fatalf("with %d files: %v, after %s", limit, err, out)
		}
		os.RemoveAll(copied)
		if strings.HasPrefix(out, "refused") {
			refused++
			if strings.Contains(out, "too many open files") && !strings.Contains(out, "ulimit -n") {
				t.Errorf("no remedy is named: %s", out)
			}
		}
		if strings.HasPrefix(out, "opened") {
			break
		}
		if limit > 200 {
			t.Fatalf("with %d files: %s", limit, out)
		}
	}
	if refused == 0 {
		t.Error("no start was refused")
	}
}

// TestFewFilesLive opens a sealed volume while there are only a few files left: what
// cannot be read then can be read later.
func TestFewFilesLive(t *testing.T) {
	dir, end := victim(t, "clean")
	out := runWithFewFiles(t, dir, 0)
	var refused int
	if n, _ := fmt.Sscanf(out, "sound %d", &refused); n != 1 || refused == 0 {
		t.Errorf("the child says %q", out)
	}
	if list := condemnedIn(t, dir); len(list) > 0 {
		t.Errorf("%v were set aside", list)
	}
	if err := verifyVictim(dir, end, append(damagedPartitions[:2:2], soundPartition)...); err != nil {
		t.Error(err)
	}
}

// TestLastFileIsLeft: looking how many files can be opened takes none from anybody.
func TestLastFileIsLeft(t *testing.T) {
	t.Parallel()
	if out := runWithFewFiles(t, t.TempDir(), -2); out != "went on\n" {
		t.Errorf("the child says %q", out)
	}
}

// TestFewFilesForANewVolume appends when no file can be opened any more: what comes is
// refused with the remedy, what was taken waits, and all goes on once there are some.
func TestFewFilesForANewVolume(t *testing.T) {
	dir, end := victim(t, "clean")
	out := runWithFewFiles(t, dir, -1)
	if !strings.HasPrefix(out, "went on after") || !strings.Contains(out, "ulimit -n") {
		t.Errorf("the child says %q", out)
	}
	if err := verifyVictim(dir, end, append(damagedPartitions[:2:2], soundPartition)...); err != nil {
		t.Error(err)
	}
}
