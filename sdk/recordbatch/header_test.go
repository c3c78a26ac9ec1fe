package recordbatch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

func TestParseHeaderChecksEachField(t *testing.T) {
	type change = func(*kmsg.RecordBatch)
	for _, c := range []struct {
		name   string
		change change
		// field is what the error is about; empty when there is none.
		field string
		kind  error
	}{
		{"valid", func(b *kmsg.RecordBatch) {}, "", nil},
		{"magic 0", func(b *kmsg.RecordBatch) { b.Magic = 0 }, "magic", recordbatch.ErrUnsupported},
		{"magic 1", func(b *kmsg.RecordBatch) { b.Magic = 1 }, "magic", recordbatch.ErrUnsupported},
		{"magic 3", func(b *kmsg.RecordBatch) { b.Magic = 3 }, "magic", recordbatch.ErrUnsupported},
		{"negative length", func(b *kmsg.RecordBatch) { b.Length = -1 }, "batchLength", recordbatch.ErrCorrupt},
		{"length within the header", func(b *kmsg.RecordBatch) { b.Length = 48 }, "batchLength", recordbatch.ErrCorrupt},
		{"length whose total overflows", func(b *kmsg.RecordBatch) { b.Length = math.MaxInt32 - 11 }, "batchLength", recordbatch.ErrCorrupt},
		{"greatest length", func(b *kmsg.RecordBatch) { b.Length = math.MaxInt32 - 12 }, "", nil},
		{"length beyond the bytes at hand", func(b *kmsg.RecordBatch) { b.Length += 1000 }, "", nil},
		{"leader epoch -1", func(b *kmsg.RecordBatch) { b.PartitionLeaderEpoch = -1 }, "", nil},
		{"leader epoch -2", func(b *kmsg.RecordBatch) { b.PartitionLeaderEpoch = -2 }, "partitionLeaderEpoch", recordbatch.ErrCorrupt},
		{"codec 4", func(b *kmsg.RecordBatch) { b.Attributes = 4 }, "", nil},
		{"codec 5", func(b *kmsg.RecordBatch) { b.Attributes = 5 }, "attributes", recordbatch.ErrUnsupported},
		{"codec 7", func(b *kmsg.RecordBatch) { b.Attributes = 7 }, "attributes", recordbatch.ErrUnsupported},
		{"known bits", func(b *kmsg.RecordBatch) { b.Attributes = 0x38 }, "", nil},
		{"delete horizon", func(b *kmsg.RecordBatch) { b.Attributes = 0x40 }, "", nil},
		{"bit 7", func(b *kmsg.RecordBatch) { b.Attributes = 0x80 }, "attributes", recordbatch.ErrUnsupported},
		{"bit 15", func(b *kmsg.RecordBatch) { b.Attributes = math.MinInt16 }, "attributes", recordbatch.ErrUnsupported},
		{"negative delta", func(b *kmsg.RecordBatch) { b.LastOffsetDelta = -1 }, "lastOffsetDelta", recordbatch.ErrCorrupt},
		{"negative base offset", func(b *kmsg.RecordBatch) { b.FirstOffset = -1 }, "baseOffset", recordbatch.ErrCorrupt},
		{"last offset whose successor overflows", func(b *kmsg.RecordBatch) { b.FirstOffset = math.MaxInt64 - 9 }, "baseOffset", recordbatch.ErrCorrupt},
		{"greatest offset", func(b *kmsg.RecordBatch) { b.FirstOffset = math.MaxInt64 - 10 }, "", nil},
		{"no timestamps", func(b *kmsg.RecordBatch) { b.FirstTimestamp, b.MaxTimestamp = -1, -1 }, "", nil},
		{"base timestamp -2", func(b *kmsg.RecordBatch) { b.FirstTimestamp = -2 }, "baseTimestamp", recordbatch.ErrCorrupt},
		{"max timestamp -2", func(b *kmsg.RecordBatch) { b.MaxTimestamp = -2 }, "maxTimestamp", recordbatch.ErrCorrupt},
		{"producer id -2", func(b *kmsg.RecordBatch) { b.ProducerID = -2 }, "producerId", recordbatch.ErrCorrupt},
		{"producer epoch -2", func(b *kmsg.RecordBatch) { b.ProducerEpoch = -2 }, "producerEpoch", recordbatch.ErrCorrupt},
		{"sequence -2", func(b *kmsg.RecordBatch) { b.FirstSequence = -2 }, "baseSequence", recordbatch.ErrCorrupt},
		{"negative count", func(b *kmsg.RecordBatch) { b.NumRecords = -1 }, "recordCount", recordbatch.ErrCorrupt},
		{"no records", func(b *kmsg.RecordBatch) { b.NumRecords = 0 }, "", nil},
		{"fewer records than offsets", func(b *kmsg.RecordBatch) { b.NumRecords = 1 }, "", nil},
		{"more records than offsets", func(b *kmsg.RecordBatch) { b.NumRecords = 11 }, "recordCount", recordbatch.ErrCorrupt},
		{"more records than bytes", func(b *kmsg.RecordBatch) {
			b.NumRecords, b.LastOffsetDelta = math.MaxInt32, math.MaxInt32-1
		}, "recordCount", recordbatch.ErrCorrupt},
		{"greatest count and delta", func(b *kmsg.RecordBatch) {
			b.Attributes, b.NumRecords, b.LastOffsetDelta = 4, math.MaxInt32, math.MaxInt32
		}, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := recordbatch.ParseHeader(encodeBatch(recordbatch.None, 10, plainRecords(10), c.change))
			if c.field == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantError(t, err, c.kind, c.field)
		})
	}
}

func TestParseHeaderReadsEachField(t *testing.T) {
	b := encodeBatch(recordbatch.Zstd, 10, plainRecords(10), func(b *kmsg.RecordBatch) {
		b.FirstOffset, b.PartitionLeaderEpoch, b.ProducerID, b.ProducerEpoch, b.FirstSequence = 1<<40, 7, 1<<50, 9, 11
		b.Attributes |= 0x38
		b.NumRecords = 5
	})
	var want kmsg.RecordBatch
	if err := want.ReadFrom(b); err != nil {
		t.Fatal(err)
	}
	h, err := recordbatch.ParseHeader(append(b, "the next batch"...))
	if err != nil {
		t.Fatal(err)
	}
	if h != (recordbatch.Header{
		BaseOffset: want.FirstOffset, BatchLength: want.Length, LeaderEpoch: want.PartitionLeaderEpoch, CRC: uint32(want.CRC),
		Attributes: want.Attributes, LastOffsetDelta: want.LastOffsetDelta, BaseTimestamp: want.FirstTimestamp,
		MaxTimestamp: want.MaxTimestamp, ProducerID: want.ProducerID, ProducerEpoch: want.ProducerEpoch,
		BaseSequence: want.FirstSequence, RecordCount: want.NumRecords,
	}) {
		t.Errorf("header %+v, want %+v", h, want)
	}
	if h.Codec() != recordbatch.Zstd || !h.LogAppendTime() || !h.Transactional() || !h.Control() || !h.Idempotent() {
		t.Errorf("attributes %#x are read wrong", h.Attributes)
	}
	if h.Size() != len(b) || h.LastOffset() != 1<<40+9 || h.LastSequence() != 20 {
		t.Errorf("size %d, last offset %d, last sequence %d", h.Size(), h.LastOffset(), h.LastSequence())
	}
	for n := range recordbatch.HeaderSize {
		_, err := recordbatch.ParseHeader(b[:n])
		wantError(t, err, recordbatch.ErrCorrupt, "size")
	}
}

func TestEachAttributeBitIsItsOwn(t *testing.T) {
	for _, c := range []struct {
		attributes                            int16
		appendTime, transactional, controlled bool
	}{{0, false, false, false}, {0x08, true, false, false}, {0x10, false, true, false}, {0x20, false, false, true}} {
		h := recordbatch.Header{Attributes: c.attributes}
		if h.LogAppendTime() != c.appendTime || h.Transactional() != c.transactional || h.Control() != c.controlled {
			t.Errorf("attributes %#x: %v %v %v", c.attributes, h.LogAppendTime(), h.Transactional(), h.Control())
		}
	}
}

func TestLastSequenceWraps(t *testing.T) {
	for _, c := range []struct{ base, delta, want int32 }{
		{-1, 5, -1},
		{0, 0, 0},
		{0, 5, 5},
		{math.MaxInt32 - 1, 1, math.MaxInt32},
		{math.MaxInt32, 1, 0},
		{math.MaxInt32 - 2, 10, 7},
		{math.MaxInt32, math.MaxInt32, math.MaxInt32 - 1},
	} {
		h := recordbatch.Header{BaseSequence: c.base, LastOffsetDelta: c.delta}
		if got := h.LastSequence(); got != c.want {
			t.Errorf("base %d delta %d: last sequence %d, want %d", c.base, c.delta, got, c.want)
		}
	}
}

func TestVerifyDemandsExactlyOneBatch(t *testing.T) {
	b := encodeBatch(recordbatch.None, 10, plainRecords(10), nil)
	if _, err := recordbatch.Verify(b); err != nil {
		t.Fatal(err)
	}
	for n := recordbatch.HeaderSize; n < len(b); n++ {
		_, err := recordbatch.Verify(b[:n])
		wantError(t, err, recordbatch.ErrCorrupt, "batchLength")
	}
	_, err := recordbatch.Verify(append(slices.Clone(b), 0))
	wantError(t, err, recordbatch.ErrCorrupt, "batchLength")
}

func TestVerifyRefusesEachFlippedBitOfTheHeader(t *testing.T) {
	// Base offset and leader epoch, the only bytes that a flip may pass in.
	// The server sets both and so knows what they must be: a store that keys
	// batches by their last offset and knows the epochs of its log compares.
	assigned := func(at int) bool { return at < 8 || at >= 12 && at < 16 }
	for _, codec := range codecs() {
		var builder recordbatch.Builder
		valid := build(t, &builder, logLines(12), recordbatch.Options{Codec: codec, ProducerID: 1, ProducerEpoch: 2, BaseSequence: 3})
		recordbatch.Assign(valid, 1_000_000, 5)
		original, err := recordbatch.Verify(valid)
		if err != nil {
			t.Fatal(err)
		}
		for bit := range 8 * len(valid) {
			at := bit / 8
			b := slices.Clone(valid)
			b[at] ^= 1 << (bit % 8)
			h, err := recordbatch.Verify(b)
			if err != nil {
				if !errors.Is(err, recordbatch.ErrCorrupt) && !errors.Is(err, recordbatch.ErrUnsupported) {
					t.Fatalf("codec %v, bit %d of byte %d: %v", codec, bit%8, at, err)
				}
				continue
			}
			if !assigned(at) {
				t.Fatalf("codec %v: bit %d of byte %d flipped, and nobody noticed", codec, bit%8, at)
			}
			if h.LastOffset() == original.LastOffset() && h.LeaderEpoch == original.LeaderEpoch {
				t.Fatalf("codec %v: the flip in byte %d shows neither in the offset nor in the epoch", codec, at)
			}
		}
	}
}

func TestVerifyProduced(t *testing.T) {
	type change = func(*kmsg.RecordBatch)
	producer := func(id int64, epoch int16, sequence int32) change {
		return func(b *kmsg.RecordBatch) { b.ProducerID, b.ProducerEpoch, b.FirstSequence = id, epoch, sequence }
	}
	for _, c := range []struct {
		name   string
		change change
		field  string
	}{
		{"plain", nil, ""},
		{"idempotent", producer(0, 0, 0), ""},
		{"idempotent, last sequence", producer(1<<40, math.MaxInt16, math.MaxInt32), ""},
		{"transactional", func(b *kmsg.RecordBatch) { b.Attributes |= 0x10 }, ""},
		{"gap", func(b *kmsg.RecordBatch) { b.LastOffsetDelta++ }, "recordCount"},
		{"no records", func(b *kmsg.RecordBatch) { b.NumRecords = 0 }, "recordCount"},
		{"append time", func(b *kmsg.RecordBatch) { b.Attributes |= 0x08 }, "attributes"},
		{"delete horizon", func(b *kmsg.RecordBatch) { b.Attributes |= 0x40 }, "attributes"},
		{"id without epoch", producer(5, -1, 0), "producerEpoch"},
		{"id without sequence", producer(5, 0, -1), "baseSequence"},
		{"epoch without id", producer(-1, 0, -1), "producerEpoch"},
		{"sequence without id", producer(-1, -1, 0), "baseSequence"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := encodeBatch(recordbatch.None, 10, plainRecords(10), c.change)
			if _, err := recordbatch.Verify(b); err != nil {
				t.Fatal(err)
			}
			_, err := recordbatch.VerifyProduced(b)
			if c.field == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantError(t, err, recordbatch.ErrCorrupt, c.field)
		})
	}
	b := encodeBatch(recordbatch.None, 10, plainRecords(10), nil)
	b[len(b)-1] ^= 1
	_, err := recordbatch.VerifyProduced(b)
	wantError(t, err, recordbatch.ErrCorrupt, "crc")
}

func TestAssignPatchesTwoFieldsAndKeepsTheChecksum(t *testing.T) {
	before := encodeBatch(recordbatch.None, 10, plainRecords(10), nil)
	b := slices.Clone(before)
	recordbatch.Assign(b, 1<<40+3, 77)
	h, err := recordbatch.Verify(b)
	if err != nil {
		t.Fatal(err)
	}
	if h.BaseOffset != 1<<40+3 || h.LastOffset() != 1<<40+12 || h.LeaderEpoch != 77 {
		t.Errorf("header %+v", h)
	}
	if !bytes.Equal(b[8:12], before[8:12]) || !bytes.Equal(b[16:], before[16:]) {
		t.Error("other bytes changed")
	}
	records, err := collect(t, b, recordbatch.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range records {
		if r.Offset != 1<<40+3+int64(i) {
			t.Errorf("record %d has offset %d", i, r.Offset)
		}
	}
}

func TestSetAppendTime(t *testing.T) {
	for _, codec := range codecs() {
		var builder recordbatch.Builder
		b := build(t, &builder, logLines(100), recordbatch.WithoutProducer(codec))
		before := slices.Clone(b)
		// Earlier than the records: the producer's clock is ahead.
		for _, now := range []int64{day - 5, day + 1_000_000} {
			recordbatch.SetAppendTime(b, now)
			h, err := recordbatch.Verify(b)
			if err != nil {
				t.Fatal(err)
			}
			if !h.LogAppendTime() || h.MaxTimestamp != now || h.Codec() != codec || h.BaseTimestamp != day {
				t.Errorf("header %+v", h)
			}
			records, err := collect(t, b, recordbatch.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range records {
				if r.Timestamp != now {
					t.Fatalf("record %d has timestamp %d, want %d", i, r.Timestamp, now)
				}
			}
		}
		for at := range b {
			if b[at] != before[at] && !(at >= 17 && at < 23 || at >= 35 && at < 43) {
				t.Errorf("byte %d changed", at)
			}
		}
	}
}

func TestErrorsNameFieldValueAndLegalRange(t *testing.T) {
	b := encodeBatch(recordbatch.None, 10, plainRecords(10), func(b *kmsg.RecordBatch) { b.NumRecords = 99 })
	_, err := recordbatch.ParseHeader(b)
	const want = "corrupt record batch: recordCount is 99, must be 0 to lastOffsetDelta+1 (10)"
	if err.Error() != want {
		t.Errorf("message %q, want %q", err, want)
	}
}

func FuzzParseHeader(f *testing.F) {
	valid := encodeBatch(recordbatch.None, 2, plainRecords(2), nil)
	f.Add(valid)
	f.Add(valid[:recordbatch.HeaderSize])
	f.Add(valid[:recordbatch.HeaderSize-1])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, recordbatch.HeaderSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := recordbatch.ParseHeader(b)
		if err != nil {
			if h != (recordbatch.Header{}) {
				t.Fatal("a header came with an error")
			}
			return
		}
		if h.Size() < recordbatch.HeaderSize || h.LastOffset() < h.BaseOffset || h.BaseOffset < 0 || h.LastOffset() == math.MaxInt64 ||
			h.RecordCount < 0 || int64(h.RecordCount) > h.LastOffset()-h.BaseOffset+1 || h.LastSequence() < -1 {
			t.Fatalf("senseless header %+v", h)
		}
		var want kmsg.RecordBatch
		whole := slices.Clone(b[:recordbatch.HeaderSize])
		binary.BigEndian.PutUint32(whole[8:], 49)
		if err := want.ReadFrom(whole); err != nil {
			t.Fatalf("the independent decoder refuses what ParseHeader accepts: %v", err)
		}
		if h.BaseOffset != want.FirstOffset || h.LastOffsetDelta != want.LastOffsetDelta || h.ProducerID != want.ProducerID ||
			h.RecordCount != want.NumRecords || h.MaxTimestamp != want.MaxTimestamp || h.Attributes != want.Attributes {
			t.Fatalf("header %+v, the independent decoder says %+v", h, want)
		}
	})
}

func FuzzVerify(f *testing.F) {
	valid := encodeBatch(recordbatch.None, 2, plainRecords(2), nil)
	f.Add(valid)
	f.Add(valid[:len(valid)-1])
	f.Add(append(slices.Clone(valid), 0))
	f.Add(encodeBatch(recordbatch.None, 1, plainRecords(1), func(b *kmsg.RecordBatch) { b.ProducerID = 1 }))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := recordbatch.Verify(b)
		if produced, err2 := recordbatch.VerifyProduced(b); err2 == nil && (err != nil || produced != h) {
			t.Fatalf("VerifyProduced accepts what Verify refuses: %v", err)
		}
		if err != nil {
			return
		}
		if h.Size() != len(b) {
			t.Fatalf("size %d of %d bytes", h.Size(), len(b))
		}
		// The checksum must cover every byte from the attributes on.
		b = slices.Clone(b)
		for at := 21; at < len(b); at += 1 + len(b)/64 {
			b[at] ^= 0x10
			if _, err := recordbatch.Verify(b); err == nil {
				t.Fatalf("byte %d may be anything", at)
			}
			b[at] ^= 0x10
		}
	})
}
