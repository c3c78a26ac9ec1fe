package rpcerr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// wantCodes is kept beside the switch in Code on purpose: a reason that is added
// to the proto must be decided in both.
var wantCodes = map[errorsv1.Reason]connect.Code{
	errorsv1.Reason_REASON_UNSPECIFIED:                      connect.CodeInternal,
	errorsv1.Reason_REASON_INTERNAL:                         connect.CodeInternal,
	errorsv1.Reason_REASON_INVALID_REQUEST:                  connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_TOPIC_NOT_FOUND:                  connect.CodeNotFound,
	errorsv1.Reason_REASON_TOPIC_EXISTS:                     connect.CodeAlreadyExists,
	errorsv1.Reason_REASON_INVALID_TOPIC_NAME:               connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_INVALID_PARTITIONS:               connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_INVALID_REPLICATION_FACTOR:       connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_INVALID_CONFIG:                   connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_PARTITION_NOT_FOUND:              connect.CodeNotFound,
	errorsv1.Reason_REASON_NOT_LEADER:                       connect.CodeFailedPrecondition,
	errorsv1.Reason_REASON_NO_LEADER:                        connect.CodeUnavailable,
	errorsv1.Reason_REASON_FENCED_LEADER_EPOCH:              connect.CodeAborted,
	errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH:             connect.CodeUnavailable,
	errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE:              connect.CodeOutOfRange,
	errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE:             connect.CodeUnavailable,
	errorsv1.Reason_REASON_RECORD_TOO_LARGE:                 connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_CORRUPT_BATCH:                    connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_UNSUPPORTED_BATCH:                connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE:            connect.CodeFailedPrecondition,
	errorsv1.Reason_REASON_PRODUCER_FENCED:                  connect.CodeFailedPrecondition,
	errorsv1.Reason_REASON_UNKNOWN_PRODUCER:                 connect.CodeFailedPrecondition,
	errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS:              connect.CodeUnavailable,
	errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND: connect.CodeDeadlineExceeded,
	errorsv1.Reason_REASON_TIMED_OUT:                        connect.CodeDeadlineExceeded,
	errorsv1.Reason_REASON_DRAINING:                         connect.CodeUnavailable,
	errorsv1.Reason_REASON_THROTTLED:                        connect.CodeResourceExhausted,
	errorsv1.Reason_REASON_STORAGE_FAILED:                   connect.CodeInternal,
	errorsv1.Reason_REASON_CORRUPT_LOG:                      connect.CodeDataLoss,
	errorsv1.Reason_REASON_INTERNAL_TOPIC:                   connect.CodePermissionDenied,
	errorsv1.Reason_REASON_METADATA_UNAVAILABLE:             connect.CodeUnavailable,
	errorsv1.Reason_REASON_STALE_NODE_EPOCH:                 connect.CodeAborted,
	errorsv1.Reason_REASON_STALE_PARTITION_EPOCH:            connect.CodeAborted,
	errorsv1.Reason_REASON_NODE_MISMATCH:                    connect.CodeFailedPrecondition,
	errorsv1.Reason_REASON_NOT_CONTROLLER:                   connect.CodeUnavailable,
	errorsv1.Reason_REASON_DISK_FULL:                        connect.CodeResourceExhausted,
	errorsv1.Reason_REASON_KEY_REQUIRED:                     connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_INVALID_TIMESTAMP:                connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_LIMIT_REACHED:                    connect.CodeResourceExhausted,
	errorsv1.Reason_REASON_PREFERRED_LEADER_NOT_AVAILABLE:   connect.CodeUnavailable,
	errorsv1.Reason_REASON_LOG_TRUNCATED:                    connect.CodeOutOfRange,
	errorsv1.Reason_REASON_NOT_COORDINATOR:                  connect.CodeFailedPrecondition,
	errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE:        connect.CodeUnavailable,
	errorsv1.Reason_REASON_COORDINATOR_FENCED:               connect.CodeAborted,
	errorsv1.Reason_REASON_UNKNOWN_MEMBER:                   connect.CodeNotFound,
	errorsv1.Reason_REASON_MEMBER_FENCED:                    connect.CodeAborted,
	errorsv1.Reason_REASON_STALE_MEMBER_EPOCH:               connect.CodeAborted,
	errorsv1.Reason_REASON_STALE_COMMIT:                     connect.CodeAborted,
	errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED:           connect.CodeFailedPrecondition,
	errorsv1.Reason_REASON_INSTANCE_FENCED:                  connect.CodeAborted,
	errorsv1.Reason_REASON_GROUP_NOT_FOUND:                  connect.CodeNotFound,
	errorsv1.Reason_REASON_GROUP_NOT_EMPTY:                  connect.CodeFailedPrecondition,
	errorsv1.Reason_REASON_INVALID_GROUP_ID:                 connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_INVALID_SUBSCRIPTION:             connect.CodeInvalidArgument,
	errorsv1.Reason_REASON_GROUP_FULL:                       connect.CodeResourceExhausted,
	errorsv1.Reason_REASON_METADATA_TOO_LARGE:               connect.CodeInvalidArgument,
}

func TestCodeCoversEveryReason(t *testing.T) {
	t.Parallel()
	values := errorsv1.Reason(0).Descriptor().Values()
	for i := range values.Len() {
		reason := errorsv1.Reason(values.Get(i).Number())
		want, ok := wantCodes[reason]
		if !ok {
			t.Errorf("%s: no code decided; add it to Code and to this table", reason)
			continue
		}
		if got := Code(reason); got != want {
			t.Errorf("Code(%s) = %s, want %s", reason, got, want)
		}
	}
	if len(wantCodes) != values.Len() {
		t.Errorf("table has %d reasons, the enum %d", len(wantCodes), values.Len())
	}
}

func TestConnectCarriesTheFailure(t *testing.T) {
	t.Parallel()
	detail := &errorsv1.NotLeader{Topic: "t", Partition: 3, LeaderId: 2, LeaderAddress: "h:1", LeaderEpoch: 7}
	err := New(errorsv1.Reason_REASON_NOT_LEADER, "partition %d of topic %q is led by node %d", 3, "t", 2).
		WithDetail(detail).WithCause(errors.New("secret"))
	for name, in := range map[string]error{
		"plain":   err,
		"wrapped": fmt.Errorf("append batch: %w", err),
		"as a peer's": func() error {
			ce, _ := errors.AsType[*connect.Error](Connect(err))
			// What a client's transport would have built from the wire.
			remote := connect.NewError(ce.Code(), ce.Message()).WithRemote()
			for _, d := range ce.Details() {
				remote = remote.WithDetail(d)
			}
			return fmt.Errorf("forward: %w", remote)
		}(),
	} {
		out := Connect(in)
		ce, ok := errors.AsType[*connect.Error](out)
		if !ok {
			t.Fatalf("%s: %T is no connect error", name, out)
		}
		if ce.IsRemote() {
			t.Errorf("%s: still marked as a peer's", name)
		}
		if ce.Code() != connect.CodeFailedPrecondition || ce.Message() != err.Message {
			t.Errorf("%s: %s %q", name, ce.Code(), ce.Message())
		}
		if strings.Contains(ce.Message(), "secret") {
			t.Errorf("%s: the cause leaked", name)
		}
		parsed, ok := Parse(connectOnly(ce))
		if !ok {
			t.Fatalf("%s: no failure found", name)
		}
		if parsed.Reason != err.Reason || parsed.Message != err.Message || !proto.Equal(parsed.Detail.(proto.Message), detail) {
			t.Errorf("%s: parsed %+v", name, parsed)
		}
	}
}

// connectOnly drops the local cause, as the wire does.
func connectOnly(ce *connect.Error) error {
	out := connect.NewError(ce.Code(), ce.Message()).WithRemote()
	for _, d := range ce.Details() {
		out = out.WithDetail(d)
	}
	return out
}

func TestConnectWithholdsUnforeseenText(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]error{
		"plain":       errors.New("open /secret/path: denied"),
		"a peer's":    connect.NewError(connect.CodeInternal, "secret").WithRemote(),
		"unreachable": connect.NewError(connect.CodeUnavailable, "dial tcp secret:1: refused"),
		"path":        fmt.Errorf("read: %w", &os.PathError{Op: "open", Path: "secret", Err: os.ErrPermission}),
	} {
		ce, _ := errors.AsType[*connect.Error](Connect(in))
		if strings.Contains(ce.Message(), "secret") {
			t.Errorf("%s: leaked %q", name, ce.Message())
		}
		for _, d := range ce.Details() {
			if strings.Contains(string(d.Value), "secret") {
				t.Errorf("%s: leaked in the detail", name)
			}
		}
		if !errors.Is(ce, in) {
			t.Errorf("%s: the log cannot see the cause", name)
		}
		if f := AsFailure(in); strings.Contains(f.GetMessage(), "secret") {
			t.Errorf("%s: leaked in band: %q", name, f.GetMessage())
		}
	}
}

func TestIncidentIsNamedToTheClient(t *testing.T) {
	t.Parallel()
	out := Connect(errors.New("boom"))
	again := Classify(out)
	if again.Incident == "" {
		t.Fatal("no incident")
	}
	ce, _ := errors.AsType[*connect.Error](out)
	if ce.Code() != connect.CodeInternal || !strings.Contains(ce.Message(), again.Incident) {
		t.Errorf("%s %q does not name incident %q", ce.Code(), ce.Message(), again.Incident)
	}
	if other := Classify(errors.New("boom")); other.Incident == again.Incident {
		t.Error("two incidents share a number")
	}
	if Classify(New(errorsv1.Reason_REASON_TOPIC_EXISTS, "x")).Incident != "" {
		t.Error("a foreseen failure got an incident")
	}
}

func TestConnectKeepsWhatTheLibrarySays(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		in     error
		code   connect.Code
		reason errorsv1.Reason
	}{
		{context.Canceled, connect.CodeCanceled, 0},
		{fmt.Errorf("wait: %w", context.Canceled), connect.CodeCanceled, 0},
		{context.DeadlineExceeded, connect.CodeDeadlineExceeded, errorsv1.Reason_REASON_TIMED_OUT},
		{connect.NewError(connect.CodeCanceled, "x"), connect.CodeCanceled, 0},
		{connect.NewError(connect.CodeUnimplemented, "x"), connect.CodeUnimplemented, errorsv1.Reason_REASON_INVALID_REQUEST},
		{connect.NewError(connect.CodeResourceExhausted, "too large"), connect.CodeResourceExhausted, errorsv1.Reason_REASON_INVALID_REQUEST},
		{connect.NewError(connect.CodeResourceExhausted, "too large").WithRemote(), connect.CodeInternal, errorsv1.Reason_REASON_INTERNAL},
		{connect.NewError(connect.CodeUnavailable, "x"), connect.CodeUnavailable, errorsv1.Reason_REASON_METADATA_UNAVAILABLE},
		{New(errorsv1.Reason_REASON_DRAINING, "x").WithCause(context.Canceled), connect.CodeUnavailable, errorsv1.Reason_REASON_DRAINING},
	} {
		ce, _ := errors.AsType[*connect.Error](Connect(tc.in))
		if ce.Code() != tc.code {
			t.Errorf("Connect(%v): code %s, want %s", tc.in, ce.Code(), tc.code)
		}
		parsed, ok := Parse(connectOnly(ce))
		if ok != (tc.reason != 0) || ok && parsed.Reason != tc.reason {
			t.Errorf("Connect(%v): reason %v %t, want %s", tc.in, parsed, ok, tc.reason)
		}
	}
	if Connect(nil) != nil || AsFailure(nil) != nil || Classify(nil) != nil || FromFailure(nil) != nil {
		t.Error("nil did not stay nil")
	}
}

func TestMessageFitsTheWire(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("\u00e9", maxMessageBytes)
	for _, msg := range []string{"\xff\xfe", long, "a" + long, strings.Repeat("x", maxMessageBytes)} {
		got := New(errorsv1.Reason_REASON_INVALID_REQUEST, "%s", msg).Failure().GetMessage()
		if !utf8.ValidString(got) || len(got) > maxMessageBytes {
			t.Errorf("message of %d bytes, valid %t", len(got), utf8.ValidString(got))
		}
	}
	// A detail that cannot be encoded must not cost the reason.
	bad := New(errorsv1.Reason_REASON_NOT_LEADER, "x").WithDetail(&errorsv1.NotLeader{Topic: "\xff"})
	if parsed, ok := Parse(Connect(bad)); !ok || parsed.Reason != errorsv1.Reason_REASON_NOT_LEADER {
		t.Errorf("parsed %v %t", parsed, ok)
	}
}

func TestIsComparesReasons(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("create: %w", New(errorsv1.Reason_REASON_TOPIC_EXISTS, "x"))
	if !errors.Is(err, &Error{Reason: errorsv1.Reason_REASON_TOPIC_EXISTS}) ||
		errors.Is(err, &Error{Reason: errorsv1.Reason_REASON_TOPIC_NOT_FOUND}) {
		t.Error("errors.Is does not compare reasons")
	}
	if ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_EXISTS || ReasonOf(errors.New("x")) != errorsv1.Reason_REASON_INTERNAL || ReasonOf(nil) != 0 {
		t.Error("ReasonOf")
	}
}

// TestEveryDetailComesBack: what a client parses has the detail that was sent.
func TestEveryDetailComesBack(t *testing.T) {
	t.Parallel()
	fields := (&errorsv1.Failure{}).ProtoReflect().Descriptor().Oneofs().ByName("detail").Fields()
	details := []proto.Message{
		&errorsv1.NotLeader{Topic: "t"}, &errorsv1.OffsetOutOfRange{Topic: "t"}, &errorsv1.OutOfOrderSequence{ProducerId: 1},
		&errorsv1.LogTruncated{Topic: "t"}, &errorsv1.NotCoordinator{Group: "g", CoordinatorId: 2, CoordinatorAddress: "h:1"},
	}
	if len(details) != fields.Len() {
		t.Errorf("%d kinds of details are tried, there are %d", len(details), fields.Len())
	}
	for _, detail := range details {
		back := FromFailure(New(errorsv1.Reason_REASON_INTERNAL, "x").WithDetail(detail).Failure())
		if got, ok := back.Detail.(proto.Message); !ok || !proto.Equal(got, detail) {
			t.Errorf("%T: %v", detail, back.Detail)
		}
	}
}
