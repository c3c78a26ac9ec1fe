package cli

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progressDelay is how long something must take before it is shown how far it
// is. The usual one is over by then.
const progressDelay = time.Second

// progress shows a person how much of something long has been read. It does
// nothing when nobody watches, or when the person types the input. It may be
// used concurrently.
type progress struct {
	out   io.Writer // nil if nobody watches
	doing string    // what is done with what is read
	total int64     // bytes; -1 if unknown
	began time.Time

	mu   sync.Mutex
	bar  *progressbar.ProgressBar // nil before there is something to show
	done int64
}

func (p *program) newProgress() *progress {
	if !isTerminal(p.Stderr) || isTerminal(p.Stdin) {
		return &progress{}
	}
	return &progress{out: p.stderr, doing: "sending", total: remainingBytes(p.Stdin), began: time.Now()}
}

// newProgressOf is newProgress for something else than the standard input.
func (p *program) newProgressOf(doing string) *progress {
	if !isTerminal(p.Stderr) {
		return &progress{}
	}
	return &progress{out: p.stderr, doing: doing, total: -1, began: time.Now()}
}

// remainingBytes returns how much is left of a regular file, -1 for anything
// else.
func remainingBytes(source io.Reader) int64 {
	file, ok := source.(*os.File)
	if !ok {
		return -1
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return -1
	}
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return -1
	}
	return max(info.Size()-at, 0)
}

// add notes that so many bytes have been read.
func (p *progress) add(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += bytes
	p.showLocked()
}

// set notes that so many bytes of a total, which may grow, have been read.
func (p *progress) set(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done, p.total = done, total
	if p.bar != nil {
		p.bar.ChangeMax64(total)
	}
	p.showLocked()
}

func (p *progress) showLocked() {
	if p.out == nil || time.Since(p.began) < progressDelay {
		return
	}
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(p.total,
			progressbar.OptionSetWriter(p.out),
			progressbar.OptionSetDescription(p.doing),
			progressbar.OptionShowBytes(true),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionUseANSICodes(true),
		)
	}
	// The last line may lack its line feed, and a file may grow.
	if p.total >= 0 {
		_ = p.bar.Set64(min(p.done, p.total))
		return
	}
	_ = p.bar.Set64(p.done)
}

// clear takes the bar away, for what is printed next; the next add brings it
// back.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}
