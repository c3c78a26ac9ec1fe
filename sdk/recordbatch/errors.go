package recordbatch

import (
	"errors"
	"fmt"
)

// Every error of this package is an [*Error] and matches exactly one of these
// with [errors.Is].
var (
	// ErrCorrupt says that the bytes of a batch contradict themselves or the
	// format: they are damaged, or were never a batch.
	ErrCorrupt = errors.New("corrupt record batch")
	// ErrUnsupported says that a batch uses a part of the format that this
	// package does not know: another magic, codec or attribute. Damage to those
	// very bytes looks the same.
	ErrUnsupported = errors.New("unsupported record batch")
	// ErrTooLarge says that a batch is, or opens to, more than a limit allows.
	ErrTooLarge = errors.New("record batch too large")
	// ErrInvalid says that the caller asked for a batch that the format cannot
	// express.
	ErrInvalid = errors.New("invalid record batch")
)

// Error says which field of a batch is wrong, and why.
type Error struct {
	// Kind is one of ErrCorrupt, ErrUnsupported, ErrTooLarge and ErrInvalid.
	Kind error
	// Field as Kafka's protocol guide names it, such as "lastOffsetDelta", or
	// "records[3].keyLength" for a field of the fourth record.
	Field string
	// Got is what the field was.
	Got string
	// Want is what is legal.
	Want string
	// Cause is the error of a codec; nil elsewhere.
	Cause error
}

// Error implements error.
func (e *Error) Error() string {
	s := fmt.Sprintf("%v: %s is %s, must be %s", e.Kind, e.Field, e.Got, e.Want)
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns Kind and, where there is one, Cause.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

func corrupt(field string, got any, want string, args ...any) error {
	return newError(ErrCorrupt, field, got, want, args...)
}

func newError(kind error, field string, got any, want string, args ...any) error {
	return &Error{Kind: kind, Field: field, Got: fmt.Sprint(got), Want: fmt.Sprintf(want, args...)}
}
