package runnel_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// TestRealPatternAndRestart: a pattern takes in topics that come later, and a static
// member gets its partitions back.
func TestRealPatternAndRestart(t *testing.T) {
	client, ctx := realClient(t)
	producer, err := client.NewProducer()
	if err != nil {
		t.Fatal(err)
	}
	send := func(topic, value string) {
		t.Helper()
		if _, err := producer.SendSync(ctx, runnel.Record{Topic: topic, Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}
	member := func() *runnel.Consumer {
		t.Helper()
		consumer, err := client.NewConsumer(runnel.WithGroup("pattern"), runnel.WithInstanceID("one"), runnel.WithReset(runnel.ResetEarliest))
		if err != nil {
			t.Fatal(err)
		}
		if err := consumer.SubscribePattern(ctx, "pattern-[0-9]"); err != nil {
			t.Fatal(err)
		}
		return consumer
	}
	read := func(consumer *runnel.Consumer, want ...string) {
		t.Helper()
		var got []string
		for len(got) < len(want) {
			records, err := consumer.Poll(ctx)
			if err != nil {
				t.Fatalf("after %v: %v", got, err)
			}
			for r := range records.All() {
				got = append(got, string(r.Value))
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Fatalf("read %v, want %v", got, want)
		}
		if err := consumer.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	createTopic(t, ctx, client, runnel.TopicSpec{Name: "pattern-1", Partitions: 1})
	createTopic(t, ctx, client, runnel.TopicSpec{Name: "a-pattern-3", Partitions: 1})
	send("pattern-1", "a")
	send("a-pattern-3", "never")
	first := member()
	read(first, "a")
	createTopic(t, ctx, client, runnel.TopicSpec{Name: "pattern-2", Partitions: 1})
	send("pattern-2", "b")
	read(first, "b")
	before, _ := first.GroupStatus()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	send("pattern-1", "c")
	send("pattern-2", "d")
	second := member()
	read(second, "c", "d")
	if after, ok := second.GroupStatus(); !ok || after.Members != 1 || after.MemberID == before.MemberID {
		t.Errorf("status before %+v, after %+v", before, after)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// TestRealCommitOfManyOffsets: as many offsets as a request may have, with as much metadata
// as each may have, are more than one request or answer takes, and than one batch.
func TestRealCommitOfManyOffsets(t *testing.T) {
	client, ctx := realClient(t)
	const partitions = 9_000
	createTopic(t, ctx, client, runnel.TopicSpec{Name: "wide", Partitions: partitions})
	member := func() *runnel.Consumer {
		t.Helper()
		consumer, err := client.NewConsumer(runnel.WithGroup("wide"), runnel.WithReset(runnel.ResetLatest), runnel.WithAutoCommit(0))
		if err != nil {
			t.Fatal(err)
		}
		if err := consumer.Subscribe(ctx, "wide"); err != nil {
			t.Fatal(err)
		}
		for len(consumer.Assigned()) < partitions {
			turn, done := context.WithTimeout(ctx, 100*time.Millisecond)
			_, err := consumer.Poll(turn)
			done()
			if err != nil && (turn.Err() == nil || ctx.Err() != nil) {
				t.Fatal(err)
			}
		}
		return consumer
	}
	consumer := member()
	metadata := strings.Repeat("m", 4096)
	offsets := make([]runnel.GroupOffset, partitions)
	all := make([]runnel.TopicPartition, partitions)
	for i := range offsets {
		all[i] = runnel.TopicPartition{Topic: "wide", Partition: int32(i)}
		offsets[i] = runnel.GroupOffset{TopicPartition: all[i], Position: runnel.Position{Offset: 0, LeaderEpoch: -1}, Metadata: metadata}
	}
	if err := consumer.Commit(ctx, offsets...); err != nil {
		t.Fatal(err)
	}
	if err := consumer.Close(); err != nil {
		t.Fatal(err)
	}
	consumer = member() // It asks where the group has come to.
	committed, err := consumer.Committed(ctx, all...)
	if err != nil || len(committed) != partitions {
		t.Fatalf("%d are committed, %v", len(committed), err)
	}
	for _, o := range committed {
		if o.Metadata != metadata {
			t.Fatalf("%v has %d bytes of metadata", o.TopicPartition, len(o.Metadata))
		}
	}
	if err := consumer.Close(); err != nil {
		t.Error(err)
	}
}
