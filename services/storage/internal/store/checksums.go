package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

const checksumsFile = "checksums.json"

// readStep is how much of a file is read at a time, and how far apart a reader is
// asked to wait.
const readStep = 256 << 10

// pace lets a reader of files go on once it may have read some more bytes, or
// returns why it must stop. A nil pace never waits.
type pace func(bytes int) error

// checksummed says whether a file of a volume belongs to the list: what holds
// records or says where they are.
func checksummed(name string) bool {
	switch filepath.Ext(name) {
	case ".sst", ".vlog", memExtension:
		return true
	}
	return name == "MANIFEST" || name == "KEYREGISTRY"
}

// sumFiles reads all files of a volume that nobody writes. Of value logs it takes
// the size only, if so told.
func sumFiles(dir string, sizeOnly bool, wait pace) (*diskv1.ChecksumList, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	list := &diskv1.ChecksumList{}
	for _, e := range entries {
		if !checksummed(e.Name()) {
			continue
		}
		f := &diskv1.FileChecksum{Name: e.Name(), SizeOnly: sizeOnly && filepath.Ext(e.Name()) == ".vlog"}
		if f.SizeOnly {
			info, err := e.Info()
			if err != nil {
				return nil, err
			}
			f.Bytes = info.Size()
		} else if f.Bytes, f.Crc32C, err = sumFile(filepath.Join(dir, e.Name()), wait); err != nil {
			return nil, damage(dir, e.Name(), err)
		}
		list.Files = append(list.Files, f)
	}
	list.Crc32C = sumOfList(list)
	return list, nil
}

// sumFile returns the size and the checksum of a file. Who takes his time over it
// has other things in mind than to fill the page cache.
func sumFile(path string, wait pace) (int64, uint32, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	var total int64
	var sum uint32
	buf := make([]byte, readStep)
	for {
		n, err := file.Read(buf)
		sum = crc32.Update(sum, castagnoli, buf[:n])
		if wait != nil {
			dropCached(file, total, int64(n))
		}
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return total, sum, nil
		}
		if err == nil && wait != nil {
			err = wait(n)
		}
		if err != nil {
			return 0, 0, err
		}
	}
}

func sumOfList(list *diskv1.ChecksumList) uint32 {
	var raw []byte
	for _, f := range list.GetFiles() {
		raw = append(append(raw, f.GetName()...), 0)
		raw = binary.BigEndian.AppendUint64(raw, uint64(f.GetBytes()))
		raw = binary.BigEndian.AppendUint32(raw, f.GetCrc32C())
	}
	return crc32.Checksum(raw, castagnoli)
}

func writeChecksums(dir string, list *diskv1.ChecksumList) error {
	return datadir.WriteMessage(filepath.Join(dir, checksumsFile), list)
}

// readChecksums returns nil where there is no list, or one that is damaged itself:
// the volume has to be verified in another way then.
func readChecksums(dir string) (*diskv1.ChecksumList, error) {
	var list diskv1.ChecksumList
	err := datadir.ReadMessage(filepath.Join(dir, checksumsFile), &list)
	switch {
	case err != nil && transient(err):
		return nil, err
	case err != nil:
		return nil, nil
	case len(list.GetFiles()) == 0 || sumOfList(&list) != list.GetCrc32C():
		return nil, nil
	}
	return &list, nil
}

// removeChecksums removes the list before a volume is written again.
func removeChecksums(dir string) error {
	err := os.Remove(filepath.Join(dir, checksumsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return datadir.Sync(dir)
}

// complete says whether the list has a checksum for every file.
func complete(list *diskv1.ChecksumList) bool {
	return list != nil && !slices.ContainsFunc(list.GetFiles(), (*diskv1.FileChecksum).GetSizeOnly)
}

// verifyFiles compares the files of a volume with their list: the sizes, and
// what the files hold, of value logs only if so told. Batches in these have
// checksums of their own, and all other damage could make Badger panic.
func verifyFiles(ctx context.Context, dir string, list *diskv1.ChecksumList, values bool, wait pace) error {
	listed := make(map[string]bool)
	for _, f := range list.GetFiles() {
		listed[f.GetName()] = true
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := verifyFile(dir, f, values, wait); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); checksummed(name) && !listed[name] && !strings.HasSuffix(name, datadir.TemporarySuffix) {
			return damage(dir, name, errors.New("nothing is known of the file"))
		}
	}
	return nil
}

// verifyBeforeOpening is verifyFiles for a volume that is about to be opened. Unless it
// is sealed, and the list has checksums of its value logs, Badger must not meet damage in
// the last one, which it may write to.
func verifyBeforeOpening(ctx context.Context, dir string, list *diskv1.ChecksumList, sealed bool, wait pace) error {
	err := verifyFiles(ctx, dir, list, false, wait)
	if err != nil || sealed && complete(list) {
		return err
	}
	return verifyLastValueLog(dir)
}

func verifyFile(dir string, f *diskv1.FileChecksum, values bool, wait pace) error {
	name := f.GetName()
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return damage(dir, name, errors.New("the file is missing"))
	}
	if err != nil {
		return damage(dir, name, err)
	}
	if info.Size() != f.GetBytes() {
		return damage(dir, name, fmt.Errorf("it has %d bytes instead of %d", info.Size(), f.GetBytes()))
	}
	if f.GetSizeOnly() || !values && filepath.Ext(name) == ".vlog" {
		return nil
	}
	_, sum, err := sumFile(path, wait)
	if err != nil {
		return damage(dir, name, err)
	}
	if sum != f.GetCrc32C() {
		return damage(dir, name, fmt.Errorf("its checksum is %08x, must be %08x", sum, f.GetCrc32C()))
	}
	return nil
}
