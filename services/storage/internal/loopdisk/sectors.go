//go:build linux

package loopdisk

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LoseEnd makes the device report errors for all of a file from an offset on, which
// is rounded down to a block: the device ends there. The file must be closed; what
// else was written after it is lost, too.
func (d *Disk) LoseEnd(t *testing.T, path string, from int64) {
	t.Helper()
	blocks, err := blocksOf(path)
	if err != nil {
		t.Fatal(err)
	}
	size, err := blockSize(path)
	if err != nil {
		t.Fatal(err)
	}
	first := slices.Min(blocks[from/size:])
	for _, b := range blocks[:from/size] {
		if b > first {
			t.Fatal("the file does not lie in order")
		}
	}
	if err := errors.Join(dropCached(path), d.shrink(int64(first)*size)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(path); !errors.Is(err, unix.EIO) {
		t.Fatalf("reading what was lost: %v", err)
	}
}

// dropCached brings a file to the disk, and to nowhere else.
func dropCached(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	err = errors.Join(file.Sync(), unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED))
	return errors.Join(err, file.Close())
}

func blockSize(path string) (int64, error) {
	var s unix.Statfs_t
	err := unix.Statfs(path, &s)
	return s.Bsize, err
}

// blocksOf returns where on the device the blocks of a file lie.
func blocksOf(path string) ([]uint32, error) {
	const fibmap = 1
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	size, err := blockSize(path)
	if err != nil {
		return nil, err
	}
	blocks := make([]uint32, (info.Size()+size-1)/size)
	for i := range blocks {
		block := uint32(i)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fibmap, uintptr(unsafe.Pointer(&block))); errno != 0 {
			return nil, fmt.Errorf("find the blocks of %s: %w", path, errno)
		}
		blocks[i] = block
	}
	return blocks, nil
}

// shrink makes the device end at an offset.
func (d *Disk) shrink(bytes int64) error {
	const setCapacity = 0x4c07 // LOOP_SET_CAPACITY
	if err := os.Truncate(d.image, bytes); err != nil {
		return err
	}
	device, err := os.Open(d.device)
	if err != nil {
		return err
	}
	defer device.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), setCapacity, 0); errno != 0 {
		return fmt.Errorf("shrink %s: %w", d.device, errno)
	}
	return nil
}
