package groups

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// node is a process that holds a shard, which may believe to coordinate long after
// another does.
type node struct {
	shard *Shard
	id    int
	// io is the I/O that the shard has under way; nil for none.
	io *Effects
	// requests are what it has yet to answer.
	requests map[Ticket]*pending
}

// pending is a request that was submitted.
type pending struct {
	ticket Ticket
	client *client
	// life is the client's at that time: an answer to an earlier one is ignored.
	life    int
	request Request
	sent    time.Time
	// allowed is what a fetch may return.
	allowed map[Partition]map[int64]bool
}

// client is a program that is a member, as the SDK is: it counts its session from when it
// sent the last heartbeat that was answered, or before there is one, the first Join.
type client struct {
	name     string
	instance string
	life     int
	member   MemberID // Empty while it is none.
	epoch    Epoch
	owns     map[Partition]Epoch
	proven   time.Time
	// stream and inbox are the newest Join's, and what has come of it.
	node     *node
	stream   Ticket
	inbox    []Assignment
	stubborn bool // Never applies what takes partitions away.
}

const session = 10 * time.Second

// world is a group, its clients, and the coordinators, of which the log knows the right one.
type world struct {
	t       *rapid.T
	now     time.Time
	log     *fakeLog
	topics  *fakeTopics
	epoch   CoordinatorEpoch
	nodes   []*node
	clients []*client
	tickets Ticket
	lives   int
	// late are messages that have not arrived.
	late []func()
	// lost are appends whose coordinator has given up on them.
	lost []*Append
	// committed are the values that each offset may have: one once it was read or
	// acknowledged, and those of commits whose outcome nobody knows.
	committed map[Partition]map[int64]bool
	unknown   map[Partition]map[int64]bool
	value     int64
	checked   int
	epochs    map[GroupID]Epoch
	logged    map[Partition]int64
}

func newWorld(t *rapid.T) *world {
	w := &world{
		t: t, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), log: &fakeLog{},
		topics: &fakeTopics{version: 1, topics: []Topic{
			{ID: topicID(1), Name: "a", Partitions: 3}, {ID: topicID(2), Name: "b", Partitions: 2},
		}},
		committed: map[Partition]map[int64]bool{}, unknown: map[Partition]map[int64]bool{}, epochs: map[GroupID]Epoch{}, logged: map[Partition]int64{},
	}
	for _, name := range []string{"x", "y", "z"} {
		w.clients = append(w.clients, &client{name: name})
	}
	w.clients = append(w.clients, &client{name: "s", instance: "i"}, &client{name: "t", instance: "i"})
	w.takeOver()
	return w
}

func (w *world) takeOver() {
	w.epoch++
	n := &node{shard: NewShard(testConfig, 1), id: int(w.epoch), requests: map[Ticket]*pending{}}
	n.shard.SetTopics(w.topics)
	n.shard.Begin(w.epoch)
	w.nodes = append(w.nodes, n)
	if len(w.nodes) > 2 {
		w.crash(0)
	}
}

// crash ends a process: what it was asked may or may not have happened.
func (w *world) crash(i int) {
	n := w.nodes[i]
	w.nodes = slices.Delete(w.nodes, i, i+1)
	if n.io != nil && n.io.Append != nil {
		w.lost = append(w.lost, n.io.Append)
	}
	for _, ticket := range slices.Sorted(maps.Keys(n.requests)) {
		w.doubt(n.requests[ticket])
	}
}

// current returns the newest coordinator.
func (w *world) current() *node {
	if len(w.nodes) == 0 {
		w.takeOver()
	}
	return w.nodes[len(w.nodes)-1]
}

// step lets the shards do what they can without I/O.
func (w *world) step() {
	for _, n := range w.nodes {
		e := n.shard.Step(w.now)
		if e.Append != nil || e.Check != nil || e.Load != nil {
			if n.io != nil {
				w.t.Fatalf("coordinator %d has two I/Os at once", n.id)
			}
			n.io = &e
		}
		for _, reply := range e.Replies {
			p := n.requests[reply.Ticket]
			if p == nil {
				w.t.Fatalf("coordinator %d answers %d twice, or unasked", n.id, reply.Ticket)
			}
			delete(n.requests, reply.Ticket)
			w.answered(n, p, reply)
		}
		for _, a := range e.Assignments {
			w.checkLogged(n, a.Member, a.Epoch, a.Partitions)
			delete(n.requests, a.Stream)
			for _, c := range w.clients {
				if c.node == n && c.stream == a.Stream {
					c.inbox = append(c.inbox, a)
				}
			}
		}
		for _, closed := range e.Closed {
			for _, c := range w.clients {
				if c.node == n && c.stream == closed.Stream {
					c.node, c.stream, c.inbox = nil, 0, nil
				}
			}
		}
	}
	w.checkLog()
	w.checkOwners()
}

// io carries out what a shard has asked for, as the outcome says.
func (w *world) io(n *node, outcome Outcome, applied bool) {
	if n.io == nil {
		return
	}
	e := n.io
	n.io = nil
	switch {
	case e.Append != nil:
		if outcome == Done || applied {
			if got := w.log.append(e.Append); got != Done {
				outcome = got
			}
		} else if outcome == Doubtful {
			w.lost = append(w.lost, e.Append)
		}
		n.shard.Appended(e.Append.Ticket, outcome, w.log.end(), w.now)
	case e.Check != nil:
		if outcome == Done {
			outcome = w.log.check(e.Check)
		}
		n.shard.Checked(e.Check.Ticket, outcome, w.now)
	case e.Load != nil:
		end := min(e.Load.End, w.log.end())
		if outcome != Done {
			end /= 2
		}
		n.shard.Load(e.Load.Ticket, w.log.records[:end])
		n.shard.Loaded(e.Load.Ticket, outcome, w.now)
	}
	w.step()
}

func (w *world) submit(n *node, p *pending) Ticket {
	w.tickets++
	p.ticket = w.tickets
	n.requests[w.tickets] = p
	n.shard.Submit(w.tickets, p.request, w.now)
	return w.tickets
}

// send submits a request now or later, and perhaps twice.
func (w *world) send(c *client, request Request) {
	// Who has a coordinator seldom asks another, even if it is none any more.
	sent, life, n := w.now, c.life, c.node
	if n == nil || !slices.Contains(w.nodes, n) || rapid.IntRange(0, 7).Draw(w.t, "stray") == 0 {
		n = w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(w.t, "coordinator")]
	}
	deliver := func() {
		if !slices.Contains(w.nodes, n) {
			w.doubt(&pending{client: c, life: life, request: request})
			return
		}
		p := &pending{client: c, life: life, request: request, sent: sent}
		if fetch, ok := request.(*Fetch); ok {
			p.allowed = map[Partition]map[int64]bool{}
			for _, q := range fetch.Partitions {
				p.allowed[q] = maps.Clone(w.committed[q])
			}
		}
		ticket := w.submit(n, p)
		if _, join := request.(*Join); join && c.life == life {
			c.node, c.stream, c.inbox = n, ticket, nil
		}
	}
	switch _, commit := request.(*Commit); {
	case rapid.IntRange(0, 3).Draw(w.t, "delay") == 0:
		w.late = append(w.late, deliver)
	case !commit && rapid.IntRange(0, 5).Draw(w.t, "repeat") == 0:
		w.late = append(w.late, deliver)
		deliver()
	default:
		deliver()
	}
}

// doubt notes that nobody knows what became of a request.
func (w *world) doubt(p *pending) {
	if commit, ok := p.request.(*Commit); ok {
		for _, o := range commit.Offsets {
			w.possible(o.Partition, o.Offset)
		}
	}
}

func (w *world) possible(p Partition, value int64) {
	if w.unknown[p] == nil {
		w.unknown[p] = map[int64]bool{}
	}
	w.unknown[p][value] = true
}

func (w *world) answered(n *node, p *pending, reply Reply) {
	c := p.client
	mine := c.life == p.life
	switch r := p.request.(type) {
	case *Heartbeat:
		switch {
		case reply.Refusal == nil:
			answer := reply.Value.(HeartbeatAnswer)
			w.checkLogged(n, r.Member, answer.Epoch, nil)
			if mine && c.proven.Before(p.sent) {
				c.proven = p.sent
			}
		case reply.Refusal.Reason != errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE && mine:
			w.lose(c)
		}
	case *Join:
		if c.node == n && c.stream == p.ticket {
			c.node, c.stream, c.inbox = nil, 0, nil
		}
		if reply.Refusal != nil && reply.Refusal.Reason != errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE && mine {
			w.lose(c)
		}
	case *Commit:
		for i, o := range r.Offsets {
			switch {
			case reply.Refusal != nil && reply.Refusal.Reason == errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE:
				w.possible(o.Partition, o.Offset)
			case reply.Refusal == nil && reply.Value.(CommitAnswer).Refusals[i] == nil:
				w.committed[o.Partition] = map[int64]bool{o.Offset: true}
			}
		}
	case *Fetch:
		if reply.Refusal != nil {
			return
		}
		got := map[Partition]int64{}
		for _, o := range reply.Value.([]*OffsetRecord) {
			got[o.Partition] = o.Offset
		}
		for _, q := range r.Partitions {
			value, found := got[q]
			before, after, unknown := p.allowed[q], w.committed[q], w.unknown[q]
			if !found && len(before) == 0 || before[value] || after[value] || unknown[value] || w.underWay(q, value) {
				continue
			}
			w.t.Fatalf("coordinator %d: partition %v is at %d (%v), of %v, %v, %v", n.id, q, value, found, before, after, unknown)
		}
	}
}

// underWay reports whether a commit of that value is not answered.
func (w *world) underWay(p Partition, value int64) bool {
	for _, n := range w.nodes {
		for _, request := range n.requests {
			if commit, ok := request.request.(*Commit); ok && slices.ContainsFunc(commit.Offsets, func(o CommitOffset) bool {
				return o.Partition == p && o.Offset == value
			}) {
				return true
			}
		}
	}
	return false
}

// lose is what a client does that is told, or knows, that it is no member any more.
func (w *world) lose(c *client) {
	w.lives++
	*c = client{name: c.name, instance: c.instance, life: w.lives, stubborn: c.stubborn}
}

// pass lets time go by: clients stop by their own clock before anybody else acts.
func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	for _, c := range w.clients {
		if c.member != "" && !w.now.Before(c.proven.Add(session)) {
			w.lose(c)
		}
	}
	w.step()
}

func (w *world) join(c *client) {
	w.name(c)
	w.send(c, &Join{
		Group: "g", Member: c.member, Epoch: c.epoch, Instance: c.instance, Subscription: c.subscription(),
		SessionTimeout: session, RebalanceTimeout: 4 * time.Second,
	})
}

// name makes a client that is no member one to be. Its session begins when it first asks
// to be admitted.
func (w *world) name(c *client) {
	if c.member == "" {
		w.lives++
		c.life, c.member, c.epoch, c.owns = w.lives, MemberID(fmt.Sprint(c.name, w.lives)), 0, map[Partition]Epoch{}
		c.proven = w.now
	}
}

func (c *client) subscription() Subscription {
	switch c.name {
	case "x":
		return Subscription{Topics: []string{"a", "b"}}
	case "y":
		return Subscription{Pattern: ".*"}
	default:
		return Subscription{Topics: []string{"a"}}
	}
}

// apply has a client follow the next assignment that it was told.
func (w *world) apply(c *client) {
	if len(c.inbox) == 0 {
		return
	}
	a := c.inbox[0]
	c.inbox = c.inbox[1:]
	if a.Member != c.member || a.Epoch <= c.epoch {
		return
	}
	next := map[Partition]Epoch{}
	for _, o := range a.Partitions {
		next[o.Partition] = o.Since
	}
	if c.stubborn {
		for p := range c.owns {
			if _, kept := next[p]; !kept {
				return
			}
		}
	}
	c.epoch, c.owns = a.Epoch, next
	w.checkOwners()
}

func (w *world) heartbeat(c *client) {
	if c.member != "" && c.epoch > 0 {
		w.send(c, &Heartbeat{Group: "g", Member: c.member, Epoch: c.epoch})
	}
}

func (w *world) commit(c *client) {
	if len(c.owns) == 0 {
		return
	}
	p := rapid.SampledFrom(slices.SortedFunc(maps.Keys(c.owns), comparePartitions)).Draw(w.t, "partition")
	w.value++
	w.send(c, &Commit{Group: "g", Member: c.member, Epoch: c.epoch, Sequence: CommitSequence(w.value), Offsets: []CommitOffset{
		{Partition: p, TopicName: "t", Offset: w.value, LeaderEpoch: -1},
	}})
}

// checkOwners asserts that no two clients read one partition.
func (w *world) checkOwners() {
	owner := map[Partition]*client{}
	for _, c := range w.clients {
		for p := range c.owns {
			if other := owner[p]; other != nil {
				w.t.Fatalf("%s and %s both read %v", other.member, c.member, p)
			}
			owner[p] = c
		}
	}
}

// checkLogged asserts that the log holds the assignment that somebody hears of.
func (w *world) checkLogged(n *node, member MemberID, epoch Epoch, assigned []Owned) {
	for _, r := range w.log.records {
		if m, ok := r.(*MemberRecord); ok && m.Member == member && m.Epoch == epoch &&
			(assigned == nil || slices.Equal(m.Assigned, assigned)) {
			return
		}
	}
	w.t.Fatalf("coordinator %d tells of epoch %d of %s, which is not in the log", n.id, epoch, member)
}

// checkLog asserts that epochs only rise along the log, and offsets too: clients commit
// ever higher ones, and some of that arrives late.
func (w *world) checkLog() {
	for ; w.checked < len(w.log.records); w.checked++ {
		switch r := w.log.records[w.checked].(type) {
		case *GroupRecord:
			if r.Epoch < w.epochs[r.Group] {
				w.t.Fatalf("group epoch falls from %d to %d", w.epochs[r.Group], r.Epoch)
			}
			w.epochs[r.Group] = r.Epoch
		case *MemberRecord:
			w.epochs[r.Group] = max(r.Epoch, w.epochs[r.Group])
		case *OffsetRecord:
			if r.Offset < w.logged[r.Partition] {
				w.t.Fatalf("the offset of %v falls from %d to %d", r.Partition, w.logged[r.Partition], r.Offset)
			}
			w.logged[r.Partition] = r.Offset
		}
	}
}

// checkFold asserts that memory is what the log says.
func (w *world) checkFold(s *Shard) {
	loaded := newState()
	for _, r := range w.log.records {
		loaded.fold(r)
	}
	if got, want := durable(&s.state), durable(&loaded); !reflect.DeepEqual(got, want) {
		w.t.Fatalf("memory is %+v, the log %+v", got, want)
	}
}

type durableGroup struct {
	Record     GroupRecord
	Epoch      Epoch
	Members    []MemberRecord
	Superseded []bool
	Offsets    map[Partition]OffsetRecord
}

// durable is what of a state is in the log.
func durable(s *state) map[GroupID]durableGroup {
	groups := map[GroupID]durableGroup{}
	for id, g := range s.groups {
		d := durableGroup{Record: *g.record, Epoch: g.epoch, Offsets: map[Partition]OffsetRecord{}}
		for _, m := range g.members {
			d.Members = append(d.Members, *m.MemberRecord)
			d.Superseded = append(d.Superseded, m.superseded)
		}
		for p, o := range g.offsets {
			d.Offsets[p] = *o
		}
		groups[id] = d
	}
	return groups
}

func (w *world) act() {
	c := w.clients[rapid.IntRange(0, len(w.clients)-1).Draw(w.t, "client")]
	n := w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(w.t, "node")]
	switch rapid.SampledFrom([]string{
		"join", "join", "apply", "apply", "apply", "heartbeat", "heartbeat", "heartbeat", "commit", "commit", "fetch",
		"io", "io", "io", "io", "io", "io", "io", "refused", "doubtful", "half", "late", "late", "lost",
		"time", "time", "time", "silence", "leave", "keep", "crash client", "stubborn", "detach",
		"take over", "end", "crash", "topics", "calm", "calm", "calm",
	}).Draw(w.t, "what") {
	case "join":
		w.join(c)
	case "apply":
		w.apply(c)
	case "heartbeat":
		w.heartbeat(c)
	case "commit":
		w.commit(c)
	case "fetch":
		w.send(c, &Fetch{Group: "g", Partitions: []Partition{partition(1, 0), partition(1, 1), partition(1, 2), partition(2, 0)}})
	case "io":
		w.io(n, Done, true)
	case "refused":
		w.io(n, Refused, false)
	case "doubtful":
		w.io(n, Doubtful, true)
	case "half":
		w.io(n, Doubtful, false)
	case "late":
		if len(w.late) > 0 {
			i := rapid.IntRange(0, len(w.late)-1).Draw(w.t, "message")
			deliver := w.late[i]
			w.late = slices.Delete(w.late, i, i+1)
			deliver()
		}
	case "lost":
		if len(w.lost) > 0 {
			w.log.append(w.lost[0])
			w.lost = w.lost[1:]
		}
	case "time":
		w.pass(time.Second)
	case "silence":
		w.pass(rapid.SampledFrom([]time.Duration{3 * time.Second, 6 * time.Second, session}).Draw(w.t, "silence"))
	case "leave", "keep":
		if c.member != "" {
			keep := rapid.Bool().Draw(w.t, "keep")
			request := &Leave{Group: "g", Member: c.member, Keep: keep}
			w.lose(c)
			w.send(c, request)
		}
	case "crash client":
		w.lose(c)
	case "stubborn":
		c.stubborn = !c.stubborn
	case "detach":
		if c.node != nil {
			stream, member, at := c.stream, c.member, c.node
			c.node, c.stream, c.inbox = nil, 0, nil
			w.tickets++
			at.shard.Submit(w.tickets, &Detach{Group: "g", Member: member, Stream: stream}, w.now)
		}
	case "take over":
		w.takeOver()
	case "end":
		if len(w.nodes) > 1 {
			w.nodes[0].shard.End(unavailable("it has moved"))
		}
	case "crash":
		w.crash(slices.Index(w.nodes, n))
		w.current()
	case "calm":
		w.calm()
	case "topics":
		w.topics = w.topics.with(Topic{ID: topicID(2), Name: "b", Partitions: int32(rapid.IntRange(1, 4).Draw(w.t, "partitions"))})
		for _, n := range w.nodes {
			n.shard.SetTopics(w.topics)
		}
	}
	w.step()
}

// calm has everybody get on for a while, but for coordinators that are cut off from the
// log.
func (w *world) calm() {
	served := w.nodes
	if rapid.Bool().Draw(w.t, "cut off") {
		served = w.nodes[len(w.nodes)-1:]
	}
	if rapid.Bool().Draw(w.t, "later") {
		w.pass(2 * time.Second)
	}
	for _, c := range w.clients {
		for len(c.inbox) > 0 && !c.stubborn {
			w.apply(c)
		}
		if c.node == nil {
			w.join(c)
		}
		w.heartbeat(c)
		w.commit(c)
	}
	for _, n := range served {
		for n.io != nil {
			w.io(n, Done, true)
		}
	}
}

// quiet ends all trouble, and has everybody come to terms.
func (w *world) quiet() {
	for len(w.nodes) > 1 {
		w.crash(0)
	}
	n := w.current()
	if n.shard.phase <= deposed || n.shard.epoch < w.epoch {
		w.takeOver()
		w.crash(0)
		n = w.current()
	}
	w.late, w.lost = nil, nil
	for _, c := range w.clients {
		c.stubborn = false
		if c.name == "t" {
			w.lose(c) // Two processes with one instance never come to terms.
		}
	}
	drain := func() {
		for n.io != nil {
			w.io(n, Done, true)
		}
	}
	ask := func(c *client, request Request) Ticket {
		ticket := w.submit(n, &pending{client: c, life: c.life, request: request, sent: w.now})
		w.step()
		drain()
		return ticket
	}
	for range 60 {
		w.pass(time.Second)
		drain()
		for _, c := range w.clients {
			switch {
			case c.name == "t":
			case c.node != n:
				w.name(c)
				w.tickets++
				c.node, c.stream, c.inbox = n, w.tickets, nil
				n.requests[w.tickets] = &pending{ticket: w.tickets, client: c, life: c.life, sent: w.now, request: &Join{
					Group: "g", Member: c.member, Epoch: c.epoch, Instance: c.instance, Subscription: c.subscription(),
					SessionTimeout: session, RebalanceTimeout: 4 * time.Second,
				}}
				n.shard.Submit(w.tickets, n.requests[w.tickets].request, w.now)
				w.step()
				drain()
			default:
				for len(c.inbox) > 0 {
					w.apply(c)
				}
				if c.epoch > 0 {
					ask(c, &Heartbeat{Group: "g", Member: c.member, Epoch: c.epoch})
				}
			}
		}
	}
	w.checkFold(n.shard)
	g := n.shard.groups["g"]
	if g == nil || g.state() != Stable {
		w.t.Fatalf("the group is not stable: %+v", g)
	}
	owned := 0
	for _, c := range w.clients {
		owned += len(c.owns)
	}
	want := 0
	for _, t := range w.topics.topics {
		want += int(t.Partitions)
	}
	if owned != want {
		w.t.Fatalf("%d of %d partitions are read", owned, want)
	}
}

func TestGroupsUnderTrouble(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 250).Draw(t, "steps") {
			w.act()
			for _, n := range w.nodes {
				if n.shard.phase == serving && len(n.shard.records) == 0 && n.shard.epoch == w.log.epoch && n.shard.end == w.log.end() {
					w.checkFold(n.shard)
				}
			}
		}
		w.quiet()
	})
}
