// Command runnel is a distributed commit log: it starts the services of a
// cluster, and it is the command line client to one.
package main

import (
	"os"
	"sync"

	"github.com/runnel-mesh/runnel/services/runnel/internal/cli"
)

func main() {
	// Without it the program does in this process what is better done in another.
	executable, _ := os.Executable()
	ctx, stop := cli.UntilInterrupted()
	var pacing sync.WaitGroup
	if os.Getenv("GOGC") == "" {
		pacing.Go(func() { pace(ctx) })
	}
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
	pacing.Wait()
	os.Exit(code)
}
