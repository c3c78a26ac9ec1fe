package sim

import (
	"fmt"
	"slices"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// member is a process of a group's program, which does what the contract of
// GroupService asks of a member.
type member struct {
	process
	g     *crowd
	w     *world
	group int

	view *image
	// id is the member's name, and names how many it has had.
	id    groups.MemberID
	names int
	// instance is its name as a static member, over restarts; "" for others. A twin has by
	// mistake that of another process.
	instance string
	twin     bool
	// numbers says that the program numbers its commits, which one in four does not.
	numbers      bool
	subscription groups.Subscription
	assignor     groups.Assignor

	// session numbers the memberships of the process: what was meant for an earlier one
	// is dropped. joined says that the coordinator has admitted it, out that the program
	// is not to be a member for now.
	session     int
	joined, out bool
	// epoch is that of the assignment that it follows; 0 for none.
	epoch groups.Epoch
	// until is when the session is over by the member's own clock.
	until time.Duration
	// call numbers its Joins. open says that the last one has a stream, from a coordinator.
	call   int
	open   bool
	from   *coordinator
	behind int
	beat   time.Duration
	beats  int

	readings []*reading // In ascending order of partitions.
	// pending is an assignment that it does not follow yet, yielding that it is giving
	// up what that takes away.
	pending  *groups.Assignment
	yielding bool
	// committing counts the commits under way.
	committing int
}

// reading is a partition that a member has.
type reading struct {
	partition groups.Partition
	// known says that the position is: the committed one has been fetched.
	known               bool
	position, committed int64
}

func newMember(g *crowd, i int) *member {
	m := &member{g: g, w: g.w, group: i % len(g.groups), numbers: i%4 != 3}
	g.w.register(&m.process, fmt.Sprintf("mem%d", i))
	if before := i - len(g.groups); before >= 0 && g.members[before].instance != "" && g.w.chance(400) {
		m.instance, m.twin = g.members[before].instance, true
	} else if g.w.chance(250) {
		m.instance = m.name
	}
	m.assignor = []groups.Assignor{groups.Sticky, groups.Sticky, groups.Range, groups.RoundRobin}[g.w.rng.IntN(4)]
	m.subscribe()
	return m
}

// subscribe draws what the member wants to read.
func (m *member) subscribe() {
	m.subscription = groups.Subscription{Topics: [][]string{{"t0", "t1"}, {"t0", "t1"}, {"t0"}, {"t1"}}[m.w.rng.IntN(4)]}
	if m.w.chance(150) {
		m.subscription = groups.Subscription{Pattern: "t."}
	}
}

// startAgain begins a life of the process, which knows nothing of earlier ones.
func (m *member) startAgain() {
	if m.up || m.vacant(m.startAgain) {
		return
	}
	m.begin()
	m.view, m.out = nil, false
	m.begins()
	m.w.every(&m.process, 20*time.Millisecond, 80*time.Millisecond, m.poll)
	m.renew()
	m.join()
}

// kill ends the process without a word.
func (m *member) kill() {
	if !m.up {
		return
	}
	m.w.counts.MemberCrashes++
	m.w.note(-1, m.name, "crash")
	m.end()
	m.g.sawEnd(m)
	m.readings = nil
}

// renew takes another name, as the program does that joins for the first time.
func (m *member) renew() {
	m.names++
	m.id = groups.MemberID(fmt.Sprintf("%s-%d", m.name, m.names))
}

func (m *member) show(i *image) {
	if m.view == nil || i.revision > m.view.revision {
		m.view = i
	}
}

// coordinator returns whom the view names.
func (m *member) coordinator() (*coordinator, bool) {
	if m.view == nil {
		return nil, false
	}
	index, _ := m.g.partition(m.group)
	return m.g.coordinator(m.view.partitions[index].Coordinator)
}

// begins starts a membership anew, from nothing.
func (m *member) begins() {
	m.session++
	m.joined, m.epoch, m.pending, m.yielding, m.committing, m.open, m.behind = false, 0, nil, false, 0, false, 0
	for _, r := range m.readings {
		m.g.sawGive(m, r.partition)
	}
	m.readings = nil
}

// lose gives everything up at once, and joins again: with the same name or another.
func (m *member) lose(why string) {
	m.w.note(m.trace(), m.name, why, int64(m.epoch))
	m.w.counts.Lost++
	stale := m.readings
	if len(stale) > 0 && m.w.chance(700) {
		// A program that has not noticed commits what it had. It is for the coordinator
		// to refuse that.
		m.commit(stale)
	}
	m.begins()
	if m.w.chance(500) {
		m.renew()
	}
	m.call++
	m.w.after(&m.process, m.w.between(0, 500*time.Millisecond), m.rejoin)
}

// trace is the partition that the member's doings concern.
func (m *member) trace() int {
	index, _ := m.g.partition(m.group)
	return index
}

// rejoin opens a stream unless the program is not to be a member.
func (m *member) rejoin() {
	if !m.out {
		m.join()
	}
}

// join opens a stream, for a new membership or for that which stands.
func (m *member) join() {
	w := m.w
	m.call++
	m.open = false
	call, session := m.call, m.session
	again := func() {
		if m.call == call && !m.open {
			m.join()
		}
	}
	to, ok := m.coordinator()
	if !ok {
		w.after(&m.process, w.between(50*time.Millisecond, 300*time.Millisecond), again)
		return
	}
	m.from = to
	_, number := m.g.partition(m.group)
	sent, life := w.now, m.life
	request := groups.Join{
		Group: m.g.groups[m.group], Member: m.id, Epoch: m.epoch, Instance: m.instance, ClientID: m.name, Subscription: m.subscription,
		Assignor: m.assignor, SessionTimeout: m.g.session, RebalanceTimeout: m.g.rebalance,
	}
	w.note(m.trace(), m.name, "joins", int64(to.id), int64(m.epoch), int64(session))
	if !m.joined {
		m.until = sent + m.g.session
	}
	w.sendCopies(&m.process, &to.process, func(copied bool) {
		r := request
		to.join(number, &r, &stream{from: to, to: m, life: life, call: call, copied: copied, detach: func() {}})
	})
	w.after(&m.process, 2*requestTimeout, again)
}

// broken is a stream that has ended without a word.
func (m *member) broken(call int) {
	if call == m.call && !m.out {
		m.join()
	}
}

// closed is a stream that was ended with a reason.
func (m *member) closed(call int, why *groups.Refusal) {
	if call != m.call || m.out {
		return
	}
	m.w.note(m.trace(), m.name, "stream closed", int64(why.Reason))
	if ends(why) {
		m.lose("fenced")
		m.mistaken(why)
		return
	}
	m.call++
	m.w.after(&m.process, m.w.between(20*time.Millisecond, 200*time.Millisecond), m.rejoin)
}

// ends says whether a refusal means that the membership is over.
func ends(why *groups.Refusal) bool {
	switch why.Reason {
	case errorsv1.Reason_REASON_UNKNOWN_MEMBER, errorsv1.Reason_REASON_MEMBER_FENCED, errorsv1.Reason_REASON_INSTANCE_FENCED:
		return true
	default:
		return false
	}
}

// mistaken has a program stop that is told that another process has its instance, until
// somebody starts it again.
func (m *member) mistaken(why *groups.Refusal) {
	if why.Reason != errorsv1.Reason_REASON_INSTANCE_FENCED || m.w.calm {
		return
	}
	m.w.counts.InstancesFenced++
	m.out = true
	m.w.after(&m.process, m.w.between(0, 2*m.g.session), m.comeBack)
}

// assigned is what the stream of a Join has brought.
func (m *member) assigned(call int, a groups.Assignment) {
	if call != m.call || m.out || m.expire() {
		return
	}
	m.open = true
	if !m.joined {
		m.joined = true
		m.g.sawSession(m)
		m.beat = a.HeartbeatInterval
		m.beatOn()
	}
	if a.Epoch < m.epoch || m.pending != nil && a.Epoch < m.pending.Epoch {
		return
	}
	m.behind = 0
	m.pending = &a
	m.reconcile()
}

// reconcile brings the member in line with its newest assignment: it gives up what is
// no more in it, in its time, and begins what is new.
func (m *member) reconcile() {
	if m.pending == nil || m.yielding {
		return
	}
	var revoked []*reading
	for _, r := range m.readings {
		if !has(m.pending.Partitions, r.partition) {
			revoked = append(revoked, r)
		}
	}
	if len(revoked) == 0 {
		m.follow()
		return
	}
	w := m.w
	m.yielding = true
	if w.chance(700) {
		m.commit(revoked)
	}
	delay := w.between(0, 100*time.Millisecond)
	switch x := w.rng.IntN(1000); {
	case w.calm:
	case x < 30:
		return // It never confirms.
	case x < 150:
		delay = w.between(0, m.g.rebalance*3/2)
	}
	session := m.session
	w.after(&m.process, delay, func() {
		if m.session == session && !m.expire() {
			m.yielding = false
			m.readings = slices.DeleteFunc(m.readings, func(r *reading) bool {
				if has(m.pending.Partitions, r.partition) {
					return false
				}
				m.g.sawGive(m, r.partition)
				return true
			})
			w.counts.Revoked++
			epoch := m.epoch
			m.reconcile()
			if w.chance(300) {
				// What the program had under way comes too late.
				w.after(&m.process, w.between(0, 500*time.Millisecond), func() {
					if m.session == session {
						m.commitAt(epoch, revoked)
					}
				})
			}
		}
	})
}

// follow takes up the pending assignment, of which the member has given up what it
// had to, and confirms it.
func (m *member) follow() {
	a := m.pending
	m.pending = nil
	m.w.note(m.trace(), m.name, "follows", int64(a.Epoch), int64(len(a.Partitions)))
	m.epoch = a.Epoch
	for _, o := range a.Partitions {
		i, found := m.search(o.Partition)
		if !found {
			m.g.sawTake(m, o.Partition)
			m.readings = slices.Insert(m.readings, i, &reading{partition: o.Partition})
		}
	}
	m.heartbeat()
	m.fetch()
}

func (m *member) search(p groups.Partition) (int, bool) {
	return slices.BinarySearchFunc(m.readings, p, func(r *reading, p groups.Partition) int { return comparePartitions(r.partition, p) })
}

func has(owned []groups.Owned, p groups.Partition) bool {
	return slices.ContainsFunc(owned, func(o groups.Owned) bool { return o.Partition == p })
}

func comparePartitions(a, b groups.Partition) int {
	if a.Topic != b.Topic {
		return int(a.Topic[15]) - int(b.Topic[15])
	}
	return int(a.Index - b.Index)
}

// expire gives everything up if the session is over by the member's own clock. It says
// whether there is no session now.
func (m *member) expire() bool {
	if m.w.now < m.until {
		return false
	}
	if m.joined {
		m.lose("session over")
	}
	return !m.joined
}

// beatOn keeps the session.
func (m *member) beatOn() {
	m.beats++
	beats := m.beats
	m.w.after(&m.process, m.beat, func() {
		if m.beats == beats && m.joined && !m.expire() {
			m.beatOn()
			m.heartbeat()
		}
	})
}

// heartbeat says that the member is alive and what it follows.
func (m *member) heartbeat() {
	if m.epoch == 0 {
		return
	}
	session, epoch, sent := m.session, m.epoch, m.w.now
	if to, ok := m.coordinator(); ok && to != m.from {
		m.join() // The group has another coordinator.
	}
	m.request(func() groups.Request {
		return &groups.Heartbeat{Group: m.g.groups[m.group], Member: m.id, Epoch: epoch}
	}, func(r groups.Reply, known bool) {
		if m.session != session || m.expire() || !known {
			return
		}
		if r.Refusal != nil {
			if ends(r.Refusal) && epoch == m.epoch {
				m.lose("fenced")
				m.mistaken(r.Refusal)
			}
			return
		}
		m.until = max(m.until, sent+m.g.session)
		m.g.sawSession(m)
		if r.Value.(groups.HeartbeatAnswer).Epoch > max(epoch, m.epoch) && m.pending == nil {
			// The stream ought to bring it.
			if m.behind++; m.behind > 4 {
				m.behind = 0
				m.join()
			}
		}
	})
}

// request calls the group's coordinator, a unary call that the network may repeat.
func (m *member) request(request func() groups.Request, then func(r groups.Reply, known bool)) {
	w := m.w
	answered := false
	finish := func(r groups.Reply, known bool) {
		if !answered {
			answered = true
			then(r, known)
		}
	}
	to, ok := m.coordinator()
	if !ok {
		w.after(&m.process, w.between(20*time.Millisecond, 100*time.Millisecond), func() { finish(groups.Reply{}, false) })
		return
	}
	_, number := m.g.partition(m.group)
	w.send(&m.process, &to.process, func() {
		to.submit(number, request(), func(r groups.Reply) {
			w.sendOnce(&to.process, &m.process, func() { finish(r, true) })
		})
	})
	w.after(&m.process, 2*requestTimeout, func() { finish(groups.Reply{}, false) })
}

// leave ends the membership in good order; static members may keep what they have.
func (m *member) leave(keep bool, then func()) {
	if m.out || !m.up {
		return
	}
	m.out = true
	m.w.note(m.trace(), m.name, "leaves", number(keep))
	if m.w.chance(700) && !m.expire() {
		m.commit(m.readings)
	}
	id := m.id
	m.begins()
	m.call++
	life := m.life
	attempts := 3
	var ask func()
	ask = func() {
		m.request(func() groups.Request {
			return &groups.Leave{Group: m.g.groups[m.group], Member: id, Keep: keep}
		}, func(r groups.Reply, known bool) {
			attempts--
			switch {
			case m.life != life:
			case known && r.Refusal == nil, attempts == 0:
				then()
			default:
				ask()
			}
		})
	}
	ask()
}
