package groups

import (
	"fmt"
	"strings"
	"testing"
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
