package store

import (
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// errUnreadable says that reading mapped files ended in a panic: a page of them
// cannot be read, or Badger does not get along with what it read.
type errUnreadable struct {
	reason string
	// fault says that it was a page, and stack where else it was.
	fault bool
	stack []byte
}

func (e *errUnreadable) Error() string { return e.reason }

// guard runs f, which reads mapped files, and makes an [*errUnreadable] of its
// panics. A page that cannot be read, because the disk reports an error or the
// file was cut, is one of these here and not the end of the process.
//
// Only the calling goroutine is guarded, so f must not leave the reading to
// others. Nothing guards the goroutines in which Badger writes to a volume,
// flushes its memory tables and merges its tables: there a fault ends the process,
// and the next start verifies what was being written.
//
// What f has locked inside of Badger may stay locked after a panic, see
// [volumes.read].
func guard(f func() error) (err error) {
	catchAssertions()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch p := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }:
			err = &errUnreadable{reason: "a page of a mapped file cannot be read: the disk reports an error, or the file was cut", fault: true}
		default:
			err = &errUnreadable{reason: fmt.Sprintf("it cannot be read: %.200v", p), stack: debug.Stack()}
		}
	}()
	return f()
}

// guarded is guard for the files in a folder that nobody has open: a panic over
// them is damage.
func guarded(dir string, f func() error) error {
	err := guard(f)
	if broken, ok := err.(*errUnreadable); ok {
		return damage(dir, "", broken)
	}
	return err
}

// assertions passes lines on to where the standard logger wrote before. Badger
// ends the process over a failed assertion with [log.Fatalf]; under a guard that is
// a panic instead.
type assertions struct{ io.Writer }

func (a assertions) Write(line []byte) (int, error) {
	if guardedFatal() {
		panic(strings.TrimSpace(string(line)))
	}
	return a.Writer.Write(line)
}

// guardedFatal says whether a guard calls who is about to end the process.
func guardedFatal() bool {
	pcs := make([]uintptr, 256)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	fatal := false
	for {
		frame, more := frames.Next()
		fatal = fatal || strings.HasPrefix(frame.Function, "log.Fatal")
		if fatal && strings.HasSuffix(frame.Function, "/store.guard") {
			return true
		}
		if !more {
			return false
		}
	}
}

var catching sync.Mutex

// catchAssertions puts [assertions] before the output of the standard logger,
// anew where somebody has replaced that.
func catchAssertions() {
	if _, ok := log.Writer().(assertions); ok {
		return
	}
	catching.Lock()
	defer catching.Unlock()
	if w := log.Writer(); !isAssertions(w) {
		log.SetOutput(assertions{w})
	}
}

func isAssertions(w io.Writer) bool { _, ok := w.(assertions); return ok }

// suspectFile says, in the folder of a volume that is not sealed, what somebody met
// there. What is sealed is verified at once.
const suspectFile = "suspect"

// read runs f, which reads a volume that the caller has acquired or owns. Where that
// ends in a panic, the error is an [*ErrDamagedVolume], and the volume is never
// closed any more: Badger's lock on a file may still be held, and closing would wait
// for it for ever. It stays open beside those that [Config.MaxOpenSealed] counts
// until the process ends, so that no volume is left behind twice.
//
// A sealed volume is verified then, and set aside if it is damaged; others go on to
// be read. One that is written cannot be closed, and cannot be left open either: the
// store fails, and the next start verifies all of it.
func (r *volumes) read(v *volume, f func() error) error {
	err := guard(f)
	broken, ok := err.(*errUnreadable)
	if !ok {
		return err
	}
	err = damage(v.path, "", broken)
	r.mu.Lock()
	first, sealed, written := !v.unreadable, v.sealed, v.mode == writable
	if first {
		v.unreadable = true
		r.uncount(v)
	}
	r.mu.Unlock()
	if !first {
		return err
	}
	r.cfg.Logger.Error("a volume cannot be read", "volume", filepath.Base(v.path), "reason", broken.reason, "stack", string(broken.stack))
	if !sealed {
		r.suspect(v, broken.reason)
	}
	r.doubted(v, written, err)
	return err
}

// suspect has a volume that is not sealed verified before it is sealed, or by the
// next process that opens it: the checksums that are recorded when it is closed
// would be those of what is damaged.
func (r *volumes) suspect(v *volume, reason string) {
	path := filepath.Join(v.path, suspectFile)
	if isSuspect(v.path) {
		return
	}
	if err := datadir.Replace(path, []byte(reason+"\n")); err != nil {
		r.cfg.Logger.Error("nothing tells the next start to verify a volume", "volume", filepath.Base(v.path), "error", err)
	}
}

func isSuspect(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, suspectFile))
	return err == nil
}

// clearSuspect verifies the values of a suspect volume, after all else has been, and takes
// the suspicion away.
func clearSuspect(dir string, unfinished bool) error {
	if err := verifyValueLogs(dir, unfinished); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, suspectFile)); err != nil {
		return err
	}
	return datadir.Sync(dir)
}

// errStuck refuses what needs a volume to be closed that cannot be.
func errStuck(v *volume) error {
	return fmt.Errorf("volume %d could not be read and cannot be closed; the next start verifies it", v.number)
}
