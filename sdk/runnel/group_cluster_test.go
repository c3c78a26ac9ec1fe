package runnel_test

import (
	"slices"
	"testing"

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
