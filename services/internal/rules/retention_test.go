package rules

import (
	"testing"

	"pgregory.net/rapid"
)

func TestRetention(t *testing.T) {
	spans := []RetainedSpan{{EndOffset: 10, Bytes: 100, MaxTimestamp: 1000}, {EndOffset: 20, Bytes: 100, MaxTimestamp: 3000}, {EndOffset: 30, Bytes: 100, MaxTimestamp: 2000}}
	for name, c := range map[string]struct {
		start, highWatermark, now, ms, bytes int64
		want                                 int64
	}{
		"unlimited":             {0, 30, 1e6, Unlimited, Unlimited, 0},
		"nothing is old enough": {0, 30, 2000, 1000, Unlimited, 0},
		"the oldest":            {0, 30, 2001, 1000, Unlimited, 10},
		"an older one behind a younger one stays": {0, 30, 3001, 1000, Unlimited, 10},
		"all":                                     {0, 30, 4001, 1000, Unlimited, 30},
		"not beyond the high watermark":           {0, 29, 4001, 1000, Unlimited, 20},
		"size: what stays has as many bytes":      {0, 30, 0, Unlimited, 200, 10},
		"size: what would stay has too few":       {0, 30, 0, Unlimited, 201, 0},
		"size 0":                                  {0, 30, 0, Unlimited, 0, 30},
		"size: not beyond the high watermark":     {0, 5, 0, Unlimited, 0, 0},
		"either":                                  {0, 30, 2001, 1000, 100, 20},
		"records of time 0 are as old as can be":  {0, 30, 1e6, 0, Unlimited, 30},
		"the log start is never moved back":       {15, 30, 2001, 1000, Unlimited, 15},
		"what was deleted within a span stays so": {15, 30, 0, Unlimited, 100, 20},
		"a clock that is behind removes nothing":  {0, 30, -5000, 1000, Unlimited, 0},
	} {
		r := Retention{LogStart: c.start, HighWatermark: c.highWatermark, NowMs: c.now, RetentionMs: c.ms, RetentionBytes: c.bytes, Spans: spans}
		if got := r.NewLogStart(); got != c.want {
			t.Errorf("%s: the log begins at %d, want %d", name, got, c.want)
		}
	}
}

// Whatever the log: what retention leaves satisfies both limits as far as spans
// and the high watermark allow, and nothing is removed that neither asks for.
func TestRetentionRemovesNoMoreThanAsked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Retention{
			NowMs:          rapid.Int64Range(0, 1000).Draw(t, "now"),
			RetentionMs:    rapid.SampledFrom([]int64{Unlimited, 0, 1, 100, 900}).Draw(t, "ms"),
			RetentionBytes: rapid.SampledFrom([]int64{Unlimited, 0, 1, 50, 300}).Draw(t, "bytes"),
		}
		end := int64(0)
		for range rapid.IntRange(0, 8).Draw(t, "spans") {
			end += rapid.Int64Range(1, 9).Draw(t, "records")
			r.Spans = append(r.Spans, RetainedSpan{EndOffset: end, Bytes: rapid.Int64Range(1, 99).Draw(t, "size"), MaxTimestamp: rapid.Int64Range(0, 1000).Draw(t, "time")})
		}
		r.LogStart = rapid.Int64Range(0, end).Draw(t, "start")
		r.HighWatermark = rapid.Int64Range(r.LogStart, end).Draw(t, "high watermark")
		got := r.NewLogStart()
		if got < r.LogStart || got > max(r.HighWatermark, r.LogStart) {
			t.Fatalf("%+v: begins at %d", r, got)
		}
		expired := func(s RetainedSpan) bool { return r.RetentionMs != Unlimited && s.MaxTimestamp < r.NowMs-r.RetentionMs }
		for i, s := range r.Spans {
			var rest int64
			for _, later := range r.Spans[i+1:] {
				rest += later.Bytes
			}
			surplus := r.RetentionBytes != Unlimited && rest >= r.RetentionBytes
			if s.EndOffset <= got && s.EndOffset > r.LogStart && !expired(s) && !surplus {
				t.Fatalf("%+v: begins at %d, but the span up to %d had to stay", r, got, s.EndOffset)
			}
			if s.EndOffset > got {
				if s.EndOffset <= r.HighWatermark && (expired(s) || surplus) {
					t.Fatalf("%+v: begins at %d, but the span up to %d had to go", r, got, s.EndOffset)
				}
				break
			}
		}
	})
}
