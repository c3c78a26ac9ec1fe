package rpc

import (
	"context"
	"sync"

	"connectrpc.com/connect/v2"
	"connectrpc.com/grpcreflect/v2"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// registerReflection serves grpc.reflection v1 and v1alpha for the services that
// server has, and for nothing else that is compiled in.
func registerReflection(server *connect.Server, drain *Drain) {
	files := new(protoregistry.Files)
	for spec := range server.Specs() {
		if method, ok := spec.Schema.(protoreflect.MethodDescriptor); ok {
			addFile(files, method.ParentFile())
		}
	}
	// A server of its own, so that the methods can be wrapped on their way to the
	// real one.
	inner := connect.NewServer()
	grpcreflect.Register(inner,
		grpcreflect.WithNamer(grpcreflect.NamerFunc(func() []string { return ServiceNames(server) })),
		grpcreflect.WithDescriptorResolver(files),
		grpcreflect.WithExtensionResolver(new(protoregistry.Types)),
	)
	for spec := range inner.Specs() {
		if method, ok := spec.Schema.(protoreflect.MethodDescriptor); ok {
			addFile(files, method.ParentFile())
		}
		server.Register(connect.Method{
			Spec: spec,
			Handler: drainable(drain, func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
				return inner.Call(ctx, spec.Procedure, nil, stream)
			}),
		})
	}
}

// addFile registers a file after all that it imports.
func addFile(files *protoregistry.Files, file protoreflect.FileDescriptor) {
	if file == nil || file.IsPlaceholder() {
		return
	}
	if _, err := files.FindFileByPath(file.Path()); err == nil {
		return
	}
	imports := file.Imports()
	for i := range imports.Len() {
		addFile(files, imports.Get(i).FileDescriptor)
	}
	// A conflict is impossible: the process has loaded all of them together.
	_ = files.RegisterFile(file)
}

// drainable makes a handler that sits in Receive leave when drain begins. It is
// for handlers of others; our own select on the drain themselves.
func drainable(drain *Drain, next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		guarded := &detachableStream{ServerStream: stream}
		done := make(chan error, 1)
		// The goroutine cannot be waited for: only the end of this handler makes its
		// Receive fail. It touches nothing of the stream's send side after detach.
		go func() { done <- next(ctx, spec, guarded) }()
		select {
		case err := <-done:
			return err
		case <-drain.C():
			guarded.detach(drain.Err())
			return drain.Err()
		}
	}
}

// detachableStream refuses to send once it is detached.
type detachableStream struct {
	connect.ServerStream

	mu       sync.Mutex
	detached error
}

func (s *detachableStream) Send(msg any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detached != nil {
		return s.detached
	}
	return s.ServerStream.Send(msg)
}

func (s *detachableStream) SendHeaders() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detached != nil {
		return s.detached
	}
	return s.ServerStream.SendHeaders()
}

func (s *detachableStream) detach(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detached = err
}
