package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/services/internal/app"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

// readyNotice is how often the log tells what keeps a node from being ready.
const readyNotice = 5 * time.Second

// flushTimeout bounds what telemetry still sends when the process ends.
const flushTimeout = 3 * time.Second

// nodeOptions are the flags that all services have when they run in a process of
// their own.
type nodeOptions struct {
	dataDir                  *string
	listen, peerListen       *parsed[string]
	advertise, advertisePeer *parsed[string]
	nodeID                   *parsed[int64]
	log                      *logFlags
}

// newNodeOptions adds the flags. The data directory is beside that of up and not
// inside: they belong to different clusters.
func (p *program) newNodeOptions(command *cobra.Command, name, listen, peerListen string) *nodeOptions {
	flags := command.Flags()
	return &nodeOptions{
		dataDir:       dirFlag(flags, filepath.Clean(defaultDataDir(p.Getenv)+"-"+name)),
		listen:        listenFlag(flags, "listen", listen, "address to listen on for clients"),
		peerListen:    listenFlag(flags, "peer-listen", peerListen, "address to listen on for other nodes of the cluster"),
		advertise:     advertiseFlag(flags, "advertise", "address at which clients reach --listen, where that differs"),
		advertisePeer: advertiseFlag(flags, "advertise-peer", "address at which other nodes reach --peer-listen, where that differs"),
		nodeID:        newFlag(flags, "node-id", "", "N", "", "number of the node, from 1 (default: the one it had before, or a new one)", integerBetween(1, 1<<31-1)),
		log:           newLogFlags(command, "info"),
	}
}

// check refuses addresses that others could not come to.
func (o *nodeOptions) check() error {
	if *o.dataDir == "" {
		return usagef("--data-dir is empty")
	}
	for _, a := range []struct {
		listen, advertise         *parsed[string]
		listenName, advertiseName string
		who                       string
	}{
		{o.listen, o.advertise, "--listen", "--advertise", "clients"},
		{o.peerListen, o.advertisePeer, "--peer-listen", "--advertise-peer", "other nodes"},
	} {
		_, port, _ := net.SplitHostPort(a.listen.value) // checked when it was parsed
		if a.advertise.text == "" && (anyHost(a.listen.value) || port == "0") {
			return usagef("%s %s does not say where %s reach this node: add %s HOST:PORT", a.listenName, a.listen.value, a.who, a.advertiseName)
		}
	}
	return nil
}

// service is a service as its process runs it.
type service interface {
	Register(public, peer *connect.Server)
	Run(ctx context.Context) error
	Ready(ctx context.Context) error
	Drain()
}

// leaver is a service that gives what it leads to other nodes before it stops.
type leaver interface {
	Leave(ctx context.Context)
}

// serveNode runs one service until ctx ends: its public face on one port, that
// for other nodes on another. build gets the means of the process, and
// the health that the service may add to.
func (p *program) serveNode(ctx context.Context, name string, o *nodeOptions, build func(*slog.Logger, *telemetry.Telemetry, *rpc.Health) (service, error)) (err error) {
	p.warnOpen(o.listen.value, o.peerListen.value)
	logger := p.logger(o.log)
	// The ports first: they are what most often is wrong.
	public, err := listen(ctx, "--listen", o.listen.value)
	if err != nil {
		return err
	}
	defer public.Close() // again; the server closes it first
	peer, err := listen(ctx, "--peer-listen", o.peerListen.value)
	if err != nil {
		return err
	}
	defer peer.Close()
	tel, err := telemetry.Setup(ctx, "runnel-"+name, logger)
	if err != nil {
		return err
	}
	defer func() {
		flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if err := tel.Shutdown(flushing); err != nil {
			logger.Warn("the last traces and metrics could not be exported", "error", err)
		}
	}()

	logger.Info("the node starts", "service", name, "listen", public.Addr().String(), "peer_listen", peer.Addr().String(), "data", absolute(*o.dataDir))
	health := rpc.NewHealth()
	s, err := build(logger, tel, health)
	if err != nil {
		return err
	}
	options := rpc.ServerOptions{Logger: logger, Telemetry: tel}
	publicServer, peerServer := rpc.NewServer(options), rpc.NewServer(options)
	s.Register(publicServer, peerServer)
	for _, name := range serviceNames(publicServer) {
		health.SetServing(name, false)
	}
	component := app.Component{Name: name, Run: s.Run, Drain: s.Drain, Ready: func(ctx context.Context) error {
		return awaitReady(ctx, logger, name, s.Ready)
	}}
	if l, ok := s.(leaver); ok {
		component.Leave = l.Leave
	}
	err = app.New(logger,
		component,
		app.Component{Name: "server for other nodes", Run: func(ctx context.Context) error {
			return rpc.Serve(ctx, rpc.ServeOptions{Listener: peer, Server: peerServer, Logger: logger, Telemetry: tel})
		}},
		app.Component{Name: "server for clients", Run: func(ctx context.Context) error {
			for _, name := range append(serviceNames(publicServer), "") {
				health.SetServing(name, true)
			}
			logger.Info("the node is ready", "service", name, "address", public.Addr().String())
			return rpc.Serve(ctx, rpc.ServeOptions{
				Listener: public, Server: publicServer, Health: health, Reflection: true,
				Handlers: map[string]http.Handler{"/metrics": tel.MetricsHandler()},
				Logger:   logger, Telemetry: tel,
			})
		}},
	).Run(ctx)
	if err == nil {
		logger.Info("the node has stopped", "service", name)
	}
	return err
}

// awaitReady waits for a service, and logs now and then what the service says it
// is waiting for.
func awaitReady(ctx context.Context, logger *slog.Logger, name string, ready func(context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, readyNotice)
		err := ready(limited)
		expired := limited.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil || !expired {
			return err
		}
		logger.Warn("the node is not ready yet", "service", name, "reason", err)
	}
}

// serviceNames returns the names of the services that a server has.
func serviceNames(server *connect.Server) []string {
	var names []string
	for spec := range server.Specs() {
		name, _, _ := strings.Cut(strings.TrimPrefix(spec.Procedure, "/"), "/")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// listen takes a port, and says what is wrong with it in terms of its flag.
func listen(ctx context.Context, flag, address string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return listener, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, failf("another program listens on %s already; stop it, or choose another port with %s", address, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, failf("this machine has no address %s; choose one that it has with %s", address, flag)
	}
	return nil, &failure{fmt.Sprintf("cannot listen on %s; choose another address with %s: %v", address, flag, errors.Unwrap(err)), err}
}
