package offsets

import (
	"encoding/hex"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

func TestBatch(t *testing.T) {
	t.Parallel()
	var records []groups.Record
	for _, test := range golden {
		records = append(records, test.record)
	}
	now := time.UnixMilli(1_700_000_000_000)
	batch, err := Encode(records, now)
	if err != nil {
		t.Fatal(err)
	}
	header, err := recordbatch.VerifyProduced(batch)
	if err != nil {
		t.Fatal(err)
	}
	if header.Codec() != recordbatch.None || header.MaxTimestamp != now.UnixMilli() || header.Idempotent() {
		t.Errorf("header %+v, want no compression, the time and no producer", header)
	}
	recordbatch.Assign(batch, 100, 1)
	got, unknown, err := Decode(batch, 0, math.MaxInt64)
	if err != nil || unknown != 0 || !reflect.DeepEqual(got, records) {
		t.Errorf("decoded %d records, %d unknown: %v; want %d", len(got), unknown, err, len(records))
	}
	if got, _, err = Decode(batch, 102, 104); err != nil || !reflect.DeepEqual(got, records[2:4]) {
		t.Errorf("decoded the third and the fourth as %d records: %v; want %v", len(got), err, records[2:4])
	}
}

// raw is a batch at offset 100 of keys and values in hexadecimal digits.
func raw(t testing.TB, keysAndValues ...string) []byte {
	t.Helper()
	var builder recordbatch.Builder
	for i := 0; i < len(keysAndValues); i += 2 {
		if err := builder.Append(unhex(t, keysAndValues[i]), unhex(t, keysAndValues[i+1]), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	batch, err := builder.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		t.Fatal(err)
	}
	recordbatch.Assign(batch, 100, 1)
	return batch
}

func TestDecodePassesOverWhatIsNewer(t *testing.T) {
	t.Parallel()
	got, unknown, err := Decode(raw(t, "0a00", "0801", "2a03 0a0167", "01", "1203 0a0167", "null", "2a03 0a0167", "null"), 0, math.MaxInt64)
	want := []groups.Record{&groups.FenceRecord{Epoch: 1}, &groups.Tombstone{Group: "g"}}
	if err != nil || unknown != 2 || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %v, %d unknown: %v; want %v and 2", got, unknown, err, want)
	}
}

func TestDecodeNamesTheDamage(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		batch []byte
		want  string
	}{
		"a record":         {raw(t, "0a00", "0801", "1203 0a0167", "ff"), "offset 101"},
		"a batch cut off":  {raw(t, "0a00", "0801")[:70], "corrupt"},
		"nothing":          {nil, "corrupt"},
		"a count too high": {func() []byte { b := raw(t, "0a00", "0801"); b[60] = 9; return b }(), "corrupt"},
	} {
		records, _, err := Decode(test.batch, 0, math.MaxInt64)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: decoded as %v: %v, want an error with %q", name, records, err, test.want)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	if batch, err := Encode(nil, time.Now()); err == nil {
		t.Errorf("nothing was encoded as %x", batch)
	}
	if _, err := Encode([]groups.Record{&groups.GroupRecord{}}, time.Now()); err == nil {
		t.Error("a group without a name was encoded")
	}
	large := &groups.OffsetRecord{Group: "g", Metadata: strings.Repeat("x", MaxBatchBytes/2-1000)}
	if batch, err := Encode([]groups.Record{large, large}, time.Now()); err != nil || len(batch) > MaxBatchBytes {
		t.Errorf("a batch of %d bytes: %v", len(batch), err)
	}
	if _, err := Encode([]groups.Record{large, large, large}, time.Now()); err == nil {
		t.Error("a batch larger than MaxBatchBytes was encoded")
	}
}

// A group of 1,000 members in which each has one partition of 500 topics.
func TestTheTopicTakesLargeGroups(t *testing.T) {
	t.Parallel()
	large := &groups.GroupRecord{Group: "g", Target: map[groups.MemberID][]groups.Partition{}}
	for member := range 1000 {
		id := groups.MemberID(fmt.Sprintf("%036d", member))
		for topic := range byte(250) {
			large.Target[id] = append(large.Target[id], partition(topic, int32(member)))
		}
		for topic := range byte(250) {
			large.Target[id] = append(large.Target[id], groups.Partition{Topic: cluster.TopicID{1, 15: topic}, Index: int32(member)})
		}
	}
	batch, err := Encode([]groups.Record{large}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config, err := rules.ParseTopicConfig(rules.OffsetsTopicConfig(1))
	if err != nil || config.MaxMessageBytes != MaxBatchBytes || len(batch) > MaxBatchBytes {
		t.Errorf("a group takes %d bytes; the topic takes %d, a batch has at most %d: %v", len(batch), config.MaxMessageBytes, MaxBatchBytes, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(raw(f, "0a00", "0801", "1203 0a0167", "ff"), int64(100), int64(101))
	valid, _ := Encode([]groups.Record{golden[1].record, golden[3].record}, time.UnixMilli(0))
	f.Add(valid, int64(0), int64(2))
	f.Fuzz(func(t *testing.T, batch []byte, from, end int64) {
		records, unknown, err := Decode(batch, from, end)
		if err == nil && len(records)+unknown > len(batch) {
			t.Errorf("%d records and %d of unknown kind in %s", len(records), unknown, hex.EncodeToString(batch))
		}
	})
}
