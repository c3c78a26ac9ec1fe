package cli

import (
	"context"
	"fmt"

	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// createdText says what a new topic has got. A factor of 0 is not known.
func createdText(topic runnel.Topic, factor int) string {
	text := fmt.Sprintf("created topic %q with %s", topic.Name, plural(int64(topic.Partitions), "partition"))
	if factor > 0 {
		text += fmt.Sprintf(", replication factor %d", factor)
	}
	return text
}

// warnCreated warns of what a new topic has got that its creator may not have
// meant.
func (p *program) warnCreated(ctx context.Context, client *runnel.Client, spec runnel.TopicSpec, topic *topicFacts) {
	warn := func(warning string) {
		if warning != "" {
			p.notef("warning: %s", warning)
		}
	}
	warn(topic.minISRWarning())
	if spec.ReplicationFactor != 0 {
		return
	}
	limited, cancel := context.WithTimeout(ctx, obstaclePatience)
	defer cancel()
	if cluster, err := client.Admin().DescribeCluster(limited); err == nil {
		warn(fewReplicas(topic.Name, topic.replicationFactor(), cluster.Nodes))
	}
}

// fewReplicas says that a topic, created with the default replication factor, has
// fewer replicas than it would have if all storage nodes were live; else "".
func fewReplicas(topic string, factor int, nodes []runnel.Node) string {
	storage, live := 0, 0
	for _, n := range nodes {
		if n.Role != "storage" {
			continue
		}
		storage++
		if !n.Fenced && !n.Leaving {
			live++
		}
	}
	usual := rules.DefaultReplicationFactor(storage)
	if factor == 0 || factor >= usual {
		return ""
	}
	return fmt.Sprintf("topic %q has replication factor %d for good, since %d of %d storage nodes are live; with all of them live it would be %d: if it is to be that, start them, delete the topic and create it again",
		topic, factor, live, storage, usual)
}

// minISRWarning says that a topic demands more in-sync replicas than it has
// replicas, else "".
func (t *topicFacts) minISRWarning() string {
	for _, s := range t.Settings {
		if text := t.inEffect(s); s.Name == rules.MinInsyncReplicas && !s.Default && text != s.Value {
			return fmt.Sprintf("%s=%s: a topic cannot have more in-sync replicas than replicas", s.Name, text)
		}
	}
	return ""
}

// glance looks at a topic that was changed a moment ago, for what is worth saying
// about it; nil where that would take long. Its leaders are not asked: a partition that
// nobody has written to costs next to nothing until somebody asks for it.
func glance(ctx context.Context, client *runnel.Client, name string) *topicFacts {
	limited, cancel := context.WithTimeout(ctx, obstaclePatience)
	defer cancel()
	topic, err := client.Admin().DescribeTopicPlacement(limited, name)
	if err != nil {
		return nil
	}
	return &topicFacts{TopicDescription: topic}
}
