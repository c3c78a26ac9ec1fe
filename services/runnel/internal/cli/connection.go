package cli

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// firstNotice is after how long of trying the person hears of it.
const firstNotice = time.Second

const (
	minRetryPause = 50 * time.Millisecond
	maxRetryPause = 500 * time.Millisecond
)

// connect returns a client of the cluster at --bootstrap. It does no I/O.
func (p *program) connect(command *cobra.Command) (*runnel.Client, error) {
	if text := p.Getenv(bootstrapEnvVar); text != "" && !command.Flags().Changed("bootstrap") {
		if _, err := parseAddresses(text); err != nil {
			return nil, usagef("bad value %q in the environment variable %s: %v", text, bootstrapEnvVar, err)
		}
	}
	logger := slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return runnel.Config{Bootstrap: p.bootstrap.value, Logger: logger}.NewClient()
}

// persist makes a call that may be repeated until it succeeds, fails for good,
// or the program's patience is at its end, in which case it returns the last error.
func (p *program) persist(ctx context.Context, call func(context.Context) error) error {
	return p.persistIf(ctx, passes, call)
}

func (p *program) persistIf(ctx context.Context, again func(error) bool, call func(context.Context) error) error {
	began := time.Now()
	noticed := false
	for pause := minRetryPause; ; pause = min(2*pause, maxRetryPause) {
		err := call(ctx)
		if err == nil || ctx.Err() != nil || !again(err) {
			return err
		}
		waited := time.Since(began)
		if waited+pause > p.patience {
			return err
		}
		if !noticed && waited >= firstNotice {
			noticed = true
			p.notef("waiting for the cluster (%s)", waitingFor(err))
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// waitingFor says in a few words what keeps a command waiting.
func waitingFor(err error) string {
	if e, ok := errors.AsType[*runnel.BootstrapError](err); ok {
		return attempts(e)
	}
	return sentence(err)
}
