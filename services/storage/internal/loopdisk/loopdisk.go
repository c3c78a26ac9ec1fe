//go:build linux

// Package loopdisk gives tests a file system of their own, which they may fill,
// break and take the power from. It needs root.
package loopdisk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Disk is an ext4 file system in a file, on a loop device.
type Disk struct {
	// Dir is where it is mounted.
	Dir string

	image, device string
}

// New makes and mounts a file system of that many bytes. When the test ends,
// everything there must have been closed by clean-ups that were registered later.
// The test is skipped where this is not possible.
func New(t *testing.T, bytes int64) *Disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a file system")
	}
	for _, tool := range []string{"mkfs.ext4", "losetup", "mount"} {
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
	d := &Disk{image: image, device: strings.TrimSpace(string(device)), Dir: filepath.Join(folder, "mounted")}
	t.Cleanup(func() {
		if err := run("losetup", "--detach", d.device); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.mount(); err != nil {
		t.Skipf("needs to mount a file system: %v", err)
	}
	t.Cleanup(func() {
		if err := d.unmount(); err != nil && !errors.Is(err, unix.EINVAL) {
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

func (d *Disk) mount() error { return run("mount", "-t", "ext4", d.device, d.Dir) }

func (d *Disk) unmount() error {
	if err := unix.Unmount(d.Dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.Dir, err)
	}
	return nil
}

// Remount is the power coming back: the journal is replayed. Nothing may be open
// there.
func (d *Disk) Remount(t *testing.T) {
	t.Helper()
	if err := errors.Join(d.unmount(), d.mount()); err != nil {
		t.Fatal(err)
	}
}

// CutPower makes the file system forget what it has not written, its journal
// included, and refuse everything until [Disk.Remount].
func (d *Disk) CutPower() error {
	const (
		shutdown   = 0x8004587d // FS_IOC_SHUTDOWN
		noLogFlush = 2
	)
	dir, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	flags := uint32(noLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return fmt.Errorf("shut the file system down: %w", errno)
	}
	return nil
}

// FailOnErrors makes the file system read-only at its next error, as ext4 does
// when the device fails, and returns what makes such an error. The test is
// skipped where the kernel cannot.
func (d *Disk) FailOnErrors(t *testing.T) func() error {
	t.Helper()
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(d.device), "trigger_fs_error")
	if _, err := os.Stat(trigger); err != nil {
		t.Skipf("the kernel cannot make an error: %v", err)
	}
	if err := run("mount", "-o", "remount,errors=remount-ro", d.Dir); err != nil {
		t.Fatal(err)
	}
	return func() error { return os.WriteFile(trigger, []byte("1"), 0) }
}

// Fill writes a file of another program until nothing is free, as fast as a disk
// takes it, and returns its path.
func (d *Disk) Fill(t *testing.T) string {
	t.Helper()
	file, err := os.CreateTemp(d.Dir, "alien")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, chunk := range [][]byte{make([]byte, 1<<20), make([]byte, 4<<10)} {
		for err = nil; err == nil; {
			if _, err = file.Write(chunk); err == nil && len(chunk) == 1<<20 {
				err = file.Sync()
			}
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return file.Name()
}

// Free returns how many bytes are free.
func (d *Disk) Free(t *testing.T) int64 {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(d.Dir, &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Bavail) * int64(s.Bsize)
}
