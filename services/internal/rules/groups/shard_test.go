package groups

import (
	"fmt"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

func TestShardFencesThenLoadsThenServes(t *testing.T) {
	s := NewShard(testConfig, 7)
	now := time.Unix(1000, 0)
	s.SetTopics(&fakeTopics{version: 1})
	s.Submit(1, &List{}, now)
	if e := s.Step(now); len(e.Replies) != 1 || e.Append != nil {
		t.Fatalf("without Begin: %+v", e)
	}
	s.Begin(3)
	s.Submit(2, &List{}, now)
	e := s.Step(now)
	if e.Append == nil || e.Append.Expected != -1 || e.Append.Epoch != 3 || len(e.Append.Records) != 1 ||
		*e.Append.Records[0].(*FenceRecord) != (FenceRecord{Epoch: 3, Node: 7}) {
		t.Fatalf("first step: %+v", e)
	}
	s.Appended(e.Append.Ticket, Done, 11, now)
	e = s.Step(now)
	if e.Load == nil || e.Load.End != 11 || len(e.Replies) != 0 {
		t.Fatalf("second step: %+v", e)
	}
	s.Load(e.Load.Ticket, []Record{&GroupRecord{Group: "g", Epoch: 4}, &FenceRecord{Epoch: 3, Node: 7}})
	if e := s.Step(now); len(e.Replies) != 0 || e.Check != nil {
		t.Fatalf("serves while it loads: %+v", e)
	}
	s.Loaded(e.Load.Ticket, Done, now)
	e = s.Step(now)
	if e.Check == nil || e.Check.Expected != 11 || len(e.Replies) != 0 {
		t.Fatalf("answers a read unchecked: %+v", e)
	}
	s.Checked(e.Check.Ticket, Done, now)
	e = s.Step(now)
	if len(e.Replies) != 1 || e.Replies[0].Ticket != 2 || fmt.Sprint(e.Replies[0].Value) != "[{g 0 0}]" {
		t.Fatalf("got %+v", e)
	}
}

func TestShardReadsAgainWhatLacksItsFence(t *testing.T) {
	s := NewShard(testConfig, 7)
	now := time.Unix(1000, 0)
	s.SetTopics(&fakeTopics{version: 1})
	s.Begin(3)
	s.Appended(s.Step(now).Append.Ticket, Done, 2, now)
	e := s.Step(now)
	s.Load(e.Load.Ticket, []Record{&FenceRecord{Epoch: 2}})
	s.Loaded(e.Load.Ticket, Done, now)
	if e := s.Step(now); e.Load != nil || e.Check != nil || e.Wake != now.Add(retryPause) {
		t.Fatalf("got %+v", e)
	}
	if e := s.Step(now.Add(retryPause)); e.Load == nil {
		t.Fatalf("got %+v", e)
	}
}

func TestRepliesWaitForTheAppend(t *testing.T) {
	r := newRig(t, testConfig)
	r.outcome = func(Effects) (Outcome, bool) { return Done, false }
	first := r.submit(joinOf("m1", "a"))
	r.step()
	second := r.submit(&Describe{Group: "g"})
	e := r.shard.Step(r.now)
	if e.Append != nil || e.Check != nil || len(e.Replies)+len(e.Assignments) > 0 || len(r.told[first]) > 0 {
		t.Fatalf("got %+v", e)
	}
	// Memory knows the member, and nobody hears of it.
	beat := r.submit(&Heartbeat{Group: "g", Member: "m1", Epoch: 1})
	if e := r.shard.Step(r.now); len(e.Replies) > 0 {
		t.Fatalf("got %+v", e)
	}
	r.outcome = nil
	a := &Append{Ticket: 4, Epoch: 1, Expected: r.log.end()}
	a.Records = append(a.Records, r.shard.records...)
	r.shard.Appended(r.shard.flight.ticket, r.log.append(a), r.log.end(), r.now)
	r.step()
	if len(r.told[first]) != 1 || r.replies[second].Value == nil || r.replies[beat].Value == nil {
		t.Fatalf("told %v, replies %v", r.told, r.replies)
	}
}

func TestHeartbeatsCostNothingWhileConfidenceLasts(t *testing.T) {
	r := newRig(t, testConfig)
	s, _ := r.join(joinOf("m1", "a"))
	appends, checks := len(r.appends), r.checks
	r.now = r.now.Add(time.Second)
	r.follow(s)
	if len(r.appends) != appends || r.checks != checks {
		t.Fatal("a heartbeat that changes nothing needs I/O")
	}
	for range 10 {
		r.pass(time.Second)
		r.follow(s)
	}
	if got := r.checks - checks; len(r.appends) != appends || got < 4 || got > 6 {
		t.Fatalf("%d checks in 11 s", got)
	}
}

func TestHeartbeatsAreRefusedWithoutConfidence(t *testing.T) {
	r := newRig(t, testConfig)
	s, a := r.join(joinOf("m1", "a"))
	r.outcome = func(Effects) (Outcome, bool) { return Refused, true }
	r.pass(4 * time.Second)
	r.follow(s)
	r.pass(4 * time.Second)
	r.refused(&Heartbeat{Group: "g", Member: "m1", Epoch: a.Epoch}, errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)
	r.outcome = nil
	r.pass(time.Second)
	r.follow(s)
	// What was refused has still been heard.
	r.pass(44 * time.Second)
	if r.closed[s] != nil {
		t.Fatal("the session has ended")
	}
}

func TestRefusedAppendIsTriedAgain(t *testing.T) {
	r := newRig(t, testConfig)
	tries := 0
	r.outcome = func(e Effects) (Outcome, bool) {
		if tries++; tries < 4 {
			return Refused, true
		}
		return Done, true
	}
	s := r.submit(joinOf("m1", "a"))
	r.step()
	beat := r.submit(&Heartbeat{Group: "g", Member: "m1", Epoch: 1})
	r.pass(250 * time.Millisecond)
	if len(r.told[s]) > 0 || len(r.replies) > 0 {
		t.Fatal("told before it is written")
	}
	r.pass(100 * time.Millisecond)
	r.checkHas(r.newest(s), "a0 a1 a2 a3")
	if r.replies[beat].Value == nil || len(r.log.records) != 4 {
		t.Fatalf("got %v, log %v", r.replies, r.log.records)
	}
}

func TestDoubtBeginsAnew(t *testing.T) {
	for name, written := range map[string]bool{"written": true, "lost": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, testConfig)
			s1, a1 := r.join(joinOf("m1", "a"))
			doubts := 1
			r.outcome = func(e Effects) (Outcome, bool) {
				if doubts == 0 {
					return Done, true
				}
				doubts--
				if written {
					r.log.append(e.Append)
				}
				return Doubtful, true
			}
			request := r.submit(&Commit{Group: "g", Member: "m1", Epoch: a1.Epoch, Offsets: []CommitOffset{{Partition: partition(1, 0), Offset: 5}}})
			join := r.submit(joinOf("m2", "a"))
			r.step()
			checkRefusal(t, r.replies[request].Refusal, errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)
			checkRefusal(t, r.replies[join].Refusal, errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)
			checkRefusal(t, r.closed[s1], errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)
			if r.closed[join] != nil {
				t.Fatal("a join is answered twice")
			}
			fetch := r.submit(&Fetch{Group: "g"})
			r.pass(time.Second)
			if got := len(r.replies[fetch].Value.([]*OffsetRecord)); got == 1 != written {
				t.Fatalf("%d offsets", got)
			}
			r.ok(&Heartbeat{Group: "g", Member: "m1", Epoch: a1.Epoch})
		})
	}
}

func TestFencedCoordinatorIsSilentUntilMetadataSpeaks(t *testing.T) {
	r := newRig(t, testConfig)
	s1, a1 := r.join(joinOf("m1", "a"))
	r.log.epoch = 2
	r.log.records = append(r.log.records, &FenceRecord{Epoch: 2})
	stale := r.submit(joinOf("m2", "a"))
	r.step()
	if r.told[stale] != nil {
		t.Fatal("a deposed coordinator assigns")
	}
	checkRefusal(t, r.closed[s1], errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)
	r.pass(time.Second)
	r.refused(&Heartbeat{Group: "g", Member: "m1", Epoch: a1.Epoch}, errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)
	appends := len(r.appends)
	r.pass(time.Hour)
	if len(r.appends) != appends {
		t.Fatal("a deposed coordinator goes on")
	}
	r.shard.Begin(1)
	r.step()
	if len(r.appends) != appends {
		t.Fatal("an old epoch revives it")
	}
	r.shard.Begin(3)
	r.step()
	r.ok(&Heartbeat{Group: "g", Member: "m1", Epoch: a1.Epoch})
	r.shard.End(refusal(errorsv1.Reason_REASON_NOT_COORDINATOR, "ask another"))
	r.step()
	r.refused(&List{}, errorsv1.Reason_REASON_NOT_COORDINATOR)
	r.shard.Begin(4)
	r.step()
	r.ok(&Heartbeat{Group: "g", Member: "m1", Epoch: a1.Epoch})
}

func TestLogThatLostItsEndIsReadAgain(t *testing.T) {
	r := newRig(t, testConfig)
	_, a := r.join(joinOf("m1", "a"))
	r.ok(&Commit{Group: "g", Member: "m1", Epoch: a.Epoch, Offsets: []CommitOffset{{Partition: partition(1, 0), Offset: 5}}})
	r.log.records = r.log.records[:len(r.log.records)-1]
	refused := r.commit("m1", a.Epoch, partition(1, 1), 5)
	checkRefusal(t, refused, errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)
	r.pass(time.Second)
	if got := r.ok(&Fetch{Group: "g"}).([]*OffsetRecord); len(got) != 0 {
		t.Fatalf("got %v", got)
	}
}

func TestEndRefusesWhatWaits(t *testing.T) {
	r := newRig(t, testConfig)
	s, _ := r.join(joinOf("m1", "a"))
	r.outcome = func(Effects) (Outcome, bool) { return Done, false }
	inRound := r.submit(joinOf("m2", "a"))
	r.step()
	queued := r.submit(&Describe{Group: "g"})
	flight := r.shard.flight.ticket
	why := refusal(errorsv1.Reason_REASON_NOT_COORDINATOR, "ask another")
	r.shard.End(why)
	r.step()
	if r.replies[inRound].Refusal != why || r.replies[queued].Refusal != why || r.closed[s] != why || len(r.closed) != 1 {
		t.Fatalf("replies %v, closed %v", r.replies, r.closed)
	}
	// The next tenure waits for the I/O of the last one, and makes nothing of it.
	r.shard.Begin(2)
	if e := r.shard.Step(r.now); e.Append != nil {
		t.Fatal("two I/Os at once")
	}
	r.outcome = nil
	r.shard.Appended(flight, Done, 99, r.now)
	r.step()
	if got := r.ok(&List{}).([]Summary); len(got) != 1 || got[0].Members != 1 {
		t.Fatalf("got %+v", got)
	}
}

func TestQueueIsBounded(t *testing.T) {
	config := testConfig
	config.Queue = 3
	r := newRig(t, config)
	r.outcome = func(Effects) (Outcome, bool) { return Done, false }
	r.submit(joinOf("m1", "a"))
	r.step()
	var tickets []Ticket
	for range 4 {
		tickets = append(tickets, r.submit(&List{}))
	}
	r.step()
	checkRefusal(t, r.replies[tickets[3]].Refusal, errorsv1.Reason_REASON_THROTTLED)
	if _, answered := r.replies[tickets[2]]; answered {
		t.Fatal("one that fits is refused")
	}
	r.pass(5 * time.Second)
	for _, ticket := range tickets[:3] {
		checkRefusal(t, r.replies[ticket].Refusal, errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE)
	}
}

func TestCommitsHoldNoSessionUp(t *testing.T) {
	config := testConfig
	config.Commits, config.Queue = 2, 3
	r := newRig(t, config)
	stream, a := r.join(joinOf("m1", "a"))
	r.follow(stream)
	commit := &Commit{Group: "g", Member: "m1", Epoch: a.Epoch, Offsets: []CommitOffset{{Partition: a.Partitions[0].Partition, TopicName: "a", LeaderEpoch: -1}}}
	var flight Effects
	r.outcome = func(e Effects) (Outcome, bool) {
		flight = e
		return Done, false
	}
	written := r.submit(commit)
	r.step()
	tickets := []Ticket{r.submit(commit), r.submit(commit), r.submit(commit)}
	beat, read := r.submit(&Heartbeat{Group: "g", Member: "m1", Epoch: a.Epoch}), r.submit(&Describe{Group: "g"})
	r.step()
	if reply, answered := r.replies[beat]; !answered || reply.Refusal != nil {
		t.Errorf("while commits are written, a heartbeat got %+v", reply)
	}
	checkRefusal(t, r.replies[tickets[2]].Refusal, errorsv1.Reason_REASON_THROTTLED)
	for _, ticket := range []Ticket{written, tickets[0], tickets[1], read} {
		if reply, answered := r.replies[ticket]; answered {
			t.Errorf("while commits are written, request %d got %+v", ticket, reply)
		}
	}
	r.outcome = nil
	r.serve(flight)
	r.step()
	for _, ticket := range append(tickets[:2], written, read) {
		if reply, answered := r.replies[ticket]; !answered || reply.Refusal != nil {
			t.Errorf("request %d got %+v", ticket, reply)
		}
	}
	for range 3 {
		r.ok(commit) // Those that a round has taken do not count.
	}
}

func TestRequestsWaitForTheTopics(t *testing.T) {
	s := NewShard(testConfig, 1)
	log := &fakeLog{}
	now := time.Unix(1000, 0)
	s.Begin(1)
	e := s.Step(now)
	s.Appended(e.Append.Ticket, log.append(e.Append), log.end(), now)
	e = s.Step(now)
	s.Load(e.Load.Ticket, log.records)
	s.Loaded(e.Load.Ticket, Done, now)
	s.Submit(1, joinOf("m1", "a"), now)
	if e := s.Step(now); e.Append != nil || len(e.Replies) > 0 {
		t.Fatalf("got %+v", e)
	}
	s.SetTopics(&fakeTopics{version: 1})
	if e := s.Step(now); e.Append == nil {
		t.Fatalf("got %+v", e)
	}
}

func TestSessionsBeginAnewAtLoad(t *testing.T) {
	r := newRig(t, testConfig)
	s1, a := r.join(joinOf("m1", "a"))
	r.follow(s1)
	r.pass(40 * time.Second)
	r.start(testConfig, 2)
	// A predecessor may have answered the member for as long as its confidence lasted.
	r.pass(49 * time.Second)
	if d := r.describe(); len(d.Members) != 1 {
		t.Fatal("the member is gone")
	}
	r.pass(time.Second)
	if d := r.describe(); len(d.Members) != 0 || d.State != Empty || d.Epoch <= a.Epoch {
		t.Fatalf("got %+v", d)
	}
}

func TestFailoverDisturbsNobody(t *testing.T) {
	r := newRig(t, testConfig)
	s1, _ := r.join(joinOf("m1", "a"))
	s2, _ := r.join(joinOf("m2", "a"))
	r.follow(s1)
	r.follow(s2)
	a1, end := r.newest(s1), r.log.end()
	r.start(testConfig, 2)
	for _, s := range []Ticket{s1, s2} {
		r.follow(s)
	}
	if d := r.describe(); d.State != Stable || r.log.end() != end+1 {
		t.Fatalf("state %v, %d records", d.State, r.log.end()-end)
	}
	rejoin := joinOf("m1", "a")
	rejoin.Epoch = a1.Epoch
	if _, a := r.join(rejoin); a.Epoch != a1.Epoch {
		t.Fatalf("got %+v", a)
	}
}

func TestFailoverAmidARebalance(t *testing.T) {
	r := newRig(t, testConfig)
	s1, _ := r.join(joinOf("m1", "a"))
	r.join(joinOf("m2", "a"))
	r.start(testConfig, 2)
	r.follow(s1)
	rejoin := joinOf("m2", "a")
	rejoin.Epoch = 2
	_, a := r.join(rejoin)
	r.checkHas(a, "a2 a3")
}

func TestTopicsThatChangedWhileNobodyCoordinated(t *testing.T) {
	r := newRig(t, testConfig)
	_, a := r.join(joinOf("m1", "a"))
	r.topics = r.topics.with(Topic{ID: topicID(1), Name: "a", Partitions: 6})
	r.start(testConfig, 2)
	a.Epoch = r.ok(&Heartbeat{Group: "g", Member: "m1", Epoch: a.Epoch}).(HeartbeatAnswer).Epoch
	rejoin := joinOf("m1", "a")
	rejoin.Epoch = a.Epoch
	_, a = r.join(rejoin)
	r.checkHas(a, "a0 a1 a2 a3 a4 a5")
}
