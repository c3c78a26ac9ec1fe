package store

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// setFilesystemUser changes whose rights this thread has to files.
func setFilesystemUser(id int) error {
	if _, err := unix.SetfsuidRetUid(id); err != nil {
		return err
	}
	if now, err := unix.SetfsuidRetUid(id); err != nil || now != id {
		return fmt.Errorf("file system user is %d, %v", now, err)
	}
	return nil
}
