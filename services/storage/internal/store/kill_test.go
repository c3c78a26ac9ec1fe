//go:build failpoints

package store

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

var (
	killSeed   = flag.Uint64("kill.seed", 1, "first seed of TestKillAtEachStep")
	killRounds = flag.Int("kill.rounds", 1, "seeds of TestKillAtEachStep")
	killStep   = flag.String("kill.step", "", "only steps that begin so")
)

// killScript is the variable that makes the test binary a child which works as
// the file says that it names.
const killScript = "RUNNEL_STORE_TEST_SCRIPT"

func init() { children[killScript] = workChild }

const killLogs = 5

// script is what a child has to do.
type script struct {
	Dir    string
	Seed   uint64
	Phases int
	// Step is where the child is to be killed: it does more of what leads there.
	Step string
	// Models are the logs that live.
	Models []*logModel
	// Serial and ID are the last ones that were given.
	Serial int64
	ID     int
}

func killConfig(dir string) Config {
	cfg := DefaultConfig()
	cfg.Dir = dir
	cfg.VolumeBytes = 256 << 10
	cfg.MaxOpenSealed = 3
	cfg.CleaningRate, cfg.Quarantine = 1<<40, time.Millisecond
	cfg.valueLogBytes, cfg.memTableBytes = 1<<20, 1<<20
	return cfg
}

// worker is the child. It tells each operation on its standard output before it
// begins, "do OPERATION", and when it was acknowledged, "ok SERIAL".
type worker struct {
	script
	store  *Store
	serial atomic.Int64
	ids    atomic.Int64
	output sync.Mutex

	// mu guards deleted, the logs that were.
	mu      sync.Mutex
	deleted []int
}

func workChild(path string) {
	w := &worker{}
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &w.script)
	}
	if err != nil {
		w.fail(err)
	}
	w.serial.Store(w.Serial)
	w.ids.Store(int64(w.ID))
	w.open()
	for phase := range w.Phases {
		var logs sync.WaitGroup
		for i := range w.Models {
			logs.Go(func() { w.work(&w.Models[i], rand.New(rand.NewPCG(w.Seed, uint64(phase*100+i)))) })
		}
		logs.Wait()
		r := rand.New(rand.NewPCG(w.Seed, uint64(phase)<<32))
		often := 6
		if strings.HasPrefix(w.Step, "start/") || strings.HasPrefix(w.Step, "stop/") {
			often = 2
		}
		if r.IntN(often) == 0 {
			w.close()
			w.open()
		}
	}
	w.close()
	w.say("end")
}

func (w *worker) say(what string, args ...any) {
	w.output.Lock()
	defer w.output.Unlock()
	fmt.Println(append([]any{what}, args...)...)
}

func (w *worker) fail(err error) {
	w.say("fail", err)
	os.Exit(1)
}

func (w *worker) open() {
	s, err := Open(killConfig(w.Dir))
	if err != nil {
		w.fail(err)
	}
	w.store = s
	w.say("open")
}

func (w *worker) close() {
	if err := w.store.Close(1); err != nil {
		w.fail(err)
	}
}

// start does an operation that flying counts, and takes it off when it is
// acknowledged. Compaction goes on beside what comes next.
func (w *worker) start(m *logModel, o logOp, flying *sync.WaitGroup) {
	raw, err := json.Marshal(o)
	if err != nil {
		w.fail(err)
	}
	w.say("do", string(raw))
	m.apply(o)
	l := w.store.Log(partition(m.ID))
	done := func(err error) {
		if err != nil {
			w.fail(fmt.Errorf("%s: %w", raw, err))
		}
		if o.Kind != opCompact {
			w.say("ok", o.Log, o.serial())
		}
		flying.Done()
	}
	if o.Kind == opCompact {
		go o.perform(l, done)
		return
	}
	o.perform(l, done)
}

// work does some operations on one log.
func (w *worker) work(at **logModel, r *rand.Rand) {
	m, pick := *at, randomPicker{r}
	var flying sync.WaitGroup
	defer flying.Wait()
	start := func(o logOp) {
		flying.Add(1)
		w.start(m, o, &flying)
	}
	large := strings.HasPrefix(w.Step, "stage/") || strings.HasSuffix(w.Step, "-staged") || w.Step == "truncate/after-roll"
	for range 1 + r.IntN(4) {
		switch action := r.IntN(100); {
		case action < 60:
			for range 1 + r.IntN(6) {
				if r.IntN(200) > 0 && (!large || r.IntN(12) > 0) {
					start(m.grow(pick, w.serial.Add(1), 1+r.IntN(3)))
					continue
				}
				// More than a transaction takes, or deletes.
				o := m.grow(pick, w.serial.Add(1), manyBatches)
				start(o)
				if r.IntN(2) == 0 {
					start(m.cutAt(w.serial.Add(1), o.Batches[r.IntN(10)].Base))
				}
			}
		case action < 68:
			start(m.begin(pick, w.serial.Add(1)))
		case action < 84 || action < 92 && strings.HasPrefix(w.Step, "truncate/"):
			start(m.cut(pick, w.serial.Add(1)))
		case m.Keys > 0 && (action < 86 || strings.HasPrefix(w.Step, "compact/")):
			start(m.settle(w.serial.Add(1)))
			flying.Wait()
			start(m.compact())
		case action < 90:
			if err := w.store.sets[m.Set].roll(context.Background()); err != nil {
				w.fail(err)
			}
		case action < 94 || strings.HasPrefix(w.Step, "bury/"):
			if r.IntN(2) == 0 {
				// A log that has only just begun is all in one volume.
				m = w.replace(start, &flying, m)
				start(m.grow(pick, w.serial.Add(1), 1))
			}
			m = w.replace(start, &flying, m)
			*at = m
		}
	}
}

// replace deletes a log's partition and returns the log of one that was deleted
// before and is forgotten, if there is one, or of a new one.
func (w *worker) replace(start func(logOp), flying *sync.WaitGroup, m *logModel) *logModel {
	start(m.remove(w.serial.Add(1)))
	flying.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deleted = append(w.deleted, m.ID)
	for i, id := range w.deleted {
		if !w.store.knows(partition(id)) {
			w.deleted = slices.Delete(w.deleted, i, i+1)
			return newLogModel(id, keysOfLog(id))
		}
	}
	id := int(w.ids.Add(1))
	return newLogModel(id, keysOfLog(id))
}

// killed is the parent's view of a store whose processes are killed.
type killed struct {
	*testing.T
	dir  string
	rand *rand.Rand
	// logs are the models of what was acknowledged, with deleted ones.
	logs map[int]*logModel
	// pending were begun and not acknowledged, in their order.
	pending map[int][]logOp
	serial  int64
	id      int
	runs    int
}

// TestKillAtEachStep kills a process that does all kinds of operations at each
// step that the source names, and compares what the next one finds with what was
// acknowledged.
func TestKillAtEachStep(t *testing.T) {
	for seed := *killSeed; seed < *killSeed+uint64(*killRounds); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			// Not parallel: a child that is being started for one round would hold the
			// lock of another's store for a moment.
			names := slices.DeleteFunc(steps(t), func(name string) bool { return !strings.HasPrefix(name, *killStep) })
			r := rand.New(rand.NewPCG(seed, 5))
			r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			// A fresh store now and then: what is old makes each start slower.
			for chunk := range slices.Chunk(names, 4) {
				k := &killed{T: t, dir: t.TempDir(), rand: r, logs: map[int]*logModel{}, pending: map[int][]logOp{}}
				for range killLogs {
					k.id++
					k.logs[k.id] = newLogModel(k.id, keysOfLog(k.id))
				}
				for _, name := range chunk {
					k.at(name)
				}
				if err := os.RemoveAll(k.dir); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// at kills a process at a step.
func (k *killed) at(name string) {
	k.Helper()
	before := []string{"commit/after-reserve", "append/after-commit", "stage/after-part", "roll/after-replace", "seal/before-describe", "stop/before-marker", "create/before-open"}
	if strings.HasSuffix(name, "-staged") {
		before = []string{"stage/after-part", "stage/before-last-part", "stage/after-last-part"}
	}
	offset := k.rand.IntN(len(before))
	for attempt := range 8 {
		if strings.HasPrefix(name, "start/") {
			// What is to be done at the start depends on how the last process ended.
			k.run(before[(offset+attempt)%len(before)], 1)
		}
		hit := 1
		if often := strings.HasPrefix(name, "append/") || strings.HasPrefix(name, "commit/"); often {
			hit = 1 + k.rand.IntN(60)
		} else if attempt == 0 {
			hit = 1 + k.rand.IntN(2)
		}
		if k.run(name, hit) {
			return
		}
	}
	k.Errorf("no process came to the step %s: let the child do what leads there", name)
}

// run lets a child work until it is killed at that hit of a step, or has done
// its work, and compares the store with what it has told. It reports whether the
// child was killed.
func (k *killed) run(step string, hit int) bool {
	k.Helper()
	k.runs++
	started := time.Now()
	what := fmt.Sprintf("run %d, killed at hit %d of %s", k.runs, hit, step)
	s := script{Dir: k.dir, Seed: k.rand.Uint64(), Phases: 8, Step: step, Serial: k.serial, ID: k.id}
	for _, m := range k.logs {
		if !m.State.Deleted {
			s.Models = append(s.Models, m.clone())
		}
	}
	slices.SortFunc(s.Models, func(a, b *logModel) int { return a.ID - b.ID })
	raw, err := json.Marshal(s)
	if err != nil {
		k.Fatal(err)
	}
	path := filepath.Join(k.TempDir(), "script.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		k.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killScript+"="+path, fmt.Sprintf("%s=%s=kill@%d", failpoint.Variable, step, hit))
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		k.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		k.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	ended := k.listen(bufio.NewReader(output), what)
	_ = cmd.Wait()
	if !late.Stop() {
		k.Fatalf("%s: the child hangs", what)
	}
	lived := time.Since(started)
	k.verify(what)
	k.Logf("%s after %v, compared in %v; killed: %t", what, lived, time.Since(started)-lived, !ended)
	return !ended
}

// listen takes down what a child tells until it ends, and reports whether it
// says that it has done its work.
func (k *killed) listen(output *bufio.Reader, what string) (ended bool) {
	for {
		line, err := output.ReadString('\n')
		if err != nil {
			// A line without an end was being written when the child died.
			return ended
		}
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch kind {
		case "do":
			var o logOp
			if err := json.Unmarshal([]byte(rest), &o); err != nil {
				k.Fatalf("%s: %v in %s", what, err, line)
			}
			if o.Kind == opCompact {
				// Whether it took place or not, from now on it may have.
				k.logs[o.Log].apply(o)
				continue
			}
			k.pending[o.Log] = append(k.pending[o.Log], o)
			k.serial, k.id = max(k.serial, o.serial()), max(k.id, o.Log)
		case "ok":
			var log int
			var serial int64
			if _, err := fmt.Sscan(rest, &log, &serial); err != nil {
				k.Fatalf("%s: %v in %s", what, err, line)
			}
			if p := k.pending[log]; len(p) == 0 || p[0].serial() != serial {
				k.Fatalf("%s: operation %d of log %d was acknowledged out of turn", what, serial, log)
			}
			k.take(log)
		case "fail":
			k.Errorf("%s: child: %s", what, rest)
		case "end":
			ended = true
		}
	}
}

// take applies the first pending operation of a log.
func (k *killed) take(log int) {
	o := k.pending[log][0]
	if o.First {
		k.logs[log] = newLogModel(log, o.Keys)
	}
	k.logs[log].apply(o)
	if k.pending[log] = k.pending[log][1:]; len(k.pending[log]) == 0 {
		delete(k.pending, log)
	}
}

// verify opens a copy of the store, and again after it was closed: the store
// itself stays as the process has left it.
func (k *killed) verify(what string) {
	k.Helper()
	image := k.TempDir()
	if err := copyTree(image, k.dir); err != nil {
		k.Fatal(err)
	}
	defer os.RemoveAll(image)
	for _, when := range []string{"opened", "opened again"} {
		if err := inspectSound(killConfig(image)); err != nil {
			k.Fatalf("%s, before it is %s: %v", what, when, err)
		}
		s, err := Open(killConfig(image))
		if err != nil {
			k.Fatalf("%s, %s: %v", what, when, err)
		}
		for log := range k.pending {
			k.resolve(s, log, what)
		}
		for _, m := range k.logs {
			l := s.Log(partition(m.ID))
			for _, check := range []func(*Log) error{m.checkLoaded, m.checkAll, m.checkSpans} {
				if err := check(l); err != nil {
					k.Fatalf("%s, %s: log %d: %v", what, when, m.ID, err)
				}
			}
		}
		if err := s.Close(1); err != nil {
			k.Fatal(err)
		}
	}
}

// resolve finds out how many of the operations took place of which the child
// could not tell.
func (k *killed) resolve(s *Store, log int, what string) {
	k.Helper()
	state, _ := s.Log(partition(log)).Loaded()
	last := slices.IndexFunc(k.pending[log], func(o logOp) bool { return o.serial() == state.CoordinatorEpoch })
	if state.CoordinatorEpoch == 0 {
		// The log may have been deleted, and forgotten, before that was told.
		for i, o := range k.pending[log] {
			if o.Kind == opDelete {
				last = i
			}
		}
	}
	for range last + 1 {
		k.take(log)
	}
	delete(k.pending, log)
}

// clone returns a copy that changes on its own.
func (m *logModel) clone() *logModel {
	out := *m
	out.Producers = maps.Clone(m.Producers)
	out.Batches = slices.Clip(m.Batches)
	return &out
}

func (o *logOp) serial() int64 { return o.State.CoordinatorEpoch }

type randomPicker struct{ *rand.Rand }

func (r randomPicker) intn(n int) int { return r.IntN(n) }
