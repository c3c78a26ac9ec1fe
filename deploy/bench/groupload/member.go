package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
)

// callTimeout bounds each call.
const callTimeout = 10 * time.Second

// member is a member of a group that gives up and begins at once whatever it is told to.
type member struct {
	client           coordinatorv1connect.GroupServiceClient
	group, id, topic string
	// confirmed is called with each assignment once its confirmation was answered, by
	// one goroutine.
	confirmed func(assignment *coordinatorv1.JoinResponse)
	// heartbeats and failures count over members.
	heartbeats, failures *atomic.Int64

	// sent is when Join was called; it may be read once an assignment was confirmed.
	sent  time.Time
	epoch atomic.Int64
}

// run joins and is a member until ctx ends, or the stream does: then with an error.
func (m *member) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var beats sync.WaitGroup
	defer beats.Wait()
	defer cancel()
	m.sent = time.Now()
	stream, err := m.client.Join(ctx, &coordinatorv1.JoinRequest{
		Group: m.group, MemberId: m.id, ClientId: "groupload",
		Subscription: &coordinatorv1.Subscription{Topics: []string{m.topic}},
	})
	for first := true; err == nil; first = false {
		var assignment *coordinatorv1.JoinResponse
		if assignment, err = stream.Receive(); err != nil {
			break
		}
		m.epoch.Store(assignment.GetMemberEpoch())
		if err = m.heartbeat(ctx); err != nil {
			break
		}
		m.confirmed(assignment)
		if first {
			interval := time.Duration(assignment.GetHeartbeatIntervalMs()) * time.Millisecond
			beats.Go(func() { m.beat(ctx, interval) })
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("member %s of group %s: %w", m.id, m.group, err)
}

func (m *member) heartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := m.client.Heartbeat(ctx, &coordinatorv1.HeartbeatRequest{Group: m.group, MemberId: m.id, MemberEpoch: m.epoch.Load()})
	m.heartbeats.Add(1)
	return err
}

// beat keeps the session until ctx ends.
func (m *member) beat(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(max(interval, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := m.heartbeat(ctx); err != nil && ctx.Err() == nil {
			m.failures.Add(1)
		}
	}
}

// membership runs members until it is ended.
type membership struct {
	cancel               context.CancelCauseFunc
	running              sync.WaitGroup
	heartbeats, failures atomic.Int64
}

// newMembership returns one without members, and a context that ends with it, for the
// reason of a member that has failed.
func newMembership(ctx context.Context) (*membership, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	return &membership{cancel: cancel}, ctx
}

// add runs a member in the background.
func (m *membership) add(ctx context.Context, one *member) {
	one.heartbeats, one.failures = &m.heartbeats, &m.failures
	m.running.Go(func() {
		if err := one.run(ctx); err != nil {
			m.cancel(err)
		}
	})
}

// end ends the streams, which leaves the memberships to their session timeouts.
func (m *membership) end() {
	m.cancel(nil)
	m.running.Wait()
}
