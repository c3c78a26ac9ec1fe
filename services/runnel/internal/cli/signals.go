package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// exitInterrupted is what shells report of a program that SIGINT has ended.
const exitInterrupted = 130

// UntilInterrupted returns a context that ends at the first SIGINT or SIGTERM.
// The second one ends the process at once. It also turns a write to a closed
// pipe from a signal into an error. Stop gives the signals back; it must be
// called once.
func UntilInterrupted() (ctx context.Context, stop func()) {
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 2) // never closed: signal.Stop ends the sending
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)

	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{}) // closed by stop
	var watch sync.WaitGroup
	watch.Go(func() {
		for first := true; ; first = false {
			select {
			case <-signals:
				if !first {
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
