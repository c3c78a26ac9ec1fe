package partition

import (
	"slices"
	"testing"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// TestTruncateWithinBatch cuts within the first batch of an epoch: it goes as a
// whole, and with it its epoch, its producer and its place in the tail cache.
func TestTruncateWithinBatch(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	host, p := open(t, log)
	add(t, p, idempotent(t, 9, 0, 0, "a", "b"), all).result(t)
	apply(t, p, led(1))
	add(t, p, idempotent(t, 8, 0, 0, "c", "d", "e"), all).result(t)
	follower := led(2)
	follower.Leader, follower.Replicas = 2, []cluster.NodeID{self, 2}
	apply(t, p, follower)
	if end := cut(t, p, 4); end != 2 {
		t.Fatalf("the log ends at %d", end)
	}
	for offset := int64(2); offset < 5; offset++ {
		if _, _, ok := host.tails.read(&p.tail, offset, 100, 100); ok {
			t.Errorf("the tail cache holds %d", offset)
		}
	}
	p.mu.Lock()
	if p.replica.HighWatermark() != 2 || p.replica.LogEnd() != 2 || p.replica.Next() != 2 {
		t.Errorf("high watermark %d, log end %d, next offset %d", p.replica.HighWatermark(), p.replica.LogEnd(), p.replica.Next())
	}
	p.mu.Unlock()
	apply(t, p, led(3))
	wantReason(t, p.Append(request(idempotent(t, 8, 0, 3, "f"), all), newOutcome()), errorsv1.Reason_REASON_UNKNOWN_PRODUCER)
	if r := add(t, p, idempotent(t, 9, 0, 2, "C"), all).result(t); r.BaseOffset != 2 || r.Duplicate {
		t.Errorf("append after the cut: %+v", r)
	}
	want := []store.EpochStart{{Epoch: 0, StartOffset: 0}, {Epoch: 3, StartOffset: 2}}
	if got := log.last().State.Epochs; !slices.Equal(got, want) {
		t.Errorf("epochs %v, want %v", got, want)
	}
	f, err := p.Read(t.Context(), Fetch{Offset: 0, End: 100, MaxBytes: 1 << 20, LeaderEpoch: rules.NoEpoch})
	if err != nil || f.NextOffset != 3 || len(f.Batches) != 2 {
		t.Errorf("read %d batches up to %d, %v", len(f.Batches), f.NextOffset, err)
	}
}
