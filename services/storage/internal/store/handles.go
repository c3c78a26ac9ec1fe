package store

import (
	"os"
	"syscall"
)

// openable returns how many files the process can still open, up to most. Where the
// system tells, none is opened for that: it could be the last one, which somebody
// needs at that moment who does not survive that there is none.
func (d *disk) openable(most int) int {
	if left, told := d.handles.left(most); told {
		return left
	}
	return tryToOpen(d.dir, most)
}

// tryToOpen opens as many files as it can, up to most, and returns how many.
func tryToOpen(dir string, most int) int {
	opened := make([]*os.File, 0, most)
	defer func() {
		for _, f := range opened {
			_ = f.Close()
		}
	}()
	for len(opened) < most {
		f, err := os.Open(dir)
		if comesFrom(err, syscall.EMFILE) || comesFrom(err, syscall.ENFILE) {
			return len(opened)
		}
		if err != nil {
			// It says nothing about how many.
			return most
		}
		opened = append(opened, f)
	}
	return most
}
