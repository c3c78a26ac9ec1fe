package server

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

func values(res *storagev1.ConsumeResponse) []string {
	var out []string
	for _, r := range res.GetRecords() {
		out = append(out, string(r.GetValue()))
	}
	return out
}

func TestConsumeFollows(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 2)
	h.append("orders", 0, "a", "b")
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{
		from("orders", 0, earliest()), from("orders", 1, nil),
	}})
	for range 2 {
		switch res := c.receive(); res.GetPartition() {
		case 0:
			if !slices.Equal(values(res), []string{"a", "b"}) || res.GetNextOffset() != 2 || res.GetHighWatermark() != 2 {
				t.Errorf("response %v", res)
			}
		case 1:
			// What "latest" means was settled when the stream began.
			if len(res.GetRecords()) != 0 || res.GetNextOffset() != 0 || res.GetFailure() != nil {
				t.Errorf("response %v", res)
			}
		}
	}
	for i := range 10 {
		want := fmt.Sprint(i)
		h.append("orders", int32(i%2), want)
		res := c.receive()
		if res.GetPartition() != int32(i%2) || !slices.Equal(values(res), []string{want}) || res.GetEndReached() {
			t.Errorf("response %v, want %q", res, want)
		}
	}
}

func TestConsumeBatches(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	for range 3 {
		h.append("orders", 0, "a", "b")
	}
	c := h.consume(&storagev1.ConsumeRequest{
		Partitions: []*storagev1.PartitionStart{from("orders", 0, offset(3))}, Form: storagev1.RecordForm_RECORD_FORM_BATCHES, StopAtEnd: true, MaxResponseBytes: 1,
	})
	for _, want := range []int64{4, 6} {
		res := c.receive()
		if len(res.GetBatches()) != 1 || res.GetNextOffset() != want || res.GetEndReached() != (want == 6) {
			t.Fatalf("response %v, want next offset %d", res, want)
		}
		records, err := recordbatch.Decode(res.GetBatches()[0], recordbatch.Limits{})
		if err != nil || len(records) != 2 || records[1].Offset != want-1 || string(records[1].Value) != "b" {
			t.Errorf("records %v, %v", records, err)
		}
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

func TestConsumeStopsAtTheEndAsItWas(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 3)
	h.append("orders", 0, "a", "b")
	h.append("orders", 1, "c")
	c := h.consume(&storagev1.ConsumeRequest{
		Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest()), from("orders", 1, earliest()), from("orders", 2, earliest())},
		StopAtEnd:  true, MaxResponseBytes: 1,
	})
	first := c.receive()
	// What comes now is behind the bound.
	for i := range int32(3) {
		h.append("orders", i, "late")
	}
	got := map[int32][]string{first.GetPartition(): values(first)}
	ended := map[int32]bool{first.GetPartition(): first.GetEndReached()}
	for !ended[0] || !ended[1] || !ended[2] {
		res := c.receive()
		if ended[res.GetPartition()] {
			t.Fatalf("response after the end: %v", res)
		}
		got[res.GetPartition()] = append(got[res.GetPartition()], values(res)...)
		ended[res.GetPartition()] = res.GetEndReached()
	}
	if fmt.Sprint(got) != "map[0:[a b] 1:[c] 2:[]]" {
		t.Errorf("got %v", got)
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

func TestConsumeMaxRecords(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	h.append("orders", 0, "a", "b", "c")
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, offset(1))}, MaxRecords: 1})
	if res := c.receive(); !slices.Equal(values(res), []string{"b"}) || res.GetNextOffset() != 2 {
		t.Errorf("response %v", res)
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
	c = h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, offset(2))}, MaxRecords: 2})
	if res := c.receive(); !slices.Equal(values(res), []string{"c"}) {
		t.Errorf("response %v", res)
	}
	h.append("orders", 0, "d", "e")
	if res := c.receive(); !slices.Equal(values(res), []string{"d"}) || res.GetNextOffset() != 4 {
		t.Errorf("response %v", res)
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

func TestConsumeTakesTurns(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 3)
	for i := range int32(3) {
		for range 4 {
			h.append("orders", i, strings.Repeat("x", 100))
		}
	}
	c := h.consume(&storagev1.ConsumeRequest{
		Partitions:       []*storagev1.PartitionStart{from("orders", 0, earliest()), from("orders", 1, earliest()), from("orders", 2, earliest())},
		MaxResponseBytes: 1, StopAtEnd: true,
	})
	var order []int32
	for range 12 {
		order = append(order, c.receive().GetPartition())
	}
	if want := []int32{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}; !slices.Equal(order, want) {
		t.Errorf("turns %v, want %v", order, want)
	}
}

// A batch that opens to more than a response is sent in several.
func TestConsumeSplitsLargeBatches(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	var want []string
	for i := range 50 {
		want = append(want, strings.Repeat(fmt.Sprint(i%10), 1000))
	}
	if _, err := h.client.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
		Topic: "orders", Batch: build(t, recordbatch.WithoutProducer(recordbatch.Zstd), want...),
	}}); err != nil {
		t.Fatal(err)
	}
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}, MaxResponseBytes: 5000, StopAtEnd: true})
	var got []string
	for next := int64(0); next < 50; {
		res := c.receive()
		if n := len(res.GetRecords()); n == 0 || n > 5 || res.GetNextOffset() != next+int64(n) {
			t.Fatalf("%d records up to %d after %d", n, res.GetNextOffset(), next)
		}
		got = append(got, values(res)...)
		next = res.GetNextOffset()
	}
	if !slices.Equal(got, want) {
		t.Error("the records differ")
	}
}

// A producer may lie: the checksum is right, the records are not.
func TestConsumeNamesWhatCannotBeOpened(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *options) { o.partition.Decoding = recordbatch.Limits{MaxBytes: 1000} })
	h.create("orders", 1)
	h.append("orders", 0, "good")
	if _, err := h.client.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
		Topic: "orders", Batch: build(t, recordbatch.WithoutProducer(recordbatch.Zstd), strings.Repeat("0", 2000), "b"),
	}}); err != nil {
		t.Fatal(err)
	}
	h.append("orders", 0, "after")
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}})
	if res := c.receive(); !slices.Equal(values(res), []string{"good"}) || res.GetNextOffset() != 1 {
		t.Errorf("response %v", res)
	}
	res := c.receive()
	wantFailure(t, res.GetFailure(), errorsv1.Reason_REASON_CORRUPT_BATCH)
	if !strings.Contains(res.GetFailure().GetMessage(), "read on at offset 3") || res.GetNextOffset() != 1 {
		t.Errorf("response %v", res)
	}
	c = h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, offset(3))}, StopAtEnd: true})
	if res := c.receive(); !slices.Equal(values(res), []string{"after"}) {
		t.Errorf("response %v", res)
	}
}

func TestConsumeFailuresStandInTheirPartition(t *testing.T) {
	t.Parallel()
	h := start(t)
	id := h.create("orders", 3)
	h.create("moved", 1)
	h.elect("moved", 0, 2)
	h.append("orders", 0, "a")
	epoch := func(e int32) *int32 { return &e }
	old := from("orders", 1, earliest())
	old.TopicId = make([]byte, 16)
	newer := from("orders", 2, earliest())
	newer.TopicId, newer.LeaderEpoch = id, epoch(4)
	truncated := from("truncated", 0, offset(1))
	truncated.LastReadEpoch = epoch(7)
	h.create("truncated", 1)
	h.append("truncated", 0, "a")
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{
		from("nowhere", 0, nil), from("orders", 9, nil), from("moved", 0, earliest()), old, newer, truncated, from("orders", 0, offset(0)),
	}})
	for _, reason := range []errorsv1.Reason{
		errorsv1.Reason_REASON_TOPIC_NOT_FOUND,
		errorsv1.Reason_REASON_PARTITION_NOT_FOUND,
		errorsv1.Reason_REASON_NOT_LEADER,
		errorsv1.Reason_REASON_TOPIC_NOT_FOUND,
		errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH,
		errorsv1.Reason_REASON_LOG_TRUNCATED,
	} {
		res := c.receive()
		wantFailure(t, res.GetFailure(), reason)
		if reason == errorsv1.Reason_REASON_NOT_LEADER && res.GetFailure().GetNotLeader().GetLeaderAddress() != "other:7070" {
			t.Errorf("failure %v", res.GetFailure())
		}
	}
	if res := c.receive(); !slices.Equal(values(res), []string{"a"}) {
		t.Errorf("response %v", res)
	}
	// Leadership that is lost later ends the partition, and here the stream.
	h.elect("orders", 0, 2)
	wantFailure(t, c.receive().GetFailure(), errorsv1.Reason_REASON_NOT_LEADER)
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

// Under a new epoch of the same leader the client has to check its position.
func TestConsumeEndsWithTheEpoch(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, latest())}})
	c.receive()
	h.elect("orders", 0, int32(self))
	wantFailure(t, c.receive().GetFailure(), errorsv1.Reason_REASON_FENCED_LEADER_EPOCH)
}

func TestConsumeOutOfRange(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	h.append("orders", 0, "a", "b")
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, offset(3))}})
	res := c.receive()
	wantFailure(t, res.GetFailure(), errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE)
	if d := res.GetFailure().GetOffsetOutOfRange(); d.GetOffset() != 3 || d.GetEarliestOffset() != 0 || d.GetLatestOffset() != 2 {
		t.Errorf("detail %v", d)
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

func TestConsumeBadRequests(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	one := []*storagev1.PartitionStart{from("orders", 0, nil)}
	batches := storagev1.RecordForm_RECORD_FORM_BATCHES
	bad := int32(-1)
	many := make([]*storagev1.PartitionStart, maxConsumePartitions+1)
	for i := range many {
		many[i] = from("orders", int32(i), nil)
	}
	for name, req := range map[string]*storagev1.ConsumeRequest{
		"partitions has 0":        {},
		"partitions has 1001":     {Partitions: many},
		"a second time":           {Partitions: append(one, one...)},
		"topic is empty":          {Partitions: []*storagev1.PartitionStart{{}}},
		"topic_id":                {Partitions: []*storagev1.PartitionStart{{Topic: "orders", TopicId: []byte{1}}}},
		"leader_epoch":            {Partitions: []*storagev1.PartitionStart{{Topic: "orders", LeaderEpoch: &bad}}},
		"last_read_epoch":         {Partitions: []*storagev1.PartitionStart{{Topic: "orders", LastReadEpoch: &bad}}},
		"offset is -1":            {Partitions: []*storagev1.PartitionStart{from("orders", 0, offset(-1))}},
		"form is 7":               {Partitions: one, Form: 7},
		"max_records is -1":       {Partitions: one, MaxRecords: -1},
		"max_records needs":       {Partitions: one, MaxRecords: 1, Form: batches},
		"as_text needs":           {Partitions: one, AsText: true, Form: batches},
		"max_response_bytes is -": {Partitions: one, MaxResponseBytes: -1},
		"max_response_bytes is 1": {Partitions: one, MaxResponseBytes: maxResponseBytes + 1},
	} {
		if e := wantReason(t, h.consume(req).end(), errorsv1.Reason_REASON_INVALID_REQUEST); !strings.Contains(e.Message, name) {
			t.Errorf("message %q does not say %q", e.Message, name)
		}
	}
}

// A consumer that does not read holds back nobody but itself.
func TestSlowConsumer(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	slow := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}})
	slow.receive()
	p := h.produce(t.Context())
	const n = 200
	for range n {
		p.send(&storagev1.ProduceRequest{Topic: "orders", Batch: batch(t, strings.Repeat("x", 1000))})
	}
	for range n {
		if res := p.receive(); res.GetFailure() != nil {
			t.Fatal(res)
		}
	}
	quick := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}, StopAtEnd: true})
	for reached := false; !reached; {
		reached = quick.receive().GetEndReached()
	}
	for next := int64(0); next < n; {
		res := slow.receive()
		if first := res.GetRecords()[0].GetOffset(); first != next {
			t.Fatalf("record %d after %d", first, next)
		}
		next = res.GetNextOffset()
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
}

// A thousand streams that wait for records cost one goroutine each, and each of
// them is told.
func TestManyIdleConsumers(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 10)
	consumers := make([]*consumer, 1000)
	for i := range consumers {
		consumers[i] = h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", int32(i%10), latest())}})
		consumers[i].receive()
	}
	for i := range int32(10) {
		h.append("orders", i, "a")
	}
	for _, c := range consumers {
		if res := c.receive(); len(res.GetRecords()) != 1 {
			t.Fatal(res)
		}
	}
}

func TestListOffsets(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	h.create("moved", 1)
	h.elect("moved", 0, 2)
	var b recordbatch.Builder
	for _, ts := range []int64{1000, 2000, 3000} {
		if err := b.Append(nil, []byte("v"), nil, ts); err != nil {
			t.Fatal(err)
		}
	}
	timed, err := b.Build(recordbatch.WithoutProducer(recordbatch.LZ4))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.client.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{Topic: "orders", Batch: timed}}); err != nil {
		t.Fatal(err)
	}
	h.elect("orders", 0, int32(self))
	h.append("orders", 0, "late")
	at := func(ms int64) *logv1.StartPosition {
		return &logv1.StartPosition{Position: &logv1.StartPosition_Time{Time: timestamppb.New(time.UnixMilli(ms))}}
	}
	position := func(topic string, p *logv1.StartPosition) *storagev1.PartitionPosition {
		return &storagev1.PartitionPosition{Topic: topic, Position: p}
	}
	res, err := h.client.ListOffsets(t.Context(), &storagev1.ListOffsetsRequest{Partitions: []*storagev1.PartitionPosition{
		position("orders", earliest()), position("orders", latest()), position("orders", nil), position("orders", offset(2)), position("orders", offset(9)),
		position("orders", at(1500)), position("orders", at(9000)), position("moved", latest()), position("nowhere", latest()), position("orders", offset(-4)),
		position("orders", &logv1.StartPosition{Position: &logv1.StartPosition_Time{Time: &timestamppb.Timestamp{Nanos: -1}}}),
		{Topic: "orders", TopicId: bytes.Repeat([]byte{7}, 16), Position: latest()},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		offset int64
		epoch  int32
		ms     int64
		reason errorsv1.Reason
		// before is the epoch of the record before, if there is one.
		before *int32
	}{
		{offset: 0, epoch: 0}, {offset: 4, epoch: 1, before: new(int32(1))}, {offset: 4, epoch: 1, before: new(int32(1))}, {offset: 2, epoch: 0, before: new(int32(0))}, {offset: -1, reason: errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE},
		{offset: 1, ms: 2000, before: new(int32(0))}, {offset: 4, epoch: 1, before: new(int32(1))}, {offset: -1, reason: errorsv1.Reason_REASON_NOT_LEADER}, {offset: -1, reason: errorsv1.Reason_REASON_TOPIC_NOT_FOUND},
		{offset: -1, reason: errorsv1.Reason_REASON_INVALID_REQUEST}, {offset: -1, reason: errorsv1.Reason_REASON_INVALID_REQUEST},
		{offset: -1, reason: errorsv1.Reason_REASON_TOPIC_NOT_FOUND},
	} {
		got := res.GetPartitions()[i]
		if got.GetOffset() != want.offset || got.GetLeaderEpoch() != want.epoch || got.GetFailure().GetReason() != want.reason || (got.Time != nil) != (want.ms > 0) {
			t.Errorf("position %d: %v, want %+v", i, got, want)
		}
		if (got.PrecedingEpoch != nil) != (want.before != nil) || want.before != nil && got.GetPrecedingEpoch() != *want.before {
			t.Errorf("position %d: the record before is of epoch %d, known: %t; want %+v", i, got.GetPrecedingEpoch(), got.PrecedingEpoch != nil, want)
		}
		if known := got.SizeBytes != nil; known != (want.offset >= 0) || known && got.GetSizeBytes() <= int64(len(timed)) {
			t.Errorf("position %d: the partition has %d bytes, want more than its first batch, %d", i, got.GetSizeBytes(), len(timed))
		}
		if want.ms > 0 && got.GetTime().AsTime().UnixMilli() != want.ms {
			t.Errorf("position %d: time %v", i, got.GetTime())
		}
	}
	_, err = h.client.ListOffsets(t.Context(), &storagev1.ListOffsetsRequest{})
	wantReason(t, err, errorsv1.Reason_REASON_INVALID_REQUEST)
	// A stream finds the same record.
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, at(1500))}})
	if got := c.receive(); got.GetRecords()[0].GetOffset() != 1 {
		t.Errorf("stream from a time: %v", got)
	}
}

func TestDeleteRecords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := start(t, func(o *options) { o.dir = dir })
	id := h.create("orders", 1)
	h.append("orders", 0, "a", "b", "c")
	h.append("orders", 0, "d")
	remove := func(topic string, p *logv1.StartPosition) *storagev1.PartitionOffset {
		t.Helper()
		res, err := h.client.DeleteRecords(t.Context(), &storagev1.DeleteRecordsRequest{Partitions: []*storagev1.PartitionPosition{{Topic: topic, Position: p}}})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetPartitions()[0]
	}
	if got := remove("orders", offset(2)); got.GetFailure() != nil || got.GetOffset() != 2 {
		t.Errorf("response %v", got)
	}
	if got := remove("orders", offset(1)); got.GetFailure() != nil || got.GetOffset() != 2 {
		t.Errorf("below the log start: %v", got)
	}
	wantFailure(t, remove("orders", offset(5)).GetFailure(), errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE)
	wantFailure(t, remove("__consumer_offsets", latest()).GetFailure(), errorsv1.Reason_REASON_INTERNAL_TOPIC)
	check := func() {
		t.Helper()
		c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}, StopAtEnd: true})
		var got []string
		for reached := false; !reached; {
			res := c.receive()
			got, reached = append(got, values(res)...), res.GetEndReached()
			if res.GetLogStartOffset() != 2 {
				t.Errorf("log start in %v", res)
			}
		}
		if !slices.Equal(got, []string{"c", "d"}) {
			t.Errorf("left are %v", got)
		}
	}
	check()
	wantFailure(t, h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, offset(1))}}).receive().GetFailure(), errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE)
	h.stop()
	h = start(t, func(o *options) { o.dir = dir })
	h.create("orders", 1)
	h.topic("orders").TopicId = id
	h.publish()
	check()
	if got := remove("orders", latest()); got.GetOffset() != 4 {
		t.Errorf("all deleted: %v", got)
	}
}

// What the tail cache no longer holds comes from the store, and the switch
// between the two shows nowhere.
func TestConsumeFromStoreToTail(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *options) {
		o.partition = partition.DefaultConfig()
		o.partition.TailBytes = 20 << 10
	})
	h.create("orders", 1)
	const n = 300
	for i := range n {
		h.append("orders", 0, fmt.Sprintf("%03d%s", i, strings.Repeat("x", 200)))
	}
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}, MaxResponseBytes: 3000, StopAtEnd: true})
	for i := 0; i < n; {
		for _, v := range values(c.receive()) {
			if v[:3] != fmt.Sprintf("%03d", i) {
				t.Fatalf("record %d is %q", i, v[:3])
			}
			i++
		}
	}
}

func TestWaitReturnsWithItsContext(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, latest())}})
	c.receive()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.server.Wait(ctx); err == nil {
		t.Error("a stream is being served, and nobody waits for it")
	}
}
