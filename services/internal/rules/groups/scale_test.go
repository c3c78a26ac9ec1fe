package groups

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// TestLargeGroupSettles has 100 members join one by one, each in a round of its own, and
// share 1,000 partitions.
func TestLargeGroupSettles(t *testing.T) {
	config := testConfig
	config.MembersPerGroup = 100
	r := newRig(t, config)
	r.topics = r.topics.with(Topic{ID: topicID(3), Name: "wide", Partitions: 1000})
	r.shard.SetTopics(r.topics)
	began := time.Now()
	var streams []Ticket
	for i := range 100 {
		s, _ := r.join(joinOf(MemberID(fmt.Sprintf("m%02d", i)), "wide"))
		streams = append(streams, s)
	}
	joined := time.Since(began)
	confirmed := map[Ticket]Epoch{}
	for moved := true; moved; {
		moved = false
		for _, s := range streams {
			if a := r.newest(s); a.Epoch > confirmed[s] {
				confirmed[s], moved = a.Epoch, true
				r.follow(s)
			}
		}
	}
	t.Logf("100 joins took %v, all took %v, with %d appends", joined, time.Since(began), len(r.appends))
	d := r.describe()
	if d.State != Stable {
		t.Fatalf("state %v", d.State)
	}
	for _, m := range d.Members {
		if len(m.Assigned) != 10 {
			t.Fatalf("%s has %d partitions", m.Member, len(m.Assigned))
		}
	}
}

// TestIdleGroupsAreSmall holds a shard of 10,000 groups of one member to 4 KiB for each.
func TestIdleGroupsAreSmall(t *testing.T) {
	const groups = 10_000
	config := testConfig
	config.Groups, config.Queue = groups, groups
	r := newRig(t, config)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range groups {
		name := fmt.Sprintf("application-number-%d", i)
		request := joinOf(MemberID(fmt.Sprintf("%08d-aaaa-bbbb-cccc-000000000000", i)), "a")
		request.Group = GroupID(name)
		r.submit(request)
		if i%100 == 0 {
			r.step()
		}
	}
	r.step()
	r.submit(&List{})
	r.step()
	for i := range groups {
		p := partition(1, int32(i%4))
		member := MemberID(fmt.Sprintf("%08d-aaaa-bbbb-cccc-000000000000", i))
		r.submit(&Commit{Group: GroupID(fmt.Sprintf("application-number-%d", i)), Member: member, Epoch: 1,
			Offsets: []CommitOffset{{Partition: p, TopicName: "a", Offset: 1}}})
	}
	r.step()
	clear(r.told)
	clear(r.replies)
	r.log.records, r.appends = nil, nil
	after := heap()
	each := (after - before) / groups
	t.Logf("%d bytes for each group", each)
	if stats := r.shard.Stats(); stats.Groups != groups || stats.Members != groups || !stats.Serving {
		t.Fatalf("got %+v", stats)
	}
	if each > 4096 {
		t.Fatalf("%d bytes for each group", each)
	}
	runtime.KeepAlive(r)
}

// TestLoadOfManyOffsets reads 100,000 offsets.
func TestLoadOfManyOffsets(t *testing.T) {
	r := newRig(t, testConfig)
	for g := range 1000 {
		for p := range 100 {
			r.log.records = append(r.log.records, &OffsetRecord{
				Group: GroupID(fmt.Sprint("group-", g)), Partition: partition(1, int32(p)), TopicName: "a", Offset: 1,
			})
		}
	}
	began := time.Now()
	r.start(testConfig, 2)
	t.Logf("took %v", time.Since(began))
	n := 0
	for range r.shard.Offsets {
		n++
	}
	if n != 100_000 {
		t.Fatalf("%d offsets", n)
	}
}
