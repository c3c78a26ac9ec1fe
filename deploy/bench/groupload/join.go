package main

import (
	"context"
	"fmt"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// join measures how long a program waits for its first record: from when it makes its
// client, so the connections are part of it, or from Subscribe of a client that has had
// a consumer before. Each time it is the first member of a group.
func join(ctx context.Context, _ *bed, s settings) error {
	warm, err := runnel.NewClient(s.bootstrap...)
	if err != nil {
		return err
	}
	defer warm.Close()
	if _, _, err := first(ctx, warm, s.topic, "join-before"); err != nil {
		return err
	}
	for run := range s.runs {
		begin := time.Now()
		client, err := runnel.NewClient(s.bootstrap...)
		if err != nil {
			return err
		}
		assigned, read, err := first(ctx, client, s.topic, fmt.Sprintf("join-new-%d", run))
		if closeErr := client.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
		line("new_assigned_ms", "%.1f", milliseconds(assigned.Sub(begin)))
		line("new_read_ms", "%.1f", milliseconds(read.Sub(begin)))
		begin = time.Now()
		if assigned, read, err = first(ctx, warm, s.topic, fmt.Sprintf("join-warm-%d", run)); err != nil {
			return err
		}
		line("warm_assigned_ms", "%.1f", milliseconds(assigned.Sub(begin)))
		line("warm_read_ms", "%.1f", milliseconds(read.Sub(begin)))
	}
	return nil
}

// first is a member of a group until it has a record, and returns when it had its
// partitions and when the record.
func first(ctx context.Context, client *runnel.Client, topic, group string) (assigned, read time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	consumer, err := client.NewConsumer(runnel.WithGroup(group), runnel.WithReset(runnel.ResetEarliest), runnel.WithRebalance(runnel.Rebalance{
		Assigned: func(context.Context, []runnel.TopicPartition) { assigned = time.Now() },
	}))
	if err != nil {
		return assigned, read, err
	}
	defer func() {
		if closeErr := consumer.Close(); err == nil {
			err = closeErr
		}
	}()
	if err := consumer.Subscribe(ctx, topic); err != nil {
		return assigned, read, err
	}
	for {
		records, err := consumer.Poll(ctx)
		if err != nil {
			return assigned, read, err
		}
		for range records.All() {
			return assigned, time.Now(), nil
		}
	}
}
