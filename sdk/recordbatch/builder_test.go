package recordbatch_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// The batch was encoded by hand, checksum included, from the format's
// description.
var golden = strings.Join([]string{
	"0000000000000000", // base offset
	"00000069",         // batch length: 105
	"ffffffff",         // leader epoch: none yet
	"02",               // magic
	"3f3543d0",         // CRC-32C of what follows
	"0000",             // attributes: no compression, CreateTime
	"00000002",         // last offset delta
	"0000018bcfe56800", // base timestamp: 1700000000000
	"0000018bcfe568c8", // max timestamp: 200 ms later
	"0000000000001267", // producer id: 4711
	"0003",             // producer epoch
	"7ffffffe",         // base sequence: wraps within the batch
	"00000003",         // records
	// Key "k1", value "line one" and a carriage return.
	"22" + "00" + "00" + "00" + "046b31" + "126c696e65206f6e650d" + "00",
	// 200 ms later; null key, empty value, headers trace=abc, empty="", null=null.
	"3c" + "00" + "9003" + "02" + "01" + "00" + "06" + "0a7472616365" + "06616263" + "0a656d707479" + "00" + "086e756c6c" + "01",
	// 5 ms before the first; empty key, null value.
	"0c" + "00" + "09" + "04" + "00" + "01" + "00",
}, "")

var goldenRecords = []recordbatch.Record{
	{Offset: 0, Timestamp: day, Key: []byte("k1"), Value: []byte("line one\r")},
	{Offset: 1, Timestamp: day + 200, Value: []byte{}, Headers: []recordbatch.RecordHeader{
		{Key: "trace", Value: []byte("abc")}, {Key: "empty", Value: []byte{}}, {Key: "null"},
	}},
	{Offset: 2, Timestamp: day - 5, Key: []byte{}},
}

func appendRecords(tb testing.TB, b *recordbatch.Builder, records []recordbatch.Record) {
	tb.Helper()
	for _, r := range records {
		if err := b.Append(r.Key, r.Value, r.Headers, r.Timestamp); err != nil {
			tb.Fatal(err)
		}
	}
}

func TestGoldenBytes(t *testing.T) {
	want, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	var b recordbatch.Builder
	appendRecords(t, &b, goldenRecords)
	if b.NumRecords() != 3 || b.EncodedSize() != len(want) {
		t.Errorf("%d records in %d bytes, want 3 in %d", b.NumRecords(), b.EncodedSize(), len(want))
	}
	got, err := b.Build(recordbatch.Options{ProducerID: 4711, ProducerEpoch: 3, BaseSequence: math.MaxInt32 - 1})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("built %x\nwant  %x", got, want)
	}

	h, err := recordbatch.VerifyRecords(want, recordbatch.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if h.LastSequence() != 0 {
		t.Errorf("last sequence %d, want 0", h.LastSequence())
	}
	records, err := collect(t, want, recordbatch.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(records, goldenRecords, sameRecord) {
		t.Errorf("records %+v, want %+v", records, goldenRecords)
	}
}

// variedRecords are log lines with keys and headers, and all that may be null or
// empty.
func variedRecords() []recordbatch.Record {
	records := slices.Clone(goldenRecords)
	for i, line := range logLines(500) {
		r := recordbatch.Record{Timestamp: day + int64(i*i%1000-500), Key: fmt.Appendf(nil, "host-%d", i%7), Value: line}
		if i%3 == 0 {
			r.Headers = []recordbatch.RecordHeader{{Key: "path", Value: []byte("/var/log/auth.log")}, {Key: "n", Value: fmt.Append(nil, i)}}
		}
		records = append(records, r)
	}
	records = append(records,
		recordbatch.Record{Timestamp: recordbatch.NoTimestamp},
		recordbatch.Record{Timestamp: 0, Value: []byte("\r")},
		recordbatch.Record{Timestamp: math.MaxInt64, Key: []byte("\x00\xff\n"), Value: bytes.Repeat([]byte{0}, 10_000)})
	for i := range records {
		records[i].Offset = int64(i)
	}
	return records
}

func TestRoundTrip(t *testing.T) {
	want := variedRecords()
	for _, codec := range codecs() {
		t.Run(codec.String(), func(t *testing.T) {
			var b recordbatch.Builder
			appendRecords(t, &b, want)
			uncompressed := b.EncodedSize()
			batch, err := b.Build(recordbatch.WithoutProducer(codec))
			if err != nil {
				t.Fatal(err)
			}
			h, err := recordbatch.VerifyRecords(batch, recordbatch.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if h.Codec() != codec || h.MaxTimestamp != math.MaxInt64 || h.Idempotent() || h.LeaderEpoch != -1 {
				t.Errorf("header %+v", h)
			}
			if codec == recordbatch.None && len(batch) != uncompressed || codec != recordbatch.None && len(batch) > uncompressed/2 {
				t.Errorf("%d bytes of %d", len(batch), uncompressed)
			}
			got, err := collect(t, batch, recordbatch.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(got, want, sameRecord) {
				t.Error("records differ")
			}
		})
	}
}

// TestIndependentDecoderReadsOurBatches compares with franz-go's kmsg.
func TestIndependentDecoderReadsOurBatches(t *testing.T) {
	want := variedRecords()
	var b recordbatch.Builder
	appendRecords(t, &b, want)
	built, err := b.Build(recordbatch.Options{ProducerID: 1 << 40, ProducerEpoch: 5, BaseSequence: 6})
	if err != nil {
		t.Fatal(err)
	}
	var batch kmsg.RecordBatch
	if err := batch.ReadFrom(built); err != nil {
		t.Fatal(err)
	}
	if again := batch.AppendTo(nil); !bytes.Equal(again, built) {
		t.Error("kmsg writes the batch differently")
	}
	rest := batch.Records
	for i, w := range want {
		var r kmsg.Record
		if err := r.ReadFrom(rest); err != nil {
			t.Fatal(err)
		}
		encoded := encodeRecord(r)
		if !bytes.HasPrefix(rest, encoded) {
			t.Fatalf("kmsg writes record %d differently", i)
		}
		rest = rest[len(encoded):]
		got := recordbatch.Record{Offset: int64(r.OffsetDelta), Timestamp: batch.FirstTimestamp + r.TimestampDelta64, Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			got.Headers = append(got.Headers, recordbatch.RecordHeader{Key: h.Key, Value: h.Value})
		}
		if !sameRecord(got, w) {
			t.Fatalf("kmsg reads record %d as %+v, want %+v", i, got, w)
		}
	}
	if len(rest) > 0 {
		t.Errorf("kmsg leaves %d bytes", len(rest))
	}
}

func TestBuildAndDecodeAreInverse(t *testing.T) {
	// Bytes compress well, badly, or are null.
	some := rapid.OneOf(
		rapid.Just[[]byte](nil),
		rapid.SliceOfN(rapid.Byte(), 0, 300),
		rapid.Custom(func(t *rapid.T) []byte {
			return bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 4).Draw(t, "unit"), rapid.IntRange(0, 500).Draw(t, "times"))
		}),
	)
	header := rapid.Custom(func(t *rapid.T) recordbatch.RecordHeader {
		return recordbatch.RecordHeader{Key: rapid.StringN(0, 20, -1).Draw(t, "header key"), Value: some.Draw(t, "header value")}
	})
	record := rapid.Custom(func(t *rapid.T) recordbatch.Record {
		return recordbatch.Record{
			Timestamp: rapid.Int64Range(-1, math.MaxInt64).Draw(t, "timestamp"),
			Key:       some.Draw(t, "key"),
			Value:     some.Draw(t, "value"),
			Headers:   rapid.SliceOfN(header, 0, 12).Draw(t, "headers"),
		}
	})
	var b recordbatch.Builder // one for all: reuse must not show
	rapid.Check(t, func(t *rapid.T) {
		b.Reset()
		records := rapid.SliceOfN(record, 1, 50).Draw(t, "records")
		base := rapid.Int64Range(0, math.MaxInt64-1000).Draw(t, "base offset")
		options := recordbatch.WithoutProducer(rapid.SampledFrom(codecs()).Draw(t, "codec"))
		if rapid.Bool().Draw(t, "idempotent") {
			options.ProducerID = rapid.Int64Range(0, math.MaxInt64).Draw(t, "producer id")
			options.ProducerEpoch = rapid.Int16Range(0, math.MaxInt16).Draw(t, "producer epoch")
			options.BaseSequence = rapid.Int32Range(0, math.MaxInt32).Draw(t, "base sequence")
		}
		greatest := recordbatch.NoTimestamp
		for i := range records {
			r := &records[i]
			size := b.EncodedSize()
			if err := b.Append(r.Key, r.Value, r.Headers, r.Timestamp); err != nil {
				t.Fatal(err)
			}
			if most := recordbatch.MaxRecordSize(r.Key, r.Value, r.Headers); b.EncodedSize()-size > most {
				t.Fatalf("record of %d bytes, MaxRecordSize says %d", b.EncodedSize()-size, most)
			}
			r.Offset = base + int64(i)
			greatest = max(greatest, r.Timestamp)
		}
		encoded := b.EncodedSize()
		batch, err := b.Build(options)
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) > encoded {
			t.Fatalf("%d bytes, EncodedSize was %d", len(batch), encoded)
		}
		recordbatch.Assign(batch, base, 3)
		h, err := recordbatch.VerifyRecords(batch, recordbatch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if h.ProducerID != options.ProducerID || h.ProducerEpoch != options.ProducerEpoch || h.BaseSequence != options.BaseSequence ||
			h.MaxTimestamp != greatest || int(h.RecordCount) != len(records) || h.Codec() != options.Codec && h.Codec() != recordbatch.None {
			t.Fatalf("header %+v of options %+v", h, options)
		}
		got, err := recordbatch.Decode(batch, recordbatch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, records, sameRecord) {
			t.Fatalf("got %+v\nwant %+v", got, records)
		}
	})
}

func TestBuildLeavesIncompressibleRecordsAlone(t *testing.T) {
	value := make([]byte, 50_000)
	if _, err := rand.Read(value); err != nil {
		t.Fatal(err)
	}
	for _, codec := range codecs() {
		for _, value := range [][]byte{value, []byte("x")} {
			var b recordbatch.Builder
			batch := build(t, &b, [][]byte{value}, recordbatch.WithoutProducer(codec))
			h, err := recordbatch.VerifyRecords(batch, recordbatch.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if h.Codec() != recordbatch.None || len(batch) > len(value)+100 {
				t.Errorf("%d bytes of noise became %d with %v", len(value), len(batch), h.Codec())
			}
		}
	}
}

func TestBuilderRefusesWhatTheFormatCannotSay(t *testing.T) {
	var b recordbatch.Builder
	_, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
	wantError(t, err, recordbatch.ErrInvalid, "recordCount")

	appendRecords(t, &b, goldenRecords)
	size := b.EncodedSize()
	wantError(t, b.Append(nil, nil, nil, -2), recordbatch.ErrInvalid, "timestamp")
	tooMuch := slices.Repeat([]recordbatch.RecordHeader{{Value: make([]byte, 1<<20)}}, 2048)
	wantError(t, b.Append(nil, nil, tooMuch, 0), recordbatch.ErrTooLarge, "batchLength")
	wantError(t, b.Append(nil, nil, []recordbatch.RecordHeader{{Key: "ok"}, {Key: "\xff"}}, 0), recordbatch.ErrInvalid, "headers[1].key")

	for _, c := range []struct {
		options recordbatch.Options
		kind    error
		field   string
	}{
		{recordbatch.WithoutProducer(5), recordbatch.ErrUnsupported, "codec"},
		{recordbatch.WithoutProducer(-1), recordbatch.ErrUnsupported, "codec"},
		{recordbatch.Options{ProducerID: -2}, recordbatch.ErrInvalid, "producerId"},
		{recordbatch.Options{ProducerID: -1}, recordbatch.ErrInvalid, "producerEpoch"},
		{recordbatch.Options{ProducerID: -1, ProducerEpoch: -1}, recordbatch.ErrInvalid, "baseSequence"},
		{recordbatch.Options{ProducerEpoch: -1}, recordbatch.ErrInvalid, "producerEpoch"},
		{recordbatch.Options{BaseSequence: -1}, recordbatch.ErrInvalid, "baseSequence"},
	} {
		_, err := b.Build(c.options)
		wantError(t, err, c.kind, c.field)
	}
	if b.NumRecords() != len(goldenRecords) || b.EncodedSize() != size {
		t.Errorf("refusals left %d records in %d bytes, want %d in %d", b.NumRecords(), b.EncodedSize(), len(goldenRecords), size)
	}
	got, err := b.Build(recordbatch.Options{ProducerID: 4711, ProducerEpoch: 3, BaseSequence: math.MaxInt32 - 1})
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != golden {
		t.Error("refusals changed the batch")
	}
}

func TestBatchesAreTheCallersOwn(t *testing.T) {
	for _, codec := range codecs() {
		var b recordbatch.Builder
		first := build(t, &b, logLines(100), recordbatch.WithoutProducer(codec))
		before := slices.Clone(first)
		if b.NumRecords() != 0 || b.EncodedSize() != recordbatch.HeaderSize {
			t.Errorf("after Build: %d records in %d bytes", b.NumRecords(), b.EncodedSize())
		}
		second := build(t, &b, logLines(200)[100:], recordbatch.WithoutProducer(codec))
		if !bytes.Equal(first, before) {
			t.Errorf("codec %v: the second batch overwrote the first", codec)
		}

		// Given back, the memory serves the next batch and no trace is left.
		b.ResetTo(first)
		third := build(t, &b, logLines(100), recordbatch.WithoutProducer(codec))
		if !bytes.Equal(third, before) {
			t.Errorf("codec %v: the same records in used memory make another batch", codec)
		}
		if codec == recordbatch.None && &third[0] != &first[0] {
			t.Error("the memory given to ResetTo was not used")
		}
		if _, err := recordbatch.VerifyRecords(second, recordbatch.Limits{}); err != nil {
			t.Error(err)
		}
	}
	var b recordbatch.Builder
	for _, capacity := range []int{0, 1, recordbatch.HeaderSize - 1, recordbatch.HeaderSize, recordbatch.HeaderSize + 1} {
		b.ResetTo(make([]byte, capacity/2, capacity))
		batch := build(t, &b, logLines(3), recordbatch.WithoutProducer(recordbatch.None))
		if _, err := recordbatch.VerifyRecords(batch, recordbatch.Limits{}); err != nil {
			t.Errorf("in %d bytes of memory: %v", capacity, err)
		}
	}
}

func TestResetDropsRecordsAndTimestamps(t *testing.T) {
	var b recordbatch.Builder
	if err := b.Append([]byte("old"), nil, nil, math.MaxInt64); err != nil {
		t.Fatal(err)
	}
	b.Reset()
	batch := build(t, &b, logLines(1), recordbatch.WithoutProducer(recordbatch.None))
	h, err := recordbatch.VerifyRecords(batch, recordbatch.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if h.RecordCount != 1 || h.BaseTimestamp != day || h.MaxTimestamp != day {
		t.Errorf("header %+v", h)
	}
}

func TestAppendAllocatesNothingPerRecord(t *testing.T) {
	var b recordbatch.Builder
	key, value, headers := []byte("key"), []byte(logLine(0)), []recordbatch.RecordHeader{{Key: "h", Value: []byte("v")}}
	batch := make([]byte, 0, 256<<10)
	allocations := testing.AllocsPerRun(10, func() {
		b.ResetTo(batch)
		for i := range 1000 {
			if err := b.Append(key, value, headers, int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if batch, err = b.Build(recordbatch.WithoutProducer(recordbatch.None)); err != nil {
			t.Fatal(err)
		}
	})
	if allocations > 0 {
		t.Errorf("%v allocations per batch of 1000 records in given memory, want 0", allocations)
	}
}

func TestCodecsServeManyGoroutines(t *testing.T) {
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			var b recordbatch.Builder
			for j := range 20 {
				values := logLines(50 + 100*i + j)
				batch := build(t, &b, values, recordbatch.WithoutProducer(codecs()[(i+j)%len(codecs())]))
				n := 0
				for record, err := range recordbatch.Records(batch, recordbatch.Limits{}) {
					if err != nil || !bytes.Equal(record.Value, values[n]) {
						t.Fatalf("record %d: %q, %v", n, record.Value, err)
					}
					n++
				}
				if n != len(values) {
					t.Fatalf("%d records of %d", n, len(values))
				}
			}
		})
	}
}

func TestCodecNames(t *testing.T) {
	names := []string{"none", "gzip", "snappy", "lz4", "zstd"}
	for i, codec := range codecs() {
		if int(codec) != i || codec.String() != names[i] {
			t.Errorf("codec %d is %v, want %s", int(codec), codec, names[i])
		}
		if got, err := recordbatch.ParseCodec(names[i]); err != nil || got != codec {
			t.Errorf("ParseCodec(%q) = %v, %v", names[i], got, err)
		}
	}
	for _, name := range []string{"", "NONE", "Gzip", "brotli", "codec(5)"} {
		if _, err := recordbatch.ParseCodec(name); !errors.Is(err, recordbatch.ErrUnsupported) {
			t.Errorf("ParseCodec(%q): %v", name, err)
		}
	}
	if got := recordbatch.Codec(5).String(); got != "codec(5)" {
		t.Errorf("unknown codec is %q", got)
	}
}
