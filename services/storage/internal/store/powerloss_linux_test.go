package store

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/services/storage/internal/loopdisk"
)

const (
	// powerDirectory makes the test binary a child that appends to the store in
	// that directory until the power fails; powerBoot names the kernel's boot, and
	powerDirectory = "RUNNEL_STORE_TEST_POWER_DIRECTORY"
	powerBoot      = "RUNNEL_STORE_TEST_POWER_BOOT"
	powerMutant    = "RUNNEL_STORE_TEST_POWER_MUTANT"
	powerSwitch    = "RUNNEL_STORE_TEST_POWER_SWITCH"
)

const (
	powerPartitions = 8
	// fatalExit is how a child ends whose store has failed.
	fatalExit = 17
)

func powerConfig(dir, boot string) Config {
	cfg := crashConfig(dir)
	cfg.BootID = boot
	return cfg
}

// powerChild appends to all partitions, and prints "ack PARTITION END" for what
// is acknowledged, "cut PARTITION OFFSET" before it truncates, and "start
// PARTITION OFFSET" before it moves the log start. What is printed is out of the
// reach of the power failure.
func powerChild(dir string) {
	cfg := powerConfig(dir, os.Getenv(powerBoot))
	cfg.withoutSync = os.Getenv(powerMutant) != ""
	cfg.OnFatal = func(err error) {
		fmt.Fprintln(os.Stderr, "fatal:", err)
		os.Exit(fatalExit)
	}
	s, err := Open(cfg)
	if err != nil {
		fmt.Println("fail", err)
		os.Exit(1)
	}
	var output sync.Mutex
	say := func(format string, args ...any) {
		output.Lock()
		defer output.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	if os.Getenv(powerSwitch) != "" {
		l := s.Log(partition(0))
		var producer Producer
		a := crashAppend(0, 0, &producer)
		for _, a.Set = range []Set{SetReplicated, SetSynced} {
			outcome := make(chan error, 1)
			l.Append(a, func(err error) { outcome <- err })
			if err := <-outcome; err != nil {
				say("fail %v", err)
			}
			if a.Set.synced() {
				say("ack 0 %d", a.State.LogEnd)
			}
			set := a.Set
			a = crashAppend(0, a.State.LogEnd, &producer)
			a.Set = set
		}
		select {}
	}
	for p := range powerPartitions {
		go func() {
			l := s.Log(partition(p))
			state, packed := l.Loaded()
			producers := packed.Unpack()
			producer := Producer{ID: int64(p)}
			if len(producers) > 0 {
				producer = producers[0]
			}
			start, offset := state.LogStart, state.LogEnd
			for {
				var flying sync.WaitGroup
				for range 1 + rand.IntN(8) {
					a := crashAppend(p, offset, &producer)
					if rand.IntN(20) == 0 {
						// Volumes become empty.
						start = max(start, offset-int64(rand.IntN(2000)))
						say("start %d %d", p, start)
					}
					a.State.LogStart = start
					offset = a.State.LogEnd
					flying.Add(1)
					end := offset
					l.Append(a, func(err error) {
						if err == nil {
							say("ack %d %d", p, end)
						}
						flying.Done()
					})
				}
				flying.Wait()
				if rand.IntN(30) == 0 {
					cut := max(start, offset-int64(rand.IntN(40)))
					say("cut %d %d", p, cut)
					end, err := l.Truncate(context.Background(), cut, State{LogStart: start, LogEnd: cut, HighWatermark: cut, Epochs: epochZero})
					if err != nil {
						return
					}
					offset = end
					producer.Batches = nil
				}
			}
		}()
	}
	select {}
}

// powerRound appends until the power fails and the child is dead, and returns
// whether it got to append.
func powerRound(t *testing.T, d *loopdisk.Disk, boot string, mutant bool, life time.Duration, acked, started []int64) bool {
	t.Helper()
	cmd, wrote := watchPowerChild(t, d, boot, mutant, life, acked, started, func(child *os.Process) {
		if err := d.CutPower(); err != nil {
			t.Error(err)
		}
		_ = child.Kill()
	})
	_ = cmd.Wait()
	return wrote
}

// watchPowerChild lets a child append for a while, breaks the disk, and returns
// once the child has ended, or closed its output.
func watchPowerChild(t *testing.T, d *loopdisk.Disk, boot string, mutant bool, life time.Duration, acked, started []int64, breakDisk func(*os.Process)) (*exec.Cmd, bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), powerDirectory+"="+filepath.Join(d.Dir, "store"), powerBoot+"="+boot)
	if mutant {
		cmd.Env = append(cmd.Env, powerMutant+"=1")
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	failed := make(chan struct{})
	fail := time.AfterFunc(time.Minute, func() {
		breakDisk(cmd.Process)
		close(failed)
	})
	wrote := false
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) > 0 && fields[0] == "fail":
			t.Errorf("child: %s", lines.Text())
		case len(fields) == 3:
			p, _ := strconv.Atoi(fields[1])
			offset, err := strconv.ParseInt(fields[2], 10, 64)
			switch {
			case err != nil:
			case fields[0] == "start":
				started[p] = offset
			case fields[0] == "ack":
				if !wrote {
					fail.Reset(life)
				}
				acked[p], wrote = offset, true
			case fields[0] == "cut":
				// A cut inside a batch takes the whole batch.
				acked[p] = min(acked[p], offset-10)
			}
		}
	}
	<-failed
	return cmd, wrote
}

// verifyPowerless compares a partition with what was acknowledged. It returns
// what is wrong.
func verifyPowerless(s *Store, p int, acked, started int64) error {
	l := s.Log(partition(p))
	if err := l.Err(); err != nil {
		return fmt.Errorf("partition %d failed: %w", p, err)
	}
	state, _ := l.Loaded()
	if crashSet(p).synced() && state.LogEnd < acked {
		return fmt.Errorf("partition %d of %s ends at %d, but %d was acknowledged", p, crashSet(p), state.LogEnd, acked)
	}
	if state.LogStart > started {
		return fmt.Errorf("partition %d begins at %d, but only %d was asked for", p, state.LogStart, started)
	}
	for offset := state.LogStart; offset < state.LogEnd; {
		batches, err := l.Read(context.Background(), offset, state.LogEnd, 1<<20)
		if err != nil || len(batches) == 0 {
			return fmt.Errorf("partition %d of %s at %d of %d to %d: %d batches, %w", p, crashSet(p), offset, state.LogStart, state.LogEnd, len(batches), err)
		}
		for _, b := range batches {
			if err := sameBatches([]Batch{b}, []Batch{crashBatch(p, b.BaseOffset)}); err != nil {
				return fmt.Errorf("partition %d of %s at %d: %w", p, crashSet(p), b.BaseOffset, err)
			}
			offset = b.LastOffset + 1
		}
	}
	return nil
}

// TestPowerLoss takes the power from a disk under load, several times, and
// compares what the next start finds with what was acknowledged: all of it in
// synced sets; a beginning of what was written, without a gap or a wrong byte, in
// replicated ones.
func TestPowerLoss(t *testing.T) {
	d := loopdisk.New(t, 1<<30)
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	acked, started := make([]int64, powerPartitions), make([]int64, powerPartitions)
	lost := int64(0)
	for round := range rounds {
		life := time.Duration(200+rand.IntN(800)) * time.Millisecond
		if !powerRound(t, d, fmt.Sprint("boot ", round), false, life, acked, started) {
			t.Fatalf("round %d: nothing was appended", round)
		}
		d.Remount(t)
		s, err := Open(powerConfig(filepath.Join(d.Dir, "store"), fmt.Sprint("boot ", round+1)))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		t.Cleanup(func() { _ = s.Close(1) })
		if s.Clean() {
			t.Fatalf("round %d: the store is clean after a power failure", round)
		}
		for p := range powerPartitions {
			if err := verifyPowerless(s, p, acked[p], started[p]); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			end := s.Log(partition(p)).durable.LogEnd
			lost += max(0, acked[p]-end)
			acked[p] = end
		}
		if err := s.Close(1); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("log ends %v from %v; replicated sets lost %d records", acked, started, lost)
}

// What a synced set acknowledges is there with all that the log had in another set
// before: its durability was raised.
func TestPowerLossAfterSwitchToSynced(t *testing.T) {
	d := loopdisk.New(t, 1<<30)
	t.Setenv(powerSwitch, "1")
	acked, started := make([]int64, powerPartitions), make([]int64, powerPartitions)
	if !powerRound(t, d, "boot 1", false, 0, acked, started) {
		t.Fatal("nothing was appended")
	}
	d.Remount(t)
	s, err := Open(powerConfig(filepath.Join(d.Dir, "store"), "boot 2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(1) })
	if err := verifyPowerless(s, 0, acked[0], 0); err != nil {
		t.Error(err)
	}
	if end := s.Log(partition(0)).durable.LogEnd; end != acked[0] {
		t.Errorf("the log ends at %d, %d was acknowledged", end, acked[0])
	}
}

// TestPowerLossNoticesMissingSyncs shows that the comparison can fail: a synced
// set that does not sync loses what it has acknowledged.
func TestPowerLossNoticesMissingSyncs(t *testing.T) {
	d := loopdisk.New(t, 1<<30)
	acked, started := make([]int64, powerPartitions), make([]int64, powerPartitions)
	if !powerRound(t, d, "boot 1", true, 500*time.Millisecond, acked, started) {
		t.Fatal("nothing was appended")
	}
	d.Remount(t)
	s, err := Open(powerConfig(filepath.Join(d.Dir, "store"), "boot 2"))
	if err != nil {
		t.Logf("the loss was noticed: %v", err)
		return
	}
	t.Cleanup(func() { _ = s.Close(1) })
	for p := range powerPartitions {
		if !crashSet(p).synced() {
			continue
		}
		if err := verifyPowerless(s, p, acked[p], started[p]); err != nil {
			t.Logf("the loss was noticed: %v", err)
			return
		}
	}
	t.Error("a synced set that does not sync has lost nothing")
}

// TestDiskError makes a file system read-only after an error, as ext4 does, under
// a store that appends: the process has to end on its own, and what it has
// acknowledged is there.
func TestDiskError(t *testing.T) {
	d := loopdisk.New(t, 1<<30)
	breakDisk := d.FailOnErrors(t)
	acked, started := make([]int64, powerPartitions), make([]int64, powerPartitions)
	cmd, wrote := watchPowerChild(t, d, "boot 1", false, 500*time.Millisecond, acked, started, func(*os.Process) {
		if err := breakDisk(); err != nil {
			t.Error(err)
		}
	})
	kill := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	if !kill.Stop() {
		t.Fatal("the process went on with a disk that cannot be written")
	}
	t.Logf("the process ended with: %v", cmd.ProcessState)
	if !wrote {
		t.Fatal("nothing was appended")
	}
	d.Remount(t)
	s, err := Open(powerConfig(filepath.Join(d.Dir, "store"), "boot 2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(1) })
	for p := range powerPartitions {
		if err := verifyPowerless(s, p, acked[p], started[p]); err != nil {
			t.Error(err)
		}
	}
}
