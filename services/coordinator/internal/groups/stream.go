package groups

import (
	"sync"
	"time"

	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// Stream is the stream of a Join. It keeps the newest assignment only: each is the
// whole of what the member is to read, and one that was never sent need not be.
type Stream struct {
	shard  *shard
	ticket rules.Ticket
	group  rules.GroupID
	member rules.MemberID
	c      chan struct{}

	mu      sync.Mutex
	newest  *rules.Assignment
	certain time.Time
	closed  *rules.Refusal
}

// C holds a token while there is something to take.
func (s *Stream) C() <-chan struct{} { return s.c }

// Take returns the newest assignment if it was not taken yet, nil if there is none,
// and a *[rules.Refusal] once the stream has ended, or when this node can no longer
// speak for the group. An assignment that was there before the end comes first.
func (s *Stream) Take() (*rules.Assignment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.newest; a != nil {
		s.newest = nil
		if time.Since(s.certain) > s.shard.host.config.Confidence {
			return nil, stale(s.certain)
		}
		if s.closed != nil {
			s.notify()
		}
		return a, nil
	}
	if s.closed != nil {
		return nil, s.closed
	}
	return nil, nil
}

// Close says that the stream has ended. The membership stands.
func (s *Stream) Close() {
	detach := &rules.Detach{Group: s.group, Member: s.member, Stream: s.ticket}
	select {
	case s.shard.requests <- submission{ticket: s.shard.host.ticket(), request: detach}:
	case <-s.shard.ended:
	}
}

// put replaces the assignment.
func (s *Stream) put(a *rules.Assignment, certain time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest, s.certain = a, certain
	s.notify()
}

func (s *Stream) close(why *rules.Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = why
	s.notify()
}

func (s *Stream) notify() {
	select {
	case s.c <- struct{}{}:
	default:
	}
}
