package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnel-mesh/runnel/services/storage"
)

const (
	checkVolumeName = "check-volume"
	withParentFlag  = "with-parent"
	// checkVolumeWithin bounds how long a child may take over a volume; a volume of
	// 1 GiB takes seconds on a slow disk.
	checkVolumeWithin = 5 * time.Minute

	// The child's output begins with one of these.
	volumeSound   = "sound"
	volumeDamaged = "damaged: "
)

// checkVolumeCommand is what a storage node runs in a child process before it
// opens a volume after an unclean stop: the child may die over damage.
func (p *program) checkVolumeCommand() *cobra.Command {
	withParent := false
	command := &cobra.Command{
		Use:    checkVolumeName + " DIR",
		Short:  "Verify a volume that was not closed in good order",
		Long:   "Verify a volume that was not closed in good order, and repair what a crash leaves. A storage node runs it when it starts.",
		Hidden: true,
		Args:   arguments("DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			if withParent {
				go endWithParent(p.Stdin)
			}
			err := storage.CheckVolume(c.Context(), args[0])
			switch {
			case storage.IsDamagedVolume(err):
				_, err = fmt.Fprintf(p.Stdout, "%s%v\n", volumeDamaged, err)
			case err == nil:
				_, err = fmt.Fprintln(p.Stdout, volumeSound)
			}
			return err
		},
	}
	command.Flags().BoolVar(&withParent, withParentFlag, false, "end at once when the standard input ends")
	return command
}

// endWithParent ends the process when its parent has ended, which holds the other
// end of its standard input: nobody else may repair a volume that the next process of
// the node has found.
func endWithParent(stdin io.Reader) {
	_, _ = io.Copy(io.Discard, stdin)
	os.Exit(exitFailure)
}

// checkVolume returns what verifies a volume in a child process, or nil where the
// program does not know how to start itself.
func (p *program) checkVolume() func(context.Context, string) error {
	if p.Executable == "" {
		return nil
	}
	return func(ctx context.Context, dir string) error {
		ctx, cancel := context.WithTimeout(ctx, checkVolumeWithin)
		defer cancel()
		var stdout, stderr bytes.Buffer
		child := exec.CommandContext(ctx, p.Executable, "storage", checkVolumeName, "--"+withParentFlag, dir)
		child.Stdout, child.Stderr = &stdout, &stderr
		// It stays open until the child, or this process, has ended.
		if _, err := child.StdinPipe(); err != nil {
			return fmt.Errorf("verify volume %s: %w", dir, err)
		}
		err := child.Run()
		if ctx.Err() != nil {
			return fmt.Errorf("verify volume %s: the child process did not end within %v: %w", dir, checkVolumeWithin, ctx.Err())
		}
		return volumeVerdict(dir, stdout.String(), stderr.String(), err)
	}
}

// crashOverDamage returns the line of a child's output with which it died over what
// it read; empty where it did not, or where it was the machine that had no memory,
// threads or files for it. The runtime's other fatal errors are about the process.
func crashOverDamage(stderr string) string {
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		for _, crash := range []string{"panic: ", "unexpected fault address", "fatal error: fault", "fatal error: unexpected signal"} {
			if strings.HasPrefix(line, crash) && !slices.ContainsFunc(machineErrors, func(text string) bool { return strings.Contains(line, text) }) {
				return line
			}
		}
	}
	return ""
}

// machineErrors are what the system says where it cannot give a process what it
// asks for.
var machineErrors = []string{
	syscall.ENOMEM.Error(), syscall.EAGAIN.Error(), syscall.EMFILE.Error(), syscall.ENFILE.Error(), syscall.ENOSPC.Error(), syscall.EDQUOT.Error(),
}

// volumeVerdict reads what a child process says about a volume. One that panics
// says that the volume is damaged: that is what it was started for. One that
// another process killed says nothing.
func volumeVerdict(dir, stdout, stderr string, err error) error {
	if reason, damaged := strings.CutPrefix(stdout, volumeDamaged); damaged {
		return storage.DamagedVolume(dir, strings.TrimSpace(reason))
	}
	if err == nil && strings.TrimSpace(stdout) == volumeSound {
		return nil
	}
	if line := crashOverDamage(stderr); line != "" {
		return storage.DamagedVolume(dir, "Badger cannot open it: "+line)
	}
	if err == nil {
		err = errors.New("it said nothing")
	}
	return fmt.Errorf("verify volume %s in a child process: %w: %s", dir, err, strings.TrimSpace(stderr[:min(len(stderr), 2000)]))
}
