package rpc

import (
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/reflect/protoreflect"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

const healthService = "grpc.health.v1.Health"

// maxWatchers bounds the Watch streams of one Health.
const maxWatchers = 1000

// Health answers grpc.health.v1.Health for the services of one server. The
// empty name stands for the server as a whole. All methods may be called
// concurrently.
type Health struct {
	mu       sync.Mutex
	serving  map[string]bool
	changed  chan struct{} // Closed and replaced at each change.
	watchers int
}

// NewHealth returns a Health that knows the server as a whole and the named
// services, none of them serving.
func NewHealth(services ...string) *Health {
	h := &Health{serving: map[string]bool{"": false}, changed: make(chan struct{})}
	for _, s := range services {
		h.serving[s] = false
	}
	return h
}

// SetServing says whether a service, or with the empty name the server, can be
// used. The service is known from then on.
func (h *Health) SetServing(service string, serving bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if was, known := h.serving[service]; known && was == serving {
		return
	}
	h.serving[service] = serving
	h.notifyLocked()
}

// Serving reports whether the server as a whole can be used.
func (h *Health) Serving() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.serving[""]
}

// stop marks everything as not serving.
func (h *Health) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.serving {
		h.serving[s] = false
	}
	h.notifyLocked()
}

func (h *Health) notifyLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Health) status(service string) (grpc_health_v1.HealthCheckResponse_ServingStatus, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	serving, known := h.serving[service]
	switch {
	case !known:
		return grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN, h.changed
	case serving:
		return grpc_health_v1.HealthCheckResponse_SERVING, h.changed
	default:
		return grpc_health_v1.HealthCheckResponse_NOT_SERVING, h.changed
	}
}

// register adds the service to a server. It is written by hand because the
// generated code of grpc.health.v1 is for another RPC library; its messages are
// used as they are, since a process may register a proto file only once and etcd
// brings this one.
func (h *Health) register(server *connect.Server, drain *Drain) {
	server.Register(
		connect.Method{
			Spec:    healthSpec("Check", connect.StreamTypeUnary),
			Handler: unary(h.check),
		},
		connect.Method{
			Spec:    healthSpec("List", connect.StreamTypeUnary),
			Handler: unary(h.list),
		},
		connect.Method{
			Spec: healthSpec("Watch", connect.StreamTypeServer),
			Handler: func(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
				return h.watch(ctx, drain, stream)
			},
		},
	)
}

func healthSpec(method string, kind connect.StreamType) connect.Spec {
	service := grpc_health_v1.File_grpc_health_v1_health_proto.Services().ByName("Health")
	return connect.Spec{
		StreamType: kind,
		Schema:     service.Methods().ByName(protoreflect.Name(method)),
		Procedure:  "/" + healthService + "/" + method,
	}
}

func unary[Req, Res any](call func(context.Context, *Req) (*Res, error)) connect.ServerFunc {
	return func(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
		req := new(Req)
		if err := stream.Receive(req); err != nil {
			return err
		}
		res, err := call(ctx, req)
		if err != nil {
			return err
		}
		return stream.Send(res)
	}
}

func (h *Health) check(_ context.Context, req *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	status, _ := h.status(req.GetService())
	if status == grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, rpcerr.Status(connect.CodeNotFound, fmt.Sprintf("service %q is not served here; List names those that are", req.GetService()))
	}
	return &grpc_health_v1.HealthCheckResponse{Status: status}, nil
}

func (h *Health) list(context.Context, *grpc_health_v1.HealthListRequest) (*grpc_health_v1.HealthListResponse, error) {
	h.mu.Lock()
	names := make([]string, 0, len(h.serving))
	for s := range h.serving {
		names = append(names, s)
	}
	h.mu.Unlock()
	res := &grpc_health_v1.HealthListResponse{Statuses: make(map[string]*grpc_health_v1.HealthCheckResponse, len(names))}
	for _, s := range names {
		status, _ := h.status(s)
		res.Statuses[s] = &grpc_health_v1.HealthCheckResponse{Status: status}
	}
	return res, nil
}

func (h *Health) watch(ctx context.Context, drain *Drain, stream connect.ServerStream) error {
	req := new(grpc_health_v1.HealthCheckRequest)
	if err := stream.Receive(req); err != nil {
		return err
	}
	if !h.admit() {
		return rpcerr.New(errorsv1.Reason_REASON_THROTTLED, "%d clients watch the health of this server already; use Check", maxWatchers)
	}
	defer h.leave()
	sent := grpc_health_v1.HealthCheckResponse_ServingStatus(-1)
	for {
		status, changed := h.status(req.GetService())
		if status != sent {
			if err := stream.Send(&grpc_health_v1.HealthCheckResponse{Status: status}); err != nil {
				return err
			}
			sent = status
		}
		select {
		case <-changed:
		case <-drain.C():
			return drain.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *Health) admit() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers >= maxWatchers {
		return false
	}
	h.watchers++
	return true
}

func (h *Health) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers--
}
