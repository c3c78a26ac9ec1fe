package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/telemetry"
	"github.com/runnel-mesh/runnel/services/metadata"
)

const metadataHelp = `Start a metadata node: it keeps the state of the cluster in etcd, and one of all
metadata nodes elects the leaders of partitions.

Storage nodes find it at its peer address. Any number of metadata nodes may share
one etcd; they have no data of their own but the identity of the node.`

func (p *program) metadataCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "metadata",
		Short: "Start a metadata node",
		Long:  metadataHelp,
		Example: `  runnel metadata --etcd-endpoints 127.0.0.1:2379
  runnel metadata --etcd-endpoints etcd-1:2379,etcd-2:2379,etcd-3:2379 \
      --listen :7070 --advertise meta-1:7070 --peer-listen :7071 --advertise-peer meta-1:7071`,
		GroupID:           groupServe,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := command.Flags()
	flags.SortFlags = false
	defaults := metadata.DefaultConfig()
	endpoints := newFlag(flags, "etcd-endpoints", "", "ADDR[,ADDR]", "", "where etcd listens for clients, host:port or URLs; required", parseEndpoints)
	o := p.newNodeOptions(command, "metadata", defaults.Listen, defaults.PeerListen)
	balance := newFlag(flags, "balance-interval", "", "DURATION", defaults.BalanceInterval.String(),
		"how often leadership goes back to preferred replicas that have been in sync for as long; 0s for never", durationBetween(0, 24*time.Hour))
	factor := newFlag(flags, "max-replication-factor", "", "R", strconv.Itoa(defaults.MaxReplicationFactor),
		"highest replication factor of new topics; the same on all metadata nodes", integerBetween(1, 50))
	offsets := offsetsPartitionsFlag(flags, defaults)
	command.RunE = func(c *cobra.Command, _ []string) error {
		if endpoints.text == "" {
			return usagef("--etcd-endpoints is needed, such as --etcd-endpoints 127.0.0.1:2379")
		}
		if err := o.check(); err != nil {
			return err
		}
		return p.metadata(c.Context(), o, endpoints.value, func(config *metadata.Config) {
			config.BalanceInterval, config.MaxReplicationFactor = balance.value, int(factor.value)
			config.OffsetsPartitions = int(offsets.value)
		})
	}
	return command
}

func offsetsPartitionsFlag(flags *pflag.FlagSet, defaults metadata.Config) *parsed[int64] {
	return newFlag(flags, "offsets-partitions", "", "N", strconv.Itoa(defaults.OffsetsPartitions),
		"partitions of the topic of consumer groups, over which their coordinators share them; fixed for good once the first group is used", integerBetween(1, int64(defaults.MaxPartitionsPerTopic)))
}

// parseEndpoints accepts what etcd's own tools accept.
func parseEndpoints(text string) ([]string, error) {
	var endpoints []string
	for endpoint := range strings.SplitSeq(text, ",") {
		endpoint = strings.TrimSpace(endpoint)
		scheme, rest, hasScheme := strings.Cut(endpoint, "://")
		if !hasScheme {
			scheme, rest = "http", endpoint
		}
		if scheme == "https" {
			return nil, errors.New("must not be https: TLS to etcd is not supported yet")
		}
		if err := checkAddress(rest); err != nil || scheme != "http" {
			return nil, errors.New("must look like host:port or http://host:port, such as 127.0.0.1:2379")
		}
		endpoints = append(endpoints, endpoint)
	}
	return endpoints, nil
}

func (p *program) metadata(ctx context.Context, o *nodeOptions, endpoints []string, settings func(*metadata.Config)) (err error) {
	config := metadata.DefaultConfig()
	config.DataDir = absolute(*o.dataDir)
	config.Listen, config.Advertise = o.listen.value, o.advertise.value
	config.PeerListen, config.AdvertisePeer = o.peerListen.value, o.advertisePeer.value
	config.NodeID = cluster.NodeID(o.nodeID.value)
	settings(&config)
	if err := config.Validate(); err != nil {
		return err
	}
	etcd, err := metadata.DialEtcd(endpoints...)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := etcd.Close(); closeErr != nil && !errors.Is(closeErr, context.Canceled) {
			err = errors.Join(err, fmt.Errorf("close etcd client: %w", closeErr))
		}
	}()
	return p.serveNode(ctx, "metadata", o, func(logger *slog.Logger, tel *telemetry.Telemetry, _ *rpc.Health) (service, error) {
		return metadata.New(config, metadata.Deps{Etcd: etcd, Logger: logger, Telemetry: tel}), nil
	})
}
