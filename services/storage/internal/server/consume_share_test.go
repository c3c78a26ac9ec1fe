package server

import "testing"

// TestShare: clients that do not read must not hold more than the configured sum
// with one response each that is sent and one that is read ahead, and a stream must always get on.
func TestShare(t *testing.T) {
	s := &Server{config: Config{ResponseBytes: 8 << 20}}
	for _, c := range []struct {
		streams     int64
		asked, want int
	}{
		{1, 1 << 20, 1 << 20},
		{4, 1 << 20, 1 << 20},
		{4, 16 << 20, 1 << 20},
		{8, 1 << 20, 512 << 10},
		{100_000, 1 << 20, minShareBytes},
		{100_000, 1000, 1000},
		{0, 16 << 20, 4 << 20},
	} {
		s.consumers.Store(c.streams)
		if got := s.share(c.asked); got != c.want {
			t.Errorf("%d streams, %d bytes asked: share of %d, want %d", c.streams, c.asked, got, c.want)
		}
	}
}
