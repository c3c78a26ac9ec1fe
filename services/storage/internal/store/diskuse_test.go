package store

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// TestDiskUseIsBounded: one hot partition and many cold ones, with retention by
// size, by time and without, in two sets. Once the cleaner has caught up there is
// never more on the disk than twice what is needed, a volume per set that is being
// written, and one that takes copies.
func TestDiskUseIsBounded(t *testing.T) {
	clock := newTestClock()
	cfg := spaceConfig(t)
	cfg.VolumeBytes = 128 << 10
	cfg.Now = clock.Now
	s := open(t, cfg)
	source := rand.New(rand.NewPCG(3, 4))
	type part struct {
		id         PartitionID
		set        Set
		start, end int64
		ms, bytes  int64
		kept       []Batch
	}
	var parts []*part
	for i := range 24 {
		p := &part{id: partition(i), set: SetSynced, ms: rules.Unlimited, bytes: rules.Unlimited}
		switch {
		case i == 0:
			p.bytes = 96 << 10
		case i%3 == 0:
			p.ms, p.set = 40_000, SetReplicated
		case i%3 == 1:
			p.bytes = 16 << 10
		}
		parts = append(parts, p)
	}
	write := func(p *part, size int) {
		b := makeBatch(p.end, 2, size, 0, clock.Now().UnixMilli(), uint64(p.end))
		p.end += 2
		p.kept = append(p.kept, b)
		mustAppend(t, s.Log(p.id), Append{
			Set: p.set, Batches: []Batch{b}, State: State{LogStart: p.start, LogEnd: p.end, HighWatermark: p.end, Epochs: epochZero},
			SpanBytes: 4 << 10, SpanAge: 10 * time.Second,
		})
	}
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	var worst float64
	for round := range rounds {
		for range 12 {
			write(parts[0], 2<<10+source.IntN(4<<10))
			write(parts[1+source.IntN(len(parts)-1)], 100+source.IntN(600))
		}
		clock.move(time.Second)
		for _, p := range parts {
			l := s.Log(p.id)
			rule := rules.Retention{LogStart: p.start, HighWatermark: p.end, NowMs: clock.Now().UnixMilli(), RetentionMs: p.ms, RetentionBytes: p.bytes}
			for _, sp := range l.Spans(nil) {
				rule.Spans = append(rule.Spans, rules.RetainedSpan{EndOffset: sp.EndOffset, Bytes: sp.Bytes, MaxTimestamp: sp.MaxTimestamp})
			}
			if start := rule.NewLogStart(); start > p.start {
				p.start = start
				moveStart(t, l, p.set, start, p.end)
			}
			for len(p.kept) > 0 && p.kept[0].LastOffset < p.start {
				p.kept = p.kept[1:]
			}
		}
		eventually(t, "the cleaner has caught up", s.settled)
		var used, needed int64
		s.volumes.mu.Lock()
		for _, v := range s.volumes.byNumber {
			used += v.space.size()
			needed += v.space.needed()
		}
		s.volumes.mu.Unlock()
		const sets = 2
		bound := 2*needed + (sets+1)*cfg.VolumeBytes
		worst = max(worst, float64(used)/float64(bound))
		if used > bound {
			t.Fatalf("round %d: %d bytes on the disk, %d are needed, at most %d expected", round, used, needed, bound)
		}
		if round%20 == 19 {
			closeUnclean(t, s)
			s = open(t, cfg)
		}
	}
	for _, p := range parts {
		if len(p.kept) == 0 {
			continue
		}
		if err := sameBatches(readAll(t, s.Log(p.id), p.kept[0].BaseOffset, p.end, 1<<20), p.kept); err != nil {
			t.Errorf("%v: %v", p.id, err)
		}
	}
	// What is counted is what the disk has, but for what Badger adds to each volume.
	sealAll(t, s)
	eventually(t, "the cleaner has caught up", s.settled)
	s.volumes.mu.Lock()
	defer s.volumes.mu.Unlock()
	for _, v := range s.volumes.byNumber {
		if !v.sealed {
			continue
		}
		got, err := occupied(v.path)
		if err != nil {
			t.Fatal(err)
		}
		if most := v.space.size()*5/4 + 128<<10; got > most {
			t.Errorf("volume %d takes %d bytes of the disk, at most %d expected", v.number, got, most)
		}
	}
	t.Logf("at most %.2f of the bound", worst)
}
