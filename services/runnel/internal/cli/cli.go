// Package cli is the command line of Runnel: the commands that start services
// and the commands that talk to a cluster through the SDK.
//
// The package reads its arguments, streams and variables from an [Environment]
// only, so that a test runs a command as a person would, without a process.
package cli

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// The exit codes, as the root command's help states them.
const (
	exitSuccess = 0
	exitFailure = 1
	exitUsage   = 2
)

// Environment is what a command has of the world. Run owns none of it.
type Environment struct {
	// Program is the name under which the program was started (argv[0]).
	Program string
	// Executable is the path with which the program can start itself; empty where it
	// does not.
	Executable string
	// Args are the arguments that follow it.
	Args []string
	// Stdin is read by produce, and by the child process of a storage node. A read
	// that blocks outlives the command when that is interrupted.
	Stdin io.Reader
	// Stdout takes what was asked for, Stderr everything else.
	Stdout, Stderr io.Writer
	// Getenv returns a variable's value, or "" if it is not set.
	Getenv func(string) string
}

// program is one run of the command line.
type program struct {
	Environment
	// stderr is Stderr for goroutines, such as those of loggers.
	stderr    *lockedWriter
	bootstrap *parsed[[]string]
	output    *parsed[string]
	// patience is how long a command tries to reach a cluster that does not
	// answer.
	patience time.Duration
}

// defaultPatience is longer than a restart takes, and short enough for a person
// who has mistyped an address.
const defaultPatience = 8 * time.Second

// Run executes the command that env.Args asks for and returns the exit code of
// the process. The end of ctx is how a person interrupts the command.
func Run(ctx context.Context, env Environment) int {
	return newProgram(env).run(ctx)
}

func newProgram(env Environment) *program {
	return &program{Environment: env, stderr: &lockedWriter{w: env.Stderr}, patience: defaultPatience}
}

// lockedWriter is a writer that goroutines share.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func (p *program) run(ctx context.Context) int {
	root := p.rootCommand()
	root.SetArgs(p.Args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitSuccess
	}
	return p.fail(command, err)
}

// fail tells the person what went wrong and returns the exit code.
func (p *program) fail(command *cobra.Command, err error) int {
	if isClosedPipe(err) {
		// The reader of the output has seen enough, as in `runnel consume t | head`.
		return exitSuccess
	}
	usage, wrongUsage := asUsageError(command, err)
	if wrongUsage {
		if command.Name() == helpName {
			command = command.Root()
		}
		p.complain("%s; see \"%s --help\"", usage.message, command.CommandPath())
		return exitUsage
	}
	if !errors.Is(err, errReported) {
		p.complain("%s", sentence(err))
	}
	return exitFailure
}

// closedPipe is a write to an output whose reader is gone.
type closedPipe struct{ error }

func (e closedPipe) Unwrap() error { return e.error }

func isClosedPipe(err error) bool {
	_, closed := errors.AsType[closedPipe](err)
	return closed
}

// outputError says what a failed write to the standard output means.
func outputError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrClosedPipe):
		return closedPipe{err}
	}
	return &failure{"cannot write to the standard output: " + err.Error(), err}
}
