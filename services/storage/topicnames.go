package storage

import (
	"context"
	"log/slog"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// topicNames adds to lines about a partition of the store, which knows ids only,
// what its topic is called. Before the node knows the cluster nobody can tell.
type topicNames struct {
	slog.Handler
	// name is empty where nobody can tell.
	name func(cluster.TopicID) string
}

// withTopicNames returns a logger for the store, with the names that a view has.
func withTopicNames(logger *slog.Logger, view *clusterview.View) *slog.Logger {
	return slog.New(topicNames{Handler: logger.Handler(), name: func(id cluster.TopicID) string {
		if image := view.Image(); image != nil {
			if topic, ok := image.TopicByID(id); ok {
				return topic.Name
			}
		}
		return ""
	}})
}

// Handle implements [slog.Handler].
func (h topicNames) Handle(ctx context.Context, r slog.Record) error {
	var named string
	r.Attrs(func(a slog.Attr) bool {
		if id, ok := a.Value.Any().(store.PartitionID); ok {
			named = h.name(id.Topic)
		}
		return named == ""
	})
	if named != "" {
		r = r.Clone()
		r.AddAttrs(slog.String("topic", named))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h topicNames) WithAttrs(attrs []slog.Attr) slog.Handler {
	return topicNames{Handler: h.Handler.WithAttrs(attrs), name: h.name}
}

// WithGroup implements [slog.Handler].
func (h topicNames) WithGroup(name string) slog.Handler {
	return topicNames{Handler: h.Handler.WithGroup(name), name: h.name}
}
