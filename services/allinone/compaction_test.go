package allinone

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// TestCompactedTopic produces many records of few keys over the SDK, lets the
// node compact them, and reads: the newest of each key, in order, with the
// offsets that were acknowledged.
func TestCompactedTopic(t *testing.T) {
	const records, keys = 100_000, 1000
	config := testConfig(t)
	config.Storage.CompactEvery = 50 * time.Millisecond
	cluster, _ := startCluster(t, config)
	client, err := runnel.NewClient(cluster.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// The lag holds compaction off until all is there.
	_, err = client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: "accounts", Partitions: 1, Config: map[string]string{
		"cleanup.policy": "compact", "min.compaction.lag.ms": "3600000",
	}})
	if err != nil {
		t.Fatal(err)
	}
	producer, err := client.NewProducer(runnel.WithBatchBytes(16<<10), runnel.WithCompression(runnel.NoCompression))
	if err != nil {
		t.Fatal(err)
	}
	offsets := make([]int64, records)
	for n := range records {
		record := runnel.Record{Topic: "accounts", Key: fmt.Appendf(nil, "account-%d", n*7%keys), Value: fmt.Appendf(nil, "%040d", n)}
		if n*7%keys == 5 {
			// Its account is closed over and over.
			record.Value = nil
		}
		err := producer.Send(ctx, record, func(ack runnel.Ack, err error) {
			if err != nil {
				t.Error(err)
			}
			offsets[n] = ack.Offset
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := producer.Close(); err != nil {
		t.Fatal(err)
	}
	read := func(start runnel.Start) []runnel.ConsumedRecord {
		consumer, err := client.NewConsumer()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = consumer.Close() }()
		if err := consumer.Assign(ctx, runnel.At("accounts", 0, start).UntilEnd()); err != nil {
			t.Fatal(err)
		}
		var all []runnel.ConsumedRecord
		for {
			polled, err := consumer.Poll(ctx)
			if errors.Is(err, runnel.ErrEnd) {
				return all
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, polled.Slice()...)
		}
	}
	if got := len(read(runnel.Earliest())); got != records {
		t.Fatalf("%d records before compaction", got)
	}
	if _, err := client.Admin().AlterTopic(ctx, runnel.TopicChange{Name: "accounts", Unset: []string{"min.compaction.lag.ms"}}); err != nil {
		t.Fatal(err)
	}
	// Who reads while the topic is being compacted sees the beginning as it was
	// before and the rest as it is afterwards.
	var left []runnel.ConsumedRecord
	for left = read(runnel.Earliest()); len(left) != keys; left = read(runnel.Earliest()) {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%d records after compaction, want %d", len(left), keys)
		}
	}
	for i, r := range left {
		n := records - keys + i
		if want := fmt.Sprintf("account-%d", n*7%keys); string(r.Key) != want || r.Offset != offsets[n] {
			t.Fatalf("record %d is %s at %d, want %s at %d", i, r.Key, r.Offset, want, offsets[n])
		}
		if tombstone := n*7%keys == 5; tombstone != (r.Value == nil) || !tombstone && string(r.Value) != fmt.Sprintf("%040d", n) {
			t.Fatalf("record %d has the value %q, want %d", i, r.Value, n)
		}
	}
	for _, from := range []int64{0, 1, records / 2, records - keys - 1, records - 1} {
		want := min(keys, records-int(from))
		if got := len(read(runnel.Offset(from))); got != want {
			t.Errorf("%d records from %d, want %d", got, from, want)
		}
	}
	if got := read(runnel.Time(left[keys/2].Timestamp)); len(got) == 0 || got[0].Offset > left[keys/2].Offset {
		t.Errorf("%d records from the time of the one at %d", len(got), left[keys/2].Offset)
	}
}
