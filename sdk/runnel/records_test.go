package runnel

import (
	"math"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// FuzzOpenBatch feeds a consumer what a server may send. Whatever it is, it is
// refused or can be read through as often as one likes.
func FuzzOpenBatch(f *testing.F) {
	for codec := recordbatch.None; codec <= recordbatch.Zstd; codec++ {
		var b recordbatch.Builder
		for _, value := range []string{"a", "bb", "ccc"} {
			if err := b.Append([]byte("key"), []byte(value), []recordbatch.RecordHeader{{Key: "h"}}, 1000); err != nil {
				f.Fatal(err)
			}
		}
		batch, err := b.Build(recordbatch.WithoutProducer(codec))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(batch, int64(0), int64(math.MaxInt64))
		f.Add(batch, int64(1), int64(2))
	}
	f.Add([]byte{}, int64(0), int64(0))
	f.Fuzz(func(t *testing.T, batch []byte, from, until int64) {
		if len(batch) > recordbatch.HeaderSize {
			// A checksum that fits lets the rest be looked at, too.
			if _, err := recordbatch.ParseHeader(batch); err == nil {
				recordbatch.SetAppendTime(batch, 1)
			}
		}
		from = max(from, 0)
		c, err := openBatch(TopicPartition{Topic: "t"}, batch, from, until)
		if err != nil {
			return
		}
		if c.next.Offset < from {
			t.Errorf("the position goes back from %d to %d", from, c.next.Offset)
		}
		for range 2 {
			count, last := 0, from-1
			c.each(func(r ConsumedRecord) bool {
				if r.Offset <= last || r.Offset >= until || r.Offset >= c.next.Offset {
					t.Errorf("offset %d after %d, until %d, next %d", r.Offset, last, until, c.next.Offset)
				}
				last = r.Offset
				count++
				return true
			})
			if count != c.count {
				t.Errorf("%d records, %d were counted", count, c.count)
			}
		}
	})
}
