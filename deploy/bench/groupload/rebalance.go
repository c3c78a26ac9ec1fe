package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
)

// patience is how long a scenario waits for what should take moments.
const patience = time.Minute

// rebalance measures how long a group takes to settle after the call of its last Join,
// until each member has confirmed its share and the coordinator has answered that: with
// all members joining at once, and with one that comes to all others.
func rebalance(ctx context.Context, b *bed, s settings) error {
	image, err := b.image(ctx)
	if err != nil {
		return err
	}
	total, err := partitions(image, s.topic)
	if err != nil {
		return err
	}
	for run := range s.runs {
		group := fmt.Sprintf("rebalance-%d-%d", time.Now().UnixMilli(), run)
		address, err := coordinator(image, group)
		if err != nil {
			return err
		}
		if err := settle(ctx, b, s, group, address, total); err != nil {
			return fmt.Errorf("run %d: %w", run, err)
		}
	}
	return nil
}

func settle(ctx context.Context, b *bed, s settings, group, address string, total int) error {
	members, ctx := newMembership(ctx)
	defer members.end()
	shares := newShares(total)
	add := func(i int) *member {
		m := &member{client: b.groups(i, address), group: group, id: fmt.Sprintf("member-%03d", i), topic: s.topic}
		m.confirmed = func(a *coordinatorv1.JoinResponse) { shares.set(i, a) }
		members.add(ctx, m)
		return m
	}
	together := max(s.members-1, 1)
	var joined []*member
	for i := range together {
		joined = append(joined, add(i))
	}
	at, err := shares.settled(ctx, together)
	if err != nil {
		return err
	}
	var last time.Time
	for _, m := range joined {
		if m.sent.After(last) {
			last = m.sent
		}
	}
	line("together_ms", "%.1f", milliseconds(at.Sub(last)))
	if s.members > together {
		m := add(together)
		if at, err = shares.settled(ctx, s.members); err != nil {
			return err
		}
		line("one_more_ms", "%.1f", milliseconds(at.Sub(m.sent)))
	}
	line("assignments", "%d", shares.count())
	described, err := b.groups(0, address).DescribeGroup(ctx, &coordinatorv1.DescribeGroupRequest{Group: group, ExcludeLag: true})
	if err != nil {
		return err
	}
	if described.GetState() != coordinatorv1.GroupState_GROUP_STATE_STABLE || len(described.GetMembers()) != s.members {
		return fmt.Errorf("all is shared out, and the coordinator says that the group is in %v with %d members", described.GetState(), len(described.GetMembers()))
	}
	return nil
}

// shares is what members have confirmed to have.
type shares struct {
	total int

	mu          sync.Mutex
	byMember    map[int][]int32
	assignments int
	// latest is when the latest assignment was confirmed; changed is closed and replaced
	// then.
	latest  time.Time
	changed chan struct{}
}

func newShares(total int) *shares {
	return &shares{total: total, byMember: make(map[int][]int32), changed: make(chan struct{})}
}

func (s *shares) set(member int, a *coordinatorv1.JoinResponse) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var has []int32
	for _, topic := range a.GetPartitions() {
		has = append(has, topic.GetPartitions()...)
	}
	s.byMember[member] = has
	s.assignments++
	s.latest = now
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *shares) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.assignments
}

// settled returns when so many members had everything between them, each partition once
// and evenly within one.
func (s *shares) settled(ctx context.Context, members int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		s.mu.Lock()
		even, at, changed := s.even(members), s.latest, s.changed
		s.mu.Unlock()
		if even {
			return at, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("the group has not settled: %w", context.Cause(ctx))
		}
	}
}

// even is settled at this moment; callers hold mu.
func (s *shares) even(members int) bool {
	if len(s.byMember) != members {
		return false
	}
	owned := make(map[int32]bool, s.total)
	least, most := s.total, 0
	for _, has := range s.byMember {
		least, most = min(least, len(has)), max(most, len(has))
		for _, p := range has {
			if owned[p] {
				return false
			}
			owned[p] = true
		}
	}
	return len(owned) == s.total && most-least <= 1
}
