package runnel

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// Rebalance holds what is called when the partitions of a member change. All three
// may be nil. They run inside [Consumer.Poll], Revoked also inside
// [Consumer.Unsubscribe] and [Consumer.Close], one at a time, and may use the consumer,
// except for Poll, Subscribe, Unsubscribe and Close. While one runs nobody else gets a
// partition that the member had; a member that takes longer than its rebalance timeout
// ([WithRebalanceTimeout]) to give partitions up loses its place. Their context ends after
// that time, not with that of Poll.
type Rebalance struct {
	// Assigned tells of partitions that the member reads from now on, behind what the
	// group has committed; Seek may move them. It comes after each change of the group
	// that concerns the member, without partitions if there are no new ones.
	Assigned func(ctx context.Context, partitions []TopicPartition)
	// Revoked tells of partitions that the member gives up: they are still its own, and
	// what it has done there can be committed. Afterwards somebody else reads them.
	Revoked func(ctx context.Context, partitions []TopicPartition)
	// Lost tells of partitions that are the member's no more, because nobody has heard
	// of it for the session timeout, or it did not give partitions up in time. Somebody
	// else may be reading them: nothing can be committed.
	Lost func(ctx context.Context, partitions []TopicPartition)
}

// GroupStatus is how a member stands in its group, as the coordinator last told.
type GroupStatus struct {
	MemberID string
	// MemberEpoch is that of the newest assignment, from 1.
	MemberEpoch int64
	// Assignor is how the group shares partitions out.
	Assignor string
	// Members and Partitions are the sizes of the group: its members, and the
	// partitions of all topics that it is subscribed to. With fewer partitions than
	// members some are idle.
	Members, Partitions int
	// Awaited is how many partitions are meant for this member and others have yet to
	// give up.
	Awaited int
	// MissingTopics are subscribed topics that do not exist; they are waited for.
	MissingTopics []string
	// SessionTimeout is how long the member may go unheard.
	SessionTimeout time.Duration
}

// Subscribe makes the consumer a member of its group ([WithGroup]) that reads these
// topics, in place of what it was subscribed to. It returns once the coordinator has
// admitted it. A topic that does not exist is waited for; see [Consumer.GroupStatus].
//
// Which partitions the member has is decided by the coordinator and changes with the
// group. [Consumer.Poll] carries the changes out: a program that does not poll for long
// holds the others up, and loses its partitions after its rebalance timeout if some are
// wanted back.
func (c *Consumer) Subscribe(ctx context.Context, topics ...string) error {
	if len(topics) == 0 || slices.Contains(topics, "") {
		return newError(errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, "a subscription names at least one topic")
	}
	return c.subscribe(ctx, &coordinatorv1.Subscription{Topics: slices.Compact(slices.Sorted(slices.Values(topics)))})
}

// SubscribePattern is Subscribe with all topics, those to come among them, whose whole
// name matches a regular expression in the syntax of package regexp. It never matches
// internal topics, whose names begin with "__".
func (c *Consumer) SubscribePattern(ctx context.Context, pattern string) error {
	if _, err := regexp.Compile(pattern); err != nil || pattern == "" {
		return newError(errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, "pattern %q is no regular expression: %v", pattern, cmp.Or(err, fmt.Errorf("it is empty")))
	}
	return c.subscribe(ctx, &coordinatorv1.Subscription{TopicPattern: pattern})
}

func (c *Consumer) subscribe(ctx context.Context, subscription *coordinatorv1.Subscription) error {
	if !c.config.inGroup {
		return newError(errorsv1.Reason_REASON_INVALID_GROUP_ID, "a subscription needs a group: make the consumer with WithGroup, or use Assign")
	}
	if err := c.begin(); err != nil {
		return err
	}
	// That nobody can be reached is told at once.
	if _, err := c.client.view.fresh(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	m := c.member
	switch {
	case c.closed:
		c.mu.Unlock()
		return fmt.Errorf("consumer is %w", ErrClosed)
	case m != nil:
		m.subscribe(subscription)
	case len(c.order) > 0:
		c.mu.Unlock()
		return newError(errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, "the consumer has partitions by Assign: a member of a group gets them from the group; remove them first")
	default:
		m = c.newMembership(subscription)
		c.member = m
	}
	version := m.version
	c.mu.Unlock()

	for {
		c.mu.Lock()
		changed, err := c.changed, m.fatal
		if err == nil {
			err, m.refusal = m.refusal, nil
		}
		admitted, over, member := m.admitted >= version || m.version != version, m.over || c.closed, m.admitted > 0
		c.mu.Unlock()
		switch {
		case over:
			return fmt.Errorf("consumer is %w", ErrClosed)
		case admitted:
			return nil
		case err == nil:
			if err = (wait{changed: changed}).done(ctx); err == nil {
				continue
			}
			c.mu.Lock()
			hindrance := m.hindrance
			c.mu.Unlock()
			if err = fmt.Errorf("joining group %q: %w", c.config.group, err); hindrance != nil {
				err = fmt.Errorf("%w (so far: %w)", err, hindrance)
			}
		}
		if !member {
			// It never was a member, and does not become one behind the program's back.
			c.dismiss(ctx, m, false)
		}
		return err
	}
}

// Unsubscribe ends the membership: what the program has done with is committed, unless
// it does that itself, after the Revoked callback, and the partitions go to others at
// once.
func (c *Consumer) Unsubscribe(ctx context.Context) error {
	select {
	case <-c.stage:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer c.unstage()
	c.mu.Lock()
	m := c.member
	c.mu.Unlock()
	if m == nil {
		return nil
	}
	err := c.giveUp(ctx)
	c.dismiss(ctx, m, false)
	return err
}

// GroupStatus returns how the consumer stands in its group; ok is false before it is a
// member.
func (c *Consumer) GroupStatus() (status GroupStatus, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.member == nil || c.member.epoch == 0 {
		return GroupStatus{}, false
	}
	return c.member.status, true
}

// dismiss ends a membership.
func (c *Consumer) dismiss(ctx context.Context, m *membership, keep bool) {
	m.leave(ctx, keep)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range m.owned {
		c.end(o)
	}
	c.held = Records{}
	if c.member == m {
		c.member = nil
	}
	c.broadcast()
}

// unstage gives the token of stage back.
func (c *Consumer) unstage() { c.stage <- struct{}{} }
