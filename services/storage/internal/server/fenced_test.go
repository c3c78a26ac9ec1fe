package server

import (
	"strings"
	"testing"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagepeerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

const offsetsTopic = "__consumer_offsets"

// outcomes returns what a counter of [Fenced] has counted, by outcome.
func (h *harness) outcomes(name string) map[string]float64 {
	h.t.Helper()
	families, err := h.metrics.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				out[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}

func TestFencedAppend(t *testing.T) {
	t.Parallel()
	h := start(t)
	id := h.create(offsetsTopic, 3, rules.CleanupPolicy, rules.CleanupCompact)
	orders := h.create("orders", 1)
	request := func(change func(*storagepeerv1.FencedAppendRequest)) *storagepeerv1.FencedAppendRequest {
		req := &storagepeerv1.FencedAppendRequest{TopicId: id, Partition: 2, CoordinatorEpoch: 5, ExpectedOffset: -1, Batch: batch(t, "a", "b")}
		if change != nil {
			change(req)
		}
		return req
	}
	res, err := h.fenced.FencedAppend(t.Context(), request(nil))
	if err != nil || res.GetBaseOffset() != 0 || res.GetHighWatermark() != 2 || res.GetLeaderEpoch() != 0 {
		t.Fatalf("the fence: %v, %v", res, err)
	}
	h.elect(offsetsTopic, 2, int32(self))
	res, err = h.fenced.FencedAppend(t.Context(), request(func(r *storagepeerv1.FencedAppendRequest) { r.ExpectedOffset, r.LeaderEpoch = 2, 1 }))
	if err != nil || res.GetBaseOffset() != 2 || res.GetHighWatermark() != 4 || res.GetLeaderEpoch() != 1 {
		t.Fatalf("behind the fence: %v, %v", res, err)
	}
	for _, test := range []struct {
		name   string
		change func(*storagepeerv1.FencedAppendRequest)
		want   errorsv1.Reason
		says   string
	}{
		{"topic id", func(r *storagepeerv1.FencedAppendRequest) { r.TopicId = r.TopicId[:15] }, errorsv1.Reason_REASON_INVALID_REQUEST, "topic_id has 15 bytes"},
		{"partition", func(r *storagepeerv1.FencedAppendRequest) { r.Partition = -1 }, errorsv1.Reason_REASON_INVALID_REQUEST, "partition is -1"},
		{"leader epoch", func(r *storagepeerv1.FencedAppendRequest) { r.LeaderEpoch = -1 }, errorsv1.Reason_REASON_INVALID_REQUEST, "leader_epoch is -1"},
		{"coordinator epoch", func(r *storagepeerv1.FencedAppendRequest) { r.CoordinatorEpoch = 0 }, errorsv1.Reason_REASON_INVALID_REQUEST, "coordinator_epoch is 0"},
		{"expected offset", func(r *storagepeerv1.FencedAppendRequest) { r.ExpectedOffset = -2 }, errorsv1.Reason_REASON_INVALID_REQUEST, "expected_offset is -2"},
		{"batch", func(r *storagepeerv1.FencedAppendRequest) { r.Batch = nil }, errorsv1.Reason_REASON_INVALID_REQUEST, "batch is not set"},
		{"a topic of clients", func(r *storagepeerv1.FencedAppendRequest) { r.TopicId, r.Partition, r.LeaderEpoch = orders, 0, 0 }, errorsv1.Reason_REASON_INVALID_REQUEST, "not the cluster's own"},
		{"no such partition", func(r *storagepeerv1.FencedAppendRequest) { r.Partition = 3 }, errorsv1.Reason_REASON_NOT_LEADER, "partition 3"},
		{"leader epoch over", func(r *storagepeerv1.FencedAppendRequest) { r.LeaderEpoch = 0 }, errorsv1.Reason_REASON_FENCED_LEADER_EPOCH, "leader epoch 0"},
		{"damaged batch", func(r *storagepeerv1.FencedAppendRequest) { r.Batch[len(r.Batch)-1]++ }, errorsv1.Reason_REASON_CORRUPT_BATCH, "crc"},
		{"producer id", func(r *storagepeerv1.FencedAppendRequest) {
			r.Batch = build(t, recordbatch.Options{ProducerID: 3}, "a")
		}, errorsv1.Reason_REASON_UNSUPPORTED_BATCH, "producer id 3"},
		{"superseded", func(r *storagepeerv1.FencedAppendRequest) { r.CoordinatorEpoch = 4 }, errorsv1.Reason_REASON_COORDINATOR_FENCED, "epoch 5 has appended"},
		{"a copy that comes late", func(r *storagepeerv1.FencedAppendRequest) { r.ExpectedOffset = 2 }, errorsv1.Reason_REASON_COORDINATOR_FENCED, "ends at offset 4"},
	} {
		_, err := h.fenced.FencedAppend(t.Context(), request(func(r *storagepeerv1.FencedAppendRequest) {
			r.LeaderEpoch = 1
			test.change(r)
		}))
		if e := wantReason(t, err, test.want); !strings.Contains(e.Message, test.says) {
			t.Errorf("%s: message %q does not say %q", test.name, e.Message, test.says)
		}
	}
	counted := h.outcomes("runnel_storage_fenced_appends_total")
	if counted["done"] != 2 || counted["coordinator_fenced"] != 2 || counted["invalid_request"] != 7 {
		t.Errorf("counted %v", counted)
	}

	// Clients do not write it, by any call.
	_, err = h.client.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{Topic: offsetsTopic, Partition: 2, Batch: batch(t, "x")}})
	wantReason(t, err, errorsv1.Reason_REASON_INTERNAL_TOPIC)
	deleted, err := h.client.DeleteRecords(t.Context(), &storagev1.DeleteRecordsRequest{Partitions: []*storagev1.PartitionPosition{{Topic: offsetsTopic, Partition: 2, Position: offset(2)}}})
	if err != nil {
		t.Fatal(err)
	}
	wantFailure(t, deleted.GetPartitions()[0].GetFailure(), errorsv1.Reason_REASON_INTERNAL_TOPIC)
	p := h.produce(t.Context())
	p.send(&storagev1.ProduceRequest{Topic: offsetsTopic, Partition: 2, Batch: batch(t, "x")})
	wantFailure(t, p.receive().GetFailure(), errorsv1.Reason_REASON_INTERNAL_TOPIC)
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	if end, err := h.client.ListOffsets(t.Context(), &storagev1.ListOffsetsRequest{Partitions: []*storagev1.PartitionPosition{{Topic: offsetsTopic, Partition: 2}}}); err != nil || end.GetPartitions()[0].GetOffset() != 4 {
		t.Errorf("the log ends at %v, %v", end, err)
	}
}

func TestCheckFence(t *testing.T) {
	t.Parallel()
	h := start(t)
	id := h.create(offsetsTopic, 3, rules.CleanupPolicy, rules.CleanupCompact)
	for i := range int32(2) {
		if _, err := h.fenced.FencedAppend(t.Context(), &storagepeerv1.FencedAppendRequest{TopicId: id, Partition: i, CoordinatorEpoch: 5, ExpectedOffset: -1, Batch: batch(t, "a", "b")}); err != nil {
			t.Fatal(err)
		}
	}
	const fenced, invalid = errorsv1.Reason_REASON_COORDINATOR_FENCED, errorsv1.Reason_REASON_INVALID_REQUEST
	fences := []*storagepeerv1.Fence{
		{TopicId: id, CoordinatorEpoch: 5, ExpectedOffset: 2},
		{TopicId: id, CoordinatorEpoch: 4, ExpectedOffset: 2},
		{TopicId: id, CoordinatorEpoch: 6, ExpectedOffset: 2},
		{TopicId: id, CoordinatorEpoch: 5, ExpectedOffset: 1},
		{TopicId: id, CoordinatorEpoch: 5, ExpectedOffset: -1},
		{TopicId: id, CoordinatorEpoch: 0, ExpectedOffset: 2},
		{TopicId: id[:3], CoordinatorEpoch: 5, ExpectedOffset: 2},
		{TopicId: id, Partition: 9, CoordinatorEpoch: 5, ExpectedOffset: 2},
		{TopicId: id, Partition: 2, CoordinatorEpoch: 5},
		{TopicId: id, Partition: 1, CoordinatorEpoch: 5, ExpectedOffset: 2},
	}
	res, err := h.fenced.CheckFence(t.Context(), &storagepeerv1.CheckFenceRequest{Fences: fences})
	if err != nil {
		t.Fatal(err)
	}
	want := []errorsv1.Reason{0, fenced, fenced, fenced, invalid, invalid, invalid, errorsv1.Reason_REASON_NOT_LEADER, fenced, 0}
	for i, r := range res.GetResults() {
		if got := r.GetFailure().GetReason(); got != want[i] || (r.Failure == nil) != (want[i] == 0) {
			t.Errorf("claim %d: %v, want %s", i, r.GetFailure(), want[i])
		}
	}
	if counted := h.outcomes("runnel_storage_fence_checks_total"); len(res.GetResults()) != len(fences) || counted["done"] != 2 || counted["coordinator_fenced"] != 4 {
		t.Errorf("%d results, counted %v", len(res.GetResults()), counted)
	}
	h.elect(offsetsTopic, 0, -1)
	res, err = h.fenced.CheckFence(t.Context(), &storagepeerv1.CheckFenceRequest{Fences: fences[:1]})
	if err != nil {
		t.Fatal(err)
	}
	wantFailure(t, res.GetResults()[0].GetFailure(), errorsv1.Reason_REASON_NO_LEADER)

	many := make([]*storagepeerv1.Fence, maxFences+1)
	for i := range many {
		many[i] = fences[9]
	}
	for _, fences := range [][]*storagepeerv1.Fence{nil, many} {
		_, err := h.fenced.CheckFence(t.Context(), &storagepeerv1.CheckFenceRequest{Fences: fences})
		wantReason(t, err, invalid)
	}
	if res, err := h.fenced.CheckFence(t.Context(), &storagepeerv1.CheckFenceRequest{Fences: many[:maxFences]}); err != nil || rpcerr.FromFailure(res.GetResults()[maxFences-1].GetFailure()) != nil {
		t.Errorf("%d claims: %v", maxFences, err)
	}
	if waiting := h.metric("runnel_storage_fence_checks_waiting"); waiting != 0 {
		t.Errorf("%v claims wait", waiting)
	}
}
