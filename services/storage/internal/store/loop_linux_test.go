package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loopDisk is an ext4 file system in a file, which a test may fill, or take the
// power from.
type loopDisk struct {
	device string
	// dir is where it is mounted.
	dir string
	// beforeUnmount closes what is open there when the test ends.
	beforeUnmount func()
}

// newLoopDisk makes and mounts one of that many bytes.
func newLoopDisk(t *testing.T, bytes int64) *loopDisk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a file system")
	}
	for _, tool := range []string{"mkfs.ext4", "losetup", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	folder := t.TempDir()
	image := filepath.Join(folder, "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, bytes)); err != nil {
		t.Fatal(err)
	}
	if err := run("mkfs.ext4", "-q", "-F", "-m", "0", image); err != nil {
		t.Fatal(err)
	}
	device, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	d := &loopDisk{device: strings.TrimSpace(string(device)), dir: filepath.Join(folder, "mounted")}
	t.Cleanup(func() {
		if err := run("losetup", "--detach", d.device); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.mount(); err != nil {
		t.Skipf("needs to mount a file system: %v", err)
	}
	t.Cleanup(func() {
		if d.beforeUnmount != nil {
			d.beforeUnmount()
		}
		if err := d.unmount(); err != nil && !errors.Is(err, errNotMounted) {
			t.Error(err)
		}
	})
	return d
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

func (d *loopDisk) mount() error { return run("mount", "-t", "ext4", d.device, d.dir) }

var errNotMounted = errors.New("not mounted")

func (d *loopDisk) unmount() error {
	if err := unix.Unmount(d.dir, 0); errors.Is(err, unix.EINVAL) {
		return errNotMounted
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return nil
}

// remount is the power coming back: the journal is replayed.
func (d *loopDisk) remount(t *testing.T) {
	t.Helper()
	if err := errors.Join(d.unmount(), d.mount()); err != nil {
		t.Fatal(err)
	}
}

// cutPower makes the file system forget what it has not written, its journal
// included, and refuse everything from now on.
func (d *loopDisk) cutPower(t *testing.T) {
	t.Helper()
	const (
		shutdown   = 0x8004587d // FS_IOC_SHUTDOWN
		noLogFlush = 2
	)
	dir, err := os.Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	flags := uint32(noLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		t.Skipf("the kernel cannot shut down a file system: %v", errno)
	}
}

// fill writes a file of another program until the disk is full, and returns its
// path.
func (d *loopDisk) fill(t *testing.T) string {
	t.Helper()
	file, err := os.CreateTemp(d.dir, "alien")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, chunk := range [][]byte{make([]byte, 1<<20), make([]byte, 4<<10)} {
		for err = nil; err == nil; {
			_, err = file.Write(chunk)
		}
		if !outOfSpace(err) {
			t.Fatal(err)
		}
	}
	return file.Name()
}
