package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4/y"
	"github.com/prometheus/client_golang/prometheus"
)

// cutVictim is the variable that makes the test binary cut a file of the store in
// that directory while it has it open, as cutHow says: a fault that nobody catches
// ends a process, and one that is caught leaves goroutines of Badger behind.
const (
	cutVictim = "RUNNEL_STORE_TEST_CUT"
	cutHow    = "RUNNEL_STORE_TEST_CUT_HOW"
)

// cut is what happens to a file of an open volume.
type cut struct {
	// state is that of the volume: sealed, idle (not sealed, but only read since the
	// start), written, or evicted (sealed, and closed when it happens).
	state        string
	volume, file string
	// divisor is the part that stays, as one in that many bytes; 0 for nothing.
	divisor int64
	// reader is who meets it.
	reader string
}

func (c cut) String() string {
	return fmt.Sprintf("%s %s %s %d %s", c.state, c.volume, c.file, c.divisor, c.reader)
}

// notCut stands for a file where something else is wrong.
const notCut = "none"

func parseCut(s string) (c cut) {
	if _, err := fmt.Sscan(s, &c.state, &c.volume, &c.file, &c.divisor, &c.reader); err != nil {
		panic(err)
	}
	return c
}

func TestCutLive(t *testing.T) {
	var cuts []cut
	for _, divisor := range []int64{0, 2} {
		for _, file := range []string{"*.vlog", "*.sst"} {
			for _, state := range []string{"sealed", "evicted"} {
				cuts = append(cuts, cut{state, "synced-000001", file, divisor, "read"})
			}
			cuts = append(cuts,
				cut{"idle", "synced-000003", file, divisor, "read"},
				cut{"written", "synced-000003", file, divisor, "read"},
				cut{"sealed", "synced-000001", file, divisor, "time"},
				cut{"sealed", "synced-000001", file, divisor, "copy"},
				cut{"sealed", "synced-000001", file, divisor, "truncate"},
				cut{"sealed", "synced-000001", file, divisor, "scrub"},
			)
		}
	}
	for _, c := range cuts {
		t.Run(c.String(), func(t *testing.T) {
			dir, end := victim(t, "clean")
			runCut(t, dir, c)
			for start := range 2 {
				// Only what is not sealed may still be set aside.
				if err := verifyVictim(dir, end, append(damagedPartitions[:2:2], soundPartition)...); err != nil {
					t.Fatalf("start %d: %v", start+1, err)
				}
			}
			aside, _ := filepath.Glob(filepath.Join(dir, volumesFolder, c.volume+condemnedSuffix))
			if len(aside) != 1 {
				t.Errorf("%s was not set aside", c.volume)
			}
		})
	}
}

func runCut(t *testing.T, dir string, c cut) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), cutVictim+"="+dir, cutHow+"="+c.String())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "survived\n") {
		t.Fatalf("%v: %.4000s", err, out)
	}
}

// TestCutLargeValues cuts a value log with values that are fetched before they are
// touched.
func TestCutLargeValues(t *testing.T) {
	for _, divisor := range []int64{0, 2, 3} {
		runCut(t, memoryDir(t), cut{"large", "synced-000001", "*.vlog", divisor, "read"})
	}
}

// TestGuardHoldsAssertions shows that Badger's assertions do not end the process
// under a guard.
func TestGuardHoldsAssertions(t *testing.T) {
	var broken *errUnreadable
	if err := guard(func() error { y.AssertTrue(false); return nil }); !errors.As(err, &broken) || !strings.Contains(broken.reason, "Assert failed") {
		t.Errorf("got %v", err)
	}
	if err := guarded("/volumes/synced-000001", func() error { y.Check(errors.New("bad")); return nil }); !IsDamagedVolume(err) {
		t.Errorf("got %v", err)
	}
	before := log.Writer()
	defer log.SetOutput(before)
	var lines lockedBuffer
	log.SetOutput(&lines)
	if err := guard(func() error { log.Print("a line"); return io.EOF }); err != io.EOF || !strings.Contains(lines.String(), "a line") {
		t.Errorf("got %v, and the lines %q", err, lines.String())
	}
}

func init() {
	children[cutVictim] = func(dir string) {
		c, scenario := parseCut(os.Getenv(cutHow)), survive
		if c.state == "large" {
			scenario = surviveLarge
		}
		if err := scenario(dir, c); err != nil {
			fmt.Println("fail", err)
			os.Exit(1)
		}
		fmt.Println("survived")
		os.Exit(0)
	}
}

// survive cuts a file of a volume, reads what was in it, and says what should have
// been otherwise.
func survive(dir string, c cut) error {
	cfg := damageConfig(dir)
	var lines lockedBuffer
	cfg.Logger = lines.logger()
	registry := prometheus.NewRegistry()
	cfg.Registerer = registry
	fatal := make(chan error, 1)
	cfg.OnFatal = func(err error) { fatal <- err }
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	state, _ := s.Log(soundPartition).Loaded()
	end := state.LogEnd
	if c.state == "written" {
		for _, id := range damagedPartitions {
			if err := appendNext(s.Log(id), end); err != nil {
				return err
			}
		}
	}
	touch := func(ids ...PartitionID) (faults []error) {
		for _, id := range ids {
			for o := range end {
				if _, err := s.Log(id).Read(context.Background(), o, o+1, 1); err != nil {
					faults = append(faults, err)
				}
			}
		}
		return faults
	}
	ids := append(damagedPartitions[:2:2], soundPartition)
	if c.file == notCut {
		ids = nil
	}
	if faults := touch(ids...); len(faults) > 0 {
		return faults[0]
	}
	number, _, _ := parseVolumeName(c.volume)
	if c.state == "evicted" {
		s.volumes.mu.Lock()
		s.volumes.closeReadOnly(s.volumes.byNumber[number])
		s.volumes.mu.Unlock()
	}
	files, err := filepath.Glob(filepath.Join(dir, volumesFolder, c.volume, c.file))
	if err != nil || len(files) == 0 && c.file != notCut {
		return fmt.Errorf("no file is cut: %w", err)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		keep := int64(0)
		if c.divisor > 0 {
			// Value logs have nothing behind what they hold.
			keep = info.Size() / c.divisor
		}
		if err := os.Truncate(file, keep); err != nil {
			return err
		}
	}
	if err := meet(s, c, end, touch); err != nil {
		return err
	}
	switch c.state {
	case "written", "idle":
		// Where the store has failed it is not closed in good order, but it is closed.
		if err := s.Close(1); (err != nil) != (len(fatal) > 0) {
			return fmt.Errorf("close: %w", err)
		}
		return nil
	}
	if err := until(func() bool { return !s.volumes.has(number) }); err != nil {
		return fmt.Errorf("the volume was not set aside; the log is:\n%s", lines.String())
	}
	if faults := touch(soundPartition); len(faults) > 0 {
		return faults[0]
	}
	for _, id := range damagedPartitions {
		if err := until(func() bool { return s.Log(id).Failed() != nil }); err != nil {
			return fmt.Errorf("%v has not failed", id)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		return err
	}
	for _, f := range families {
		if f.GetName() == "runnel_storage_volumes_condemned" && f.GetMetric()[0].GetGauge().GetValue() != 1 {
			return errors.New("the metric does not count the volume")
		}
	}
	if !strings.Contains(lines.String(), "set aside") {
		return errors.New("nothing is logged")
	}
	select {
	case err := <-fatal:
		return err
	default:
	}
	return s.Close(1)
}

// surviveLarge does that with large values.
func surviveLarge(dir string, c cut) error {
	const end = 30
	cfg := damageConfig(dir)
	cfg.VolumeBytes, cfg.valueLogBytes = 1<<20, 4<<20
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	l := s.Log(partition(1))
	for o := range int64(end) {
		outcome := make(chan error, 1)
		state := State{LogEnd: o + 1, HighWatermark: o + 1, Epochs: epochZero}
		l.Append(Append{Set: SetSynced, Batches: []Batch{makeBatch(o, 1, 100<<10, 0, 1000+o, 1)}, State: state}, func(err error) { outcome <- err })
		if err := <-outcome; err != nil {
			return err
		}
		if o == end/3 {
			if err := s.sets[SetSynced].roll(context.Background()); err != nil {
				return err
			}
		}
	}
	if err := until(func() bool { return s.volumes.sealed(1) != nil }); err != nil {
		return err
	}
	touch := func() (faults int) {
		for o := range int64(end) {
			if _, err := l.Read(context.Background(), o, o+1, 1); err != nil {
				faults++
			}
		}
		return faults
	}
	if touch() != 0 {
		return errors.New("what is sound cannot be read")
	}
	path := filepath.Join(dir, volumesFolder, c.volume, "000001.vlog")
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	keep := int64(0)
	if c.divisor > 0 {
		keep = info.Size() / c.divisor
	}
	if err := os.Truncate(path, keep); err != nil {
		return err
	}
	if n := touch(); n == 0 || n == end {
		return fmt.Errorf("%d of %d batches cannot be read", n, end)
	}
	if err := until(func() bool { return !s.volumes.has(1) && l.Failed() != nil }); err != nil {
		return errors.New("the volume was not set aside")
	}
	return s.Close(1)
}

// meet has somebody read what was cut.
func meet(s *Store, c cut, end int64, touch func(...PartitionID) []error) error {
	l := s.Log(damagedPartitions[0])
	var err error
	switch c.reader {
	case "read":
		err = errors.Join(touch(damagedPartitions...)...)
	case "time":
		_, err = l.OffsetForTime(context.Background(), 1055, end)
	case "copy":
		copier := newCopier(s)
		snapshot := l.snapshot(end, func(s span) bool { return s.volume == 1 })
		_, err = copier.copySpans(context.Background(), SetSynced, snapshot, copyRules{})
		copier.close()
	case "truncate":
		_, _, err = s.measureCut(l, 55)
		l.noteCorruption(err, func(context.Context) error {
			_, _, err := s.measureCut(l, 55)
			return err
		})
	case "scrub":
		s.scrub.doubt(s.volumes.sealed(1))
		return nil
	}
	if err == nil {
		return errors.New("nobody has met the damage")
	}
	return nil
}

func until(condition func() bool) error {
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			return context.DeadlineExceeded
		}
		<-time.After(time.Millisecond)
	}
	return nil
}

func appendNext(l *Log, offset int64) error {
	outcome := make(chan error, 1)
	b := damageBatch(l.ID(), offset)
	l.Append(Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: offset + 1, HighWatermark: offset + 1, Epochs: epochZero}}, func(err error) { outcome <- err })
	return <-outcome
}
