package storage

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

func TestStoreLinesNameTopics(t *testing.T) {
	known, unknown := store.PartitionID{Topic: cluster.TopicID{1}, Index: 7}, store.PartitionID{Topic: cluster.TopicID{2}, Index: 7}
	for _, format := range []func(*bytes.Buffer) slog.Handler{
		func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var out bytes.Buffer
		logger := slog.New(topicNames{Handler: format(&out), name: func(id cluster.TopicID) string {
			if id == known.Topic {
				return "orders"
			}
			return ""
		}}).With("node", 3)
		for line, has := range map[string]bool{known.String(): true, unknown.String(): false} {
			out.Reset()
			id := known
			if !has {
				id = unknown
			}
			logger.Warn("a partition has failed", "partition", id, "volume", 1)
			got := out.String()
			if !strings.Contains(got, line) || strings.Contains(got, "orders") != has || !strings.Contains(got, "node") {
				t.Errorf("the line is %s", got)
			}
		}
		out.Reset()
		logger.Warn("a volume", "volume", 1)
		if strings.Contains(out.String(), "topic") {
			t.Errorf("a line without a partition is %s", out.String())
		}
	}
}
