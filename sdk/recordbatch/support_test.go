package recordbatch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// day is the time, in milliseconds, that test records begin at.
const day int64 = 1_700_000_000_000

func codecs() []recordbatch.Codec {
	return []recordbatch.Codec{recordbatch.None, recordbatch.Gzip, recordbatch.Snappy, recordbatch.LZ4, recordbatch.Zstd}
}

// logLine returns the i-th line of a made-up system log. A third of them end
// in a carriage return, which is data.
func logLine(i int) string {
	host, ip := i*7%5, (i*2654435761)%(1<<24)
	end := ""
	if i%3 == 0 {
		end = "\r"
	}
	return fmt.Sprintf("Jun %2d %02d:%02d:%02d node-%d sshd(pam_unix)[%d]: authentication failure; rhost=10.%d.%d.%d user=u%d%s",
		i/86400%28+1, i/3600%24, i/60%60, i%60, host, 19000+i*31%977, ip>>16&255, ip>>8&255, ip&255, i*i%1009, end)
}

func logLines(n int) [][]byte {
	lines := make([][]byte, n)
	for i := range lines {
		lines[i] = []byte(logLine(i))
	}
	return lines
}

// build returns a batch of the values, a millisecond apart.
func build(tb testing.TB, builder *recordbatch.Builder, values [][]byte, options recordbatch.Options) []byte {
	tb.Helper()
	for i, value := range values {
		if err := builder.Append(nil, value, nil, day+int64(i)); err != nil {
			tb.Fatal(err)
		}
	}
	batch, err := builder.Build(options)
	if err != nil {
		tb.Fatal(err)
	}
	return batch
}

// encodeRecord encodes a record by the independent encoder.
func encodeRecord(r kmsg.Record) []byte {
	r.Length = 0
	body := r.AppendTo(nil)[1:]
	r.Length = int32(len(body))
	return r.AppendTo(nil)
}

// plainRecords returns n encoded records with their offset deltas.
func plainRecords(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, encodeRecord(kmsg.Record{OffsetDelta: int32(i), TimestampDelta64: int64(i), Value: []byte(logLine(i))})...)
	}
	return b
}

// encodeBatch encodes a batch by the independent encoder. Unless change says
// otherwise it is a valid one of count records from a producer without identity.
func encodeBatch(codec recordbatch.Codec, count int, records []byte, change func(*kmsg.RecordBatch)) []byte {
	batch := kmsg.RecordBatch{
		Length:               int32(49 + len(records)),
		PartitionLeaderEpoch: -1,
		Magic:                2,
		Attributes:           int16(codec),
		LastOffsetDelta:      int32(count - 1),
		FirstTimestamp:       day,
		MaxTimestamp:         day + int64(count-1),
		ProducerID:           -1,
		ProducerEpoch:        -1,
		FirstSequence:        -1,
		NumRecords:           int32(count),
		Records:              records,
	}
	if change != nil {
		change(&batch)
	}
	return sign(batch.AppendTo(nil))
}

// sign writes the checksum that b ought to have.
func sign(b []byte) []byte {
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// wantError checks that err is an *Error of that kind about that field.
func wantError(tb testing.TB, err, kind error, field string) {
	tb.Helper()
	var e *recordbatch.Error
	switch {
	case !errors.As(err, &e):
		tb.Fatalf("error %v (%T), want an *Error about %s", err, err, field)
	case !errors.Is(err, kind):
		tb.Fatalf("error %q, want it to be %q", err, kind)
	case e.Field != field:
		tb.Fatalf("error %q is about %s, want %s", err, e.Field, field)
	case e.Got == "" || e.Want == "":
		tb.Fatalf("error %q lacks what was (%q) or what is legal (%q)", err, e.Got, e.Want)
	}
	kinds := 0
	for _, k := range []error{recordbatch.ErrCorrupt, recordbatch.ErrUnsupported, recordbatch.ErrTooLarge, recordbatch.ErrInvalid} {
		if errors.Is(err, k) {
			kinds++
		}
	}
	if kinds != 1 {
		tb.Fatalf("error %q is of %d kinds, want 1", err, kinds)
	}
}

// collect reads a batch by Records and checks that Decode says the same.
func collect(tb testing.TB, b []byte, l recordbatch.Limits) ([]recordbatch.Record, error) {
	tb.Helper()
	var (
		records []recordbatch.Record
		failure error
	)
	for record, err := range recordbatch.Records(b, l) {
		if failure != nil {
			tb.Fatal("Records went on after an error")
		}
		if err != nil {
			failure = err
			if !sameRecord(record, recordbatch.Record{}) {
				tb.Fatalf("an error came with the record %+v", record)
			}
			continue
		}
		records = append(records, record)
	}
	decoded, err := recordbatch.Decode(b, l)
	if (err == nil) != (failure == nil) || err != nil && err.Error() != failure.Error() {
		tb.Fatalf("Decode failed with %v, Records with %v", err, failure)
	}
	if err == nil && !slices.EqualFunc(decoded, records, sameRecord) {
		tb.Fatal("Decode and Records differ")
	}
	return records, failure
}

func sameBytes(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func sameRecord(a, b recordbatch.Record) bool {
	return a.Offset == b.Offset && a.Timestamp == b.Timestamp && sameBytes(a.Key, b.Key) && sameBytes(a.Value, b.Value) &&
		slices.EqualFunc(a.Headers, b.Headers, func(a, b recordbatch.RecordHeader) bool {
			return a.Key == b.Key && sameBytes(a.Value, b.Value)
		})
}
