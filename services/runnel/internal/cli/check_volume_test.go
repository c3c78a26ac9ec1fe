package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/runnel-mesh/runnel/services/storage"
)

func TestVolumeVerdict(t *testing.T) {
	died := errors.New("exit status 2")
	for name, test := range map[string]struct {
		stdout, stderr string
		err            error
		damaged        bool
		says           string
	}{
		"sound":        {stdout: "sound\n"},
		"damaged":      {stdout: "damaged: volume synced-000001: MANIFEST: bad\n", damaged: true, says: "MANIFEST: bad"},
		"panic":        {stderr: "some line\npanic: runtime error: nil\n\ngoroutine 1\n", err: died, damaged: true, says: "runtime error: nil"},
		"fault":        {stderr: "unexpected fault address 0x7f\nfatal error: fault\n", err: died, damaged: true, says: "fault address"},
		"no memory":    {stderr: "fatal error: failed to reserve page summary memory\n\nruntime stack:\n", err: died, says: "page summary"},
		"no threads":   {stderr: "runtime: failed to create new OS thread (have 5 already; errno=11)\nfatal error: newosproc\n", err: died, says: "newosproc"},
		"out of it":    {stderr: "runtime: out of memory: cannot allocate 4194304-byte block\nfatal error: out of memory\n", err: died, says: "out of memory"},
		"no mapping":   {stderr: "panic: while mmapping 000001.vlog: cannot allocate memory\n", err: died, says: "cannot allocate"},
		"signal":       {stderr: "fatal error: unexpected signal during runtime execution\n[signal SIGBUS: bus error]\n", err: died, damaged: true, says: "unexpected signal"},
		"killed":       {err: errors.New("signal: killed"), says: "signal: killed"},
		"other":        {stderr: "runnel: no space left on device\n", err: died, says: "no space left"},
		"says nothing": {says: "said nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			err := volumeVerdict("/data/volumes/synced-000001", test.stdout, test.stderr, test.err)
			if storage.IsDamagedVolume(err) != test.damaged || (err == nil) != (test.says == "") {
				t.Fatalf("the verdict is %v", err)
			}
			if err != nil && (!strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "synced-000001")) {
				t.Errorf("%q does not say %q and which volume", err, test.says)
			}
		})
	}
}

// checkedVolume makes the test binary a storage node that checks the volume in that
// folder, or the child that the node starts for it.
const checkedVolume = "RUNNEL_CLI_TEST_CHECKED_VOLUME"

func checkInChild(dir string) int {
	if len(os.Args) > 1 && os.Args[1] == "storage" {
		return Run(context.Background(), Environment{
			Program: "runnel", Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv,
		})
	}
	if err := newProgram(Environment{Executable: os.Args[0]}).checkVolume()(context.Background(), dir); err != nil {
		return 1
	}
	return 0
}

// A node that is killed leaves nobody behind who works on a volume: its next process
// would find a volume that changes meanwhile, and set it aside.
func TestVolumeCheckEndsWithItsNode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// What is read first is a pipe that has nothing to say.
	description := filepath.Join(dir, "volume.json")
	if err := unix.Mkfifo(description, 0o600); err != nil {
		t.Fatal(err)
	}
	node := exec.Command(os.Args[0])
	node.Env = append(os.Environ(), checkedVolume+"="+dir)
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(description, os.O_WRONLY, 0) // It waits for the child.
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close() // With it the child ends in any case.
	if err := node.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = node.Wait()
	watched := []unix.PollFd{{Fd: int32(pipe.Fd())}}
	for {
		n, err := unix.Poll(watched, 30_000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != 1 || watched[0].Revents&unix.POLLERR == 0 {
			t.Fatalf("the child is still there: %d, %v", n, err)
		}
		return
	}
}
