package groups

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// fakeTopics are topics in ascending order of their names.
type fakeTopics struct {
	version int64
	topics  []Topic
	deleted []cluster.TopicID
}

func (f *fakeTopics) ByName(name string) (Topic, bool) {
	i := slices.IndexFunc(f.topics, func(t Topic) bool { return t.Name == name })
	if i < 0 {
		return Topic{}, false
	}
	return f.topics[i], true
}

func (f *fakeTopics) ByID(id cluster.TopicID) (Topic, bool) {
	i := slices.IndexFunc(f.topics, func(t Topic) bool { return t.ID == id })
	if i < 0 {
		return Topic{}, false
	}
	return f.topics[i], true
}

func (f *fakeTopics) Deleted(id cluster.TopicID) bool { return slices.Contains(f.deleted, id) }

func (f *fakeTopics) All(yield func(Topic) bool) {
	for _, t := range f.topics {
		if !yield(t) {
			return
		}
	}
}

func (f *fakeTopics) Version() int64 { return f.version }

// with returns the topics with one more, or one that is different.
func (f *fakeTopics) with(t Topic) *fakeTopics {
	next := &fakeTopics{version: f.version + 1, deleted: f.deleted}
	for _, old := range f.topics {
		if old.Name != t.Name {
			next.topics = append(next.topics, old)
		}
	}
	next.topics = append(next.topics, t)
	slices.SortFunc(next.topics, compareNames)
	return next
}

// without returns the topics without one, which is deleted.
func (f *fakeTopics) without(name string) *fakeTopics {
	next := &fakeTopics{version: f.version + 1, deleted: slices.Clone(f.deleted)}
	for _, old := range f.topics {
		if old.Name != name {
			next.topics = append(next.topics, old)
		} else {
			next.deleted = append(next.deleted, old.ID)
		}
	}
	return next
}

func topicID(n byte) cluster.TopicID { return cluster.TopicID{15: n} }

func partition(topic byte, index int32) Partition {
	return Partition{Topic: topicID(topic), Index: index}
}

// fakeLog is the log as its leader sees it.
type fakeLog struct {
	epoch   CoordinatorEpoch
	records []Record
}

func (l *fakeLog) end() int64 { return int64(len(l.records)) }

func (l *fakeLog) append(a *Append) Outcome {
	switch {
	case a.Epoch < l.epoch, a.Expected != -1 && (a.Epoch != l.epoch || a.Expected != l.end()):
		return Fenced
	}
	l.epoch = a.Epoch
	l.records = append(l.records, a.Records...)
	return Done
}

func (l *fakeLog) check(c *Check) Outcome {
	if c.Epoch != l.epoch || c.Expected != l.end() {
		return Fenced
	}
	return Done
}

var testConfig = Config{
	MembersPerGroup: 10, Groups: 20, OffsetsPerGroup: 50, Queue: 1000, Commits: 900, RoundBytes: 1 << 18,
	HeartbeatInterval: 3 * time.Second, Confidence: 5 * time.Second, CheckInterval: 2 * time.Second,
	Retention: 7 * 24 * time.Hour, Aging: time.Minute,
}

// rig drives one shard, whose I/O succeeds at once unless outcome says otherwise.
type rig struct {
	t       testing.TB
	now     time.Time
	log     *fakeLog
	topics  *fakeTopics
	shard   *Shard
	ticket  Ticket
	replies map[Ticket]Reply
	told    map[Ticket][]Assignment
	closed  map[Ticket]*Refusal
	// outcome, if set, is asked instead of the log; it may also stop the I/O for good.
	outcome func(Effects) (outcome Outcome, answered bool)
	appends []*Append
	checks  int
	wake    time.Time
}

func newRig(t testing.TB, config Config) *rig {
	r := &rig{
		t: t, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), log: &fakeLog{},
		topics: &fakeTopics{version: 1, topics: []Topic{
			{ID: topicID(9), Name: "__consumer_offsets", Partitions: 50},
			{ID: topicID(1), Name: "a", Partitions: 4},
			{ID: topicID(2), Name: "b", Partitions: 2},
		}},
		replies: map[Ticket]Reply{}, told: map[Ticket][]Assignment{}, closed: map[Ticket]*Refusal{},
	}
	r.start(config, 1)
	return r
}

// start has a new shard take the log over.
func (r *rig) start(config Config, epoch CoordinatorEpoch) {
	r.shard = NewShard(config, 1)
	r.shard.SetTopics(r.topics)
	r.shard.Begin(epoch)
	r.step()
}

// step has the shard do all that it can.
func (r *rig) step() {
	r.t.Helper()
	for range 1000 {
		e := r.shard.Step(r.now)
		r.wake = e.Wake
		for _, reply := range e.Replies {
			if _, again := r.replies[reply.Ticket]; again {
				r.t.Fatalf("request %d is answered twice", reply.Ticket)
			}
			r.replies[reply.Ticket] = reply
		}
		for _, a := range e.Assignments {
			r.told[a.Stream] = append(r.told[a.Stream], a)
		}
		for _, c := range e.Closed {
			if c.Refusal == nil {
				r.t.Fatalf("stream %d ends without a reason", c.Stream)
			}
			r.closed[c.Stream] = c.Refusal
		}
		if e.Append == nil && e.Check == nil && e.Load == nil {
			return
		}
		if !r.serve(e) {
			return
		}
	}
	r.t.Fatal("the shard does not come to rest")
}

func (r *rig) serve(e Effects) bool {
	outcome, answered, decided := Done, true, false
	if r.outcome != nil {
		outcome, answered = r.outcome(e)
		decided = outcome != Done
	}
	if !answered {
		return false
	}
	switch {
	case e.Append != nil:
		r.appends = append(r.appends, e.Append)
		if !decided {
			outcome = r.log.append(e.Append)
		}
		r.shard.Appended(e.Append.Ticket, outcome, r.log.end(), r.now)
	case e.Check != nil:
		r.checks++
		if !decided {
			outcome = r.log.check(e.Check)
		}
		r.shard.Checked(e.Check.Ticket, outcome, r.now)
	case e.Load != nil:
		for _, record := range r.log.records[:e.Load.End] {
			r.shard.Load(e.Load.Ticket, []Record{record})
		}
		r.shard.Loaded(e.Load.Ticket, outcome, r.now)
	}
	return true
}

// pass lets time go by, waking the shard when it asks for it.
func (r *rig) pass(d time.Duration) {
	r.t.Helper()
	until := r.now.Add(d)
	for range 100000 {
		if r.wake.IsZero() || r.wake.After(until) {
			r.now = until
			r.step()
			return
		}
		if r.wake.After(r.now) {
			r.now = r.wake
		}
		r.step()
	}
	r.t.Fatal("the shard wakes without end")
}

func (r *rig) submit(request Request) Ticket {
	r.ticket++
	r.shard.Submit(r.ticket, request, r.now)
	return r.ticket
}

func (r *rig) ask(request Request) Reply {
	r.t.Helper()
	ticket := r.submit(request)
	r.step()
	reply, ok := r.replies[ticket]
	if !ok {
		r.t.Fatalf("%#v is not answered", request)
	}
	return reply
}

func (r *rig) ok(request Request) any {
	r.t.Helper()
	reply := r.ask(request)
	if reply.Refusal != nil {
		r.t.Fatalf("%#v: %v: %v", request, reply.Refusal.Reason, reply.Refusal)
	}
	return reply.Value
}

func (r *rig) refused(request Request, reason errorsv1.Reason) string {
	r.t.Helper()
	reply := r.ask(request)
	checkRefusal(r.t, reply.Refusal, reason)
	return reply.Refusal.Message
}

func checkRefusal(t testing.TB, got *Refusal, want errorsv1.Reason) {
	t.Helper()
	if got == nil || got.Reason != want || got.Message == "" {
		t.Fatalf("got %+v, want %v", got, want)
	}
}

func joinOf(member MemberID, topics ...string) *Join {
	return &Join{
		Group: "g", Member: member, Subscription: Subscription{Topics: topics}, Assignor: Sticky,
		ClientID: "test", ClientHost: "here", SessionTimeout: 45 * time.Second, RebalanceTimeout: 20 * time.Second,
	}
}

// join opens a stream, and returns it with what it was told.
func (r *rig) join(request *Join) (Ticket, Assignment) {
	r.t.Helper()
	ticket := r.submit(request)
	r.step()
	if reply, refused := r.replies[ticket]; refused {
		r.t.Fatalf("join: %+v", reply.Refusal)
	}
	return ticket, r.newest(ticket)
}

func (r *rig) newest(stream Ticket) Assignment {
	r.t.Helper()
	told := r.told[stream]
	if len(told) == 0 {
		r.t.Fatalf("stream %d was told nothing", stream)
	}
	return told[len(told)-1]
}

// follow has a member apply and confirm what its stream was told last.
func (r *rig) follow(stream Ticket) HeartbeatAnswer {
	r.t.Helper()
	a := r.newest(stream)
	return r.ok(&Heartbeat{Group: a.Group, Member: a.Member, Epoch: a.Epoch}).(HeartbeatAnswer)
}

func (r *rig) describe() *Description {
	r.t.Helper()
	return r.ok(&Describe{Group: "g"}).(*Description)
}

func (r *rig) commit(member MemberID, epoch Epoch, p Partition, offset int64) *Refusal {
	r.t.Helper()
	return r.commitNumbered(member, epoch, 0, p, offset)
}

func (r *rig) commitNumbered(member MemberID, epoch Epoch, sequence CommitSequence, p Partition, offset int64) *Refusal {
	r.t.Helper()
	reply := r.ask(&Commit{Group: "g", Member: member, Epoch: epoch, Sequence: sequence, Offsets: []CommitOffset{
		{Partition: p, TopicName: "a", Offset: offset, LeaderEpoch: -1},
	}})
	if reply.Refusal != nil {
		return reply.Refusal
	}
	return reply.Value.(CommitAnswer).Refusals[0]
}

// has renders partitions: "a0 a1".
func (r *rig) has(owned []Owned) string {
	var words []string
	for _, o := range owned {
		t, _ := r.topics.ByID(o.Topic)
		words = append(words, fmt.Sprint(t.Name, o.Index))
	}
	return strings.Join(words, " ")
}

func (r *rig) checkHas(a Assignment, want string) {
	r.t.Helper()
	if got := r.has(a.Partitions); got != want {
		r.t.Fatalf("%s has %q in epoch %d, want %q", a.Member, got, a.Epoch, want)
	}
}
