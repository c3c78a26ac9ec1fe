package replication

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

const (
	// responseBytes is how many bytes of batches a response takes before it is sent;
	// its last batch may be larger.
	responseBytes = 1 << 20
	// responsePartitions bounds the partitions of a response, and of a request.
	responsePartitions = 1000
	// highWatermarkDelay is how long a high watermark that has moved waits for batches
	// to ride on. Followers need it only when they become leaders.
	highWatermarkDelay = 10 * time.Millisecond
)

// sender is the sending half of a stream; it belongs to the handler's goroutine.
type sender struct {
	*feedStream
	rpcStream peerv1connect.ReplicationServiceReplicateServerStream

	// queue has the slots that may have something to send, in the order of their
	// turns; the others wait for news, or for a position.
	queue []int
	// late has the slots with a high watermark that waits, until lateness fires.
	late     []int
	lateness <-chan time.Time
	taken    []int
}

// run sends what there is of one partition after another, several of them in one
// response, and sleeps when it has sent all. While the follower does not read, it
// waits in Send and holds nothing but the response at hand.
func (s *sender) run(ctx context.Context) error {
	for {
		s.take()
		res, err := s.compose(ctx)
		if err != nil {
			return err
		}
		busy := len(res.GetPartitions()) > 0
		if busy {
			if err := s.rpcStream.Send(res); err != nil {
				return err
			}
			s.server.metrics.responses.Inc()
		}
		if over, err := s.over(ctx); over || busy {
			if over {
				return err
			}
			continue
		}
		select {
		case <-s.ready.C():
		case <-s.wake:
		case <-s.lateness:
			s.flush()
		case <-s.cut:
		case <-s.server.drain.C():
		case <-ctx.Done():
		}
	}
}

// over reports whether the stream has to end, and with what.
func (s *sender) over(ctx context.Context) (bool, error) {
	select {
	case <-s.server.drain.C():
		return true, s.server.drain.Err()
	case <-s.cut:
		return true, errReplaced()
	case <-ctx.Done():
		return true, ctx.Err()
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended && errors.Is(s.endErr, io.EOF) {
		return true, nil
	}
	return s.ended, s.endErr
}

// take queues the partitions that have news, or whose position has changed.
func (s *sender) take() {
	s.taken = s.ready.Take(s.taken[:0])
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slot := range s.taken {
		if f := s.feeds[slot]; f != nil {
			f.armed = false
			s.enqueueLocked(f)
		}
	}
	for _, slot := range s.stated {
		if f := s.feeds[slot]; f != nil {
			s.enqueueLocked(f)
		}
	}
	s.stated = s.stated[:0]
}

func (s *sender) enqueueLocked(f *feed) {
	if !f.queued {
		f.queued = true
		s.queue = append(s.queue, f.slot)
	}
}

// flush queues the partitions whose high watermark has waited for long enough.
func (s *sender) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slot := range s.late {
		if f := s.feeds[slot]; f != nil && f.late {
			f.late, f.alone = false, true
			s.enqueueLocked(f)
		}
	}
	s.late, s.lateness = s.late[:0], nil
}

// compose gives each partition of the queue a turn until a response is full.
func (s *sender) compose(ctx context.Context) (*peerv1.ReplicateResponse, error) {
	res := &peerv1.ReplicateResponse{}
	room, turns := responseBytes, 0
	queue := s.queue
	// A partition that wants another turn comes back behind those that had none, and
	// so is in no response twice.
	s.queue = nil
	for turns < len(queue) && room > 0 && len(res.GetPartitions()) < responsePartitions {
		data, bytes, err := s.turn(ctx, queue[turns], room)
		if err != nil {
			return nil, err
		}
		turns++
		if data != nil {
			res.Partitions = append(res.Partitions, data)
			room -= bytes
		}
	}
	s.queue = append(queue[turns:], s.queue...)
	return res, nil
}

// turn returns the next message of a partition, nil if there is none, and how many
// bytes of batches it has.
func (s *sender) turn(ctx context.Context, slot, maxBytes int) (*peerv1.ReplicaData, int, error) {
	s.mu.Lock()
	f := s.feeds[slot]
	if f == nil {
		s.mu.Unlock()
		return nil, 0, nil
	}
	f.queued = false
	if f.answer != nil {
		a, position, p := *f.answer, f.position, f.partition
		f.answer, f.waits = nil, true
		if a.cause != nil {
			s.dropLocked(f)
		}
		s.mu.Unlock()
		data, err := s.answer(ctx, f, p, position, a)
		return data, 0, err
	}
	config := s.server.config
	room := min(maxBytes, config.WindowBytes-f.window.bytes, config.StreamBytes-s.inFlight)
	switch {
	case f.waits || f.window.bytes >= config.WindowBytes:
		// A position queues it again.
		s.mu.Unlock()
		return nil, 0, nil
	case room <= 0:
		s.enqueueLocked(f)
		s.mu.Unlock()
		return nil, 0, nil
	}
	p, epoch, generation, next := f.partition, f.position.LeaderEpoch, f.generation, f.next
	s.mu.Unlock()

	out, batches, err := p.ReadFollower(ctx, epoch, next, room)
	if ctx.Err() != nil {
		return nil, 0, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feeds[slot] != f || f.generation != generation {
		// A position has come meanwhile, and queued it.
		return nil, 0, nil
	}
	if err != nil {
		s.inFlight -= f.refuse(f.position, answer{cause: err})
		s.enqueueLocked(f)
		return nil, 0, nil
	}
	if out.Restarts {
		// What was next is gone. What is on its way the follower may still take, and
		// then it is where the log begins anew for it.
		s.server.metrics.restarts.Inc()
		s.inFlight -= f.window.clear()
		f.waits = true
		return dataMessage(f.id, out, nil), 0, nil
	}
	data, bytes := s.dataLocked(f, out, batches)
	return data, bytes, nil
}

// dataLocked returns what was read as a message, or nil if there is nothing to tell
// or it may wait.
func (s *sender) dataLocked(f *feed, out rules.Replicated, batches [][]byte) (*peerv1.ReplicaData, int) {
	bytes := 0
	for _, b := range batches {
		bytes += len(b)
	}
	news := told{known: true, highWatermark: out.HighWatermark, logStart: out.LogStart, probe: out.Probe}
	var data *peerv1.ReplicaData
	switch {
	case len(batches) > 0 || news.probe > f.told.probe || f.alone && f.told != news:
		data = dataMessage(f.id, out, batches)
		f.told, f.late = news, false
		if n := len(out.Batches); n > 0 {
			f.next = out.Batches[n-1].LastOffset + 1
			f.window.push(f.next, bytes)
			s.inFlight += bytes
			s.server.metrics.bytesOut.Add(float64(bytes))
		}
	case f.told != news && !f.late:
		f.late = true
		s.late = append(s.late, f.slot)
		if s.lateness == nil {
			s.lateness = time.After(highWatermarkDelay)
		}
	}
	f.alone = false
	if !f.armed {
		sent := partition.Sent{LeaderEpoch: out.LeaderEpoch, LogEnd: f.next, HighWatermark: news.highWatermark, LogStart: news.logStart, Probe: news.probe}
		if f.window.bytes >= s.server.config.WindowBytes {
			// There may be more, but only an acknowledgement makes room for it.
			sent.LogEnd = math.MaxInt64
		}
		f.armed = f.partition.AwaitFollower(s.ready, f.slot, sent)
	}
	if !f.armed {
		s.enqueueLocked(f)
	}
	return data, bytes
}

// answer returns what a position is answered with instead of batches.
func (s *sender) answer(ctx context.Context, f *feed, p *partition.Partition, position rules.Position, a answer) (*peerv1.ReplicaData, error) {
	out := rules.Replicated{LeaderEpoch: position.LeaderEpoch, Follows: position.LogEnd}
	switch {
	case a.cause != nil:
	case a.fetch.Outcome == rules.FetchDiverges:
		s.server.metrics.divergences.Inc()
		out.Diverges, out.Epoch, out.End = true, a.fetch.Epoch, a.fetch.End
	case a.fetch.Outcome == rules.FetchRestarts:
		s.server.metrics.restarts.Inc()
		out.Restarts = true
		out.RestartOffset, a.cause = p.RestartOffset(ctx, position.LeaderEpoch)
		out.CoordinatorEpoch = p.CoordinatorEpoch()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if a.cause == nil {
		return dataMessage(f.id, out, nil), nil
	}
	e := rpcerr.Classify(a.cause)
	if e.Incident != "" {
		s.server.logger.LogAttrs(ctx, slog.LevelError, "a follower is not served", slog.String("incident", e.Incident),
			slog.String("topic_id", f.id.Topic.String()), slog.Int("partition", int(f.id.Index)), slog.Any("error", a.cause))
	}
	data := dataMessage(f.id, rules.Replicated{LeaderEpoch: position.LeaderEpoch, Follows: position.LogEnd}, nil)
	data.Failure = e.Failure()
	return data, nil
}

// refusal is why a position is not served.
func refusal(id ID, outcome rules.FetchOutcome) error {
	switch outcome {
	case rules.FetchFenced:
		return rpcerr.New(errorsv1.Reason_REASON_FENCED_LEADER_EPOCH,
			"the leader epoch of the position in partition %d of topic %s is over; wait for the state of the cluster", id.Index, id.Topic)
	case rules.FetchUnknown:
		return rpcerr.New(errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH,
			"the leader epoch of the position in partition %d of topic %s is newer than this node knows; try again", id.Index, id.Topic)
	case rules.FetchNoReplica:
		return rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST,
			"the follower holds no replica of partition %d of topic %s; wait for the state of the cluster", id.Index, id.Topic)
	default:
		return rpcerr.New(errorsv1.Reason_REASON_NOT_LEADER,
			"this node does not lead partition %d of topic %s; wait for the state of the cluster", id.Index, id.Topic)
	}
}
