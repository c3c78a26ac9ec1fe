package server

import (
	"slices"
	"testing"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// TestConsumeCompacted: a stream ends at its bound also where compaction has left
// nothing before it, in either form.
func TestConsumeCompacted(t *testing.T) {
	t.Parallel()
	h := start(t)
	h.create("accounts", 1, rules.CleanupPolicy, rules.CleanupCompact, rules.DeleteRetentionMs, "0")
	add := func(key string, value []byte) {
		_, err := h.client.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
			Topic: "accounts", Acks: logv1.Acks_ACKS_ALL, Records: []*logv1.Record{{Key: []byte(key), Value: value}},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	add("a", []byte("1"))
	add("b", []byte("1"))
	add("a", []byte("2"))
	add("b", nil)
	p, err := h.replicas.Partition(t.Context(), "accounts", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if done, err := p.Compact(t.Context()); err != nil || !done.Progress {
			t.Fatalf("%+v, %v", done, err)
		}
	}
	for offset := range int64(5) {
		var want []string
		if offset <= 2 {
			want = []string{"2"}
		}
		for _, form := range []storagev1.RecordForm{storagev1.RecordForm_RECORD_FORM_RECORDS, storagev1.RecordForm_RECORD_FORM_BATCHES} {
			c := h.consume(&storagev1.ConsumeRequest{
				Partitions: []*storagev1.PartitionStart{{Topic: "accounts", Start: &logv1.StartPosition{Position: &logv1.StartPosition_Offset{Offset: offset}}}},
				Form:       form, StopAtEnd: true, MaxResponseBytes: 1,
			})
			var got []string
			for ended := false; !ended; {
				res := c.receive()
				if res.GetFailure() != nil {
					t.Fatalf("from %d: %v", offset, res.GetFailure())
				}
				got = append(got, values(res)...)
				if ended = res.GetEndReached(); ended && res.GetNextOffset() != 4 {
					t.Errorf("from %d: the end is at %d", offset, res.GetNextOffset())
				}
			}
			if form == storagev1.RecordForm_RECORD_FORM_RECORDS && !slices.Equal(got, want) {
				t.Errorf("from %d: %q, want %q", offset, got, want)
			}
			if err := c.end(); err != nil {
				t.Error(err)
			}
		}
	}
}
