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
	"strings"
	"syscall"
	"testing"
	"time"
)

// truncationTest is a test of one log that is cut and then written anew.
type truncationTest struct {
	*testing.T
	cfg    Config
	store  *Store
	model  *logModel
	serial int64
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
	o := h.next(opAppend)
	o.Set, o.State.Epochs = set, epochZero
	for i, n := range records {
		size := 40
		if i%2 == 1 {
			// Such values lie in the value log.
			size = 3000
		}
		b := batchSpec{Base: o.State.LogEnd, Records: n, Size: size, Time: 1000 + 10*o.State.LogEnd, Seed: uint64(h.serial)}
		o.Batches = append(o.Batches, b)
		o.State.LogEnd = b.last() + 1
	}
	h.do(o)
}

func (h *truncationTest) next(kind logOpKind) logOp {
	h.serial++
	return h.model.newOp(kind, h.serial)
}

func (h *truncationTest) do(o logOp) {
	h.Helper()
	outcome := make(chan error, 1)
	o.perform(h.log(), func(err error) { outcome <- err })
	if err := <-outcome; err != nil {
		h.Fatal(err)
	}
	h.model.apply(o)
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
	o := h.next(opAppend)
	o.State.LogStart = offset
	h.do(o)
}

func (h *truncationTest) truncate(offset int64) {
	h.Helper()
	o := h.next(opTruncate)
	o.State.LogEnd, o.State.Epochs = offset, epochsBelow(o.State.Epochs, offset)
	end, err := h.log().Truncate(context.Background(), offset, o.State)
	if err != nil {
		h.Fatal(err)
	}
	h.model.apply(o)
	if want := h.model.State.LogEnd; end != want {
		h.Fatalf("the log ends at %d, want %d", end, want)
	}
}

// check reads all of the log, and each offset alone.
func (h *truncationTest) check(when string) {
	h.Helper()
	ctx := context.Background()
	start, end := h.model.State.LogStart, h.model.State.LogEnd
	if err := h.model.checkAll(h.log()); err != nil {
		h.Fatalf("%s: %v", when, err)
	}
	if err := h.model.checkSpans(h.log()); err != nil {
		h.Fatalf("%s: %v", when, err)
	}
	for offset := start; offset < end; offset++ {
		got, err := h.log().Read(ctx, offset, offset+1, 1)
		if err != nil {
			h.Fatalf("%s: %v", when, err)
		}
		want := h.model.from(offset)[0]
		if err := sameBatches(got, []Batch{want.build()}); err != nil {
			h.Fatalf("%s: at %d: %v", when, offset, err)
		}
		if err := h.model.checkTime(h.log(), want.Time); err != nil {
			h.Fatalf("%s: %v", when, err)
		}
	}
	if err := h.model.checkTime(h.log(), 1<<40); err != nil {
		h.Fatalf("%s: %v", when, err)
	}
}

// reopen opens the store again in its directory, or in a copy.
func (h *truncationTest) reopen() {
	h.Helper()
	h.store = open(h, h.cfg)
	if h.model == nil {
		h.model = newLogModel(1, 0)
		return
	}
	if err := h.model.checkLoaded(h.log()); err != nil {
		h.Fatal(err)
	}
}

// crash goes on with a copy of what a process leaves that dies now.
func (h *truncationTest) crash() {
	h.Helper()
	image := h.TempDir()
	if err := copyAtRest(image, h.cfg.Dir); err != nil {
		h.Fatal(err)
	}
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

// copyAtRest copies the directory of a store while nothing happens to its files:
// Badger and the sealing of volumes go on for a while after the last operation.
func copyAtRest(to, from string) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		before := listTree(from)
		err := copyTree(to, from)
		if err == nil && before != "" && listTree(from) == before {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the store in %s does not come to rest: %w", from, err)
		}
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
}

// listTree names all files and says how large they are and when they changed;
// nothing where some vanish meanwhile.
func listTree(dir string) string {
	var list strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			fmt.Fprintln(&list, path, info.Size(), info.ModTime())
		}
		return err
	})
	if err != nil {
		return ""
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
	info, err := in.Stat()
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	empty := make([]byte, len(block))
	for at := int64(0); at < info.Size(); {
		// Most of a file is a hole; where the system cannot tell, it is read.
		const seekData = 3
		next, err := in.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			break
		}
		if err == nil {
			at = next
		}
		n, err := in.ReadAt(block, at)
		if err != nil && err != io.EOF {
			return err
		}
		if !bytes.Equal(block[:n], empty[:n]) {
			if _, err := out.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if n == 0 {
			break
		}
	}
	return out.Truncate(info.Size())
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
					offset, end = max(offset, h.model.State.LogStart), h.model.State.LogEnd
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
	o := h.next(opTruncate)
	o.State.LogStart, o.State.LogEnd = 4, 6
	_, err := h.log().Truncate(t.Context(), 6, o.State)
	wantError(t, err, ErrInvalidAppend)
	h.truncate(6)
	if end := h.model.State.LogEnd; end != 5 {
		t.Errorf("the log ends at %d", end)
	}
	closeUnclean(t, h.store)
	h.reopen()
	if spans := h.log().durable.spans; len(spans) != 0 {
		t.Errorf("spans %+v", spans)
	}
	h.write(SetSynced, 4)
	h.check("written again")
}
