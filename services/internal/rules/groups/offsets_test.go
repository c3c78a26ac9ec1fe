package groups

import (
	"fmt"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

func TestCommitIsFenced(t *testing.T) {
	r := newRig(t, testConfig)
	s1, a1 := r.join(joinOf("m1", "a"))
	s2, _ := r.join(joinOf("m2", "a")) // Takes a2 and a3 away from m1.
	old, now := a1.Epoch, r.newest(s1).Epoch
	check := func(member MemberID, epoch Epoch, p Partition, want errorsv1.Reason) {
		t.Helper()
		got := r.commit(member, epoch, p, 1)
		if want == 0 && got == nil {
			return
		}
		checkRefusal(t, got, want)
	}
	check("m1", now, partition(1, 0), 0)
	check("m1", old, partition(1, 0), 0) // It has it since then.
	check("m1", old, partition(1, 3), 0) // It has yet to give it up.
	check("m1", now, partition(1, 3), 0)
	check("m1", now+1, partition(1, 0), errorsv1.Reason_REASON_MEMBER_FENCED)
	check("m1", 0, partition(1, 0), errorsv1.Reason_REASON_STALE_MEMBER_EPOCH)
	check("m2", r.newest(s2).Epoch, partition(1, 3), errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED)
	check("m3", 1, partition(1, 0), errorsv1.Reason_REASON_UNKNOWN_MEMBER)
	check("", 0, partition(1, 0), errorsv1.Reason_REASON_GROUP_NOT_EMPTY)
	before := r.newest(s2).Epoch
	r.follow(s1)
	r.follow(s2)
	check("m1", now, partition(1, 3), errorsv1.Reason_REASON_PARTITION_NOT_ASSIGNED)
	check("m2", r.newest(s2).Epoch, partition(1, 3), 0)
	check("m2", before, partition(1, 3), errorsv1.Reason_REASON_STALE_MEMBER_EPOCH)
	r.ok(&Leave{Group: "g", Member: "m2"})
	// m1 gets it back, and what it says from before does not count.
	check("m1", now, partition(1, 3), errorsv1.Reason_REASON_STALE_MEMBER_EPOCH)
	check("m1", r.newest(s1).Epoch, partition(1, 3), 0)
}

// committed is where the group stands in a partition, -1 for nowhere.
func (r *rig) committed(p Partition) int64 {
	r.t.Helper()
	for _, o := range r.ok(&Fetch{Group: "g"}).([]*OffsetRecord) {
		if o.Partition == p {
			return o.Offset
		}
	}
	return -1
}

// A commit that comes late undoes no newer one of its member, at whichever coordinator it
// comes, as long as the member has the partition.
func TestLateCommitIsRefused(t *testing.T) {
	r := newRig(t, testConfig)
	_, a1 := r.join(joinOf("m1", "a"))
	p, other := partition(1, 3), partition(1, 0)
	check := func(member MemberID, epoch Epoch, sequence CommitSequence, p Partition, offset int64, want errorsv1.Reason) {
		t.Helper()
		got, before := r.commitNumbered(member, epoch, sequence, p, offset), r.committed(p)
		switch {
		case want != 0:
			checkRefusal(t, got, want)
		case got != nil || before != offset:
			t.Fatalf("commit %d: %v, and the group stands at %d, want %d", sequence, got, before, offset)
		}
	}
	check("m1", a1.Epoch, 5, p, 50, 0)
	check("m1", a1.Epoch, 4, p, 40, errorsv1.Reason_REASON_STALE_COMMIT)
	check("m1", a1.Epoch, 5, p, 50, 0) // It is repeated as it is.
	check("m1", a1.Epoch, 4, other, 40, 0)
	check("m1", a1.Epoch, 6, p, 30, 0) // A member may go back.
	for range 2 {
		// The next coordinator, and the same one that begins anew.
		r.start(testConfig, r.log.epoch+1)
		check("m1", a1.Epoch, 5, p, 50, errorsv1.Reason_REASON_STALE_COMMIT)
		if got := r.committed(p); got != 30 {
			t.Fatalf("the group stands at %d", got)
		}
	}
	again := joinOf("m1", "a")
	again.Epoch = a1.Epoch
	s1, _ := r.join(again)
	s2, _ := r.join(joinOf("m2", "a")) // Takes a2 and a3 away from m1.
	check("m1", a1.Epoch, 5, p, 50, errorsv1.Reason_REASON_STALE_COMMIT)
	check("m1", a1.Epoch, 7, p, 60, 0)
	r.follow(s1)
	r.follow(s2)
	check("m2", r.newest(s2).Epoch, 1, p, 61, 0) // It counts by itself.
	check("m2", r.newest(s2).Epoch, 0, p, 62, 0) // It does not number any more.
	r.ok(&Leave{Group: "g", Member: "m2"})
	check("m1", a1.Epoch, 6, p, 55, errorsv1.Reason_REASON_STALE_MEMBER_EPOCH)
	check("m1", r.newest(s1).Epoch, 8, p, 70, 0)
}

// Of a member that had an offset's partition there may be no record any more, nor of the
// group's epochs since: the next one that has the partition numbers its commits anew.
func TestEpochOfACommitIsNotGivenAgain(t *testing.T) {
	r := newRig(t, testConfig)
	p := partition(1, 0)
	r.log.records = append(r.log.records,
		&GroupRecord{Group: "g", Epoch: 6},
		&OffsetRecord{Group: "g", Partition: p, TopicName: "a", Offset: 90, LeaderEpoch: -1, Since: 7, Sequence: 9})
	r.start(testConfig, 2)
	_, a := r.join(joinOf("m2", "a"))
	if why := r.commitNumbered("m2", a.Epoch, 1, p, 91); why != nil {
		t.Errorf("in epoch %d: %v", a.Epoch, why)
	}
}

func TestCommitIsCheckedByOffset(t *testing.T) {
	r := newRig(t, testConfig)
	r.topics = r.topics.without("b")
	r.shard.SetTopics(r.topics)
	answer := r.ok(&Commit{Group: "g", Offsets: []CommitOffset{
		{Partition: partition(1, 0), TopicName: "a", Offset: 7, Metadata: strings.Repeat("x", 4096)},
		{Partition: partition(1, 1), TopicName: "a", Offset: 7, Metadata: strings.Repeat("x", 4097)},
		{Partition: partition(1, 2), TopicName: "a", Offset: -1},
		{Partition: partition(2, 0), TopicName: "b", Offset: 1},
		{Partition: partition(1, 3), TopicName: "a", Offset: 1, Metadata: "a\x00b"},
	}}).(CommitAnswer)
	if why := answer.Refusals[4]; why == nil || !strings.Contains(why.Message, `"a\x00b"`) {
		t.Errorf("control characters: %v", why)
	}
	if answer.Refusals[0] != nil {
		t.Fatalf("got %+v", answer.Refusals[0])
	}
	checkRefusal(t, answer.Refusals[1], errorsv1.Reason_REASON_METADATA_TOO_LARGE)
	checkRefusal(t, answer.Refusals[2], errorsv1.Reason_REASON_INVALID_REQUEST)
	checkRefusal(t, answer.Refusals[3], errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	got := r.ok(&Fetch{Group: "g"}).([]*OffsetRecord)
	if len(got) != 1 || got[0].Offset != 7 || got[0].TopicName != "a" || !got[0].Committed.Equal(r.now) {
		t.Fatalf("got %+v", got)
	}
	r.refused(&Commit{Offsets: []CommitOffset{{}}}, errorsv1.Reason_REASON_INVALID_GROUP_ID)
}

func TestOffsetsOfAGroupAreLimited(t *testing.T) {
	r := newRig(t, testConfig)
	request := &Commit{Group: "g"}
	for i := range 51 {
		request.Offsets = append(request.Offsets, CommitOffset{Partition: partition(1, int32(i)), TopicName: "a"})
	}
	answer := r.ok(request).(CommitAnswer)
	checkRefusal(t, answer.Refusals[50], errorsv1.Reason_REASON_LIMIT_REACHED)
	for i, why := range r.ok(request).(CommitAnswer).Refusals {
		if (why == nil) != (i < 50) {
			t.Fatalf("offset %d: %v", i, why)
		}
	}
}

// A commit that is larger than a round is written in several, also when what has become of
// one of them is not known; a smaller one is whole.
func TestCommitLargerThanARound(t *testing.T) {
	config := testConfig
	config.OffsetsPerGroup, config.RoundBytes = 100, 1<<16
	large := &Commit{Group: "g"}
	for i := range 90 {
		large.Offsets = append(large.Offsets, CommitOffset{
			Partition: partition(1, int32(i)), TopicName: "a", Offset: int64(i), Metadata: strings.Repeat("x", 4000),
		})
	}
	large.Offsets[40].Offset = -1
	for name, trouble := range map[string]Outcome{"no trouble": Done, "refused": Refused, "in doubt": Doubtful} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, config)
			appends := 0
			r.outcome = func(e Effects) (Outcome, bool) {
				if e.Append == nil || e.Append.Expected == -1 {
					return Done, true
				}
				if appends++; appends == 4 {
					return trouble, true
				}
				return Done, true
			}
			ticket := r.submit(large)
			r.step()
			if trouble != Done {
				r.pass(time.Second)
			}
			reply := r.replies[ticket]
			answer, ok := reply.Value.(CommitAnswer)
			if !ok || len(answer.Refusals) != 90 {
				t.Fatalf("got %+v", reply)
			}
			for i, why := range answer.Refusals {
				if (why != nil) != (i == 40) {
					t.Errorf("offset %d: %v", i, why)
				}
			}
			if appends < 6 {
				t.Errorf("written with %d appends", appends)
			}
			for _, a := range r.appends {
				if len(a.Records) > 18 {
					t.Errorf("an append of %d records", len(a.Records))
				}
			}
			r.outcome = nil
			r.start(config, 2)
			if got := r.ok(&Fetch{Group: "g"}).([]*OffsetRecord); len(got) != 89 || got[88].Offset != 89 {
				t.Errorf("%d offsets are in the log", len(got))
			}
		})
	}
	r := newRig(t, config)
	r.appends = nil
	small := &Commit{Group: "g", Offsets: large.Offsets[:15]}
	r.submit(&Commit{Group: "other", Offsets: large.Offsets[:10]})
	r.submit(small)
	r.step()
	if len(r.appends) != 1 || len(r.appends[0].Records) != 27 {
		t.Errorf("commits that fit are written with %d appends", len(r.appends))
	}
}

func TestFetch(t *testing.T) {
	r := newRig(t, testConfig)
	if got := r.ok(&Fetch{Group: "g"}).([]*OffsetRecord); len(got) != 0 {
		t.Fatalf("got %v", got)
	}
	var commit Commit
	commit.Group = "g"
	for _, p := range []struct {
		topic byte
		name  string
		index int32
	}{{2, "b", 1}, {1, "a", 3}, {1, "a", 0}, {2, "b", 0}} {
		commit.Offsets = append(commit.Offsets, CommitOffset{Partition: partition(p.topic, p.index), TopicName: p.name, Offset: int64(p.index)})
	}
	r.ok(&commit)
	render := func(offsets []*OffsetRecord) string {
		var words []string
		for _, o := range offsets {
			words = append(words, fmt.Sprint(o.TopicName, o.Index))
		}
		return strings.Join(words, " ")
	}
	if got := render(r.ok(&Fetch{Group: "g"}).([]*OffsetRecord)); got != "a0 a3 b0 b1" {
		t.Fatalf("got %v", got)
	}
	some := []Partition{partition(2, 0), partition(2, 7), partition(1, 3), partition(2, 0)}
	if got := render(r.ok(&Fetch{Group: "g", Partitions: some}).([]*OffsetRecord)); got != "a3 b0" {
		t.Fatalf("got %v", got)
	}
	if got := render(r.ok(&DeleteOffsets{Group: "g", Partitions: some}).([]*OffsetRecord)); got != "a3 b0" {
		t.Fatalf("got %v", got)
	}
	r.start(testConfig, 2)
	if got := render(r.ok(&Fetch{Group: "g"}).([]*OffsetRecord)); got != "a0 b1" {
		t.Fatalf("got %v", got)
	}
	r.join(joinOf("m1", "a"))
	r.refused(&DeleteOffsets{Group: "g", Partitions: []Partition{partition(1, 0)}}, errorsv1.Reason_REASON_GROUP_NOT_EMPTY)
	r.ok(&DeleteOffsets{Group: "g", Partitions: []Partition{partition(2, 1)}})
	r.refused(&DeleteOffsets{Group: "x"}, errorsv1.Reason_REASON_GROUP_NOT_FOUND)
}

func TestCheckReset(t *testing.T) {
	config := testConfig
	config.Groups = 1
	r := newRig(t, config)
	if message := r.refused(&CheckReset{Group: "g"}, errorsv1.Reason_REASON_GROUP_NOT_FOUND); !strings.Contains(message, `"g"`) {
		t.Errorf("does not name the group: %s", message)
	}
	if got := r.ok(&CheckReset{Group: "g", Create: true}).([]*OffsetRecord); len(got) != 0 || len(r.appends) != 1 {
		t.Errorf("got %v after %d appends: asking makes no group", got, len(r.appends))
	}
	_, a := r.join(joinOf("m1", "a"))
	r.commit("m1", a.Epoch, partition(1, 2), 3)
	for _, create := range []bool{false, true} {
		if message := r.refused(&CheckReset{Group: "g", Create: create}, errorsv1.Reason_REASON_GROUP_NOT_EMPTY); !strings.Contains(message, "m1 at here") {
			t.Errorf("names nobody: %s", message)
		}
	}
	r.refused(&CheckReset{Group: "h", Create: true}, errorsv1.Reason_REASON_LIMIT_REACHED)
	r.ok(&Leave{Group: "g", Member: "m1"})
	if got := r.ok(&CheckReset{Group: "g"}).([]*OffsetRecord); len(got) != 1 || got[0].Offset != 3 {
		t.Errorf("got %v", got)
	}
}

func TestDeleteGroup(t *testing.T) {
	r := newRig(t, testConfig)
	r.refused(&DeleteGroup{Group: "g"}, errorsv1.Reason_REASON_GROUP_NOT_FOUND)
	r.refused(&Describe{Group: "g"}, errorsv1.Reason_REASON_GROUP_NOT_FOUND)
	_, a := r.join(joinOf("m1", "a"))
	r.commit("m1", a.Epoch, partition(1, 0), 3)
	if message := r.refused(&DeleteGroup{Group: "g"}, errorsv1.Reason_REASON_GROUP_NOT_EMPTY); !strings.Contains(message, "m1") {
		t.Fatalf("names nobody: %s", message)
	}
	r.ok(&Leave{Group: "g", Member: "m1"})
	r.ok(&DeleteGroup{Group: "g"})
	for _, epoch := range []CoordinatorEpoch{1, 2} {
		if epoch > 1 {
			r.start(testConfig, epoch)
		}
		if got := r.ok(&List{}).([]Summary); len(got) != 0 {
			t.Fatalf("got %v", got)
		}
	}
}

// TestEpochsOutliveTheGroup has a group be deleted and made anew by the very same member:
// nothing that belongs to the time before counts.
func TestEpochsOutliveTheGroup(t *testing.T) {
	r := newRig(t, testConfig)
	epoch := Epoch(0)
	for round := range 4 {
		if round == 2 {
			r.start(testConfig, 2)
		}
		s, a := r.join(joinOf("m1", "a"))
		if a.Epoch <= epoch {
			t.Fatalf("round %d: epoch %d after %d", round, a.Epoch, epoch)
		}
		if epoch > 0 {
			checkRefusal(t, r.commit("m1", epoch, partition(1, 0), 3), errorsv1.Reason_REASON_STALE_MEMBER_EPOCH)
		}
		r.follow(s)
		other, _ := r.join(joinOf("m2", "a"))
		a = r.newest(s)
		epoch = a.Epoch
		r.follow(s)
		r.follow(other)
		if why := r.commit("m1", epoch, a.Partitions[0].Partition, 3); why != nil {
			t.Fatal(why)
		}
		r.ok(&Leave{Group: "g", Member: "m2"})
		r.ok(&Leave{Group: "g", Member: "m1"})
		// All of it is one round with the first Join.
		r.submit(&DeleteGroup{Group: "g"})
	}
}

func TestOffsetsExpireByTheTimeThatWasSeen(t *testing.T) {
	r := newRig(t, testConfig)
	_, a := r.join(joinOf("m1", "a"))
	r.commit("m1", a.Epoch, partition(1, 0), 3)
	r.ok(&Leave{Group: "g", Member: "m1"})
	there := func(want bool) {
		t.Helper()
		if got := len(r.ok(&List{}).([]Summary)) == 1; got != want {
			t.Fatalf("the group is there: %v", got)
		}
	}
	day := 24 * time.Hour
	r.pass(4 * day)
	// Nobody coordinates for a year, and then a clock jumps.
	r.now = r.now.Add(365 * day)
	r.start(testConfig, 2)
	there(true)
	r.now = r.now.Add(365 * day)
	r.step()
	there(true)
	r.pass(2 * day)
	there(true)
	r.pass(day)
	there(false)
	if r.wake != (time.Time{}) {
		t.Fatalf("an empty shard wakes at %v", r.wake)
	}
}

// TestExpiryDoesNotCountTimeWithMembers has a group be empty again and again, and the shard
// notice nothing of the time between until it is over.
func TestExpiryDoesNotCountTimeWithMembers(t *testing.T) {
	r := newRig(t, testConfig)
	_, a := r.join(joinOf("m1", "a"))
	r.commit("m1", a.Epoch, partition(1, 0), 3)
	r.ok(&Leave{Group: "g", Member: "m1"})
	r.pass(time.Minute)
	r.join(joinOf("m2", "a"))
	r.now = r.now.Add(2 * time.Hour)
	r.ok(&Leave{Group: "g", Member: "m2"})
	r.pass(3 * time.Hour)
	// A member that has left when the round begins.
	r.submit(joinOf("m3", "a"))
	r.ok(&Leave{Group: "g", Member: "m3"})
	r.pass(testConfig.Retention - time.Second)
	if got := r.ok(&List{}).([]Summary); len(got) != 1 {
		t.Fatal("expired too soon")
	}
	r.pass(time.Second)
	if got := r.ok(&List{}).([]Summary); len(got) != 0 {
		t.Fatal("did not expire")
	}
}

func TestGroupWithoutAnythingGoesSoon(t *testing.T) {
	config := testConfig
	config.Retention = 0
	r := newRig(t, config)
	r.join(instance("m1", "i1"))
	r.pass(40 * time.Second)
	r.ok(&Leave{Group: "g", Member: "m1", Keep: true})
	r.pass(44 * time.Second)
	_, a := r.join(instance("m2", "i1")) // A static member that comes back has a group.
	r.commit("m2", a.Epoch, partition(1, 0), 3)
	r.ok(&Leave{Group: "g", Member: "m2"})
	r.pass(time.Hour)
	if got := r.ok(&List{}).([]Summary); len(got) != 1 {
		t.Fatal("a group with an offset is gone")
	}
	r.ok(&DeleteOffsets{Group: "g", Partitions: []Partition{partition(1, 0)}})
	r.pass(59 * time.Second)
	r.commit("", 0, partition(1, 0), 3)
	r.pass(time.Hour)
	if got := r.ok(&List{}).([]Summary); len(got) != 1 {
		t.Fatal("a group with a new offset is gone")
	}
	r.ok(&DeleteOffsets{Group: "g", Partitions: []Partition{partition(1, 0)}})
	r.pass(time.Minute)
	if got := r.ok(&List{}).([]Summary); len(got) != 0 || !r.wake.IsZero() {
		t.Fatalf("got %v, wakes at %v", got, r.wake)
	}
}

// TestBareGroupStaysForAWhile also when it was without members for long before its last
// offset was deleted, and when another coordinator takes over.
func TestBareGroupStaysForAWhile(t *testing.T) {
	for name, bare := range map[string]func(*rig){
		"by DeleteOffsets": func(r *rig) { r.ok(&DeleteOffsets{Group: "g", Partitions: []Partition{partition(1, 0)}}) },
		"with its topic":   func(r *rig) { r.topics = r.topics.without("a"); r.shard.SetTopics(r.topics); r.step() },
		"before a takeover": func(r *rig) {
			r.ok(&DeleteOffsets{Group: "g", Partitions: []Partition{partition(1, 0)}})
			r.start(testConfig, 2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, testConfig)
			r.commit("", 0, partition(1, 0), 3)
			r.pass(3 * 24 * time.Hour)
			bare(r)
			r.pass(testConfig.Aging - time.Second)
			if got := r.ok(&List{}).([]Summary); len(got) != 1 {
				t.Error("it went at once")
			}
			r.pass(time.Second)
			if got := r.ok(&List{}).([]Summary); len(got) != 0 {
				t.Error("it is still there")
			}
		})
	}
}

func TestExpiryCountsFromTheLastCommit(t *testing.T) {
	r := newRig(t, testConfig)
	day := 24 * time.Hour
	r.commit("", 0, partition(1, 0), 3)
	r.pass(6 * day)
	r.commit("", 0, partition(1, 0), 4)
	r.start(testConfig, 2)
	r.pass(6 * day)
	if got := r.ok(&Fetch{Group: "g"}).([]*OffsetRecord); len(got) != 1 {
		t.Fatal("expired")
	}
	s, _ := r.join(joinOf("m1", "a"))
	for range 3 {
		r.pass(44 * time.Second)
		r.follow(s)
	}
	r.ok(&Leave{Group: "g", Member: "m1"})
	r.pass(6 * day)
	if got := r.ok(&Fetch{Group: "g"}).([]*OffsetRecord); len(got) != 1 {
		t.Fatal("expired")
	}
	r.pass(2 * day)
	if got := r.ok(&Fetch{Group: "g"}).([]*OffsetRecord); len(got) != 0 {
		t.Fatal("did not expire")
	}
}

func TestRetentionForEver(t *testing.T) {
	config := testConfig
	config.Retention = 0
	r := newRig(t, config)
	r.commit("", 0, partition(1, 0), 3)
	if !r.wake.IsZero() {
		t.Fatalf("wakes at %v", r.wake)
	}
}

func TestOffsetsOfDeletedTopicsGo(t *testing.T) {
	r := newRig(t, testConfig)
	r.ok(&Commit{Group: "g", Offsets: []CommitOffset{
		{Partition: partition(1, 0), TopicName: "a", Offset: 1}, {Partition: partition(2, 0), TopicName: "b", Offset: 1},
	}})
	count := func(want int) {
		t.Helper()
		if got := r.ok(&Fetch{Group: "g"}).([]*OffsetRecord); len(got) != want {
			t.Fatalf("%d offsets, want %d", len(got), want)
		}
	}
	// A topic that is only not there may be one that this node has yet to hear of.
	absent := r.topics.without("b")
	absent.deleted = nil
	r.topics = absent
	r.shard.SetTopics(absent)
	count(2)
	gone := &fakeTopics{version: absent.version + 1, topics: absent.topics, deleted: append(absent.deleted, topicID(2))}
	r.topics = gone
	r.shard.SetTopics(gone)
	r.step()
	count(1)
	r.topics = gone.without("a")
	r.start(testConfig, 2)
	r.step()
	count(0)
}

func TestLargeGroupIsForgottenInSeveralRounds(t *testing.T) {
	config := testConfig
	config.RoundBytes, config.OffsetsPerGroup = 500, 1000
	fill := func(r *rig) {
		for i := range 100 {
			r.ok(&Commit{Group: "g", Offsets: []CommitOffset{{Partition: partition(2, int32(i)), TopicName: "b"}}})
		}
	}
	for name, end := range map[string]func(r *rig){
		"deleted": func(r *rig) { r.ok(&DeleteGroup{Group: "g"}) },
		"offsets deleted": func(r *rig) {
			var all []Partition
			for i := range 100 {
				all = append(all, partition(2, int32(i)))
			}
			if got := r.ok(&DeleteOffsets{Group: "g", Partitions: all}).([]*OffsetRecord); len(got) != 100 {
				r.t.Fatalf("%d offsets deleted", len(got))
			}
			r.pass(2 * time.Minute)
		},
		"expired": func(r *rig) { r.pass(8 * 24 * time.Hour) },
		"topic deleted": func(r *rig) {
			r.topics = r.topics.without("b")
			r.shard.SetTopics(r.topics)
			r.step()
			r.ok(&DeleteGroup{Group: "g"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, config)
			fill(r)
			r.appends = nil
			end(r)
			if got := r.ok(&List{}).([]Summary); len(got) != 0 || len(r.appends) < 10 {
				t.Fatalf("%v after %d appends", got, len(r.appends))
			}
			for _, a := range r.appends {
				if len(a.Records) > 12 {
					t.Fatalf("a round of %d records", len(a.Records))
				}
			}
		})
	}
}
