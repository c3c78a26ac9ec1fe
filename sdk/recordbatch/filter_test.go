package recordbatch_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// drawBatch returns a batch as a log has it: assigned, of any codec and either
// timestamp type, with or without a producer.
func drawBatch(t *rapid.T) []byte {
	var builder recordbatch.Builder
	bytesOrNull := rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOfN(rapid.Byte(), 0, 40))
	for range rapid.IntRange(1, 30).Draw(t, "records") {
		var headers []recordbatch.RecordHeader
		for range rapid.IntRange(0, 2).Draw(t, "headers") {
			headers = append(headers, recordbatch.RecordHeader{Key: rapid.StringN(0, 5, 20).Draw(t, "name"), Value: bytesOrNull.Draw(t, "header")})
		}
		timestamp := rapid.OneOf(rapid.Int64Range(-1, 1), rapid.Int64Range(day-1000, day+1000)).Draw(t, "timestamp")
		if err := builder.Append(bytesOrNull.Draw(t, "key"), bytesOrNull.Draw(t, "value"), headers, timestamp); err != nil {
			t.Fatal(err)
		}
	}
	options := recordbatch.WithoutProducer(rapid.SampledFrom(codecs()).Draw(t, "codec"))
	if rapid.Bool().Draw(t, "idempotent") {
		options.ProducerID, options.ProducerEpoch, options.BaseSequence = 7, 3, 1<<31-5
	}
	b, err := builder.Build(options)
	if err != nil {
		t.Fatal(err)
	}
	recordbatch.Assign(b, rapid.Int64Range(0, 1<<60).Draw(t, "base"), 5)
	if rapid.Bool().Draw(t, "append time") {
		recordbatch.SetAppendTime(b, day+5)
	}
	return b
}

// TestFilter compares what is left with a plain list, over several compactions of
// the same batch.
func TestFilter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBatch(t)
		original, err := recordbatch.Verify(b)
		if err != nil {
			t.Fatal(err)
		}
		want, err := recordbatch.Decode(b, recordbatch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		wantHorizon := recordbatch.NoTimestamp
		for pass := range rapid.IntRange(1, 3).Draw(t, "passes") {
			before := slices.Clone(b)
			stays := make(map[int64]bool)
			for _, r := range want {
				stays[r.Offset] = rapid.IntRange(0, 3).Draw(t, "stays") > 0
			}
			horizon := rapid.SampledFrom([]int64{recordbatch.NoTimestamp, day + 1<<40 + int64(pass)}).Draw(t, "horizon")
			got, err := recordbatch.Filter(b, recordbatch.Limits{}, horizon, func(r recordbatch.Record) bool { return stays[r.Offset] })
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, before) {
				t.Fatal("the batch given was changed")
			}
			had := len(want)
			want = slices.DeleteFunc(want, func(r recordbatch.Record) bool { return !stays[r.Offset] })
			tombstone := slices.ContainsFunc(want, func(r recordbatch.Record) bool { return r.Value == nil })
			switch {
			case len(want) == 0 && got.Removed > 0:
				wantHorizon = recordbatch.NoTimestamp
			case tombstone && wantHorizon == recordbatch.NoTimestamp:
				wantHorizon = horizon
			}

			h, err := recordbatch.Verify(got.Batch)
			if err != nil {
				t.Fatal(err)
			}
			if h != got.Header || got.Removed != had-len(want) || int(h.RecordCount) != len(want) {
				t.Fatalf("%d removed of %d, %d wanted; header %+v, says %+v", got.Removed, had, len(want), h, got.Header)
			}
			if got.Removed == 0 && h.Attributes == original.Attributes && &got.Batch[0] != &b[0] {
				t.Error("a batch of which nothing changes was copied")
			}
			if h.BaseOffset != original.BaseOffset || h.LastOffsetDelta != original.LastOffsetDelta || h.LeaderEpoch != original.LeaderEpoch ||
				h.ProducerID != original.ProducerID || h.ProducerEpoch != original.ProducerEpoch || h.BaseSequence != original.BaseSequence ||
				h.LogAppendTime() != original.LogAppendTime() || len(want) > 0 && h.Codec() != original.Codec() {
				t.Fatalf("header %+v came from %+v", h, original)
			}
			if len(want) == 0 && (h.Size() != recordbatch.HeaderSize || h.Codec() != recordbatch.None) {
				t.Fatalf("header %+v without records", h)
			}
			if ms, ok := h.DeleteHorizon(); ok != (wantHorizon >= 0) || ok && ms != wantHorizon {
				t.Fatalf("delete horizon %d, %v, want %d", ms, ok, wantHorizon)
			}
			records, err := recordbatch.Decode(got.Batch, recordbatch.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(records, want, sameRecord) {
				t.Fatalf("records %v, want %v", records, want)
			}
			newest := recordbatch.NoTimestamp
			for _, r := range want {
				newest = max(newest, r.Timestamp)
			}
			if got.Removed > 0 && len(want) > 0 && h.MaxTimestamp != newest {
				t.Fatalf("greatest timestamp %d, want %d", h.MaxTimestamp, newest)
			}
			if _, err := recordbatch.VerifyProduced(got.Batch); err == nil && (wantHorizon >= 0 || len(want) == 0) {
				t.Fatal("a producer could send it")
			}
			b, original = got.Batch, h
			if len(want) == 0 {
				break
			}
		}
	})
}

// TestFilterDeleteHorizonIsReadElsewhere: the independent decoder, which knows
// nothing of horizons, has the same timestamps.
func TestFilterDeleteHorizonIsReadElsewhere(t *testing.T) {
	var builder recordbatch.Builder
	for i := range 3 {
		if err := builder.Append([]byte{byte(i)}, nil, nil, day+int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := builder.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		t.Fatal(err)
	}
	got, err := recordbatch.Filter(b, recordbatch.Limits{}, day+1<<35, func(r recordbatch.Record) bool { return r.Offset != 0 })
	if err != nil {
		t.Fatal(err)
	}
	var batch kmsg.RecordBatch
	if err := batch.ReadFrom(got.Batch); err != nil {
		t.Fatal(err)
	}
	if batch.Attributes != 0x40 || batch.FirstTimestamp != day+1<<35 || batch.MaxTimestamp != day+2 || batch.NumRecords != 2 || batch.LastOffsetDelta != 2 {
		t.Errorf("batch %+v", batch)
	}
	for rest, i := batch.Records, int64(1); i <= 2; i++ {
		// Its length is a varint of 1 byte.
		size := 1 + int(rest[0]>>1)
		var r kmsg.Record
		if err := r.ReadFrom(rest[:size]); err != nil {
			t.Fatal(err)
		}
		if batch.FirstTimestamp+r.TimestampDelta64 != day+i || r.OffsetDelta != int32(i) || r.Value != nil {
			t.Errorf("record %+v", r)
		}
		rest = rest[size:]
	}
}

func TestEmptiedBatches(t *testing.T) {
	empty := encodeBatch(recordbatch.None, 10, nil, func(b *kmsg.RecordBatch) { b.NumRecords = 0 })
	compressed := encodeBatch(recordbatch.Zstd, 10, nil, func(b *kmsg.RecordBatch) { b.NumRecords = 0 })
	for _, b := range [][]byte{empty, compressed} {
		if records, err := collect(t, b, recordbatch.Limits{}); err != nil || len(records) != 0 {
			t.Errorf("%d records, %v", len(records), err)
		}
		_, err := recordbatch.VerifyProduced(b)
		wantError(t, err, recordbatch.ErrCorrupt, "recordCount")
		got, err := recordbatch.Filter(b, recordbatch.Limits{}, day, func(recordbatch.Record) bool { return false })
		if err != nil || got.Removed != 0 || !bytes.Equal(got.Batch, b) {
			t.Errorf("filtered %+v, %v", got, err)
		}
	}
	leftover := encodeBatch(recordbatch.None, 10, plainRecords(1), func(b *kmsg.RecordBatch) { b.NumRecords = 0 })
	_, err := collect(t, leftover, recordbatch.Limits{})
	wantError(t, err, recordbatch.ErrCorrupt, "records")
}

func TestFilterKeepsItsLimits(t *testing.T) {
	var builder recordbatch.Builder
	if err := builder.Append([]byte("k"), make([]byte, 1<<20), nil, day); err != nil {
		t.Fatal(err)
	}
	b, err := builder.Build(recordbatch.WithoutProducer(recordbatch.Gzip))
	if err != nil {
		t.Fatal(err)
	}
	_, err = recordbatch.Filter(b, recordbatch.Limits{MaxBytes: 1 << 19}, recordbatch.NoTimestamp, func(recordbatch.Record) bool { return false })
	wantError(t, err, recordbatch.ErrTooLarge, "records")
}

// FuzzFilter filters batches whose checksum is right, whatever else they hold.
func FuzzFilter(f *testing.F) {
	f.Add(encodeBatch(recordbatch.None, 2, plainRecords(2), nil), uint64(1), day)
	f.Add(encodeBatch(recordbatch.None, 3, deltas(0, 4, 9), func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 9 }), uint64(5), int64(-1))
	f.Add(encodeBatch(recordbatch.None, 2, plainRecords(2), func(b *kmsg.RecordBatch) { b.Attributes = 0x40 }), uint64(3), day)
	f.Add(encodeBatch(recordbatch.None, 2, nil, func(b *kmsg.RecordBatch) { b.NumRecords = 0 }), uint64(0), day)
	for _, codec := range codecs() {
		var builder recordbatch.Builder
		appendRecords(f, &builder, goldenRecords)
		b, err := builder.Build(recordbatch.WithoutProducer(codec))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint64(2), day)
	}
	f.Fuzz(func(t *testing.T, b []byte, stays uint64, horizon int64) {
		if len(b) >= recordbatch.HeaderSize {
			b[8], b[9], b[10], b[11] = byte((len(b)-12)>>24), byte((len(b)-12)>>16), byte((len(b)-12)>>8), byte(len(b)-12)
			sign(b)
		}
		horizon = max(horizon, recordbatch.NoTimestamp)
		limits := recordbatch.Limits{MaxBytes: 1 << 20}
		keep := func(r recordbatch.Record) bool { return stays>>(uint64(r.Offset)%64)&1 == 1 }
		records, err := recordbatch.Decode(b, limits)
		got, err2 := recordbatch.Filter(b, limits, horizon, keep)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("Decode says %v, Filter %v", err, err2)
		}
		if err != nil {
			return
		}
		if h, err := recordbatch.Verify(got.Batch); err != nil || h != got.Header {
			t.Fatalf("header %+v, %v; said to be %+v", h, err, got.Header)
		}
		left, err := recordbatch.Decode(got.Batch, recordbatch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		records = slices.DeleteFunc(records, func(r recordbatch.Record) bool { return !keep(r) })
		if !slices.EqualFunc(left, records, sameRecord) {
			t.Fatalf("left %v, want %v", left, records)
		}
	})
}
