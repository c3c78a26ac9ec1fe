package recordbatch_test

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

func TestRecordsReadTheIndependentEncoder(t *testing.T) {
	want := variedRecords()
	var encoded []byte
	for i, w := range want {
		r := kmsg.Record{OffsetDelta: int32(i), TimestampDelta64: w.Timestamp - day, Key: w.Key, Value: w.Value}
		for _, h := range w.Headers {
			r.Headers = append(r.Headers, kmsg.Header{Key: h.Key, Value: h.Value})
		}
		encoded = append(encoded, encodeRecord(r)...)
	}
	b := encodeBatch(recordbatch.None, len(want), encoded, func(b *kmsg.RecordBatch) { b.MaxTimestamp = math.MaxInt64 })
	if _, err := recordbatch.VerifyRecords(b, recordbatch.Limits{}); err != nil {
		t.Fatal(err)
	}
	got, err := collect(t, b, recordbatch.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(got, want, sameRecord) {
		t.Error("records differ")
	}
}

// deltas returns records with these offset deltas.
func deltas(deltas ...int32) []byte {
	var b []byte
	for i, delta := range deltas {
		b = append(b, encodeRecord(kmsg.Record{OffsetDelta: delta, TimestampDelta64: int64(i), Value: []byte("v")})...)
	}
	return b
}

func TestCompactedBatchesHaveGaps(t *testing.T) {
	for _, offsets := range [][]int32{{0, 1, 2}, {0, 4, 9}, {3, 4, 5}, {7, 8, 9}} {
		b := encodeBatch(recordbatch.None, 3, deltas(offsets...), func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 9 })
		recordbatch.Assign(b, 100, 1)
		records, err := collect(t, b, recordbatch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range records {
			if r.Offset != 100+int64(offsets[i]) {
				t.Errorf("offset %d, want %d", r.Offset, 100+int64(offsets[i]))
			}
		}
		_, err = recordbatch.VerifyRecords(b, recordbatch.Limits{})
		wantError(t, err, recordbatch.ErrCorrupt, "recordCount")
	}
}

func TestRecordsMustAgreeWithTheHeader(t *testing.T) {
	type change = func(*kmsg.RecordBatch)
	lastDelta := func(delta int32) change { return func(b *kmsg.RecordBatch) { b.LastOffsetDelta = delta } }
	concat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	three := deltas(0, 1, 2)
	one := deltas(0)
	// body is a record of that body.
	body := func(b ...byte) []byte { return append([]byte{byte(len(b) << 1)}, b...) }
	for _, c := range []struct {
		name    string
		count   int
		records []byte
		change  change
		field   string
	}{
		{"offset twice", 3, deltas(0, 1, 1), nil, "records[2].offsetDelta"},
		{"offset going back", 3, deltas(0, 2, 1), nil, "records[2].offsetDelta"},
		{"offset beyond the last", 3, deltas(0, 1, 3), nil, "records[2].offsetDelta"},
		{"offset before the first", 3, deltas(-1, 0, 1), nil, "records[0].offsetDelta"},
		{"gap without room", 3, deltas(0, 2, 3), nil, "records[2].offsetDelta"},
		{"gap in the last place of the header", 3, deltas(0, 1, 5), lastDelta(4), "records[2].offsetDelta"},
		{"bytes after the last record", 3, concat(three, []byte{0}), nil, "records"},
		{"more records than counted", 2, three, nil, "records"},
		{"fewer records than counted", 4, plainRecords(3), nil, "records[3].length"},
		{"last record cut short", 3, three[:len(three)-1], nil, "records[2].length"},
		{"length 0", 1, concat([]byte{0}, one), nil, "records[0].length"},
		{"negative length", 1, concat([]byte{1}, one), nil, "records[0].length"},
		{"length of more than 32 bits", 1, concat([]byte{0xff, 0xff, 0xff, 0xff, 0x7f}, one), nil, "records[0].length"},
		{"length of more than five bytes", 1, concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, one), nil, "records[0].length"},
		{"length beyond the end", 1, concat([]byte{0xfe, 0xff, 0xff, 0xff, 0x0f}, one), nil, "records[0].length"},
		{"bytes after the fields", 1, body(0, 0, 0, 1, 1, 0, 0), nil, "records[0].length"},
		{"key cut short", 1, body(0, 0, 0, 200, 1, 1, 0, 0), nil, "records[0].keyLength"},
		{"key length -2", 1, body(0, 0, 0, 3, 1, 0), nil, "records[0].keyLength"},
		{"value cut short", 1, body(0, 0, 0, 1, 100, 0), nil, "records[0].valueLength"},
		{"value length -2", 1, body(0, 0, 0, 1, 3, 0), nil, "records[0].valueLength"},
		{"key that leaves nothing", 1, body(0, 0, 0, 4, 1, 1), nil, "records[0].valueLength"},
		{"value that leaves nothing", 1, body(0, 0, 0, 1, 2, 0), nil, "records[0].headerCount"},
		{"negative header count", 1, body(0, 0, 0, 1, 1, 1), nil, "records[0].headerCount"},
		{"more headers than bytes", 1, body(0, 0, 0, 1, 1, 4, 0, 0), nil, "records[0].headerCount"},
		{"two billion headers", 1, body(0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f), nil, "records[0].headerCount"},
		{"null header key", 1, body(0, 0, 0, 1, 1, 2, 1, 1), nil, "records[0].headers[0].keyLength"},
		{"header key cut short", 1, body(0, 0, 0, 1, 1, 2, 8, 1), nil, "records[0].headers[0].keyLength"},
		{"header value length -2", 1, body(0, 0, 0, 1, 1, 2, 0, 3), nil, "records[0].headers[0].valueLength"},
		{"second header missing", 1, body(0, 0, 0, 1, 1, 4, 2, 'k', 2, 'v'), nil, "records[0].headers[1].keyLength"},
		{"timestamp delta of more than ten bytes", 1,
			body(append([]byte{0}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 1, 1, 0)...), nil, "records[0].timestampDelta"},
		{"timestamp below -1", 1, encodeRecord(kmsg.Record{TimestampDelta64: -day - 2}), nil, "records[0].timestampDelta"},
		{"timestamp overflow", 1, encodeRecord(kmsg.Record{TimestampDelta64: math.MaxInt64}), nil, "records[0].timestampDelta"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := encodeBatch(recordbatch.None, c.count, c.records, c.change)
			if _, err := recordbatch.Verify(b); err != nil {
				t.Fatalf("only the records are to be wrong: %v", err)
			}
			records, err := collect(t, b, recordbatch.Limits{})
			wantError(t, err, recordbatch.ErrCorrupt, c.field)
			if len(records) > c.count {
				t.Errorf("%d records were yielded, the header counts %d", len(records), c.count)
			}
			if _, err := recordbatch.VerifyRecords(b, recordbatch.Limits{}); !errors.Is(err, recordbatch.ErrCorrupt) {
				t.Errorf("VerifyRecords: %v", err)
			}
		})
	}
}

func TestRecordsJudgeCountsByTheOpenedBytes(t *testing.T) {
	records := compressed(t, recordbatch.Zstd, plainRecords(10))
	b := encodeBatch(recordbatch.Zstd, math.MaxInt32, records, nil)
	if _, err := recordbatch.Verify(b); err != nil {
		t.Fatal(err)
	}
	allocated := bytesAllocated(func() {
		_, err := collect(t, b, recordbatch.Limits{})
		wantError(t, err, recordbatch.ErrCorrupt, "recordCount")
	})
	if allocated > 4<<20 {
		t.Errorf("%d bytes allocated for a batch of %d", allocated, len(b))
	}
}

func TestVerifyRecordsJudgesTheGreatestTimestamp(t *testing.T) {
	for _, off := range []int64{-1, 1, 1000} {
		b := encodeBatch(recordbatch.None, 10, plainRecords(10), func(b *kmsg.RecordBatch) { b.MaxTimestamp += off })
		if _, err := collect(t, b, recordbatch.Limits{}); err != nil {
			t.Error(err)
		}
		_, err := recordbatch.VerifyRecords(b, recordbatch.Limits{})
		wantError(t, err, recordbatch.ErrCorrupt, "maxTimestamp")
	}
	b := encodeBatch(recordbatch.None, 10, plainRecords(10), nil)
	b[len(b)-1] ^= 1
	_, err := recordbatch.VerifyRecords(b, recordbatch.Limits{})
	wantError(t, err, recordbatch.ErrCorrupt, "crc")
}

func TestRecordsCanBeLeftEarly(t *testing.T) {
	b := encodeBatch(recordbatch.None, 10, plainRecords(10), nil)
	n := 0
	for _, err := range recordbatch.Records(b, recordbatch.Limits{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("%d records", n)
	}
}

func TestAppendingToAKeyLeavesTheValueAlone(t *testing.T) {
	var builder recordbatch.Builder
	if err := builder.Append([]byte("key"), []byte("value"), []recordbatch.RecordHeader{{Key: "h", Value: []byte("x")}, {Key: "i"}}, 0); err != nil {
		t.Fatal(err)
	}
	b, err := builder.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		t.Fatal(err)
	}
	before := slices.Clone(b)
	records, err := recordbatch.Decode(b, recordbatch.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	r := records[0]
	_ = append(r.Key, "overrun"...)
	_ = append(r.Value, "overrun"...)
	_ = append(r.Headers[0].Value, "overrun"...)
	if !bytes.Equal(b, before) {
		t.Error("an append to what Decode returned wrote into the batch")
	}
}

func TestRecordsAllocateNothingPerRecord(t *testing.T) {
	headers := []recordbatch.RecordHeader{{Key: "traceparent", Value: []byte("00-4b")}, {Key: "n", Value: nil}}
	for _, c := range []struct {
		name    string
		headers []recordbatch.RecordHeader
		// most allocations for 640 records.
		most float64
	}{{"plain", nil, 0}, {"with headers", headers, 640*2/64 + 2}} {
		t.Run(c.name, func(t *testing.T) {
			var builder recordbatch.Builder
			for range 640 {
				if err := builder.Append([]byte("key"), []byte(logLine(1)), c.headers, 0); err != nil {
					t.Fatal(err)
				}
			}
			b, err := builder.Build(recordbatch.WithoutProducer(recordbatch.None))
			if err != nil {
				t.Fatal(err)
			}
			allocations := testing.AllocsPerRun(10, func() {
				for r, err := range recordbatch.Records(b, recordbatch.Limits{}) {
					if err != nil || len(r.Headers) != len(c.headers) {
						t.Fatal(r, err)
					}
				}
			})
			if allocations > c.most {
				t.Errorf("%v allocations for 640 records, want at most %v", allocations, c.most)
			}
		})
	}
}

// FuzzRecords feeds the readers batches whose checksum is right, whatever else
// they hold.
func FuzzRecords(f *testing.F) {
	f.Add(encodeBatch(recordbatch.None, 2, plainRecords(2), nil))
	f.Add(encodeBatch(recordbatch.None, 3, deltas(0, 4, 9), func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 9 }))
	f.Add(encodeBatch(recordbatch.None, 1, []byte{0xfe, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0}, nil))
	for _, codec := range codecs() {
		var builder recordbatch.Builder
		appendRecords(f, &builder, goldenRecords)
		for _, line := range logLines(4) {
			if err := builder.Append(line[:3], line, nil, day); err != nil {
				f.Fatal(err)
			}
		}
		b, err := builder.Build(recordbatch.WithoutProducer(codec))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-5])
	}
	for _, foreign := range foreignForms(f, plainRecords(2)) {
		f.Add(encodeBatch(foreign.codec, 2, foreign.bytes, nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= recordbatch.HeaderSize {
			b[8], b[9], b[10], b[11] = byte((len(b)-12)>>24), byte((len(b)-12)>>16), byte((len(b)-12)>>8), byte(len(b)-12)
			sign(b)
		}
		limits := recordbatch.Limits{MaxBytes: 1 << 20}
		records, err := collect(t, b, limits)
		h, err2 := recordbatch.VerifyRecords(b, limits)
		if err != nil {
			if err2 == nil {
				t.Fatalf("VerifyRecords accepts what Records refuses: %v", err)
			}
			return
		}
		header, err3 := recordbatch.Verify(b)
		if err3 != nil {
			t.Fatalf("Records accepts what Verify refuses: %v", err3)
		}
		size, last := 0, header.BaseOffset-1
		for _, r := range records {
			if r.Offset <= last || r.Offset > header.LastOffset() || r.Timestamp < recordbatch.NoTimestamp {
				t.Fatalf("record %+v of header %+v", r, header)
			}
			last = r.Offset
			size += len(r.Key) + len(r.Value)
			for _, h := range r.Headers {
				size += len(h.Key) + len(h.Value)
			}
		}
		if len(records) != int(header.RecordCount) || header.Codec() != recordbatch.None && size > limits.MaxBytes {
			t.Fatalf("%d records with %d bytes of header %+v", len(records), size, header)
		}
		if err2 != nil {
			return
		}
		if h != header || last != h.LastOffset() {
			t.Fatalf("VerifyRecords accepts gaps: last record %d, header %+v", last, h)
		}
		// What VerifyRecords accepts we can say ourselves, but for header keys
		// that are no UTF-8.
		var builder recordbatch.Builder
		for _, r := range records {
			if err := builder.Append(r.Key, r.Value, r.Headers, r.Timestamp); errors.Is(err, recordbatch.ErrInvalid) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
		again, err := builder.Build(recordbatch.Options{
			Codec: header.Codec(), ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch, BaseSequence: h.BaseSequence,
		})
		if err != nil {
			t.Fatal(err)
		}
		recordbatch.Assign(again, h.BaseOffset, h.LeaderEpoch)
		decoded, err := recordbatch.Decode(again, recordbatch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(decoded, records, sameRecord) {
			t.Fatal("decoding, building and decoding again gives other records")
		}
	})
}
