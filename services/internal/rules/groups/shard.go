package groups

import (
	"fmt"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// retryPause is how long the shard waits after an I/O that came to nothing.
const retryPause = 100 * time.Millisecond

// Shard is the coordinator's state of one partition of __consumer_offsets. None of its
// methods blocks, and none may be called while another runs. What they ask for comes out
// of [Shard.Step], which is to be called after any of the others.
type Shard struct {
	config Config
	self   cluster.NodeID
	topics Topics
	// now is the time of the call under way.
	now time.Time

	phase phase
	epoch CoordinatorEpoch
	// why is what requests are refused with in the phases ended and deposed.
	why *Refusal
	// end is where the log ends, if the fence holds.
	end int64
	// flight is the I/O under way, if its ticket is not 0. An orphaned one was begun
	// before the shard last began anew, and its outcome means nothing.
	flight   flight
	orphaned bool
	tickets  Ticket
	// paused is until when no I/O begins, proven when that was sent which last showed
	// that the fence holds.
	paused, proven time.Time
	// asked is the Wake of the last step. A shard that is called much later stood still,
	// and heartbeats may wait outside: until grace no session ends.
	asked, grace time.Time

	// queue are requests that no round has taken, the oldest first; commits of them are
	// commits.
	queue   []waiting
	commits int
	state
	patterns patterns
	// stale are groups that a round has to settle although no request names them.
	stale []*group

	// The round: what it has yet to write, how many of these records are under way, how
	// many come from requests and timers, how many bytes all are about, the groups it has
	// yet to settle, the streams it opens, and what it lets out once it is written. While
	// there are records memory is ahead of the log; decisive says that not only its offsets
	// are.
	records  []Record
	decisive bool
	sent     int
	decided  int
	bytes    int
	touched  []*group
	joins    []Ticket
	held     Effects
	// out is what the next [Shard.Step] returns.
	out Effects
}

type phase uint8

const (
	// ended: the node does not coordinate the partition.
	ended phase = iota
	// deposed: the log says that another does; metadata will.
	deposed
	// fencing: the fence is to be appended.
	fencing
	// loading: the log is to be read.
	loading
	serving
)

// flight is an I/O.
type flight struct {
	ticket Ticket
	sent   time.Time
}

// NewShard returns a shard that coordinates nothing yet.
func NewShard(config Config, self cluster.NodeID) *Shard {
	return &Shard{
		config: config, self: self, state: newState(), patterns: newPatterns(),
		why: unavailable("no coordinator has begun to serve it"),
	}
}

// Begin says that the node coordinates the partition from now on: the shard fences, loads
// and serves. An epoch that is not above the one that it has changes nothing.
func (s *Shard) Begin(epoch CoordinatorEpoch) {
	if s.phase != ended && epoch <= s.epoch {
		return
	}
	s.epoch = epoch
	s.again(unavailable("its coordinator begins anew"))
	s.paused = time.Time{}
}

// End says that the node does not coordinate the partition any longer: what waits is
// refused with why, and so is what comes before the next [Shard.Begin]; every stream ends.
func (s *Shard) End(why *Refusal) {
	if why == nil {
		why = unavailable("this node does not coordinate it")
	}
	s.drop(why)
	s.stand(ended, why)
}

// SetTopics brings a newer version of the topics; an older one is ignored. Nothing is
// served before the first.
func (s *Shard) SetTopics(topics Topics) {
	old := s.topics
	if old != nil && topics.Version() <= old.Version() {
		return
	}
	s.topics = topics
	s.patterns.forget()
	if s.phase == serving {
		s.compare(old)
	}
}

// Appended brings the outcome of an [Append]; with Done, end is the offset after the batch.
func (s *Shard) Appended(ticket Ticket, outcome Outcome, end int64, now time.Time) {
	sent, ours := s.land(ticket, now)
	if !ours {
		return
	}
	switch outcome {
	case Done:
		s.proven, s.end = sent, end
		if s.phase == fencing {
			s.phase, s.state = loading, newState()
			s.clear()
			return
		}
		s.records, s.decided = s.records[s.sent:], 0
		if len(s.records) == 0 {
			s.release()
		}
	case Refused:
		s.paused = now.Add(retryPause)
	case Fenced:
		if s.phase == fencing {
			// Who appends a fence is refused only for a higher epoch.
			s.drop(s.deposedBy())
			s.stand(deposed, s.deposedBy())
			return
		}
		// The log may also end elsewhere for want of records that an unclean election
		// lost. Then nobody else takes the partition over: the fence tells.
		s.again(unavailable("its coordinator was fenced"))
	default:
		s.again(unavailable("its coordinator does not know what the log holds, and reads it again"))
	}
}

// Checked brings the outcome of a [Check].
func (s *Shard) Checked(ticket Ticket, outcome Outcome, now time.Time) {
	sent, ours := s.land(ticket, now)
	if !ours {
		return
	}
	switch outcome {
	case Done:
		s.proven = sent
		s.release()
	case Fenced:
		s.again(unavailable("its coordinator was fenced"))
	default:
		s.paused = now.Add(retryPause)
		s.recant(unavailable("its coordinator cannot reach the leader of its log"))
	}
}

// Load brings a piece of the log.
func (s *Shard) Load(ticket Ticket, records []Record) {
	if ticket != s.flight.ticket || s.orphaned {
		return
	}
	for _, r := range records {
		s.fold(r)
	}
}

// Loaded says that all pieces of the log have come, with Done, or that no more will.
func (s *Shard) Loaded(ticket Ticket, outcome Outcome, now time.Time) {
	if _, ours := s.land(ticket, now); !ours {
		return
	}
	switch {
	case outcome == Fenced:
		s.again(unavailable("its coordinator was fenced"))
	case outcome != Done || s.fence != s.epoch:
		// Without the fence of this epoch, the log was not read to its end.
		s.state = newState()
		s.paused = now.Add(retryPause)
	default:
		s.phase = serving
		s.revive()
	}
}

// Step returns what is to be done now.
func (s *Shard) Step(now time.Time) Effects {
	s.now = now
	if !s.asked.IsZero() && now.Sub(s.asked) > s.config.HeartbeatInterval {
		s.grace = now.Add(2 * s.config.HeartbeatInterval)
	}
	for s.flight.ticket == 0 && !now.Before(s.paused) {
		switch {
		case s.phase == fencing:
			s.records = []Record{&FenceRecord{Epoch: s.epoch, Node: s.self}}
			s.append(-1)
		case s.phase == loading:
			s.out.Load = &Load{Ticket: s.fly(), End: s.end}
		case s.phase != serving || s.topics == nil:
		case len(s.records) > 0: // Refused before, or what did not fit.
			s.append(s.end)
		default:
			s.round()
			switch {
			case len(s.records) > 0:
				s.append(s.end)
			case s.holds() || s.members > 0 && now.Sub(s.proven) >= s.config.CheckInterval:
				s.out.Check = &Check{Ticket: s.fly(), Epoch: s.epoch, Expected: s.end}
			}
		}
		if s.flight.ticket == 0 && !s.waits() {
			break
		}
	}
	s.tire()
	out := s.out
	out.Wake = s.wake()
	s.asked, s.out = out.Wake, Effects{}
	return out
}

// waits reports whether another round has something to do at once.
func (s *Shard) waits() bool {
	return s.phase == serving && s.topics != nil &&
		(len(s.queue) > 0 || len(s.stale) > 0 || len(s.timers) > 0 && !s.timers[0].at.After(s.now))
}

// wake returns when something falls due by itself.
func (s *Shard) wake() time.Time {
	var wake time.Time
	at := func(t time.Time) {
		if wake.IsZero() || t.Before(wake) {
			wake = t
		}
	}
	if len(s.queue) > 0 {
		at(s.queue[0].arrived.Add(s.config.Confidence))
	}
	if s.flight.ticket != 0 || s.phase <= deposed {
		return wake
	}
	if s.now.Before(s.paused) {
		at(s.paused)
		return wake
	}
	if s.phase == serving && s.topics != nil {
		if len(s.timers) > 0 {
			at(s.timers[0].at)
		}
		if s.members > 0 {
			at(s.proven.Add(s.config.CheckInterval))
		}
	}
	return wake
}

// fly begins an I/O.
func (s *Shard) fly() Ticket {
	s.tickets++
	s.flight = flight{ticket: s.tickets, sent: s.now}
	return s.tickets
}

// append writes what of the round fits into one batch. A round is bounded, but not what
// settling a group makes of it: a rebalance writes as many members as the group has, with
// their subscriptions. What requests and timers have written stays together, such as a
// member and the one that it supersedes. Settling may end anywhere: each of its records
// holds given those before, and whoever loads only some of them settles the rest.
func (s *Shard) append(expected int64) {
	n, bytes := s.decided, 0
	for n < len(s.records) && (n == 0 || bytes < s.config.RoundBytes) {
		bytes += recordBytes(s.records[n])
		n++
	}
	s.sent = n
	s.out.Append = &Append{Ticket: s.fly(), Epoch: s.epoch, Expected: expected, Records: s.records[:n:n]}
}

// land ends the I/O of that ticket. It returns when that was sent, and whether its outcome
// still means something.
func (s *Shard) land(ticket Ticket, now time.Time) (sent time.Time, ours bool) {
	s.now = now
	if ticket == 0 || ticket != s.flight.ticket {
		return time.Time{}, false
	}
	sent, ours = s.flight.sent, !s.orphaned
	s.flight, s.orphaned = flight{}, false
	return sent, ours
}

func refusal(reason errorsv1.Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func unavailable(why string) *Refusal {
	return refusal(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE,
		"the group is not served at the moment, since %s: try again after a pause", why)
}
