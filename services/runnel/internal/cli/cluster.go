package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

const clusterDescribeHelp = `Describe the nodes of the cluster.

A live node renews its lease; a fenced one has not been heard for a while, and leads
no partition until it is; one that is leaving is about to stop, and others lead what
it led, where they can. EPOCH grows with each start of a node. OFFSETS PARTITIONS is
how many of the partitions of __consumer_offsets, over which consumer groups are
shared, a coordinator has, of how many there are; there are none before the first
group is used. The controller is the metadata node that elects leaders. Any node tells
what it knows; a warning says so where no controller answers, since then nobody knows
better.

With -o json the cluster is an object with the fields id, version, controller
(null while there is none), offsets_partitions and nodes (id, role, address, epoch,
state, since, coordinated_partitions).`

func (p *program) clusterCommand() *cobra.Command {
	return commandGroup("cluster", "Look at the nodes of the cluster", `Look at the nodes of the cluster.`,
		`  runnel cluster describe`, p.clusterDescribeCommand())
}

func (p *program) clusterDescribeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "describe",
		Short: "Describe the nodes of the cluster",
		Long:  clusterDescribeHelp,
		Example: `  runnel cluster describe
  runnel cluster describe -o json --bootstrap log-1:7070 | jq '.nodes[] | select(.state == "fenced")'`,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := p.connect(c)
			if err != nil {
				return err
			}
			defer client.Close()
			var description runnel.ClusterDescription
			err = p.persist(c.Context(), func(ctx context.Context) (err error) {
				description, err = client.Admin().DescribeCluster(ctx)
				return err
			})
			if err != nil {
				return err
			}
			header, nodes := clusterTables(description)
			if err := p.print(newClusterObject(description), header, nodes); err != nil {
				return err
			}
			p.warnStale(c.Context(), client)
			return nil
		},
	}
}

// warnStale warns where nobody decides about the cluster at the moment: what nodes
// tell of it is what they have heard last.
func (p *program) warnStale(ctx context.Context, client *runnel.Client) {
	limited, cancel := context.WithTimeout(ctx, obstaclePatience)
	defer cancel()
	// Only the controller answers, and only while it holds its lease in etcd.
	_, err := client.Admin().ElectLeaders(limited, runnel.ElectionSpec{ValidateOnly: true})
	if err != nil && ctx.Err() == nil {
		p.notef("warning: this may be out of date, since the cluster cannot change at the moment: %s", sentence(err))
	}
}

// clusterObject is the cluster as -o json prints it.
type clusterObject struct {
	ID         string `json:"id"`
	Version    int64  `json:"version"`
	Controller *int32 `json:"controller"`
	// OffsetsPartitions is 0 before the first group is used.
	OffsetsPartitions int          `json:"offsets_partitions"`
	Nodes             []nodeObject `json:"nodes"`
}

type nodeObject struct {
	ID      int32  `json:"id"`
	Role    string `json:"role"`
	Address string `json:"address"`
	Epoch   int64  `json:"epoch"`
	State   string `json:"state"`
	Since   string `json:"since"`
	// Coordinated is 0 for nodes of other roles than coordinator.
	Coordinated int `json:"coordinated_partitions"`
}

func newClusterObject(d runnel.ClusterDescription) clusterObject {
	o := clusterObject{ID: d.ID, Version: d.Version, Controller: known(d.Controller), OffsetsPartitions: d.OffsetsPartitions, Nodes: make([]nodeObject, len(d.Nodes))}
	for i, n := range d.Nodes {
		o.Nodes[i] = nodeObject{ID: n.ID, Role: n.Role, Address: n.Address, Epoch: n.Epoch, State: nodeState(n), Since: since(n), Coordinated: n.Coordinated}
	}
	return o
}

func clusterTables(d runnel.ClusterDescription) (header, nodes *table) {
	header = newTable()
	header.row("Cluster:", d.ID)
	header.row("Controller:", numberOr(d.Controller, "none"))
	nodes = newTable("NODE", "ROLE", "ADDRESS", "EPOCH", "STATE", "SINCE", "OFFSETS PARTITIONS")
	for _, n := range d.Nodes {
		groups := "-"
		if n.Role == "coordinator" {
			groups = fmt.Sprintf("%d of %d", n.Coordinated, d.OffsetsPartitions)
		}
		nodes.row(n.ID, n.Role, n.Address, n.Epoch, nodeState(n), since(n), groups)
	}
	return header, nodes
}

func nodeState(n runnel.Node) string {
	switch {
	case n.Fenced:
		return "fenced"
	case n.Leaving:
		return "leaving"
	}
	return "live"
}

func since(n runnel.Node) string { return n.Since.UTC().Truncate(time.Second).Format(time.RFC3339) }

func plainNumber[T int32 | int64](n T) string { return strconv.FormatInt(int64(n), 10) }
