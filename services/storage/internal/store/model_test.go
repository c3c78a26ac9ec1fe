package store

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestModel compares the store with slices under random operations of all kinds
// and restarts, with volumes so small that they are replaced all the time.
func TestModel(t *testing.T) {
	fewChecks(t)
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		runModel(t, rt, dir)
	})
}

// rapidPicker chooses so that rapid can shrink what was chosen.
type rapidPicker struct{ *rapid.T }

func (r rapidPicker) intn(n int) int {
	return rapid.IntRange(0, n-1).Draw(r.T, "n")
}

// modelStore is a store beside the models of its logs.
type modelStore struct {
	*rapid.T
	cfg    Config
	store  *Store
	models []*logModel
	serial int64
	ids    int
	// deleted are logs whose partitions were deleted.
	deleted []*logModel
}

const modelLogs = 4

func runModel(t *testing.T, rt *rapid.T, dir string) {
	h := &modelStore{T: rt, cfg: testConfig(t)}
	h.cfg.Dir = dir
	h.cfg.VolumeBytes = 64 << 10
	h.cfg.MaxOpenSealed = 2
	h.cfg.CleaningRate, h.cfg.Quarantine = 1<<40, 0
	h.cfg.valueLogBytes, h.cfg.memTableBytes = 1<<20, 1<<20
	r := rapidPicker{rt}
	h.open()
	defer func() { _ = h.store.Close(0) }()
	for range modelLogs {
		h.models = append(h.models, h.newLog())
	}
	for range rapid.IntRange(1, 40).Draw(rt, "steps") {
		m := h.models[r.intn(modelLogs)]
		switch action := r.intn(100); {
		case action < 45:
			h.group(r)
		case action < 60:
			h.read(r, m)
		case action < 66:
			h.do(m, m.begin(r, h.next()))
		case action < 76:
			h.do(m, m.cut(r, h.next()))
		case action < 80:
			if err := h.store.sets[m.Set].roll(context.Background()); err != nil {
				rt.Fatal(err)
			}
		case action < 85 && m.Keys > 0:
			h.do(m, m.settle(h.next()))
			h.do(m, m.compact())
			if err := m.checkAll(h.log(m)); err != nil {
				rt.Fatalf("log %d: %v", m.ID, err)
			}
		case action < 83:
			h.do(m, m.remove(h.next()))
			h.deleted = append(h.deleted, m)
			h.models[slices.Index(h.models, m)] = h.newLog()
		default:
			h.restart(r.intn(3))
		}
	}
	h.restart(0)
}

// newLog is that of a partition which was deleted and forgotten, if there is one,
// or of a new one.
func (h *modelStore) newLog() *logModel {
	for i, m := range h.deleted {
		if !h.store.knows(partition(m.ID)) {
			h.deleted = slices.Delete(h.deleted, i, i+1)
			return newLogModel(m.ID, keysOfLog(m.ID))
		}
	}
	h.ids++
	return newLogModel(h.ids, keysOfLog(h.ids))
}

// keysOfLog makes every second log one of a compacted topic, with that many keys.
func keysOfLog(id int) int { return id % 2 * 12 }

func (h *modelStore) next() int64 { h.serial++; return h.serial }

func (h *modelStore) log(m *logModel) *Log { return h.store.Log(partition(m.ID)) }

func (h *modelStore) open() {
	if err := inspectSound(h.cfg); err != nil {
		h.Fatal(err)
	}
	s, err := Open(h.cfg)
	if err != nil {
		h.Fatal(err)
	}
	h.store = s
}

// do does one operation and waits for it.
func (h *modelStore) do(m *logModel, o logOp) {
	outcome := make(chan error, 1)
	o.perform(h.log(m), func(err error) { outcome <- err })
	m.apply(o)
	if err := <-outcome; err != nil {
		h.Fatalf("%+v: %v", o, err)
	}
}

// group appends to several logs at once.
func (h *modelStore) group(r picker) {
	n := 1 + r.intn(6)
	outcomes := make(chan error, n)
	for range n {
		m := h.models[r.intn(modelLogs)]
		batches := 1 + r.intn(3)
		if r.intn(40) == 0 {
			// More than a transaction takes.
			batches = manyBatches
		}
		o := m.grow(r, h.next(), batches)
		o.perform(h.log(m), func(err error) { outcomes <- err })
		m.apply(o)
	}
	for range n {
		if err := <-outcomes; err != nil {
			h.Fatal(err)
		}
	}
}

// read reads some part of a log, and searches for a time.
func (h *modelStore) read(r picker, m *logModel) {
	if err := m.checkTime(h.log(m), m.Time-int64(r.intn(200))); err != nil {
		h.Fatal(err)
	}
	start, end := m.State.LogStart, m.State.LogEnd
	if start == end {
		return
	}
	offset := start + int64(r.intn(int(end-start)))
	bound := offset + 1 + int64(r.intn(int(end-offset)))
	maxBytes := 1 + r.intn(50_000)
	if m.Compacted > 0 {
		// Where its batches begin is not known.
		if err := m.checkAll(h.log(m)); err != nil {
			h.Fatalf("log %d: %v", m.ID, err)
		}
		return
	}
	got, err := h.log(m).Read(context.Background(), offset, bound, maxBytes)
	if err != nil {
		h.Fatalf("read %d at %d to %d: %v", m.ID, offset, bound, err)
	}
	var want []Batch
	total := 0
	for _, spec := range m.from(offset) {
		b := spec.build()
		if b.BaseOffset >= bound || len(want) > 0 && total+len(b.Bytes) > maxBytes {
			break
		}
		want, total = append(want, b), total+len(b.Bytes)
	}
	if err := sameBatches(got, want); err != nil {
		h.Fatalf("read %d at %d to %d with %d bytes: %v", m.ID, offset, bound, maxBytes, err)
	}
}

// restart closes the store and opens it again: in good order, without the mark of
// that, or as the image of a crash.
func (h *modelStore) restart(how int) {
	image := h.cfg.Dir
	if how == 2 {
		image = fmt.Sprintf("%s-%d", h.cfg.Dir, h.next())
		if err := copyAtRest(image, h.cfg.Dir); err != nil {
			h.Fatal(err)
		}
	}
	if err := h.store.Close(7); err != nil {
		h.Fatal(err)
	}
	switch how {
	case 1:
		if err := os.Remove(h.store.directory.Path(cleanFile)); err != nil {
			h.Fatal(err)
		}
	case 2:
		if err := os.RemoveAll(h.cfg.Dir); err != nil {
			h.Fatal(err)
		}
		if err := os.Rename(image, h.cfg.Dir); err != nil {
			h.Fatal(err)
		}
	}
	h.open()
	// What was closed in good order stays so until something is written.
	if want := how == 0; h.store.Clean() != want && how != 2 {
		h.Fatalf("clean is %v", h.store.Clean())
	}
	for _, m := range slices.Concat(h.models, h.deleted) {
		h.check(m)
	}
}

// check compares all of a log that was just opened.
func (h *modelStore) check(m *logModel) {
	l := h.log(m)
	for _, check := range []func(*Log) error{m.checkLoaded, m.checkAll, m.checkSpans} {
		if err := check(l); err != nil {
			h.Fatalf("log %d: %v", m.ID, err)
		}
	}
}
