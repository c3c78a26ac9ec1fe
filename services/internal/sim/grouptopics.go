package sim

import (
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// sourceNames are the names of the topics that groups read, in ascending order. A topic
// that is created anew has the name of the one before and an id of its own.
var sourceNames = [...]string{"t0", "t1"}

const maxSourcePartitions = 8

// source is a topic that groups read, by how many records its partitions have.
type source struct {
	topic groups.Topic
	ends  []int64
	// deleted says that it is, which others hear in their own time.
	deleted bool
}

// sourceState is what stands in a sourceKey: the number of the newest topic of that name,
// and how many partitions it has; 0 once it is deleted.
type sourceState struct {
	number     int
	partitions int32
}

// numberOf returns the number of a topic, by its id.
func numberOf(id cluster.TopicID) int { return int(id[15]) }

func (g *crowd) source(id cluster.TopicID) *source { return g.sources[numberOf(id)-1] }

// newest returns the number of the newest topic of a name, 0 for none, and the topic if
// there is one that is not deleted.
func (g *crowd) newest(name int) (number int, s *source) {
	for i, s := range g.sources {
		if s.topic.Name == sourceNames[name] {
			number = i + 1
		}
	}
	if number > 0 && !g.sources[number-1].deleted {
		s = g.sources[number-1]
	}
	return number, s
}

// grow gives a topic more partitions, or creates it.
func (g *crowd) grow(name, by int) {
	number, s := g.newest(name)
	if s == nil {
		number = len(g.sources) + 1
		s = &source{topic: groups.Topic{ID: cluster.TopicID{15: byte(number)}, Name: sourceNames[name]}}
		g.sources = append(g.sources, s)
	}
	n := min(maxSourcePartitions, len(s.ends)+by)
	if n == len(s.ends) {
		return
	}
	for len(s.ends) < n {
		s.ends = append(s.ends, 0)
	}
	g.w.note(-1, "oper", "partitions of a source", int64(number), int64(n))
	g.w.etcd.put(key{sourceKey, name}, sourceState{number, int32(n)}, 0)
}

// drop deletes a topic, of which there is another one sooner or later.
func (g *crowd) drop(name int) {
	number, s := g.newest(name)
	if s == nil {
		return
	}
	w := g.w
	s.deleted = true
	for _, h := range g.checks {
		h.removes(s.topic.ID)
	}
	w.counts.TopicsDeleted++
	w.note(-1, "oper", "deletes a source", int64(number))
	w.etcd.put(key{sourceKey, name}, sourceState{number: number}, 0)
	w.later(w.between(0, 2*time.Second), func() {
		if _, s := g.newest(name); s == nil {
			g.grow(name, 1+w.rng.IntN(4))
		}
	})
}

// produce adds records to topics, until there are no more faults.
func (g *crowd) produce() {
	w := g.w
	if w.calm {
		return
	}
	w.later(w.between(50*time.Millisecond, 150*time.Millisecond), g.produce)
	for _, s := range g.sources {
		if s.deleted {
			continue
		}
		for i := range s.ends {
			s.ends[i] += w.rng.Int64N(3)
		}
	}
}

// end returns how many records a partition of a topic has.
func (g *crowd) end(p groups.Partition) int64 { return g.source(p.Topic).ends[p.Index] }

// shown is what an image shows of the topics that groups read.
type shown struct {
	g *crowd
	i *image
}

// ByName returns the topic of that name.
func (s shown) ByName(name string) (groups.Topic, bool) {
	i := slices.Index(sourceNames[:], name)
	if i < 0 {
		return groups.Topic{}, false
	}
	return s.topic(i)
}

// ByID returns the topic of that id.
func (s shown) ByID(id cluster.TopicID) (groups.Topic, bool) {
	t, ok := s.ByName(s.g.source(id).topic.Name)
	return t, ok && t.ID == id
}

// Deleted reports whether a topic is known to be deleted.
func (s shown) Deleted(id cluster.TopicID) bool {
	now := s.i.sources[slices.Index(sourceNames[:], s.g.source(id).topic.Name)]
	return now.number > numberOf(id) || now.number == numberOf(id) && now.partitions == 0
}

// All yields all topics.
func (s shown) All(yield func(groups.Topic) bool) {
	for i := range sourceNames {
		if t, ok := s.topic(i); ok && !yield(t) {
			return
		}
	}
}

// Version grows with each change.
func (s shown) Version() int64 { return s.i.revision }

func (s shown) topic(name int) (groups.Topic, bool) {
	now := s.i.sources[name]
	if now.partitions == 0 {
		return groups.Topic{}, false
	}
	t := s.g.sources[now.number-1].topic
	t.Partitions = now.partitions
	return t, true
}
