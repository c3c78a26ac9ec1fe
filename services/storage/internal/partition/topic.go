package partition

import (
	"strings"
	"sync/atomic"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// Topic is what the partitions of a topic share.
type Topic struct {
	// ID and Name never change.
	ID   cluster.TopicID
	Name string

	config atomic.Pointer[rules.TopicConfig]
}

// NewTopic returns a topic.
func NewTopic(id cluster.TopicID, name string, config rules.TopicConfig) *Topic {
	t := &Topic{ID: id, Name: name}
	t.SetConfig(config)
	return t
}

// Internal says that the topic is the cluster's own: only coordinators write it.
func (t *Topic) Internal() bool { return strings.HasPrefix(t.Name, "__") }

// Config returns the topic's present settings, which must not be changed.
func (t *Topic) Config() *rules.TopicConfig { return t.config.Load() }

// SetConfig replaces the settings. Appends that have begun keep the old ones, and
// [Partition.Apply] makes the high watermark heed the new ones.
func (t *Topic) SetConfig(config rules.TopicConfig) { t.config.Store(&config) }

// set is where the store keeps what is written to the topic now.
func (t *Topic) set() store.Set {
	config := t.Config()
	return store.SetFor(config.Synced(), config.Compacted())
}
