package server

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

func TestProduceIsPipelined(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 3)
	p := h.produce(t.Context())
	const n = 600
	for i := range n {
		p.send(&storagev1.ProduceRequest{RequestId: uint64(i), Topic: "orders", Partition: int32(i % 3), Batch: batch(t, "a", "b")})
	}
	next := map[int32]uint64{0: 0, 1: 1, 2: 2}
	for range n {
		res := p.receive()
		if res.GetFailure() != nil || res.GetRequestId() != next[res.GetPartition()] {
			t.Fatalf("response %v, want request %d of the partition", res, next[res.GetPartition()])
		}
		if want := int64(res.GetRequestId()) / 3 * 2; res.GetBaseOffset() != want || res.GetRecordCount() != 2 || res.GetAppendTimeMs() != -1 {
			t.Fatalf("response %v, want base offset %d", res, want)
		}
		next[res.GetPartition()] += 3
	}
	if err := p.close(); err != nil {
		t.Errorf("stream ended with %v", err)
	}
}

func TestFailuresKeepTheirPlace(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 2)
	p := h.produce(t.Context())
	good := func(id uint64, index int32) *storagev1.ProduceRequest {
		return &storagev1.ProduceRequest{RequestId: id, Topic: "orders", Partition: index, Batch: batch(t, "a")}
	}
	bad := good(1, 0)
	bad.Batch[len(bad.Batch)-1]++
	silent := good(2, 0)
	silent.Acks = logv1.Acks_ACKS_NONE
	broken := good(3, 0)
	broken.Acks, broken.Batch = logv1.Acks_ACKS_NONE, []byte("rubbish")
	for _, req := range []*storagev1.ProduceRequest{good(0, 0), bad, silent, broken, good(4, 0)} {
		p.send(req)
	}
	for _, want := range []struct {
		id     uint64
		reason errorsv1.Reason
		base   int64
	}{
		{0, 0, 0},
		{1, errorsv1.Reason_REASON_CORRUPT_BATCH, -1},
		{3, errorsv1.Reason_REASON_CORRUPT_BATCH, -1},
		{4, 0, 2},
	} {
		res := p.receive()
		if res.GetRequestId() != want.id || res.GetFailure().GetReason() != want.reason || res.GetBaseOffset() != want.base {
			t.Errorf("response %v, want %+v", res, want)
		}
	}
	if err := p.close(); err != nil {
		t.Errorf("stream ended with %v", err)
	}
}

func TestBadRequestsAreNamed(t *testing.T) {
	t.Parallel()
	h := start(t)
	id := h.create("orders", 2, rules.MaxMessageBytes, "1000")
	h.create("compacted", 1, rules.CleanupPolicy, rules.CleanupCompact)
	h.create("moved", 1)
	h.elect("moved", 0, 2)
	h.create("offline", 1)
	h.elect("offline", 0, -1)
	epoch := func(e int32) *int32 { return &e }
	request := func(change func(*storagev1.ProduceRequest)) *storagev1.ProduceRequest {
		r := &storagev1.ProduceRequest{Topic: "orders", Partition: 1, TopicId: id, LeaderEpoch: epoch(0), Batch: batch(t, "a")}
		change(r)
		return r
	}
	key, text, value := []byte("k"), "k", []byte("v")
	plain := func(records ...*logv1.Record) func(*storagev1.ProduceRequest) {
		return func(r *storagev1.ProduceRequest) { r.Batch, r.Records = nil, records }
	}
	tests := []struct {
		name   string
		req    *storagev1.ProduceRequest
		reason errorsv1.Reason
		says   string
	}{
		{"no topic", request(func(r *storagev1.ProduceRequest) { r.Topic = "" }), errorsv1.Reason_REASON_INVALID_REQUEST, "topic"},
		{"unknown topic", request(func(r *storagev1.ProduceRequest) { r.Topic = "nowhere" }), errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "nowhere"},
		{"internal topic", request(func(r *storagev1.ProduceRequest) { r.Topic = "__consumer_offsets" }), errorsv1.Reason_REASON_INTERNAL_TOPIC, "__consumer_offsets"},
		{"another topic's id", request(func(r *storagev1.ProduceRequest) { r.TopicId = make([]byte, 16) }), errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "deleted"},
		{"half an id", request(func(r *storagev1.ProduceRequest) { r.TopicId = make([]byte, 8) }), errorsv1.Reason_REASON_INVALID_REQUEST, "topic_id"},
		{"unknown partition", request(func(r *storagev1.ProduceRequest) { r.Partition = 2 }), errorsv1.Reason_REASON_PARTITION_NOT_FOUND, "0 to 1"},
		{"negative partition", request(func(r *storagev1.ProduceRequest) { r.Partition = -1 }), errorsv1.Reason_REASON_PARTITION_NOT_FOUND, "-1"},
		{"led elsewhere", request(func(r *storagev1.ProduceRequest) {
			r.Topic, r.TopicId, r.Partition, r.LeaderEpoch = "moved", nil, 0, nil
		}), errorsv1.Reason_REASON_NOT_LEADER, "other:7070"},
		{"no leader", request(func(r *storagev1.ProduceRequest) {
			r.Topic, r.TopicId, r.Partition, r.LeaderEpoch = "offline", nil, 0, nil
		}), errorsv1.Reason_REASON_NO_LEADER, "no leader"},
		{"newer epoch", request(func(r *storagev1.ProduceRequest) { r.LeaderEpoch = epoch(5) }), errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH, "5"},
		{"negative epoch", request(func(r *storagev1.ProduceRequest) { r.LeaderEpoch = epoch(-1) }), errorsv1.Reason_REASON_INVALID_REQUEST, "leader_epoch"},
		{"acks", request(func(r *storagev1.ProduceRequest) { r.Acks = 9 }), errorsv1.Reason_REASON_INVALID_REQUEST, "acks"},
		{"timeout", request(func(r *storagev1.ProduceRequest) { r.TimeoutMs = 300_001 }), errorsv1.Reason_REASON_INVALID_REQUEST, "timeout_ms"},
		{"negative timeout", request(func(r *storagev1.ProduceRequest) { r.TimeoutMs = -1 }), errorsv1.Reason_REASON_INVALID_REQUEST, "timeout_ms"},
		{"nothing to append", request(func(r *storagev1.ProduceRequest) { r.Batch = nil }), errorsv1.Reason_REASON_INVALID_REQUEST, "neither"},
		{"both forms", request(func(r *storagev1.ProduceRequest) { r.Records = []*logv1.Record{{}} }), errorsv1.Reason_REASON_INVALID_REQUEST, "both"},
		{"large batch", request(func(r *storagev1.ProduceRequest) { r.Batch = batch(t, strings.Repeat("x", 1000)) }), errorsv1.Reason_REASON_RECORD_TOO_LARGE, "1000"},
		{"damaged batch", request(func(r *storagev1.ProduceRequest) { r.Batch[30]++ }), errorsv1.Reason_REASON_CORRUPT_BATCH, "crc"},
		{"large record", request(plain(&logv1.Record{}, &logv1.Record{Value: make([]byte, 1000)})), errorsv1.Reason_REASON_RECORD_TOO_LARGE, "records[1]"},
		{"many records", request(plain(&logv1.Record{Value: make([]byte, 600)}, &logv1.Record{Value: make([]byte, 600)})), errorsv1.Reason_REASON_RECORD_TOO_LARGE, "one batch"},
		{"too many records", request(plain(make([]*logv1.Record, 10_001)...)), errorsv1.Reason_REASON_INVALID_REQUEST, "10001"},
		{"two keys", request(plain(&logv1.Record{Key: key, KeyText: &text})), errorsv1.Reason_REASON_INVALID_REQUEST, "key_text"},
		{"two values", request(plain(&logv1.Record{Value: value, ValueText: &text})), errorsv1.Reason_REASON_INVALID_REQUEST, "value_text"},
		{"negative timestamp", request(plain(&logv1.Record{TimestampMs: -1})), errorsv1.Reason_REASON_INVALID_REQUEST, "timestamp_ms"},
		{"timestamp in seconds of another epoch", request(plain(&logv1.Record{TimestampMs: 1 << 52})), errorsv1.Reason_REASON_INVALID_TIMESTAMP, "ahead"},
		{"header without a key", request(plain(&logv1.Record{Headers: []*logv1.Header{{}}})), errorsv1.Reason_REASON_INVALID_REQUEST, "records[0].headers[0].key"},
		{"record without a key", request(func(r *storagev1.ProduceRequest) {
			r.Topic, r.TopicId, r.Partition = "compacted", nil, 0
			plain(&logv1.Record{Value: value})(r)
		}), errorsv1.Reason_REASON_KEY_REQUIRED, "record 0"},
	}
	for i := range tests[20].req.Records {
		tests[20].req.Records[i] = &logv1.Record{}
	}
	p := h.produce(t.Context())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := h.client.Append(t.Context(), &storagev1.AppendRequest{Append: test.req})
			if e := wantReason(t, err, test.reason); !strings.Contains(e.Message, test.says) {
				t.Errorf("message %q does not say %q", e.Message, test.says)
			}
			p.send(test.req)
			res := p.receive()
			wantFailure(t, res.GetFailure(), test.reason)
			if res.GetTopic() != test.req.GetTopic() || res.GetPartition() != test.req.GetPartition() || res.GetBaseOffset() != -1 {
				t.Errorf("response %v", res)
			}
		})
	}
	// Nothing of all that was appended, and the stream lives.
	p.send(request(func(*storagev1.ProduceRequest) {}))
	if res := p.receive(); res.GetFailure() != nil || res.GetBaseOffset() != 0 {
		t.Errorf("after the bad requests: %v", res)
	}
	if _, err := h.client.Append(t.Context(), &storagev1.AppendRequest{}); err == nil {
		t.Error("an empty append was accepted")
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
	detail := wantReason(t, func() error {
		_, err := h.client.Append(t.Context(), &storagev1.AppendRequest{Append: tests[7].req})
		return err
	}(), errorsv1.Reason_REASON_NOT_LEADER).Detail
	if d, ok := detail.(*errorsv1.NotLeader); !ok || d.GetLeaderId() != 2 || d.GetLeaderAddress() != "other:7070" || d.GetLeaderEpoch() != 1 || d.GetTopic() != "moved" {
		t.Errorf("detail %v", detail)
	}
}

func TestPlainRecords(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	text, empty := "größer", ""
	before := time.Now().UnixMilli()
	res, err := h.client.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
		Topic: "orders", Acks: logv1.Acks_ACKS_ALL,
		Records: []*logv1.Record{
			{Key: []byte{0xff}, Value: []byte("binary key"), TimestampMs: 5},
			{KeyText: &text, ValueText: &empty, Headers: []*logv1.Header{{Key: "h", Value: []byte("1")}, {Key: "h"}}},
			{},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if r := res.GetResult(); r.GetBaseOffset() != 0 || r.GetRecordCount() != 3 || r.GetAppendTimeMs() != -1 {
		t.Errorf("result %v", r)
	}
	for _, asText := range []bool{false, true} {
		c := h.consume(&storagev1.ConsumeRequest{
			Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}, StopAtEnd: true, AsText: asText,
		})
		got := c.receive()
		if len(got.GetRecords()) != 3 || !got.GetEndReached() || got.GetNextOffset() != 3 {
			t.Fatalf("response %v", got)
		}
		r := got.GetRecords()
		if string(r[0].GetKey()) != "\xff" || r[0].KeyText != nil || r[0].GetTimestampMs() != 5 || r[0].GetOffset() != 0 {
			t.Errorf("first record %v", r[0])
		}
		second := r[1]
		switch {
		case asText && (second.GetKeyText() != text || second.Key != nil || second.ValueText == nil || second.GetValueText() != ""):
			t.Errorf("second record as text %v", second)
		case !asText && (string(second.GetKey()) != text || second.KeyText != nil || second.Value == nil || len(second.Value) != 0):
			t.Errorf("second record %v", second)
		}
		if hs := second.GetHeaders(); len(hs) != 2 || string(hs[0].GetValue()) != "1" || hs[1].Value != nil {
			t.Errorf("headers %v", hs)
		}
		if second.GetTimestampMs() < before || second.GetTimestampMs() > time.Now().UnixMilli() {
			t.Errorf("timestamp %d is not that of the request", second.GetTimestampMs())
		}
		if r[2].Key != nil || r[2].Value != nil || r[2].GetOffset() != 2 {
			t.Errorf("null record %v", r[2])
		}
		if err := c.end(); err != nil {
			t.Error(err)
		}
	}
}

func TestDuplicatesOverStreams(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	send := func(p *producer, sequence int32) *storagev1.ProduceResponse {
		p.send(&storagev1.ProduceRequest{Topic: "orders", Batch: build(t, recordbatch.Options{ProducerID: 5, BaseSequence: sequence}, fmt.Sprint(sequence))})
		return p.receive()
	}
	first, second := h.produce(t.Context()), h.produce(t.Context())
	for i := range int32(5) {
		if res := send(first, i); res.GetFailure() != nil || res.GetBaseOffset() != int64(i) || res.GetDuplicate() {
			t.Fatalf("response %v", res)
		}
	}
	for i := range int32(5) {
		if res := send(second, i); res.GetFailure() != nil || res.GetBaseOffset() != int64(i) || !res.GetDuplicate() {
			t.Fatalf("repeated: %v", res)
		}
	}
	res := send(second, 7)
	wantFailure(t, res.GetFailure(), errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE)
	if d := res.GetFailure().GetOutOfOrderSequence(); d.GetExpectedSequence() != 5 || d.GetReceivedSequence() != 7 {
		t.Errorf("detail %v", d)
	}
	if err := errors.Join(first.close(), second.close()); err != nil {
		t.Error(err)
	}
}

// The state of producers and the epochs survive a restart of the store.
func TestDuplicateAfterRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	req := func() *storagev1.AppendRequest {
		return &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
			Topic: "orders", Batch: build(t, recordbatch.Options{ProducerID: 5, BaseSequence: 0}, "a", "b"),
		}}
	}
	h := start(t, func(o *options) { o.dir = dir })
	id := h.create("orders", 1)
	if res, err := h.client.Append(t.Context(), req()); err != nil || res.GetResult().GetDuplicate() {
		t.Fatalf("%v, %v", res, err)
	}
	h.stop()

	h = start(t, func(o *options) { o.dir = dir })
	h.create("orders", 1)
	// Another topic of the same name: nothing is known of it.
	if res := h.append("orders", 0, "c"); res.GetBaseOffset() != 0 {
		t.Errorf("in a new topic of the same name: %v", res)
	}
	h.remove("orders")
	h.create("orders", 1)
	h.topic("orders").TopicId = id
	h.elect("orders", 0, int32(self))
	res, err := h.client.Append(t.Context(), req())
	if err != nil || !res.GetResult().GetDuplicate() || res.GetResult().GetBaseOffset() != 0 {
		t.Fatalf("repeated after the restart: %v, %v", res, err)
	}
	if res := h.append("orders", 0, "c"); res.GetBaseOffset() != 2 || res.GetLeaderEpoch() != 1 {
		t.Errorf("next: %v", res)
	}
}

func TestUnansweredRequestsHoldTheClientBack(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *options) { o.config.StreamRequests = 3 })
	h.create("orders", 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := h.client.Produce(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan int, 100)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for i := range 100 {
			if stream.Send(&storagev1.ProduceRequest{Topic: "orders", Batch: batch(t, "a")}) != nil {
				return
			}
			sent <- i
		}
	}()
	// Without a reader, the third is the last that is taken in, and one more waits
	// in the receiver's hand.
	for range 4 {
		select {
		case <-sent:
		case <-time.After(20 * time.Second):
			t.Fatal("held back too early")
		}
	}
	select {
	case <-sent:
		t.Fatal("a fifth request was read while none was answered")
	case <-time.After(50 * time.Millisecond):
	}
	for range 96 {
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	<-stopped
	cancel()
	_ = stream.Close()
}

func TestDrainEndsStreams(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	p := h.produce(t.Context())
	p.send(&storagev1.ProduceRequest{Topic: "orders", Batch: batch(t, "a")})
	p.receive()
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, latest())}})
	c.receive()
	h.drain.Begin()
	wantReason(t, p.wait(), errorsv1.Reason_REASON_DRAINING)
	wantReason(t, c.end(), errorsv1.Reason_REASON_DRAINING)
}

// What was accepted before the drain is answered, what comes behind it is not
// appended.
func TestDrainAnswersWhatWasAccepted(t *testing.T) {
	t.Parallel()
	const budget = 1000
	h := start(t, func(o *options) { o.partition.InFlightBytes = budget })
	h.create("orders", 1)
	if _, err := h.host.Budget().Acquire(t.Context(), budget); err != nil {
		t.Fatal(err)
	}
	p := h.produce(t.Context())
	p.send(&storagev1.ProduceRequest{RequestId: 1, Topic: "orders", Batch: batch(t, "a")})
	for h.metric("runnel_storage_append_budget_waits_total") == 0 {
		runtime.Gosched()
	}
	sent := make(chan struct{})
	second := &storagev1.ProduceRequest{RequestId: 2, Topic: "orders", Batch: batch(t, "b")}
	go func() {
		defer close(sent)
		_ = p.stream.Send(second)
	}()
	h.drain.Begin()
	h.host.Budget().Release(budget)
	if res := p.receive(); res.GetRequestId() != 1 || res.GetFailure() != nil {
		t.Errorf("first response %v", res)
	}
	wantReason(t, p.wait(), errorsv1.Reason_REASON_DRAINING)
	<-sent
	for res := range p.responses {
		wantFailure(t, res.GetFailure(), errorsv1.Reason_REASON_DRAINING)
	}
	if res := h.append("orders", 0, "c"); res.GetBaseOffset() != 1 {
		t.Errorf("next append at %d, want 1", res.GetBaseOffset())
	}
}

func TestTooManyStreams(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *options) { o.config.Streams = 2 })
	h.create("orders", 1)
	req := &storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, latest())}}
	for range 2 {
		h.consume(req).receive()
	}
	wantReason(t, h.consume(req).end(), errorsv1.Reason_REASON_THROTTLED)
}

// A stream whose client has gone leaves nothing behind.
func TestClientGoes(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("orders", 1)
	ctx, cancel := context.WithCancel(t.Context())
	p := h.produce(ctx)
	p.send(&storagev1.ProduceRequest{Topic: "orders", Batch: batch(t, "a")})
	p.receive()
	cancel()
	_ = p.wait()
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, latest())}})
	c.receive()
	c.close()
	wait, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if err := h.server.Wait(wait); err != nil {
		t.Errorf("streams are left: %v", err)
	}
}

// The bytes in flight of all streams together stay within the budget, and the
// budget is whole again afterwards.
func TestBudgetOverStreams(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *options) { o.partition.InFlightBytes = 20 << 10 })
	h.create("orders", 4)
	value := strings.Repeat("x", 8<<10)
	done := make(chan error, 4)
	for i := range int32(4) {
		p := h.produce(t.Context())
		go func() {
			for range 20 {
				if err := p.stream.Send(&storagev1.ProduceRequest{Topic: "orders", Partition: i, Batch: batch(t, value)}); err != nil {
					done <- err
					return
				}
			}
			_ = p.stream.CloseSend()
			for range 20 {
				if res := <-p.responses; res.GetFailure() != nil {
					done <- fmt.Errorf("response %v", res)
					return
				}
			}
			done <- nil
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	got, err := h.host.Budget().Acquire(t.Context(), 20<<10)
	if err != nil || got != 20<<10 {
		t.Errorf("the whole budget: %d, %v", got, err)
	}
	h.host.Budget().Release(got)
}

func TestTopicIsCreatedAnew(t *testing.T) {
	t.Parallel()
	h := start(t)
	old := h.create("orders", 1)
	h.append("orders", 0, "old")
	p := h.produce(t.Context())
	c := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, latest())}})
	c.receive()
	h.remove("orders")
	wantFailure(t, c.receive().GetFailure(), errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	if err := c.end(); err != nil {
		t.Errorf("a stream without partitions ended with %v", err)
	}
	id := h.create("orders", 1)
	p.send(&storagev1.ProduceRequest{Topic: "orders", TopicId: old, Batch: batch(t, "late")})
	wantFailure(t, p.receive().GetFailure(), errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	p.send(&storagev1.ProduceRequest{Topic: "orders", TopicId: id, Batch: batch(t, "new")})
	if res := p.receive(); res.GetFailure() != nil || res.GetBaseOffset() != 0 {
		t.Errorf("in the new topic: %v", res)
	}
	got := h.consume(&storagev1.ConsumeRequest{Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}, StopAtEnd: true}).receive()
	if len(got.GetRecords()) != 1 || string(got.GetRecords()[0].GetValue()) != "new" {
		t.Errorf("the new topic has %v", got)
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
}
