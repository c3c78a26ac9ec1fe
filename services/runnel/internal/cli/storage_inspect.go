package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/services/storage"
)

const storageInspectHelp = `Show what the data directory of a storage node holds: its volumes and, with
--partitions, its partitions and where their records lie. DIR is what the node was
given as --data-dir; of "runnel up" too.

The node must be stopped, and nothing in the directory is changed. LIVE is what
of a volume belongs to records that can still be read; the rest is given back
when the volume is cleaned or removed.

--verify reads everything and lists what is damaged; "runnel storage verify" does
only that, and says by its exit code whether something is.

With -o json an object is printed with the fields directory, node_id,
directory_id, cluster_id, clean, verified, volumes, partitions and damage. Sizes
are in bytes, times as in RFC 3339.`

const storageVerifyHelp = `Read everything in the data directory of a storage node, and list what is damaged:
the checksums of files, every record, every batch that can still be asked for, the
time index, and whether the states of partitions agree with what is there. What a
node has set aside before counts until its records are deleted. DIR is what the
node was given as --data-dir; of "runnel up" too.

The node must be stopped, and nothing in the directory is changed. A node that
starts on a damaged directory sets the damaged volumes aside and serves the rest.
After a crash of the machine, records of topics that are not synced may be missing
at the end: that is no damage.

The exit code is 1 if something is damaged. With -o json an object is printed with
the fields directory, sound, volumes, bytes and damage (an array of objects with
the fields volume, file, topic_id, partition, offset and reason; those that do
not apply are null).`

func (p *program) storageInspectCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "inspect DIR",
		Short: "Show what the data directory of a stopped node holds",
		Long:  storageInspectHelp,
		Example: `  runnel storage inspect /var/lib/runnel
  runnel storage inspect /var/lib/runnel --partitions
  runnel storage inspect /var/lib/runnel -o json | jq '.volumes[] | select(.live_bytes == 0)'`,
		Args:              arguments("DIR"),
		ValidArgsFunction: completeDirectory,
	}
	flags := command.Flags()
	flags.SortFlags = false
	partitions := flags.Bool("partitions", false, "also list the partitions and their spans; -o json always does")
	verify := flags.Bool("verify", false, "read everything, and list what is damaged")
	command.RunE = func(c *cobra.Command, args []string) error {
		found, err := p.inspect(c.Context(), args[0], *verify)
		if err != nil {
			return err
		}
		return p.print(newInspectionObject(found), inspectionTables(found, *partitions)...)
	}
	return command
}

func (p *program) storageVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify DIR",
		Short: "Look for damage in the data directory of a stopped node",
		Long:  storageVerifyHelp,
		Example: `  runnel storage verify /var/lib/runnel
  runnel storage verify /var/lib/runnel -o json | jq -r '.damage[].reason'`,
		Args:              arguments("DIR"),
		ValidArgsFunction: completeDirectory,
		RunE: func(c *cobra.Command, args []string) error {
			return p.storageVerify(c.Context(), args[0])
		},
	}
}

func completeDirectory(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// inspect reads a data directory. A person who waits sees how far it is.
func (p *program) inspect(ctx context.Context, dir string, verify bool) (*storage.Inspection, error) {
	shown := p.newProgressOf("verifying")
	found, err := storage.Inspect(ctx, dir, storage.InspectOptions{Verify: verify, Progress: shown.set})
	shown.clear()
	if err != nil {
		return nil, err
	}
	if found.Vacant || found.Identity.DirectoryID == [16]byte{} && len(found.Volumes) == 0 {
		return nil, failf("%s is not the data directory of a storage node: it has neither volumes nor a list of them; give the directory that the node has as --data-dir", found.Dir)
	}
	return found, nil
}

// verificationObject is the outcome of verify as -o json prints it.
type verificationObject struct {
	Directory string         `json:"directory"`
	Sound     bool           `json:"sound"`
	Volumes   int            `json:"volumes"`
	Bytes     int64          `json:"bytes"`
	Damage    []damageObject `json:"damage"`
}

func (p *program) storageVerify(ctx context.Context, dir string) error {
	found, err := p.inspect(ctx, dir, true)
	if err != nil {
		return err
	}
	var bytes int64
	for _, v := range found.Volumes {
		bytes += v.DiskBytes
	}
	object := verificationObject{
		Directory: found.Dir, Sound: len(found.Damage) == 0, Volumes: len(found.Volumes), Bytes: bytes, Damage: newDamageObjects(found.Damage),
	}
	tables := []*table{newTable()}
	what := fmt.Sprintf("%s in %s of %s", byteSize(bytes), plural(int64(len(found.Volumes)), "volume"), found.Dir)
	if object.Sound {
		tables[0].row(what + ": no damage was found")
	} else {
		tables[0].row(what + ": damage was found")
		tables = append(tables, damageTable(found.Damage))
	}
	if err := p.print(object, tables...); err != nil || object.Sound {
		return err
	}
	return failf("%s of damage in %s; a node that starts there sets damaged volumes aside and serves the rest, see \"runnel topics describe\" then",
		plural(int64(len(found.Damage)), "place"), found.Dir)
}
