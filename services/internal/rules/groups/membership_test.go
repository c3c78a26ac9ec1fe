package groups

import (
	"fmt"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

func TestJoinGetsEverythingAtOnce(t *testing.T) {
	r := newRig(t, testConfig)
	_, a := r.join(joinOf("m1", "a", "b", "nowhere"))
	r.checkHas(a, "a0 a1 a2 a3 b0 b1")
	if a.Epoch != 1 || a.Members != 1 || a.GroupPartitions != 6 || a.Awaited != 0 || a.Assignor != Sticky ||
		a.SessionTimeout != 45*time.Second || a.HeartbeatInterval != 3*time.Second {
		t.Fatalf("got %+v", a)
	}
	if len(a.Missing) != 1 || a.Missing[0] != "nowhere" {
		t.Fatalf("missing %v", a.Missing)
	}
}

func TestPartitionMovesOnlyOnceItIsGivenUp(t *testing.T) {
	r := newRig(t, testConfig)
	s1, a1 := r.join(joinOf("m1", "a"))
	r.follow(s1)
	s2, a2 := r.join(joinOf("m2", "a"))
	r.checkHas(a2, "")
	if a2.Awaited != 2 || a2.Members != 2 {
		t.Fatalf("got %+v", a2)
	}
	r.checkHas(r.newest(s1), "a0 a1")
	if r.newest(s1).Epoch <= a1.Epoch {
		t.Fatal("the epoch does not rise")
	}
	// A sign of life under the old epoch confirms nothing.
	answer := r.ok(&Heartbeat{Group: "g", Member: "m1", Epoch: a1.Epoch}).(HeartbeatAnswer)
	if answer.Epoch != r.newest(s1).Epoch {
		t.Fatalf("answered epoch %d", answer.Epoch)
	}
	r.checkHas(r.newest(s2), "")
	if d := r.describe(); d.State != Reconciling || r.has(d.Members[0].Revoking) != "a2 a3" || len(d.Members[1].Awaited) != 2 {
		t.Fatalf("got %+v", d)
	}
	r.follow(s1)
	r.checkHas(r.newest(s2), "a2 a3")
	r.follow(s2)
	if d := r.describe(); d.State != Stable {
		t.Fatalf("got %+v", d)
	}
}

func TestJoinsOfOneRoundComputeOneTarget(t *testing.T) {
	r := newRig(t, testConfig)
	for i := range 8 {
		r.submit(joinOf(MemberID(fmt.Sprint("m", i)), "a"))
	}
	r.step()
	targets := 0
	for _, record := range r.log.records {
		if _, ok := record.(*GroupRecord); ok {
			targets++
		}
	}
	if d := r.describe(); targets != 1 || len(d.Members) != 8 {
		t.Fatalf("%d targets, %+v", targets, d)
	}
}

func TestRejoinTakesTheStreamOver(t *testing.T) {
	r := newRig(t, testConfig)
	s1, a1 := r.join(joinOf("m1", "a"))
	again := joinOf("m1", "a")
	again.Epoch = a1.Epoch
	writes := len(r.appends)
	s2, a2 := r.join(again)
	if a2.Epoch != a1.Epoch || len(r.appends) != writes {
		t.Fatalf("got %+v, %d appends", a2, len(r.appends)-writes)
	}
	checkRefusal(t, r.closed[s1], errorsv1.Reason_REASON_DRAINING)
	r.shard.Submit(1000, &Detach{Group: "g", Member: "m1", Stream: s1}, r.now)
	r.join(joinOf("m2", "a"))
	r.checkHas(r.newest(s2), "a0 a1")
}

func TestRepeatedFirstJoinFreesNothing(t *testing.T) {
	// The repetition may have been under way while the member began to read.
	r := newRig(t, testConfig)
	s1, _ := r.join(joinOf("m1", "a"))
	r.follow(s1)
	s2, a := r.join(joinOf("m1", "a"))
	r.checkHas(a, "a0 a1 a2 a3")
	s3, a3 := r.join(joinOf("m2", "a"))
	r.checkHas(a3, "")
	r.join(joinOf("m1", "a"))
	r.checkHas(r.newest(s3), "")
	_ = s2
}

func TestRejoinWithAnotherSubscription(t *testing.T) {
	r := newRig(t, testConfig)
	_, a := r.join(joinOf("m1", "a"))
	again := joinOf("m1", "b")
	again.Epoch = a.Epoch
	s, a := r.join(again)
	// What is new is free and comes at once with what is taken away.
	r.checkHas(a, "b0 b1")
	r.follow(s)
	if d := r.describe(); d.State != Stable || len(d.Members[0].Revoking) != 0 {
		t.Fatalf("got %+v", d)
	}
}

func TestLeaveHandsOverAtOnce(t *testing.T) {
	r := newRig(t, testConfig)
	s1, _ := r.join(joinOf("m1", "a"))
	s2, _ := r.join(joinOf("m2", "a"))
	r.ok(&Leave{Group: "g", Member: "m1"})
	checkRefusal(t, r.closed[s1], errorsv1.Reason_REASON_UNKNOWN_MEMBER)
	r.checkHas(r.newest(s2), "a0 a1 a2 a3")
	r.ok(&Leave{Group: "g", Member: "m1"})
	r.ok(&Leave{Group: "nowhere", Member: "m1"})
	r.refused(&Heartbeat{Group: "g", Member: "m1", Epoch: 1}, errorsv1.Reason_REASON_UNKNOWN_MEMBER)
}

func TestSilenceEndsTheSession(t *testing.T) {
	r := newRig(t, testConfig)
	s1, a1 := r.join(joinOf("m1", "a"))
	s2, _ := r.join(joinOf("m2", "a"))
	for range 14 {
		r.pass(3 * time.Second)
		r.follow(s2)
	}
	r.checkHas(r.newest(s2), "")
	r.pass(4 * time.Second)
	checkRefusal(t, r.closed[s1], errorsv1.Reason_REASON_UNKNOWN_MEMBER)
	r.checkHas(r.newest(s2), "a0 a1 a2 a3")
	rejoin := joinOf("m1", "a")
	rejoin.Epoch = a1.Epoch
	r.refused(rejoin, errorsv1.Reason_REASON_UNKNOWN_MEMBER)
}

func TestNobodyIsExpiredByAShardThatStoodStill(t *testing.T) {
	r := newRig(t, testConfig)
	s1, _ := r.join(joinOf("m1", "a"))
	r.now = r.now.Add(time.Minute) // Nothing is called meanwhile.
	r.step()
	r.follow(s1)
	r.pass(40 * time.Second)
	if r.closed[s1] != nil {
		t.Fatal("the session ended while nobody could be heard")
	}
}

func TestMemberThatNeverConfirms(t *testing.T) {
	r := newRig(t, testConfig)
	_, a1 := r.join(joinOf("m1", "a"))
	s2, _ := r.join(joinOf("m2", "a"))
	for range 6 {
		r.pass(3 * time.Second)
		r.ok(&Heartbeat{Group: "g", Member: "m1", Epoch: a1.Epoch})
		r.follow(s2)
	}
	r.pass(2 * time.Second)
	r.refused(&Heartbeat{Group: "g", Member: "m1", Epoch: a1.Epoch}, errorsv1.Reason_REASON_MEMBER_FENCED)
	if d := r.describe(); !d.Members[0].Fenced {
		t.Fatalf("got %+v", d)
	}
	rejoin := joinOf("m1", "a")
	rejoin.Epoch = a1.Epoch
	r.refused(rejoin, errorsv1.Reason_REASON_MEMBER_FENCED)
	// It may read until the session has ended that its last answered heartbeat began.
	for range 14 {
		r.pass(3 * time.Second)
		r.follow(s2)
		r.ask(&Heartbeat{Group: "g", Member: "m1", Epoch: a1.Epoch})
	}
	r.checkHas(r.newest(s2), "")
	r.pass(2 * time.Second)
	r.checkHas(r.newest(s2), "a0 a1 a2 a3")
}

func TestHeartbeatIsRefused(t *testing.T) {
	r := newRig(t, testConfig)
	_, a := r.join(joinOf("m1", "a"))
	for name, c := range map[string]struct {
		request Heartbeat
		reason  errorsv1.Reason
	}{
		"unknown group":  {Heartbeat{Group: "x", Member: "m1", Epoch: 1}, errorsv1.Reason_REASON_UNKNOWN_MEMBER},
		"unknown member": {Heartbeat{Group: "g", Member: "m2", Epoch: 1}, errorsv1.Reason_REASON_UNKNOWN_MEMBER},
		"future epoch":   {Heartbeat{Group: "g", Member: "m1", Epoch: a.Epoch + 1}, errorsv1.Reason_REASON_MEMBER_FENCED},
		"no epoch":       {Heartbeat{Group: "g", Member: "m1"}, errorsv1.Reason_REASON_MEMBER_FENCED},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.refused(&c.request, c.reason)
		})
	}
}

func TestJoinIsRefused(t *testing.T) {
	r := newRig(t, testConfig)
	_, a := r.join(joinOf("m1", "a"))
	with := func(change func(*Join)) *Join {
		request := joinOf("m2", "a")
		change(request)
		return request
	}
	for name, c := range map[string]struct {
		request *Join
		reason  errorsv1.Reason
	}{
		"empty group id":     {with(func(r *Join) { r.Group = "" }), errorsv1.Reason_REASON_INVALID_GROUP_ID},
		"long group id":      {with(func(r *Join) { r.Group = GroupID(strings.Repeat("x", 256)) }), errorsv1.Reason_REASON_INVALID_GROUP_ID},
		"group id not UTF-8": {with(func(r *Join) { r.Group = "\xff" }), errorsv1.Reason_REASON_INVALID_GROUP_ID},
		"control characters": {with(func(r *Join) { r.Group = "g\n" }), errorsv1.Reason_REASON_INVALID_GROUP_ID},
		"in the instance id": {with(func(r *Join) { r.Instance = "i\x1b" }), errorsv1.Reason_REASON_INVALID_REQUEST},
		"empty member id":    {with(func(r *Join) { r.Member = "" }), errorsv1.Reason_REASON_INVALID_REQUEST},
		"long instance id":   {with(func(r *Join) { r.Instance = strings.Repeat("x", 256) }), errorsv1.Reason_REASON_INVALID_REQUEST},
		"negative epoch":     {with(func(r *Join) { r.Epoch = -1 }), errorsv1.Reason_REASON_INVALID_REQUEST},
		"no session timeout": {with(func(r *Join) { r.SessionTimeout = 0 }), errorsv1.Reason_REASON_INVALID_REQUEST},
		"unknown assignor":   {with(func(r *Join) { r.Assignor = "best" }), errorsv1.Reason_REASON_INVALID_REQUEST},
		"no subscription":    {with(func(r *Join) { r.Subscription = Subscription{} }), errorsv1.Reason_REASON_INVALID_SUBSCRIPTION},
		"bad pattern":        {with(func(r *Join) { r.Subscription = Subscription{Pattern: "a("} }), errorsv1.Reason_REASON_INVALID_SUBSCRIPTION},
		"pattern that breaks out": {with(func(r *Join) { r.Subscription = Subscription{Pattern: "a)|(b"} }),
			errorsv1.Reason_REASON_INVALID_SUBSCRIPTION},
		"long pattern": {with(func(r *Join) { r.Subscription = Subscription{Pattern: strings.Repeat("x", 1025)} }),
			errorsv1.Reason_REASON_INVALID_SUBSCRIPTION},
		"too many topics": {with(func(r *Join) { r.Subscription = Subscription{Topics: make([]string, 1001)} }),
			errorsv1.Reason_REASON_INVALID_SUBSCRIPTION},
		"epoch of nobody": {with(func(r *Join) { r.Epoch = 1 }), errorsv1.Reason_REASON_UNKNOWN_MEMBER},
		"future epoch":    {with(func(r *Join) { r.Member, r.Epoch = "m1", a.Epoch+1 }), errorsv1.Reason_REASON_MEMBER_FENCED},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.refused(c.request, c.reason)
		})
	}
}

func TestLimits(t *testing.T) {
	config := testConfig
	config.Groups = 2
	r := newRig(t, config)
	for i := range 10 {
		r.join(joinOf(MemberID(fmt.Sprint("m", i)), "a"))
	}
	r.refused(joinOf("m10", "a"), errorsv1.Reason_REASON_GROUP_FULL)
	r.ok(&Leave{Group: "g", Member: "m3"})
	r.join(joinOf("m10", "a"))
	other := joinOf("m", "a")
	other.Group = "g2"
	r.join(other)
	third := joinOf("m", "a")
	third.Group = "g3"
	r.refused(third, errorsv1.Reason_REASON_LIMIT_REACHED)
	r.refused(&Commit{Group: "g3", Offsets: []CommitOffset{{Partition: partition(1, 0)}}}, errorsv1.Reason_REASON_LIMIT_REACHED)
}

// A process with an instance id that dies again and again leaves members behind, which
// count until their sessions end.
func TestSupersededMembersCount(t *testing.T) {
	r := newRig(t, testConfig)
	for i := range 9 {
		r.join(joinOf(MemberID(fmt.Sprint("m", i)), "a"))
	}
	for i := range 3 {
		request := instance(MemberID(fmt.Sprint("i", i)), "i")
		if i < 2 {
			r.join(request)
		} else if message := r.refused(request, errorsv1.Reason_REASON_GROUP_FULL); !strings.Contains(message, "1 of them superseded") {
			t.Error(message)
		}
	}
	r.ok(&Leave{Group: "g", Member: "i0"})
	r.join(instance("i3", "i"))
}

func TestSubscriptionByPattern(t *testing.T) {
	for pattern, want := range map[string]string{
		"a":            "a0 a1 a2 a3",
		"b|a":          "a0 a1 a2 a3 b0 b1",
		".":            "a0 a1 a2 a3 b0 b1",
		".*":           "a0 a1 a2 a3 b0 b1",
		"__.*":         "",
		"[^b]":         "a0 a1 a2 a3",
		"(?i)B":        "b0 b1",
		"x":            "",
		"(?-s)__c.*|b": "b0 b1",
	} {
		t.Run(pattern, func(t *testing.T) {
			r := newRig(t, testConfig)
			request := joinOf("m1")
			request.Subscription.Pattern = pattern
			s, a := r.join(request)
			r.checkHas(a, want)
			r.topics = r.topics.with(Topic{ID: topicID(7), Name: "bab", Partitions: 1})
			r.shard.SetTopics(r.topics)
			r.step()
			if strings.Contains(r.has(r.newest(s).Partitions), "bab") != (pattern == ".*") {
				t.Fatalf("has %v", r.has(r.newest(s).Partitions))
			}
		})
	}
}

func TestTopicsChange(t *testing.T) {
	r := newRig(t, testConfig)
	s, a := r.join(joinOf("m1", "a", "later"))
	set := func(topics *fakeTopics) {
		r.topics = topics
		r.shard.SetTopics(topics)
		r.step()
	}
	set(r.topics.with(Topic{ID: topicID(5), Name: "unrelated", Partitions: 1}))
	if r.newest(s).Epoch != a.Epoch {
		t.Fatal("an unrelated topic makes an assignment")
	}
	set(r.topics.with(Topic{ID: topicID(1), Name: "a", Partitions: 5}))
	r.checkHas(r.newest(s), "a0 a1 a2 a3 a4")
	set(r.topics.with(Topic{ID: topicID(4), Name: "later", Partitions: 1}))
	r.checkHas(r.newest(s), "a0 a1 a2 a3 a4 later0")
	if len(r.newest(s).Missing) != 0 {
		t.Fatal("still missing")
	}
	old := r.topics
	set(r.topics.without("a"))
	r.checkHas(r.newest(s), "later0")
	r.shard.SetTopics(old)
	r.step()
	r.checkHas(r.newest(s), "later0")
}

func TestMajorityChoosesTheAssignor(t *testing.T) {
	r := newRig(t, testConfig)
	for i, c := range []struct{ votes, want Assignor }{{Range, Range}, {RoundRobin, Range}, {RoundRobin, RoundRobin}} {
		request := joinOf(MemberID(fmt.Sprint("m", i)), "a")
		request.Assignor = c.votes
		r.join(request)
		if d := r.describe(); d.Assignor != c.want {
			t.Fatalf("after %d joins: %q, want %q", i+1, d.Assignor, c.want)
		}
	}
}

func instance(member MemberID, name string) *Join {
	request := joinOf(member, "a")
	request.Instance = name
	return request
}

func TestStaticMemberComesBack(t *testing.T) {
	r := newRig(t, testConfig)
	s1, _ := r.join(instance("m1", "i1"))
	s2, _ := r.join(instance("m2", "i2"))
	r.follow(s1)
	r.follow(s2)
	had := r.newest(s1)
	r.ok(&Leave{Group: "g", Member: "m1", Keep: true})
	checkRefusal(t, r.closed[s1], errorsv1.Reason_REASON_UNKNOWN_MEMBER)
	r.refused(&Heartbeat{Group: "g", Member: "m1", Epoch: had.Epoch}, errorsv1.Reason_REASON_UNKNOWN_MEMBER)
	r.checkHas(r.newest(s2), "a2 a3")
	for range 10 {
		r.pass(3 * time.Second)
		r.follow(s2)
	}
	before := r.newest(s2).Epoch
	_, a := r.join(instance("m3", "i1"))
	r.checkHas(a, r.has(had.Partitions))
	if r.newest(s2).Epoch != before {
		t.Fatal("the other member was disturbed")
	}
	if d := r.describe(); len(d.Members) != 2 {
		t.Fatalf("got %+v", d.Members)
	}
}

func TestStaticMemberStaysAway(t *testing.T) {
	r := newRig(t, testConfig)
	s1, _ := r.join(instance("m1", "i1"))
	s2, _ := r.join(instance("m2", "i2"))
	r.follow(s1)
	r.ok(&Leave{Group: "g", Member: "m1", Keep: true})
	for range 16 {
		r.pass(3 * time.Second)
		r.follow(s2)
	}
	r.checkHas(r.newest(s2), "a0 a1 a2 a3")
}

func TestAwayMemberYieldsWithoutConfirmation(t *testing.T) {
	r := newRig(t, testConfig)
	r.join(instance("m1", "i1"))
	r.ok(&Leave{Group: "g", Member: "m1", Keep: true})
	_, a := r.join(joinOf("m2", "a"))
	r.checkHas(a, "a2 a3")
}

func TestTwoProcessesWithOneInstance(t *testing.T) {
	for name, end := range map[string]func(r *rig, newer Ticket){
		"the older leaves": func(r *rig, _ Ticket) { r.ok(&Leave{Group: "g", Member: "m1"}) },
		"the older dies": func(r *rig, newer Ticket) {
			for range 15 {
				r.checkHas(r.newest(newer), "")
				r.pass(3 * time.Second)
				r.follow(newer)
				r.ask(&Heartbeat{Group: "g", Member: "m1", Epoch: 1})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, testConfig)
			s1, a1 := r.join(instance("m1", "i1"))
			r.follow(s1)
			_, a := r.join(instance("m2", "i1"))
			r.checkHas(a, "")
			if a.Awaited != 4 || a.Members != 1 {
				t.Fatalf("got %+v", a)
			}
			checkRefusal(t, r.closed[s1], errorsv1.Reason_REASON_INSTANCE_FENCED)
			older := func() {
				r.refused(&Heartbeat{Group: "g", Member: "m1", Epoch: a1.Epoch}, errorsv1.Reason_REASON_INSTANCE_FENCED)
				r.refused(instance("m1", "i1"), errorsv1.Reason_REASON_INSTANCE_FENCED)
				checkRefusal(t, r.commit("m1", a1.Epoch, partition(1, 0), 1), errorsv1.Reason_REASON_INSTANCE_FENCED)
			}
			older()
			r.start(testConfig, 2) // Another coordinator knows it as well.
			older()
			rejoin := instance("m2", "i1")
			rejoin.Epoch = a.Epoch
			newer, a := r.join(rejoin)
			r.checkHas(a, "")
			end(r, newer)
			if name == "the older dies" {
				r.pass(5 * time.Second)
			}
			r.checkHas(r.newest(newer), "a0 a1 a2 a3")
		})
	}
}
