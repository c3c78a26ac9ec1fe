// Package rpcerr is the only place that builds and reads connect errors.
//
// Inside a service a failure that a client shall understand is an [*Error]: a
// reason, a sentence for people and, for some reasons, further facts. Handlers
// return it as it is; the server's interceptor hands it to [Connect], which
// turns it into a status with a Failure detail. Failures of a single item
// inside a stream go through [AsFailure]. A client reads both back with [Parse]
// and [FromFailure].
//
// What is not an [*Error] is a failure that nobody foresaw. Its text stays in
// the server: the client gets an incident number that also stands in the log.
package rpcerr

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// maxMessageBytes bounds a message that quotes what a client sent: gRPC carries
// it in headers, which peers limit to a few KiB.
const maxMessageBytes = 1024

// Error is a failure with a reason. It must not be changed once it has been
// returned; the With methods copy it.
type Error struct {
	// Reason is what programs act on.
	Reason errorsv1.Reason
	// Message is one sentence that names the thing and the remedy. It is sent to
	// clients.
	Message string
	// Detail is nil or one of *errorsv1.NotLeader, *errorsv1.NotCoordinator,
	// *errorsv1.OffsetOutOfRange, *errorsv1.OutOfOrderSequence and
	// *errorsv1.LogTruncated. It is sent to clients.
	Detail any
	// Cause is never sent.
	Cause error
	// Incident is set by [Classify] when the failure was not foreseen: the number
	// that the client is given and that the log line about Cause must carry.
	Incident string
}

// New returns an error for clients. The message is formatted as by fmt.Sprintf
// and must not contain the text of errors that it did not expect.
func New(reason errorsv1.Reason, format string, args ...any) *Error {
	if len(args) == 0 {
		return &Error{Reason: reason, Message: format}
	}
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Error returns the reason and the message, and the cause if there is one.
func (e *Error) Error() string {
	text := e.Message
	if text == "" {
		text = e.Reason.String()
	}
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is reports whether target is an *Error of the same reason, so that
// errors.Is(err, &Error{Reason: r}) asks for a reason.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.Reason == e.Reason
}

// WithDetail returns a copy that carries detail. A detail of an unknown type is
// not sent.
func (e *Error) WithDetail(detail any) *Error {
	clone := *e
	clone.Detail = detail
	return &clone
}

// WithCause returns a copy with that cause.
func (e *Error) WithCause(cause error) *Error {
	clone := *e
	clone.Cause = cause
	return &clone
}

// Failure returns the error in the form that is sent.
func (e *Error) Failure() *errorsv1.Failure {
	f := &errorsv1.Failure{Reason: e.Reason, Message: publicMessage(e.Message)}
	if f.Reason == errorsv1.Reason_REASON_UNSPECIFIED {
		f.Reason = errorsv1.Reason_REASON_INTERNAL
	}
	switch d := e.Detail.(type) {
	case *errorsv1.NotLeader:
		f.Detail = &errorsv1.Failure_NotLeader{NotLeader: d}
	case *errorsv1.OffsetOutOfRange:
		f.Detail = &errorsv1.Failure_OffsetOutOfRange{OffsetOutOfRange: d}
	case *errorsv1.OutOfOrderSequence:
		f.Detail = &errorsv1.Failure_OutOfOrderSequence{OutOfOrderSequence: d}
	case *errorsv1.LogTruncated:
		f.Detail = &errorsv1.Failure_LogTruncated{LogTruncated: d}
	case *errorsv1.NotCoordinator:
		f.Detail = &errorsv1.Failure_NotCoordinator{NotCoordinator: d}
	}
	return f
}

// FromFailure returns a failure that was received as an error; nil for nil.
func FromFailure(f *errorsv1.Failure) *Error {
	if f == nil {
		return nil
	}
	e := &Error{Reason: f.GetReason(), Message: f.GetMessage()}
	switch d := f.GetDetail().(type) {
	case *errorsv1.Failure_NotLeader:
		e.Detail = d.NotLeader
	case *errorsv1.Failure_OffsetOutOfRange:
		e.Detail = d.OffsetOutOfRange
	case *errorsv1.Failure_OutOfOrderSequence:
		e.Detail = d.OutOfOrderSequence
	case *errorsv1.Failure_LogTruncated:
		e.Detail = d.LogTruncated
	case *errorsv1.Failure_NotCoordinator:
		e.Detail = d.NotCoordinator
	}
	return e
}

// ReasonOf returns the reason of err, REASON_INTERNAL if it has none and
// REASON_UNSPECIFIED for nil.
func ReasonOf(err error) errorsv1.Reason {
	if err == nil {
		return errorsv1.Reason_REASON_UNSPECIFIED
	}
	return Classify(err).Reason
}

// Classify turns any error into one that may be sent; nil stays nil.
//
//   - An *Error in the chain keeps its reason, message and detail.
//   - An error of a call to another service keeps the Failure that the other
//     service authored; without one only its code counts.
//   - The end of a context becomes REASON_TIMED_OUT: the outcome is unknown.
//   - All else becomes REASON_INTERNAL with an Incident, which the caller logs
//     together with Cause.
func Classify(err error) *Error {
	if err == nil {
		return nil
	}
	if own, ok := errors.AsType[*Error](err); ok && own != nil {
		if own == err { //nolint:errorlint // Identity: is it wrapped at all?
			return own
		}
		return own.WithCause(err)
	}
	if rpc, ok := errors.AsType[*connect.Error](err); ok && rpc != nil {
		return classifyConnect(rpc, err)
	}
	if isContextError(err) {
		return interrupted(err)
	}
	return unforeseen(err)
}

func classifyConnect(rpc *connect.Error, err error) *Error {
	if f, ok := failureDetail(rpc); ok {
		return FromFailure(f).WithCause(err)
	}
	switch rpc.Code() {
	case connect.CodeCanceled, connect.CodeDeadlineExceeded:
		return interrupted(err)
	case connect.CodeUnavailable:
		// The text names addresses inside the cluster.
		return New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE,
			"the node that was asked cannot reach the service that this request needs, most likely the metadata service; try again once its nodes and etcd run").WithCause(err)
	case connect.CodeInvalidArgument, connect.CodeResourceExhausted, connect.CodeUnimplemented, connect.CodeNotFound:
		// The RPC library says so of the request at hand: unreadable, over the size
		// limit, or for a procedure that does not exist; or it was made by Status.
		if !rpc.IsRemote() {
			return New(errorsv1.Reason_REASON_INVALID_REQUEST, "%s", rpc.Message()).WithCause(err)
		}
	}
	return unforeseen(err)
}

func interrupted(err error) *Error {
	return New(errorsv1.Reason_REASON_TIMED_OUT,
		"the request ended before it was answered; whether it took effect is unknown").WithCause(err)
}

func unforeseen(err error) *Error {
	incident := strings.ToLower(rand.Text()[:10])
	e := New(errorsv1.Reason_REASON_INTERNAL,
		"internal error; the server's log says more under incident %s", incident).WithCause(err)
	e.Incident = incident
	return e
}

// AsFailure returns any error as the failure of one item of a stream; nil for
// nil. The text of unforeseen errors is left out: a caller that wants it in its
// log uses [Classify].
func AsFailure(err error) *errorsv1.Failure {
	if err == nil {
		return nil
	}
	return Classify(err).Failure()
}

// Connect returns any error as the *connect.Error that ends an RPC; nil for nil.
// It keeps err as its local cause, so that [Classify] of the result finds the
// same incident.
func Connect(err error) error {
	if err == nil {
		return nil
	}
	e := Classify(err)
	code := codeOf(e, err)
	out := connect.NewError(code, publicMessage(e.Message)).WithCause(e)
	if code == connect.CodeCanceled {
		// Nobody is left to read a detail.
		return out
	}
	detail, detailErr := connectproto.NewErrorDetail(e.Failure())
	if detailErr != nil {
		// A detail that holds text which is not UTF-8, for example.
		plain := e.WithDetail(nil)
		detail, _ = connectproto.NewErrorDetail(plain.Failure())
	}
	return out.WithDetail(detail)
}

// Status returns an error with a code of its own choice, for protocols of others
// that prescribe one. The code must be invalid_argument, not_found,
// resource_exhausted or unimplemented.
func Status(code connect.Code, message string) error {
	return connect.NewError(code, publicMessage(message))
}

// codeOf keeps the codes that say more than the reason's own: who ended the
// call, and what the RPC library found wrong with the request.
func codeOf(e *Error, err error) connect.Code {
	if _, ours := errors.AsType[*Error](err); ours {
		return Code(e.Reason)
	}
	if rpc, ok := errors.AsType[*connect.Error](err); ok && rpc != nil {
		_, authored := failureDetail(rpc)
		if !authored && e.Reason != errorsv1.Reason_REASON_INTERNAL {
			return rpc.Code()
		}
		return Code(e.Reason)
	}
	if errors.Is(err, context.Canceled) {
		return connect.CodeCanceled
	}
	return Code(e.Reason)
}

// Parse returns the failure that the error of a client's call carries. It
// reports false for errors of the transport, which carry none.
func Parse(err error) (*Error, bool) {
	if own, ok := errors.AsType[*Error](err); ok && own != nil {
		return own, true
	}
	rpc, ok := errors.AsType[*connect.Error](err)
	if !ok || rpc == nil {
		return nil, false
	}
	f, ok := failureDetail(rpc)
	if !ok {
		return nil, false
	}
	return FromFailure(f).WithCause(err), true
}

func failureDetail(rpc *connect.Error) (*errorsv1.Failure, bool) {
	name := string((&errorsv1.Failure{}).ProtoReflect().Descriptor().FullName())
	for _, d := range rpc.Details() {
		if d.Type != name {
			continue
		}
		f := &errorsv1.Failure{}
		if proto.Unmarshal(d.Value, f) == nil && f.GetReason() != errorsv1.Reason_REASON_UNSPECIFIED {
			return f, true
		}
	}
	return nil, false
}

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// publicMessage makes any text fit for a protobuf string and an HTTP header.
func publicMessage(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxMessageBytes {
		return s
	}
	cut := maxMessageBytes - len("...")
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}
