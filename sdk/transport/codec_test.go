package transport

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"unsafe"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	storagepeerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
)

// carriers are the messages that are decoded by hand.
var carriers = []proto.Message{
	&storagev1.ProduceRequest{},
	&storagev1.AppendRequest{},
	&storagev1.ConsumeResponse{},
	&storagepeerv1.ReplicateResponse{},
	&storagepeerv1.FencedAppendRequest{},
}

func fresh(m proto.Message) proto.Message { return m.ProtoReflect().New().Interface() }

// samples are messages with every kind of field in use.
func samples() []proto.Message {
	epoch := int32(4)
	record := &logv1.Record{}
	produce := &storagev1.ProduceRequest{
		RequestId: 9, Topic: "orders", Partition: 3, TimeoutMs: 1000, LeaderEpoch: &epoch,
		Records: []*logv1.Record{record, record}, TopicId: make([]byte, 16), Batch: bytes.Repeat([]byte("batch"), 1000),
	}
	failure := &errorsv1.Failure{Reason: errorsv1.Reason_REASON_NOT_LEADER, Message: "x",
		Detail: &errorsv1.Failure_NotLeader{NotLeader: &errorsv1.NotLeader{Topic: "t"}}}
	batches := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("two"), 1000)}
	return []proto.Message{
		produce,
		&storagev1.ProduceRequest{},
		&storagev1.ProduceRequest{Topic: "no batch"},
		&storagev1.AppendRequest{Append: produce},
		&storagev1.AppendRequest{},
		&storagev1.AppendRequest{Append: &storagev1.ProduceRequest{}},
		&storagev1.ConsumeResponse{Topic: "t", NextOffset: 1 << 40, HighWatermark: -1, Records: []*logv1.Record{record}, Failure: failure, Batches: batches},
		&storagev1.ConsumeResponse{Batches: [][]byte{{}}},
		&storagepeerv1.ReplicateResponse{Partitions: []*storagepeerv1.ReplicaData{
			{TopicId: make([]byte, 16), FollowsOffset: 7, Batches: batches},
			{},
			{Failure: failure, Divergence: &storagepeerv1.Divergence{Epoch: 2}},
		}},
		&storagepeerv1.FencedAppendRequest{ExpectedOffset: -1, Batch: []byte("batch")},
	}
}

// decodeBoth decodes with the codec and with the protobuf runtime, which are to
// agree, and returns the codec's message.
func decodeBoth(t *testing.T, kind proto.Message, data []byte) (proto.Message, error) {
	t.Helper()
	input := bytes.Clone(data)
	got := fresh(kind)
	err := Codec().UnmarshalRead(t.Context(), bytes.NewBuffer(input), got)
	want := fresh(kind)
	wantErr := proto.Unmarshal(data, want)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%T of %x: %v, the protobuf runtime says %v", kind, data, err, wantErr)
	}
	if err != nil {
		return nil, err
	}
	if !proto.Equal(got, want) {
		t.Fatalf("%T of %x:\n got %v\nwant %v", kind, data, got, want)
	}
	// The transport reuses its buffer as soon as the codec returns.
	for i := range input {
		input[i] = 0xaa
	}
	if !proto.Equal(got, want) {
		t.Fatalf("%T points into the transport's buffer", kind)
	}
	return got, nil
}

func TestDecodeAgreesWithTheRuntime(t *testing.T) {
	t.Parallel()
	for _, m := range samples() {
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeBoth(t, m, data); err != nil {
			t.Errorf("%T: %v", m, err)
		}
		for cut := range min(len(data), 300) {
			_, _ = decodeBoth(t, m, data[:cut])
		}
		// Twice in a row: repeated occurrences of every field.
		if _, err := decodeBoth(t, m, append(bytes.Clone(data), data...)); err != nil {
			t.Errorf("%T twice: %v", m, err)
		}
		// Unknown fields before, between and after.
		unknown := protowire.AppendBytes(protowire.AppendTag(nil, 2000, protowire.BytesType), []byte("unknown"))
		mixed := append(append(append(bytes.Clone(unknown), data...), unknown...), data...)
		if _, err := decodeBoth(t, m, mixed); err != nil {
			t.Errorf("%T with unknown fields: %v", m, err)
		}
	}
}

func TestDecodeOddWireForms(t *testing.T) {
	t.Parallel()
	bytesField := func(b []byte, n protowire.Number, v string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	for name, data := range map[string][]byte{
		"empty":                      {},
		"last batch wins":            bytesField(bytesField(nil, 15, "first"), 15, "second"),
		"an empty batch wins too":    bytesField(bytesField(nil, 15, "first"), 15, ""),
		"field 15 as a varint":       protowire.AppendVarint(protowire.AppendTag(nil, 15, protowire.VarintType), 7),
		"field 15 as a group":        protowire.AppendTag(protowire.AppendTag(nil, 15, protowire.StartGroupType), 15, protowire.EndGroupType),
		"field 1 as fixed":           protowire.AppendFixed64(protowire.AppendTag(nil, 1, protowire.Fixed64Type), 7),
		"group without end":          protowire.AppendTag(nil, 3, protowire.StartGroupType),
		"end without group":          protowire.AppendTag(nil, 3, protowire.EndGroupType),
		"batch inside a group":       protowire.AppendTag(bytesField(protowire.AppendTag(nil, 99, protowire.StartGroupType), 15, "hidden"), 99, protowire.EndGroupType),
		"invalid UTF-8":              bytesField(nil, 2, "\xff\xfe"),
		"invalid UTF-8 after batch":  bytesField(bytesField(nil, 15, "x"), 2, "\xff"),
		"non-minimal tag":            append([]byte{0xfa, 0x00}, 0x01, 'x'),
		"non-minimal length":         {0x7a, 0x81, 0x00, 'x'},
		"field number 0":             {0x02, 0x00},
		"field number too large":     protowire.AppendVarint(nil, uint64(protowire.MaxValidNumber+1)<<3|2),
		"length beyond the end":      {0x7a, 0x7f, 'x'},
		"length overflows":           append([]byte{0x7a}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01),
		"nested, last batch wins":    bytesField(bytesField(nil, 1, string(bytesField(nil, 15, "a"))), 1, string(bytesField(bytesField(nil, 2, "t"), 15, "b"))),
		"nested, without batch last": bytesField(bytesField(nil, 1, string(bytesField(nil, 15, "a"))), 1, string(bytesField(nil, 2, "t"))),
		"nested and broken":          bytesField(nil, 1, "\x7a\x05"),
		"reserved wire type":         {0x7e, 0x00},
	} {
		for _, kind := range carriers {
			t.Run(fmt.Sprintf("%s/%T", name, kind), func(t *testing.T) {
				t.Parallel()
				_, _ = decodeBoth(t, kind, data)
			})
		}
	}
}

// randomFields encodes fields at random; most have the numbers and types that the
// carriers know.
func randomFields(r *rand.Rand, depth int) []byte {
	var b []byte
	for range r.IntN(8) {
		number := protowire.Number(1 + r.IntN(17))
		switch r.IntN(8) {
		case 0:
			b = protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), r.Uint64()>>r.IntN(64))
		case 1:
			b = protowire.AppendFixed32(protowire.AppendTag(b, number, protowire.Fixed32Type), r.Uint32())
		case 2:
			b = protowire.AppendTag(b, number, protowire.StartGroupType)
			if depth > 0 {
				b = append(b, randomFields(r, depth-1)...)
			}
			b = protowire.AppendTag(b, number, protowire.EndGroupType)
		case 3, 4:
			if depth > 0 {
				b = protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), randomFields(r, depth-1))
			}
		default:
			value := make([]byte, r.IntN(40))
			for i := range value {
				value[i] = byte(r.IntN(200))
			}
			b = protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
		}
	}
	return b
}

func TestDecodeRandomFields(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 11))
	accepted := 0
	for range 8_000 {
		data := randomFields(r, 3)
		if r.IntN(3) == 0 && len(data) > 0 {
			data[r.IntN(len(data))] = byte(r.Uint32())
		}
		for _, kind := range carriers {
			if _, err := decodeBoth(t, kind, data); err == nil {
				accepted++
			}
		}
	}
	if accepted < 3_000 {
		t.Errorf("only %d inputs were valid: the test says little", accepted)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		if len(data) < 4096 {
			f.Add(data)
		}
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		f.Add(randomFields(r, 2))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, kind := range carriers {
			_, _ = decodeBoth(t, kind, data)
		}
	})
}

func TestEncodeAgreesWithTheRuntime(t *testing.T) {
	t.Parallel()
	for _, m := range append(samples(), &metadatav1.GetClusterResponse{Cluster: &metadatav1.ClusterSnapshot{Version: 3}}) {
		var out bytes.Buffer
		if err := Codec().MarshalWrite(t.Context(), &out, m); err != nil {
			t.Fatal(err)
		}
		back := fresh(m)
		if err := proto.Unmarshal(out.Bytes(), back); err != nil || !proto.Equal(m, back) {
			t.Errorf("%T: %v", m, err)
		}
	}
}

// within reports whether part lies in the memory of the same allocation as whole,
// which is all that aliasing means.
func within(part, whole []byte) bool {
	p, w := uintptr(unsafe.Pointer(unsafe.SliceData(part))), uintptr(unsafe.Pointer(unsafe.SliceData(whole)))
	return p >= w && p+uintptr(len(part)) <= w+uintptr(cap(whole))
}

func TestBatchesShareTheMessagesMemory(t *testing.T) {
	t.Parallel()
	want := &storagev1.ConsumeResponse{Topic: "t", Batches: [][]byte{bytes.Repeat([]byte("a"), 1<<10), bytes.Repeat([]byte("b"), 1<<10)}}
	data, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := &storagev1.ConsumeResponse{}
	if err := aliasing(got)(data); err != nil {
		t.Fatal(err)
	}
	for i, b := range got.GetBatches() {
		if !within(b, data) {
			t.Errorf("batch %d was copied", i)
		}
		if cap(b) != len(b) {
			t.Errorf("appending to batch %d would overwrite what follows it", i)
		}
	}
	produce := &storagev1.ProduceRequest{}
	data, err = proto.Marshal(&storagev1.ProduceRequest{Topic: "t", Batch: make([]byte, 1<<10)})
	if err != nil {
		t.Fatal(err)
	}
	if err := aliasing(produce)(data); err != nil || !within(produce.GetBatch(), data) {
		t.Errorf("batch was copied (%v)", err)
	}
}

// TestSmallBatchesLetLargeMessagesGo: whoever keeps a batch must not keep more
// than its length says.
func TestSmallBatchesLetLargeMessagesGo(t *testing.T) {
	t.Parallel()
	large := protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, 1<<20))
	repeated := protowire.AppendBytes(protowire.AppendTag(nil, fieldBatch, protowire.BytesType), make([]byte, 1<<20))
	small := protowire.AppendBytes(protowire.AppendTag(nil, fieldBatch, protowire.BytesType), []byte("small"))
	for name, data := range map[string][]byte{
		"unknown field":  append(large, small...),
		"repeated field": append(repeated, small...),
	} {
		got := &storagev1.ProduceRequest{}
		if err := aliasing(got)(data); err != nil {
			t.Fatal(err)
		}
		if string(got.GetBatch()) != "small" || within(got.GetBatch(), data) {
			t.Errorf("%s: a batch of %d bytes holds on to a message of %d", name, len(got.GetBatch()), len(data))
		}
	}
}

func TestDecodeResetsTheMessage(t *testing.T) {
	t.Parallel()
	for _, kind := range samples() {
		m := proto.Clone(kind)
		if err := Codec().UnmarshalRead(t.Context(), new(bytes.Buffer), m); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(m, fresh(kind)) {
			t.Errorf("%T keeps %v", kind, m)
		}
	}
}

func TestDecodeFromAnyReader(t *testing.T) {
	t.Parallel()
	want := samples()[0]
	data, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := fresh(want)
	if err := Codec().UnmarshalRead(t.Context(), iotest.OneByteReader(bytes.NewReader(data)), got); err != nil || !proto.Equal(got, want) {
		t.Error(err)
	}
	if err := Codec().UnmarshalRead(t.Context(), iotest.ErrReader(io.ErrUnexpectedEOF), got); err == nil {
		t.Error("the reader's error is lost")
	}
	if err := Codec().UnmarshalRead(t.Context(), bytes.NewReader(data), "not a message"); err == nil {
		t.Error("anything passes for a message")
	}
}

// Every message with a bytes field that may be large must be known to aliasing.
func TestEveryBatchCarrierIsDecodedByHand(t *testing.T) {
	t.Parallel()
	for _, file := range []interface {
		Messages() protoreflect.MessageDescriptors
	}{storagev1.File_runnel_storage_v1_log_proto, storagepeerv1.File_runnel_storage_peer_v1_replication_proto} {
		messages := file.Messages()
		for i := range messages.Len() {
			d := messages.Get(i)
			if d.Fields().ByNumber(fieldBatch) == nil || d.Name() == "ReplicaData" {
				continue // ReplicaData comes inside of ReplicateResponse only.
			}
			found := false
			for _, c := range carriers {
				found = found || c.ProtoReflect().Descriptor().FullName() == d.FullName()
			}
			if !found {
				t.Errorf("%s has a field %d and is not in aliasing", d.FullName(), fieldBatch)
			}
		}
	}
	for _, c := range carriers {
		if aliasing(c) == nil {
			t.Errorf("aliasing does not know %T", c)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	data, err := proto.Marshal(&storagev1.ProduceRequest{RequestId: 1, Topic: "orders", Batch: make([]byte, 256<<10)})
	if err != nil {
		b.Fatal(err)
	}
	for name, codec := range map[string]connect.Codec{"runnel": Codec(), "connect": connectproto.NewBinaryCodec()} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			reportCPU(b)
			for b.Loop() {
				if err := codec.UnmarshalRead(b.Context(), bytes.NewBuffer(data), &storagev1.ProduceRequest{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
