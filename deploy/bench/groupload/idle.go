package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
)

// joining is how many members join at a time in idle.
const joining = 100

// idle makes groups of one member each that has committed one offset, says so by a
// file, and keeps them until ctx ends.
func idle(ctx context.Context, b *bed, s settings) error {
	image, err := b.image(ctx)
	if err != nil {
		return err
	}
	members, running := newMembership(ctx)
	defer members.end()
	begin := time.Now()
	slots := make(chan struct{}, joining)
	var committed sync.WaitGroup
	for i := range s.groups {
		group := fmt.Sprintf("idle-%05d", i)
		address, err := coordinator(image, group)
		if err != nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		case <-running.Done():
			return context.Cause(running)
		}
		m := &member{client: b.groups(i, address), group: group, id: "member", topic: s.topic}
		offsets := b.offsets(i, address)
		committed.Add(1)
		release := sync.OnceFunc(func() {
			<-slots
			committed.Done()
		})
		m.confirmed = func(a *coordinatorv1.JoinResponse) {
			defer release()
			_, err := offsets.CommitOffsets(running, &coordinatorv1.CommitOffsetsRequest{
				Group: m.group, MemberId: m.id, MemberEpoch: a.GetMemberEpoch(),
				Offsets: []*coordinatorv1.OffsetCommit{{Topic: s.topic}},
			})
			if err != nil {
				members.failures.Add(1)
			}
		}
		members.add(running, m)
	}
	all := make(chan struct{})
	go func() {
		committed.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-running.Done():
		return context.Cause(running)
	}
	line("joined_ms", "%.0f", milliseconds(time.Since(begin)))
	if err := os.WriteFile(s.ready, nil, 0o600); err != nil {
		return err
	}
	before, since := members.heartbeats.Load(), time.Now()
	<-running.Done()
	line("heartbeats_per_s", "%.0f", float64(members.heartbeats.Load()-before)/time.Since(since).Seconds())
	line("failures", "%d", members.failures.Load())
	if ctx.Err() == nil {
		return context.Cause(running)
	}
	return nil
}
