package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// truncationTest is a test of one log that is cut and then written anew.
type truncationTest struct {
	*testing.T
	cfg    Config
	store  *Store
	model  modelLog
	writes uint64
	// after is what happens to the store after each step.
	after func(*truncationTest)
}

func (h *truncationTest) log() *Log { return h.store.Log(partition(1)) }

// step checks the log after what is done to it, and after what is then done to
// the store.
func (h *truncationTest) step(name string, do func()) {
	h.Helper()
	do()
	h.check(name)
	h.after(h)
	h.check(name + ", reopened")
}

// write appends batches of that many records, whose bytes nobody else has.
func (h *truncationTest) write(set Set, records ...int) {
	h.Helper()
	a := Append{Set: set}
	for i, n := range records {
		h.writes++
		size := 40
		if i%2 == 1 {
			// Such values lie in the value log.
			size = 3000
		}
		b := makeBatch(h.model.end(), n, size, 0, 1000+10*h.model.end(), h.writes)
		a.Batches = append(a.Batches, b)
		h.model.batches = append(h.model.batches, b)
		h.model.state.LogEnd = b.LastOffset + 1
	}
	h.model.state.Epochs = epochZero
	a.State = h.model.state
	mustAppend(h, h.log(), a)
}

func (h *truncationTest) roll(set Set) {
	h.Helper()
	if err := h.store.sets[set].roll(context.Background()); err != nil {
		h.Fatal(err)
	}
}

// begin moves the log start.
func (h *truncationTest) begin(offset int64) {
	h.Helper()
	h.model.state.LogStart = offset
	mustAppend(h, h.log(), Append{Set: SetSynced, State: h.model.state})
}

func (h *truncationTest) truncate(offset int64) {
	h.Helper()
	state := h.model.state
	state.LogEnd = offset
	end, err := h.log().Truncate(context.Background(), offset, state)
	if err != nil {
		h.Fatal(err)
	}
	if want := h.model.truncate(offset); end != want {
		h.Fatalf("the log ends at %d, want %d", end, want)
	}
}

// check reads all of the log, and each offset alone.
func (h *truncationTest) check(when string) {
	h.Helper()
	ctx := context.Background()
	start, end := h.model.state.LogStart, h.model.end()
	if err := sameBatches(readAll(h, h.log(), start, end, 1<<20), h.model.from(start)); err != nil {
		h.Fatalf("%s: %v", when, err)
	}
	if got, err := h.log().Read(ctx, end, end+100, 1<<20); err != nil || len(got) != 0 {
		h.Fatalf("%s: %d batches at the end %d, %v", when, len(got), end, err)
	}
	for offset := start; offset < end; offset++ {
		got, err := h.log().Read(ctx, offset, offset+1, 1)
		if err != nil {
			h.Fatalf("%s: %v", when, err)
		}
		want := h.model.from(offset)[:1]
		if err := sameBatches(got, want); err != nil {
			h.Fatalf("%s: at %d: %v", when, offset, err)
		}
		found, err := h.log().OffsetForTime(ctx, want[0].MaxTimestamp, end)
		if err != nil || found == nil || found.BaseOffset != want[0].BaseOffset {
			h.Fatalf("%s: time %d is found in %+v, %v; want the batch at %d", when, want[0].MaxTimestamp, found, err, want[0].BaseOffset)
		}
	}
	if found, err := h.log().OffsetForTime(ctx, 1<<40, end); err != nil || found != nil {
		h.Fatalf("%s: a time after all is found in %+v, %v", when, found, err)
	}
}

// reopen opens the store again in its directory, or in a copy.
func (h *truncationTest) reopen() {
	h.Helper()
	h.store = open(h, h.cfg)
	state, _ := h.log().Loaded()
	if state.LogEnd != h.model.end() || state.LogStart != h.model.state.LogStart {
		h.Fatalf("loaded with %+v, want %+v", state, h.model.state)
	}
}

// crash goes on with a copy of what a process leaves that dies now.
func (h *truncationTest) crash() {
	h.Helper()
	image := h.TempDir()
	eventually(h, "a moment at which the store is at rest", func() bool {
		if err := os.RemoveAll(image); err != nil {
			h.Fatal(err)
		}
		before := listTree(h, h.cfg.Dir)
		return copyTree(image, h.cfg.Dir) == nil && listTree(h, h.cfg.Dir) == before
	})
	closeStore(h, h.store)
	if err := os.RemoveAll(h.cfg.Dir); err != nil {
		h.Fatal(err)
	}
	h.cfg.Dir = image
	h.reopen()
	if h.store.Clean() {
		h.Fatal("the image of a crash is clean")
	}
}

// listTree names all files and says how large they are and when they changed.
func listTree(t testing.TB, dir string) string {
	t.Helper()
	var list strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if info, err := e.Info(); err == nil {
			fmt.Fprintln(&list, path, info.Size(), info.ModTime())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list.String()
}

// copyTree copies a directory whose files are mostly holes.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		}
		return copyFile(filepath.Join(to, name), path)
	})
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	block := make([]byte, 256<<10)
	empty := make([]byte, len(block))
	var at int64
	for {
		n, err := io.ReadFull(in, block)
		if n > 0 && !bytes.Equal(block[:n], empty[:n]) {
			if _, err := out.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return out.Truncate(at)
		}
		if err != nil {
			return err
		}
	}
}

// TestTruncate cuts logs that lie in various ways over volumes and sets at every
// offset, and writes the same offsets again in other batches; with a restart or
// a crash after each step.
func TestTruncate(t *testing.T) {
	const a, b = SetSynced, SetReplicated
	layouts := []struct {
		name string
		// steps make the log.
		steps []func(*truncationTest)
	}{
		{"active volume", []func(*truncationTest){
			func(h *truncationTest) { h.write(a, 3, 4, 1) },
			func(h *truncationTest) { h.write(a, 2) },
		}},
		{"sealed volumes", []func(*truncationTest){
			func(h *truncationTest) { h.write(a, 3, 4) },
			func(h *truncationTest) { h.roll(a) },
			func(h *truncationTest) { h.write(a, 1, 3) },
			func(h *truncationTest) { h.roll(a) },
		}},
		{"sealed and active volume", []func(*truncationTest){
			func(h *truncationTest) { h.write(b, 3, 4) },
			func(h *truncationTest) { h.roll(b) },
			func(h *truncationTest) { h.write(b, 2, 3) },
		}},
		{"two active volumes", []func(*truncationTest){
			func(h *truncationTest) { h.write(a, 3, 4) },
			func(h *truncationTest) { h.write(b, 2, 2) },
		}},
		{"there and back", []func(*truncationTest){
			func(h *truncationTest) { h.write(a, 2, 3) },
			func(h *truncationTest) { h.write(b, 3) },
			func(h *truncationTest) { h.write(a, 1, 2) },
		}},
		{"sealed there, active here", []func(*truncationTest){
			func(h *truncationTest) { h.write(b, 2, 3) },
			func(h *truncationTest) { h.roll(b) },
			func(h *truncationTest) { h.write(a, 3) },
			func(h *truncationTest) { h.write(b, 4) },
		}},
		{"log start in a batch", []func(*truncationTest){
			func(h *truncationTest) { h.write(a, 2, 5) },
			func(h *truncationTest) { h.begin(4) },
			func(h *truncationTest) { h.write(a, 2) },
		}},
		{"cut before", []func(*truncationTest){
			func(h *truncationTest) { h.write(a, 4, 4) },
			func(h *truncationTest) { h.truncate(6) },
			func(h *truncationTest) { h.write(b, 3) },
		}},
	}
	// In what the same offsets are written again: larger batches, smaller ones,
	// and a change of the set in their midst.
	rewrites := []func(*truncationTest){
		func(h *truncationTest) { h.write(a, 5, 2); h.write(a, 7) },
		func(h *truncationTest) { h.write(b, 1, 1, 1, 1, 1, 1, 2); h.write(b, 1, 5) },
		func(h *truncationTest) { h.write(a, 2, 1); h.write(b, 3, 2); h.write(a, 6) },
	}
	afters := []struct {
		name string
		do   func(*truncationTest)
	}{
		{"going on", func(*truncationTest) {}},
		{"restart", func(h *truncationTest) { closeStore(h, h.store); h.reopen() }},
		{"crash", (*truncationTest).crash},
	}
	for _, layout := range layouts {
		for n, after := range afters {
			t.Run(layout.name+"/"+after.name, func(t *testing.T) {
				t.Parallel()
				// Each offset is cut in the first way, and every other in each of the others.
				stride := int64(min(n, 1) + 1)
				if testing.Short() {
					stride = 3
				}
				for offset, end := int64(n%2), int64(1); offset <= end; offset += stride {
					h := &truncationTest{T: t, cfg: testConfig(t), after: after.do}
					h.cfg.valueLogBytes, h.cfg.memTableBytes = 1<<20, 1<<20
					h.reopen()
					for i, step := range layout.steps {
						if i < len(layout.steps)-1 {
							step(h)
							continue
						}
						h.step("before", func() { step(h) })
					}
					offset, end = max(offset, h.model.state.LogStart), h.model.end()
					h.step(fmt.Sprintf("truncation at %d of %d", offset, end), func() { h.truncate(offset) })
					h.step(fmt.Sprintf("writing after truncation at %d", offset), func() { rewrites[(int(offset)+n)%len(rewrites)](h) })
					closeStore(t, h.store)
					if err := os.RemoveAll(h.cfg.Dir); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// TestTruncateKeepsLogStart cuts the batch that the log start lies in.
func TestTruncateKeepsLogStart(t *testing.T) {
	h := &truncationTest{T: t, cfg: testConfig(t)}
	h.reopen()
	h.write(SetSynced, 3, 6)
	h.begin(5)
	state := State{LogStart: 4, LogEnd: 6, Epochs: epochZero}
	_, err := h.log().Truncate(t.Context(), 6, state)
	wantError(t, err, ErrInvalidAppend)
	state.LogStart = 5
	end, err := h.log().Truncate(t.Context(), 6, state)
	if err != nil || end != 5 {
		t.Fatalf("the log ends at %d, %v", end, err)
	}
	closeUnclean(t, h.store)
	h.model.truncate(6)
	h.reopen()
	if state, _ := h.log().Loaded(); !slices.Equal(state.Epochs, epochZero) || len(h.log().durable.spans) != 0 {
		t.Errorf("loaded with %+v and spans %+v", state, h.log().durable.spans)
	}
	h.write(SetSynced, 4)
	h.check("written again")
}
