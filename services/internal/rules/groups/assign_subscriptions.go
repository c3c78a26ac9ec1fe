package groups

import (
	"encoding/binary"
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// subscriptions is who may have what. Members that are subscribed to the same topics
// form a class, topics that the same classes are subscribed to a kind. There are few of
// both in a group whose members run the same program, however many members and topics
// it has.
type subscriptions struct {
	// places is the place of each topic in the order of their names.
	places  map[cluster.TopicID]int32
	classes []class
	// classOf is the class of each member.
	classOf []int32
	kinds   []kind
	// kindOf is the kind of each topic, noKind for one without subscribers.
	kindOf []int32
}

// class is members of equal subscription.
type class struct {
	members []int32
	// topics are sorted by id and hold each once.
	topics []cluster.TopicID
	// kinds are in ascending order.
	kinds []int32
}

// kind is topics with the same subscribers.
type kind struct {
	topics  []int32
	classes []int32
	// members is how many members the classes have.
	members int
}

const noKind = -1

// classify numbers classes and kinds by the first member or topic of each.
func classify(members []AssignMember, topics []Topic) subscriptions {
	s := subscriptions{classOf: make([]int32, len(members)), kindOf: make([]int32, len(topics))}
	byHash := make(map[uint64][]int32)
	for m := range members {
		if m > 0 && equalTopics(members[m].Topics, members[m-1].Topics) {
			s.classOf[m] = s.classOf[m-1]
		} else {
			s.classOf[m] = s.classFor(members[m].Topics, byHash)
		}
		c := &s.classes[s.classOf[m]]
		c.members = append(c.members, int32(m))
	}

	s.places = make(map[cluster.TopicID]int32, len(topics))
	for t, topic := range topics {
		s.places[topic.ID] = int32(t)
	}
	subscribed := make([][]byte, len(topics))
	for c := range s.classes {
		for _, id := range s.classes[c].topics {
			if t, ok := s.places[id]; ok {
				subscribed[t] = binary.BigEndian.AppendUint32(subscribed[t], uint32(c))
			}
		}
	}
	byClasses := make(map[string]int32)
	for t, classes := range subscribed {
		if len(classes) == 0 {
			s.kindOf[t] = noKind
			continue
		}
		k, ok := byClasses[string(classes)]
		if !ok {
			k = int32(len(s.kinds))
			byClasses[string(classes)] = k
			s.kinds = append(s.kinds, kind{})
			for ; len(classes) > 0; classes = classes[4:] {
				c := int32(binary.BigEndian.Uint32(classes))
				s.kinds[k].classes = append(s.kinds[k].classes, c)
				s.kinds[k].members += len(s.classes[c].members)
				s.classes[c].kinds = append(s.classes[c].kinds, k)
			}
		}
		s.kinds[k].topics = append(s.kinds[k].topics, int32(t))
		s.kindOf[t] = k
	}
	return s
}

func equalTopics(a, b []cluster.TopicID) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

// classFor returns the class of that subscription, a new one if need be.
func (s *subscriptions) classFor(topics []cluster.TopicID, byHash map[uint64][]int32) int32 {
	for i := 1; i < len(topics); i++ {
		if compareTopics(topics[i-1], topics[i]) >= 0 {
			topics = slices.Clone(topics)
			slices.SortFunc(topics, compareTopics)
			topics = slices.Compact(topics)
			break
		}
	}
	hash := uint64(len(topics))
	for _, id := range topics {
		hash = (hash ^ binary.LittleEndian.Uint64(id[:8])) * 0x9e3779b97f4a7c15
		hash = (hash ^ hash>>29 ^ binary.LittleEndian.Uint64(id[8:])) * 0xbf58476d1ce4e5b9
	}
	for _, c := range byHash[hash] {
		if equalTopics(s.classes[c].topics, topics) {
			return c
		}
	}
	c := int32(len(s.classes))
	s.classes = append(s.classes, class{topics: topics})
	byHash[hash] = append(byHash[hash], c)
	return c
}

// subscribers returns the members that are subscribed to topics of a kind, in their
// order.
func (s *subscriptions) subscribers(k int32) []int32 {
	members := make([]int32, 0, s.kinds[k].members)
	for _, c := range s.kinds[k].classes {
		members = append(members, s.classes[c].members...)
	}
	slices.Sort(members)
	return members
}
