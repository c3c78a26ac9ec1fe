package partition

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// timed is a batch of one record of that time.
func timed(t testing.TB, at time.Time) []byte {
	t.Helper()
	var b recordbatch.Builder
	if err := b.Append([]byte("key"), []byte("value"), nil, at.UnixMilli()); err != nil {
		t.Fatal(err)
	}
	raw, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestRetention runs a host over a log of four batches, one a minute.
func TestRetention(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings []string
		follower bool
		want     int64
	}{
		"for ever":          {settings: []string{rules.RetentionMs, "-1"}, want: 0},
		"for a while":       {settings: []string{rules.RetentionMs, "200000"}, want: 2},
		"for no time":       {settings: []string{rules.RetentionMs, "1"}, want: 4},
		"only so many":      {settings: []string{rules.RetentionMs, "-1", rules.RetentionBytes, "1"}, want: 3},
		"compacted":         {settings: []string{rules.RetentionMs, "1", rules.CleanupPolicy, rules.CleanupCompact}, want: 0},
		"compacted as well": {settings: []string{rules.RetentionMs, "1", rules.CleanupPolicy, rules.CleanupCompactDelete}, want: 4},
		"not by a follower": {settings: []string{rules.RetentionMs, "1"}, follower: true, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log := &memoryLog{}
				host, p := open(t, log, c.settings...)
				for range 4 {
					add(t, p, timed(t, time.Now()), all).result(t)
					time.Sleep(time.Minute)
				}
				time.Sleep(40 * time.Second)
				if c.follower {
					follower := led(2)
					follower.Leader = 2
					follower.Replicas = append(follower.Replicas, 2)
					apply(t, p, follower)
				}
				ctx, cancel := context.WithCancel(t.Context())
				stopped := make(chan struct{})
				go func() { _ = host.Run(ctx); close(stopped) }()
				time.Sleep(host.config.RetentionEvery)
				synctest.Wait()
				cancel()
				<-stopped
				if got := log.last().State.LogStart; got != c.want {
					t.Errorf("the log begins at %d, want %d", got, c.want)
				}
			})
		})
	}
}

// TestSpansFollowRetention: retention removes spans as a whole, so that they must
// not become large or old beside what it keeps.
func TestSpansFollowRetention(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings []string
		bytes    int64
		age      time.Duration
	}{
		"for ever":        {settings: []string{rules.RetentionMs, "-1"}},
		"an hour":         {settings: []string{rules.RetentionMs, "3600000"}, age: 15 * time.Minute},
		"a second":        {settings: []string{rules.RetentionMs, "1000"}, age: minSpanAge},
		"a gibibyte":      {settings: []string{rules.RetentionMs, "-1", rules.RetentionBytes, "1073741824"}, bytes: 256 << 20},
		"a few bytes":     {settings: []string{rules.RetentionMs, "-1", rules.RetentionBytes, "1000"}, bytes: minSpanBytes},
		"newest per key":  {settings: []string{rules.RetentionMs, "1000", rules.CleanupPolicy, rules.CleanupCompact}},
		"longest setting": {settings: []string{rules.RetentionMs, "9223372036854"}, age: 9223372036854 * time.Millisecond / 4},
	} {
		log := &memoryLog{}
		_, p := open(t, log, c.settings...)
		add(t, p, timed(t, time.Now()), all).result(t)
		if got := log.last(); got.SpanBytes != c.bytes || got.SpanAge != c.age {
			t.Errorf("%s: spans of %d bytes and %v, want %d and %v", name, got.SpanBytes, got.SpanAge, c.bytes, c.age)
		}
	}
}
