//go:build !linux

package store

import "errors"

// setFilesystemUser is not available here.
func setFilesystemUser(int) error { return errors.ErrUnsupported }
