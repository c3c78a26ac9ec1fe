package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
)

// exitInterrupted is what shells report of a program that SIGINT has ended.
const exitInterrupted = 130

// lastWords is what a command says if a second interrupt ends the process.
type lastWords struct{ say atomic.Pointer[func()] }

// lastWordsKey is the key of the lastWords in a context of UntilInterrupted.
type lastWordsKey struct{}

// beforeExit has say called before a second interrupt ends the process, at any
// moment until undo is called.
func beforeExit(ctx context.Context, say func()) (undo func()) {
	words, ok := ctx.Value(lastWordsKey{}).(*lastWords)
	if !ok {
		return func() {}
	}
	words.say.Store(&say)
	return func() { words.say.Store(nil) }
}

// UntilInterrupted returns a context that ends at the first SIGINT or SIGTERM.
// The second one ends the process, once the command has said its last words. It also turns a write to a closed
// pipe from a signal into an error. Stop gives the signals back; it must be
// called once.
func UntilInterrupted() (ctx context.Context, stop func()) {
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 2) // never closed: signal.Stop ends the sending
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)

	words := new(lastWords)
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), lastWordsKey{}, words))
	stopped := make(chan struct{}) // closed by stop
	var watch sync.WaitGroup
	watch.Go(func() {
		for first := true; ; first = false {
			select {
			case <-signals:
				if !first {
					if say := words.say.Load(); say != nil {
						(*say)()
					}
					os.Exit(exitInterrupted)
				}
				cancel()
			case <-stopped:
				return
			}
		}
	})
	return ctx, func() {
		signal.Stop(signals)
		close(stopped)
		watch.Wait()
		cancel()
	}
}
