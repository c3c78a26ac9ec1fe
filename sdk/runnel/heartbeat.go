package runnel

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// beat sends heartbeats while there is a session, and ends it when they go
// unanswered, until ctx ends.
func (m *membership) beat(ctx context.Context) {
	c := m.consumer
	var pause backoff
	for ctx.Err() == nil {
		_, newer := c.client.view.next()
		now := time.Now()
		c.mu.Lock()
		m.expire(now)
		wait, due := idle, false
		if !m.answered.IsZero() {
			wait = min(m.nextBeat.Sub(now), m.answered.Add(m.timeout).Sub(now))
			due = !now.Before(m.nextBeat)
		}
		if m.hangUp != nil && m.coordinator.moved(m.streamAddress) {
			m.reopen()
		}
		c.mu.Unlock()
		if due {
			m.heartbeat(ctx, &pause)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-m.news:
		case <-newer:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// heartbeat sends one, and draws conclusions from the answer.
func (m *membership) heartbeat(ctx context.Context, pause *backoff) {
	c := m.consumer
	sent := time.Now()
	c.mu.Lock()
	if m.over || m.answered.IsZero() {
		c.mu.Unlock()
		return
	}
	request := &coordinatorv1.HeartbeatRequest{Group: c.config.group, MemberId: m.id, MemberEpoch: m.epoch}
	incarnation := m.incarnation
	limit := min(m.interval, callTimeout, m.answered.Add(m.timeout).Sub(sent))
	m.nextBeat = sent.Add(m.interval)
	c.mu.Unlock()

	var response *coordinatorv1.HeartbeatResponse
	err := m.coordinator.attempt(ctx, repeatable, func(ctx context.Context, address string) (err error) {
		response, err = within(ctx, limit, address, c.client.groups(address).Heartbeat, request)
		return err
	})

	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil || m.over || m.incarnation != incarnation {
		return
	}
	if err == nil {
		pause.reset()
		m.answered = sent
		if response.GetHeartbeatIntervalMs() > 0 {
			m.interval = time.Duration(response.GetHeartbeatIntervalMs()) * time.Millisecond
		}
		if response.GetMemberEpoch() <= m.heard {
			m.behind = 0
		} else if m.behind++; m.behind > 1 {
			m.behind = 0
			m.reopen()
		}
		return
	}
	e, _ := errors.AsType[*Error](err)
	switch {
	case e != nil && (e.Reason == errorsv1.Reason_REASON_UNKNOWN_MEMBER || e.Reason == errorsv1.Reason_REASON_MEMBER_FENCED):
		m.lose(err)
	case e != nil && e.outcome == fatal:
		m.fail(err)
	default:
		c.client.config.Logger.Debug("heartbeat failed", "group", c.config.group, "error", err)
		m.coordinator.learn(err)
		if again := time.Now().Add(pause.next()); again.Before(m.nextBeat) {
			m.nextBeat = again
		}
	}
}

// expire ends a session whose time is up. Callers hold mu.
func (m *membership) expire(now time.Time) {
	if m.over || m.answered.IsZero() || now.Sub(m.answered) < m.timeout {
		return
	}
	m.lose(newError(errorsv1.Reason_REASON_UNKNOWN_MEMBER, "no heartbeat was answered within the session timeout of %v", m.timeout))
}

// lose takes everything from the member at once, which then joins anew. Callers hold
// mu.
func (m *membership) lose(why error) {
	c, member := m.consumer, m.id
	if m.forfeit() {
		c.client.config.Logger.Warn("the consumer has lost its place in the group", "group", c.config.group, "member", member, "error", why)
	}
}

// forfeit takes everything from the member at once, and reports whether it had a place.
// Callers hold mu.
func (m *membership) forfeit() bool {
	c := m.consumer
	if m.over || m.epoch == 0 {
		return false
	}
	for _, o := range m.owned {
		if o.reading != nil && !o.revoking {
			m.lost = append(m.lost, o.partition)
		}
		c.end(o)
	}
	m.incarnation++
	m.id = uuid.NewString()
	m.epoch, m.heard, m.target, m.behind, m.announce = 0, 0, nil, 0, false
	m.answered = time.Time{}
	c.held = Records{}
	m.reopen()
	c.broadcast()
	return true
}
