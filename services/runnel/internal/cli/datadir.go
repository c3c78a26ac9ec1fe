package cli

import (
	"path/filepath"
	"runtime"
)

// defaultDataDir returns where `up` keeps its data without --data-dir: a place
// of the user's own that does not depend on the working directory, so that the
// same data is there again from wherever `up` is started, and a checkout is
// never littered. Without a home directory, as in bare containers, it is a
// folder in the working directory.
func defaultDataDir(getenv func(string) string) string {
	// The XDG specification says to ignore relative paths.
	if data := getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "runnel")
	}
	if runtime.GOOS == "windows" {
		if data := getenv("LocalAppData"); data != "" {
			return filepath.Join(data, "runnel")
		}
	}
	home := getenv("HOME")
	switch {
	case home == "":
		return "runnel-data"
	case runtime.GOOS == "darwin":
		return filepath.Join(home, "Library", "Application Support", "runnel")
	}
	return filepath.Join(home, ".local", "share", "runnel")
}
