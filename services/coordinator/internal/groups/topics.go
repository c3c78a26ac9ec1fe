package groups

import (
	"slices"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// topics is what an image says of topics, as far as groups need it.
type topics struct {
	image *cluster.Image
	// sorted has all in ascending order of their names.
	sorted []rules.Topic
}

var _ rules.Topics = (*topics)(nil)

// newTopics returns the topics of an image; nil stands for one without.
func newTopics(image *cluster.Image) *topics {
	t := &topics{image: image}
	if image != nil {
		for _, topic := range image.Topics() {
			t.sorted = append(t.sorted, rulesTopic(topic))
		}
	}
	return t
}

func rulesTopic(t *cluster.Topic) rules.Topic {
	return rules.Topic{ID: t.ID, Name: t.Name, Partitions: int32(len(t.Partitions))}
}

// equal reports whether groups need not hear of the other: most images change leaders,
// which are nothing to them. A deletion always shows, since the topic is missing.
func (t *topics) equal(other *topics) bool {
	return (t.image == nil) == (other.image == nil) && slices.Equal(t.sorted, other.sorted)
}

// ByName implements [rules.Topics].
func (t *topics) ByName(name string) (rules.Topic, bool) {
	if t.image == nil {
		return rules.Topic{}, false
	}
	topic, ok := t.image.Topic(name)
	if !ok {
		return rules.Topic{}, false
	}
	return rulesTopic(topic), true
}

// ByID implements [rules.Topics].
func (t *topics) ByID(id cluster.TopicID) (rules.Topic, bool) {
	if t.image == nil {
		return rules.Topic{}, false
	}
	topic, ok := t.image.TopicByID(id)
	if !ok {
		return rules.Topic{}, false
	}
	return rulesTopic(topic), true
}

// Deleted implements [rules.Topics].
func (t *topics) Deleted(id cluster.TopicID) bool { return t.image != nil && t.image.Deleted(id) }

// All implements [rules.Topics].
func (t *topics) All(yield func(rules.Topic) bool) {
	for _, topic := range t.sorted {
		if !yield(topic) {
			return
		}
	}
}

// Version implements [rules.Topics].
func (t *topics) Version() int64 {
	if t.image == nil {
		return 0
	}
	return t.image.Version
}
