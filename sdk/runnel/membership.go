package runnel

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// membership is a consumer's place in its group, from Subscribe to Unsubscribe. One
// goroutine keeps the stream of assignments, another the heartbeats; what the
// assignments mean for the partitions is carried out by Poll. Guarded by the
// consumer's mu, except for what never changes.
type membership struct {
	consumer    *Consumer
	coordinator *coordinator
	// id is the member's own choice, another after each loss: the coordinator may not
	// have removed the old one yet, and keeps its partitions from others until it has.
	id string
	// stop ends the goroutines, which have ended once done is closed.
	stop context.CancelFunc
	done chan struct{}
	// news holds a token while the heartbeats may be due at another time, again one
	// while there is a subscription that no stream was opened with.
	news, again chan struct{}

	// over says that nothing that still arrives counts.
	over bool
	// subscription is what to read; version counts its changes, and admitted is the
	// last version that the coordinator has answered.
	subscription      *coordinatorv1.Subscription
	version, admitted int
	// fatal is why the member cannot be one as it is; refusal why it is not one yet,
	// until Poll has said so; hindrance why the last stream failed.
	fatal, refusal, hindrance error
	// former is the id of the place that was lost when fatal was set; empty if there was
	// none.
	former string

	// incarnation changes with each loss: what belongs to an older one is void.
	incarnation uint64
	// epoch is that of the assignment that is followed, 0 for none; heard the newest
	// that has arrived.
	epoch, heard int64
	// target is an assignment that Poll has yet to take up; nil for none.
	target *target
	// owned is what the assignment that is followed holds.
	owned map[TopicPartition]*tenure
	// lost are partitions that were lost, until Poll has said so.
	lost []TopicPartition
	// announce says that an assignment was taken up of which Poll has yet to tell, located
	// that the start of a partition has become known since Poll last looked.
	announce, located bool
	status            GroupStatus

	// answered is when the last answered sign of life was sent; zero without a
	// session, which ends a timeout later. nextBeat is when to send the next.
	answered, nextBeat time.Time
	timeout, interval  time.Duration
	// behind counts heartbeats in a row whose answers name an epoch that the stream
	// has not brought.
	behind int
	// hangUp ends the stream, or the last one, which went to streamAddress; nil before
	// the first.
	hangUp        context.CancelCauseFunc
	streamAddress string
}

// target is an assignment.
type target struct {
	epoch      int64
	partitions map[TopicPartition]cluster.TopicID
	// added are those that came into being while the group was subscribed.
	added map[TopicPartition]bool
}

// noPosition is the position of what has none.
var noPosition = Position{Offset: -1, LeaderEpoch: -1}

// tenure is a partition for as long as it is the member's without interruption.
// Guarded by the consumer's mu.
type tenure struct {
	partition TopicPartition
	id        cluster.TopicID
	// added says that all that the partition holds was written while the group was
	// subscribed.
	added bool
	// begin is where the group has come to, once startKnown.
	startKnown bool
	begin      *Position
	// reading is there from when Poll takes the partition up.
	reading *reading
	// revoking says that the program was told to give the partition up.
	revoking bool
	// finished is behind what the program has done with, committed what the group
	// has of it, refused what it does not take since the log does not hold it; all have
	// offset -1 where there is nothing, as has owed.
	finished, committed, refused Position
	// owed is where ResetLatest has made the member begin, until the group has that.
	// Nothing is read before: a successor that finds no offset would begin at another end,
	// behind what came in between.
	owed Position
	// told says that the program has committed an offset while nobody knew yet where the
	// member begins: the group has come there, and not to where the policy says.
	told bool
}

// owes reports whether nothing may be read yet. Callers hold the consumer's mu.
func (o *tenure) owes() bool { return o != nil && o.owed.Offset >= 0 }

var (
	// errHungUp ends a stream that is to be opened anew at once.
	errHungUp = errors.New("the stream is opened anew")
	errSilent = errors.New("the coordinator keeps silent")
)

// newMembership starts a membership. Callers hold mu.
func (c *Consumer) newMembership(subscription *coordinatorv1.Subscription) *membership {
	m := &membership{
		consumer:     c,
		coordinator:  c.coordinator,
		id:           uuid.NewString(),
		done:         make(chan struct{}),
		news:         make(chan struct{}, 1),
		again:        make(chan struct{}, 1),
		subscription: subscription,
		version:      1,
		owned:        make(map[TopicPartition]*tenure),
	}
	m.stop = c.spawn(func(ctx context.Context) {
		defer close(m.done)
		var heart sync.WaitGroup
		heart.Go(func() { m.beat(ctx) })
		m.follow(ctx)
		heart.Wait()
	})
	return m
}

// follow keeps the stream of assignments until ctx ends.
func (m *membership) follow(ctx context.Context) {
	c := m.consumer
	var pause backoff
	for ctx.Err() == nil {
		admitted, err := m.stream(ctx)
		if admitted {
			pause.reset()
		}
		if ctx.Err() != nil {
			return
		}
		if m.failed(err) {
			// Only another subscription can help.
			select {
			case <-m.again:
			case <-ctx.Done():
			}
			continue
		}
		if errors.Is(err, errHungUp) {
			continue
		}
		c.client.config.Logger.Debug("stream of assignments ended", "group", c.config.group, "error", err)
		c.mu.Lock()
		m.hindrance = err
		c.mu.Unlock()
		m.coordinator.learn(err)
		if err := m.coordinator.rest(ctx, pause.next(), err); err != nil {
			return
		}
	}
}

// failed draws conclusions from the error that a stream has ended with, and reports
// whether joining again is of no use.
func (m *membership) failed(err error) bool {
	c := m.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := errors.AsType[*Error](err)
	switch {
	case !ok || m.over || m.fatal != nil:
	case e.Reason == errorsv1.Reason_REASON_UNKNOWN_MEMBER || e.Reason == errorsv1.Reason_REASON_MEMBER_FENCED:
		m.lose(err)
	case e.Reason == errorsv1.Reason_REASON_GROUP_FULL:
		m.refusal = err
		c.broadcast()
	case e.outcome == fatal:
		m.fail(err)
	}
	return m.fatal != nil
}

// fail ends the membership for good; Poll says why. Callers hold mu.
func (m *membership) fail(err error) {
	former := m.id
	if !m.forfeit() {
		former = ""
	}
	m.fatal, m.former = err, former
	m.consumer.broadcast()
}

// stream joins, or joins again, and takes assignments until the stream ends; it
// reports whether one came.
func (m *membership) stream(ctx context.Context) (admitted bool, err error) {
	c := m.consumer
	address, err := m.coordinator.find(ctx)
	if err != nil {
		return false, err
	}
	streamCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	m.hangUp, m.streamAddress = cancel, address
	select {
	case <-m.again:
	default:
	}
	version, incarnation := m.version, m.incarnation
	request := &coordinatorv1.JoinRequest{
		Group:              c.config.group,
		MemberId:           m.id,
		MemberEpoch:        m.epoch,
		InstanceId:         c.config.instanceID,
		ClientId:           c.client.config.ClientID,
		Subscription:       m.subscription,
		Assignor:           c.config.assignor,
		SessionTimeoutMs:   int32(c.config.sessionTimeout.Milliseconds()),
		RebalanceTimeoutMs: int32(c.config.rebalanceTimeout.Milliseconds()),
	}
	c.mu.Unlock()

	sent := time.Now()
	silent := time.AfterFunc(callTimeout, func() { cancel(errSilent) })
	defer silent.Stop()
	stream, err := c.client.groups(address).Join(streamCtx, request)
	for err == nil {
		var response *coordinatorv1.JoinResponse
		if response, err = stream.Receive(); err != nil {
			break
		}
		silent.Stop()
		admitted = true
		if !m.take(response, version, incarnation, sent) {
			return true, errHungUp
		}
	}
	return admitted, callError(streamCtx, address, err)
}

// take notes an assignment, and reports false if the stream that brought it is void.
func (m *membership) take(response *coordinatorv1.JoinResponse, version int, incarnation uint64, sent time.Time) bool {
	c := m.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.over || m.incarnation != incarnation {
		return false
	}
	next := &target{epoch: response.GetMemberEpoch(), partitions: make(map[TopicPartition]cluster.TopicID), added: make(map[TopicPartition]bool)}
	for _, topic := range response.GetPartitions() {
		id, err := cluster.ParseTopicID(topic.GetTopicId())
		if err != nil {
			c.client.config.Logger.Warn("assignment names no topic", "topic", topic.GetTopic(), "error", err)
			continue
		}
		for _, partition := range topic.GetPartitions() {
			next.partitions[TopicPartition{Topic: topic.GetTopic(), Partition: partition}] = id
		}
	}
	for _, topic := range response.GetAddedPartitions() {
		for _, partition := range topic.GetPartitions() {
			next.added[TopicPartition{Topic: topic.GetTopic(), Partition: partition}] = true
		}
	}
	m.admitted = version
	m.status = GroupStatus{
		MemberID:       m.id,
		MemberEpoch:    response.GetMemberEpoch(),
		Assignor:       response.GetAssignor(),
		Members:        int(response.GetMemberCount()),
		Partitions:     int(response.GetPartitionCount()),
		Awaited:        int(response.GetAwaitedCount()),
		MissingTopics:  slices.Clone(response.GetMissingTopics()),
		SessionTimeout: time.Duration(response.GetSessionTimeoutMs()) * time.Millisecond,
	}
	m.interval = max(time.Duration(response.GetHeartbeatIntervalMs())*time.Millisecond, firstPause)
	m.timeout = max(m.status.SessionTimeout, m.interval)
	if m.epoch == 0 {
		// A member without partitions has nothing to give up: it follows whatever comes.
		m.epoch = next.epoch
		m.answered, m.nextBeat = sent, sent.Add(m.interval)
	}
	if next.epoch > m.heard {
		m.heard, m.target = next.epoch, next
	}
	m.behind = 0
	c.broadcast()
	m.wake()
	return true
}

// wake makes the heartbeats look around. Callers hold mu.
func (m *membership) wake() {
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// reopen makes the stream begin anew. Callers hold mu.
func (m *membership) reopen() {
	if m.hangUp != nil {
		m.hangUp(errHungUp)
	}
}

// subscribe changes what to read. Callers hold mu.
func (m *membership) subscribe(subscription *coordinatorv1.Subscription) {
	m.subscription = subscription
	m.version++
	m.fatal, m.refusal = nil, nil
	select {
	case m.again <- struct{}{}:
	default:
	}
	m.reopen()
}

// pending reports whether there is something for Poll to carry out before it returns
// records. Callers hold mu.
func (m *membership) pending() bool {
	return len(m.lost) > 0 || m.target != nil || m.fatal != nil || m.refusal != nil || m.located
}

// end ends a tenure: nothing more is read of its partition, and nothing committed.
// Callers hold mu.
func (c *Consumer) end(o *tenure) {
	if o.reading != nil {
		c.remove([]*reading{o.reading})
		o.reading = nil
	}
	if m := c.member; m != nil && m.owned[o.partition] == o {
		delete(m.owned, o.partition)
	}
}

// leaveTimeout is how long Unsubscribe and Close wait for the answer to Leave.
const leaveTimeout = 3 * time.Second

// leave ends the goroutines and tells the coordinator; where that fails, the session
// times out.
func (m *membership) leave(ctx context.Context, keep bool) {
	c := m.consumer
	c.mu.Lock()
	asked := m.hangUp != nil
	id := m.id
	if m.fatal != nil && m.former != "" {
		// What it had is kept from others until it says that it has stopped.
		id = m.former
	}
	m.over = true
	c.mu.Unlock()
	m.stop()
	<-m.done
	if !asked {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	request := &coordinatorv1.LeaveRequest{Group: c.config.group, MemberId: id, KeepAssignment: keep}
	err := m.coordinator.call(ctx, repeatable, func(ctx context.Context, address string) error {
		_, err := call(ctx, address, c.client.groups(address).Leave, request)
		return err
	})
	if err != nil {
		level := slog.LevelWarn
		if m.fatal != nil {
			// The program knows that the place is lost.
			level = slog.LevelDebug
		}
		c.client.config.Logger.Log(ctx, level, "leaving the group failed; the session times out", "group", c.config.group, "error", err)
	}
}
