package allinone

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

const (
	// layoutVersion is that of the data directory as a whole: which folders it has
	// and who owns them. Each service has a version of its own for its folder.
	layoutVersion = 1
	layoutFile    = "layout.json"
)

// layout is the file at the top of a data directory.
type layout struct {
	FormatVersion int `json:"formatVersion"`
}

// openDirectory creates and locks a data directory and checks its layout. Its
// folders have locks of their own, but etcd waits for its one instead of failing.
// Errors are sentences that say what to do.
func openDirectory(path string) (*datadir.Dir, error) {
	d, err := datadir.Open(path)
	if err != nil {
		return nil, withFlag(err)
	}
	if err := checkLayout(d); err != nil {
		return nil, errors.Join(withFlag(err), d.Close())
	}
	return d, nil
}

// withFlag completes the remedy with which errors of datadir end: to choose
// another data directory.
func withFlag(err error) error { return fmt.Errorf("%w with --data-dir", err) }

// checkLayout writes the layout file of a new directory and reads that of an old
// one. A field that a newer release added is no reason to refuse it, a newer
// version is.
func checkLayout(d *datadir.Dir) error {
	file := d.Path(layoutFile)
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return writeLayout(d)
	}
	if err != nil {
		return datadir.Unusable(d.Path(), err)
	}
	var l layout
	if err := json.Unmarshal(raw, &l); err != nil {
		return datadir.Damaged(file, err)
	}
	if l.FormatVersion < 1 {
		return datadir.Damaged(file, fmt.Errorf("it has format %d", l.FormatVersion))
	}
	if l.FormatVersion > layoutVersion {
		return datadir.NewerFormat("data directory "+d.Path(), l.FormatVersion, layoutVersion)
	}
	return nil
}

func writeLayout(d *datadir.Dir) error {
	raw, err := json.Marshal(layout{FormatVersion: layoutVersion})
	if err == nil {
		err = datadir.Replace(d.Path(layoutFile), append(raw, '\n'))
	}
	if err != nil {
		return datadir.Unusable(d.Path(), err)
	}
	return nil
}
