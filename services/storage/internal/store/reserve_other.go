//go:build !linux

package store

import (
	"errors"
	"os"
)

// reserveSpace is not available here.
func reserveSpace(*os.File, int64, int64) error { return errors.ErrUnsupported }

// startWriteback is not available here: the kernel writes when it likes.
func startWriteback(uintptr, int64, int64) {}
