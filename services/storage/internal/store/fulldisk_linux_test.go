package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/services/storage/internal/loopdisk"
)

// fillDirectory makes the test binary a child that appends small batches to the
// store in that directory, which make Badger write tables all the time. It stops
// at the end of its input.
const fillDirectory = "RUNNEL_STORE_TEST_FILL_DIRECTORY"

const fillPartitions = 4

func fillConfig(dir string) Config {
	cfg := DefaultConfig()
	cfg.Dir = dir
	cfg.BootID = "boot"
	cfg.VolumeBytes = 24 << 20
	cfg.valueLogBytes = 4 << 20
	cfg.memTableBytes = 2 << 20
	return cfg
}

// fillBatch is the batch at an offset: mostly small ones, which do not go to the
// value log.
func fillBatch(p int, offset int64) Batch {
	size := 300
	if offset%97 == 0 {
		size = 40_000
	}
	return makeBatch(offset, 1, size, 0, 1000+offset, uint64(p))
}

func fillChild(dir string) {
	cfg := fillConfig(dir)
	cfg.OnFatal = func(err error) {
		fmt.Println("fatal", err)
		os.Exit(fatalExit)
	}
	s, err := Open(cfg)
	if err != nil {
		fmt.Println("fatal", err)
		os.Exit(fatalExit)
	}
	stop := make(chan struct{})
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		close(stop)
	}()
	var workers sync.WaitGroup
	for p := range fillPartitions {
		workers.Go(func() {
			l := s.Log(partition(p))
			state, _ := l.Loaded()
			for {
				select {
				case <-stop:
					return
				default:
				}
				refused := l.Admit(100<<10) != nil
				if refused {
					// Room is made by giving up what is old.
					state.LogStart = state.LogEnd
				}
				a := Append{Set: allSets[p%2], State: state}
				for range 200 {
					if refused {
						break
					}
					b := fillBatch(p, a.State.LogEnd)
					a.Batches = append(a.Batches, b)
					a.State.LogEnd = b.LastOffset + 1
				}
				a.State.HighWatermark, a.State.Epochs = a.State.LogEnd, epochZero
				outcome := make(chan error, 1)
				l.Append(a, func(err error) { outcome <- err })
				if err := <-outcome; err != nil {
					fmt.Println("fatal", err)
					os.Exit(fatalExit)
				}
				state = a.State
				if !refused {
					fmt.Println("appended", p)
				}
			}
		})
	}
	workers.Wait()
	if err := s.Close(1); err != nil {
		fmt.Println("closed", err)
		return
	}
	fmt.Println("closed")
}

// TestDiskFillsUnderLoad lets another program take all space, again and again,
// while a store appends: it must neither die nor lose anything.
func TestDiskFillsUnderLoad(t *testing.T) {
	d := loopdisk.New(t, 400<<20)
	dir := filepath.Join(d.Dir, "store")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fillDirectory+"="+dir)
	var errs strings.Builder
	cmd.Stderr = &errs
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			if !strings.HasPrefix(s.Text(), "appended") {
				lines <- s.Text()
				continue
			}
			select {
			case lines <- s.Text():
			default:
			}
		}
	}()
	await := func(what string) {
		t.Helper()
		deadline := time.After(time.Minute)
		for {
			select {
			case line, open := <-lines:
				if !open || strings.HasPrefix(line, "fatal") {
					_ = cmd.Wait()
					t.Fatalf("the child has ended: %v, %s\n%.3000s", cmd.ProcessState, line, errs.String())
				}
				if strings.HasPrefix(line, what) {
					return
				}
			case <-deadline:
				_ = cmd.Process.Kill()
				t.Fatalf("%q did not come", what)
			}
		}
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	await("appended")
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	for range rounds {
		var aliens []string
		// The ballast is given up after the first.
		for range 3 {
			aliens = append(aliens, d.Fill(t))
		}
		for _, alien := range aliens {
			if err := os.Remove(alien); err != nil {
				t.Fatal(err)
			}
		}
		if d.Free(t) < 100<<20 {
			break
		}
		await("appended")
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	await("closed")
	_ = cmd.Wait()
	s, err := Open(fillConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(1) })
	var total int64
	for p := range fillPartitions {
		l := s.Log(partition(p))
		state, _ := l.Loaded()
		total += state.LogEnd
		if err := errors.Join(l.Err(), verifyFilled(l, p, state)); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d records", total)
}

func verifyFilled(l *Log, p int, state State) error {
	for offset := state.LogStart; offset < state.LogEnd; {
		batches, err := l.Read(context.Background(), offset, state.LogEnd, 1<<20)
		if err != nil || len(batches) == 0 {
			return fmt.Errorf("partition %d at %d of %d: %d batches, %w", p, offset, state.LogEnd, len(batches), err)
		}
		for _, b := range batches {
			if err := sameBatches([]Batch{b}, []Batch{fillBatch(p, offset)}); err != nil {
				return fmt.Errorf("partition %d at %d: %w", p, offset, err)
			}
			offset = b.LastOffset + 1
		}
	}
	return nil
}
