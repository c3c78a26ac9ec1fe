// Command runnel is a distributed commit log: it starts the services of a
// cluster, and it is the command line client to one.
package main

import (
	"os"
	"runtime/debug"

	"github.com/runnel-mesh/runnel/services/runnel/internal/cli"
)

// garbage is how much garbage there may be before it is collected, in percent of what
// is alive. Most of what a server has in memory is there for long, a stream for each
// member of a group, say: with Go's 100 percent a quarter more memory is taken for less
// than 1 % of the processor. GOGC says otherwise.
const garbage = 75

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	// Without it the program does in this process what is better done in another.
	executable, _ := os.Executable()
	ctx, stop := cli.UntilInterrupted()
	code := cli.Run(ctx, cli.Environment{
		Program:    os.Args[0],
		Executable: executable,
		Args:       os.Args[1:],
		Stdin:      os.Stdin,
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		Getenv:     os.Getenv,
	})
	stop()
	os.Exit(code)
}
