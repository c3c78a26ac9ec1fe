package replication

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// feedStream is a Replicate stream between the goroutine that receives positions
// and the one that sends.
type feedStream struct {
	server *Server
	// ready collects the partitions with news.
	ready *partition.Ready
	// wake has a token when there is something for the sender to look at.
	wake chan struct{}
	// cut is closed by [Server.join] when another stream takes the place of this one.
	cut chan struct{}

	// node and epoch are the follower's, set by [Server.join] under the mutex of the
	// server.
	node  cluster.NodeID
	epoch cluster.NodeEpoch
	// left says that the stream has ended; the mutex of the server guards it.
	left bool

	mu sync.Mutex
	// feeds has nil for slots that are free.
	feeds []*feed
	slots map[ID]int
	free  []int
	// stated are the slots with positions that the sender has not looked at.
	stated []int
	// inFlight are the bytes that were sent and not acknowledged.
	inFlight int
	// ended says that the receiver has stopped, with endErr; io.EOF is the follower's
	// half-close.
	ended  bool
	endErr error
}

// receive hands positions to their partitions until the stream ends.
func (s *feedStream) receive(ctx context.Context, rpcStream peerv1connect.ReplicationServiceReplicateServerStream) {
	defer func() {
		// The interceptor that catches panics of handlers does not see this goroutine.
		if cause := recover(); cause != nil {
			s.server.logger.ErrorContext(ctx, "panic while receiving positions", "panic", cause, "stack", string(debug.Stack()))
			s.end(fmt.Errorf("panic: %v", cause))
		}
	}()
	joined := false
	for {
		req, err := rpcStream.Receive()
		if err != nil {
			s.end(err)
			return
		}
		node, epoch := cluster.NodeID(req.GetNodeId()), cluster.NodeEpoch(req.GetNodeEpoch())
		switch {
		case !joined:
			if err := s.server.join(s, node, epoch); err != nil {
				s.end(err)
				return
			}
			joined = true
		case node != s.node || epoch != s.epoch:
			s.end(rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST,
				"the stream of node %d, epoch %d, names node %d, epoch %d; open one stream for each process", s.node, s.epoch, node, epoch))
			return
		}
		if err := s.accept(req); err != nil {
			s.end(err)
			return
		}
	}
}

// accept takes over the positions of a request.
func (s *feedStream) accept(req *peerv1.ReplicateRequest) error {
	now := time.Now()
	for _, m := range req.GetPositions() {
		id, err := parseID(m.GetTopicId(), m.GetPartition())
		if err != nil {
			return rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST, "a position names no partition: %v", err)
		}
		if m.GetRemove() {
			s.remove(id)
			continue
		}
		position, err := readPosition(req, m)
		if err != nil {
			return rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST, "partition %d of topic %s: %v", id.Index, id.Topic, err)
		}
		if err := s.state(id, position, m.GetResend(), now); err != nil {
			return err
		}
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// state takes over one position. The error ends the stream.
func (s *feedStream) state(id ID, position rules.Position, resend bool, now time.Time) error {
	p, err := s.server.partitions.ByID(id.Topic, id.Index)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.queueLocked(s.feedLocked(id, nil), func(f *feed) int { return f.refuse(position, answer{cause: err}) })
		return nil
	}
	// The partition first: the sender must not read for a position that the leader
	// has not accepted.
	fetch := p.Fetched(position, now)
	if fetch.Outcome == rules.FetchStaleNode {
		return rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH,
			"node %d follows with epoch %d, but a later process of it has followed already: stop this one", position.Node, position.NodeEpoch)
	}
	s.mu.Lock()
	s.queueLocked(s.feedLocked(id, p), func(f *feed) int {
		switch fetch.Outcome {
		case rules.FetchServed:
			return f.state(position, resend)
		case rules.FetchDiverges, rules.FetchRestarts:
			return f.refuse(position, answer{fetch: fetch})
		default:
			return f.refuse(position, answer{cause: refusal(id, fetch.Outcome)})
		}
	})
	s.mu.Unlock()
	if fetch.Outcome == rules.FetchServed {
		s.server.proposer.Consider(p, now)
	}
	return nil
}

// feedLocked returns the feed of a partition, a new one if there is none.
func (s *feedStream) feedLocked(id ID, p *partition.Partition) *feed {
	if slot, ok := s.slots[id]; ok {
		f := s.feeds[slot]
		if f.partition == p {
			return f
		}
		s.dropLocked(f)
	}
	slot := len(s.feeds)
	if n := len(s.free); n > 0 {
		slot, s.free = s.free[n-1], s.free[:n-1]
	} else {
		s.feeds = append(s.feeds, nil)
	}
	f := &feed{id: id, slot: slot, partition: p, waits: true}
	s.feeds[slot], s.slots[id] = f, slot
	return f
}

// queueLocked changes a feed and asks the sender to look at it.
func (s *feedStream) queueLocked(f *feed, change func(*feed) (freed int)) {
	s.inFlight -= change(f)
	s.stated = append(s.stated, f.slot)
}

func (s *feedStream) remove(id ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot, ok := s.slots[id]; ok {
		s.dropLocked(s.feeds[slot])
	}
}

// dropLocked ends a feed.
func (s *feedStream) dropLocked(f *feed) {
	s.inFlight -= f.window.clear()
	s.feeds[f.slot] = nil
	s.free = append(s.free, f.slot)
	delete(s.slots, f.id)
	if f.armed {
		f.partition.Forget(s.ready)
	}
}

func (s *feedStream) end(err error) {
	s.mu.Lock()
	s.ended, s.endErr = true, err
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// close takes back what the partitions were asked for. Neither goroutine may be
// using the stream but the one that receives, which finds it empty.
func (s *feedStream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.feeds {
		if f != nil {
			s.dropLocked(f)
		}
	}
}

// lag returns how many messages the follower has not acknowledged.
func (s *feedStream) lag() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum int64
	for _, f := range s.feeds {
		if f != nil && f.partition != nil {
			sum += max(0, f.partition.LogEnd()-f.position.LogEnd)
		}
	}
	return sum
}
