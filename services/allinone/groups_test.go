package allinone

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// TestConsumersShareATopic is the SDK's membership against the real coordinator: what is
// sent while the group is stable is read once, what is sent while it changes at least
// once, and the offsets of a group that has left are behind all of it.
func TestConsumersShareATopic(t *testing.T) {
	cluster, _ := startCluster(t, testConfig(t))
	client, err := runnel.NewClient(cluster.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: "shared", Partitions: 4}); err != nil {
		t.Fatal(err)
	}
	producer, err := client.NewProducer()
	if err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	read := make(map[string]int)
	changed := make(chan struct{}, 1)
	until := func(what string, reached func() bool) {
		t.Helper()
		for {
			mu.Lock()
			done := reached()
			mu.Unlock()
			if done {
				return
			}
			select {
			case <-changed:
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("waiting until %s: %v", what, context.Cause(ctx))
			}
		}
	}
	const round = 400
	sent := 0
	send := func() {
		t.Helper()
		for range round {
			if err := producer.Send(ctx, runnel.Record{Topic: "shared", Key: fmt.Append(nil, sent), Value: fmt.Append(nil, sent)}, nil); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		if err := producer.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	send()

	type member struct {
		*runnel.Consumer
		stop func()
	}
	var members []member
	for range 3 {
		begin := time.Now()
		consumer, err := client.NewConsumer(runnel.WithGroup("readers"), runnel.WithReset(runnel.ResetEarliest))
		if err != nil {
			t.Fatal(err)
		}
		if err := consumer.Subscribe(ctx, "shared"); err != nil {
			t.Fatal(err)
		}
		if len(members) == 0 {
			t.Logf("admitted after %v", time.Since(begin).Round(time.Millisecond))
		}
		runCtx, end := context.WithCancel(ctx)
		ended := make(chan error, 1)
		first := sync.OnceFunc(func() { t.Logf("first record after %v", time.Since(begin).Round(time.Millisecond)) })
		go func() {
			ended <- consumer.Run(runCtx, func(_ context.Context, record runnel.ConsumedRecord) error {
				first()
				mu.Lock()
				defer mu.Unlock()
				read[string(record.Value)]++
				select {
				case changed <- struct{}{}:
				default:
				}
				return nil
			})
		}()
		members = append(members, member{consumer, func() {
			end()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if err := consumer.Close(); err != nil {
				t.Error(err)
			}
		}})
	}
	until("all have partitions", func() bool {
		total := 0
		for _, m := range members {
			n := len(m.Assigned())
			if n == 0 {
				return false
			}
			total += n
		}
		return total == 4
	})
	until("the first round is read", func() bool { return len(read) == round })
	send()
	until("the second round is read", func() bool { return len(read) == 2*round })
	mu.Lock()
	for n := round; n < 2*round; n++ {
		if times := read[fmt.Sprint(n)]; times != 1 {
			t.Errorf("record %d of a stable group is read %d times", n, times)
		}
	}
	mu.Unlock()
	members[0].stop()
	send()
	until("the third round is read", func() bool { return len(read) == 3*round })
	members[1].stop()
	members[2].stop()
	committed, err := client.Admin().ListCommitted(ctx, "readers")
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, o := range committed {
		total += o.Offset
	}
	if total != int64(sent) {
		t.Errorf("committed %d of %d: %+v", total, sent, committed)
	}
}

// TestTopicThatIsWaitedFor: a member that begins at the end reads a topic that is created
// while it waits from the first record on, also if that is there before the member.
func TestTopicThatIsWaitedFor(t *testing.T) {
	cluster, _ := startCluster(t, testConfig(t))
	client, err := runnel.NewClient(cluster.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	admin := client.Admin()
	create := func(name string) {
		t.Helper()
		if _, err := admin.CreateTopic(ctx, runnel.TopicSpec{Name: name, Partitions: 2}); err != nil {
			t.Fatal(err)
		}
	}
	producer, err := client.NewProducer()
	if err != nil {
		t.Fatal(err)
	}
	send := func(topic, value string) {
		t.Helper()
		if err := producer.Send(ctx, runnel.Record{Topic: topic, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
		if err := producer.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	create("there")
	send("there", "old")
	consumer, err := client.NewConsumer(runnel.WithGroup("waits"), runnel.WithReset(runnel.ResetLatest))
	if err != nil {
		t.Fatal(err)
	}
	if err := consumer.Subscribe(ctx, "there", "awaited"); err != nil {
		t.Fatal(err)
	}
	create("awaited")
	send("awaited", "new")
	records, err := consumer.Poll(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records.Slice() {
		if string(r.Value) != "new" {
			t.Errorf("read %s of %s", r.Value, r.Topic)
		}
	}
}
