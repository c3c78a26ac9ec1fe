package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// A stream that breaks is opened again, and a partition that its leader does not
// serve is stated again, after pauses that grow between these two.
const (
	minPause = 50 * time.Millisecond
	maxPause = time.Second
	// minWait is the first pause where this node is what is waited for.
	minWait = 5 * time.Millisecond
)

// link is what this node follows of one leader, over one stream at a time. Its
// goroutine runs the stream and sends positions, a child receives.
type link struct {
	followers *Followers
	leader    cluster.NodeID
	// wake has a token when there is something to state.
	wake chan struct{}

	// mu is taken before the locks of partitions.
	mu       sync.Mutex
	followed map[ID]*followed
	// due are the partitions whose position may have to be stated, removed those that
	// the leader need not send any more.
	due     []*followed
	removed []ID
	// postponed are those that wait for their retry.
	postponed []*followed
	// received says that the stream has brought something.
	received bool
}

// followed is a partition that follows. The mutex of the link guards it, but for
// what never changes.
type followed struct {
	id        ID
	partition *partition.Partition
	// epoch is the leader epoch in which it follows.
	epoch cluster.LeaderEpoch
	// gone says that it does not follow here any more.
	gone bool
	// queued says that it is among those that are due.
	queued bool

	// stated is the log end that was stated last, and asked the one from which the
	// leader was asked to send; -1 for none on this stream.
	stated, asked int64
	// statedStart is the log start that was stated with it.
	statedStart int64
	// probe is the latest that has come in this leader epoch, answered the one that the
	// leader knows to have come.
	probe, answered int64
	// resend says that the next position asks to be sent from. missed says the same
	// once the position has moved: what the leader sent for the one that it was asked
	// to send from came while more was being written.
	resend, missed bool

	pause time.Duration
	retry time.Time
}

func newLink(f *Followers, leader cluster.NodeID) *link {
	return &link{followers: f, leader: leader, wake: make(chan struct{}, 1), followed: make(map[ID]*followed)}
}

// follow begins to follow a partition, or goes on in another leader epoch.
func (l *link) follow(id ID, p *partition.Partition, epoch cluster.LeaderEpoch) {
	l.mu.Lock()
	f := l.followed[id]
	if f == nil {
		f = &followed{id: id, partition: p, stated: -1, asked: -1}
		l.followed[id] = f
	}
	if f.epoch != epoch {
		f.probe, f.answered = 0, 0
	}
	f.epoch, f.pause, f.retry = epoch, 0, time.Time{}
	l.askLocked(f)
	l.mu.Unlock()
	l.signal()
}

// remove ends to follow a partition here.
func (l *link) remove(id ID) {
	l.mu.Lock()
	if f := l.followed[id]; f != nil {
		f.gone = true
		delete(l.followed, id)
		l.removed = append(l.removed, id)
	}
	l.mu.Unlock()
	l.signal()
}

func (l *link) empty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.followed) == 0
}

func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// dueLocked makes the position of a partition be looked at.
func (l *link) dueLocked(f *followed) {
	if !f.queued && !f.gone {
		f.queued = true
		l.due = append(l.due, f)
	}
}

// askLocked makes the leader be asked to send from where the partition stands.
func (l *link) askLocked(f *followed) {
	f.resend = true
	l.dueLocked(f)
}

// run keeps a stream to the leader until ctx ends. node ends with the node: what is
// being written is not abandoned for the end of a stream.
func (l *link) run(ctx, node context.Context) {
	logger := l.followers.logger.With("leader", l.leader)
	pause := minPause
	for failing := false; ; {
		received, err := l.stream(ctx, node)
		if ctx.Err() != nil {
			return
		}
		if received {
			pause, failing = minPause, false
		}
		if !failing {
			// Once per outage.
			logger.Warn("the stream from a leader broke; opening another", "error", err)
			failing = true
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// transport returns the way to the leader.
func (l *link) transport() (connect.Transport, error) {
	image := l.followers.view.Image()
	node, ok := image.Node(l.leader)
	if !ok || node.PeerAddress == "" {
		return nil, fmt.Errorf("node %d has no address for peers: start it with one", l.leader)
	}
	return l.followers.dial(node.PeerAddress), nil
}

// stream runs one stream until it ends, and reports whether it has brought
// something.
func (l *link) stream(ctx, node context.Context) (received bool, _ error) {
	transport, err := l.transport()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rpcStream, err := peerv1connect.NewReplicationServiceClient(connect.NewClient(transport)).Replicate(ctx)
	if err != nil {
		return false, err
	}
	l.begin()
	l.followers.metrics.followed.Inc()
	defer l.followers.metrics.followed.Dec()
	ended := make(chan error, 1)
	go func() { ended <- l.receive(ctx, node, rpcStream) }()
	err = l.state(ctx, node, rpcStream, ended)
	cancel()
	_ = rpcStream.Close() // Of a stream that has broken, or is given up.
	if first := <-ended; first != nil {
		err = first
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.received, err
}

// begin makes all positions be stated on a new stream.
func (l *link) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.received, l.removed, l.postponed = false, nil, nil
	for _, f := range l.followed {
		f.stated, f.asked, f.missed = -1, -1, false
		f.pause, f.retry = 0, time.Time{}
		l.askLocked(f)
	}
}

// state sends positions as they move until the stream ends, which ended tells with
// a nil error put back.
func (l *link) state(ctx, node context.Context, rpcStream peerv1connect.ReplicationServiceReplicateClientStream, ended chan error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		req, retry := l.compose(time.Now())
		if len(req.GetPositions()) > 0 {
			if err := rpcStream.Send(req); err != nil {
				return fmt.Errorf("send positions: %w", err)
			}
			continue
		}
		timer.Stop()
		if !retry.IsZero() {
			timer.Reset(time.Until(retry))
		}
		select {
		case <-l.wake:
		case <-timer.C:
		case err := <-ended:
			ended <- err
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// compose returns a request with the positions that the leader does not know, and
// when to look again for those that were postponed, if there are any.
func (l *link) compose(now time.Time) (*peerv1.ReplicateRequest, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	req := &peerv1.ReplicateRequest{NodeId: int32(l.followers.self), NodeEpoch: int64(l.followers.epoch)}
	for n := 0; n < responsePartitions && len(l.removed) > 0; n++ {
		id := l.removed[0]
		l.removed = l.removed[1:]
		if l.followed[id] == nil {
			req.Positions = append(req.Positions, &peerv1.FollowerPosition{TopicId: id.Topic[:], Partition: id.Index, Remove: true})
		}
	}
	l.resumeLocked(now)
	due := l.due
	l.due = nil
	for i, f := range due {
		if len(req.GetPositions()) >= responsePartitions {
			l.due = append(l.due, due[i:]...)
			break
		}
		f.queued = false
		if m := l.positionLocked(f, now); m != nil {
			req.Positions = append(req.Positions, m)
		}
	}
	return req, l.nextLocked()
}

// resumeLocked asks again for the partitions that have waited for long enough.
func (l *link) resumeLocked(now time.Time) {
	waiting := l.postponed[:0]
	for _, f := range l.postponed {
		switch {
		case f.gone || f.retry.IsZero():
		case f.retry.After(now):
			waiting = append(waiting, f)
		default:
			f.retry = time.Time{}
			l.askLocked(f)
		}
	}
	clear(l.postponed[len(waiting):])
	l.postponed = waiting
}

// nextLocked returns when the next partition has waited for long enough; zero while
// none waits.
func (l *link) nextLocked() time.Time {
	var next time.Time
	for _, f := range l.postponed {
		if !f.retry.IsZero() && (next.IsZero() || f.retry.Before(next)) {
			next = f.retry
		}
	}
	return next
}

// positionLocked returns the position of a partition if the leader does not know
// it. A partition that has none for the moment is asked again soon: it writes what
// it had queued in an earlier leader epoch, and until then nobody can say whether the
// leader has that, too.
func (l *link) positionLocked(f *followed, now time.Time) *peerv1.FollowerPosition {
	if f.gone || !f.retry.IsZero() {
		return nil
	}
	position, ok := f.partition.Position(l.followers.epoch)
	if !ok || position.LeaderEpoch != f.epoch {
		l.postponeLocked(f, now, minWait)
		return nil
	}
	moved := position.LogEnd != f.stated
	resend := f.resend || f.missed && moved
	if !moved && !resend && position.LogStart == f.statedStart && f.probe == f.answered {
		return nil
	}
	// The probe came before the position was taken.
	position.Probe = f.probe
	f.answered = f.probe
	m := positionMessage(f.id, position, resend && f.stated >= 0)
	f.stated, f.statedStart = position.LogEnd, position.LogStart
	if resend {
		f.asked, f.resend, f.missed = position.LogEnd, false, false
	}
	return m
}

// postponeLocked makes the leader be asked later, after a pause that grows.
func (l *link) postponeLocked(f *followed, now time.Time, least time.Duration) {
	f.pause = min(max(2*f.pause, least), maxPause)
	if f.retry.IsZero() {
		l.postponed = append(l.postponed, f)
	}
	f.retry = now.Add(f.pause)
}

// receive hands what the leader sends to the partitions, until the stream ends.
func (l *link) receive(ctx, node context.Context, rpcStream peerv1connect.ReplicationServiceReplicateClientStream) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			l.followers.logger.ErrorContext(ctx, "panic while receiving from a leader", "panic", cause, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", cause)
		}
	}()
	for {
		res, err := rpcStream.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the leader has ended the stream")
			}
			return fmt.Errorf("receive: %w", err)
		}
		for _, data := range res.GetPartitions() {
			if err := l.accept(ctx, node, data); err != nil {
				return err
			}
		}
	}
}

// accept hands one message to its partition. The error ends the stream.
func (l *link) accept(ctx, node context.Context, data *peerv1.ReplicaData) error {
	id, err := parseID(data.GetTopicId(), data.GetPartition())
	if err != nil {
		return fmt.Errorf("the leader names no partition: %w", err)
	}
	l.mu.Lock()
	l.received = true
	f := l.followed[id]
	l.mu.Unlock()
	if f == nil {
		return nil // It was removed while this was on its way.
	}
	if data.GetFailure() != nil {
		l.refuse(ctx, f, data.GetLeaderEpoch(), rpcerr.FromFailure(data.GetFailure()))
		return nil
	}
	in, err := readReplicated(data)
	if err != nil {
		return fmt.Errorf("partition %d of topic %s: %w", id.Index, id.Topic, err)
	}
	l.probed(f, in)
	received, err := f.partition.Receive(node, in, data.GetBatches(), func(err error) {
		// An error is the store's, which stops the node.
		if err == nil {
			l.moved(f)
		}
	})
	switch {
	case node.Err() != nil:
		return node.Err()
	case err != nil:
		l.refuse(ctx, f, data.GetLeaderEpoch(), err)
	default:
		if received.Anew {
			l.followers.logger.Warn("a partition that had lost records begins anew: its leader sends all of it",
				"topic", f.partition.Topic().Name, "partition", id.Index, "leader", l.leader)
		}
		l.took(f, in, received.Outcome)
	}
	return nil
}

// probed makes a position be stated that the leader waits for, moved or not.
func (l *link) probed(f *followed, in rules.Replicated) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if in.LeaderEpoch != f.epoch || in.Probe <= f.probe {
		return
	}
	f.probe = in.Probe
	l.dueLocked(f)
	l.signal()
}

// moved makes a position be stated that has moved.
func (l *link) moved(f *followed) {
	l.mu.Lock()
	l.dueLocked(f)
	l.mu.Unlock()
	l.signal()
}

// took notes what a partition has made of a message.
func (l *link) took(f *followed, in rules.Replicated, outcome rules.ReceiveOutcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case f.gone || in.LeaderEpoch != f.epoch:
		return
	case outcome == rules.ReceiveAppends:
		f.pause = 0
		return
	case outcome == rules.ReceiveTruncates || outcome == rules.ReceiveRestarts:
		l.askLocked(f)
	case f.stated != f.asked:
		// What came before was taken: a message is missing between.
		l.followers.metrics.resent.Inc()
		l.askLocked(f)
	case in.Follows == f.asked:
		f.missed = true
		l.dueLocked(f)
	default:
		// It was sent before the leader was asked.
		return
	}
	l.signal()
}

// refuse makes a partition be stated again after a pause: its leader does not serve
// it, or what it has sent cannot be written.
func (l *link) refuse(ctx context.Context, f *followed, epoch int32, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.gone || cluster.LeaderEpoch(epoch) != f.epoch {
		return
	}
	if f.pause == 0 {
		l.followers.logger.Log(ctx, levelOf(cause), "a partition does not follow for the moment", "topic", f.partition.Topic().Name, "partition", f.id.Index,
			"leader", l.leader, "leader_epoch", epoch, "error", cause)
	}
	l.postponeLocked(f, time.Now(), minPause)
	l.signal()
}

// levelOf tells what every change of leaders brings from what an operator should
// know of.
func levelOf(cause error) slog.Level {
	switch rpcerr.ReasonOf(cause) {
	case errorsv1.Reason_REASON_NOT_LEADER, errorsv1.Reason_REASON_NO_LEADER, errorsv1.Reason_REASON_FENCED_LEADER_EPOCH,
		errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH, errorsv1.Reason_REASON_DRAINING:
		return slog.LevelDebug
	default:
		return slog.LevelWarn
	}
}
