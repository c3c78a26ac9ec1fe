package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// whileRead returns a context that ends, with a closedPipe as its cause, when
// out is a pipe and its reader is gone: a command that waits for something to
// write would not learn it from a write. Stop must be called; it ends the
// goroutine that watches, and waits for it.
func whileRead(ctx context.Context, out io.Writer) (watched context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	giveUp := func() { cancel(nil) }
	file, ok := out.(*os.File)
	if !ok {
		return ctx, giveUp
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		return ctx, giveUp
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return ctx, giveUp
	}
	// Closing one end of a pipe of its own is what ends the wait for the other.
	stopped, stopper, err := os.Pipe()
	if err != nil {
		return ctx, giveUp
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		_ = raw.Control(func(fd uintptr) {
			if readerGone(int(fd), int(stopped.Fd())) {
				cancel(closedPipe{syscall.EPIPE})
			}
		})
	})
	return ctx, func() {
		_ = stopper.Close()
		watch.Wait()
		_ = stopped.Close()
		cancel(nil)
	}
}

// readerGone waits until the pipe that is written at out has no reader, which it
// reports as true, or the pipe that is read at stopped has no writer.
func readerGone(out, stopped int) bool {
	// POLLHUP is reported unasked, except by Darwin, which watches only a
	// descriptor for which something is asked.
	fds := []unix.PollFd{{Fd: int32(out), Events: unix.POLLHUP}, {Fd: int32(stopped), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || fds[1].Revents != 0:
			return false
		default:
			return fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		}
	}
}
