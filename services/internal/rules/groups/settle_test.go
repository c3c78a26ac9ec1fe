package groups

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestSettlementIsWrittenInPieces has one change rewrite many members with long
// subscriptions: what the log takes as one batch is bounded.
func TestSettlementIsWrittenInPieces(t *testing.T) {
	const members = 40
	config := testConfig
	config.MembersPerGroup = members
	r := newRig(t, config)
	names := []string{"late"}
	for i := range 200 {
		names = append(names, fmt.Sprintf("m%s%03d", strings.Repeat("x", 240), i))
	}
	var streams []Ticket
	for i := range members {
		s, _ := r.join(joinOf(MemberID(fmt.Sprintf("m%02d", i)), names...))
		streams = append(streams, s)
	}
	r.appends = nil
	r.topics = r.topics.with(Topic{ID: topicID(3), Name: "late", Partitions: members})
	r.shard.SetTopics(r.topics)
	r.step()
	for i, a := range r.appends {
		bytes := 0
		for _, record := range a.Records {
			bytes += recordBytes(record)
		}
		if bytes > 2*config.RoundBytes {
			t.Errorf("append %d has %d records of about %d bytes, where a round makes %d", i, len(a.Records), bytes, config.RoundBytes)
		}
	}
	for _, s := range streams {
		if n := len(r.newest(s).Partitions); n != 1 {
			t.Fatalf("stream %d has %d partitions", s, n)
		}
	}
}

// TestSupersedingIsWrittenAtOnce: without the newer member's record, the older one's reads
// as that of a member that has yet to give up what it has, and its next heartbeat would
// say that it has.
func TestSupersedingIsWrittenAtOnce(t *testing.T) {
	config := testConfig
	config.RoundBytes = 1
	r := newRig(t, config)
	for _, member := range []MemberID{"m1", "m2"} {
		request := joinOf(member, "a")
		request.Instance = "i"
		r.appends = nil
		r.join(request)
	}
	if len(r.appends) < 2 {
		t.Fatalf("%d appends: the bound is not met", len(r.appends))
	}
	var names []MemberID
	for _, record := range r.appends[0].Records {
		if m, ok := record.(*MemberRecord); ok {
			names = append(names, m.Member)
		}
	}
	if len(names) < 2 || names[0] != "m1" || names[1] != "m2" {
		t.Fatalf("the first append writes members %v", names)
	}
}

// TestWhatIsNewToAGroup: a member is told which of its partitions came into being while the
// group was subscribed, or had offsets of others of the topic; whichever coordinator tells.
func TestWhatIsNewToAGroup(t *testing.T) {
	r := newRig(t, testConfig)
	grow := func(name string, id byte, partitions int32) {
		r.topics = r.topics.with(Topic{ID: topicID(id), Name: name, Partitions: partitions})
		r.shard.SetTopics(r.topics)
		r.step()
	}
	check := func(a Assignment, want string) {
		t.Helper()
		var added []Owned
		for _, p := range a.Added {
			added = append(added, Owned{Partition: p})
		}
		if got := r.has(added); got != want {
			t.Fatalf("new in epoch %d are %q of %q, want %q", a.Epoch, got, r.has(a.Partitions), want)
		}
	}
	stream, a := r.join(joinOf("m1", "a", "late"))
	check(a, "")
	grow("a", 1, 5)
	check(r.newest(stream), "a4")
	grow("late", 3, 1) // It was waited for.
	check(r.newest(stream), "a4 late0")
	grow("b", 2, 3)
	more, _ := r.join(joinOf("m2", "a", "b", "late")) // Nobody was subscribed to b.
	r.follow(stream)
	check(r.newest(stream), "a4")
	check(r.newest(more), "late0")
	if why := r.commit("m1", r.newest(stream).Epoch, partition(1, 4), 7); why != nil {
		t.Fatal(why)
	}
	r.start(testConfig, 2)
	grow("b", 2, 4)
	again := joinOf("m2", "a", "b", "late")
	again.Epoch = r.newest(more).Epoch
	_, a = r.join(again)
	check(a, "b3 late0")
	r.ok(&Leave{Group: "g", Member: "m1"})
	r.ok(&Leave{Group: "g", Member: "m2"})
	// Of topic a the group has an offset: it knows what it had. Of the others it has none.
	grow("a", 1, 6)
	_, a = r.join(joinOf("m3", "a", "b", "late"))
	check(a, "a5")
	// Another subscription does not make old topics new ones.
	_, a = r.join(func() *Join {
		j := joinOf("m3", "a", "c")
		j.Epoch = a.Epoch
		return j
	}())
	r.pass(time.Second)
	r.topics = r.topics.without("late")
	grow("late", 4, 2)
	_, a = r.join(func() *Join {
		j := joinOf("m3", "a", "late")
		j.Epoch = a.Epoch
		return j
	}())
	check(a, "a5")
	r.topics = r.topics.without("late")
	grow("late", 5, 2) // It is deleted and created again.
	_, a = r.join(func() *Join {
		j := joinOf("m3", "a", "late")
		j.Epoch = a.Epoch
		return j
	}())
	check(a, "a5 late0 late1")
}
