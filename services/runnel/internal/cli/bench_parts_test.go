package cli

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

func TestPayloadsAreHalfCompressible(t *testing.T) {
	for _, size := range []int{1, 16, 100, 1024, 100_000} {
		p := newPayloads(size)
		var all []byte
		for len(all) < 200_000 {
			value := p.take()
			if len(value) != size {
				t.Fatalf("got %d bytes, want %d", len(value), size)
			}
			all = append(all, value...)
		}
		var squeezed bytes.Buffer
		w := gzip.NewWriter(&squeezed)
		if _, err := w.Write(all); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if ratio := float64(squeezed.Len()) / float64(len(all)); ratio < 0.45 || ratio > 0.65 {
			t.Errorf("%d bytes: gzip leaves %.0f %%", size, 100*ratio)
		}
	}
}

func TestPayloadsGoRoundThePool(t *testing.T) {
	p := newPayloads(1 << 20)
	seen := make(map[byte]int)
	for range 100 {
		seen[p.take()[0]]++
	}
	if len(seen) < 2 {
		t.Error("all payloads are the same")
	}
}

func TestScheduleDoesNotSlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := newSchedule(start, 1000)
		for i := range int64(10) {
			if i == 5 {
				time.Sleep(100 * time.Millisecond) // the answer that holds everything up
			}
			from, err := s.wait(t.Context(), i)
			if err != nil {
				t.Fatal(err)
			}
			if want := start.Add(time.Duration(i) * time.Millisecond); !from.Equal(want) {
				t.Errorf("record %d counts from %v, want %v", i, from.Sub(start), want.Sub(start))
			}
		}
		if took := time.Since(start); took != 104*time.Millisecond {
			t.Errorf("took %v: what is overdue must be sent at once", took)
		}
	})
}

func TestScheduleKeepsAnUnevenRate(t *testing.T) {
	start := time.Now()
	s := newSchedule(start, 7e5)
	if got := s.due(7_000_000).Sub(start); (got - 10*time.Second).Abs() > time.Microsecond {
		t.Errorf("7,000,000 records at 700,000/s take %v", got)
	}
}

func TestScheduleEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, s := range []schedule{newSchedule(time.Now(), 0), newSchedule(time.Now(), 0.001)} {
		if _, err := s.wait(ctx, 5); !errors.Is(err, context.Canceled) {
			t.Errorf("rate %v: got %v", s.rate, err)
		}
	}
}

func TestMeter(t *testing.T) {
	start := time.Unix(1000, 0)
	m := newMeter(start)
	var calls sync.WaitGroup
	for i := range 1000 {
		calls.Go(func() {
			began := start.Add(time.Duration(i) * time.Millisecond)
			m.done(100, began, began.Add(time.Duration(i+1)*time.Millisecond))
		})
	}
	calls.Wait()
	m.fail()
	end := start.Add(1999 * time.Millisecond)
	held := func() error { return &runnel.Error{Message: "the disk is full"} }
	line := m.interim("sent", end, held)
	if want := "1000 records sent, 500.3 records/s (0.05 MB/s), 500.50 ms avg latency, 1000.00 ms max latency"; line != want {
		t.Errorf("got  %s\nwant %s", line, want)
	}
	if line := m.interim("sent", end.Add(time.Second), nil); line != "0 records sent, 0.0 records/s (0.00 MB/s)" {
		t.Errorf("the next window begins with %s", line)
	}
	if line := m.interim("sent", end.Add(2*time.Second), held); line != "0 records sent, 0.0 records/s (0.00 MB/s): the disk is full" {
		t.Errorf("a window without records is %s", line)
	}
	r := m.report("produce", "t")
	if r.Records != 1000 || r.Failed != 1 || r.Bytes != 100_000 || r.Seconds != 1.999 {
		t.Errorf("got %+v", r)
	}
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"avg", r.LatencyMS.Avg, 500.5},
		{"p50", r.LatencyMS.P50, 500},
		{"p95", r.LatencyMS.P95, 950},
		{"p99", r.LatencyMS.P99, 990},
		{"p99.9", r.LatencyMS.P999, 999},
		{"max", r.LatencyMS.Max, 1000},
	} {
		if math.Abs(c.got-c.want) > c.want/500 {
			t.Errorf("%s: got %v ms, want %v", c.name, c.got, c.want)
		}
	}
	var out strings.Builder
	if err := r.table().writeTo(&out); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[1], "1000     1 ") {
		t.Errorf("got the table\n%s", out.String())
	}
}

func TestMeterWithoutTime(t *testing.T) {
	start := time.Unix(1000, 0)
	m := newMeter(start)
	r := m.report("consume", "t")
	if r.RecordsPerSecond != 0 || r.LatencyMS != nil {
		t.Errorf("nothing was measured, got %+v", r)
	}
}
