package groups

// holds reports whether the round has something to tell.
func (s *Shard) holds() bool {
	return len(s.held.Replies)+len(s.held.Assignments)+len(s.held.Closed) > 0
}

// release lets out what the round held back.
func (s *Shard) release() {
	s.out.Replies = append(s.out.Replies, s.held.Replies...)
	s.out.Assignments = append(s.out.Assignments, s.held.Assignments...)
	s.out.Closed = append(s.out.Closed, s.held.Closed...)
	s.clear()
}

// clear forgets the round.
func (s *Shard) clear() {
	s.records, s.sent, s.decided, s.bytes, s.decisive = nil, 0, 0, 0, false
	s.touched, s.joins, s.held = nil, nil, Effects{}
}

// recant refuses whatever the round was about to answer. The round has written nothing,
// so that memory stays; of the members, only streams are touched.
func (s *Shard) recant(why *Refusal) {
	for _, a := range s.held.Assignments {
		if m := s.groups[a.Group].member(a.Member); m != nil && m.stream == a.Stream {
			m.stream = 0
		}
	}
	s.disown(why)
	s.clear()
}

// disown answers everybody that the round was to answer with a refusal.
func (s *Shard) disown(why *Refusal) {
	for _, r := range s.held.Replies {
		s.out.Replies = append(s.out.Replies, Reply{Ticket: r.Ticket, Refusal: why})
	}
	for _, ticket := range s.joins {
		s.out.Replies = append(s.out.Replies, Reply{Ticket: ticket, Refusal: why})
	}
	for _, c := range s.held.Closed {
		s.out.Closed = append(s.out.Closed, Closed{Stream: c.Stream, Refusal: why})
	}
}

// drop forgets everything that came from the log, and tells those who rely on it.
func (s *Shard) drop(why *Refusal) {
	s.disown(why)
	refused := make(map[Ticket]struct{}, len(s.joins))
	for _, ticket := range s.joins {
		refused[ticket] = struct{}{}
	}
	for _, g := range s.sorted() {
		for _, m := range g.members {
			if _, unopened := refused[m.stream]; m.stream != 0 && !unopened {
				s.out.Closed = append(s.out.Closed, Closed{Stream: m.stream, Refusal: why})
			}
		}
	}
	s.clear()
	for i := range s.queue {
		// What it has recorded may not be in the log.
		s.queue[i].settled = 0
	}
	s.state, s.stale = newState(), nil
	s.orphaned = s.flight.ticket != 0
}

// again drops everything and begins with the fence.
func (s *Shard) again(why *Refusal) {
	s.drop(why)
	s.phase, s.paused = fencing, s.now.Add(retryPause)
}

// stand ends service for the time being.
func (s *Shard) stand(phase phase, why *Refusal) {
	for _, w := range s.queue {
		s.refuseNow(w, why)
	}
	s.queue, s.commits, s.phase, s.why = nil, 0, phase, why
}

func (s *Shard) deposedBy() *Refusal {
	return unavailable("another coordinator has taken it over")
}
