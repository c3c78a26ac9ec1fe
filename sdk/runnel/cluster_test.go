package runnel_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// The tests of this file run against real services, over real connections: they
// hold what the other tests assume of a cluster against one.

func realClient(t *testing.T) (*runnel.Client, context.Context) {
	t.Helper()
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return client, ctx
}

func createTopic(t *testing.T, ctx context.Context, client *runnel.Client, spec runnel.TopicSpec) {
	t.Helper()
	if _, err := client.Admin().CreateTopic(ctx, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := client.Admin().DeleteTopic(context.Background(), spec.Name)
		if err != nil && runnel.ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			t.Error(err)
		}
	})
}

func TestRealRoundTrip(t *testing.T) {
	const records, keys = 5000, 7
	for codec := runnel.NoCompression; codec <= runnel.Zstd; codec++ {
		t.Run(codec.String(), func(t *testing.T) {
			client, ctx := realClient(t)
			topic := "round-trip-" + codec.String()
			createTopic(t, ctx, client, runnel.TopicSpec{Name: topic, Partitions: 3})
			producer, err := client.NewProducer(runnel.WithCompression(codec), runnel.WithBatchBytes(4000))
			if err != nil {
				t.Fatal(err)
			}
			where := make([]runnel.Ack, records)
			for n := range records {
				record := runnel.Record{
					Topic: topic, Key: fmt.Append(nil, n%keys), Value: fmt.Append(nil, n),
					Headers: []runnel.Header{{Key: "n", Value: fmt.Append(nil, n)}},
				}
				if n%keys == 0 {
					record.Key = nil
				}
				err := producer.Send(ctx, record, func(ack runnel.Ack, err error) {
					if err != nil {
						t.Error(err)
					}
					where[n] = ack
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := producer.Close(); err != nil {
				t.Fatal(err)
			}
			consumer, err := client.NewConsumer()
			if err != nil {
				t.Fatal(err)
			}
			if err := consumer.Assign(ctx, runnel.AtAll(topic, runnel.Earliest()).UntilEnd()); err != nil {
				t.Fatal(err)
			}
			seen, last := 0, make(map[string]int)
			for {
				polled, err := consumer.Poll(ctx)
				if errors.Is(err, runnel.ErrEnd) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				for r := range polled.All() {
					n, err := strconv.Atoi(string(r.Value))
					if err != nil || string(r.Headers[0].Value) != string(r.Value) {
						t.Fatalf("record = %+v", r)
					}
					if ack := where[n]; ack.Partition != r.Partition || ack.Offset != r.Offset || !ack.Timestamp.Equal(r.Timestamp) {
						t.Fatalf("record %d is at %d-%d (%v), acknowledged was %+v", n, r.Partition, r.Offset, r.Timestamp, ack)
					}
					if r.Key != nil {
						if previous, ok := last[string(r.Key)]; ok && n <= previous {
							t.Fatalf("key %s: %d after %d", r.Key, n, previous)
						}
						last[string(r.Key)] = n
						if want := runnel.PartitionForKey(r.Key, 3); r.Partition != want {
							t.Fatalf("key %s is in partition %d, want %d", r.Key, r.Partition, want)
						}
					}
					seen++
				}
			}
			if seen != records {
				t.Errorf("%d of %d records", seen, records)
			}
		})
	}
}

func TestRealRefusals(t *testing.T) {
	client, ctx := realClient(t)
	createTopic(t, ctx, client, runnel.TopicSpec{Name: "small", Config: map[string]string{"max.message.bytes": "1024"}})
	createTopic(t, ctx, client, runnel.TopicSpec{Name: "compacted", Config: map[string]string{"cleanup.policy": "compact"}})
	producer, err := client.NewProducer()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		record runnel.Record
		reason errorsv1.Reason
	}{
		{runnel.Record{Topic: "small", Value: make([]byte, 5000)}, errorsv1.Reason_REASON_RECORD_TOO_LARGE},
		{runnel.Record{Topic: "compacted", Value: []byte("v")}, errorsv1.Reason_REASON_KEY_REQUIRED},
		{runnel.Record{Topic: "small", Value: []byte("v"), Timestamp: time.Now().AddDate(100, 0, 0)}, errorsv1.Reason_REASON_INVALID_TIMESTAMP},
	}
	for _, test := range tests {
		_, err := producer.SendSync(ctx, test.record)
		e, ok := errors.AsType[*runnel.Error](err)
		if !ok || e.Reason != test.reason || e.Retriable() || e.OutcomeUnknown() {
			t.Errorf("%s: %v, want %v", test.record.Topic, err, test.reason)
		}
		// The partition goes on as if nothing had been.
		for range 3 {
			if _, err := producer.SendSync(ctx, runnel.Record{Topic: test.record.Topic, Key: []byte("k")}); err != nil {
				t.Errorf("%s: the next record: %v", test.record.Topic, err)
			}
		}
	}
	// Many records fit where each of them does.
	for range 200 {
		if err := producer.Send(ctx, runnel.Record{Topic: "small", Value: make([]byte, 500)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := producer.Flush(ctx); err != nil {
		t.Error(err)
	}
	names := map[string]errorsv1.Reason{
		"no spaces":              errorsv1.Reason_REASON_INVALID_TOPIC_NAME,
		"..":                     errorsv1.Reason_REASON_INVALID_TOPIC_NAME,
		"__consumer_offsets":     errorsv1.Reason_REASON_INVALID_TOPIC_NAME,
		"small":                  errorsv1.Reason_REASON_TOPIC_EXISTS,
		strings.Repeat("x", 250): errorsv1.Reason_REASON_INVALID_TOPIC_NAME,
	}
	for name, reason := range names {
		if _, err := client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: name}); runnel.ReasonOf(err) != reason {
			t.Errorf("topic %q: %v, want %v", name, err, reason)
		}
	}
}

func TestRealDeletedRecords(t *testing.T) {
	client, ctx := realClient(t)
	createTopic(t, ctx, client, runnel.TopicSpec{Name: "shortened", Partitions: 1})
	producer, err := client.NewProducer()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now().Truncate(time.Millisecond)
	for n := range 20 {
		record := runnel.Record{Topic: "shortened", Value: fmt.Append(nil, n), Timestamp: start.Add(time.Duration(n) * time.Second)}
		if _, err := producer.SendSync(ctx, record); err != nil {
			t.Fatal(err)
		}
	}
	deleted, err := client.Admin().DeleteRecords(ctx, runnel.At("shortened", 0, runnel.Offset(8)))
	if err != nil || deleted[0].Err != nil || deleted[0].Offset != 8 {
		t.Fatalf("deleted = %+v, %v", deleted, err)
	}
	consumer, err := client.NewConsumer()
	if err != nil {
		t.Fatal(err)
	}
	partition := runnel.TopicPartition{Topic: "shortened"}
	next := func(start runnel.Start) (string, error) {
		t.Helper()
		if err := consumer.Assign(ctx, runnel.At("shortened", 0, start)); err != nil {
			t.Fatal(err)
		}
		records, err := consumer.Poll(ctx)
		if err != nil {
			return "", err
		}
		return string(records.Slice()[0].Value), nil
	}
	for _, test := range []struct {
		start runnel.Start
		want  string
	}{
		{runnel.Earliest(), "8"}, {runnel.Offset(19), "19"}, {runnel.Time(start.Add(11500 * time.Millisecond)), "12"},
		{runnel.Time(start), "8"}, {runnel.From(runnel.Position{Offset: 9}), "9"},
	} {
		if got, err := next(test.start); err != nil || got != test.want {
			t.Errorf("%v: %q, %v, want %q", test.start, got, err, test.want)
		}
	}
	for _, offset := range []int64{0, 7, 21} {
		_, err := next(runnel.Offset(offset))
		fault, ok := errors.AsType[*runnel.PartitionError](err)
		if !ok || fault.TopicPartition != partition || fault.Offset != offset {
			t.Fatalf("offset %d: %v", offset, err)
		}
		e, _ := errors.AsType[*runnel.Error](err)
		if earliest, latest, ok := e.OffsetRange(); !ok || earliest != 8 || latest != 20 {
			t.Errorf("offset %d: range %d to %d, %v", offset, earliest, latest, ok)
		}
	}
	description, err := client.Admin().DescribeTopic(ctx, "shortened")
	if err != nil || description.Replicas[0].Earliest != 8 || description.Replicas[0].Latest != 20 {
		t.Errorf("description = %+v, %v", description, err)
	}
}

func TestRealTopicCreatedAgain(t *testing.T) {
	client, ctx := realClient(t)
	producer, err := client.NewProducer()
	if err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		createTopic(t, ctx, client, runnel.TopicSpec{Name: "again", Partitions: 1})
		for i := range int64(3) {
			ack, err := producer.SendSync(ctx, runnel.Record{Topic: "again"})
			if err != nil || ack.Offset != i {
				t.Fatalf("round %d: %+v, %v", n, ack, err)
			}
		}
		if err := client.Admin().DeleteTopic(ctx, "again"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRealFollowing(t *testing.T) {
	client, ctx := realClient(t)
	createTopic(t, ctx, client, runnel.TopicSpec{Name: "followed", Partitions: 2})
	consumer, err := client.NewConsumer()
	if err != nil {
		t.Fatal(err)
	}
	if err := consumer.Assign(ctx, runnel.AtAll("followed", runnel.Latest())); err != nil {
		t.Fatal(err)
	}
	producer, err := client.NewProducer()
	if err != nil {
		t.Fatal(err)
	}
	for n := range 50 {
		partition := int32(n % 2)
		if _, err := producer.SendSync(ctx, runnel.Record{Topic: "followed", Partition: runnel.OnPartition(partition), Value: fmt.Append(nil, n)}); err != nil {
			t.Fatal(err)
		}
		records, err := consumer.Poll(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if got := records.Slice(); len(got) != 1 || string(got[0].Value) != strconv.Itoa(n) || got[0].Partition != partition {
			t.Fatalf("after record %d came %+v", n, got)
		}
		if n == 20 {
			if err := consumer.Pause(runnel.TopicPartition{Topic: "followed", Partition: 0}); err != nil {
				t.Fatal(err)
			}
			if err := consumer.Resume(runnel.TopicPartition{Topic: "followed", Partition: 0}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
