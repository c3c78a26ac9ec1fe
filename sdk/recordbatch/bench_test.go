package recordbatch_test

import (
	"fmt"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// benchmarkBatch is the size of the batches in the benchmarks, uncompressed.
const benchmarkBatch = 64 << 10

// benchmarkValues returns log lines of a given size, enough for a batch.
func benchmarkValues(size int) [][]byte {
	values := make([][]byte, 0, benchmarkBatch/size)
	for n, i := 0, 0; len(values) < cap(values); n++ {
		var value []byte
		for ; len(value) < size; i++ {
			value = append(value, logLine(i)...)
		}
		values = append(values, value[:size])
	}
	return values
}

func forSizesAndCodecs(b *testing.B, f func(b *testing.B, values [][]byte, codec recordbatch.Codec)) {
	for _, size := range []int{100, 1 << 10} {
		values := benchmarkValues(size)
		for _, codec := range codecs() {
			b.Run(fmt.Sprintf("size=%d/codec=%v", size, codec), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(size * len(values)))
				f(b, values, codec)
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(values)), "ns/record")
			})
		}
	}
}

func BenchmarkAppendBuild(b *testing.B) {
	forSizesAndCodecs(b, func(b *testing.B, values [][]byte, codec recordbatch.Codec) {
		var builder recordbatch.Builder
		options := recordbatch.WithoutProducer(codec)
		var size int
		for b.Loop() {
			batch := build(b, &builder, values, options)
			size = len(batch)
			if codec == recordbatch.None {
				builder.ResetTo(batch)
			}
		}
		b.ReportMetric(float64(len(values)*len(values[0]))/float64(size), "ratio")
	})
}

// BenchmarkAppendBuildHandOver is the uncompressed case of a producer that
// never gives a buffer back.
func BenchmarkAppendBuildHandOver(b *testing.B) {
	values := benchmarkValues(100)
	var builder recordbatch.Builder
	b.ReportAllocs()
	b.SetBytes(int64(100 * len(values)))
	for b.Loop() {
		build(b, &builder, values, recordbatch.WithoutProducer(recordbatch.None))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(values)), "ns/record")
}

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{100, 1 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			value := benchmarkValues(size)[0]
			var builder recordbatch.Builder
			b.ReportAllocs()
			b.SetBytes(int64(size))
			timestamp := int64(1_700_000_000_000)
			for b.Loop() {
				if builder.EncodedSize() > benchmarkBatch {
					builder.Reset()
				}
				timestamp++
				if err := builder.Append(nil, value, nil, timestamp); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, size := range []int{100, 1 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			values := benchmarkValues(size)
			var builder recordbatch.Builder
			batch := build(b, &builder, values, recordbatch.WithoutProducer(recordbatch.None))
			b.ReportAllocs()
			b.SetBytes(int64(len(batch)))
			for b.Loop() {
				if _, err := recordbatch.Verify(batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParseHeader(b *testing.B) {
	var builder recordbatch.Builder
	batch := build(b, &builder, benchmarkValues(100), recordbatch.WithoutProducer(recordbatch.None))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := recordbatch.ParseHeader(batch); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRecords(b *testing.B) {
	forSizesAndCodecs(b, func(b *testing.B, values [][]byte, codec recordbatch.Codec) {
		var builder recordbatch.Builder
		batch := build(b, &builder, values, recordbatch.WithoutProducer(codec))
		for b.Loop() {
			n := 0
			for record, err := range recordbatch.Records(batch, recordbatch.Limits{}) {
				if err != nil {
					b.Fatal(err)
				}
				n += len(record.Value)
			}
			if n != len(values)*len(values[0]) {
				b.Fatalf("%d bytes of values", n)
			}
		}
	})
}

func BenchmarkRecordsWithHeaders(b *testing.B) {
	values := benchmarkValues(100)
	headers := []recordbatch.RecordHeader{
		{Key: "traceparent", Value: []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")},
		{Key: "content-type", Value: []byte("text/plain")},
	}
	var builder recordbatch.Builder
	for i, value := range values {
		if err := builder.Append(nil, value, headers, int64(i)); err != nil {
			b.Fatal(err)
		}
	}
	batch, err := builder.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, err := range recordbatch.Records(batch, recordbatch.Limits{}) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(values)), "ns/record")
}

func BenchmarkVerifyRecords(b *testing.B) {
	forSizesAndCodecs(b, func(b *testing.B, values [][]byte, codec recordbatch.Codec) {
		var builder recordbatch.Builder
		batch := build(b, &builder, values, recordbatch.WithoutProducer(codec))
		for b.Loop() {
			if _, err := recordbatch.VerifyRecords(batch, recordbatch.Limits{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
