package groups

import (
	"context"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// submission is a request on its way to the shard; one of done and stream is set, or
// none of them for a Detach.
type submission struct {
	ticket  rules.Ticket
	request rules.Request
	done    chan<- answer
	stream  *Stream
	// abandoned is closed when nobody waits for done any more; nil without.
	abandoned <-chan struct{}
}

// answer is what became of a request.
type answer struct {
	value   any
	refusal *rules.Refusal
	certain time.Time
}

// do submits a request and waits for its answer.
func (s *shard) do(ctx context.Context, request rules.Request) (any, error) {
	done := make(chan answer, 1)
	if err := s.send(ctx, submission{ticket: s.host.ticket(), request: request, done: done, abandoned: ctx.Done()}); err != nil {
		return nil, err
	}
	select {
	case a := <-done:
		return a.value, s.judge(a)
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ended:
	}
	select {
	case a := <-done:
		return a.value, s.judge(a)
	default:
		return nil, errStopping
	}
}

// join submits a Join.
func (s *shard) join(ctx context.Context, join *rules.Join) (*Stream, error) {
	stream := &Stream{shard: s, ticket: s.host.ticket(), group: join.Group, member: join.Member, c: make(chan struct{}, 1)}
	if err := s.send(ctx, submission{ticket: stream.ticket, request: join, stream: stream}); err != nil {
		return nil, err
	}
	return stream, nil
}

// offsets returns up to limit committed offsets, and how many there are.
func (s *shard) offsets(ctx context.Context, limit int) (found []*rules.OffsetRecord, total int, _ error) {
	looked := make(chan struct{})
	look := func() {
		defer close(looked)
		s.rules.Offsets(func(r *rules.OffsetRecord) bool {
			if total++; len(found) < limit {
				found = append(found, r)
			}
			return true
		})
	}
	select {
	case s.looks <- look:
	case <-s.ended:
		return nil, 0, errStopping
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	<-looked
	return found, total, nil
}

func (s *shard) send(ctx context.Context, r submission) error {
	select {
	case s.requests <- r:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		return errStopping
	}
}

// judge returns the error of an answer.
func (s *shard) judge(a answer) error {
	if !sayable(a.refusal) && time.Since(a.certain) > s.host.config.Confidence {
		return stale(a.certain)
	}
	if a.refusal != nil {
		return a.refusal
	}
	return nil
}

// sayable reports whether a refusal says nothing about a group, and holds therefore
// whoever coordinates it.
func sayable(r *rules.Refusal) bool {
	if r == nil {
		return false
	}
	switch r.Reason {
	case errorsv1.Reason_REASON_NOT_COORDINATOR,
		errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE,
		errorsv1.Reason_REASON_DRAINING,
		errorsv1.Reason_REASON_THROTTLED:
		return true
	default:
		return false
	}
}

func (h *Host) ticket() rules.Ticket { return rules.Ticket(h.tickets.Add(1)) }
