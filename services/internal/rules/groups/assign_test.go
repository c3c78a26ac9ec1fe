package groups

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// topicOf returns a topic whose name and id have the same letter.
func topicOf(letter byte, partitions int32) Topic {
	return Topic{ID: cluster.TopicID{letter}, Name: string(letter), Partitions: partitions}
}

// partitionsOf reads "a0 a1 b0".
func partitionsOf(text string) []Partition {
	partitions := []Partition{}
	for field := range strings.FieldsSeq(text) {
		var letter byte
		var index int32
		if _, err := fmt.Sscanf(field, "%c%d", &letter, &index); err != nil {
			panic(err)
		}
		partitions = append(partitions, Partition{Topic: cluster.TopicID{letter}, Index: index})
	}
	return partitions
}

// memberOf reads the topics' letters and the owned partitions.
func memberOf(id MemberID, topics, owned string) AssignMember {
	m := AssignMember{ID: id, Owned: partitionsOf(owned)}
	for _, letter := range []byte(topics) {
		m.Topics = append(m.Topics, cluster.TopicID{letter})
	}
	return m
}

func TestAssign(t *testing.T) {
	t.Parallel()
	static := func(m AssignMember, instance string) AssignMember {
		m.Instance = instance
		return m
	}
	for _, test := range []struct {
		name     string
		assignor Assignor
		topics   []Topic
		members  []AssignMember
		want     map[MemberID]string
	}{
		{
			"nobody", Sticky, []Topic{topicOf('a', 3)}, nil, map[MemberID]string{},
		},
		{
			"no topics", Range, nil, []AssignMember{memberOf("x", "a", "a0")}, map[MemberID]string{"x": ""},
		},
		{
			"range gives the first members one more", Range, []Topic{topicOf('a', 5)},
			[]AssignMember{memberOf("z", "a", ""), memberOf("y", "a", ""), memberOf("x", "a", "")},
			map[MemberID]string{"x": "a0 a1", "y": "a2 a3", "z": "a4"},
		},
		{
			"range lines topics up", Range, []Topic{topicOf('a', 3), topicOf('b', 3)},
			[]AssignMember{memberOf("x", "ab", ""), memberOf("y", "ab", "")},
			map[MemberID]string{"x": "a0 a1 b0 b1", "y": "a2 b2"},
		},
		{
			"range leaves members idle", Range, []Topic{topicOf('a', 1)},
			[]AssignMember{memberOf("x", "a", ""), memberOf("y", "a", "")},
			map[MemberID]string{"x": "a0", "y": ""},
		},
		{
			"range by subscription", Range, []Topic{topicOf('a', 2), topicOf('b', 2)},
			[]AssignMember{memberOf("x", "a", ""), memberOf("y", "ab", ""), memberOf("z", "b", "")},
			map[MemberID]string{"x": "a0", "y": "a1 b0", "z": "b1"},
		},
		{
			"static members come first, by instance", Range, []Topic{topicOf('a', 3)},
			[]AssignMember{memberOf("a", "a", ""), static(memberOf("b", "a", ""), "2"), static(memberOf("c", "a", ""), "1")},
			map[MemberID]string{"c": "a0", "b": "a1", "a": "a2"},
		},
		{
			"in turn over all topics", RoundRobin, []Topic{topicOf('b', 3), topicOf('a', 3)},
			[]AssignMember{memberOf("y", "ab", ""), memberOf("x", "ab", "")},
			map[MemberID]string{"x": "a0 a2 b1", "y": "a1 b0 b2"},
		},
		{
			"in turn over subscribers", RoundRobin, []Topic{topicOf('a', 1), topicOf('b', 2), topicOf('c', 3)},
			[]AssignMember{memberOf("x", "a", ""), memberOf("y", "ab", ""), memberOf("z", "abc", "")},
			map[MemberID]string{"x": "a0", "y": "b0", "z": "b1 c0 c1 c2"},
		},
		{
			"a topic without subscribers is nobody's", RoundRobin, []Topic{topicOf('a', 1), topicOf('b', 2)},
			[]AssignMember{memberOf("x", "b", "")},
			map[MemberID]string{"x": "b0 b1"},
		},
		{
			"a topic that does not exist is passed over", Sticky, []Topic{topicOf('a', 1)},
			[]AssignMember{memberOf("x", "ac", "c0 a0")},
			map[MemberID]string{"x": "a0"},
		},
		{
			"sticky deals what is new in turn", Sticky, []Topic{topicOf('a', 2), topicOf('b', 2)},
			[]AssignMember{memberOf("x", "ab", ""), memberOf("y", "ab", "")},
			map[MemberID]string{"x": "a0 b0", "y": "a1 b1"},
		},
		{
			"sticky moves one partition to one more member", Sticky, []Topic{topicOf('a', 4)},
			[]AssignMember{memberOf("x", "a", "a1 a2"), memberOf("y", "a", "a0 a3"), memberOf("z", "a", "")},
			map[MemberID]string{"x": "a1", "y": "a0 a3", "z": "a2"},
		},
		{
			"sticky leaves what is even", Sticky, []Topic{topicOf('a', 5)},
			[]AssignMember{memberOf("x", "a", "a1 a2"), memberOf("y", "a", "a0 a3 a4")},
			map[MemberID]string{"x": "a1 a2", "y": "a0 a3 a4"},
		},
		{
			"sticky shares out what one who left had", Sticky, []Topic{topicOf('a', 6)},
			[]AssignMember{memberOf("x", "a", "a0 a1"), memberOf("y", "a", "a4 a5")},
			map[MemberID]string{"x": "a0 a1 a2", "y": "a3 a4 a5"},
		},
		{
			"sticky takes what its owner has unsubscribed from", Sticky, []Topic{topicOf('a', 1), topicOf('b', 1)},
			[]AssignMember{memberOf("x", "b", "a0 b0"), memberOf("y", "ab", "")},
			map[MemberID]string{"x": "b0", "y": "a0"},
		},
		{
			"sticky passes over what does not exist", Sticky, []Topic{topicOf('a', 2)},
			[]AssignMember{memberOf("x", "a", "a2 a-1 q0 a0"), memberOf("y", "a", "")},
			map[MemberID]string{"x": "a0", "y": "a1"},
		},
		{
			"sticky evens out what only one may have", Sticky, []Topic{topicOf('a', 4), topicOf('b', 4)},
			[]AssignMember{memberOf("x", "ab", "a0 a1 a2 a3"), memberOf("y", "a", "")},
			map[MemberID]string{"x": "b0 b1 b2 b3", "y": "a0 a1 a2 a3"},
		},
		{
			// p0 goes to b at first, as c is no less loaded than a then.
			"sticky undoes what turned out to be pointless", Sticky,
			[]Topic{topicOf('p', 1), topicOf('q', 4), topicOf('r', 5), topicOf('s', 3)},
			[]AssignMember{
				memberOf("a", "pq", "p0 q0 q1 q2 q3"), memberOf("b", "ps", "s0 s1 s2"),
				memberOf("c", "qr", "r0 r1 r2 r3 r4"), memberOf("d", "r", ""), memberOf("e", "r", ""),
			},
			map[MemberID]string{"a": "p0 q0 q1", "b": "s0 s1 s2", "c": "q2 q3 r0", "d": "r1 r3", "e": "r2 r4"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := Assign(test.assignor, test.members, test.topics)
			want := make(map[MemberID][]Partition, len(test.want))
			for id, partitions := range test.want {
				want[id] = partitionsOf(partitions)
			}
			if !maps.EqualFunc(got, want, slices.Equal[[]Partition]) {
				t.Errorf("assigned %v, want %v", got, want)
			}
		})
	}
}

func TestParseAssignor(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Assignor{"": Sticky, "range": Range, "roundrobin": RoundRobin, "sticky": Sticky} {
		if got, err := ParseAssignor(name); got != want || err != nil {
			t.Errorf("assignor %q was read as %q: %v", name, got, err)
		}
	}
	if got, err := ParseAssignor("Sticky"); err == nil || !strings.Contains(err.Error(), "range, roundrobin or sticky") {
		t.Errorf("assignor Sticky was read as %q: %v", got, err)
	}
}

func TestElectAssignor(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		wishes []Assignor
		want   Assignor
	}{
		{nil, Sticky},
		{[]Assignor{RoundRobin}, RoundRobin},
		{[]Assignor{Sticky, RoundRobin, Sticky}, Sticky},
		{[]Assignor{Sticky, RoundRobin}, RoundRobin},
		{[]Assignor{Sticky, RoundRobin, Range}, Range},
		{[]Assignor{RoundRobin, Range, RoundRobin}, RoundRobin},
	} {
		if got := ElectAssignor(test.wishes); got != test.want {
			t.Errorf("of %q %s was elected, want %s", test.wishes, got, test.want)
		}
	}
}

// situation makes members and topics up from a seed: values that rapid draws one by one
// are mostly small, and small groups move little. Uniform members are all subscribed to
// the same.
func situation(t *rapid.T, uniform bool) ([]AssignMember, []Topic) {
	random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	topics := make([]Topic, random.IntN(7))
	for i := range topics {
		topics[i] = topicOf('a'+byte(i), random.Int32N(8))
	}
	members := make([]AssignMember, random.IntN(10))
	// Beyond the topics that exist.
	subscription := func() (topics []cluster.TopicID) {
		for letter := byte('a'); letter < 'i'; letter++ {
			if random.IntN(5) < 3 {
				topics = append(topics, cluster.TopicID{letter})
			}
		}
		return topics
	}
	all := subscription()
	for i := range members {
		members[i] = AssignMember{ID: MemberID('0' + byte(i)), Topics: all}
		if !uniform {
			members[i].Topics = subscription()
		}
		if random.IntN(3) == 0 {
			members[i].Instance = string(rune('9' - i))
		}
	}
	// Each partition, and some that do not exist, has one owner or none; the higher the
	// skew, the more have the same.
	order, skew, unowned := random.Perm(len(members)), random.IntN(4), random.IntN(4)
	for letter := byte('a'); letter < 'h' && len(members) > 0; letter++ {
		for index := int32(-1); index < 9; index++ {
			if random.IntN(8) < unowned {
				continue
			}
			place := random.IntN(len(members))
			for range skew {
				place = min(place, random.IntN(len(members)))
			}
			owner := &members[order[place]]
			owner.Owned = append(owner.Owned, Partition{Topic: cluster.TopicID{letter}, Index: index})
		}
	}
	return members, topics
}

// outcome is an assignment with what led to it.
type outcome struct {
	members  []AssignMember
	topics   []Topic
	assigned map[MemberID][]Partition
	owner    map[Partition]MemberID
	// before is who had each partition and may go on having it.
	before   map[Partition]MemberID
	eligible map[cluster.TopicID][]MemberID
}

// assign checks what holds for every assignor.
func assign(t *rapid.T, assignor Assignor, members []AssignMember, topics []Topic) outcome {
	o := outcome{
		members: members, topics: topics, assigned: Assign(assignor, members, topics),
		owner: map[Partition]MemberID{}, before: map[Partition]MemberID{}, eligible: map[cluster.TopicID][]MemberID{},
	}
	for _, m := range members {
		for _, id := range m.Topics {
			o.eligible[id] = append(o.eligible[id], m.ID)
		}
	}
	exists := map[Partition]bool{}
	for _, topic := range topics {
		for index := range topic.Partitions {
			exists[Partition{topic.ID, index}] = true
		}
	}
	for _, m := range members {
		for _, p := range m.Owned {
			if exists[p] && slices.Contains(m.Topics, p.Topic) {
				o.before[p] = m.ID
			}
		}
	}
	if len(o.assigned) != len(members) {
		t.Fatalf("%d members have entries, want %d", len(o.assigned), len(members))
	}
	for _, m := range members {
		share, ok := o.assigned[m.ID]
		if !ok {
			t.Fatalf("member %s has no entry", m.ID)
		}
		if !slices.IsSortedFunc(share, func(a, b Partition) int {
			return slices.Compare([]int32{int32(a.Topic[0]), a.Index}, []int32{int32(b.Topic[0]), b.Index})
		}) {
			t.Fatalf("member %s has %v, not in order", m.ID, share)
		}
		for _, p := range share {
			if !exists[p] || !slices.Contains(m.Topics, p.Topic) {
				t.Fatalf("member %s was given %v, which it may not have", m.ID, p)
			}
			if other, given := o.owner[p]; given {
				t.Fatalf("%v was given to %s and %s", p, other, m.ID)
			}
			o.owner[p] = m.ID
		}
	}
	for p := range exists {
		if _, given := o.owner[p]; !given && len(o.eligible[p.Topic]) > 0 {
			t.Fatalf("nobody was given %v", p)
		}
	}

	shuffled := slices.Clone(members)
	for i := range shuffled {
		shuffled[i].Topics, shuffled[i].Owned = shuffle(shuffled[i].Topics), shuffle(shuffled[i].Owned)
	}
	if again := Assign(assignor, shuffle(shuffled), shuffle(topics)); !maps.EqualFunc(o.assigned, again, slices.Equal[[]Partition]) {
		t.Fatalf("the order of the arguments changes the assignment from %v to %v", o.assigned, again)
	}
	return o
}

func shuffle[T any](s []T) []T {
	s = slices.Clone(s)
	rand.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}

// moves is how many partitions have gone from one member to another.
func (o outcome) moves() int {
	moves := 0
	for p, id := range o.before {
		if o.owner[p] != id {
			moves++
		}
	}
	return moves
}

func assignAny(t *rapid.T) {
	members, topics := situation(t, rapid.Bool().Draw(t, "uniform"))
	assign(t, rapid.SampledFrom([]Assignor{Range, RoundRobin, Sticky}).Draw(t, "assignor"), members, topics)
}

func TestAssignProperties(t *testing.T) {
	t.Parallel()
	checkSituations(t, assignAny)
}

// checkSituations checks a property often enough to meet what is rare.
func checkSituations(t *testing.T, property func(t *rapid.T)) {
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			property(t)
		}
	})
}

func FuzzAssign(f *testing.F) { f.Fuzz(rapid.MakeFuzz(assignAny)) }

func TestRangeLinesUpCopartitionedTopics(t *testing.T) {
	t.Parallel()
	checkSituations(t, func(t *rapid.T) {
		members, topics := situation(t, false)
		o := assign(t, Range, members, topics)
		for _, a := range topics {
			for _, b := range topics {
				if a.Partitions != b.Partitions || !slices.Equal(o.eligible[a.ID], o.eligible[b.ID]) {
					continue
				}
				for index := range a.Partitions {
					if o.owner[Partition{a.ID, index}] != o.owner[Partition{b.ID, index}] {
						t.Fatalf("partition %d of %s and of %s have different owners: %v", index, a.Name, b.Name, o.assigned)
					}
				}
			}
		}
	})
}

func TestInTurnIsEvenWithOneSubscription(t *testing.T) {
	t.Parallel()
	checkSituations(t, func(t *rapid.T) {
		members, topics := situation(t, true)
		o := assign(t, RoundRobin, members, topics)
		o.checkEven(t)
	})
}

func (o outcome) checkEven(t *rapid.T) {
	for _, share := range o.assigned {
		for _, other := range o.assigned {
			if len(share) > len(other)+1 {
				t.Fatalf("one has %d partitions, another %d: %v", len(share), len(other), o.assigned)
			}
		}
	}
}
