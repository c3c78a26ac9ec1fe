package runnel

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// spreadOf sends records and returns how many each partition got.
func spreadOf(t *testing.T, partitions, records int, key []byte, options ...ProducerOption) []int {
	t.Helper()
	var counts []int
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", partitions)
		p := c.producer(t, options...)
		for range records {
			if err := p.Send(t.Context(), Record{Topic: "t", Key: key, Value: make([]byte, 100)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for partition := range partitions {
			counts = append(counts, len(c.records(t, "t", partition)))
		}
	})
	return counts
}

func TestKeysStayTogether(t *testing.T) {
	for _, partitioner := range []Partitioner{Sticky(), RoundRobin()} {
		for _, key := range []string{"", "21", "foobar"} {
			counts := spreadOf(t, 5, 100, []byte(key), WithPartitioner(partitioner))
			if counts[PartitionForKey([]byte(key), 5)] != 100 {
				t.Errorf("key %q: %v", key, counts)
			}
		}
	}
}

func TestRoundRobinDealsOutEvenly(t *testing.T) {
	counts := spreadOf(t, 4, 100, nil, WithPartitioner(RoundRobin()))
	if fmt.Sprint(counts) != "[25 25 25 25]" {
		t.Errorf("partitions got %v", counts)
	}
}

func TestStickySwitchesAfterABatch(t *testing.T) {
	// Each batch takes 8 records: fewer switches than that would show as a
	// partition with many, more as many small batches.
	const batch = 1100
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 4)
		p := c.producer(t, WithBatchBytes(batch))
		const records = 4000
		for range records {
			if err := p.Send(t.Context(), Record{Topic: "t", Value: make([]byte, 100)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		batches := 0
		for partition := range 4 {
			n := len(c.records(t, "t", partition))
			if n < records/4*7/10 || n > records/4*13/10 {
				t.Errorf("partition %d got %d of %d records", partition, n, records)
			}
			batches += len(c.topics["t"].partitions[partition].batches)
		}
		if batches > records/5 {
			t.Errorf("%d records came in %d batches", records, batches)
		}
	})
}

func TestStickyAvoidsPartitionsWithoutALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 3)
		c.moveLeader("t", 1, -1, true)
		p := c.producer(t, WithBatchBytes(200))
		// Only the first choice may be the one without a leader.
		for range 100 {
			if err := p.Send(t.Context(), Record{Topic: "t", Value: make([]byte, 100)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := len(c.records(t, "t", 0)) + len(c.records(t, "t", 2)); n < 95 {
			t.Errorf("%d of 100 records went where there is a leader", n)
		}
		c.moveLeader("t", 1, 2, true)
	})
}

func TestCustomPartitioner(t *testing.T) {
	byLength := PartitionerFunc(func(topic string, key []byte, partitions int) int { return len(topic) + len(key) + partitions - 5 })
	if counts := spreadOf(t, 3, 10, []byte("k"), WithPartitioner(byLength)); counts[0] != 10 {
		t.Errorf("partitions got %v", counts)
	}
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		c.createTopic("t", 1)
		p := c.producer(t, WithPartitioner(PartitionerFunc(func(string, []byte, int) int { return 1 })))
		err := p.Send(t.Context(), Record{Topic: "t"}, nil)
		if ReasonOf(err) != errorsv1.Reason_REASON_PARTITION_NOT_FOUND || !strings.Contains(err.Error(), "no partition 1") {
			t.Errorf("error = %v", err)
		}
	})
}
