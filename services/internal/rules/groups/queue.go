package groups

import (
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

type waiting struct {
	ticket  Ticket
	request Request
	arrived time.Time
	// deleted is what a DeleteOffsets that takes several rounds has come to. It outlives
	// that the shard begins anew: what is not deleted then is deleted again.
	deleted map[Partition]*OffsetRecord
	// settled is how many offsets a Commit that takes several rounds has come to, and
	// refusals what of these was not recorded and why.
	settled  int
	refusals []*Refusal
}

// Submit brings a request that has arrived. It is answered by a later [Shard.Step].
//
// While the shard fences and loads, requests wait as they do during a round: a client
// that was refused would only come again, and after a failover all of them would. A
// request that has waited as long as Confidence is refused, so nobody hangs on a
// partition that cannot be loaded.
func (s *Shard) Submit(ticket Ticket, request Request, now time.Time) {
	s.now = now
	w := waiting{ticket: ticket, request: request, arrived: now}
	switch {
	case s.phase <= deposed:
		s.refuseNow(w, s.why)
	case s.beat(w):
	case len(s.queue) >= s.config.Queue:
		s.refuseNow(w, refusal(errorsv1.Reason_REASON_THROTTLED,
			"%d requests wait for this coordinator: try again after a pause", len(s.queue)))
	case isCommit(w) && s.commits >= s.config.Commits:
		s.refuseNow(w, refusal(errorsv1.Reason_REASON_THROTTLED,
			"%d commits wait for this coordinator, as many as it lets wait: commit again after a pause", s.commits))
	default:
		s.queue = append(s.queue, w)
		if isCommit(w) {
			s.commits++
		}
	}
}

func isCommit(w waiting) bool {
	_, is := w.request.(*Commit)
	return is
}

// tire refuses requests that have waited too long.
func (s *Shard) tire() {
	n := 0
	for n < len(s.queue) && s.now.Sub(s.queue[n].arrived) >= s.config.Confidence && s.stuck() {
		s.refuseNow(s.queue[n], unavailable("its coordinator cannot write to its log, or has yet to read it"))
		n++
	}
	s.take(n)
}

// stuck reports whether no round can begin now.
func (s *Shard) stuck() bool {
	return s.flight.ticket != 0 || s.now.Before(s.paused) || s.phase != serving || s.topics == nil
}

// take removes the oldest requests from the queue.
func (s *Shard) take(n int) {
	for _, w := range s.queue[:n] {
		if isCommit(w) {
			s.commits--
		}
	}
	s.queue = s.queue[n:]
	if len(s.queue) == 0 {
		s.queue = nil
	}
}

// refuseNow answers a request that no round has taken.
func (s *Shard) refuseNow(w waiting, why *Refusal) {
	if _, silent := w.request.(*Detach); !silent {
		s.out.Replies = append(s.out.Replies, Reply{Ticket: w.ticket, Refusal: why})
	}
}
