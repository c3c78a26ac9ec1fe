package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Reasons for which a directory is refused.
var (
	// ErrLocked says that another process works in the directory.
	ErrLocked = errors.New("data directory is in use")
	// ErrReadOnly says that the process may not write to the directory.
	ErrReadOnly = errors.New("data directory is not writable")
	// ErrNewerFormat says that a newer release has written the directory.
	ErrNewerFormat = errors.New("data directory has a newer format")
	// ErrDamaged says that a file of the directory is lost or not as it was written.
	ErrDamaged = errors.New("data directory is damaged")
)

// refusal is an error whose text stands by itself: the reason is for errors.Is.
type refusal struct {
	text   string
	reason error
	// cause may be nil.
	cause error
}

func (r *refusal) Error() string { return r.text }

func (r *refusal) Unwrap() []error {
	if r.cause == nil {
		return []error{r.reason}
	}
	return []error{r.reason, r.cause}
}

func locked(path, holder string) error {
	return &refusal{reason: ErrLocked, text: fmt.Sprintf("data directory %s is in use by %s; stop that one, or choose another data directory", path, holder)}
}

// Unusable says that the system does not let the process work in a directory. It
// is an [ErrReadOnly] where the process lacks the right to write there.
func Unusable(path string, cause error) error {
	if errors.Is(cause, fs.ErrPermission) || errors.Is(cause, syscall.EROFS) {
		return &refusal{reason: ErrReadOnly, cause: cause, text: fmt.Sprintf(
			"data directory %s is not writable: %v; give this user the right to write there, or choose another data directory", path, cause)}
	}
	return fmt.Errorf("data directory %s cannot be used: %w; mend that, or choose another data directory", path, cause)
}

// NewerFormat is the [ErrNewerFormat] for a thing, such as "volume /data/1", whose
// format version is above the one that this release knows.
func NewerFormat(thing string, version, known int) error {
	return &refusal{reason: ErrNewerFormat, text: fmt.Sprintf(
		"%s has format %d, this release knows %d; use the release that wrote it or a newer one, or choose another data directory", thing, version, known)}
}

// Damaged is the [ErrDamaged] for a file.
func Damaged(file string, cause error) error {
	return &refusal{reason: ErrDamaged, cause: cause, text: fmt.Sprintf(
		"%s is damaged: %v; restore it from a backup, or choose another data directory", file, cause)}
}
