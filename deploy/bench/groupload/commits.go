package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// overdue is how many commits may be under way; what falls due beyond that has failed.
const overdue = 50_000

// committer is a group of one member.
type committer struct {
	member *member
	commit func(context.Context, *coordinatorv1.CommitOffsetsRequest) (*coordinatorv1.CommitOffsetsResponse, error)
}

// committing is an open loop: a commit counts from when it was due.
type committing struct {
	topic      string
	partitions int
	committers []committer
	// counted is when the figures begin.
	counted  time.Time
	underWay atomic.Int64

	mu sync.Mutex
	// took has the commits of each second; late is how late they were begun.
	took     [][]time.Duration
	late     []time.Duration
	failures int
	failure  error
}

// commits has one member in each of the groups commit one partition after the other, as
// many per second over all groups as the rate says.
func commits(ctx context.Context, b *bed, s settings) error {
	image, err := b.image(ctx)
	if err != nil {
		return err
	}
	total, err := partitions(image, s.topic)
	if err != nil {
		return err
	}
	members, ctx := newMembership(ctx)
	defer members.end()
	streams := newCommitStreams(b)
	defer streams.close()
	c := &committing{topic: s.topic, partitions: total}
	if err := c.join(ctx, b, s, image, members, streams); err != nil {
		return err
	}

	begin := time.Now()
	c.counted = begin.Add(s.warmUp)
	end := c.counted.Add(time.Duration(s.seconds) * time.Second)
	c.took = make([][]time.Duration, s.seconds)
	var calls sync.WaitGroup
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	due, interval := begin, float64(time.Second)/s.rate
	for n := 0; due.Before(end); {
		for now := time.Now(); !due.After(now) && due.Before(end); {
			c.begin(ctx, &calls, n, due, now)
			n++
			due = begin.Add(time.Duration(float64(n) * interval))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			calls.Wait()
			return context.Cause(ctx)
		}
	}
	calls.Wait()
	c.report(s, members)
	return nil
}

// join returns once each group has its member, with all partitions.
func (c *committing) join(ctx context.Context, b *bed, s settings, image *cluster.Image, members *membership, streams *commitStreams) error {
	assigned := make(chan struct{}, s.groups)
	for i := range s.groups {
		group := fmt.Sprintf("commits-%d", i)
		address, err := coordinator(image, group)
		if err != nil {
			return err
		}
		m := &member{client: b.groups(i, address), group: group, id: "member", topic: s.topic}
		m.confirmed = func(a *coordinatorv1.JoinResponse) {
			if has := a.GetPartitions(); len(has) == 1 && len(has[0].GetPartitions()) == c.partitions {
				select {
				case assigned <- struct{}{}:
				default:
				}
			}
		}
		one := committer{member: m, commit: b.offsets(i, address).CommitOffsets}
		if !s.unary {
			one.commit = streams.at(ctx, i, address).commit
		}
		c.committers = append(c.committers, one)
		members.add(ctx, m)
	}
	for range s.groups {
		select {
		case <-assigned:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// begin makes the n-th commit in the background.
func (c *committing) begin(ctx context.Context, calls *sync.WaitGroup, n int, due, now time.Time) {
	if c.underWay.Add(1) > overdue {
		c.underWay.Add(-1)
		c.done(due, now, errors.New("too many commits are under way"))
		return
	}
	calls.Go(func() {
		err := c.commit(ctx, n)
		c.underWay.Add(-1)
		c.done(due, now, err)
	})
}

func (c *committing) commit(ctx context.Context, n int) error {
	one := c.committers[n%len(c.committers)]
	round := n / len(c.committers)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := one.commit(ctx, &coordinatorv1.CommitOffsetsRequest{
		Group: one.member.group, MemberId: one.member.id, MemberEpoch: one.member.epoch.Load(),
		Offsets: []*coordinatorv1.OffsetCommit{{Topic: c.topic, Partition: int32(round % c.partitions), Offset: int64(round)}},
	})
	if err != nil {
		return err
	}
	for _, result := range response.GetResults() {
		if failure := result.GetFailure(); failure != nil {
			return errors.New(failure.GetMessage())
		}
	}
	return nil
}

// done notes a commit that was due, begun at a time, and is answered now.
func (c *committing) done(due, begun time.Time, err error) {
	took := time.Since(due)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failures++
		c.failure = err
		return
	}
	if due.Before(c.counted) {
		return
	}
	second := min(int(due.Sub(c.counted)/time.Second), len(c.took)-1)
	c.took[second] = append(c.took[second], took)
	c.late = append(c.late, begun.Sub(due))
}

func (c *committing) report(s settings, members *membership) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all, worst []time.Duration
	for _, second := range c.took {
		slices.Sort(second)
		all = append(all, second...)
		worst = append(worst, time.Duration(quantile(second, 0.99)*float64(time.Millisecond)))
	}
	line("commits_per_s", "%.0f", float64(len(all))/float64(s.seconds))
	quantiles("commit", all)
	// The p99 of each second.
	quantiles("second_p99", worst)
	quantiles("late", c.late)
	line("failures", "%d", c.failures)
	line("heartbeat_failures", "%d", members.failures.Load())
	if c.failure != nil {
		fmt.Printf("# the last failure: %v\n", c.failure)
	}
}
