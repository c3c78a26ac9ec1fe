package cli

import (
	"context"
	"log/slog"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
	"github.com/runnel-mesh/runnel/services/storage"
)

const storageHelp = `Start a storage node: it keeps the records, and serves producers and consumers.

It knows the metadata nodes only, by their peer addresses, and never talks to
etcd. It registers with them and then leads the partitions that they give it.

The commands below it look at the data directory of a node that is stopped.`

func (p *program) storageCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "storage",
		Short: "Start a storage node",
		Long:  storageHelp,
		Example: `  runnel storage --metadata 127.0.0.1:7071
  runnel storage --metadata meta-1:7071,meta-2:7071 --data-dir /var/lib/runnel \
      --listen :7080 --advertise log-1:7080 --peer-listen :7081 --advertise-peer log-1:7081`,
		GroupID: groupServe,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	command.AddCommand(p.storageInspectCommand(), p.storageVerifyCommand(), p.checkVolumeCommand())
	flags := command.Flags()
	flags.SortFlags = false
	defaults := storage.DefaultConfig()
	metadata := newFlag(flags, "metadata", "", "ADDR[,ADDR]", "", "peer addresses of metadata nodes; required", parseAddresses)
	o := p.newNodeOptions(command, "storage", defaults.Listen, defaults.PeerListen)
	minFree := minFreeFlag(flags)
	acceptLoss := acceptLossFlag(flags)
	command.RunE = func(c *cobra.Command, _ []string) error {
		if metadata.text == "" {
			return usagef("--metadata is needed, such as --metadata 127.0.0.1:7071")
		}
		if err := o.check(); err != nil {
			return err
		}
		losses, err := acceptedLosses(acceptLoss)
		if err != nil {
			return err
		}
		return p.storage(c.Context(), o, metadata.value, minFree.value, losses)
	}
	return command
}

func (p *program) storage(ctx context.Context, o *nodeOptions, metadata []string, minFree int64, losses map[string][]int32) error {
	config := storage.DefaultConfig()
	config.DataDir = absolute(*o.dataDir)
	config.Listen, config.Advertise = o.listen.value, o.advertise.value
	config.PeerListen, config.AdvertisePeer = o.peerListen.value, o.advertisePeer.value
	config.NodeID = cluster.NodeID(o.nodeID.value)
	config.MinFreeBytes, config.AcceptLosses = minFree, losses
	config.CheckVolume = p.checkVolume()
	if err := config.Validate(); err != nil {
		return err
	}
	pool := transport.NewPool(transport.Options{})
	defer pool.Close()
	var targets []connect.Transport
	for _, address := range metadata {
		targets = append(targets, pool.Transport(address, transport.Control))
	}
	peers := func(address string) connect.Transport { return pool.Transport(address, transport.Replicate) }
	return p.serveNode(ctx, "storage", o, func(logger *slog.Logger, tel *telemetry.Telemetry, health *rpc.Health) (service, error) {
		return storage.New(config, storage.Deps{Metadata: rpc.Failover(targets...), Peers: peers, Logger: logger, Telemetry: tel, Health: health}), nil
	})
}
