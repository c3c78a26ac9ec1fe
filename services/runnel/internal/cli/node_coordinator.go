package cli

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/coordinator"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
)

const coordinatorHelp = `Start a coordinator node: it shares partitions out among the members of consumer
groups and keeps how far each group has come.

It knows the metadata nodes only, by their peer addresses. Any number of
coordinators share the groups of a cluster; when one stops, the others take its
groups over. What they know lies in the topic __consumer_offsets, so they have no
data of their own but the identity of the node.`

func (p *program) coordinatorCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "coordinator",
		Short: "Start a coordinator node",
		Long:  coordinatorHelp,
		Example: `  runnel coordinator --metadata 127.0.0.1:7071
  runnel coordinator --metadata meta-1:7071,meta-2:7071 --data-dir /var/lib/runnel \
      --listen :7090 --advertise groups-1:7090 --peer-listen :7091 --advertise-peer groups-1:7091`,
		GroupID:           groupServe,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := command.Flags()
	flags.SortFlags = false
	defaults := coordinator.DefaultConfig()
	metadata := newFlag(flags, "metadata", "", "ADDR[,ADDR]", "", "peer addresses of metadata nodes; required", parseAddresses)
	o := p.newNodeOptions(command, "coordinator", defaults.Listen, defaults.PeerListen)
	members := newFlag(flags, "max-group-members", "", "N", strconv.Itoa(defaults.MaxGroupMembers),
		"how many members a group may have", integerBetween(1, 100_000))
	retention := newFlag(flags, "offsets-retention", "", "DURATION", defaults.OffsetsRetention.String(),
		"how long the offsets of a group without members are kept; 0s for ever", durationBetween(0, 100*365*24*time.Hour))
	least := newFlag(flags, "min-session-timeout", "", "DURATION", defaults.MinSessionTimeout.String(),
		"shortest session timeout that members may ask for", durationBetween(defaults.MinSessionTimeout, defaults.MaxSessionTimeout))
	most := newFlag(flags, "max-session-timeout", "", "DURATION", defaults.MaxSessionTimeout.String(),
		"longest session timeout that members may ask for", durationBetween(defaults.MinSessionTimeout, defaults.MaxSessionTimeout))
	command.RunE = func(c *cobra.Command, _ []string) error {
		if metadata.text == "" {
			return usagef("--metadata is needed, such as --metadata 127.0.0.1:7071")
		}
		if err := o.check(); err != nil {
			return err
		}
		if most.value < least.value {
			return usagef("--max-session-timeout %v is less than --min-session-timeout %v", most.value, least.value)
		}
		return p.coordinator(c.Context(), o, metadata.value, func(config *coordinator.Config) {
			config.MaxGroupMembers, config.OffsetsRetention = int(members.value), retention.value
			config.MinSessionTimeout, config.MaxSessionTimeout = least.value, most.value
		})
	}
	return command
}

func (p *program) coordinator(ctx context.Context, o *nodeOptions, metadata []string, settings func(*coordinator.Config)) error {
	config := coordinator.DefaultConfig()
	config.DataDir = absolute(*o.dataDir)
	config.Listen, config.Advertise = o.listen.value, o.advertise.value
	config.PeerListen, config.AdvertisePeer = o.peerListen.value, o.advertisePeer.value
	config.NodeID = cluster.NodeID(o.nodeID.value)
	settings(&config)
	if err := config.Validate(); err != nil {
		return err
	}
	pool := transport.NewPool(transport.Options{})
	defer pool.Close()
	var targets []connect.Transport
	for _, address := range metadata {
		targets = append(targets, pool.Transport(address, transport.Control))
	}
	dial := func(class transport.Class) func(string) connect.Transport {
		return func(address string) connect.Transport { return pool.Transport(address, class) }
	}
	return p.serveNode(ctx, "coordinator", o, func(logger *slog.Logger, tel *telemetry.Telemetry, _ *rpc.Health) (service, error) {
		return coordinator.New(config, coordinator.Deps{
			Metadata: rpc.Failover(targets...), Storage: dial(transport.Consume), Peers: dial(transport.Produce), Logger: logger, Telemetry: tel,
		}), nil
	})
}
