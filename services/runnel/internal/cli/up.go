package cli

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/services/allinone"
	"github.com/runnel-mesh/runnel/services/metadata"
)

const upHelp = `Start a whole cluster in this process: an embedded etcd, the metadata service,
the storage service and the coordinator service, on one port.

It needs nothing else, keeps its data over restarts and crashes, and ends with
Ctrl-C; a second Ctrl-C ends it at once, and loses nothing that was acknowledged.
Logs go to the standard error: warnings and worse, unless --log-level says
otherwise.`

const upExample = `  runnel up
  runnel up --data-dir /tmp/runnel --listen 127.0.0.1:9090
  runnel up --listen :7070 --advertise log.example.org:7070`

// upOptions are the flags of up.
type upOptions struct {
	dataDir           *string
	listen, advertise *parsed[string]
	minFree           *parsed[int64]
	acceptLoss        *parsedList[topicPartitions]
	offsetsPartitions *parsed[int64]
	log               *logFlags
}

func (p *program) upCommand() *cobra.Command {
	var o upOptions
	command := &cobra.Command{
		Use:               "up",
		Short:             "Start a whole cluster in one process",
		Long:              upHelp,
		Example:           upExample,
		GroupID:           groupServe,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := command.Flags()
	flags.SortFlags = false
	o.dataDir = dirFlag(flags, defaultDataDir(p.Getenv))
	o.listen = listenFlag(flags, "listen", defaultAddress, "address to listen on; port 0 takes a free one")
	o.advertise = advertiseFlag(flags, "advertise", "address at which clients reach --listen, where that differs")
	o.minFree = minFreeFlag(flags)
	o.acceptLoss = acceptLossFlag(flags)
	o.offsetsPartitions = offsetsPartitionsFlag(flags, metadata.DefaultConfig())
	o.log = newLogFlags(command, "warn")
	command.RunE = func(c *cobra.Command, _ []string) error {
		if *o.dataDir == "" {
			return usagef("--data-dir is empty")
		}
		return p.up(c.Context(), &o)
	}
	return command
}

func (p *program) up(ctx context.Context, o *upOptions) error {
	p.warnOpen(o.listen.value)
	if anyHost(o.listen.value) && o.advertise.text == "" {
		p.notef("warning: clients are told to come to 127.0.0.1, which is of no use on other machines; --advertise HOST:PORT tells them better")
	}
	config := allinone.DefaultConfig()
	config.DataDir = absolute(*o.dataDir)
	config.Listen = o.listen.value
	config.Advertise = o.advertise.value
	config.Metadata.OffsetsPartitions = int(o.offsetsPartitions.value)
	config.Storage.MinFreeBytes = o.minFree.value
	losses, err := acceptedLosses(o.acceptLoss)
	if err != nil {
		return err
	}
	config.Storage.AcceptLosses = losses
	config.Storage.CheckVolume = p.checkVolume()
	config.Logger = p.logger(o.log)
	cluster, err := allinone.New(config)
	if err != nil {
		return err
	}

	served := make(chan error, 1) // takes the cluster's one result
	go func() { served <- cluster.Run(ctx) }()
	if p.awaitUp(ctx, cluster.Ready) == nil {
		fmt.Fprint(p.Stdout, welcome(cluster.DataDir(), cluster.Address(), p.nextSteps(findInvocation(p.Program), cluster.Address())))
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	p.notef("stopping; once more ends it at once")
	return <-served
}

// awaitUp waits for the cluster, and tells the person if that takes long.
func (p *program) awaitUp(ctx context.Context, ready func(context.Context) error) error {
	told := make(chan struct{})
	notice := time.AfterFunc(readyNotice, func() {
		defer close(told)
		p.notef("still starting: after a crash the data is checked first, which takes a while if there is much of it")
	})
	err := ready(ctx)
	if !notice.Stop() {
		<-told
	}
	return err
}

// welcome is what a person sees when the cluster is up.
func welcome(dataDir, address string, steps []string) string {
	return fmt.Sprintf(`Runnel is up.

  data     %s
  address  %s

Try in another terminal:

  %s

Ctrl-C stops it; the data stays.
`, dataDir, address, strings.Join(steps, "\n  "))
}

// nextSteps returns three commands that work, in their order and more than once,
// when they are pasted into a shell.
func (p *program) nextSteps(how invocation, address string) []string {
	self := how.command()
	if reached := reachedFromHere(address); reached != p.defaultBootstrap() {
		self += " --bootstrap " + shellWord(reached)
	}
	return []string{
		fmt.Sprintf(`echo "hello world" | %s produce greetings`, self),
		fmt.Sprintf(`%s consume greetings --from-beginning --exit-at-end`, self),
		fmt.Sprintf(`%s topics describe greetings`, self),
	}
}

// reachedFromHere returns the address for clients on this machine: any host is
// reached at loopback too.
func reachedFromHere(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if anyHost(address) {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
