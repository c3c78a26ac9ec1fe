package groups

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

func TestStickyWithOneSubscription(t *testing.T) {
	t.Parallel()
	checkSituations(t, func(t *rapid.T) {
		members, topics := situation(t, true)
		o := assign(t, Sticky, members, topics)
		o.checkEven(t)
		o.checkStays(t)
		if len(members) == 0 {
			return
		}
		// Those with the most partitions are allowed the one more that some have.
		kept := map[MemberID]int{}
		for _, id := range o.before {
			kept[id]++
		}
		each, more := len(o.owner)/len(members), len(o.owner)%len(members)
		least := 0
		for i, n := range slices.Backward(slices.Sorted(maps.Values(kept))) {
			allowed := each
			if len(kept)-1-i < more {
				allowed++
			}
			least += max(0, n-allowed)
		}
		if moves := o.moves(); moves != least {
			t.Fatalf("%d partitions moved, %d had to: %v", moves, least, o.assigned)
		}
	})
}

func TestStickyWithSeveralSubscriptions(t *testing.T) {
	t.Parallel()
	checkSituations(t, func(t *rapid.T) {
		members, topics := situation(t, false)
		o := assign(t, Sticky, members, topics)
		o.checkStays(t)
		for p, owner := range o.owner {
			for _, other := range o.eligible[p.Topic] {
				if len(o.assigned[owner]) >= len(o.assigned[other])+2 {
					t.Fatalf("%v could go from %s to %s: %v", p, owner, other, o.assigned)
				}
			}
			if before, had := o.before[p]; had && before != owner && len(o.assigned[owner]) > len(o.assigned[before]) {
				t.Fatalf("%v went from %s to %s for nothing: %v", p, before, owner, o.assigned)
			}
		}
	})
}

// checkStays: who has what they are to have keeps it.
func (o outcome) checkStays(t *rapid.T) {
	members := slices.Clone(o.members)
	for i, m := range members {
		members[i].Owned = o.assigned[m.ID]
	}
	if again := Assign(Sticky, members, o.topics); !maps.EqualFunc(o.assigned, again, slices.Equal[[]Partition]) {
		t.Fatalf("what was assigned changes from %v to %v", o.assigned, again)
	}
}

// TestStickyThroughChanges takes a group through members that come and go.
func TestStickyThroughChanges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		topics := []Topic{topicOf('a', 8), topicOf('b', 5), topicOf('c', 11)}
		group := map[MemberID]AssignMember{}
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			id := MemberID('0' + rapid.ByteRange(0, 9).Draw(t, "member"))
			if _, there := group[id]; there {
				delete(group, id)
			} else {
				group[id] = memberOf(id, "abc", "")
			}
			topics[0].Partitions += rapid.Int32Range(0, 1).Draw(t, "new partitions")
			o := assign(t, Sticky, slices.Collect(maps.Values(group)), topics)
			o.checkEven(t)
			for id, m := range group {
				if len(m.Owned) > 0 {
					// Nobody gives and takes at once.
					lost := slices.ContainsFunc(m.Owned, func(p Partition) bool { return o.owner[p] != id })
					gained := slices.ContainsFunc(o.assigned[id], func(p Partition) bool { return !slices.Contains(m.Owned, p) })
					if lost && gained {
						t.Fatalf("member %s went from %v to %v", id, m.Owned, o.assigned[id])
					}
				}
				m.Owned = o.assigned[id]
				group[id] = m
			}
		}
	})
}

// large is a group in which the last quarter of the members has just joined.
func large(members, topics, partitions int, subscription func(member, topic int) bool) ([]AssignMember, []Topic) {
	ts := make([]Topic, topics)
	for i := range ts {
		ts[i] = Topic{ID: cluster.TopicID{byte(i >> 8), byte(i)}, Name: fmt.Sprintf("topic-%05d", i), Partitions: int32(partitions / topics)}
	}
	ms := make([]AssignMember, members)
	for i := range ms {
		ms[i].ID = MemberID(fmt.Sprintf("member-%05d", i))
		for t := range ts {
			if subscription(i, t) {
				ms[i].Topics = append(ms[i].Topics, ts[t].ID)
			}
		}
	}
	old := ms[:max(1, members*3/4)]
	shares := Assign(RoundRobin, old, ts)
	for i := range old {
		old[i].Owned = shares[old[i].ID]
	}
	return ms, ts
}

func BenchmarkAssign(b *testing.B) {
	all := func(int, int) bool { return true }
	some := func(member, topic int) bool { return rand.New(rand.NewPCG(uint64(member), uint64(topic))).IntN(5) < 2 }
	allButOne := func(member, topic int) bool { return member > 0 || topic > 0 }
	for _, size := range []struct {
		name                        string
		members, topics, partitions int
		subscription                func(member, topic int) bool
	}{
		{"members=100/partitions=1000", 100, 10, 1000, all},
		{"members=1000/partitions=10000", 1000, 10, 10000, all},
		{"members=1000/partitions=10000/many subscriptions", 1000, 100, 10000, some},
		{"members=1000/topics=10000/two subscriptions", 1000, 10000, 10000, allButOne},
	} {
		members, topics := large(size.members, size.topics, size.partitions, size.subscription)
		for _, assignor := range []Assignor{Range, RoundRobin, Sticky} {
			b.Run(fmt.Sprintf("%s/%s", size.name, assignor), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					Assign(assignor, members, topics)
				}
			})
		}
	}
}
