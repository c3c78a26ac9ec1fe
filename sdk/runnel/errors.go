package runnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

var (
	// ErrClosed says that the client, producer or consumer is closed.
	ErrClosed = errors.New("closed")
	// ErrEnd is what [Consumer.Poll] returns once every assigned partition has
	// been read up to the bound that [Assignment.Until] or [Assignment.UntilEnd]
	// set.
	ErrEnd = errors.New("every assigned partition has been read to its bound")
	// ErrNotAssigned says that a consumer has no such partition.
	ErrNotAssigned = errors.New("partition is not assigned")
)

// Reason classifies a failure; the constants are those of the generated package
// gen/runnel/errors/v1.
type Reason = errorsv1.Reason

// Error is a failure that the cluster named, or that the client found in its
// stead. Use [errors.As] to get at it, [ReasonOf] for the reason alone.
type Error struct {
	// Reason says what went wrong; REASON_UNSPECIFIED when a server failed
	// without a reason of ours, such as one that is not Runnel at all.
	Reason Reason
	// Message is one sentence for people: the server's own words where the
	// server found the failure.
	Message string

	outcome outcome
	failure *errorsv1.Failure
	cause   error
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Unwrap returns what caused the error, where something did.
func (e *Error) Unwrap() error { return e.cause }

// Retriable reports whether the same call may succeed if it is repeated as it
// is, and did not take effect.
func (e *Error) Retriable() bool { return e.outcome == refused }

// OutcomeUnknown reports whether the call may have taken effect although it
// failed. Repeating a Send may then write its record twice.
func (e *Error) OutcomeUnknown() bool { return e.outcome == unknown }

// OffsetRange returns the first offset that the partition holds and its high
// watermark, if the error is about an offset outside of them.
func (e *Error) OffsetRange() (earliest, latest int64, ok bool) {
	d := e.failure.GetOffsetOutOfRange()
	return d.GetEarliestOffset(), d.GetLatestOffset(), d != nil
}

// Truncation returns the position from which on the log differs from what was
// read of it, if the error is about a truncated log; the offset is -1 when only the
// leader epoch of the last record that is still the same is known, and the epoch
// is -1 when there is none such.
func (e *Error) Truncation() (from Position, ok bool) {
	d := e.failure.GetLogTruncated()
	if d == nil {
		return Position{}, false
	}
	from = Position{Offset: d.GetEndOffset(), LeaderEpoch: d.GetEpoch()}
	if from.Offset >= d.GetOffset() {
		from.Offset = -1
	}
	return from, true
}

// ReasonOf returns the reason of the first [Error] in err's tree, or
// REASON_UNSPECIFIED if there is none.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return errorsv1.Reason_REASON_UNSPECIFIED
}

// IsRetriable reports whether the call that failed with err did not take effect
// and may succeed if it is repeated as it is.
func IsRetriable(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Retriable()
}

// outcome is what a failure says about the call that failed.
type outcome int8

const (
	// fatal: no effect, and the same call will fail again.
	fatal outcome = iota
	// refused: no effect, and the same call may succeed later or elsewhere.
	refused
	// unknown: the call may have taken effect.
	unknown
)

// outcomeOf follows the comments of the Reason enum. A reason that this version
// does not know leaves the outcome unknown: that is never wrong.
func outcomeOf(r Reason) outcome {
	switch r {
	case errorsv1.Reason_REASON_INVALID_REQUEST,
		errorsv1.Reason_REASON_TOPIC_EXISTS,
		errorsv1.Reason_REASON_INVALID_TOPIC_NAME,
		errorsv1.Reason_REASON_INVALID_PARTITIONS,
		errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR,
		errorsv1.Reason_REASON_INVALID_CONFIG,
		errorsv1.Reason_REASON_PARTITION_NOT_FOUND,
		errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE,
		errorsv1.Reason_REASON_LOG_TRUNCATED,
		errorsv1.Reason_REASON_RECORD_TOO_LARGE,
		errorsv1.Reason_REASON_CORRUPT_BATCH,
		errorsv1.Reason_REASON_UNSUPPORTED_BATCH,
		errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE,
		errorsv1.Reason_REASON_PRODUCER_FENCED,
		errorsv1.Reason_REASON_UNKNOWN_PRODUCER,
		errorsv1.Reason_REASON_CORRUPT_LOG,
		errorsv1.Reason_REASON_INTERNAL_TOPIC,
		errorsv1.Reason_REASON_STALE_NODE_EPOCH,
		errorsv1.Reason_REASON_NODE_MISMATCH,
		errorsv1.Reason_REASON_KEY_REQUIRED,
		errorsv1.Reason_REASON_INVALID_TIMESTAMP,
		errorsv1.Reason_REASON_LIMIT_REACHED,
		errorsv1.Reason_REASON_COORDINATOR_FENCED,
		errorsv1.Reason_REASON_UNKNOWN_MEMBER,
		errorsv1.Reason_REASON_MEMBER_FENCED,
		errorsv1.Reason_REASON_STALE_MEMBER_EPOCH,
		errorsv1.Reason_REASON_STALE_COMMIT,
		errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED,
		errorsv1.Reason_REASON_INSTANCE_FENCED,
		errorsv1.Reason_REASON_GROUP_NOT_FOUND,
		errorsv1.Reason_REASON_GROUP_NOT_EMPTY,
		errorsv1.Reason_REASON_INVALID_GROUP_ID,
		errorsv1.Reason_REASON_INVALID_SUBSCRIPTION,
		errorsv1.Reason_REASON_METADATA_TOO_LARGE:
		return fatal
	case errorsv1.Reason_REASON_TOPIC_NOT_FOUND,
		errorsv1.Reason_REASON_NOT_LEADER,
		errorsv1.Reason_REASON_NO_LEADER,
		errorsv1.Reason_REASON_PREFERRED_LEADER_NOT_AVAILABLE,
		errorsv1.Reason_REASON_FENCED_LEADER_EPOCH,
		errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH,
		errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE,
		errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS,
		errorsv1.Reason_REASON_DRAINING,
		errorsv1.Reason_REASON_THROTTLED,
		errorsv1.Reason_REASON_METADATA_UNAVAILABLE,
		errorsv1.Reason_REASON_STALE_PARTITION_EPOCH,
		errorsv1.Reason_REASON_NOT_CONTROLLER,
		errorsv1.Reason_REASON_DISK_FULL,
		errorsv1.Reason_REASON_NOT_COORDINATOR,
		errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE,
		errorsv1.Reason_REASON_GROUP_FULL:
		return refused
	}
	return unknown
}

func newError(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Message: fmt.Sprintf(format, args...), outcome: outcomeOf(r)}
}

// withOutcome returns e as the verdict on a call of which more is known than
// the reason tells.
func (e *Error) withOutcome(o outcome) *Error {
	e.outcome = o
	return e
}

func failureError(f *errorsv1.Failure) *Error {
	message := f.GetMessage()
	if message == "" {
		message = strings.ToLower(strings.TrimPrefix(f.GetReason().String(), "REASON_"))
	}
	return &Error{Reason: f.GetReason(), Message: message, outcome: outcomeOf(f.GetReason()), failure: f}
}

// callError is the error of a call to the node at address in the terms of this
// package. Errors of the caller's context stay what they are.
func callError(ctx context.Context, address string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	remote, ok := errors.AsType[*connect.Error](err)
	if ok {
		for _, detail := range remote.Details() {
			message, decodeErr := connectproto.UnmarshalErrorDetail(detail)
			if failure, isFailure := message.(*errorsv1.Failure); decodeErr == nil && isFailure {
				return failureError(failure)
			}
		}
	}
	e := &Error{Message: address + ": " + connectionFault(err), outcome: unknown, cause: err}
	if neverSent(err) || connect.CodeOf(err) == connect.CodeUnimplemented {
		e.outcome = refused
	}
	return e
}

// neverSent reports whether err shows that no byte of a call reached the other
// side.
func neverSent(err error) bool {
	_, ok := errors.AsType[*transport.DialError](err)
	return ok
}

// connectionFault says in a few words why a node cannot be talked to.
func connectionFault(err error) string {
	if dial, ok := errors.AsType[*transport.DialError](err); ok {
		err = dial.Cause
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return "no such host " + dns.Name
	}
	if timeout, ok := errors.AsType[net.Error](err); (ok && timeout.Timeout()) || errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "connection closed"
	}
	if remote, ok := errors.AsType[*connect.Error](err); ok && remote.Message() != "" {
		if onlyStatus(remote.Message()) {
			return remote.Message() + ", which no client address of Runnel says: give the address that a node has as --listen"
		}
		return remote.Message()
	}
	return err.Error()
}

// onlyStatus reports whether a message is the status line of an HTTP response,
// such as "404 Not Found": who answers does not offer the service.
func onlyStatus(message string) bool {
	number, text, _ := strings.Cut(strings.TrimPrefix(message, "HTTP status "), " ")
	code, err := strconv.Atoi(number)
	return err == nil && text != "" && text == http.StatusText(code)
}

// BootstrapError says that no node could be reached.
type BootstrapError struct {
	// Attempts has one entry per address that was tried.
	Attempts []BootstrapAttempt
}

// BootstrapAttempt is an address that was tried.
type BootstrapAttempt struct {
	Address string
	Err     error
}

// Error names every address that was tried, why it failed and the remedy.
func (e *BootstrapError) Error() string {
	tried := make([]string, len(e.Attempts))
	for i, a := range e.Attempts {
		tried[i] = fmt.Sprintf("%s (%s)", a.Address, connectionFault(a.Err))
	}
	return fmt.Sprintf("no bootstrap address answers: tried %s; is `runnel up` running? If the cluster is elsewhere, pass another address to NewClient",
		strings.Join(tried, ", "))
}

// Unwrap returns the errors of all attempts.
func (e *BootstrapError) Unwrap() []error {
	errs := make([]error, len(e.Attempts))
	for i, a := range e.Attempts {
		errs[i] = a.Err
	}
	return errs
}

// PartitionError says that a consumer cannot read on in one partition. The
// others go on; this one delivers nothing until it is sought or assigned again.
type PartitionError struct {
	TopicPartition
	// Offset is the first offset that cannot be read; -1 where none is known to begin
	// at.
	Offset int64
	// NextOffset is an offset at which reading can go on, behind what is
	// unreadable; -1 where none is known. Seeking to it skips records: that is
	// for the application to decide. Where records that were read are no longer in
	// the log it is the first whose record may be another, below Offset.
	NextOffset int64
	// Err says why.
	Err error
}

// Error names the partition, the offset and the way on.
func (e *PartitionError) Error() string {
	s := fmt.Sprintf("%s at offset %d cannot be read: %v", e.TopicPartition, e.Offset, e.Err)
	switch {
	case e.Offset < 0:
		s = fmt.Sprintf("%s cannot be read: %v", e.TopicPartition, e.Err)
	case e.NextOffset >= e.Offset:
		s += fmt.Sprintf("; seek to offset %d to skip it", e.NextOffset)
	case e.NextOffset >= 0:
		s += fmt.Sprintf("; seek to offset %d to read what stands there now", e.NextOffset)
	}
	return s
}

// Unwrap returns Err.
func (e *PartitionError) Unwrap() error { return e.Err }

func topicNotFound(name string) *Error {
	return newError(errorsv1.Reason_REASON_TOPIC_NOT_FOUND,
		"topic %q does not exist; create it first (`runnel topics create %s`, or Admin.CreateTopic)", name, name)
}

// expired is the verdict on records that were not acknowledged in time.
func expired(tp TopicPartition, after time.Duration, attempted bool, last error) *Error {
	e := newError(errorsv1.Reason_REASON_TIMED_OUT, "records for %s were not acknowledged within %v", tp, after)
	if !attempted {
		e = newError(errorsv1.Reason_REASON_TIMED_OUT, "records for %s could not be sent within %v", tp, after).withOutcome(refused)
	}
	if last != nil {
		e.Message += ": " + last.Error()
		e.cause = last
	}
	return e
}
