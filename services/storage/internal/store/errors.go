package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// Reasons for which [Open] and [Store.SetIdentity] refuse a directory, and for
// which calls fail. The errors that wrap them name the directory and the remedy.
var (
	// ErrLocked says that another process works in the directory.
	ErrLocked = datadir.ErrLocked
	// ErrReadOnly says that the process may not write to the directory.
	ErrReadOnly = datadir.ErrReadOnly
	// ErrNewerFormat says that a newer release has written the directory.
	ErrNewerFormat = datadir.ErrNewerFormat
	// ErrOtherNode says that the directory belongs to another cluster or node.
	ErrOtherNode = errors.New("data directory belongs to another node")
	// ErrClosed says that the store has been closed.
	ErrClosed = errors.New("store is closed")
	// ErrOffsetOutOfRange says that the log no longer has, or never had, the
	// offset.
	ErrOffsetOutOfRange = errors.New("offset is not in the log")
	// ErrInvalidAppend says that an append contradicts itself or the log. Nothing
	// of it was written; the store goes on.
	ErrInvalidAppend = errors.New("append does not fit the log")
)

// ErrCorrupt says that what lies on disk is not what was written there.
type ErrCorrupt struct {
	Partition PartitionID
	// Volume is the number of the volume; 0 if none holds the offset.
	Volume uint64
	// Offset is the first that cannot be read.
	Offset int64
	// Next is an offset behind it at which to read on; 0 where none is known.
	Next int64
	// Reason says what is wrong.
	Reason string
	// Cause may be nil.
	Cause error

	// file says that more than the value of a batch seems to be damaged.
	file bool
}

// Error implements error.
func (e *ErrCorrupt) Error() string {
	s := fmt.Sprintf("partition %v is corrupt in volume %d at offset %d: %s", e.Partition, e.Volume, e.Offset, e.Reason)
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *ErrCorrupt) Unwrap() error { return e.Cause }

// ErrFailed says that something of a partition was lost: it takes no more batches,
// and what is left can be read.
type ErrFailed struct {
	Partition PartitionID
	// Reason says what happened.
	Reason string
	// Volume is the number of the volume that was lost; 0 where it is not known.
	Volume uint64
	// LostTo is the offset after the last that is known to be lost.
	LostTo int64
	// LogEndUnknown says that the log may have had more records than it has now.
	LogEndUnknown bool
	// LogStart and LogEnd are what the store knows of the log; where they are the same
	// nothing of it is left.
	LogStart, LogEnd int64
}

// Error implements error.
func (e *ErrFailed) Error() string {
	return fmt.Sprintf("partition %v has failed: %s", e.Partition, e.Reason)
}

// ErrDamagedVolume says that files of a volume are not what was written there.
type ErrDamagedVolume struct {
	// Volume is the name of the volume's folder.
	Volume string
	// File is its name in there; empty where no one file is known to be at fault.
	File string
	// Reason says what is wrong.
	Reason string
}

// Error implements error.
func (e *ErrDamagedVolume) Error() string {
	where := "volume " + e.Volume
	if e.File != "" {
		where += ": " + e.File
	}
	return where + ": " + e.Reason
}

// damage says what is wrong with a file of the volume in a directory, unless the
// error is about the process or the machine: those must not condemn a volume.
func damage(dir, file string, err error) error {
	if transient(err) || IsDamagedVolume(err) {
		return err
	}
	return &ErrDamagedVolume{Volume: filepath.Base(dir), File: file, Reason: err.Error()}
}

// machineErrors are about the process or the machine, and may be gone at the next
// try with the same files.
var machineErrors = []syscall.Errno{
	syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN, syscall.ENOLCK,
	syscall.EACCES, syscall.EPERM, syscall.EROFS,
}

// transient says that an error may be gone at the next try, with the same files.
func transient(err error) bool {
	for _, other := range []error{context.Canceled, context.DeadlineExceeded, ErrClosed, ErrDiskFull, ErrFewFiles} {
		if errors.Is(err, other) {
			return true
		}
	}
	return slices.ContainsFunc(machineErrors, func(e syscall.Errno) bool { return comesFrom(err, e) })
}

// comesFrom says whether an error is, wraps or quotes one of the system's: Badger
// keeps only the text of what it wraps.
func comesFrom(err error, cause syscall.Errno) bool {
	return err != nil && (errors.Is(err, cause) || strings.Contains(err.Error(), cause.Error()))
}

// DamagedVolume says that the volume in a folder is damaged, for a reason that a
// process gave which verified it; unless the reason is about the process or the
// machine.
func DamagedVolume(dir, reason string) error {
	err := damage(dir, "", errors.New(reason))
	if !IsDamagedVolume(err) {
		err = fmt.Errorf("volume %s: %w", filepath.Base(dir), err)
	}
	return err
}

// remedied adds to an error of the machine what to do about it.
func remedied(err error) error {
	remedy := ""
	switch {
	case errors.Is(err, ErrDiskFull), errors.Is(err, ErrFewFiles):
		// It names its own.
	case outOfSpace(err):
		remedy = "make room on the disk, or for more files where it has bytes left (df -i)"
	case comesFrom(err, syscall.EMFILE):
		remedy = "allow the process more open files (ulimit -n)"
	case comesFrom(err, syscall.ENFILE):
		remedy = "allow the machine more open files (fs.file-max)"
	case comesFrom(err, syscall.ENOMEM):
		remedy = "give the process more memory, and mappings (vm.max_map_count)"
	}
	if remedy == "" {
		return err
	}
	return fmt.Errorf("%w: %s, and start again", err, remedy)
}

// IsDamagedVolume says whether an error is or wraps an [*ErrDamagedVolume].
func IsDamagedVolume(err error) bool {
	var damaged *ErrDamagedVolume
	return errors.As(err, &damaged)
}
