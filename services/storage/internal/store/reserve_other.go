//go:build !linux

package store

import (
	"errors"
	"os"
)

// reserveSpace is not available here.
func reserveSpace(*os.File, int64, int64) error { return errors.ErrUnsupported }

// allocateSpace is not available here.
func allocateSpace(*os.File, int64) error { return errors.ErrUnsupported }

// measureDisk is not available here: a full disk is met when it is.
func measureDisk(string) (usage, error) { return usage{}, errors.ErrUnsupported }

// startWriteback is not available here: the kernel writes when it likes.
func startWriteback(uintptr, int64, int64) {}
