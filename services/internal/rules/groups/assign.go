package groups

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// Assignor is a way to share partitions out.
type Assignor string

const (
	// Range gives each member one stretch of each topic's partitions, so that equal
	// numbers of topics that are partitioned alike go to the same member.
	Range Assignor = "range"
	// RoundRobin deals the partitions of all topics out in turn.
	RoundRobin Assignor = "roundrobin"
	// Sticky balances like RoundRobin and moves no more than it must.
	Sticky Assignor = "sticky"
)

// ParseAssignor returns the assignor of that name; the empty name means [Sticky].
func ParseAssignor(name string) (Assignor, error) {
	switch assignor := Assignor(name); assignor {
	case "":
		return Sticky, nil
	case Range, RoundRobin, Sticky:
		return assignor, nil
	}
	return "", fmt.Errorf("assignor %.64q is unknown: choose %s, %s or %s", name, Range, RoundRobin, Sticky)
}

// ElectAssignor returns what most members of a group wish; between equals the first by
// name, and [Sticky] where there are no wishes.
func ElectAssignor(wishes []Assignor) Assignor {
	votes := make(map[Assignor]int, 3)
	for _, wish := range wishes {
		votes[wish]++
	}
	elected := Sticky
	for wish, n := range votes {
		if n > votes[elected] || n == votes[elected] && wish < elected {
			elected = wish
		}
	}
	return elected
}

// AssignMember is a member that partitions may be given to.
type AssignMember struct {
	ID       MemberID
	Instance string
	// Topics are those that it is subscribed to and that exist, in any order. Members
	// of equal subscription are compared faster if they share the slice.
	Topics []cluster.TopicID
	// Owned is what it has, or was to have, for Sticky. Partitions that it may not have
	// any more are passed over; one that several members name counts for the first of
	// them by their order.
	Owned []Partition
}

// Assign shares the partitions of topics out: each that a member is subscribed to goes
// to exactly one such member. Every member has an entry in the result, in ascending
// order of topic id and index. The result depends on what the arguments say alone, not
// on the order in which they do.
//
// Topics are dealt in the order of their names. Members are ordered by instance, those
// without one after them by id, so that a static member keeps its place when it comes
// back under another id.
//
// Sticky gives the members of a group with one subscription equal numbers, within one,
// by the fewest possible moves. With several subscriptions, no partition could go to
// another member to even the numbers out, and none has moved without having evened them
// out.
func Assign(assignor Assignor, members []AssignMember, topics []Topic) map[MemberID][]Partition {
	s := newSharing(members, topics)
	switch assignor {
	case Range:
		s.assignRanges()
	case RoundRobin:
		s.assignInTurn()
	default:
		s.assignSticky()
	}
	return s.result()
}

// nobody is the owner of a partition without one.
const nobody = -1

// sharing is the partitions, numbered through, with their owners. Members and topics go
// by their place in the order of [Assign].
type sharing struct {
	subscriptions
	members []AssignMember
	topics  []Topic
	// first is the number of each topic's partition 0.
	first []int
	// owner is the member that each partition is given to, or nobody.
	owner []int32
}

func newSharing(members []AssignMember, topics []Topic) *sharing {
	s := &sharing{members: slices.Clone(members), topics: slices.Clone(topics)}
	slices.SortFunc(s.members, compareMembers)
	slices.SortFunc(s.topics, func(a, b Topic) int { return cmp.Or(cmp.Compare(a.Name, b.Name), compareTopics(a.ID, b.ID)) })
	s.first = make([]int, len(s.topics))
	partitions := 0
	for t, topic := range s.topics {
		s.first[t] = partitions
		partitions += int(topic.Partitions)
	}
	s.owner = slices.Repeat([]int32{nobody}, partitions)
	s.subscriptions = classify(s.members, s.topics)
	return s
}

func compareMembers(a, b AssignMember) int {
	if (a.Instance == "") != (b.Instance == "") {
		return cmp.Compare(b.Instance, a.Instance)
	}
	return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.ID, b.ID))
}

func compareTopics(a, b cluster.TopicID) int { return bytes.Compare(a[:], b[:]) }

// of returns the owners of a topic's partitions.
func (s *sharing) of(topic int32) []int32 {
	first := s.first[topic]
	return s.owner[first : first+int(s.topics[topic].Partitions)]
}

func (s *sharing) assignRanges() {
	for k := range s.kinds {
		subscribers := s.subscribers(int32(k))
		for _, t := range s.kinds[k].topics {
			partitions := s.of(t)
			each, more := len(partitions)/len(subscribers), len(partitions)%len(subscribers)
			for i := range partitions {
				// The first more members have one more than each.
				if place := i / (each + 1); place < more {
					partitions[i] = subscribers[place]
				} else {
					partitions[i] = subscribers[(i-more)/each]
				}
			}
		}
	}
}

func (s *sharing) assignInTurn() {
	subscribers := make([][]int32, len(s.kinds))
	for k := range subscribers {
		subscribers[k] = s.subscribers(int32(k))
	}
	next := int32(0)
	for t := range s.topics {
		k := s.kindOf[t]
		if k == noKind {
			continue
		}
		place, _ := slices.BinarySearch(subscribers[k], next)
		partitions := s.of(int32(t))
		for i := range partitions {
			partitions[i] = subscribers[k][place%len(subscribers[k])]
			next = partitions[i] + 1
			place++
		}
	}
}

func (s *sharing) result() map[MemberID][]Partition {
	counts := make([]int, len(s.members))
	for _, owner := range s.owner {
		if owner != nobody {
			counts[owner]++
		}
	}
	shares := make([][]Partition, len(s.members))
	for m, n := range counts {
		shares[m] = make([]Partition, 0, n)
	}
	byID := make([]int32, len(s.topics))
	for t := range byID {
		byID[t] = int32(t)
	}
	slices.SortFunc(byID, func(a, b int32) int { return compareTopics(s.topics[a].ID, s.topics[b].ID) })
	for _, t := range byID {
		for i, owner := range s.of(t) {
			if owner != nobody {
				shares[owner] = append(shares[owner], Partition{Topic: s.topics[t].ID, Index: int32(i)})
			}
		}
	}
	assigned := make(map[MemberID][]Partition, len(s.members))
	for m, share := range shares {
		assigned[s.members[m].ID] = share
	}
	return assigned
}
