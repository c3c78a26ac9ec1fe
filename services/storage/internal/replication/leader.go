package replication

import (
	"context"
	"log/slog"
	"sync"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// Server is the handler of ReplicationService: the leader's end.
type Server struct {
	config     Config
	partitions Partitions
	// nodeEpoch returns the epoch of the latest process of a node that is known.
	nodeEpoch func(cluster.NodeID) (cluster.NodeEpoch, bool)
	proposer  *Proposer
	drain     *rpc.Drain
	logger    *slog.Logger
	metrics   *Metrics

	// running counts the goroutines of streams.
	running sync.WaitGroup

	mu sync.Mutex
	// stopped says that no further stream is taken.
	stopped bool
	// streams has the latest stream of each follower.
	streams map[cluster.NodeID]*feedStream
}

var _ peerv1connect.ReplicationServiceHandler = (*Server)(nil)

// NewServer returns the handler. nodeEpoch returns the epoch of the latest process
// of a node, as far as it is known here; it must not block.
func NewServer(config Config, partitions Partitions, nodeEpoch func(cluster.NodeID) (cluster.NodeEpoch, bool),
	proposer *Proposer, drain *rpc.Drain, logger *slog.Logger, metrics *Metrics,
) *Server {
	s := &Server{
		config: config, partitions: partitions, nodeEpoch: nodeEpoch, proposer: proposer, drain: drain, logger: logger, metrics: metrics,
		streams: make(map[cluster.NodeID]*feedStream),
	}
	metrics.lag.set(s.lag)
	return s
}

// Wait refuses further streams and returns once none is being served, or with the
// error of ctx.
func (s *Server) Wait(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	idle := make(chan struct{})
	go func() {
		s.running.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enter counts a stream, or refuses it.
func (s *Server) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.drain.C():
		return s.drain.Err()
	default:
	}
	if s.stopped {
		return s.drain.Err()
	}
	s.running.Add(1)
	return nil
}

// Replicate serves a stream. A child goroutine receives positions, and hands them
// to their partitions at once, so that the high watermark does not wait for a
// follower that is slow to read; this one sends what follows them.
func (s *Server) Replicate(ctx context.Context, rpcStream peerv1connect.ReplicationServiceReplicateServerStream) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Tells the follower that the stream stands before there is anything to send.
	if err := rpcStream.SendHeaders(); err != nil {
		return err
	}
	stream := &feedStream{
		server: s,
		ready:  partition.NewReady(),
		wake:   make(chan struct{}, 1),
		cut:    make(chan struct{}),
		slots:  make(map[ID]int),
	}
	s.metrics.served.Inc()
	defer s.metrics.served.Dec()
	defer s.leave(stream)
	// The child ends when its Receive fails, at the latest because this one has
	// returned.
	s.running.Go(func() { stream.receive(ctx, rpcStream) })
	return (&sender{feedStream: stream, rpcStream: rpcStream}).run(ctx)
}

// join makes a stream the one of its follower. An older one is cut off: its
// connection may be one of which only this end does not know yet that it is dead.
func (s *Server) join(stream *feedStream, node cluster.NodeID, epoch cluster.NodeEpoch) error {
	if known, ok := s.nodeEpoch(node); ok && epoch < known {
		return staleNode(node, epoch, known)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if stream.left {
		return errReplaced()
	}
	if before := s.streams[node]; before != nil {
		if epoch < before.epoch {
			return staleNode(node, epoch, before.epoch)
		}
		close(before.cut)
	}
	stream.node, stream.epoch = node, epoch
	s.streams[node] = stream
	return nil
}

// leave forgets a stream that ends.
func (s *Server) leave(stream *feedStream) {
	s.mu.Lock()
	stream.left = true
	if s.streams[stream.node] == stream {
		delete(s.streams, stream.node)
	}
	s.mu.Unlock()
	stream.close()
}

// lag returns how many messages the followers have not acknowledged, by node.
func (s *Server) lag() map[cluster.NodeID]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[cluster.NodeID]int64, len(s.streams))
	for node, stream := range s.streams {
		out[node] = stream.lag()
	}
	return out
}

// errReplaced ends a stream when another takes its place.
func errReplaced() error {
	return rpcerr.New(errorsv1.Reason_REASON_DRAINING, "a later stream of the same node has taken the place of this one; go on with that one")
}

func staleNode(node cluster.NodeID, epoch, known cluster.NodeEpoch) error {
	return rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH,
		"node %d follows with epoch %d, but a process with epoch %d has taken its place: stop this one", node, epoch, known)
}
