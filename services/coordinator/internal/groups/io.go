package groups

import (
	"context"
	"log/slog"
	"time"

	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

func (s *shard) append(a *rules.Append) {
	ctx, sent := s.epoch, time.Now()
	s.io.Go(func() {
		outcome, end, err := s.host.log.Append(ctx, s.partition, a)
		s.report(ctx, "append", outcome, err)
		s.deliver(func(now time.Time) {
			s.host.metrics.round("append", outcome, now.Sub(sent))
			s.confirm(ctx, outcome, sent)
			s.rules.Appended(a.Ticket, outcome, end, now)
		})
	})
}

func (s *shard) check(c *rules.Check) {
	ctx, sent := s.epoch, time.Now()
	s.io.Go(func() {
		outcome, err := s.host.log.Check(ctx, s.partition, c)
		s.report(ctx, "check", outcome, err)
		s.deliver(func(now time.Time) {
			s.host.metrics.round("check", outcome, now.Sub(sent))
			s.confirm(ctx, outcome, sent)
			s.rules.Checked(c.Ticket, outcome, now)
		})
	})
}

func (s *shard) load(l *rules.Load) {
	ctx, sent := s.epoch, time.Now()
	s.io.Go(func() {
		outcome, err := s.host.log.Load(ctx, s.partition, l.End, func(records []rules.Record) {
			s.deliver(func(time.Time) { s.rules.Load(l.Ticket, records) })
		})
		s.report(ctx, "load", outcome, err)
		s.deliver(func(now time.Time) {
			s.host.metrics.round("load", outcome, now.Sub(sent))
			s.rules.Loaded(l.Ticket, outcome, now)
		})
	})
}

// confirm notes that nobody else had the partition when a request was sent.
func (s *shard) confirm(ctx context.Context, outcome rules.Outcome, sent time.Time) {
	if outcome == rules.Done && ctx.Err() == nil {
		s.certain = sent
	}
}

// deliver has the goroutine of the shard run something; what comes too late is dropped.
func (s *shard) deliver(outcome func(now time.Time)) {
	select {
	case s.outcomes <- outcome:
	case <-s.ended:
	}
}

// reportEvery is how often a shard that goes on failing says so: it tries again many
// times a second.
const reportEvery = time.Minute

// report logs what was not done, of what is repeated meanwhile only the first.
func (s *shard) report(ctx context.Context, what string, outcome rules.Outcome, err error) {
	if outcome == rules.Done || ctx.Err() != nil {
		return
	}
	level := slog.LevelWarn
	if outcome == rules.Refused {
		level = slog.LevelInfo
	}
	now, last := time.Now().UnixNano(), s.reported.Load()
	if last != 0 && now-last < int64(reportEvery) || !s.reported.CompareAndSwap(last, now) {
		level = slog.LevelDebug
	}
	s.host.logger.Log(ctx, level, "groups could not be written or read", "partition", s.partition.Index, "what", what, "outcome", outcomeName(outcome), "error", err)
}
